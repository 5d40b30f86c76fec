"""Days whose bars are not to be had yet: what of them the backfill looks for, how often, when it comes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.history import backfill
from services.history.backfill import Backfill, BackfillDepth
from services.history.coverage_ledger import CoverageLedger
from services.history.coverage_store import CoverageStore
from services.history.filler import Filler
from services.history.source import Offer
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import MINUTE_MS
from services.market_data.calendar import MarketCalendar
from services.market_data.candles import CoverageSpan
from services.market_data.clock import ManualClock
from services.market_data.coverage import HAVE, MISSING, Note, apply
from services.market_data.trading_time import TradingTime
from services.storage.retention import Retention

DAY_MS = 86_400_000
DEPTH_DAYS = 10


def at(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


class Store(CoverageStore):
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

    def days_had(self, instrument: str) -> list[str]:
        had = [row for row in self.rows if row.instrument == instrument and row.source == "DHAN"]
        return [f"{datetime.fromtimestamp(row.to_ms / 1000, UTC):%m-%d %H:%M}" for row in had]


class Source:
    """Has the bar of every day."""

    has_adjusted = False

    def __init__(self) -> None:
        self.asked: list[tuple[int, int]] = []

    def offer(self, *_: object) -> Offer:
        return Offer(window_ms=365 * DAY_MS)

    async def fetch(
        self, mapping: Any, _interval: str, from_ms: int, to_ms: int, **_: object
    ) -> list[tuple[int, float, float, float, float, int]]:
        self.asked.append((from_ms, to_ms))
        days = TradingTime(MarketCalendar()).days_between(mapping.exchange, from_ms, to_ms)
        return [(opens // 1000, 1.0, 1.0, 1.0, 1.0, 1) for _, (opens, _) in days]


class Rig:
    """A backfill of one instrument's days, with the looks and steps made by the test."""

    def __init__(self, instrument: str, now: str) -> None:
        self.clock, self.store, self.source = ManualClock(at(now)), Store(), Source()
        ledger = CoverageLedger(self.store, self.clock)
        exchange = instrument.partition(":")[0]
        mapping: Any = SimpleNamespace(provider_code="DHAN", exchange=exchange, instrument=instrument)
        calendar = MarketCalendar()
        self.ledger = ledger
        self.filler = Filler(
            redis=cast(Any, None),
            ledger=ledger,
            sources=cast(Any, {"DHAN": self.source}),
            trading=TradingTime(calendar),
            clock=self.clock,
            candidates=lambda _: [mapping],
            announce=lambda *_: None,
            retention=Retention(DAY_MS, {}),
            grid=BarGrid(calendar),
        )
        self.backfill = Backfill(
            self.filler,
            ledger,
            self.clock,
            planned=lambda: [instrument],
            known=lambda: [instrument],
            depth=BackfillDepth(daily_days=DEPTH_DAYS),
        )

    async def looks(self, count: int, every_s: float = 5.0) -> int:
        """Look so often and do what is found; return how many windows that were."""
        before = self.filler.counters.windows
        inner: Any = self.backfill
        for _ in range(count):
            await inner._look()
            while await inner._step(found=True):
                pass
            await self.ledger.flush()
            self.clock.advance(every_s)
        return self.filler.counters.windows - before


async def rig(instrument: str, now: str, monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(backfill, "_FOUND_PAUSE_S", 0.0)
    monkeypatch.setattr(Filler, "_store", _stored)
    made = Rig(instrument, now)
    await made.backfill.plan_depth()
    await made.ledger.flush()
    return made


async def _stored(*_: object) -> None:
    """Storing is none of this test's business."""


@pytest.mark.parametrize(
    ("instrument", "now"),
    [
        ("NSE:RELIANCE", "2026-11-26T18:31"),
        ("BSE:TCS", "2026-11-26T18:50"),
        ("CRYPTO:BTC-USD", "2026-11-26T00:05"),
    ],
)
async def test_after_midnight_the_day_s_end_is_not_looked_for_over_and_over(
    instrument: str, now: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = await rig(instrument, now, monkeypatch)
    assert await subject.looks(1) == 1
    assert len(subject.source.asked) == 1
    assert await subject.looks(60) <= 2, "five minutes of looks"


@pytest.mark.parametrize(
    ("instrument", "now", "last"),
    [
        ("NSE:RELIANCE", "2026-11-26T18:31", "11-26 10:00"),
        ("CRYPTO:BTC-USD", "2026-11-26T00:05", "11-26 00:00"),
    ],
)
async def test_every_day_is_had_in_the_end_and_nothing_stays_missing(
    instrument: str, now: str, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = await rig(instrument, now, monkeypatch)
    assert await subject.looks(70, every_s=MINUTE_MS / 1000) <= 5
    assert await subject.store.missing([instrument], 10) == []
    assert subject.store.days_had(instrument)[-1] == last
    had = sorted((row.from_ms, row.to_ms) for row in subject.store.rows if row.state == HAVE)
    assert all(begin <= end for (_, end), (begin, _) in pairwise(had))


async def test_a_day_asked_for_while_it_trades_comes_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = await rig("NSE:RELIANCE", "2026-11-26T06:00", monkeypatch)
    await subject.looks(2)
    now_ms = subject.clock.now_ms()
    await subject.backfill.ask(["NSE:RELIANCE"], "1d", now_ms - 3 * DAY_MS, now_ms)
    # Until half an hour after the close: 10:30 UTC.
    assert await subject.looks(200, every_s=60.0) <= 3
    asked = len(subject.source.asked)
    assert await subject.looks(120, every_s=60.0) >= 1
    assert len(subject.source.asked) == asked + 1
    assert subject.source.asked[-1] == (at("2026-11-26T03:45"), at("2026-11-26T10:00"))
