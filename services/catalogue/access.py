"""One program's way to one database while the daemon runs: every error of it is one of ours.

Above `database`, beneath whoever reads or writes a table of its own. Nothing here waits for ever.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from services.catalogue.database import Connection, Database, Row
from services.catalogue.database_errors import DRIVER_ERRORS, database_error

COMMAND_TIMEOUT_S = 5.0


class DatabaseAccess:
    """PostgreSQL behind a URL, connected at the first use. `close` it when done.

    Every method raises `TemporaryError` while PostgreSQL does not serve, `ConfigurationError` for a wrong
    login and when a table or the right to it is missing.
    """

    def __init__(self, url: str, *, application_name: str, kept: bool = True) -> None:
        """Prepare; with `kept` one connection stays open, without it every use makes its own."""
        self._url = url
        self._application_name = application_name
        self._kept = kept
        self._database: Database | None = None

    async def use_url(self, url: str) -> None:
        """Connect by another URL from now on, as after a changed password."""
        self._url = url
        await self.close()

    async def close(self) -> None:
        """Close the connection; harmless when there is none."""
        database, self._database = self._database, None
        if database is not None:
            await database.close()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[Connection]:
        """One transaction that may write; it is committed when the body ends well."""
        try:
            async with self._connect().transaction(writes=True) as connection:
                yield connection
        except DRIVER_ERRORS as error:
            raise database_error(error, self._url) from error

    async def read(self, statement: str, *values: Any) -> list[Row]:
        """Return the rows of a query."""
        try:
            async with self._connect().session() as connection:
                rows: list[Row] = await connection.fetch(statement, *values)
                return rows
        except DRIVER_ERRORS as error:
            raise database_error(error, self._url) from error

    def _connect(self) -> Database:
        if self._database is None:
            self._database = Database(
                self._url,
                application_name=self._application_name,
                command_timeout_s=COMMAND_TIMEOUT_S,
                kept=self._kept,
            )
        return self._database
