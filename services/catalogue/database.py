"""One connection to PostgreSQL that the daemon's readers and writers use, by the driver itself.

Beneath the catalogue, the ledger of the past, the events of routing and the scores. Connects when it is
first needed and again after a loss; never waits for ever. What it is at after a cancelled or broken
statement nobody knows: it is thrown away then. The scripts of `data_migration` have engines instead
(`connection`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Literal

import asyncpg

from services.catalogue.database_errors import CONNECT_TIMEOUT_S, DRIVER_ERRORS
from services.database_url import asyncpg_dsn

WAIT_S = 5.0
"""How long one user waits for another."""
_CLOSE_WITHIN_S = 1.0

Row = asyncpg.Record
Connection = Any
"""`asyncpg.Connection`: `fetch(sql, *values)`, `execute`, `executemany`, `fetchval`, `cursor`."""


class Database:
    """A database of one URL. `close` it when done; nothing is connected before it is used.

    `command_timeout_s` bounds every statement. Without `kept` every use has a connection of its own. Raises
    `ConfigurationError` when the URL is not one; its users get the errors of `DRIVER_ERRORS`.
    """

    def __init__(
        self, database_url: str, *, application_name: str, command_timeout_s: float, kept: bool = True
    ) -> None:
        self._dsn = asyncpg_dsn(database_url)
        self._settings = {"application_name": application_name, "timezone": "UTC"}
        self._command_timeout_s = command_timeout_s
        self._kept = kept
        self._connection: Connection | None = None
        self._closing: Connection | None = None
        self._lock = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """Hold the connection; every statement is a transaction of its own."""
        async with asyncio.timeout(WAIT_S):
            await self._lock.acquire()
        try:
            connection = await self._ready()
            try:
                yield connection
            except asyncpg.PostgresError:
                # The server said no and knows where it stands.
                raise
            except asyncpg.InternalClientError as error:
                # The server ended the connection meanwhile, and the driver is still reading why.
                connection.terminate()
                raise asyncpg.ConnectionDoesNotExistError("the connection was lost") from error
            except BaseException:
                connection.terminate()
                raise
            finally:
                if connection.is_closed() or not self._kept or self._closing is connection:
                    self._connection = self._closing = None
                    await _end(connection)
        finally:
            self._lock.release()

    @contextlib.asynccontextmanager
    async def transaction(
        self,
        *,
        writes: bool = False,
        isolation: Literal["read_committed", "repeatable_read"] = "read_committed",
    ) -> AsyncIterator[Connection]:
        """Hold the connection in one transaction, which may write only with `writes`."""
        async with self.session() as connection:
            transaction = connection.transaction(isolation=isolation, readonly=not writes)
            await transaction.start()
            try:
                if writes:
                    # Also where the role's transactions are read-only by default.
                    await connection.execute("SET TRANSACTION READ WRITE")
                yield connection
                await transaction.commit()
            except asyncpg.PostgresError:
                try:
                    await transaction.rollback()
                except (*DRIVER_ERRORS, asyncpg.InternalClientError):
                    # The server ended the connection with its answer, or is about to.
                    connection.terminate()
                raise

    async def close(self) -> None:
        """Close the connection; one that is in use is closed when it is given back."""
        connection = self._connection
        if connection is None:
            return
        if self._lock.locked():
            self._closing = connection
            return
        self._connection = None
        await _end(connection)

    async def _ready(self) -> Connection:
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = self._connection = await asyncpg.connect(
                self._dsn,
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=self._command_timeout_s,
                server_settings=self._settings,
            )
        return connection


async def _end(connection: Connection) -> None:
    if connection.is_closed():
        return
    try:
        await connection.close(timeout=_CLOSE_WITHIN_S)
    except DRIVER_ERRORS:
        connection.terminate()
