"""A grid that remembers the last span of an exchange cuts as one that remembers nothing."""

from __future__ import annotations

import random

import pytest

from services.market_data.bar_grid import BarGrid
from services.market_data.bars import MINUTE_MS
from services.market_data.calendar import MarketCalendar

MONDAY_MS = 1_796_000_400_000 - 1_796_000_400_000 % 86_400_000


@pytest.mark.parametrize("exchange", ["NSE", "NASDAQ", "CRYPTO", "MCX"])
def test_minutes_in_any_order(exchange: str) -> None:
    calendar = MarketCalendar()
    grid, dice = BarGrid(calendar), random.Random(11)
    found = 0
    for _ in range(800):
        near_ms = MONDAY_MS + dice.randrange(2 * 86_400_000)
        # Several around one moment, on both sides of the edges of its minute.
        for _ in range(4):
            at_ms = (
                near_ms
                - near_ms % MINUTE_MS
                + dice.choice([-1, 0, 1, 999, 1_000, 1_001, 59_999, 60_000, 30_500])
            )
            span = grid.minute_of(exchange, at_ms)
            assert span == BarGrid(calendar).minute_of(exchange, at_ms)
            found += span is not None
    assert found > 100


def test_all_bars_of_a_minute_hold_on_to_one_span() -> None:
    grid = BarGrid(MarketCalendar())
    assert grid.minute_of("CRYPTO", MONDAY_MS + 5_000) is grid.minute_of("CRYPTO", MONDAY_MS + 55_000)
