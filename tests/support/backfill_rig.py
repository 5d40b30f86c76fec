"""A backfill of days without servers: the ledger in memory, and looks and steps made by the test."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, cast

from services.history.backfill import Backfill, BackfillDepth
from services.history.coverage_ledger import CoverageLedger
from services.history.coverage_store import CoverageStore
from services.history.filler import Filler
from services.history.source import HistorySource, Offer
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import Interval
from services.market_data.calendar import MarketCalendar
from services.market_data.candles import Candle, CoverageSpan
from services.market_data.clock import ManualClock
from services.market_data.coverage import MISSING, Note, apply
from services.market_data.instruments import InstrumentMapping
from services.market_data.trading_time import TradingTime
from services.rest.quota import Quota, QuotaLimits
from services.storage.retention import Retention

DAY_MS = 86_400_000
DEPTH_DAYS = 10
TRADING = TradingTime(MarketCalendar())


class Ledger(CoverageStore):
    """The table in memory."""

    def __init__(self) -> None:
        super().__init__("postgresql://nobody@127.0.0.1:1/none")
        self.rows: list[CoverageSpan] = []

    async def note(self, notes: Sequence[Note]) -> None:
        for note in notes:
            same = [row for row in self.rows if (row.instrument, row.type) == note.key]
            self.rows = [row for row in self.rows if row not in same] + apply(same, [note])

    async def of(self, instrument: str) -> list[CoverageSpan]:
        return [row for row in self.rows if row.instrument == instrument]

    async def of_type(self, instruments: Iterable[str], kind: str) -> dict[str, list[CoverageSpan]]:
        return {key: [row for row in await self.of(key) if row.type == kind] for key in instruments}

    async def missing(self, instruments: Iterable[str], most: int) -> list[CoverageSpan]:
        found = [row for row in self.rows if row.instrument in set(instruments) and row.state == MISSING]
        return sorted(found, key=lambda row: -row.to_ms)[:most]


class Source(HistorySource):
    """Has the bar of every day; remembers what it was asked for."""

    code = "DHAN"
    offers: ClassVar = {"1d": Offer(window_ms=365 * DAY_MS)}

    def __init__(self, clock: ManualClock, limits: QuotaLimits) -> None:
        super().__init__(clock=clock, settings=dict, quota=Quota("DHAN", limits, clock))
        self.asked: list[tuple[int, int]] = []

    async def _ask(
        self, mapping: InstrumentMapping, interval: Interval, from_ms: int, to_ms: int, adjusted: bool
    ) -> list[Candle]:
        assert interval == "1d"
        assert not adjusted
        self.asked.append((from_ms, to_ms))
        days = TRADING.days_between(mapping.exchange, from_ms, to_ms)
        return [(opens // 1000, 1.0, 1.0, 1.0, 1.0, 1) for _, (opens, _) in days]


class _Filler(Filler):
    async def _store(self, *_: object) -> None:
        """Storing is none of this rig's business."""


class BackfillRig:
    """A backfill of some instruments' days. Nothing is stored; `source` is the one provider there is."""

    def __init__(self, instruments: Sequence[str], now_ms: int, limits: QuotaLimits) -> None:
        self.clock, self.store = ManualClock(now_ms), Ledger()
        self.source = Source(self.clock, limits)
        self.ledger = ledger = CoverageLedger(self.store, self.clock)
        self.filler = _Filler(
            redis=cast(Any, None),
            ledger=ledger,
            sources={"DHAN": self.source},
            trading=TRADING,
            clock=self.clock,
            candidates=self._candidates,
            announce=lambda *_: None,
            retention=Retention(DAY_MS, {}),
            grid=BarGrid(MarketCalendar()),
        )
        self.backfill = Backfill(
            self.filler,
            ledger,
            self.clock,
            planned=lambda: instruments,
            known=lambda: instruments,
            depth=BackfillDepth(daily_days=DEPTH_DAYS),
        )

    def _candidates(self, instrument: str) -> list[InstrumentMapping]:
        exchange = instrument.partition(":")[0]
        mapping: Any = SimpleNamespace(provider_code="DHAN", exchange=exchange, instrument=instrument)
        return [mapping]

    async def plan(self) -> None:
        """Note what is missing."""
        await self.backfill.plan_depth()
        await self.ledger.flush()

    async def steps(self) -> None:
        """Do what was asked for and found, all that can be done now."""
        inner: Any = self.backfill
        while await inner._step(found=True):
            pass
        await self.ledger.flush()

    async def looks(self, count: int, every_s: float = 5.0) -> int:
        """Look so often and do what is found; return how many windows that were."""
        before = self.filler.counters.windows
        inner: Any = self.backfill
        for _ in range(count):
            await inner._look()
            await self.steps()
            self.clock.advance(every_s)
        return self.filler.counters.windows - before
