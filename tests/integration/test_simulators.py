"""The simulators keep the vendors' limits and their manners, seen through plain WebSocket clients.

Real: sockets, aiohttp and websockets clients. Every test runs against a simulator of its own.
"""

from __future__ import annotations

import asyncio
import csv
import io
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import aiohttp
import pytest
import websockets
from websockets.exceptions import ConnectionClosed

from data_migration.sources.yahoo_symbols import yahoo_symbol
from services.wire import dhan as wire
from services.wire import dhan_depth as depth_wire
from services.wire import yahoo as yahoo_wire
from simulators import DhanSimulator, Market, YahooSimulator, faults
from simulators.universe import dhan_specs, yahoo_rows
from tests.support.eventually import eventually
from tests.support.simulator_clients import (
    NIFTY,
    NIFTY_CALL,
    RELIANCE,
    TCS,
    connected,
    depth_url,
    dhan_client,
    feed_url,
    pairs,
    yahoo_client,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
async def dhan() -> AsyncIterator[DhanSimulator]:
    async with DhanSimulator(rate=0, market=Market(identity=True)) as simulator:
        yield simulator


@pytest.fixture
async def yahoo() -> AsyncIterator[YahooSimulator]:
    async with YahooSimulator(rate=0, market=Market(identity=True)) as simulator:
        yield simulator


# Dhan: who may connect.


async def test_a_sixth_socket_ends_the_oldest_with_805(dhan: DhanSimulator) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(dhan_client(dhan)) for _ in range(5)]
        assert await clients[0].silent()
        clients.append(await stack.enter_async_context(dhan_client(dhan)))
        assert await clients[0].dhan_end() == (805, 1000)
        await eventually(lambda: len(dhan.connections) == 5)
        for client in clients[1:]:
            assert await client.silent(0.02)


async def test_the_limit_of_sockets_holds_for_each_type_of_feed(dhan: DhanSimulator) -> None:
    async with AsyncExitStack() as stack:
        live = [await stack.enter_async_context(dhan_client(dhan)) for _ in range(5)]
        await stack.enter_async_context(connected(depth_url(dhan, 20)))
        assert await live[0].silent()
        assert len(dhan.connections) == 6


@pytest.mark.parametrize("rejection", ["808", "809", "810"])
async def test_a_bad_token_is_answered_with_a_disconnect_packet(dhan: DhanSimulator, rejection: str) -> None:
    await dhan.inject(faults.RejectTokens(reaction=rejection))  # type: ignore[arg-type]
    async with connected(feed_url(dhan, token="nonsense")) as client:
        assert await client.dhan_end() == (int(rejection), 1000)


async def test_a_bad_token_can_be_answered_with_a_bare_drop_after_the_handshake(dhan: DhanSimulator) -> None:
    await dhan.inject(faults.RejectTokens(reaction="abort"))
    async with connected(feed_url(dhan, token="nonsense")) as client:
        assert await client.dhan_end() == (None, None)


@pytest.mark.parametrize("status", [429, 401])
async def test_a_bad_token_can_be_answered_with_an_http_status(dhan: DhanSimulator, status: int) -> None:
    await dhan.inject(faults.RejectTokens(reaction=f"http_{status}"))  # type: ignore[arg-type]
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        async with connected(feed_url(dhan, token="nonsense")):
            pass
    assert refused.value.status == status
    async with dhan_client(dhan, RELIANCE):
        """A good token is still let in."""


async def test_the_wrong_client_id_and_missing_parameters_are_refused(dhan: DhanSimulator) -> None:
    async with connected(feed_url(dhan, client_id="1234567890")) as client:
        assert await client.dhan_end() == (810, 1000)
    url = f"{dhan.url}/?version=2&token={dhan.access_token}&clientId={dhan.client_id}"
    async with connected(url) as client:
        assert await client.dhan_end() == (808, 1000)


async def test_without_a_data_plan_the_feed_answers_806(dhan: DhanSimulator) -> None:
    await dhan.inject(faults.DataPlan(active=False))
    async with connected(feed_url(dhan)) as client:
        assert await client.dhan_end() == (806, 1000)


async def test_an_expired_token_ends_its_connections_with_807_and_stays_refused(dhan: DhanSimulator) -> None:
    old = dhan.access_token
    async with dhan_client(dhan, RELIANCE) as client:
        await dhan.inject(faults.ExpireToken())
        assert await client.dhan_end() == (807, 1000)
    async with connected(feed_url(dhan, token=old)) as client:
        assert await client.dhan_end() == (807, 1000)
    new = dhan.tokens.issue()
    async with connected(feed_url(dhan, token=new)) as client:
        assert await client.silent()


async def test_the_server_pings_and_drops_a_client_that_does_not_answer() -> None:
    async with (
        DhanSimulator(rate=0, ping_interval_s=0.2, pong_timeout_s=0.8) as sim,
        connected(feed_url(sim)) as polite,
        connected(feed_url(sim), autoping=False) as rude,
    ):
        # A client answers pings while it reads.
        reading = asyncio.create_task(polite.message())
        message = await rude.message()
        assert message.type is aiohttp.WSMsgType.PING
        assert await rude.end() is None
        assert [event.reason for event in sim.journal.connections if event.event == "closed"] == ["no pong"]
        assert len(sim.connections) == 1
        assert not reading.done()
        reading.cancel()


# Dhan: what may be subscribed.


async def test_more_than_a_hundred_instruments_in_a_message_end_the_connection(dhan: DhanSimulator) -> None:
    rows = [{"ExchangeSegment": "NSE_EQ", "SecurityId": str(number)} for number in range(1, 102)]
    async with dhan_client(dhan) as client:
        await client.socket.send_json({"RequestCode": 15, "InstrumentCount": 101, "InstrumentList": rows})
        assert await client.dhan_end() == (804, 1000)


async def test_more_than_5000_instruments_on_a_connection_end_it() -> None:
    async with DhanSimulator(rate=0, any_symbol=True) as sim, dhan_client(sim) as client:
        symbols = [f"NSE_EQ:{number}" for number in range(100_000, 105_000)]
        await client.subscribe(*symbols)
        await eventually(lambda: len(sim.watched()) == 5_000)
        # A symbol that is subscribed already, also in another mode, takes no further place.
        await client.subscribe(symbols[0], mode=wire.FeedMode.FULL)
        await eventually(lambda: len(sim.watched()) == 5_001)
        await client.subscribe("NSE_EQ:200000")
        assert await client.dhan_end() == (804, 1000)


async def test_modes_are_independent_of_each_other(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan, RELIANCE, mode="ticker") as client:
        await client.subscribe(RELIANCE, mode=wire.FeedMode.FULL)
        assert [type(record) for record in await client.dhan()] == [wire.Full]
        dhan.emit(RELIANCE)
        kinds = {type((await client.dhan())[0]) for _ in range(2)}
        assert kinds == {wire.Ticker, wire.Full}
        await client.unsubscribe(RELIANCE, mode=wire.FeedMode.TICKER)
        await eventually(lambda: dhan.watched() == {(RELIANCE, "full")})
        dhan.emit(RELIANCE)
        assert [type(record) for record in await client.dhan()] == [wire.Full]


async def test_an_index_gets_its_previous_close_first_and_times_are_shifted_to_india(
    dhan: DhanSimulator,
) -> None:
    async with dhan_client(dhan) as client:
        before_s = int(time.time())
        await client.subscribe(NIFTY)
        (close,) = await client.dhan()
        (snapshot,) = await client.dhan()
        assert isinstance(close, wire.PreviousClose)
        assert close.prev_close == pytest.approx(25693.7, abs=0.01)
        assert isinstance(snapshot, wire.Ticker)
        assert 0 <= snapshot.ltt - 19_800 - before_s <= 2


async def test_a_quote_of_a_derivative_comes_with_its_open_interest(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan) as client:
        await client.subscribe(NIFTY_CALL, mode=wire.FeedMode.QUOTE)
        assert isinstance((await client.dhan())[0], wire.Quote)
        assert (await client.dhan())[0] == wire.OpenInterest(segment=2, security_id=42501, oi=520_000)


async def test_unknown_instruments_are_ignored_in_silence(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan) as client:
        await client.subscribe("NSE_EQ:999999")
        assert await client.silent()
        assert not dhan.watched()


async def test_a_security_id_may_be_a_number(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan) as client:
        row = {"ExchangeSegment": "NSE_EQ", "SecurityId": 2885}
        await client.socket.send_json({"RequestCode": 15, "InstrumentCount": 1, "InstrumentList": [row]})
        assert (await client.dhan())[0].security_id == 2885


async def test_the_binary_goodbye_of_the_sdk_is_ignored_and_request_12_closes(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan) as client:
        await client.socket.send_bytes(bytes([12, 83, 0]) + bytes(80))
        assert await client.silent()
        await client.socket.send_str(wire.disconnect_message())
        assert await client.dhan_end() == (None, 1000)


@pytest.mark.parametrize("text", ["nonsense", "[]", '{"RequestCode":"15"}'])
async def test_a_request_that_cannot_be_read_is_answered_with_814(dhan: DhanSimulator, text: str) -> None:
    async with dhan_client(dhan) as client:
        await client.socket.send_str(text)
        assert await client.dhan_end() == (814, 1000)


async def test_nothing_is_kept_over_connections(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan, RELIANCE):
        assert dhan.watched() == {(RELIANCE, "ticker")}
    await eventually(lambda: not dhan.connections)
    assert not dhan.watched()
    async with dhan_client(dhan) as client:
        assert dhan.emit(RELIANCE) == []
        assert await client.silent()


async def test_the_first_version_of_the_feed_refuses_a_bad_login(dhan: DhanSimulator) -> None:
    async with connected(dhan.url) as client:
        header = bytes([11]) + (585).to_bytes(2, "little") + dhan.client_id.encode().ljust(30, b"\0")
        await client.socket.send_bytes(header + bytes(50) + b"nonsense".ljust(500, b"\0") + b"2P")
        assert await client.dhan_end() == (809, 1000)


# Dhan: depth feeds.


async def test_twenty_levels_come_as_a_bid_and_an_ask_packet_in_one_message(dhan: DhanSimulator) -> None:
    async with connected(depth_url(dhan, 20)) as client:
        await client.socket.send_json(
            {
                "RequestCode": 23,
                "InstrumentCount": 1,
                "InstrumentList": [{"ExchangeSegment": "NSE_EQ", "SecurityId": "2885"}],
            }
        )
        records, damage = depth_wire.decode_depth_frame(await client.frame(), rows_in_header=False)
        assert damage is None
        assert [(it.side, len(it.levels)) for it in records] == [("bid", 20), ("ask", 20)]  # type: ignore[union-attr]
        await client.socket.send_json(
            {
                "RequestCode": 25,
                "InstrumentCount": 1,
                "InstrumentList": [{"ExchangeSegment": "NSE_EQ", "SecurityId": "2885"}],
            }
        )
        await eventually(lambda: not dhan.watched())


@pytest.mark.parametrize(
    ("levels", "symbols", "reason"),
    [
        (20, [f"NSE_EQ:{number}" for number in range(1, 52)], 804),
        (20, ["BSE_EQ:500325"], 814),
        (200, [RELIANCE, TCS], 804),
    ],
)
async def test_depth_feeds_have_limits_of_their_own(
    dhan: DhanSimulator, levels: int, symbols: list[str], reason: int
) -> None:
    rows = [{"ExchangeSegment": segment, "SecurityId": it} for segment, it in pairs(*symbols)]
    async with connected(depth_url(dhan, levels)) as client:
        await client.socket.send_json(
            {"RequestCode": 23, "InstrumentCount": len(rows), "InstrumentList": rows}
        )
        records, _ = depth_wire.decode_depth_frame(await client.frame(), rows_in_header=levels == 200)
        assert isinstance(records[0], depth_wire.DepthDisconnect)
        assert records[0].reason == reason
        assert await client.end() == 1000


async def test_two_hundred_levels_are_refused_to_a_token_made_by_an_app(dhan: DhanSimulator) -> None:
    dhan.tokens.issue(consumer="APP")
    async with connected(depth_url(dhan, 200)) as client:
        await client.socket.send_json({"RequestCode": 23, "ExchangeSegment": "NSE_EQ", "SecurityId": "2885"})
        records, _ = depth_wire.decode_depth_frame(await client.frame(), rows_in_header=True)
        assert isinstance(records[0], depth_wire.DepthDisconnect)
        assert records[0].reason == 808


# Dhan: REST.


async def test_the_rest_api_answers_in_the_vendors_error_bodies(dhan: DhanSimulator) -> None:
    good = {"access-token": dhan.access_token, "client-id": dhan.client_id}
    async with aiohttp.ClientSession() as session:
        url = f"{dhan.rest_url}/marketfeed/ltp"
        body = {"NSE_EQ": [2885]}
        async with session.post(url, json=body, headers=good) as answer:
            assert await answer.json() == {
                "data": {"NSE_EQ": {"2885": {"last_price": 1192.3}}},
                "status": "success",
            }
        async with session.post(url, json=body, headers=good) as answer:
            assert (answer.status, (await answer.json())["errorCode"]) == (429, "DH-904")
        async with session.get(f"{dhan.rest_url}/profile", headers={"access-token": "bad"}) as answer:
            assert (answer.status, (await answer.json())["errorCode"]) == (401, "DH-901")
        for _ in range(20):
            await (await session.get(f"{dhan.rest_url}/profile", headers=good)).read()
        async with session.get(f"{dhan.rest_url}/profile", headers=good) as answer:
            assert answer.status == 429, "twenty requests a second, not more"


async def test_the_quote_api_takes_a_thousand_instruments_and_not_one_more(dhan: DhanSimulator) -> None:
    good = {"access-token": dhan.access_token, "client-id": dhan.client_id}
    async with aiohttp.ClientSession() as session:
        body = {"NSE_EQ": list(range(1, 1002))}
        async with session.post(f"{dhan.rest_url}/marketfeed/ltp", json=body, headers=good) as answer:
            assert (answer.status, (await answer.json())["errorCode"]) == (400, "DH-905")


async def test_the_scrip_master_is_served_in_both_forms(dhan: DhanSimulator) -> None:
    async with aiohttp.ClientSession() as session:
        compact = await (await session.get(dhan.scrip_master_url)).text()
        detailed = await (
            await session.get(dhan.scrip_master_url.replace("master.csv", "master-detailed.csv"))
        ).text()
    rows = list(csv.DictReader(io.StringIO(compact)))
    assert len(rows[0]) == 16
    assert len(rows) == len(list(csv.DictReader(io.StringIO(detailed))))


# Yahoo.


async def test_the_stream_has_a_hundred_slots_first_come_first_served(yahoo: YahooSimulator) -> None:
    unknown = [f"NOPE{number}" for number in range(98)]
    async with yahoo_client(yahoo) as client:
        await client.subscribe_yahoo([*unknown, "AAPL"])
        assert (await client.yahoo()).id == "AAPL", "unknown symbols use slots in silence"
        await client.subscribe_yahoo(["MSFT", "NVDA"])
        assert (await client.yahoo()).id == "MSFT"
        assert await client.silent(), "the 101st is ignored"
        (connection,) = yahoo.connections.values()
        assert len(yahoo.slots_used(connection)) == 100
        await client.socket.send_str(yahoo_wire.unsubscribe_message(["NOPE0"]))
        await client.subscribe_yahoo(["NVDA"])
        assert (await client.yahoo()).id == "NVDA", "unsubscribing frees a slot, also of an unknown symbol"


async def test_subscribing_again_takes_no_slot_and_sends_no_second_snapshot(yahoo: YahooSimulator) -> None:
    async with yahoo_client(yahoo, "AAPL") as client:
        await client.subscribe_yahoo(["AAPL"])
        assert await client.silent()
        (sent,) = yahoo.emit("AAPL")
        assert (await client.yahoo()).day_volume == sent.volume


@pytest.mark.parametrize(
    "text",
    ['{"subscribe":"BTC-USD"}', "hello", '{"follow":["AAPL"]}', '{"subscribe":[null]}'],
)
async def test_a_malformed_request_ends_the_stream_without_a_status(yahoo: YahooSimulator, text: str) -> None:
    async with websockets.connect(yahoo.url) as client:
        await client.send(text)
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1005


async def test_empty_requests_are_harmless(yahoo: YahooSimulator) -> None:
    async with yahoo_client(yahoo) as client:
        for text in ('{"subscribe":[]}', "{}", '{"unsubscribe":["NEVER"]}'):
            await client.socket.send_str(text)
        assert await client.silent()
        await client.subscribe_yahoo(["AAPL"])
        assert (await client.yahoo()).id == "AAPL"


async def test_without_the_query_the_stream_speaks_version_one(yahoo: YahooSimulator) -> None:
    async with connected(yahoo.v1_url) as client:
        await client.subscribe_yahoo(["AAPL"])
        text = await client.frame()
        assert not text.startswith("{")
        data = yahoo_wire.decode_frame(text)
        assert data is not None
        assert data.id == "AAPL"


async def test_times_lie_on_a_whole_second_grid(yahoo: YahooSimulator) -> None:
    async with yahoo_client(yahoo, "AAPL") as client:
        yahoo.emit("AAPL", event_ms=1_795_000_000_987)
        assert (await client.yahoo()).time == 1_795_000_000_000


async def test_an_indian_share_carries_the_day_change_fields(yahoo: YahooSimulator) -> None:
    async with yahoo_client(yahoo, "RELIANCE.NS") as client:
        yahoo.emit("RELIANCE.NS")
        data = await client.yahoo()
        assert data.exchange == "NSI"
        assert data.full_day_change == data.change == pytest.approx(0.1, abs=1e-6)
        assert data.full_day_change_percent == data.change_percent


@pytest.mark.parametrize("session", [0, 2, 4])
async def test_outside_regular_hours_a_share_has_no_volume_and_says_its_session(session: int) -> None:
    async with YahooSimulator(rate=0, market_hours=session) as sim, yahoo_client(sim, "AAPL") as client:
        sim.emit("AAPL")
        data = await client.yahoo()
        assert data.market_hours == session, "also the zero is on the wire"
        assert data.day_volume is None
        assert data.last_size is None


async def test_the_rolling_volume_of_a_crypto_pair_sometimes_decreases(yahoo: YahooSimulator) -> None:
    async with yahoo_client(yahoo, "BTC-USD") as client:
        volumes = []
        for _ in range(12):
            yahoo.emit("BTC-USD")
            data = await client.yahoo()
            assert data.day_volume == data.last_size == data.vol_24hr == data.vol_all_currencies
            volumes.append(data.day_volume or 0)
    steps = [after - before for before, after in itertools.pairwise(volumes)]
    assert min(steps) < 0 < max(steps)


async def test_a_rate_against_the_dollar_answers_under_its_canonical_name(yahoo: YahooSimulator) -> None:
    async with yahoo_client(yahoo) as client:
        await client.subscribe_yahoo(["USDINR=X", "EURUSD=X"])
        assert [(await client.yahoo()).id for _ in range(2)] == ["INR=X", "EURUSD=X"]


async def test_unknown_symbols_are_served_only_on_request() -> None:
    async with YahooSimulator(rate=0, any_symbol=True) as sim, yahoo_client(sim, "ZZZZ") as client:
        await client.subscribe_yahoo(["not a symbol", "^ZZZ"])
        assert (await client.yahoo()).id == "^ZZZ"


# Both.


def test_every_instrument_of_the_shipped_list_is_known_to_the_simulators() -> None:
    with (ROOT / "data_migration" / "data" / "instruments.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 100
    dhan_names = {spec.name.replace(" ", "") for spec in dhan_specs().values()}
    for row in rows:
        listed = row.get("yahoo_symbol") or yahoo_symbol(row["exchange"], row["symbol"], row["asset_class"])
        assert listed in yahoo_rows(), row
        if row["exchange"] in ("NSE", "BSE"):
            assert f"{row['exchange']}:{row['symbol']}" in dhan_names, row


async def test_two_simulators_of_one_market_show_one_price() -> None:
    market = Market(seed=7)
    async with (
        DhanSimulator(rate=0, market=market) as dhan,
        YahooSimulator(rate=0, market=market) as yahoo,
        dhan_client(dhan, RELIANCE) as one,
        yahoo_client(yahoo, "RELIANCE.NS") as other,
    ):
        (sent,) = dhan.emit(RELIANCE)
        assert (await one.dhan())[0].ltp == sent.float32
        yahoo.emit("RELIANCE.NS", quantity=11)
        shown = await other.yahoo()
        assert shown.price == sent.float32
        assert shown.day_volume == 9_870_000 + sent.quantity + 11


async def test_a_client_receives_exactly_what_the_journal_says() -> None:
    async with DhanSimulator(rate=200, market=Market(identity=True)) as sim:
        async with dhan_client(sim) as client:
            await client.subscribe(RELIANCE, TCS, mode=wire.FeedMode.QUOTE)
            received = [(await client.dhan())[0] for _ in range(200)]
        sent = sim.journal.ticks[: len(received)]
    assert [(it.security_id, it.ltp, it.volume) for it in received] == [
        (int(tick.symbol.partition(":")[2]), tick.float32, tick.volume) for tick in sent
    ]
    assert [tick.seq for tick in sent if tick.symbol == RELIANCE] == list(
        range(sum(tick.symbol == RELIANCE for tick in sent))
    ), "each tick once, in order"


@pytest.mark.parametrize("compression", [False, True])
async def test_compression_is_agreed_only_when_it_is_on(compression: bool) -> None:
    async with YahooSimulator(rate=0, compression=compression) as sim, websockets.connect(sim.url) as client:
        agreed = client.response is not None and "Sec-WebSocket-Extensions" in client.response.headers
        assert agreed is compression
        await client.send(yahoo_wire.subscribe_message(["AAPL", "MSFT"]))
        received = [yahoo_wire.decode_frame(await client.recv()) for _ in range(2)]
        assert [data.id for data in received if data is not None] == ["AAPL", "MSFT"]
