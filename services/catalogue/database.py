"""One program's way to one database: connected at the first use, and every error of it one of ours.

Beneath whoever reads or writes a table while the daemon runs. Nothing here waits for ever.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Executable, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from services.catalogue.connection import DATABASE_ERRORS, database_error, make_engine

COMMAND_TIMEOUT_S = 5.0
_READ_WRITE = text("SET TRANSACTION READ WRITE")


class Database:
    """PostgreSQL behind a URL. `close` it when done.

    Every method raises `TemporaryError` while PostgreSQL does not serve, `ConfigurationError` for a wrong
    login and when a table or the right to it is missing.
    """

    def __init__(self, url: str, *, application_name: str, pooled: bool = False) -> None:
        """Prepare; `pooled` keeps one connection open, without it every use makes its own."""
        self._url = url
        self._application_name = application_name
        self._pooled = pooled
        self._engine: AsyncEngine | None = None

    async def use_url(self, url: str) -> None:
        """Connect by another URL from now on, as after a changed password."""
        self._url = url
        await self.close()

    async def close(self) -> None:
        """Close the connection; harmless when there is none."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await engine.dispose()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """One transaction that may write; it is committed when the body ends well."""
        try:
            async with self._connect().begin() as connection:
                await connection.execute(_READ_WRITE)
                yield connection
        except DATABASE_ERRORS as error:
            raise database_error(error, self._url) from error

    async def read(self, statement: Executable, values: dict[str, Any] | None = None) -> Sequence[Any]:
        """Return the rows of a query."""
        try:
            async with self._connect().connect() as connection:
                return (await connection.execute(statement, values)).all()
        except DATABASE_ERRORS as error:
            raise database_error(error, self._url) from error

    def _connect(self) -> AsyncEngine:
        if self._engine is None:
            self._engine = make_engine(
                self._url,
                application_name=self._application_name,
                command_timeout_s=COMMAND_TIMEOUT_S,
                pooled=self._pooled,
            )
        return self._engine
