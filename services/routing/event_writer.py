"""Writes what routing decided to PostgreSQL, in batches, and removes what is old.

Stands behind `RouteJournal`, which never waits for it. While PostgreSQL is away the events wait in memory;
what is written twice after an unknown outcome is recognised by its number.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
import structlog

from services.catalogue.table_writer import TableWriter, is_bad_value
from services.errors import MarketdError
from services.market_data.clock import Clock
from services.routing.events import RouteEvent, RouteJournal

_log = structlog.get_logger(__name__)

BATCH = 1_000
KEPT_DAYS = 90
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


class RouteEventWriter(TableWriter):
    """Moves events from the journal into the table `route_events`. `run` for ever, `close` when done."""

    def __init__(self, journal: RouteJournal, database_url: str, clock: Clock) -> None:
        super().__init__(
            database_url,
            clock,
            table="route_events",
            every_s=1.0,
            prune=_PRUNE,
            prune_every_s=6 * 3_600.0,
        )
        self._journal = journal
        self._run = secrets.token_hex(8)

    @property
    def waiting(self) -> int:
        """How many events are not written yet."""
        return self._journal.waiting

    async def write_all(self) -> None:
        """Write everything that waits. Raises what `DatabaseAccess` raises; the events then go on waiting."""
        while batch := self._journal.batch(BATCH):
            try:
                await self._write(batch)
            except MarketdError as error:
                if not is_bad_value(error):
                    raise
                # A value the table can never take; those beside it must not wait for it.
                await self._write_one_by_one(batch)
            else:
                self._journal.settle(batch)

    async def newest(self, instrument: str, most: int) -> list[dict[str, Any]]:
        """Return the newest events of an instrument from the table, oldest first.

        Raises what `DatabaseAccess` raises.
        """
        rows = await self._database.read(_READ, instrument, most)
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

    def prune_values(self) -> tuple[int]:
        """Return before when events are too old."""
        return (self._clock.now_ms() - KEPT_DAYS * 86_400_000,)

    # ---- inner ----------------------------------------------------------------------------------

    async def _write(self, batch: list[RouteEvent]) -> None:
        columns = [[getattr(event, name) for event in batch] for name in _COLUMNS]
        details = [msgspec.json.encode(event.details).decode() for event in batch]
        numbers = [event.seq for event in batch]
        async with self._database.writing() as connection:
            await connection.execute(_INSERT, *columns, details, numbers, self._run)

    async def _write_one_by_one(self, batch: list[RouteEvent]) -> None:
        for event in batch:
            try:
                await self._write([event])
            except MarketdError as error:
                if not is_bad_value(error):
                    raise
                _log.error("route_event_refused", instrument=event.instrument[:80], action=event.action)
                self._journal.settle([event], refused=True)
            else:
                self._journal.settle([event])
