"""Keeps the quality figures in PostgreSQL, a row for each day, provider, exchange and run of the daemon.

A run writes its own rows again and again with their newest sums, so a write repeated after an unknown outcome
changes nothing. While PostgreSQL is away the figures wait in memory: there are few.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from typing import Any

import structlog

from services.catalogue.database import Database
from services.catalogue.database_errors import DRIVER_ERRORS, database_error
from services.errors import MarketdError
from services.market_data.clock import Clock
from services.quality.collector import QualityCollector
from services.quality.figures import DayFigures, score

_log = structlog.get_logger(__name__)

KEPT_DAYS = 400
EVERY_S = 60.0
_COMMAND_TIMEOUT_S = 5.0
_PRUNE_EVERY_S = 24 * 3_600.0
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
_PRUNE = "DELETE FROM quality_scores WHERE day < current_date - CAST($1 AS integer)"


class QualityWriter:
    """Lets the collector look once a minute and writes what it found. `run` for ever, `close` when done."""

    def __init__(self, collector: QualityCollector, database_url: str, clock: Clock) -> None:
        self._collector = collector
        self._database_url = database_url
        self._clock = clock
        self._database: Database | None = None
        self._run = secrets.token_hex(8)
        self._written: dict[tuple[Any, ...], int] = {}
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
        """Look and write once a minute until cancelled; an error is said once and tried again."""
        while True:
            await asyncio.sleep(EVERY_S)
            for _ in self._collector.steps():
                await asyncio.sleep(0)
            try:
                await self.write()
                await self._prune()
            except MarketdError as error:
                self._say(str(error))
            else:
                self._say("")

    async def write(self) -> None:
        """Write the figures that changed.

        Raises `TemporaryError` while PostgreSQL does not serve, `ConfigurationError` when the table or the
        right to it is missing.
        """
        changed = [
            figures
            for figures in self._collector.figures()
            if self._written.get(figures.key) != figures.minutes
        ]
        if changed:
            try:
                async with self._connect().transaction(writes=True) as connection:
                    await connection.executemany(_UPSERT, [self._values(figures) for figures in changed])
            except DRIVER_ERRORS as error:
                raise database_error(error, self._database_url) from error
        for figures in changed:
            self._written[figures.key] = figures.minutes
        self._collector.let_go(self._collector.figures())
        kept = {figures.key for figures in self._collector.figures()}
        self._written = {key: minutes for key, minutes in self._written.items() if key in kept}

    # ---- inner ----------------------------------------------------------------------------------

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

    def _connect(self) -> Database:
        if self._database is None:
            # Once a minute: no connection is kept for that.
            self._database = Database(
                self._database_url,
                application_name="marketd-quality",
                command_timeout_s=_COMMAND_TIMEOUT_S,
                kept=False,
            )
        return self._database

    async def _prune(self) -> None:
        now_s = self._clock.monotonic_s()
        if self._pruned_s is not None and now_s - self._pruned_s < _PRUNE_EVERY_S:
            return
        try:
            async with self._connect().transaction(writes=True) as connection:
                await connection.execute(_PRUNE, KEPT_DAYS)
        except DRIVER_ERRORS as error:
            raise database_error(error, self._database_url) from error
        self._pruned_s = now_s

    def _say(self, problem: str) -> None:
        if bool(problem) != bool(self.problem):
            if problem:
                _log.warning("quality_scores_not_written", reason=problem)
            else:
                _log.info("quality_scores_written_again")
        self.problem = problem


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
