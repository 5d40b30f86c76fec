"""Engines of SQLAlchemy on PostgreSQL that never wait for ever.

Used by the commands and the scripts of `data_migration`; the daemon has `database` instead, which loads
nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from services.catalogue.database_errors import (
    CONNECT_TIMEOUT_S,
    DRIVER_ERRORS,
    SETUP_COMMAND,
    database_error,
    sqlstate,
)
from services.database_url import asyncpg_dsn

__all__ = [
    "CONNECT_TIMEOUT_S",
    "DATABASE_ERRORS",
    "SETUP_COMMAND",
    "database_error",
    "make_engine",
    "sqlstate",
]

DATABASE_ERRORS: tuple[type[Exception], ...] = (SQLAlchemyError, *DRIVER_ERRORS)
"""What work on the database can raise; hand it to `database_error`."""


def make_engine(
    database_url: str,
    *,
    application_name: str,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    command_timeout_s: float | None = None,
    server_settings: Mapping[str, str] | None = None,
    pooled: bool = False,
) -> AsyncEngine:
    """Return an engine; nothing is connected yet.

    `connect_timeout_s` bounds connection and login, `command_timeout_s` every statement (None: no
    bound of the client's). Without `pooled` every use has a connection of its own, so that locks held
    by a session end with it. Raises `ConfigurationError` when the URL is not one.
    """
    dsn = asyncpg_dsn(database_url)
    settings = {"application_name": application_name, "timezone": "UTC", **(server_settings or {})}

    async def connect() -> asyncpg.Connection:
        return await asyncpg.connect(
            dsn, timeout=connect_timeout_s, command_timeout=command_timeout_s, server_settings=settings
        )

    if pooled:
        return create_async_engine(
            "postgresql+asyncpg://", async_creator=connect, pool_size=1, max_overflow=0, pool_timeout=5
        )
    return create_async_engine("postgresql+asyncpg://", async_creator=connect, poolclass=NullPool)
