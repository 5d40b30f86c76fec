"""Writes what routing decided to PostgreSQL, in batches, and removes what is old.

Stands behind `RouteJournal`, which never waits for it. While PostgreSQL is away the events wait in memory;
what is written twice after an unknown outcome is recognised by its number.
"""

from __future__ import annotations

import secrets
from typing import Any

import msgspec
import structlog
from sqlalchemy import text

from services.catalogue.table_writer import TableWriter, is_bad_value
from services.errors import MarketdError
from services.market_data.clock import Clock
from services.routing.events import RouteEvent, RouteJournal

_log = structlog.get_logger(__name__)

BATCH = 1_000
KEPT_DAYS = 90
_INSERT = text(
    "INSERT INTO route_events "
    "(instrument, action, from_provider, to_provider, reason, at_ms, details, run, seq) "
    "SELECT instrument, action, nullif(from_provider, ''), nullif(to_provider, ''), reason, at_ms, "
    "details::jsonb, :run, seq FROM unnest(CAST(:instrument AS text[]), CAST(:action AS text[]), "
    "CAST(:from_provider AS text[]), CAST(:to_provider AS text[]), CAST(:reason AS text[]), "
    "CAST(:at_ms AS bigint[]), CAST(:details AS text[]), CAST(:seq AS bigint[])) AS given "
    "(instrument, action, from_provider, to_provider, reason, at_ms, details, seq) "
    "ON CONFLICT (run, seq) DO NOTHING"
)
_PRUNE = text(
    "DELETE FROM route_events WHERE id IN "
    "(SELECT id FROM route_events WHERE at_ms < :before_ms ORDER BY at_ms LIMIT :most)"
)
_READ = text(
    "SELECT action, from_provider, to_provider, reason, at_ms, details FROM route_events "
    "WHERE instrument = :instrument ORDER BY at_ms DESC, id DESC LIMIT :most"
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
            pooled=True,
        )
        self._journal = journal
        self._run = secrets.token_hex(8)

    @property
    def waiting(self) -> int:
        """How many events are not written yet."""
        return self._journal.waiting

    async def write_all(self) -> None:
        """Write everything that waits. Raises what `Database` raises; the events then go on waiting."""
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

        Raises what `Database` raises.
        """
        rows = await self._database.read(_READ, {"instrument": instrument, "most": most})
        return [
            {
                "at_ms": row.at_ms,
                "action": row.action,
                "from": row.from_provider,
                "to": row.to_provider,
                "reason": row.reason,
                "details": row.details,
            }
            for row in reversed(rows)
        ]

    def prune_values(self) -> dict[str, Any]:
        """Return before when events are too old."""
        return {"before_ms": self._clock.now_ms() - KEPT_DAYS * 86_400_000}

    # ---- inner ----------------------------------------------------------------------------------

    async def _write(self, batch: list[RouteEvent]) -> None:
        values: dict[str, Any] = {
            name: [getattr(event, name) for event in batch]
            for name in ("instrument", "action", "from_provider", "to_provider", "reason", "at_ms", "seq")
        }
        values["details"] = [msgspec.json.encode(event.details).decode() for event in batch]
        async with self._database.writing() as connection:
            await connection.execute(_INSERT, {**values, "run": self._run})

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
