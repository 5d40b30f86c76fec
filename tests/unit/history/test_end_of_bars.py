"""What is announced as filled ends behind where it begins, whatever the exchange's days are like."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.history.filler import Filler
from services.history.planner import Window
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import MINUTE_MS, Interval
from services.market_data.calendar import HOURS, MarketCalendar
from services.market_data.trading_time import TradingTime
from services.storage.retention import Retention

BEGIN_MS = int(datetime(2026, 2, 1, tzinfo=UTC).timestamp() * 1000)
END_MS = int(datetime(2026, 4, 15, tzinfo=UTC).timestamp() * 1000)
"""Over the change of clocks in New York and several holidays."""


@pytest.mark.parametrize("always_open", [False, True])
@pytest.mark.parametrize("exchange", [*HOURS, "UNHEARD"])
@pytest.mark.parametrize("interval", ["1m", "1d"])
def test_every_bar_ends_behind_its_start_and_before_the_next_one(
    exchange: str, interval: Interval, always_open: bool
) -> None:
    calendar = MarketCalendar(always_open=always_open)
    nothing = cast(Any, SimpleNamespace())
    filler = Filler(
        redis=nothing,
        ledger=nothing,
        sources={},
        trading=TradingTime(calendar),
        clock=nothing,
        candidates=lambda _: (),
        announce=lambda *_: None,
        retention=Retention(0, {}),
        grid=BarGrid(calendar),
    )
    begin_ms = END_MS - 7 * 86_400_000 if interval == "1m" else BEGIN_MS
    window = Window(instrument=f"{exchange}:X", interval=interval, spans=((begin_ms, END_MS),))
    starts = filler.expected(window, END_MS)
    assert len(starts) > (1_000 if interval == "1m" else 40)
    ends = [filler._end_of(window, start) for start in starts]
    assert all(start < end for start, end in zip(starts, ends, strict=True))
    assert all(end <= start for end, start in zip(ends, starts[1:], strict=False))
    if interval == "1m":
        assert {end - start for start, end in zip(starts, ends, strict=True)} == {MINUTE_MS}
