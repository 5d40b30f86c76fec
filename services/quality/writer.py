"""Keeps the quality figures in PostgreSQL, a row for each day, provider, exchange and run of the daemon.

A run writes its own rows again and again with their newest sums, so a write repeated after an unknown outcome
changes nothing. While PostgreSQL is away the figures wait in memory: there are few.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

from services.catalogue.table_writer import TableWriter
from services.market_data.clock import Clock
from services.quality.collector import QualityCollector
from services.quality.figures import DayFigures, score

KEPT_DAYS = 400
EVERY_S = 60.0
_SUMS = ("minutes", "expected", "missing", "faulty", "ticks", "duplicates", "late")
_UPSERT = (
    "INSERT INTO quality_scores (day, provider, exchange, run, score, latency, disagreement, "
    "minutes, expected, missing, faulty, ticks, duplicates, late) "
    "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) "
    "ON CONFLICT (day, provider, exchange, run) DO UPDATE SET score = EXCLUDED.score, "
    "latency = EXCLUDED.latency, disagreement = EXCLUDED.disagreement, minutes = EXCLUDED.minutes, "
    "expected = EXCLUDED.expected, missing = EXCLUDED.missing, faulty = EXCLUDED.faulty, "
    "ticks = EXCLUDED.ticks, duplicates = EXCLUDED.duplicates, late = EXCLUDED.late, updated_at = now()"
)
_PRUNE = (
    "DELETE FROM quality_scores WHERE ctid IN (SELECT ctid FROM quality_scores "
    "WHERE day < current_date - CAST($1 AS integer) LIMIT $2)"
)


class QualityWriter(TableWriter):
    """Lets the collector look once a minute and writes what it found. `run` for ever, `close` when done."""

    def __init__(self, collector: QualityCollector, database_url: str, clock: Clock) -> None:
        super().__init__(
            database_url,
            clock,
            table="quality_scores",
            every_s=EVERY_S,
            prune=_PRUNE,
            prune_every_s=24 * 3_600.0,
            # Once a minute: no connection is kept for that.
            kept=False,
        )
        self._collector = collector
        self._run = secrets.token_hex(8)
        self._written: dict[tuple[Any, ...], int] = {}

    @property
    def waiting(self) -> int:
        """How many rows have changed since they were written."""
        return len(self._changed())

    async def prepare(self) -> None:
        """Let the collector look, some instruments at a time."""
        for _ in self._collector.steps():
            await asyncio.sleep(0)

    async def write_all(self) -> None:
        """Write the figures that changed. Raises what `DatabaseAccess` raises; they then go on waiting."""
        changed = self._changed()
        if changed:
            async with self._database.writing() as connection:
                await connection.executemany(_UPSERT, [self._values(figures) for figures in changed])
        for figures in changed:
            self._written[figures.key] = figures.minutes
        self._collector.let_go(self._collector.figures())
        kept = {figures.key for figures in self._collector.figures()}
        self._written = {key: minutes for key, minutes in self._written.items() if key in kept}

    def prune_values(self) -> tuple[int]:
        """Return how many days are kept."""
        return (KEPT_DAYS,)

    # ---- inner ----------------------------------------------------------------------------------

    def _changed(self) -> list[DayFigures]:
        return [
            figures
            for figures in self._collector.figures()
            if self._written.get(figures.key) != figures.minutes
        ]

    def _values(self, figures: DayFigures) -> tuple[Any, ...]:
        return (
            figures.day,
            figures.provider,
            figures.exchange,
            self._run,
            score(figures).score,
            figures.latency,
            figures.disagreement,
            *(getattr(figures, name) for name in _SUMS),
        )


def as_figures(rows: Sequence[Any]) -> list[DayFigures]:
    """Return rows of `quality_scores` as figures."""
    return [
        DayFigures(
            row.day,
            row.provider,
            row.exchange,
            **{name: getattr(row, name) for name in _SUMS},
            latency=list(row.latency),
            disagreement=list(row.disagreement),
        )
        for row in rows
    ]
