"""When each exchange trades: sessions by local time, holidays, early closes, special sessions.

Used wherever silence, a fresh day or a bar's edge is judged. The regular hours stand here, the exceptions in
`data/market_days.csv` (made from `exchange_calendars` by `scripts/make_market_days.py`) and, after it, in
a dated file of the operator's, whose rows win: a Muhurat session is announced weeks before it, not years.
Hours are local to the exchange and zones are IANA zones, so a change to summer time needs no change here.

Sources of the hours: NSE and BSE equities and derivatives 09:15-15:30 with a pre-open auction from 09:00
and a closing session 15:40-16:00, currency 09:00-17:00, MCX 09:00-23:30, all in India; NYSE, NASDAQ and
Arca 09:30-16:00 in New York with extended hours 04:00-20:00; FX from Sunday to Friday 17:00 in New York.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from services.errors import ConfigurationError

SHIPPED = Path(__file__).with_name("data") / "market_days.csv"
_INDIA = ZoneInfo("Asia/Kolkata")
_NEW_YORK = ZoneInfo("America/New_York")
_WORKDAYS = frozenset(range(5))
_HEADER = ["exchanges", "date", "hours", "name"]
_CACHED_DAYS = 4_096


class Phase(Enum):
    """The part of a trading day a session belongs to."""

    PRE = "pre"
    REGULAR = "regular"
    POST = "post"


class Session(NamedTuple):
    """One session, UTC epoch ms; `close_ms` is the first moment after it."""

    open_ms: int
    close_ms: int
    phase: Phase = Phase.REGULAR

    def __contains__(self, at_ms: object) -> bool:
        return isinstance(at_ms, int) and self.open_ms <= at_ms < self.close_ms


class SpecialDay(NamedTuple):
    """What is different on one day: `hours` are (open, close) local times, none when it is closed."""

    hours: tuple[tuple[time, time], ...]
    name: str


class _Hours(NamedTuple):
    """Regular hours in `zone` on `weekdays` (Monday is 0); `days` is how many days later they end."""

    zone: ZoneInfo
    opens: time
    closes: time
    pre_opens: time | None = None
    post: tuple[time, time] | None = None
    weekdays: frozenset[int] = _WORKDAYS
    days: int = 0


_INDIAN_EQUITY = _Hours(_INDIA, time(9, 15), time(15, 30), time(9, 0), (time(15, 40), time(16, 0)))
_INDIAN_DERIVATIVES = _Hours(_INDIA, time(9, 15), time(15, 30))
_US = _Hours(_NEW_YORK, time(9, 30), time(16, 0), time(4, 0), (time(16, 0), time(20, 0)))
HOURS: dict[str, _Hours] = {
    "NSE": _INDIAN_EQUITY,
    "BSE": _INDIAN_EQUITY,
    "NFO": _INDIAN_DERIVATIVES,
    "BFO": _INDIAN_DERIVATIVES,
    "CDS": _Hours(_INDIA, time(9, 0), time(17, 0)),
    "MCX": _Hours(_INDIA, time(9, 0), time(23, 30)),
    "NASDAQ": _US,
    "NYSE": _US,
    "ARCA": _US,
    "CRYPTO": _Hours(ZoneInfo("UTC"), time(0, 0), time(0, 0), weekdays=frozenset(range(7)), days=1),
    "FX": _Hours(_NEW_YORK, time(17, 0), time(17, 0), weekdays=frozenset({6, 0, 1, 2, 3}), days=1),
}
CONTINUOUS = frozenset({"CRYPTO", "FX"})
"""Exchanges without holidays of their own in the files."""


class MarketCalendar:
    """The sessions of every known exchange. `files` are read in order; a later row wins.

    Raises `ConfigurationError` that names file and line when a row cannot be understood.
    """

    def __init__(self, files: Iterable[Path] = (SHIPPED,), *, always_open: bool = False) -> None:
        self.always_open = always_open
        self._exceptions: dict[tuple[str, date], SpecialDay] = {}
        self._known_until: dict[str, date] = {}
        for file in files:
            self._read(file)
        self._on = lru_cache(maxsize=_CACHED_DAYS)(self._sessions_on)

    def sessions(self, exchange: str, day: date) -> tuple[Session, ...]:
        """Return all sessions that open on `day` (a date where the exchange is), in order."""
        return self._on(exchange, day)

    def regular(self, exchange: str, day: date) -> tuple[Session, ...]:
        """Return the regular and special sessions that open on `day`, without pre- and post-market."""
        return tuple(session for session in self._on(exchange, day) if session.phase is Phase.REGULAR)

    def session_at(self, exchange: str, at_ms: int) -> Session | None:
        """Return the session that `at_ms` falls in; None when the exchange is closed or not known."""
        hours = HOURS.get(exchange)
        if hours is None:
            return None
        today = self.trading_day(exchange, at_ms)
        for day in (today, today - timedelta(days=1)) if hours.days else (today,):
            for session in self._on(exchange, day):
                if session.open_ms <= at_ms < session.close_ms:
                    return session
        return None

    def in_session(self, exchange: str, at_ms: int) -> bool:
        """Tell whether a regular session runs at `at_ms`; False where the hours are not known."""
        if self.always_open:
            return True
        session = self.session_at(exchange, at_ms)
        return session is not None and session.phase is Phase.REGULAR

    def open_among(self, exchanges: Iterable[str], at_ms: int) -> frozenset[str]:
        """Return those `exchanges` that are in session at `at_ms`."""
        return frozenset(exchange for exchange in exchanges if self.in_session(exchange, at_ms))

    def next_session(self, exchange: str, after_ms: int, *, within_days: int = 15) -> Session | None:
        """Return the first regular session that opens after `after_ms`; None when none is near or known."""
        if exchange not in HOURS:
            return None
        day = self.trading_day(exchange, after_ms) - timedelta(days=1)
        for _ in range(within_days + 1):
            for session in self.regular(exchange, day):
                if session.open_ms > after_ms:
                    return session
            day += timedelta(days=1)
        return None

    def trading_day(self, exchange: str, at_ms: int) -> date:
        """Return the date where the exchange is; UTC's for an exchange without known hours."""
        return trading_day(exchange, at_ms)

    def known_until(self, exchange: str) -> date | None:
        """Return the last day whose holidays are known; None for continuous markets and unknown ones."""
        return self._known_until.get(exchange)

    def exception(self, exchange: str, day: date) -> str | None:
        """Return the name of what is different on `day`, as in "Christmas"; None on an ordinary day."""
        found = self._exceptions.get((exchange, day))
        return found.name if found is not None else None

    # ---- inner ----------------------------------------------------------------------------------

    def _sessions_on(self, exchange: str, day: date) -> tuple[Session, ...]:
        hours = HOURS.get(exchange)
        if hours is None:
            return ()
        different = self._exceptions.get((exchange, day))
        if different is None:
            if day.weekday() not in hours.weekdays:
                return ()
            spans: tuple[tuple[time, time], ...] = ((hours.opens, hours.closes),)
        else:
            spans = different.hours
        sessions = []
        for opens, closes in spans:
            if opens == hours.opens and hours.pre_opens is not None:
                sessions.append(_session(hours, day, hours.pre_opens, opens, Phase.PRE))
            sessions.append(_session(hours, day, opens, closes, Phase.REGULAR))
            if opens == hours.opens and hours.post is not None:
                # After an early close the late session moves forward with it.
                earlier = _minutes(hours.closes) - _minutes(closes)
                begins, ends = (_at(_minutes(moment) - earlier) for moment in hours.post)
                sessions.append(_session(hours, day, begins, ends, Phase.POST))
        return tuple(sessions)

    def _read(self, file: Path) -> None:
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                rows = csv.reader(line for line in lines if not line.startswith("#"))
                header = next(rows, [])
                if header != _HEADER:
                    raise ValueError(f"the first line must be {','.join(_HEADER)}")
                for row in rows:
                    if row:
                        self._take(row)
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise ConfigurationError(f"{file}: {error}") from error

    def _take(self, row: list[str]) -> None:
        if len(row) != len(_HEADER):
            raise ValueError(f"{','.join(row)!r} must have {len(_HEADER)} fields")
        names, day_text, hours_text, name = (field.strip() for field in row)
        day = date.fromisoformat(day_text)
        for exchange in names.split():
            if exchange not in HOURS:
                raise ValueError(f"{exchange} is not an exchange with known hours ({' '.join(HOURS)})")
            if hours_text == "known":
                self._known_until[exchange] = day
            elif hours_text == "regular":
                self._exceptions.pop((exchange, day), None)
            else:
                self._exceptions[exchange, day] = SpecialDay(_spans(hours_text), name)


def trading_day(exchange: str, at_ms: int) -> date:
    """Return the date where the exchange is; UTC's for an exchange without known hours."""
    hours = HOURS.get(exchange)
    return datetime.fromtimestamp(at_ms / 1000, hours.zone if hours is not None else UTC).date()


def _spans(text: str) -> tuple[tuple[time, time], ...]:
    """Return the sessions in `closed` or in `09:30-13:00 18:00-19:00`."""
    if text == "closed":
        return ()
    spans: list[tuple[time, time]] = []
    for span in text.split():
        begin, dash, end = span.partition("-")
        try:
            opens, closes = time.fromisoformat(begin), time.fromisoformat(end)
        except ValueError:
            dash = ""
        if not dash or opens >= closes or (spans and opens < spans[-1][1]):
            raise ValueError(
                f"{text!r} is neither closed, regular nor hours such as 18:00-19:00, one after another"
            )
        spans.append((opens, closes))
    if not spans:
        raise ValueError("hours are missing: write closed, regular or hours such as 18:00-19:00")
    return tuple(spans)


def _session(hours: _Hours, day: date, opens: time, closes: time, phase: Phase) -> Session:
    last_day = day + timedelta(days=hours.days)
    return Session(
        _epoch_ms(datetime.combine(day, opens, hours.zone)),
        _epoch_ms(datetime.combine(last_day, closes, hours.zone)),
        phase,
    )


def _minutes(moment: time) -> int:
    return moment.hour * 60 + moment.minute


def _at(minutes: int) -> time:
    return time(minutes // 60, minutes % 60)


def _epoch_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
