"""Engines on PostgreSQL that never wait for ever, and what its errors mean for us.

Used by the loader beside it and by the scripts of `data_migration`. Shows no password.
"""

from __future__ import annotations

from collections.abc import Mapping

import asyncpg
from sqlalchemy.exc import DBAPIError, InterfaceError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import NullPool

from services.database_url import asyncpg_dsn, shown_url
from services.errors import ConfigurationError, MarketdError, StorageError, TemporaryError

CONNECT_TIMEOUT_S = 2.0
SETUP_COMMAND = "python data_migration/setup_providers.py"

DATABASE_ERRORS: tuple[type[Exception], ...] = (
    SQLAlchemyError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
)
"""What work on the database can raise; hand it to `database_error`."""

_REFUSED_LOGIN = ("28000", "28P01", "3D000")
_NO_PRIVILEGE = "42501"
_NO_TABLE = ("42P01", "42703", "3F000")
_LOCK_WAIT = "55P03"


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


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's five-letter code of an error, None when the server did not send one."""
    seen: BaseException | None = error
    while seen is not None:
        code = getattr(seen, "sqlstate", None) or getattr(seen, "pgcode", None)
        if isinstance(code, str):
            return code
        seen = seen.orig if isinstance(seen, DBAPIError) else seen.__cause__
    return None


def database_error(error: Exception, database_url: str) -> MarketdError:
    """Return our error for what PostgreSQL, the driver or the network raised.

    `ConfigurationError` for what an operator must change, `TemporaryError` for what passes,
    `StorageError` for the rest. The message names the server without its password.
    """
    if isinstance(error, MarketdError):
        return error
    server = shown_url(database_url)
    code = sqlstate(error)
    if code is None:
        return _without_code(error, server)
    message = _first_line(error)
    if code in _REFUSED_LOGIN:
        return ConfigurationError(f"{server} refuses the login: {message}. Correct DATABASE_URL.")
    if code == _NO_PRIVILEGE:
        return ConfigurationError(f"{server}: {message}. Grant the role of DATABASE_URL that privilege.")
    if code in _NO_TABLE:
        return ConfigurationError(f"{server} does not have this program's tables: run {SETUP_COMMAND}.")
    if code == _LOCK_WAIT:
        return TemporaryError(f"{server}: another migration or population holds its lock. Try again.")
    if code[:2] in ("08", "40", "53", "57"):
        return TemporaryError(f"{server} cannot serve just now: {message}. Try again.")
    return StorageError(f"{server} refused a statement: {message} ({code}).")


def _without_code(error: Exception, server: str) -> MarketdError:
    if isinstance(error, TimeoutError):
        return TemporaryError(f"{server} does not answer in time. Check that it runs and is reachable.")
    if isinstance(error, asyncpg.ClientConfigurationError):
        return ConfigurationError(f"DATABASE_URL cannot be used: {_first_line(error)}. Correct it.")
    if isinstance(error, OSError | InterfaceError | asyncpg.InterfaceError | DBAPIError):
        return TemporaryError(
            f"{server} cannot be reached: {_first_line(error)}. Check that it runs and is reachable."
        )
    return StorageError(f"{server}: {_first_line(error)}")


def _first_line(error: BaseException) -> str:
    cause = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = str(cause).splitlines() or [type(cause).__name__]
    return lines[0].removeprefix("<class 'asyncpg.exceptions.").rstrip(". ")
