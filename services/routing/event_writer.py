"""Writes what routing decided to PostgreSQL, in batches, and removes what is old.

Stands behind `RouteJournal`, which never waits for it. While PostgreSQL is away the events wait in memory;
what is written twice after an unknown outcome is recognised by its number.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import Any

import msgspec
import structlog

from services.catalogue.database import Database
from services.catalogue.database_errors import DRIVER_ERRORS, database_error, sqlstate
from services.errors import MarketdError
from services.market_data.clock import Clock
from services.pipeline.backoff import Backoff
from services.routing.events import RouteEvent, RouteJournal

_log = structlog.get_logger(__name__)

BATCH = 1_000
KEPT_DAYS = 90
_EVERY_S = 1.0
_COMMAND_TIMEOUT_S = 5.0
_PRUNE_EVERY_S = 6 * 3_600.0
_PRUNE_AT_ONCE = 20_000
_COLUMNS = ("instrument", "action", "from_provider", "to_provider", "reason", "at_ms")
_INSERT = (
    "INSERT INTO route_events "
    "(instrument, action, from_provider, to_provider, reason, at_ms, details, run, seq) "
    "SELECT instrument, action, nullif(from_provider, ''), nullif(to_provider, ''), reason, at_ms, "
    "details::jsonb, $9, seq FROM unnest(CAST($1 AS text[]), CAST($2 AS text[]), "
    "CAST($3 AS text[]), CAST($4 AS text[]), CAST($5 AS text[]), "
    "CAST($6 AS bigint[]), CAST($7 AS text[]), CAST($8 AS bigint[])) AS given "
    "(instrument, action, from_provider, to_provider, reason, at_ms, details, seq) "
    "ON CONFLICT (run, seq) DO NOTHING"
)
_PRUNE = (
    "DELETE FROM route_events WHERE id IN "
    "(SELECT id FROM route_events WHERE at_ms < $1 ORDER BY at_ms LIMIT $2)"
)
_READ = (
    "SELECT action, from_provider, to_provider, reason, at_ms, details::text AS details FROM route_events "
    "WHERE instrument = $1 ORDER BY at_ms DESC, id DESC LIMIT $2"
)


class RouteEventWriter:
    """Moves events from the journal into the table `route_events`. `run` for ever, `close` when done."""

    def __init__(self, journal: RouteJournal, database_url: str, clock: Clock) -> None:
        self._journal = journal
        self._database_url = database_url
        self._clock = clock
        self._database: Database | None = None
        self._run = secrets.token_hex(8)
        self._pruned_s: float | None = None
        self.problem = ""
        """Why nothing is written just now; empty while all is well."""

    async def use_url(self, database_url: str) -> None:
        """Connect by another URL from now on, as after a changed password."""
        self._database_url = database_url
        await self.close()

    async def close(self) -> None:
        """Close the connection; harmless when there is none."""
        database, self._database = self._database, None
        if database is not None:
            await database.close()

    async def run(self) -> None:
        """Write what comes until cancelled; after an error try again, ever more seldom."""
        backoff = Backoff(base_s=1.0, cap_s=30.0)
        while True:
            try:
                await self.write_all()
                await self._prune()
            except MarketdError as error:
                self._say(str(error))
                await asyncio.sleep(max(_EVERY_S, backoff.next_wait_s()))
            else:
                self._say("")
                backoff = Backoff(base_s=1.0, cap_s=30.0)
                await asyncio.sleep(_EVERY_S)

    async def write_all(self) -> None:
        """Write everything that waits.

        Raises `TemporaryError` while PostgreSQL does not serve, `ConfigurationError` when the table or the
        right to it is missing; the events then go on waiting.
        """
        while batch := self._journal.batch(BATCH):
            try:
                await self._write(batch)
            except DRIVER_ERRORS as error:
                if (sqlstate(error) or "").startswith("22"):
                    # A value the table can never take; those beside it must not wait for it.
                    await self._write_one_by_one(batch)
                    continue
                raise database_error(error, self._database_url) from error
            self._journal.settle(batch)

    async def newest(self, instrument: str, most: int) -> list[dict[str, Any]]:
        """Return the newest events of an instrument from the table, oldest first.

        Raises `TemporaryError` or `ConfigurationError` as `write_all` does.
        """
        try:
            async with self._connect().session() as connection:
                rows = await connection.fetch(_READ, instrument, most)
        except DRIVER_ERRORS as error:
            raise database_error(error, self._database_url) from error
        return [
            {
                "at_ms": row["at_ms"],
                "action": row["action"],
                "from": row["from_provider"],
                "to": row["to_provider"],
                "reason": row["reason"],
                "details": None if row["details"] is None else msgspec.json.decode(row["details"]),
            }
            for row in reversed(rows)
        ]

    # ---- inner ----------------------------------------------------------------------------------

    def _connect(self) -> Database:
        if self._database is None:
            self._database = Database(
                self._database_url, application_name="marketd-routes", command_timeout_s=_COMMAND_TIMEOUT_S
            )
        return self._database

    async def _write(self, batch: list[RouteEvent]) -> None:
        columns = [[getattr(event, name) for event in batch] for name in _COLUMNS]
        details = [msgspec.json.encode(event.details).decode() for event in batch]
        numbers = [event.seq for event in batch]
        async with self._connect().transaction(writes=True) as connection:
            await connection.execute(_INSERT, *columns, details, numbers, self._run)

    async def _write_one_by_one(self, batch: list[RouteEvent]) -> None:
        for event in batch:
            try:
                await self._write([event])
            except DRIVER_ERRORS as error:
                if not (sqlstate(error) or "").startswith("22"):
                    raise database_error(error, self._database_url) from error
                _log.error("route_event_refused", instrument=event.instrument[:80], action=event.action)
                self._journal.settle([event], refused=True)
            else:
                self._journal.settle([event])

    async def _prune(self) -> None:
        now_s = self._clock.monotonic_s()
        if self._pruned_s is not None and now_s - self._pruned_s < _PRUNE_EVERY_S:
            return
        before_ms = self._clock.now_ms() - KEPT_DAYS * 86_400_000
        try:
            removed = _PRUNE_AT_ONCE
            while removed == _PRUNE_AT_ONCE:
                async with self._connect().transaction(writes=True) as connection:
                    # "DELETE 17"
                    told = await connection.execute(_PRUNE, before_ms, _PRUNE_AT_ONCE)
                    removed = int(told.split()[1])
        except DRIVER_ERRORS as error:
            raise database_error(error, self._database_url) from error
        self._pruned_s = now_s

    def _say(self, problem: str) -> None:
        if bool(problem) != bool(self.problem):
            if problem:
                _log.warning("route_events_not_written", reason=problem, waiting=self._journal.waiting)
            else:
                _log.info("route_events_written_again", written=self._journal.written)
        self.problem = problem
