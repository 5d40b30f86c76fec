"""Yahoo quotes to ticks, requests and ids; no sockets."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from services.market_data.records import FLAG_SNAPSHOT, ProviderTick
from services.wire.yahoo import PricingData, encode_frame
from services.yahoo_finance_connection import YahooFinanceConnection, canonical_id
from tests.support.providers import Recorder


class NeverConnects:
    """A connector that is still trying."""

    async def open(self, *_: Any, **__: Any) -> Any:
        await asyncio.Event().wait()


def ticks_of(*quotes: PricingData, version: int = 2) -> list[ProviderTick]:
    recorder = Recorder()
    provider = YahooFinanceConnection(recorder.context)
    for data in quotes:
        assert provider.handle(encode_frame(data, version=version))
    return [tick for tick, _ in recorder.ticks]


def equity(**changes: Any) -> PricingData:
    fields: dict[str, Any] = {
        "id": "AAPL",
        "price": 307.2,
        "time": 1_760_000_001_000,
        "exchange": "NMS",
        "quote_type": 8,
        "market_hours": 1,
        "day_volume": 5_000,
        "price_hint": 2,
    }
    return PricingData(**{**fields, **changes})


@pytest.mark.parametrize("version", [1, 2])
def test_an_equity_quote_becomes_a_tick(version: int) -> None:
    (tick,) = ticks_of(equity(), version=version)
    assert tick.provider_symbol == "AAPL"
    assert tick.price == pytest.approx(307.2, rel=1e-6)
    assert (tick.event_ms, tick.event_resolution_ms) == (1_760_000_001_000, 1000)
    assert (tick.cumulative_volume, tick.price_decimals) == (5_000, 2)
    assert (tick.bid, tick.ask, tick.oi, tick.previous_close) == (None, None, None, None)


@pytest.mark.parametrize(
    ("quote_type", "market_hours", "volume"),
    [
        (8, 1, 5_000),
        (20, 1, 5_000),
        (18, 1, 5_000),
        (13, 1, 5_000),
        (8, None, 5_000),
        (8, 0, None),
        (8, 2, None),
        (8, 3, None),
        (8, 4, None),
        (9, 1, None),
        (14, 1, None),
        (41, 1, None),
        (None, 1, None),
    ],
)
def test_only_the_regular_session_of_what_is_traded_by_the_piece_has_a_day_volume(
    quote_type: int | None, market_hours: int | None, volume: int | None
) -> None:
    (tick,) = ticks_of(equity(quote_type=quote_type, market_hours=market_hours))
    assert tick.cumulative_volume == volume
    assert tick.price is not None


def test_a_quiet_start_of_the_session_has_volume_zero_and_not_none() -> None:
    (tick,) = ticks_of(equity(day_volume=0))
    assert tick.cumulative_volume == 0


def test_zero_prices_of_the_book_and_the_day_are_absent() -> None:
    (tick,) = ticks_of(
        equity(bid=0.0, bid_size=5, ask=307.5, ask_size=7, day_high=0.0, day_low=0.0, open_price=0.0)
    )
    assert (tick.bid, tick.bid_size, tick.ask, tick.ask_size) == (None, None, 307.5, 7)
    assert (tick.day_open, tick.day_high, tick.day_low) == (None, None, None)


def test_open_interest_belongs_to_options() -> None:
    option, other = ticks_of(equity(quote_type=13, open_interest=44), equity(open_interest=44))
    assert (option.oi, other.oi) == (44, None)


@pytest.mark.parametrize(("hint", "decimals"), [(4, 4), (0, 0), (-1, None), (2**40, None), (None, None)])
def test_a_price_hint_out_of_reason_is_no_hint(hint: int | None, decimals: int | None) -> None:
    (tick,) = ticks_of(equity(price_hint=hint))
    assert tick.price_decimals == decimals


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"change": -2.18}, 309.38),
        ({"change": 0.0}, 307.2),
        ({"change": -2.18, "previous_close": 309.5}, 309.5),
        ({"change": -2.18, "market_hours": 2}, None),
        ({"change": -2.18, "quote_type": 41}, None),
        ({"change": -2.18, "price_hint": None}, None),
        ({"change": 400.0}, None),
        ({}, None),
    ],
)
def test_the_previous_close_follows_from_the_change_of_the_regular_session(
    fields: dict[str, Any], expected: float | None
) -> None:
    (tick,) = ticks_of(equity(**fields))
    assert tick.previous_close == (None if expected is None else pytest.approx(expected, abs=1e-4))


def test_what_carries_no_quote_is_counted_by_kind() -> None:
    recorder = Recorder()
    provider = YahooFinanceConnection(recorder.context)
    assert provider.handle(encode_frame(equity(quote_type=7)))
    assert provider.handle(json.dumps({"type": "status", "message": "CgA="}))
    assert provider.handle(encode_frame(equity(id=None)))
    assert provider.handle(encode_frame(equity(id="")))
    assert recorder.ticks == []
    assert provider.counters.ignored == {"heartbeat": 1, "envelope": 1, "without_id": 2}


@pytest.mark.parametrize("damaged", ["", "{", '{"type":"pricing"}', "not base64!", b"\xff\x00", "{}"])
def test_damaged_messages_are_counted(damaged: str | bytes) -> None:
    recorder = Recorder()
    provider = YahooFinanceConnection(recorder.context)
    assert provider.handle(damaged) is False
    assert sum(provider.counters.wire_errors.values()) == 1
    assert recorder.ticks == []


async def test_a_quote_that_comes_back_under_another_id_keeps_the_name_it_was_asked_for_by() -> None:
    recorder = Recorder()
    provider = YahooFinanceConnection(recorder.context, connector=NeverConnects())

    def names() -> list[str]:
        recorder.ticks.clear()
        for name in ("INR=X", "USDINR=X", "EURUSD=X"):
            provider.handle(encode_frame(equity(id=name, quote_type=14)))
        return [tick.provider_symbol for tick, _ in recorder.ticks]

    await provider.subscribe_symbols(["USDINR=X", "EURUSD=X"])
    assert names() == ["USDINR=X", "USDINR=X", "EURUSD=X"]
    await provider.subscribe_symbols(["INR=X"])
    assert names() == ["INR=X", "USDINR=X", "EURUSD=X"]
    await provider.unsubscribe_symbols(["INR=X"])
    assert names() == ["USDINR=X", "USDINR=X", "EURUSD=X"]
    await provider.disconnect_websocket()


@pytest.mark.parametrize(
    ("asked", "canonical"),
    [
        ("USDINR=X", "INR=X"),
        ("EURUSD=X", "EURUSD=X"),
        ("INR=X", "INR=X"),
        ("USD=X", "USD=X"),
        ("USDA", "USDA"),
    ],
)
def test_the_canonical_id_of_a_dollar_pair_is_the_other_currency(asked: str, canonical: str) -> None:
    assert canonical_id(asked) == canonical


async def test_the_first_quote_after_subscribing_is_flagged_as_a_snapshot() -> None:
    recorder = Recorder()
    provider = YahooFinanceConnection(recorder.context)
    await provider.want(["AAPL"])
    provider.connection_asking(["AAPL"])
    for _ in range(2):
        provider.handle(encode_frame(equity()))
    assert [tick.flags for tick, _ in recorder.ticks] == [FLAG_SNAPSHOT, 0]


def test_requests_and_address_are_those_of_the_web_client() -> None:
    recorder = Recorder()
    provider = YahooFinanceConnection(recorder.context)
    (request,) = provider.subscribe_requests(["AAPL", "^NSEI"])
    assert json.loads(request.payload) == {"subscribe": ["AAPL", "^NSEI"]}
    assert request.symbols == ("AAPL", "^NSEI")
    (leaving,) = provider.unsubscribe_requests(["AAPL"])
    assert json.loads(leaving) == {"unsubscribe": ["AAPL"]}
    endpoint = provider.endpoint()
    assert endpoint.url == "wss://streamer.finance.yahoo.com/?version=2"
    assert dict(endpoint.headers)["Origin"] == "https://finance.yahoo.com"
    recorder.settings["YAHOO_STREAM_URL"] = "ws://127.0.0.1:1/"
    assert provider.endpoint().url == "ws://127.0.0.1:1/"


def test_no_credentials_are_needed() -> None:
    assert YahooFinanceConnection.credential_names == ()
    assert YahooFinanceConnection(Recorder().context).has_credentials is False
