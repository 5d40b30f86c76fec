"""What PostgreSQL's and its driver's errors mean for us. Shows no password.

Beneath everything that talks to PostgreSQL, by the driver itself or (`connection`) by SQLAlchemy. Pure.
"""

from __future__ import annotations

import asyncpg

from services.database_url import shown_url
from services.errors import ConfigurationError, MarketdError, StorageError, TemporaryError

CONNECT_TIMEOUT_S = 2.0
SETUP_COMMAND = "python data_migration/setup_providers.py"

DRIVER_ERRORS: tuple[type[Exception], ...] = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    OSError,
    TimeoutError,
)
"""What work on the database can raise by the driver; hand it to `database_error`."""

_REFUSED_LOGIN = ("28000", "28P01", "3D000")
_NO_PRIVILEGE = "42501"
_NO_TABLE = ("42P01", "42703", "3F000")
_LOCK_WAIT = "55P03"


def sqlstate(error: BaseException) -> str | None:
    """Return PostgreSQL's five-letter code of an error, None when the server did not send one."""
    seen: BaseException | None = error
    while seen is not None:
        code = getattr(seen, "sqlstate", None) or getattr(seen, "pgcode", None)
        if isinstance(code, str):
            return code
        seen = seen.orig if _is_wrapped(seen) else seen.__cause__  # type: ignore[attr-defined]
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
    if isinstance(error, OSError | asyncpg.InterfaceError) or _is_wrapped(error):
        return TemporaryError(
            f"{server} cannot be reached: {_first_line(error)}. Check that it runs and is reachable."
        )
    return StorageError(f"{server}: {_first_line(error)}")


def _is_wrapped(error: BaseException) -> bool:
    # By name: whoever has an error of SQLAlchemy has loaded it, the daemon has not.
    return any(kind.__name__ == "DBAPIError" for kind in type(error).__mro__)


def _first_line(error: BaseException) -> str:
    cause = getattr(error, "orig", None) or error if _is_wrapped(error) else error
    lines = str(cause).splitlines() or [type(cause).__name__]
    return lines[0].removeprefix("<class 'asyncpg.exceptions.").rstrip(". ")
