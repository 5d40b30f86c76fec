"""The vendors' own SDKs decode what the simulators send: dhanhq 2.3.0 and yfinance 1.7.0, unchanged.

Real: both SDKs, sockets, the simulators. Every value is compared with the simulator's journal.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from dhanhq import DhanContext, dhanhq
from dhanhq.auth import DhanLogin
from dhanhq.fulldepth import FullDepth
from dhanhq.marketfeed import MarketFeed

from simulators import DhanSimulator, Market, SentTick, YahooSimulator
from tests.support.eventually import FACTOR, eventually

RELIANCE = "NSE_EQ:2885"
NIFTY = "IDX_I:13"
NIFTY_CALL = "NSE_FNO:42501"
_IST_SHIFT_S = 19_800


def _two_decimals(price: float | None) -> str:
    return f"{price:.2f}"


def _ist_wall_time(event_ms: int) -> str:
    # The SDK believes the wire's seconds to be UTC; they are Indian wall time, and so is its text.
    return datetime.fromtimestamp(event_ms / 1000 + _IST_SHIFT_S, UTC).strftime("%H:%M:%S")


def _bury(loop: asyncio.AbstractEventLoop, context: DhanContext) -> None:
    """Clean up what the SDK leaves behind: its tasks, the loop it set for the thread, its HTTP session."""
    left = asyncio.all_tasks(loop)
    if left:
        loop.run_until_complete(asyncio.wait(left, timeout=5 * FACTOR))
    loop.close()
    asyncio.set_event_loop(None)
    context.get_dhan_http().session.close()


class FeedClient:
    """Runs the SDK's feed in the thread that calls `receive`; every wait is bounded."""

    def __init__(
        self, simulator: DhanSimulator, instruments: list[tuple[int, str, int]], version: str
    ) -> None:
        self._context = DhanContext(simulator.client_id, simulator.access_token)
        self._instruments = instruments
        self._version = version

    def receive(self, count: int) -> list[Any]:
        feed = MarketFeed(self._context, self._instruments, version=self._version)
        try:
            feed.loop.run_until_complete(asyncio.wait_for(feed.connect(), 5 * FACTOR))
            received = [
                feed.loop.run_until_complete(asyncio.wait_for(feed.get_instrument_data(), 10 * FACTOR))
                for _ in range(count)
            ]
            feed.loop.run_until_complete(asyncio.wait_for(feed.disconnect(), 5 * FACTOR))
        finally:
            _bury(feed.loop, self._context)
        return received


@pytest.fixture
async def dhan() -> AsyncIterator[DhanSimulator]:
    async with DhanSimulator(rate=0, market=Market(identity=True)) as simulator:
        yield simulator


@pytest.fixture
def feed_url(dhan: DhanSimulator, monkeypatch: pytest.MonkeyPatch) -> str:
    # The SDK reads the address from the class, not from the instance.
    monkeypatch.setattr(MarketFeed, "market_feed_wss", dhan.url)
    return dhan.url


async def _converse(
    dhan: DhanSimulator,
    instruments: list[tuple[int, str, int]],
    symbols: list[str],
    expected_messages: int,
    *,
    version: str = "v2",
) -> tuple[list[Any], list[SentTick]]:
    """Let the SDK subscribe, tick once per symbol, and return what it decoded and what was sent."""
    client = FeedClient(dhan, instruments, version)
    receiving = asyncio.create_task(asyncio.to_thread(client.receive, expected_messages))
    await eventually(lambda: len(dhan.watched()) == len(instruments) or receiving.done())
    for symbol in symbols:
        dhan.emit(symbol)
    return await receiving, dhan.journal.ticks


@pytest.mark.usefixtures("feed_url")
async def test_the_dhan_sdk_decodes_ticker_packets(dhan: DhanSimulator) -> None:
    messages, sent = await _converse(dhan, [(MarketFeed.NSE, "2885", MarketFeed.Ticker)], [RELIANCE] * 2, 3)
    assert [tick.snapshot for tick in sent] == [True, False, False]
    assert [tick.price_text for tick in sent] == ["1192.30", "1192.40", "1192.50"]
    assert messages == [
        {
            "type": "Ticker Data",
            "exchange_segment": 1,
            "security_id": 2885,
            "LTP": _two_decimals(tick.price),
            "LTT": _ist_wall_time(tick.event_ms),
        }
        for tick in sent
    ]


@pytest.mark.usefixtures("feed_url")
async def test_the_dhan_sdk_decodes_quotes_and_open_interest_of_a_derivative(dhan: DhanSimulator) -> None:
    messages, sent = await _converse(
        dhan, [(MarketFeed.NSE_FNO, "42501", MarketFeed.Quote)], [NIFTY_CALL, NIFTY_CALL], 6
    )
    quotes, interests = messages[0::2], messages[1::2]
    assert [quote["type"] for quote in quotes] == ["Quote Data"] * 3
    for quote, tick in zip(quotes, sent, strict=True):
        assert quote["exchange_segment"] == 2
        assert quote["security_id"] == 42501
        assert quote["LTP"] == _two_decimals(tick.price)
        assert quote["LTT"] == _ist_wall_time(tick.event_ms)
        assert quote["LTQ"] == tick.quantity
        assert quote["volume"] == tick.volume
    listing = dhan.listing(NIFTY_CALL)
    assert listing is not None
    instrument = listing.instrument
    assert quotes[-1]["high"] == _two_decimals(instrument.value(instrument.high_units))
    assert quotes[-1]["low"] == _two_decimals(instrument.value(instrument.low_units))
    assert quotes[-1]["open"] == _two_decimals(instrument.value(instrument.open_units))
    assert quotes[-1]["close"] == _two_decimals(instrument.value(instrument.previous_close_units))
    assert [interest["type"] for interest in interests] == ["OI Data"] * 3
    assert interests[-1] == {
        "type": "OI Data",
        "exchange_segment": 2,
        "security_id": 42501,
        "OI": instrument.oi,
    }


@pytest.mark.usefixtures("feed_url")
async def test_the_dhan_sdk_decodes_full_packets_with_five_levels(dhan: DhanSimulator) -> None:
    messages, sent = await _converse(dhan, [(MarketFeed.NSE, "2885", MarketFeed.Full)], [RELIANCE], 2)
    full, tick = messages[-1], sent[-1]
    listing = dhan.listing(RELIANCE)
    assert listing is not None
    assert full["type"] == "Full Data"
    assert full["LTP"] == "1192.40" == _two_decimals(tick.price)
    assert full["LTT"] == _ist_wall_time(tick.event_ms)
    assert full["LTQ"] == tick.quantity == 2
    assert full["volume"] == tick.volume == 9_870_002
    assert full["OI"] == 0
    assert len(full["depth"]) == 5
    for level, shown in enumerate(full["depth"]):
        bid_qty, ask_qty, bid_orders, ask_orders, bid_px, ask_px = listing.instrument.book(level)
        assert shown == {
            "bid_quantity": bid_qty,
            "ask_quantity": ask_qty,
            "bid_orders": bid_orders,
            "ask_orders": ask_orders,
            "bid_price": _two_decimals(bid_px),
            "ask_price": _two_decimals(ask_px),
        }


@pytest.mark.usefixtures("feed_url")
async def test_the_dhan_sdk_sees_the_previous_close_of_an_index_before_its_snapshot(
    dhan: DhanSimulator,
) -> None:
    messages, sent = await _converse(dhan, [(MarketFeed.IDX, "13", MarketFeed.Ticker)], [NIFTY], 3)
    assert messages[0] == {
        "type": "Previous Close",
        "exchange_segment": 0,
        "security_id": 13,
        "prev_close": "25693.70",
        "prev_OI": 0,
    }
    assert [message["LTP"] for message in messages[1:]] == [_two_decimals(tick.price) for tick in sent]


@pytest.mark.usefixtures("feed_url")
async def test_each_mode_of_the_dhan_sdk_yields_its_own_packets(dhan: DhanSimulator) -> None:
    instruments = [
        (MarketFeed.NSE, "2885", MarketFeed.Ticker),
        (MarketFeed.NSE, "2885", MarketFeed.Quote),
        (MarketFeed.NSE, "2885", MarketFeed.Full),
    ]
    messages, sent = await _converse(dhan, instruments, [RELIANCE], 6)
    assert sorted(message["type"] for message in messages[3:]) == ["Full Data", "Quote Data", "Ticker Data"]
    assert {message["LTP"] for message in messages[3:]} == {"1192.40"}
    assert len({tick.seq for tick in sent[3:]}) == 1


@pytest.mark.usefixtures("feed_url")
async def test_the_simulator_understands_the_first_version_of_the_feed(dhan: DhanSimulator) -> None:
    instruments = [(MarketFeed.NSE, "2885", MarketFeed.Depth)]
    messages, sent = await _converse(dhan, instruments, [RELIANCE], 2, version="v1")
    assert messages[-1]["type"] == "Market Depth"
    assert messages[-1]["LTP"] == pytest.approx(sent[-1].float32)
    assert messages[-1]["depth"][0]["bid_price"] == _two_decimals(sent[-1].bid)


@pytest.mark.usefixtures("feed_url")
async def test_the_callbacks_of_the_dhan_sdk_deliver_live_ticks_until_it_is_closed(
    dhan: DhanSimulator,
) -> None:
    prices: list[str] = []
    dhan.set_rate(50)

    def run() -> None:
        context = DhanContext(dhan.client_id, dhan.access_token)

        def on_message(feed: MarketFeed, message: dict[str, Any]) -> None:
            prices.append(message["LTP"])
            if len(prices) == 10:
                feed.close_connection()

        feed = MarketFeed(context, [(MarketFeed.NSE, "2885", MarketFeed.Quote)], on_message=on_message)
        feed.run()
        _bury(feed.loop, context)

    await asyncio.wait_for(asyncio.to_thread(run), 20 * FACTOR)
    assert prices[:10] == [_two_decimals(tick.price) for tick in dhan.journal.ticks[:10]]
    leaving = [request for request in dhan.requests if '"RequestCode": 12' in request.content]
    assert len(leaving) == 1


@pytest.mark.parametrize("levels", [20, 200])
async def test_the_depth_client_of_the_dhan_sdk_decodes_both_sides(dhan: DhanSimulator, levels: int) -> None:
    async def one_message(feed: FullDepth) -> list[dict[str, Any]]:
        return [update async for update in feed.get_instrument_data()]

    def receive() -> list[dict[str, Any]]:
        context = DhanContext(dhan.client_id, dhan.access_token)
        feed = FullDepth(context, [(1, "1333")], depth_level=levels)
        feed.ws_url = dhan.depth_20_url if levels == 20 else dhan.depth_200_url
        try:
            feed.loop.run_until_complete(asyncio.wait_for(feed.connect(), 5 * FACTOR))
            updates = feed.loop.run_until_complete(asyncio.wait_for(one_message(feed), 5 * FACTOR))
            feed.loop.run_until_complete(asyncio.wait_for(feed.ws.close(), 5 * FACTOR))
        finally:
            _bury(feed.loop, context)
        return updates

    bid, ask = await asyncio.wait_for(asyncio.to_thread(receive), 20 * FACTOR)
    listing = dhan.listing("NSE_EQ:1333")
    assert listing is not None
    assert (bid["type"], bid["exchange_segment"], bid["security_id"]) == ("Bid", 1, 1333)
    assert (ask["type"], len(bid["depth"]), len(ask["depth"])) == ("Ask", levels, levels)
    for level in (0, 1, levels - 1):
        bid_qty, ask_qty, bid_orders, ask_orders, bid_px, ask_px = listing.instrument.book(level)
        assert bid["depth"][level] == {"price": bid_px, "quantity": bid_qty, "orders": bid_orders}
        assert ask["depth"][level] == {"price": ask_px, "quantity": ask_qty, "orders": ask_orders}


async def test_the_rest_client_of_the_dhan_sdk_reads_quotes(dhan: DhanSimulator) -> None:
    dhan.emit(RELIANCE, price="1200.10", quantity=7)

    def ask() -> dict[str, Any]:
        context = DhanContext(dhan.client_id, dhan.access_token)
        context.get_dhan_http().base_url = dhan.rest_url
        try:
            client = dhanhq(context)
            quote = client.quote_data({"NSE_EQ": [2885, 999_999_999]})
            too_soon = client.ticker_data({"NSE_EQ": [2885]})
        finally:
            context.get_dhan_http().session.close()
        return {"quote": quote, "too_soon": too_soon}

    answers = await asyncio.to_thread(ask)
    assert answers["quote"]["status"] == "success"
    data = answers["quote"]["data"]["data"]["NSE_EQ"]
    assert set(data) == {"2885"}, "unknown ids are left out"
    quote = data["2885"]
    assert quote["last_price"] == 1200.1
    assert quote["last_quantity"] == 7
    assert quote["volume"] == 9_870_007
    assert quote["ohlc"] == {"open": 1192.3, "close": 1192.3, "high": 1200.1, "low": 1192.3}
    assert len(quote["depth"]["buy"]) == len(quote["depth"]["sell"]) == 5
    assert answers["too_soon"]["status"] == "failure"
    assert answers["too_soon"]["remarks"]["error_code"] == "DH-904"


async def test_the_login_of_the_dhan_sdk_shows_the_profile_and_renews_the_token(
    dhan: DhanSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DhanLogin, "API_BASE_URL", dhan.rest_url)
    old = dhan.access_token
    login = DhanLogin(dhan.client_id)
    profile = await asyncio.to_thread(login.user_profile, old)
    assert profile["dhanClientId"] == dhan.client_id
    assert profile["dataPlan"] == "Active"
    assert datetime.strptime(profile["tokenValidity"], "%d/%m/%Y %H:%M")
    renewed = await asyncio.to_thread(login.renew_token, old)
    assert renewed["accessToken"] == dhan.access_token != old
    with pytest.raises(Exception, match="DH-901"):
        await asyncio.to_thread(login.user_profile, old)


# Yahoo: the SDK runs in a process of its own, because its listener freezes its event loop for good when
# the server closes cleanly.

_YFINANCE = """
import asyncio, json, os, sys
import yfinance

async def main() -> None:
    socket = yfinance.AsyncWebSocket(url=sys.argv[1], verbose=False)
    await socket.subscribe(json.loads(sys.argv[2]))
    await socket.listen(lambda message: print(json.dumps(message), flush=True))

asyncio.run(main())
"""


class YahooClient:
    """The SDK as a process; `messages` are what its handler was given."""

    def __init__(self, url: str, symbols: list[str]) -> None:
        self._arguments = (sys.executable, "-c", _YFINANCE, url, json.dumps(symbols))

    async def __aenter__(self) -> YahooClient:
        self._process = await asyncio.create_subprocess_exec(
            *self._arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.wait()

    async def messages(self, count: int) -> list[dict[str, Any]]:
        assert self._process.stdout is not None
        lines = [await asyncio.wait_for(self._process.stdout.readline(), 30 * FACTOR) for _ in range(count)]
        return [json.loads(line) for line in lines]


def _expected_share(tick: SentTick, *, last_size: bool) -> dict[str, Any]:
    expected = {
        "price": pytest.approx(tick.float32, rel=1e-6),
        "time": str(tick.event_ms),
        "quote_type": 8,
        "market_hours": 1,
        "day_volume": str(tick.volume),
        "price_hint": "2",
    }
    if last_size:
        expected["last_size"] = str(tick.quantity)
    return expected


async def test_the_yahoo_sdk_decodes_every_kind_of_message() -> None:
    symbols = ["AAPL", "RELIANCE.NS", "^NSEI", "USDINR=X", "BTC-USD", "AAPL261218P00300000"]
    async with (
        YahooSimulator(rate=0, market=Market(identity=True)) as yahoo,
        YahooClient(yahoo.url, symbols) as client,
    ):
        await client.messages(len(symbols))
        sent = {symbol: yahoo.emit(symbol)[0] for symbol in symbols}
        decoded = await client.messages(len(symbols))
    by_id = {message["id"]: message for message in decoded}

    apple = by_id["AAPL"]
    for key, value in _expected_share(sent["AAPL"], last_size=True).items():
        assert apple[key] == value, key
    assert apple["exchange"] == "NMS"
    assert sent["AAPL"].price_text == "307.21"
    assert apple["price"] == 307.21, "the shortest decimal of the float32"
    assert set(apple) - {"id", "exchange", "change", "change_percent"} == set(
        _expected_share(sent["AAPL"], last_size=True)
    ), "a share of the United States carries no currency, no day prices and no book"

    reliance = by_id["RELIANCE.NS"]
    for key, value in _expected_share(sent["RELIANCE.NS"], last_size=True).items():
        assert reliance[key] == value, key
    assert reliance["exchange"] == "NSI"
    assert reliance["price"] == 1192.4
    assert reliance["change"] == 0.1

    index = by_id["^NSEI"]
    assert (index["price"], index["currency"], index["quote_type"]) == (25693.75, "INR", 9)
    assert "day_volume" not in index

    rupee = by_id["INR=X"]
    assert (rupee["price"], rupee["price_hint"], rupee["quote_type"]) == (88.7266, "4", 14)
    assert rupee["previous_close"] == 88.7265

    bitcoin = by_id["BTC-USD"]
    assert (
        bitcoin["day_volume"] == bitcoin["last_size"] == bitcoin["vol_24hr"] == bitcoin["vol_all_currencies"]
    )
    assert bitcoin["from_currency"] == "BTC"
    assert bitcoin["circulating_supply"] == 19_941_792.0
    assert sent["BTC-USD"].volume is None, "a rolling amount is no traded quantity"

    option = by_id["AAPL261218P00300000"]
    assert option["options_type"] == "1"
    assert option["strike_price"] == 300.0
    assert option["expire_date"] == "1797552000"
    assert option["underlying_symbol"] == "AAPL"
    assert option["bid"] == 11.45
    assert option["ask"] == 11.47
    assert "mini_option" not in option, "zero is on the wire, the SDK drops it"


async def test_the_yahoo_sdk_cannot_tell_a_premarket_zero_from_nothing() -> None:
    async with (
        YahooSimulator(rate=0, market_hours=0) as yahoo,
        YahooClient(yahoo.url, ["AAPL"]) as client,
    ):
        (snapshot,) = await client.messages(1)
    assert "market_hours" not in snapshot, "explicit zero on the wire, dropped by the SDK"
    assert "day_volume" not in snapshot, "no volume outside regular hours"
