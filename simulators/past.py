"""The past of the simulated market: minute and daily bars of any instrument, the same on every machine.

Stands beside `market`, under the REST sides of the vendors; both see the same past of one instrument.
A minute's bar follows from the instrument's name and the minute alone, so nothing is kept. Only the last
day before the live market begins also depends on when that is: it is bent so that it ends at the price at
which the market begins, and a chart shows no jump where the past meets the live bars.
What the live market has traded since its start is remembered by the instrument and wins: a client that
lost its connection finds the very bars it missed. Knows no wire and no sockets.
"""

from __future__ import annotations

import csv
import zlib
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from simulators.market import Instrument

MARKET_DAYS = Path(__file__).resolve().parents[1] / "services" / "market_data" / "data" / "market_days.csv"
_MULTIPLIER = 6364136223846793005
_INCREMENT = 1442695040888963407
_MASK = (1 << 64) - 1
_TABLE = 2_048
"""Minutes after which the shape of the past repeats; longer than any session."""
_BENT_MINUTES = 1_440
"""So long before the live market begins the past turns towards its price."""
_LONGEST_REST_S = 12 * 86_400
"""No market is closed for so long."""


class Hours(NamedTuple):
    """When a market trades: local hours in `zone` on `weekdays`; `days` is how many days later they end.

    `exchange` is the name under which its holidays stand in the shipped file.
    """

    exchange: str
    zone: str
    opens: time
    closes: time
    weekdays: frozenset[int] = frozenset(range(5))
    days: int = 0


INDIA = Hours("NSE", "Asia/Kolkata", time(9, 15), time(15, 30))
INDIA_CURRENCY = Hours("CDS", "Asia/Kolkata", time(9, 0), time(17, 0))
INDIA_COMMODITY = Hours("MCX", "Asia/Kolkata", time(9, 0), time(23, 30))
NEW_YORK = Hours("NYSE", "America/New_York", time(9, 30), time(16, 0))
FX = Hours("FX", "America/New_York", time(17, 0), time(17, 0), frozenset({6, 0, 1, 2, 3}), 1)
ALWAYS = Hours("CRYPTO", "UTC", time(0, 0), time(0, 0), frozenset(range(7)), 1)


def around_the_clock(hours: Hours) -> Hours:
    """Return the hours of a market of the same zone that never closes."""
    return Hours(ALWAYS.exchange, hours.zone, time(0, 0), time(0, 0), frozenset(range(7)), 1)


class PastBar(NamedTuple):
    """One bar. `start_s` is UTC epoch seconds; `volume` 0 where the instrument has none."""

    start_s: int
    open: float
    high: float
    low: float
    close: float
    volume: int


def sessions(hours: Hours, day: date) -> list[tuple[int, int]]:
    """Return the (open, close) of a day in UTC epoch seconds; none on a holiday."""
    return list(_sessions(hours, day))


@lru_cache(maxsize=20_000)
def _sessions(hours: Hours, day: date) -> tuple[tuple[int, int], ...]:
    zone = ZoneInfo(hours.zone)
    spans: tuple[tuple[time, time], ...] = ((hours.opens, hours.closes),)
    exception = _exceptions().get((hours.exchange, day))
    if exception is not None:
        spans = exception
    elif day.weekday() not in hours.weekdays:
        return ()
    last = day + timedelta(days=hours.days)
    return tuple(
        (
            int(datetime.combine(day, opens, zone).timestamp()),
            int(datetime.combine(last, closes, zone).timestamp()),
        )
        for opens, closes in spans
    )


def days(hours: Hours, from_s: int, to_s: int) -> Iterator[date]:
    """Yield the local days that may hold something of a span, oldest first."""
    zone = ZoneInfo(hours.zone)
    day = datetime.fromtimestamp(from_s, UTC).astimezone(zone).date() - timedelta(days=hours.days)
    last = datetime.fromtimestamp(max(from_s, to_s - 1), UTC).astimezone(zone).date()
    while day <= last:
        yield day
        day += timedelta(days=1)


def bars(
    instrument: Instrument, hours: Hours, minutes: int, from_s: int, to_s: int, now_s: int
) -> list[PastBar]:
    """Return the bars of `minutes` that begin within [from_s, to_s), also the one that forms at `now_s`."""
    shape = _shape(instrument, hours, now_s)
    found: list[PastBar] = []
    step_s = minutes * 60
    for day in days(hours, from_s, to_s):
        for opens_s, closes_s in _sessions(hours, day):
            end_s = min(closes_s, to_s, now_s + 1)
            first_s = max(opens_s, from_s)
            first_s = opens_s - (opens_s - first_s) // step_s * step_s
            for start_s in range(first_s, end_s, step_s):
                found.append(shape.bar(day, start_s, min(start_s + step_s, closes_s, now_s + 1)))
    return found


def daily_bars(instrument: Instrument, hours: Hours, from_s: int, to_s: int, now_s: int) -> list[PastBar]:
    """Return one bar a day, by the opening of its first session, which begins within [from_s, to_s)."""
    shape = _shape(instrument, hours, now_s)
    found = []
    for day in days(hours, from_s, to_s):
        spans = [(opens, min(closes, now_s + 1)) for opens, closes in _sessions(hours, day) if opens <= now_s]
        if not spans or not from_s <= spans[0][0] < to_s:
            continue
        parts = [shape.bar(day, opens, closes) for opens, closes in spans]
        found.append(
            PastBar(
                parts[0].start_s,
                parts[0].open,
                max(part.high for part in parts),
                min(part.low for part in parts),
                parts[-1].close,
                sum(part.volume for part in parts),
            )
        )
    return found


class _Shape:
    """The table of an instrument's moves, twice over so that every span of it is one slice.

    The past ends at `end_minute` of `end_day` with the price at which the market begins.
    """

    def __init__(self, instrument: Instrument, end_day: date, end_minute: int) -> None:
        self._instrument = instrument
        seed = zlib.crc32(f"past:{instrument.spec.name}".encode()) or 1
        moves, volumes, wicks = [], [], []
        level = 0
        for _ in range(_TABLE):
            seed = (seed * _MULTIPLIER + _INCREMENT) & _MASK
            draw = seed >> 33
            # Pulled back to the middle, so that no past strays far from the price of today.
            level += draw % 5 - 2 - (level > 40) + (level < -40)
            moves.append(level)
            volumes.append((1 + (draw >> 7) % 900) * instrument.lot)
            wicks.append((draw >> 17) % 4)
        ends = moves[1:] + moves[:1]
        self._opens, self._closes = moves * 2, ends * 2
        self._highs = [max(a, b) + w for a, b, w in zip(moves, ends, wicks, strict=True)] * 2
        self._lows = [min(a, b) - w // 2 for a, b, w in zip(moves, ends, wicks, strict=True)] * 2
        self._volumes = volumes * 2
        self._bent_from = end_minute - _BENT_MINUTES
        self._bend_units = self._units(end_day, moves[end_minute % _TABLE]) - instrument.base_units

    def bar(self, day: date, start_s: int, end_s: int) -> PastBar:
        """Return the bar of the minutes from `start_s` until before `end_s`, at most one table of them."""
        it = self._instrument
        first = start_s // 60
        count = max(1, min(_TABLE, -(-end_s // 60) - first))
        traded: list[list[int] | None] = []
        if it.minutes and next(reversed(it.minutes)) >= first:
            traded = [it.minutes.get(minute) for minute in range(first, first + count)]
        if first + count > self._bent_from or any(traded):
            return self._by_minutes(day, first, traded or [None] * count)
        at = first % _TABLE
        piece = slice(at, at + count)
        return PastBar(
            start_s,
            self._price(day, self._opens[at]),
            self._price(day, max(self._highs[piece])),
            self._price(day, min(self._lows[piece])),
            self._price(day, self._closes[at + count - 1]),
            sum(self._volumes[piece]) if it.trades else 0,
        )

    def _by_minutes(self, day: date, first: int, traded: list[list[int] | None]) -> PastBar:
        it = self._instrument
        parts = [
            self._past_minute(day, minute) if units is None else units
            for minute, units in enumerate(traded, first)
        ]
        return PastBar(
            first * 60,
            it.value(parts[0][0]),
            it.value(max(part[1] for part in parts)),
            it.value(min(part[2] for part in parts)),
            it.value(parts[-1][3]),
            sum(part[4] for part in parts),
        )

    def _past_minute(self, day: date, minute: int) -> list[int]:
        """Return open, high, low, close in units and the volume, as the market notes a minute."""
        at, it = minute % _TABLE, self._instrument
        before, behind = self._bend(minute), self._bend(minute + 1)
        opened = self._units(day, self._opens[at], before)
        close = self._units(day, self._closes[at], behind)
        high = max(opened, close, self._units(day, self._highs[at], before))
        low = min(opened, close, self._units(day, self._lows[at], before))
        return [opened, high, low, close, self._volumes[at] if it.trades else 0]

    def _bend(self, minute: int) -> int:
        """Return by how many units a price is lower than the table says."""
        done = min(max(minute - self._bent_from, 0), _BENT_MINUTES)
        tick = self._instrument.tick_units
        return round(self._bend_units * done / _BENT_MINUTES / tick) * tick

    def _price(self, day: date, move: int) -> float:
        return self._instrument.value(self._units(day, move))

    def _units(self, day: date, move: int, bend: int = 0) -> int:
        it = self._instrument
        # A slow wave over the days, two per cent at most.
        wave = abs(day.toordinal() % 80 - 40) - 20
        units = it.base_units + (move + wave * 8) * it.stride * it.tick_units - bend
        return max(units, it.tick_units)


def _shape(instrument: Instrument, hours: Hours, now_s: int) -> _Shape:
    if instrument.began_minute is None:
        # Nothing is traded yet: the past ends now, at the price the market will begin with.
        instrument.began_minute = now_s // 60
    if not isinstance(instrument.past, _Shape):
        instrument.past = _Shape(instrument, *_end_of_past(hours, instrument.began_minute * 60))
    return instrument.past


def _end_of_past(hours: Hours, began_s: int) -> tuple[date, int]:
    """Return the day and the minute at which the last session before the beginning was left."""
    found = [
        (day, min(began_s, closes_s) // 60)
        for day in days(hours, began_s - _LONGEST_REST_S, began_s + 1)
        for opens_s, closes_s in _sessions(hours, day)
        if opens_s <= began_s
    ]
    return found[-1]


@cache
def _exceptions() -> dict[tuple[str, date], tuple[tuple[time, time], ...]]:
    found: dict[tuple[str, date], tuple[tuple[time, time], ...]] = {}
    with MARKET_DAYS.open(encoding="utf-8", newline="") as lines:
        rows = csv.reader(line for line in lines if not line.startswith("#"))
        next(rows, None)
        for row in rows:
            names, day, hours = (field.strip() for field in row[:3])
            if hours in ("known", "regular"):
                continue
            spans: tuple[tuple[time, time], ...] = ()
            if hours != "closed":
                spans = tuple(
                    (time.fromisoformat(opens), time.fromisoformat(closes))
                    for opens, _, closes in (span.partition("-") for span in hours.split())
                )
            for exchange in names.split():
                found[exchange, date.fromisoformat(day)] = spans
    return found
