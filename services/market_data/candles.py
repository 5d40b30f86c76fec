"""Candles as they are asked for and answered: intervals of any length, and how bars are folded into them.

Beneath the history service and the gateway, which both speak of these. Pure.
A candle is `[ts, open, high, low, close, volume]`, `ts` the start in UTC epoch **seconds**.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import date

import msgspec

from services.market_data.bars import MINUTE_MS, Interval

Candle = tuple[int, float, float, float, float, int | None]
DEFAULT_COUNT = 500
MAX_COUNT = 5_000
"""Candles in one answer."""
_FORM = re.compile(r"^([1-9][0-9]{0,3})(m|h|d|w|mo)$")
_MINUTES_OF = {"m": 1, "h": 60}
_MOST_MINUTES = 12 * 60


class Resolution(msgspec.Struct, frozen=True):
    """How long a candle is: `minutes` of a session, or else `days`, `weeks` or `months` (one of them)."""

    text: str
    minutes: int = 0
    days: int = 0
    weeks: int = 0
    months: int = 0

    @property
    def base(self) -> Interval:
        """The stored interval it is made of."""
        return "1m" if self.minutes else "1d"

    @property
    def span_ms(self) -> int:
        """About how much time one candle takes, at most."""
        return self.minutes * MINUTE_MS or (self.days + 7 * self.weeks + 31 * self.months) * 86_400_000


def parse_resolution(text: str) -> Resolution:
    """Read `1m`, `3m`, `45m`, `2h`, `1d`, `1w` or `1mo`. Raises ValueError that says what there is."""
    found = _FORM.match(text)
    if found is None:
        raise ValueError("interval must be a number and a unit, as in 1m, 5m, 30m, 2h, 1d, 1w or 1mo")
    number, unit = int(found[1]), found[2]
    if unit in _MINUTES_OF:
        minutes = number * _MINUTES_OF[unit]
        if minutes > _MOST_MINUTES:
            raise ValueError("an interval of minutes or hours is at most 12h; longer ones are 1d, 1w or 1mo")
        return Resolution(text, minutes=minutes)
    if number != 1:
        raise ValueError("days, weeks and months come one at a time: 1d, 1w or 1mo")
    return Resolution(text, days=unit == "d", weeks=unit == "w", months=unit == "mo")


class HistoryRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for. Times are UTC epoch ms; `to_ms` is the first moment after the span.

    Without `from_ms` the newest `count` candles before `to_ms` (now, where None) are meant.
    `forming` adds the candle that is not finished. `adjusted` wants prices adjusted for dividends.
    """

    instrument: str
    resolution: Resolution
    count: int | None = DEFAULT_COUNT
    from_ms: int | None = None
    to_ms: int | None = None
    forming: bool = False
    adjusted: bool = False


class Missing(msgspec.Struct, frozen=True):
    """A span for which nothing can be shown, and why; UTC epoch seconds, as candles."""

    from_s: int
    to_s: int
    reason: str


class HistoryAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Candles, oldest first. `complete`: nothing is missing from what was asked for.

    `missing` are the spans without data, oldest first, at most 100 of them. `forming` says that the
    last candle is not finished. `sources` are the providers asked for this answer, in order.
    """

    candles: list[Candle]
    complete: bool
    missing: tuple[Missing, ...] = ()
    forming: bool = False
    sources: tuple[str, ...] = ()


class CoverageSpan(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One line of what is known of an instrument's past. Times are UTC epoch ms.

    `type` is `ticks`, `1m` or `1d`; `source` the provider code, or `LIVE` for what came over the
    streams; `state` is `have`, `missing` or `unavailable` (no source will ever have it).
    """

    instrument: str
    type: str
    source: str
    from_ms: int
    to_ms: int
    state: str
    reason: str = ""


def fold_days(
    candles: Iterable[Candle], day_of: Callable[[int], date], resolution: Resolution
) -> list[Candle]:
    """Return daily candles as weeks (from Monday) or months; `day_of` tells the date of a start in ms.

    A folded candle begins with its first day that has one. Volume is what is known of it, None where
    nothing is.
    """
    if resolution.days:
        return list(candles)
    folded: list[Candle] = []
    last_key: tuple[int, int] | None = None
    for candle in candles:
        day = day_of(candle[0] * 1000)
        key = day.isocalendar()[:2] if resolution.weeks else (day.year, day.month)
        if key == last_key:
            folded[-1] = joined(folded[-1], candle)
        else:
            folded.append(candle)
        last_key = key
    return folded


def joined(earlier: Candle, later: Candle) -> Candle:
    """Return two candles that follow each other as one."""
    volume = earlier[5] if later[5] is None else later[5] + (earlier[5] or 0)
    return (
        earlier[0],
        earlier[1],
        max(earlier[2], later[2]),
        min(earlier[3], later[3]),
        later[4],
        volume,
    )
