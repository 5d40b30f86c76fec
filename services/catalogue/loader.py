"""The catalogue: what is mapped to what, read from PostgreSQL into an immutable snapshot.

Stands beside the providers, beneath the daemon's composition. Never writes a table and never
migrates; while PostgreSQL is away the last good snapshot on disk stands in for it. What is good is not
decided here: a snapshot is written to disk when its user says `keep`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import TypeVar

import asyncpg
import msgspec
import structlog

from models.revisions import SCHEMA_REVISION, SCHEMA_REVISIONS
from services.catalogue.acceptance import at_time
from services.catalogue.database import Database
from services.catalogue.database_errors import DRIVER_ERRORS, SETUP_COMMAND, database_error, sqlstate
from services.catalogue.last_good import LastGoodUnusable, read_last_good, write_last_good
from services.catalogue.queries import TablesRead, read_revisions, read_tables
from services.catalogue.validation import MappingsInvalid, find_problems
from services.database_url import shown_url
from services.errors import ConfigurationError, MarketdError, TemporaryError
from services.market_data.clock import Clock
from services.market_data.instruments import InstrumentMapping, MappingSnapshot

_log = structlog.get_logger(__name__)
_T = TypeVar("_T")

COMMAND_TIMEOUT_S = 2.0
ATTEMPT_TIMEOUT_S = 30.0
"""All of one attempt, in seconds. Single steps have the shorter limits; this one bounds a long table."""

REWRITE_AFTER_MS = 3_600_000
"""A last good copy of the same content is written again after this time, so that its age stays true."""

_STALE_STATEMENT = ("0A000", "26000", "XX000")
_ENDED_BY_THE_SERVER = ("57P01", "57P02")


class Catalogue:
    """Reads snapshots from one database. `close` it when done; it connects at the first call.

    With `exchanges` (codes) a snapshot has the mappings of those only; the others are none of ours.
    """

    def __init__(
        self, database_url: str, cache_path: Path, clock: Clock, *, exchanges: Collection[str] = ()
    ) -> None:
        self._exchanges = frozenset(exchanges)
        self._database_url = database_url
        self._cache_path = cache_path
        self.clock = clock
        self._database: Database | None = None
        self._version = 0
        self._written: tuple[object, int] | None = None
        self._known: tuple[InstrumentMapping, ...] = ()

    async def use_url(self, database_url: str) -> None:
        """Connect by another URL from now on, as after a changed password."""
        self._database_url = database_url
        await self.close()

    async def check_schema(self) -> None:
        """Check that the database is at the revision this program was written for.

        Raises `ConfigurationError` with the command to run when it is not. A server that cannot be
        reached is not an error here: `load` then decides whether the last good copy will do.
        """
        try:
            revisions = await self._try_twice(lambda database: read_revisions(database, COMMAND_TIMEOUT_S))
        except TemporaryError:
            return
        if revisions == [SCHEMA_REVISION]:
            return
        server = shown_url(self._database_url)
        if not revisions:
            raise ConfigurationError(f"{server} has no schema yet: run {SETUP_COMMAND}")
        found = ", ".join(revisions)
        if all(revision in SCHEMA_REVISIONS for revision in revisions):
            raise ConfigurationError(
                f"{server} is at schema revision {found}, this program needs {SCHEMA_REVISION}: "
                f"run {SETUP_COMMAND}"
            )
        raise ConfigurationError(
            f"{server} is at schema revision {found}, which this program does not know "
            f"(it needs {SCHEMA_REVISION}): update this installation, or point DATABASE_URL elsewhere"
        )

    async def read(self) -> MappingSnapshot:
        """Return what the tables say now.

        Raises `MappingsInvalid` when that cannot be meant, `TemporaryError` while PostgreSQL does not
        serve, `ConfigurationError` when the login, a privilege or the schema is wrong.
        """
        now_ms = self.clock.now_ms()
        known = self._known
        found = await self._try_twice(
            lambda database: read_tables(database, now_ms, COMMAND_TIMEOUT_S, known)
        )
        # In a thread, because a long table takes longer than the event loop may stand still.
        problems = await asyncio.to_thread(
            find_problems, (*found.mappings, *found.upcoming), found.routes, found.dangling
        )
        if problems:
            raise MappingsInvalid(problems)
        self._known = (*found.mappings, *found.upcoming)
        return self._versioned(snapshot_of(found, now_ms))

    async def advance(self, snapshot: MappingSnapshot) -> MappingSnapshot:
        """Return what the tables of `snapshot` say at this moment; reads nothing."""
        return self._versioned(await asyncio.to_thread(at_time, snapshot, self.clock.now_ms()))

    def _versioned(self, snapshot: MappingSnapshot) -> MappingSnapshot:
        self._version += 1
        return self._ours(msgspec.structs.replace(snapshot, version=self._version))

    async def load(self) -> MappingSnapshot:
        """Return what the tables say now, or the last good copy while PostgreSQL cannot be reached.

        Raises `TemporaryError` when there is neither, `MappingsInvalid` and `ConfigurationError` as `read`
        does.
        """
        try:
            return await self.read()
        except TemporaryError as error:
            return await self.last_good(error)

    async def keep(self, snapshot: MappingSnapshot) -> None:
        """Write an accepted snapshot to disk as the last good one; trouble with the disk is only logged."""
        if snapshot.from_cache:
            return
        try:
            await asyncio.to_thread(self._write, snapshot, self.clock.now_ms())
        except OSError as error:
            _log.warning("last_good_mappings_not_written", path=str(self._cache_path), error=str(error))

    def _write(self, snapshot: MappingSnapshot, now_ms: int) -> None:
        content = (snapshot.providers, snapshot.mappings, snapshot.upcoming, snapshot.permit)
        if self._written is not None:
            written, written_ms = self._written
            if abs(now_ms - written_ms) < REWRITE_AFTER_MS and written == content:
                return
        write_last_good(
            self._cache_path,
            snapshot,
            schema_revision=SCHEMA_REVISION,
            source=shown_url(self._database_url),
            now_ms=now_ms,
        )
        self._written = (content, now_ms)

    async def close(self) -> None:
        """Close the connection; harmless when there is none."""
        database, self._database = self._database, None
        if database is not None:
            await database.close()

    async def _try_twice(self, work: Callable[[Database], Awaitable[_T]]) -> _T:
        """Do the work; once more at once when only the kept connection was stale.

        After a change of a table the server refuses the statements prepared before it, and after a
        restart the kept connection is dead. A fresh one knows neither trouble.
        """
        if self._database is None:
            self._database = Database(
                self._database_url, application_name="marketd", command_timeout_s=COMMAND_TIMEOUT_S
            )
        database = self._database
        try:
            return await self._attempt(work, database)
        except DRIVER_ERRORS as error:
            if not _is_stale(error):
                raise database_error(error, self._database_url) from error
        await database.close()
        try:
            return await self._attempt(work, database)
        except DRIVER_ERRORS as error:
            raise database_error(error, self._database_url) from error

    async def _attempt(self, work: Callable[[Database], Awaitable[_T]], database: Database) -> _T:
        async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
            return await work(database)

    async def last_good(self, error: MarketdError) -> MappingSnapshot:
        """Return the last good copy, as of now, because of `error`.

        Raises `TemporaryError` (`error` is one) or `ConfigurationError` with both reasons when there is
        none.
        """
        kind = TemporaryError if isinstance(error, TemporaryError) else ConfigurationError
        try:
            snapshot = await asyncio.to_thread(
                read_last_good,
                self._cache_path,
                schema_revision=SCHEMA_REVISION,
                source=shown_url(self._database_url),
                now_ms=self.clock.now_ms(),
            )
        except LastGoodUnusable as reason:
            text = str(error).rstrip(".")
            raise kind(f"{text}. The last good mappings cannot stand in: {reason}.") from error
        age_s = (self.clock.now_ms() - snapshot.loaded_ms) // 1000
        _log.warning("last_good_mappings_used", age_s=age_s, reason=str(error))
        return await self.advance(snapshot)

    def _ours(self, snapshot: MappingSnapshot) -> MappingSnapshot:
        if not self._exchanges:
            return snapshot
        ours = tuple(mapping for mapping in snapshot.mappings if mapping.exchange in self._exchanges)
        return msgspec.structs.replace(snapshot, mappings=ours)


def snapshot_of(found: TablesRead, now_ms: int) -> MappingSnapshot:
    """Return what was read as a snapshot, without a version yet."""
    return MappingSnapshot(
        version=0,
        loaded_ms=now_ms,
        providers=found.providers,
        mappings=found.mappings,
        upcoming=found.upcoming,
        permit=found.permit,
        switched_off=tuple((route.exchange, route.provider) for route in found.routes if not route.is_active),
    )


def _is_stale(error: Exception) -> bool:
    if isinstance(error, asyncpg.InterfaceError | asyncpg.PostgresConnectionError):
        return True
    return sqlstate(error) in (*_STALE_STATEMENT, *_ENDED_BY_THE_SERVER)
