"""Makes services/market_data/data/market_days.csv: holidays and early closes out of `exchange_calendars`.

    .venv/bin/python scripts/make_market_days.py

To be run, and its result committed, whenever that library is updated; a test compares the two. What the
library does not know (special sessions in India) stands in SPECIAL below, or in the operator's own file.
"""

from __future__ import annotations

import sys
from pathlib import Path

import exchange_calendars
import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
TARGET = ROOT / "services" / "market_data" / "data" / "market_days.csv"
FIRST_DAY = "2024-01-01"
LAST_YEAR = 2027
CALENDARS = {"XBOM": "NSE BSE NFO BFO CDS MCX", "XNYS": "NASDAQ NYSE ARCA"}
SPECIAL = (
    # The exchanges' circulars; Muhurat is on the evening or afternoon of Diwali, the budget on a weekend.
    "NSE BSE NFO BFO CDS MCX,2024-11-01,18:00-19:00,Muhurat trading",
    "NSE BSE NFO BFO CDS MCX,2025-10-21,13:45-14:45,Muhurat trading",
    "NSE BSE NFO BFO,2025-02-01,09:15-15:30,Union Budget",
    "NSE BSE NFO BFO,2026-02-01,09:15-15:30,Union Budget",
)
_HEAD = """\
# Days on which an exchange does not keep its regular hours. Made by scripts/make_market_days.py; do not edit.
# hours: closed | regular | local times such as 18:00-19:00. `known`: the holidays are known up to this day.
exchanges,date,hours,name
"""


def main() -> None:
    """Write the file."""
    TARGET.write_text(_HEAD + "".join(f"{row}\n" for row in rows()), encoding="utf-8")
    sys.stdout.write(f"{TARGET.relative_to(ROOT)} written\n")


def rows() -> list[str]:
    """Return the lines of the file, by calendar and day."""
    made = []
    for name, exchanges in CALENDARS.items():
        calendar = _calendar(name)
        last = calendar.last_session
        zone = calendar.tz
        sessions = set(calendar.sessions)
        for day in pd.bdate_range(FIRST_DAY, last):
            if day not in sessions:
                made.append(f"{exchanges},{day.date()},closed,holiday")
        for day in calendar.sessions:
            opens = calendar.session_open(day).tz_convert(zone)
            closes = calendar.session_close(day).tz_convert(zone)
            if day in calendar.early_closes or day in calendar.late_opens or day.weekday() > 4:
                made.append(f"{exchanges},{day.date()},{opens:%H:%M}-{closes:%H:%M},short or special session")
        made.append(f"{exchanges},{last.year}-12-31,known,")
    return sorted(made, key=lambda row: (row.split(",")[0], row.split(",")[1])) + list(SPECIAL)


def _calendar(name: str) -> exchange_calendars.ExchangeCalendar:
    kind = exchange_calendars.calendar_utils.global_calendar_dispatcher._calendar_factories[name]
    bound = kind.bound_max()
    end = pd.Timestamp(LAST_YEAR, 12, 31)
    return exchange_calendars.get_calendar(
        name, start=FIRST_DAY, end=end if bound is None else min(end, bound)
    )


if __name__ == "__main__":
    main()
