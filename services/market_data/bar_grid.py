"""Where a bar begins and ends: the minutes and longer spans of each exchange's sessions.

Between the calendar and everything that makes or reads bars. Pure. The rules:

* Bars are cut at their session's edges: a longer bar begins with the session's open and every whole
  interval after it, so an hour is 09:15-10:15 in Mumbai and 09:30-10:30 in New York, in winter and summer,
  and 18:00-19:00 on a Muhurat evening. The last one of a session may be shorter.
* A bar of one day holds all regular sessions that open on the exchange's date, and begins with the first.
* A trade stamped in the second in which a regular session closes belongs to its last minute, where no other
  regular session begins with that second: exchanges stamp the last trades, and the closing auction, so.
* Hours that are not known, and a calendar that is `always_open`, make days from midnight to midnight where
  the exchange is (UTC where that is not known either), with the hours cut as on an ordinary day.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple

from services.market_data.bars import INTERVAL_MS, MINUTE_MS, Interval
from services.market_data.calendar import HOURS, MarketCalendar, Phase, Session

CLOSING_SECOND_MS = 1_000
LONGER: tuple[Interval, ...] = ("5m", "15m", "1h", "1d")
"""The intervals that are made of minutes; of regular sessions only."""


class Span(NamedTuple):
    """The time of one bar, UTC epoch ms; `end_ms` is the first moment after it, `closes` its session's."""

    start_ms: int
    end_ms: int
    phase: Phase
    closes: bool


class BarGrid:
    """Cuts the sessions of a calendar into bars."""

    def __init__(self, calendar: MarketCalendar) -> None:
        self._calendar = calendar
        self._sessions: dict[str, Session] = {}
        self._spans: dict[tuple[str, Interval], Span] = {}
        self._first_cuts: dict[str, tuple[int, int]] = {}

    def session_of(self, exchange: str, at_ms: int) -> Session | None:
        """Return the session whose bars a trade at `at_ms` belongs to; None when the exchange is closed."""
        known = self._sessions.get(exchange)
        if known is not None and known.open_ms + CLOSING_SECOND_MS <= at_ms < known.close_ms:
            return known
        session = self._find(exchange, at_ms)
        if session is not None:
            self._sessions[exchange] = session
        return session

    def minute_of(self, exchange: str, at_ms: int) -> Span | None:
        """Return the minute a trade at `at_ms` belongs to; None when the exchange is closed."""
        # Every bar of a minute holds on to the same one, that of all instruments of its exchange.
        known = self._spans.get((exchange, "1m"))
        if known is not None and known.start_ms + CLOSING_SECOND_MS <= at_ms < known.end_ms:
            return known
        session = self.session_of(exchange, at_ms)
        if session is None:
            return None
        start_ms = min(at_ms - at_ms % MINUTE_MS, session.close_ms - MINUTE_MS)
        end_ms = start_ms + MINUTE_MS
        span = Span(start_ms, end_ms, session.phase, end_ms == session.close_ms)
        if known == span:
            return known
        if start_ms % MINUTE_MS == 0:
            # Another last minute, of a session that ends within one, overlaps the minute before it.
            self._spans[exchange, "1m"] = span
        return span

    def span_of(self, exchange: str, interval: Interval, at_ms: int) -> Span | None:
        """Return the span of the bar that a trade at `at_ms` belongs to; None when the exchange is closed."""
        if interval == "1m":
            return self.minute_of(exchange, at_ms)
        # Bars are asked for at one time, those of all instruments of an exchange.
        known = self._spans.get((exchange, interval))
        if known is not None and known.start_ms + CLOSING_SECOND_MS <= at_ms < known.end_ms:
            return known
        session = self.session_of(exchange, at_ms)
        if session is None:
            return None
        span = self._cut(exchange, interval, session, at_ms)
        self._spans[exchange, interval] = span
        return span

    def first_cut_ms(self, exchange: str, at_ms: int) -> int | None:
        """Return from where the bars of a moment's session are counted; None when the exchange is closed.

        It is the session's open; where a market trades around the clock, the open of an ordinary day.
        """
        session = self.session_of(exchange, at_ms)
        return None if session is None else self._first_cut(exchange, session)

    # ---- inner ----------------------------------------------------------------------------------

    def _cut(self, exchange: str, interval: Interval, session: Session, at_ms: int) -> Span:
        if interval == "1d":
            first, last = self._day_of(exchange, session)
            return Span(first, last, session.phase, True)
        length_ms = INTERVAL_MS[interval]
        begin_ms = self._first_cut(exchange, session)
        at_ms = min(at_ms, session.close_ms - 1)
        start_ms = at_ms - (at_ms - begin_ms) % length_ms
        end_ms = min(start_ms + length_ms, session.close_ms)
        return Span(max(start_ms, session.open_ms), end_ms, session.phase, end_ms == session.close_ms)

    def _find(self, exchange: str, at_ms: int) -> Session | None:
        if self._calendar.always_open or exchange not in HOURS:
            return self._whole_day(exchange, at_ms)
        session = self._calendar.session_at(exchange, at_ms)
        if session is not None and session.phase is Phase.REGULAR:
            return session
        before = self._calendar.session_at(exchange, at_ms - CLOSING_SECOND_MS)
        if before is not None and before.phase is Phase.REGULAR:
            return before
        return session

    def _whole_day(self, exchange: str, at_ms: int) -> Session:
        day = self._calendar.trading_day(exchange, at_ms)
        return Session(_midnight_ms(exchange, day), _midnight_ms(exchange, day + timedelta(days=1)))

    def _day_of(self, exchange: str, session: Session) -> tuple[int, int]:
        if session.phase is not Phase.REGULAR or self._calendar.always_open or exchange not in HOURS:
            return session.open_ms, session.close_ms
        regular = self._calendar.regular(exchange, self._calendar.trading_day(exchange, session.open_ms))
        return (regular[0].open_ms, regular[-1].close_ms) if regular else (session.open_ms, session.close_ms)

    def _first_cut(self, exchange: str, session: Session) -> int:
        hours = HOURS.get(exchange)
        if not self._calendar.always_open or hours is None:
            return session.open_ms
        known = self._first_cuts.get(exchange)
        if known is not None and known[0] == session.open_ms:
            return known[1]
        day = self._calendar.trading_day(exchange, session.open_ms)
        cut_ms = round(datetime.combine(day, hours.opens, hours.zone).timestamp() * 1000)
        self._first_cuts[exchange] = (session.open_ms, cut_ms)
        return cut_ms


def _midnight_ms(exchange: str, day: date) -> int:
    hours = HOURS.get(exchange)
    zone = hours.zone if hours is not None else UTC
    return round(datetime.combine(day, time(0), zone).timestamp() * 1000)
