"""Sessions by local time: the days on which clocks change, weekends, markets that never close."""

from __future__ import annotations

from datetime import UTC, date, datetime

import pytest

from services.market_data.sessions import in_session, open_among, session_of, trading_day


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
            ("NSE", day, f"{day}T03:30", f"{day}T10:00")
            for day in (date(2026, 3, 9), date(2026, 3, 30), date(2026, 10, 26), date(2026, 11, 2))
        ],
        ("MCX", date(2026, 11, 2), "2026-11-02T03:30", "2026-11-02T18:00"),
        # FX opens on the Sunday of the change itself.
        ("FX", date(2026, 3, 8), "2026-03-08T21:00", "2026-03-09T21:00"),
        ("FX", date(2026, 11, 1), "2026-11-01T22:00", "2026-11-02T22:00"),
    ],
)
def test_a_session_is_where_the_local_clock_puts_it(
    exchange: str, day: date, opens: str, closes: str
) -> None:
    assert session_of(exchange, day) == (utc(opens), utc(closes))
    assert in_session(exchange, utc(opens))
    assert day.weekday() != 6 or not in_session(exchange, utc(opens) - 1)
    assert in_session(exchange, utc(closes) - 1)
    assert in_session(exchange, utc(closes)) == (exchange == "FX"), "only FX goes straight on"


@pytest.mark.parametrize("exchange", ["NSE", "BSE", "NFO", "MCX", "CDS", "NASDAQ", "NYSE"])
def test_there_is_no_session_at_the_weekend(exchange: str) -> None:
    assert session_of(exchange, date(2026, 11, 21)) is None
    assert not in_session(exchange, utc("2026-11-21T15:00"))


def test_crypto_never_closes_and_fx_rests_from_friday_to_sunday() -> None:
    for hour in range(24 * 8):
        assert in_session("CRYPTO", utc("2026-11-01T00:00") + hour * 3_600_000 + 1)
    assert in_session("FX", utc("2026-11-20T21:59"))
    assert not in_session("FX", utc("2026-11-20T22:00"))
    assert not in_session("FX", utc("2026-11-21T12:00"))
    assert in_session("FX", utc("2026-11-22T22:00"))


def test_an_exchange_without_known_hours_is_never_said_to_be_open() -> None:
    assert not in_session("INDEX", utc("2026-11-20T15:00"))
    assert open_among(["NSE", "NASDAQ", "INDEX"], utc("2026-11-20T15:00")) == {"NASDAQ"}


def test_the_day_is_that_of_the_exchange() -> None:
    assert trading_day("NSE", utc("2026-11-19T18:30")) == date(2026, 11, 20)
    assert trading_day("NYSE", utc("2026-11-20T04:59")) == date(2026, 11, 19)
