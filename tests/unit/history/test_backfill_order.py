"""What the backfill finds to do while a provider answers nothing, as without credentials."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pytest

from services.history import backfill
from services.history.backfill import Backfill, BackfillDepth
from services.history.coverage_ledger import CoverageLedger
from services.history.coverage_store import CoverageStore
from services.history.filler import Filler, FillOutcome
from services.history.planner import Window
from services.history.source import FOUND_LEAVES, Offer
from services.market_data.candles import CoverageSpan
from services.market_data.clock import ManualClock
from services.pipeline.failover import Refusal

NOW_MS = 1_796_100_000_000
DAY_MS = 86_400_000


def missing(instrument: str, to_ms: int) -> CoverageSpan:
    return CoverageSpan(
        instrument=instrument,
        type="1m",
        source="",
        from_ms=to_ms - 3_600_000,
        to_ms=to_ms,
        state="missing",
    )


class Store(CoverageStore):
    """Holds what is missing, and gives the newest of it."""

    def __init__(self, rows: list[CoverageSpan]) -> None:
        super().__init__("postgresql://nobody@127.0.0.1:1/none")
        self.rows = rows

    async def missing(self, instruments: Iterable[str], most: int) -> list[CoverageSpan]:
        known = set(instruments)
        found = [row for row in self.rows if row.instrument in known]
        return sorted(found, key=lambda row: -row.to_ms)[:most]


class RefusesIndia:
    """Fills what is of NASDAQ; whoever has the rest asks for credentials."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.asked: list[str] = []

    def offers(self, _instrument: str, _interval: str) -> dict[str, Offer]:
        return {"DHAN": Offer(window_ms=DAY_MS)}

    def due(self, _window: Window, _now_ms: int) -> bool:
        return True

    async def fill(self, window: Window, *, leave: float) -> FillOutcome:
        assert leave == FOUND_LEAVES
        self.asked.append(window.instrument)
        if window.instrument.startswith("NSE:"):
            refusal = Refusal("DHAN", "credentials_missing", "no token")
            return FillOutcome(window=window, refusals=(refusal,), later_s=5.0)
        self._store.rows = [row for row in self._store.rows if row.instrument != window.instrument]
        return FillOutcome(window=window, written=1)


async def test_what_nobody_answers_does_not_hold_up_what_somebody_can(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backfill, "_MOST_SPANS", 10)
    monkeypatch.setattr(backfill, "_FOUND_PAUSE_S", 0.0)
    refused = [missing(f"NSE:{number}", NOW_MS - DAY_MS) for number in range(15)]
    store = Store([*refused, missing("NASDAQ:AAPL", NOW_MS - 5 * DAY_MS)])
    clock, filler = ManualClock(NOW_MS), RefusesIndia(store)
    names = [row.instrument for row in store.rows]
    subject = Backfill(
        cast(Filler, filler),
        CoverageLedger(store, clock),
        clock,
        planned=lambda: names,
        known=lambda: names,
        depth=BackfillDepth(minute_days=5),
    )
    work: Any = subject
    for _ in range(60):
        await work._look()
        while await work._step(found=True):
            # So slow is it with many: the round takes longer than the shortest wait.
            clock.advance(5.0)
        clock.advance(5.0)
    assert "NASDAQ:AAPL" in filler.asked
    assert set(names) <= set(filler.asked)
    assert 20 < len(filler.asked) < 150, "they are asked again, ever more seldom"
