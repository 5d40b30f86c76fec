"""The calendar: clock changes, holidays, early closes, special sessions, and the operator's own file."""

from __future__ import annotations

import importlib.util
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from services.errors import ConfigurationError
from services.market_data.calendar import HOURS, SHIPPED, MarketCalendar, Phase, Session

ROOT = Path(__file__).resolve().parents[3]
CALENDAR = MarketCalendar()


def utc(text: str) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("exchange", "day", "opens", "closes"),
    [
        # New York: the Friday before and the Monday after 2026-03-08 and 2026-11-01.
        ("NASDAQ", date(2026, 3, 6), "2026-03-06T14:30", "2026-03-06T21:00"),
        ("NASDAQ", date(2026, 3, 9), "2026-03-09T13:30", "2026-03-09T20:00"),
        ("NYSE", date(2026, 10, 30), "2026-10-30T13:30", "2026-10-30T20:00"),
        ("NYSE", date(2026, 11, 2), "2026-11-02T14:30", "2026-11-02T21:00"),
        # Europe's changes move nothing in New York or India.
        ("ARCA", date(2026, 3, 30), "2026-03-30T13:30", "2026-03-30T20:00"),
        ("ARCA", date(2026, 10, 26), "2026-10-26T13:30", "2026-10-26T20:00"),
        *[
            ("NSE", day, f"{day}T03:45", f"{day}T10:00")
            for day in (date(2026, 3, 9), date(2026, 3, 30), date(2026, 10, 26), date(2026, 11, 2))
        ],
        ("MCX", date(2026, 11, 2), "2026-11-02T03:30", "2026-11-02T18:00"),
        ("FX", date(2026, 3, 8), "2026-03-08T21:00", "2026-03-09T21:00"),
        ("FX", date(2026, 11, 1), "2026-11-01T22:00", "2026-11-02T22:00"),
        # Early closes, and special sessions on days that are none otherwise.
        ("NASDAQ", date(2026, 11, 27), "2026-11-27T14:30", "2026-11-27T18:00"),
        ("NSE", date(2025, 10, 21), "2025-10-21T08:15", "2025-10-21T09:15"),
        ("NSE", date(2026, 2, 1), "2026-02-01T03:45", "2026-02-01T10:00"),
    ],
)
def test_a_session_is_where_the_local_clock_puts_it(
    exchange: str, day: date, opens: str, closes: str
) -> None:
    assert CALENDAR.regular(exchange, day) == (Session(utc(opens), utc(closes)),)
    assert CALENDAR.in_session(exchange, utc(opens))
    assert CALENDAR.in_session(exchange, utc(closes) - 1)
    assert CALENDAR.in_session(exchange, utc(closes)) == (exchange == "FX"), "only FX goes straight on"
    assert CALENDAR.next_session(exchange, utc(opens) - 1) == Session(utc(opens), utc(closes))


@pytest.mark.parametrize(
    ("exchange", "day", "name"),
    [
        ("NSE", date(2026, 11, 24), "holiday"),
        ("NSE", date(2026, 1, 26), "holiday"),
        ("NYSE", date(2026, 11, 26), "holiday"),
        ("NASDAQ", date(2026, 11, 21), None),
        ("NSE", date(2026, 11, 22), None),
    ],
)
def test_there_is_no_session_on_holidays_and_at_weekends(exchange: str, day: date, name: str | None) -> None:
    assert CALENDAR.sessions(exchange, day) == ()
    assert CALENDAR.exception(exchange, day) == name
    assert not CALENDAR.in_session(exchange, utc(f"{day}T15:00"))


def test_pre_and_post_market_are_kept_apart_and_an_early_close_moves_the_late_session() -> None:
    phases = [(s.phase, s.open_ms, s.close_ms) for s in CALENDAR.sessions("NASDAQ", date(2026, 11, 25))]
    assert phases == [
        (Phase.PRE, utc("2026-11-25T09:00"), utc("2026-11-25T14:30")),
        (Phase.REGULAR, utc("2026-11-25T14:30"), utc("2026-11-25T21:00")),
        (Phase.POST, utc("2026-11-25T21:00"), utc("2026-11-26T01:00")),
    ]
    short = CALENDAR.sessions("NASDAQ", date(2026, 11, 27))
    assert short[-1] == Session(utc("2026-11-27T18:00"), utc("2026-11-27T22:00"), Phase.POST)
    assert CALENDAR.session_at("NSE", utc("2026-11-20T03:30")) == Session(
        utc("2026-11-20T03:30"), utc("2026-11-20T03:45"), Phase.PRE
    )
    assert not CALENDAR.in_session("NSE", utc("2026-11-20T03:44"))
    assert CALENDAR.session_at("NSE", utc("2026-11-20T10:05")) is None, "between close and closing session"
    assert [s.phase for s in CALENDAR.sessions("NSE", date(2025, 10, 21))] == [Phase.REGULAR]


def test_crypto_never_closes_and_fx_rests_from_friday_to_sunday() -> None:
    for hour in range(24 * 8):
        assert CALENDAR.in_session("CRYPTO", utc("2026-11-01T00:00") + hour * 3_600_000 + 1)
    assert CALENDAR.in_session("FX", utc("2026-11-20T21:59"))
    assert not CALENDAR.in_session("FX", utc("2026-11-20T22:00"))
    assert not CALENDAR.in_session("FX", utc("2026-11-21T12:00"))
    assert CALENDAR.in_session("FX", utc("2026-11-22T22:00"))
    assert CALENDAR.next_session("FX", utc("2026-11-21T12:00")) == Session(
        utc("2026-11-22T22:00"), utc("2026-11-23T22:00")
    )


def test_an_exchange_without_known_hours_is_never_said_to_be_open() -> None:
    assert not CALENDAR.in_session("INDEX", utc("2026-11-20T15:00"))
    assert CALENDAR.next_session("INDEX", utc("2026-11-20T15:00")) is None
    assert CALENDAR.open_among(["NSE", "NASDAQ", "INDEX"], utc("2026-11-20T15:00")) == {"NASDAQ"}
    assert MarketCalendar(always_open=True).in_session("INDEX", utc("2026-11-21T15:00"))


def test_the_day_is_that_of_the_exchange() -> None:
    assert CALENDAR.trading_day("NSE", utc("2026-11-19T18:30")) == date(2026, 11, 20)
    assert CALENDAR.trading_day("NYSE", utc("2026-11-20T04:59")) == date(2026, 11, 19)


def test_sessions_of_a_day_never_overlap_and_are_in_order() -> None:
    day = date(2024, 1, 1)
    seen = 0
    while day < date(2028, 1, 1):
        for exchange in HOURS:
            sessions = CALENDAR.sessions(exchange, day)
            seen += len(sessions)
            for session in sessions:
                assert session.open_ms < session.close_ms
            for earlier, later in pairwise(sessions):
                assert earlier.close_ms <= later.open_ms
        day += timedelta(days=1)
    assert seen > 10_000


def test_the_operators_rows_win_over_the_shipped_ones(tmp_path: Path) -> None:
    own = tmp_path / "days.csv"
    own.write_text(
        "exchanges,date,hours,name\n"
        "NSE BSE,2027-10-29,18:00-19:00,Muhurat trading\n"
        "MCX,2026-11-24,17:00-23:30,evening session\n"
        "NSE,2026-11-24,regular,holiday moved\n"
        "NASDAQ,2026-11-30,10:00-12:00 13:00-15:00,two halves\n"
        "NSE,2027-12-31,known,\n",
        encoding="utf-8",
    )
    calendar = MarketCalendar([SHIPPED, own])
    assert calendar.regular("NSE", date(2027, 10, 29)) == (
        Session(utc("2027-10-29T12:30"), utc("2027-10-29T13:30")),
    )
    assert calendar.in_session("MCX", utc("2026-11-24T12:00"))
    assert not calendar.in_session("MCX", utc("2026-11-24T06:00"))
    assert calendar.in_session("NSE", utc("2026-11-24T06:00"))
    assert not calendar.in_session("BSE", utc("2026-11-24T06:00"))
    assert len(calendar.regular("NASDAQ", date(2026, 11, 30))) == 2
    assert calendar.known_until("NSE") == date(2027, 12, 31)
    assert calendar.known_until("BSE") == date(2026, 12, 31)
    assert calendar.known_until("CRYPTO") is None


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("LSE,2026-01-01,closed,x", "LSE is not an exchange"),
        ("NSE,2026-13-01,closed,x", "month must be in 1..12"),
        ("NSE,2026-01-01,18:00,x", "neither closed, regular nor hours"),
        ("NSE,2026-01-01,19:00-18:00,x", "neither closed, regular nor hours"),
        ("NSE,2026-01-01,10:00-12:00 11:00-13:00,x", "one after another"),
        ("NSE,2026-01-01,,x", "hours are missing"),
        ("NSE,2026-01-01,closed", "must have 4 fields"),
    ],
)
def test_a_row_that_cannot_be_understood_is_named(tmp_path: Path, row: str, said: str) -> None:
    own = tmp_path / "days.csv"
    own.write_text(f"exchanges,date,hours,name\n{row}\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=said) as caught:
        MarketCalendar([own])
    assert str(own) in str(caught.value)


def test_a_file_that_is_none_of_ours_is_refused(tmp_path: Path) -> None:
    own = tmp_path / "days.csv"
    with pytest.raises(ConfigurationError, match="cannot be read"):
        MarketCalendar([own])
    own.write_text("a,b\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="first line must be"):
        MarketCalendar([own])


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_the_shipped_days_are_those_of_the_library() -> None:
    spec = importlib.util.spec_from_file_location(
        "make_market_days", ROOT / "scripts" / "make_market_days.py"
    )
    assert spec is not None
    assert spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    shipped = [
        line
        for line in SHIPPED.read_text(encoding="utf-8").splitlines()
        if not line.startswith(("#", "exchanges"))
    ]
    assert shipped == maker.rows(), "run scripts/make_market_days.py"
