"""The forms of a PostgreSQL URL, and that its password is never shown."""

from __future__ import annotations

import pytest

from services.database_url import asyncpg_dsn, shown_url
from services.errors import ConfigurationError


@pytest.mark.parametrize(
    ("written", "driver"),
    [
        ("postgresql://u:p@h:5432/d", "postgresql://u:p@h:5432/d"),
        ("postgres://u:p@h/d", "postgresql://u:p@h/d"),
        ("postgresql+asyncpg://u:p@h/d", "postgresql://u:p@h/d"),
        ("postgresql+asyncpg://u@h/d?ssl=require", "postgresql://u@h/d?sslmode=require"),
        ("postgresql+asyncpg://u@h/d?ssl=true", "postgresql://u@h/d?sslmode=require"),
        ("postgresql://u@h/d?sslmode=verify-full", "postgresql://u@h/d?sslmode=verify-full"),
        ("postgresql://u@h/d?connect_timeout=5&channel_binding=require", "postgresql://u@h/d"),
        ("postgresql:///d?host=/run/postgresql", "postgresql:///d?host=%2Frun%2Fpostgresql"),
        ("postgresql://u:p%40%2F%23@h/d", "postgresql://u:p%40%2F%23@h/d"),
        ("postgresql://u:p@one:5432,two:5433/d", "postgresql://u:p@one:5432,two:5433/d"),
        ("postgresql://u@[::1]:5432/d", "postgresql://u@[::1]:5432/d"),
    ],
)
def test_every_form_becomes_the_drivers(written: str, driver: str) -> None:
    assert asyncpg_dsn(written) == driver


@pytest.mark.parametrize(
    "wrong", ["mysql://u:secret@h/d", "h:5432/d", "", "postgresql://u:sec#ret@h/d", "postgresql://h:x/d"]
)
def test_what_is_not_a_postgresql_url_is_refused_without_showing_it(wrong: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        asyncpg_dsn(wrong)
    assert "postgresql://user:password@host:port/name" in str(error.value)
    assert "sec" not in str(error.value)


def test_messages_name_the_server_and_never_the_password() -> None:
    assert shown_url("postgresql://u:secret@db.example:5433/market?sslpassword=hush") == (
        "PostgreSQL at db.example:5433, database market"
    )
    assert shown_url("postgresql:///market") == "PostgreSQL at the default host, database market"
    assert "secret" not in shown_url("postgresql://u:sec@ret:secret@[::1/market")
