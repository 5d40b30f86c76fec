"""The codecs of option chains against recorded answers and against answers that are none."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from services.errors import WireFormatError
from services.wire import dhan_options, nse_options, yahoo_options
from services.wire.option_fields import INDIA, NEW_YORK, expiry_day, strike_text

FRAMES = Path(__file__).resolve().parents[2] / "frames"
NSE = {vector["name"]: vector for vector in json.loads((FRAMES / "nse.json").read_text())}
NOW_MS = 1_800_000_000_000
DAY = date(2026, 11, 24)
CLOSE_S = 1_795_514_400
"""15:30 in India on 24 November 2026."""


def body(value: Any) -> bytes:
    return json.dumps(value).encode()


# ---- NSE ------------------------------------------------------------------------------------------------


def test_nse_expiries_ascend() -> None:
    vector = NSE["contract-info"]
    days = nse_options.parse_expiries(body(vector["body"]))
    assert days == sorted(days)
    assert days[0].isoformat() == vector["expected"]["nearest_expiry"]


def test_nse_chain_has_the_recorded_figures_and_no_leg_without_a_contract() -> None:
    vector = NSE["option-chain-v3"]
    expected = vector["expected"]
    answer = nse_options.parse_chain(body(vector["body"]), expiry=DAY, received_ms=NOW_MS)
    assert answer.underlying_price == expected["underlying"]
    assert answer.timestamp == 1_795_168_800_000, "15:30 in India is 10:00 UTC"
    assert answer.expiry == CLOSE_S
    calls = [quote for quote in answer.quotes if quote.side == "call"]
    puts = [quote for quote in answer.quotes if quote.side == "put"]
    assert sum(quote.oi or 0 for quote in calls) == expected["total_ce_oi"]
    assert sum(quote.oi or 0 for quote in puts) == expected["total_pe_oi"]
    assert {(quote.strike, quote.side) for quote in answer.quotes} == {
        *((strike, side) for strike in ("23300", "23350") for side in ("call", "put")),
        ("23400", "call"),
    }
    leg = next(quote for quote in puts if quote.strike == "23300")
    assert (leg.oi, leg.oi_change, leg.volume, leg.iv, leg.last_price) == (97418, 9090, 188886, 12.3, 61.1)
    assert (leg.bid, leg.bid_size, leg.ask, leg.ask_size) == (61.05, 8385, 61.15, 1105)
    assert leg.contract == "OPTIDXNIFTY24-11-2026PE23300.00"
    assert leg.delta is None, "NSE gives no greeks"


def test_nse_rows_of_another_expiry_are_left_out() -> None:
    answer = nse_options.parse_chain(
        body(NSE["option-chain-v3"]["body"]), expiry=date(2026, 12, 1), received_ms=NOW_MS
    )
    assert answer.quotes == ()


def test_nse_unknown_expiry_is_a_chain_without_legs() -> None:
    answer = nse_options.parse_chain(body(NSE["unknown expiry"]["body"]), expiry=DAY, received_ms=NOW_MS)
    assert answer.quotes == ()


@pytest.mark.parametrize("parse", [nse_options.parse_expiries, lambda raw: nse_chain(raw)])
def test_nse_empty_object_means_stale_cookies(parse: Any) -> None:
    with pytest.raises(nse_options.StaleSession):
        parse(body(NSE["stale cookies"]["body"]))


def nse_chain(raw: bytes) -> object:
    return nse_options.parse_chain(raw, expiry=DAY, received_ms=NOW_MS)


def test_nse_queries_are_as_the_site_wants_them() -> None:
    assert nse_options.chain_query("NIFTY", DAY, is_index=True) == {
        "type": "Indices",
        "symbol": "NIFTY",
        "expiry": "24-Nov-2026",
    }
    assert nse_options.chain_query("M&M", date(2026, 12, 1), is_index=False)["type"] == "Equity"


# ---- Dhan -----------------------------------------------------------------------------------------------


LEG = {
    "average_price": 146.99,
    "greeks": {"delta": 0.53871, "theta": -15.1539, "gamma": 0.00132, "vega": 12.18593},
    "implied_volatility": 9.789193798280868,
    "last_price": 134,
    "oi": 3786445,
    "previous_close_price": 244.85,
    "previous_oi": 402220,
    "previous_volume": 31931705,
    "security_id": 42528,
    "top_ask_price": 134,
    "top_ask_quantity": 1365,
    "top_bid_price": 133.55,
    "top_bid_quantity": 1625,
    "volume": 117567970,
}


def dhan_body(**changes: Any) -> bytes:
    chain = {"last_price": 25642.8, "oc": {"25650.000000": {"ce": LEG, "pe": dict(LEG, **changes)}}}
    return body({"data": chain, "status": "success"})


def test_dhan_leg_is_read_field_by_field() -> None:
    answer = dhan_options.parse_chain(dhan_body(), expiry=DAY, received_ms=NOW_MS)
    assert (answer.underlying_price, answer.timestamp, answer.expiry) == (25642.8, NOW_MS, CLOSE_S)
    call = answer.quotes[0]
    assert (call.side, call.strike, call.contract) == ("call", "25650", "42528")
    assert (call.last_price, call.bid, call.bid_size, call.ask, call.ask_size) == (
        134.0,
        133.55,
        1625,
        134.0,
        1365,
    )
    assert (call.oi, call.oi_change, call.volume) == (3786445, 3786445 - 402220, 117567970)
    assert (call.iv, call.delta, call.gamma, call.theta, call.vega) == (
        9.789193798280868,
        0.53871,
        0.00132,
        -15.1539,
        12.18593,
    )


def test_dhan_zeros_are_unknown_and_greeks_without_a_volatility_mean_nothing() -> None:
    changed = dhan_body(implied_volatility=0, last_price=0, top_bid_price=0, previous_oi=None)
    put = dhan_options.parse_chain(changed, expiry=DAY, received_ms=NOW_MS).quotes[1]
    assert (put.iv, put.delta, put.last_price, put.bid, put.oi_change) == (None,) * 5
    assert put.ask == 134.0


def test_dhan_missing_and_empty_legs_are_absent() -> None:
    chain = {"last_price": 100, "oc": {"92.5": {"ce": LEG}, "95": {"ce": {}, "pe": None}, "97.5": None}}
    answer = dhan_options.parse_chain(
        body({"data": chain, "status": "success"}), expiry=DAY, received_ms=NOW_MS
    )
    assert [(quote.strike, quote.side) for quote in answer.quotes] == [("92.5", "call")]


def test_dhan_expiries_and_bodies() -> None:
    raw = body({"data": ["2026-12-01", "2026-11-24"], "status": "success"})
    assert dhan_options.parse_expiries(raw) == [DAY, date(2026, 12, 1)]
    assert dhan_options.chain_body("13", "IDX_I", DAY) == {
        "UnderlyingScrip": 13,
        "UnderlyingSeg": "IDX_I",
        "Expiry": "2026-11-24",
    }


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"<html>",
        b"[]",
        b'{"status":"success"}',
        b'{"data":{"805":"too many"},"status":"failed"}',
        b'{"data":{"oc":{"x":{"ce":{"oi":1}}}},"status":"success"}',
    ],
)
def test_what_is_no_chain_is_refused(raw: bytes) -> None:
    with pytest.raises(WireFormatError):
        dhan_options.parse_chain(raw, expiry=DAY, received_ms=NOW_MS)
    with pytest.raises(WireFormatError):
        nse_options.parse_chain(raw, expiry=DAY, received_ms=NOW_MS)
    with pytest.raises(WireFormatError):
        yahoo_options.parse_chain(raw, expiry=DAY, received_ms=NOW_MS)


# ---- Yahoo ----------------------------------------------------------------------------------------------


def yahoo_body(day_s: int = 1_797_552_000, **changes: Any) -> bytes:
    leg = {
        "contractSymbol": "AAPL261218C00300000",
        "strike": 300.0,
        "currency": "USD",
        "lastPrice": 12.35,
        "change": 0.5,
        "percentChange": 4.2,
        "volume": 1200,
        "openInterest": 15321,
        "bid": 12.3,
        "ask": 12.4,
        "contractSize": "REGULAR",
        "expiration": 1_797_552_000,
        "lastTradeDate": 1_796_000_000,
        "impliedVolatility": 0.2374,
        "inTheMoney": True,
    } | changes
    result = {
        "underlyingSymbol": "AAPL",
        "expirationDates": [1_797_552_000, 1_799_971_200],
        "strikes": [300.0],
        "quote": {"regularMarketPrice": 307.2, "regularMarketTime": 1_796_050_000},
        "options": [{"expirationDate": day_s, "calls": [leg], "puts": []}],
    }
    return body({"optionChain": {"result": [result], "error": None}})


def test_yahoo_leg_is_read_and_its_volatility_is_in_percent() -> None:
    answer = yahoo_options.parse_chain(yahoo_body(), expiry=date(2026, 12, 18), received_ms=NOW_MS)
    (call,) = answer.quotes
    assert (call.contract, call.strike, call.side) == ("AAPL261218C00300000", "300", "call")
    assert call.iv == pytest.approx(23.74)
    assert (call.oi, call.volume, call.event_ms) == (15321, 1200, 1_796_000_000_000)
    assert call.oi_change is None
    assert answer.timestamp == 1_796_050_000_000
    assert answer.underlying_price == 307.2
    assert expiry_day(answer.expiry, NEW_YORK) == date(2026, 12, 18)


def test_yahoo_volatility_that_is_none_is_unknown() -> None:
    raw = yahoo_body(impliedVolatility=0.00001)
    answer = yahoo_options.parse_chain(raw, expiry=date(2026, 12, 18), received_ms=NOW_MS)
    assert answer.quotes[0].iv is None


def test_yahoo_chain_of_another_day_is_refused() -> None:
    with pytest.raises(WireFormatError, match="wrong_expiry"):
        yahoo_options.parse_chain(yahoo_body(), expiry=date(2026, 12, 24), received_ms=NOW_MS)


def test_yahoo_says_why_there_is_no_chain() -> None:
    error = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
    with pytest.raises(WireFormatError, match="may be delisted"):
        yahoo_options.parse_expiries(body({"optionChain": {"result": None, "error": error}}))


def test_yahoo_expiries_are_days_of_utc() -> None:
    assert yahoo_options.parse_expiries(yahoo_body()) == [date(2026, 12, 18), date(2027, 1, 15)]
    assert yahoo_options.expiry_query(date(2026, 12, 18)) == "1797552000"


# ---- fields ---------------------------------------------------------------------------------------------


def test_the_day_of_an_expiry_is_found_from_the_close_and_from_midnight_utc() -> None:
    assert expiry_day(CLOSE_S, INDIA) == DAY
    assert expiry_day(1_795_478_400, INDIA) == DAY
    assert expiry_day(1_797_552_000, NEW_YORK) == date(2026, 12, 18)


@pytest.mark.parametrize(
    ("value", "text"),
    [("25650.000000", "25650"), (23300, "23300"), (92.5, "92.5"), ("0.0500", "0.05"), ("100", "100")],
)
def test_strikes_are_written_without_trailing_zeros(value: Any, text: str) -> None:
    assert strike_text(value) == text


@pytest.mark.parametrize("value", ["", "x", None, 0, -5, "NaN", "inf", [], {}])
def test_what_is_no_strike_is_refused(value: Any) -> None:
    with pytest.raises(WireFormatError):
        strike_text(value)
