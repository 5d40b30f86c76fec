"""Which minutes and days of an exchange there should be bars for.

Between the calendar and whoever asks for the past. Pure: the present is always given. Only regular sessions
count; a calendar that is always open, and an exchange whose hours are not known, trade from midnight to
midnight where the exchange is, as the bars do.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta

from services.market_data.bars import MINUTE_MS
from services.market_data.calendar import HOURS, MarketCalendar
from services.market_data.spans import Span

_MOST_DAYS = 40_000
"""A walk into the past ends here, whatever it looks for: a hundred years."""


class TradingTime:
    """The regular sessions of every exchange as spans of time."""

    def __init__(self, calendar: MarketCalendar) -> None:
        self._calendar = calendar

    def day_of(self, exchange: str, at_ms: int) -> date:
        """Return the date where the exchange is."""
        return self._calendar.trading_day(exchange, at_ms)

    def on(self, exchange: str, day: date) -> list[Span]:
        """Return the sessions that open on a day; none when the exchange is closed."""
        if self._calendar.always_open or exchange not in HOURS:
            return [(midnight_ms(exchange, day), midnight_ms(exchange, day + timedelta(days=1)))]
        return [(session.open_ms, session.close_ms) for session in self._calendar.regular(exchange, day)]

    def between(self, exchange: str, from_ms: int, to_ms: int) -> list[Span]:
        """Return the sessions, cut to [from_ms, to_ms), oldest first."""
        found: list[Span] = []
        day = self.day_of(exchange, from_ms) - timedelta(days=1)
        last = self.day_of(exchange, max(from_ms, to_ms - 1))
        while day <= last:
            for opens, closes in self.on(exchange, day):
                begin, end = max(opens, from_ms), min(closes, to_ms)
                if begin < end:
                    found.append((begin, end))
            day += timedelta(days=1)
        return found

    def back_from(self, exchange: str, to_ms: int) -> Iterator[Span]:
        """Yield the sessions that began before `to_ms`, newest first, the first one cut at `to_ms`."""
        day = self.day_of(exchange, to_ms)
        for _ in range(_MOST_DAYS):
            for opens, closes in reversed(self.on(exchange, day)):
                if opens < to_ms:
                    yield opens, min(closes, to_ms)
            day -= timedelta(days=1)

    def days_between(self, exchange: str, from_ms: int, to_ms: int) -> list[tuple[date, Span]]:
        """Return the days whose bar begins within [from_ms, to_ms): date, and from first open to last close."""
        found = []
        day = self.day_of(exchange, from_ms)
        last = self.day_of(exchange, max(from_ms, to_ms - 1))
        while day <= last:
            sessions = self.on(exchange, day)
            if sessions and from_ms <= sessions[0][0] < to_ms:
                found.append((day, (sessions[0][0], sessions[-1][1])))
            day += timedelta(days=1)
        return found

    def day_start_ms(self, exchange: str, day: date) -> int | None:
        """Return when the bar of a day begins; None when the exchange is closed on it."""
        sessions = self.on(exchange, day)
        return sessions[0][0] if sessions else None


def minutes_of(spans: list[Span]) -> list[int]:
    """Return the start of every minute that begins within `spans`."""
    found: list[int] = []
    for begin, end in spans:
        found.extend(range(begin + -begin % MINUTE_MS, end, MINUTE_MS))
    return found


def midnight_ms(exchange: str, day: date) -> int:
    """Return the first moment of a date where the exchange is."""
    hours = HOURS.get(exchange)
    zone = hours.zone if hours is not None else UTC
    return round(datetime.combine(day, time(0), zone).timestamp() * 1000)
