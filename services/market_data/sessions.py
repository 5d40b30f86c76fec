"""When each exchange's regular session is, by local time and weekday.

Used where silence or a fresh day is judged: the connections ask whether anybody trades at all, the
normaliser whether a volume that fell back belongs to a new day. Holidays and special sessions are not
in here, so nothing may be concluded from "in session" alone. Times are local to the exchange and zones
are IANA zones, so a change to summer time needs no change here. Pure: no I/O after import.

Source: NSE and BSE 09:00 (pre-open) to 15:30, currency to 17:00, MCX 09:00 to 23:30, all in India;
NYSE, NASDAQ and Arca 09:30 to 16:00 in New York; FX from Sunday to Friday 17:00 in New York.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

_INDIA = ZoneInfo("Asia/Kolkata")
_NEW_YORK = ZoneInfo("America/New_York")
_WORKDAYS = frozenset(range(5))


class Session(NamedTuple):
    """One session, UTC epoch ms; `close_ms` is the first moment after it."""

    open_ms: int
    close_ms: int


class _Hours(NamedTuple):
    """`opens` to `closes` in `zone` on `weekdays` (Monday is 0); `days` is how many days later it closes."""

    zone: ZoneInfo
    opens: time
    closes: time
    weekdays: frozenset[int] = _WORKDAYS
    days: int = 0


_CASH = _Hours(_INDIA, time(9, 0), time(15, 30))
_US = _Hours(_NEW_YORK, time(9, 30), time(16, 0))
_HOURS = {
    "NSE": _CASH,
    "BSE": _CASH,
    "NFO": _CASH,
    "BFO": _CASH,
    "CDS": _Hours(_INDIA, time(9, 0), time(17, 0)),
    "MCX": _Hours(_INDIA, time(9, 0), time(23, 30)),
    "NASDAQ": _US,
    "NYSE": _US,
    "ARCA": _US,
    "CRYPTO": _Hours(ZoneInfo("UTC"), time(0, 0), time(0, 0), frozenset(range(7)), 1),
    "FX": _Hours(_NEW_YORK, time(17, 0), time(17, 0), frozenset({6, 0, 1, 2, 3}), 1),
}


def session_of(exchange: str, day: date) -> Session | None:
    """Return the session that opens on `day`, a date where the exchange is; None where none does."""
    hours = _HOURS.get(exchange)
    if hours is None or day.weekday() not in hours.weekdays:
        return None
    opens = datetime.combine(day, hours.opens, hours.zone)
    closes = datetime.combine(day + timedelta(days=hours.days), hours.closes, hours.zone)
    return Session(_epoch_ms(opens), _epoch_ms(closes))


def in_session(exchange: str, at_ms: int) -> bool:
    """Tell whether the exchange's regular session runs at `at_ms`; False where its hours are not known."""
    hours = _HOURS.get(exchange)
    if hours is None:
        return False
    today = trading_day(exchange, at_ms)
    for day in (today, today - timedelta(days=1)) if hours.days else (today,):
        session = session_of(exchange, day)
        if session is not None and session.open_ms <= at_ms < session.close_ms:
            return True
    return False


def trading_day(exchange: str, at_ms: int) -> date:
    """Return the date where the exchange is; UTC's for an exchange without known hours."""
    hours = _HOURS.get(exchange)
    return datetime.fromtimestamp(at_ms / 1000, hours.zone if hours is not None else UTC).date()


def open_among(exchanges: Iterable[str], at_ms: int) -> frozenset[str]:
    """Return those `exchanges` that are in session at `at_ms`."""
    return frozenset(exchange for exchange in exchanges if in_session(exchange, at_ms))


def _epoch_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)
