"""One reading of PostgreSQL URLs: the forms people write, as the driver takes them.

Pure; used by `catalogue` and by the scripts of `data_migration`. Never shows a password.
"""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from services.errors import ConfigurationError

_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
# Parameters of libpq that asyncpg would pass to the server as unknown settings.
_CLIENT_ONLY = frozenset(
    {
        "channel_binding",
        "client_encoding",
        "connect_timeout",
        "gssencmode",
        "keepalives",
        "keepalives_count",
        "keepalives_idle",
        "keepalives_interval",
        "tcp_user_timeout",
    }
)


def asyncpg_dsn(url: str) -> str:
    """Return the URL as asyncpg takes it.

    Accepts `postgresql://`, `postgres://` and `postgresql+asyncpg://`; `ssl=` of SQLAlchemy's form
    becomes `sslmode=`, parameters that only libpq knows are left out. Raises `ConfigurationError`.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ConfigurationError(_WRONG) from None
    if parts.scheme not in _SCHEMES or not _PORTS.fullmatch(parts.netloc.rpartition("@")[2]):
        raise ConfigurationError(_WRONG)
    if parts.fragment:
        raise ConfigurationError(f"{_WRONG}, with # and other marks in the password percent-encoded (%23)")
    query = urlencode(
        [
            ("sslmode", _ssl_mode(value)) if name == "ssl" else (name, value)
            for name, value in parse_qsl(parts.query)
            if name not in _CLIENT_ONLY
        ]
    )
    return f"postgresql://{parts.netloc}{parts.path}{'?' if query else ''}{query}"


def shown_url(url: str) -> str:
    """Return host, port and database for messages: never the password, never the parameters."""
    try:
        parts = urlsplit(url)
        host = unquote(parts.netloc.rpartition("@")[2])
    except ValueError:
        return "PostgreSQL"
    name = unquote(parts.path.lstrip("/"))
    return f"PostgreSQL at {host or 'the default host'}{f', database {name}' if name else ''}"


_PORTS = re.compile(r"(?:(?:\[[^\]]*\]|[^\[\]:,]*)(?::\d{1,5})?(?:,|$))*")
_WRONG = "DATABASE_URL is not a PostgreSQL URL: write it as postgresql://user:password@host:port/name"


def _ssl_mode(value: str) -> str:
    return {"true": "require", "false": "disable", "1": "require", "0": "disable"}.get(value.lower(), value)
