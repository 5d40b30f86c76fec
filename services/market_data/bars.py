"""Bars: what a bar is, which intervals there are.

Beneath everything that makes, stores, sends or reads bars. Pure; it never looks at a clock.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, get_args

import msgspec

from services.market_data.calendar import Phase

Interval = Literal["1m", "5m", "15m", "1h", "1d"]
INTERVALS: tuple[Interval, ...] = get_args(Interval)
"""The intervals that are stored, shortest first; any other is made of these when it is read."""

MINUTE_MS = 60_000
INTERVAL_MS: dict[Interval, int] = {
    "1m": MINUTE_MS,
    "5m": 5 * MINUTE_MS,
    "15m": 15 * MINUTE_MS,
    "1h": 60 * MINUTE_MS,
    "1d": 24 * 60 * MINUTE_MS,
}
"""How long a bar of each interval is at most, in ms; the last bar of a session may be shorter."""


class BarStatus(str, Enum):
    """How far a bar has come."""

    FORMING = "forming"
    FINAL = "final"
    REVISED = "revised"


class Bar(msgspec.Struct, kw_only=True):
    """One bar of one instrument. Times are UTC epoch ms, prices in the instrument's currency.

    `start_ms` is the bar's first moment: the whole minute, or where the session's grid puts a longer one
    (its session's open for `1d`). `volume` is the traded quantity, None when no tick of the bar knew it.
    `ticks` is how many trades were seen, 0 where the source has bars only. `revision` is 0 for the first
    final bar and grows with each change after it. `covered_ms` is how much of the bar's span data was
    flowing, that is, no gap was open. `sources` are the provider codes in the order of their first tick.
    """

    instrument: str
    exchange: str
    interval: Interval
    start_ms: int
    open: float
    high: float
    low: float
    close: float
    volume: int | None = None
    ticks: int = 0
    status: BarStatus = BarStatus.FORMING
    revision: int = 0
    covered_ms: int = 0
    sources: tuple[str, ...] = ()
    phase: Phase = Phase.REGULAR
