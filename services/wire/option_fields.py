"""Reads numbers and dates out of the JSON of option chains, which every vendor writes its own way. Pure.

What is absent, null, text that is no number, or not finite is unknown (None). Never a default.
"""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal, InvalidOperation
from typing import Any
from zoneinfo import ZoneInfo

from services.errors import WireFormatError

INDIA = ZoneInfo("Asia/Kolkata")
NEW_YORK = ZoneInfo("America/New_York")
INDIAN_EXPIRY = time(15, 30)
"""Contracts of NSE and BSE end with the day's regular session."""
AMERICAN_EXPIRY = time(16, 0)


def number(value: Any) -> float | None:
    """Return a finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def whole(value: Any) -> int | None:
    """Return a count, None for anything that is none; `195178.0` is 195178."""
    found = number(value)
    return None if found is None or found != int(found) else int(found)


def positive(value: Any) -> float | None:
    """Return a number above zero, None for anything else: vendors write 0 for "there is none"."""
    found = number(value)
    return found if found is not None and found > 0 else None


def strike_text(value: Any) -> str:
    """Return a strike as people write it (`25650`, `92.5`). Raises `WireFormatError` for what is none."""
    try:
        found = Decimal(str(value).strip())
    except InvalidOperation as error:
        raise WireFormatError("bad_strike", repr(value)[:40]) from error
    if not found.is_finite() or found <= 0:
        raise WireFormatError("bad_strike", repr(value)[:40])
    text = format(found, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def expiry_moment_s(day: date, zone: ZoneInfo, ends: time) -> int:
    """Return when contracts that expire on `day` end, UTC epoch s: the close of that day in `zone`."""
    return int(datetime.combine(day, ends, zone).timestamp())


def expiry_day(expiry_s: int, zone: ZoneInfo) -> date:
    """Return the day of an expiry given in UTC epoch s, be it the close of the day or its midnight.

    Midnight UTC (as Yahoo counts) lies on the day before in New York, so it is read as a date of UTC.
    """
    moment = datetime.fromtimestamp(expiry_s, UTC)
    if moment.time() == time(0):
        return moment.date()
    return moment.astimezone(zone).date()


def indian_wall_time_ms(text: Any, pattern: str = "%d-%b-%Y %H:%M:%S") -> int | None:
    """Return UTC epoch ms of Indian wall time written without a zone, None when it cannot be read."""
    try:
        moment = datetime.strptime(str(text).strip(), pattern)  # noqa: DTZ007 - the zone is added below
    except ValueError:
        return None
    return int((moment - timedelta(hours=5, minutes=30)).replace(tzinfo=UTC).timestamp() * 1000)


def day_of(text: Any, *patterns: str) -> date | None:
    """Return the date written in `text` in the first of `patterns` that fits, None when none does."""
    for pattern in patterns:
        try:
            return datetime.strptime(str(text).strip(), pattern).date()  # noqa: DTZ007 - a date has no zone
        except ValueError:
            continue
    return None
