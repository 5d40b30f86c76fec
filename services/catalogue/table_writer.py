"""Writes one table in the background: again and again, ever more seldom while PostgreSQL is away.

What waits is kept by the subclass, within a bound of its own, and settled only when it is written; so nothing
is lost by an error, and a write whose outcome is unknown is repeated. Old rows are removed now and then, a
bounded number in one transaction. Trouble is said once, and once when it is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import structlog

from services.catalogue.access import DatabaseAccess
from services.catalogue.database_errors import sqlstate
from services.errors import MarketdError
from services.market_data.clock import Clock
from services.pipeline.backoff import Backoff

_log = structlog.get_logger(__name__)

PRUNE_AT_ONCE = 20_000
_LONGEST_WAIT_S = 30.0


class TableWriter(ABC):
    """What one table is written by. `run` for ever, `flush` at the end, `close` when done."""

    def __init__(
        self,
        database_url: str,
        clock: Clock,
        *,
        table: str,
        every_s: float,
        prune: str,
        prune_every_s: float,
        kept: bool = True,
    ) -> None:
        """Prepare to write `table` every `every_s` seconds; `prune` deletes rows that are too old.

        Its last value is how many at most. `kept` as for `DatabaseAccess`.
        """
        self._table = table
        self._every_s = every_s
        self._prune_statement = prune
        self._prune_every_s = prune_every_s
        self._pruned_s: float | None = None
        self._clock = clock
        self._database = DatabaseAccess(database_url, application_name=f"marketd:{table}", kept=kept)
        self.problem = ""
        """Why nothing is written just now; empty while all is well."""

    # ---- what a writer adds -----------------------------------------------------------------------

    @abstractmethod
    async def write_all(self) -> None:
        """Write everything that waits. Raises as `DatabaseAccess` does; then all of it goes on waiting."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """How many rows are not written yet."""

    async def prepare(self) -> None:  # noqa: B027 - most have nothing to do
        """Do what comes before each write."""

    @abstractmethod
    def prune_values(self) -> Sequence[Any]:
        """Return what the statement that removes old rows asks for, but for how many at most."""

    # ---- what it does with that -------------------------------------------------------------------

    async def use_url(self, database_url: str) -> None:
        """Connect by another URL from now on, as after a changed password."""
        await self._database.use_url(database_url)

    async def close(self) -> None:
        """Close the connection; harmless when there is none."""
        await self._database.close()

    async def run(self) -> None:
        """Write what comes until cancelled; after an error try again, ever more seldom."""
        backoff = Backoff(base_s=1.0, cap_s=_LONGEST_WAIT_S)
        wait_s = self._every_s
        while True:
            await asyncio.sleep(wait_s)
            wait_s = self._every_s
            await self.prepare()
            try:
                await self.write_all()
                await self.prune()
            except MarketdError as error:
                self._say(str(error))
                wait_s = max(wait_s, backoff.next_wait_s())
            else:
                self._say("")
                backoff = Backoff(base_s=1.0, cap_s=_LONGEST_WAIT_S)

    async def flush(self, within_s: float) -> int:
        """Write what waits, for at most `within_s` seconds; return how many rows remain. Never raises."""
        with contextlib.suppress(MarketdError, TimeoutError):
            async with asyncio.timeout(within_s):
                await self.write_all()
        if self.waiting:
            _log.warning("rows_not_written", table=self._table, rows=self.waiting)
        return self.waiting

    async def prune(self) -> None:
        """Remove what is too old, when that is due. Raises what `DatabaseAccess` raises."""
        now_s = self._clock.monotonic_s()
        if self._pruned_s is not None and now_s - self._pruned_s < self._prune_every_s:
            return
        values = self.prune_values()
        removed = PRUNE_AT_ONCE
        while removed == PRUNE_AT_ONCE:
            async with self._database.writing() as connection:
                # "DELETE 17"
                told = await connection.execute(self._prune_statement, *values, PRUNE_AT_ONCE)
            removed = int(told.split()[1])
        self._pruned_s = now_s

    def _say(self, problem: str) -> None:
        if bool(problem) != bool(self.problem):
            if problem:
                _log.warning(f"{self._table}_not_written", reason=problem, waiting=self.waiting)
            else:
                _log.info(f"{self._table}_written_again")
        self.problem = problem


def is_bad_value(error: BaseException) -> bool:
    """Tell whether PostgreSQL will never take a value, so that trying again is of no use."""
    return (sqlstate(error) or "").startswith("22")
