"""Every fault of the simulators really happens on the wire, is counted, and can be lifted.

Real: sockets and plain clients. A drill that relies on a fault rests on these tests.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import socket
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest

from services.wire import dhan as wire
from services.wire import yahoo as yahoo_wire
from simulators import DhanSimulator, Market, YahooSimulator, connection, faults
from tests.support.eventually import FACTOR, eventually
from tests.support.simulator_clients import (
    NIFTY,
    RELIANCE,
    TCS,
    connected,
    dhan_client,
    feed_url,
    pairs,
    yahoo_client,
)


@pytest.fixture
async def dhan() -> AsyncIterator[DhanSimulator]:
    async with DhanSimulator(rate=0, market=Market(identity=True)) as simulator:
        yield simulator


@pytest.fixture
async def yahoo() -> AsyncIterator[YahooSimulator]:
    async with YahooSimulator(rate=0, market=Market(identity=True)) as simulator:
        yield simulator


# Connections.


@pytest.mark.parametrize("code", [1000, 1001, 1008, 1011, 1012, 1013])
async def test_any_close_code_can_be_sent(yahoo: YahooSimulator, code: int) -> None:
    async with yahoo_client(yahoo, "AAPL") as client:
        assert await yahoo.inject(faults.Close(code=code, reason="drill")) == 1
        assert await client.end() == code
    await eventually(lambda: not yahoo.connections)
    assert yahoo.journal.connections[-1].reason == f"close {code}"


async def test_only_the_chosen_connection_is_closed(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan) as first, dhan_client(dhan) as second:
        assert await dhan.inject(faults.Close(connection=2)) == 1
        assert await second.end() == 1000
        assert await first.silent()


def _handshake(sim: DhanSimulator) -> bytes:
    target = feed_url(sim).removeprefix(sim.url)
    return (
        f"GET {target} HTTP/1.1\r\nHost: sim\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )


async def test_an_abort_is_a_reset_without_a_close_frame(dhan: DhanSimulator) -> None:
    reader, writer = await asyncio.open_connection(dhan.host, dhan.port)
    writer.write(_handshake(dhan))
    assert b"101 Switching Protocols" in await reader.readuntil(b"\r\n\r\n")
    await eventually(lambda: len(dhan.connections) == 1)
    await dhan.inject(faults.Abort())
    with pytest.raises(ConnectionResetError):
        await reader.read()
    writer.close()
    await eventually(lambda: not dhan.connections)


async def test_a_refusing_simulator_refuses_new_connections_and_keeps_open_ones(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan, RELIANCE) as client:
        await dhan.inject(faults.Refuse())
        with pytest.raises(aiohttp.ClientConnectorError):
            async with connected(feed_url(dhan)):
                pass
        dhan.emit(RELIANCE)
        assert await client.dhan()
    await dhan.inject(faults.Refuse(on=False))
    async with dhan_client(dhan, RELIANCE):
        """Let in again, on the same port."""


async def test_a_hanging_handshake_is_never_answered_until_it_is_released(dhan: DhanSimulator) -> None:
    await dhan.inject(faults.Hang())
    reader, writer = await asyncio.open_connection(dhan.host, dhan.port)
    writer.write(_handshake(dhan))
    await eventually(lambda: dhan.fault_counts["hang"] == 1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.read(1), 0.3)
    await dhan.inject(faults.Clear())
    assert await reader.read() == b""
    writer.close()
    await _open_and_leave(feed_url(dhan))


async def _open_and_leave(url: str) -> None:
    async with connected(url):
        pass


@pytest.mark.parametrize("status", [200, 302, 401, 403, 429, 503])
async def test_the_handshake_can_be_answered_with_any_status(yahoo: YahooSimulator, status: int) -> None:
    await yahoo.inject(faults.HandshakeStatus(status=status, retry_after_s=30, body="<html>"))
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await _open_and_leave(yahoo.url)
    assert refused.value.status == status
    assert refused.value.headers is not None
    assert refused.value.headers["Retry-After"] == "30"
    await yahoo.inject(faults.HandshakeStatus(status=None))
    await _open_and_leave(yahoo.url)


@pytest.mark.parametrize(("how", "seen"), [(1011, 1011), ("abort", None)])
async def test_connections_can_be_ended_right_after_the_handshake(
    dhan: DhanSimulator, how: int | str, seen: int | None
) -> None:
    await dhan.inject(faults.CloseOnConnect(how=how))  # type: ignore[arg-type]
    for _ in range(3):
        async with connected(feed_url(dhan)) as client:
            assert await client.end() == seen
    assert dhan.fault_counts["close_on_connect"] == 3


async def test_a_mute_connection_answers_pings_and_sends_nothing() -> None:
    async with DhanSimulator(rate=100) as sim, dhan_client(sim, RELIANCE) as client:
        await sim.inject(faults.Mute())
        while not await client.silent():
            """What was on its way."""
        await client.socket.ping(b"there?")
        async with asyncio.timeout(5 * FACTOR):
            sim.ping_interval_s = 0.2
            assert await client.silent(), "pings of the server are answered, no data comes"
        await client.subscribe(TCS)
        assert await client.silent(), "no snapshot either"
        await sim.inject(faults.Mute(on=False))
        assert await client.dhan()


async def test_one_symbol_can_fall_silent_alone(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan, RELIANCE, TCS) as client:
        await dhan.inject(faults.Mute(symbols=(RELIANCE,)))
        assert dhan.emit(RELIANCE) == []
        dhan.emit(TCS)
        assert (await client.dhan())[0].security_id == 11536
        await dhan.inject(faults.Mute(symbols=(RELIANCE,), on=False))
        dhan.emit(RELIANCE)
        assert (await client.dhan())[0].security_id == 2885


async def test_a_paused_market_stands_still_and_goes_on() -> None:
    async with YahooSimulator(rate=100) as sim, yahoo_client(sim, "AAPL") as client:
        await sim.inject(faults.Pause())
        while not await client.silent():
            """What was on its way."""
        made = sim.ticks_made
        assert await client.silent()
        assert sim.ticks_made == made
        await sim.inject(faults.Pause(on=False))
        assert await client.yahoo()


async def test_subscriptions_can_be_dropped(dhan: DhanSimulator, yahoo: YahooSimulator) -> None:
    for sim in (dhan, yahoo):
        await sim.inject(faults.DropSubscriptions(probability=1.0))
    async with dhan_client(dhan) as one, yahoo_client(yahoo) as other:
        await one.subscribe(RELIANCE, TCS)
        await other.subscribe_yahoo(["AAPL"])
        await eventually(lambda: dhan.fault_counts["drop_subscriptions"] == 2)
        await eventually(lambda: yahoo.fault_counts["drop_subscriptions"] == 1)
        assert not dhan.watched() | yahoo.watched()


# Frames.


async def test_garbage_is_sent_as_it_is(dhan: DhanSimulator, yahoo: YahooSimulator) -> None:
    async with dhan_client(dhan) as one, yahoo_client(yahoo) as other:
        await dhan.inject(faults.Garbage(data="deadbeef", count=2))
        assert [await one.frame() for _ in range(2)] == [b"\xde\xad\xbe\xef"] * 2
        await yahoo.inject(faults.Garbage(text="<html>not json</html>"))
        assert await other.frame() == "<html>not json</html>"


async def test_a_truncated_packet_is_damaged_and_the_next_one_is_whole(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan, RELIANCE) as client:
        await dhan.inject(faults.Truncated(symbol=RELIANCE, size=11))
        (torn,) = dhan.emit(RELIANCE)
        assert torn.fault == "truncated"
        frame = await client.frame()
        records, damage = wire.decode_frame(frame)
        assert (len(frame), records) == (11, [])
        assert damage is not None
        (whole,) = dhan.emit(RELIANCE)
        assert whole.fault is None
        assert (await client.dhan())[0].ltp == whole.float32


async def test_a_truncated_yahoo_message_is_torn_inside_a_field(yahoo: YahooSimulator) -> None:
    async with yahoo_client(yahoo, "AAPL") as client:
        await yahoo.inject(faults.Truncated(symbol="AAPL"))
        yahoo.emit("AAPL")
        with pytest.raises(yahoo_wire.WireFormatError):
            yahoo_wire.decode_frame(await client.frame())


async def test_packets_can_be_stacked_in_one_frame() -> None:
    async with DhanSimulator(rate=2_000, market=Market(identity=True)) as sim:
        await sim.inject(faults.Stacked(packets=5))
        async with dhan_client(sim) as client:
            await client.subscribe(RELIANCE, NIFTY)
            records = []
            sizes = set()
            while len(records) < 400:
                packets = await client.dhan()
                sizes.add(len(packets))
                records += [packet for packet in packets if isinstance(packet, wire.Ticker)]
        sent = sim.journal.ticks[: len(records)]
    assert max(sizes) == 5
    assert [record.ltp for record in records] == [tick.float32 for tick in sent]


async def test_packets_of_every_odd_kind_can_be_sent(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan) as client:
        await dhan.inject(faults.UnknownPacket(code=99, length=20, symbol=RELIANCE))
        (unknown,) = await client.dhan()
        assert isinstance(unknown, wire.Unknown)
        assert (unknown.code, unknown.length, unknown.security_id) == (99, 20, 2885)
        await dhan.inject(faults.Heartbeat())
        assert isinstance((await client.dhan())[0], wire.Heartbeat)
        await dhan.inject(faults.MarketStatusPacket(segment=1))
        assert (await client.dhan())[0] == wire.MarketStatus(segment=1, security_id=0)
        await dhan.inject(faults.Disconnect(reason=800))
        assert await client.dhan_end() == (800, 1000)


async def test_messages_of_every_odd_kind_can_be_sent(yahoo: YahooSimulator) -> None:
    async with yahoo_client(yahoo) as client:
        await yahoo.inject(faults.OtherEnvelope(type="status"))
        assert yahoo_wire.decode_frame(await client.frame()) is None
        await yahoo.inject(faults.BadBase64())
        with pytest.raises(yahoo_wire.WireFormatError, match="base64"):
            yahoo_wire.decode_frame(await client.frame())
        await yahoo.inject(faults.Heartbeat())
        beat = await client.yahoo()
        assert (beat.quote_type, beat.price) == (7, None)


async def test_the_session_in_messages_can_be_wrong(yahoo: YahooSimulator) -> None:
    async with yahoo_client(yahoo, "AAPL") as client:
        await yahoo.inject(faults.MarketHours(value=0))
        yahoo.emit("AAPL")
        data = await client.yahoo()
        assert data.market_hours == 0
        assert data.day_volume is not None, "the fields of the true session"


async def test_frames_can_be_duplicated_and_the_journal_says_so(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan, RELIANCE) as client:
        await dhan.inject(faults.Duplicate(copies=3))
        (sent,) = dhan.emit(RELIANCE)
        assert sent.copies == 3
        assert len({await client.frame() for _ in range(3)}) == 1
        assert await client.silent()
        assert dhan.fault_counts["duplicate"] == 3


# Values.


async def test_ticks_can_arrive_out_of_order_and_none_is_lost(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan, RELIANCE) as client:
        await dhan.inject(faults.OutOfOrder(every=3))
        for _ in range(7):
            dhan.emit(RELIANCE)
        prices = [round((await client.dhan())[0].ltp, 2) for _ in range(7)]
        assert prices == [1192.4, 1192.5, 1192.7, 1192.6, 1192.8, 1193.0, 1192.9]
        dhan.emit(RELIANCE)
        assert (await client.dhan())[0].ltp == pytest.approx(1193.1)
        dhan.emit(RELIANCE)
        assert await client.silent(), "held back"
        await dhan.inject(faults.Clear())
        assert (await client.dhan())[0].ltp == pytest.approx(1193.2)
    assert sorted(tick.seq for tick in dhan.journal.ticks_of(RELIANCE)) == list(range(10))


@pytest.mark.parametrize(
    ("value", "holds"),
    [
        ("nan", math.isnan),
        ("inf", lambda price: price == math.inf),
        ("-inf", lambda price: price == -math.inf),
        ("zero", lambda price: price == 0.0),
        ("negative", lambda price: price < 0.0),
        ("absurd", lambda price: price > 1e29),
    ],
)
async def test_prices_can_be_damaged_for_a_number_of_ticks(
    dhan: DhanSimulator, yahoo: YahooSimulator, value: str, holds: object
) -> None:
    assert callable(holds)
    fault = faults.BadPrice(value=value, count=2)  # type: ignore[arg-type]
    async with dhan_client(dhan, RELIANCE, mode="full") as one, yahoo_client(yahoo, "AAPL") as other:
        await dhan.inject(fault)
        await yahoo.inject(fault)
        for _ in range(3):
            dhan.emit(RELIANCE)
            yahoo.emit("AAPL")
        prices = [(await one.dhan())[0].ltp for _ in range(3)]
        others = [(await other.yahoo()).price for _ in range(3)]
    assert [bool(holds(price)) for price in prices] == [True, True, False]
    assert [bool(holds(price)) for price in others] == [True, True, False]
    assert [tick.fault for tick in dhan.journal.ticks_of(RELIANCE)[1:]] == [f"price_{value}"] * 2 + [None]


async def test_only_the_chosen_symbols_get_damaged_prices(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan, RELIANCE, TCS) as client:
        await dhan.inject(faults.BadPrice(value="zero", symbols=(TCS,)))
        dhan.emit(RELIANCE)
        dhan.emit(TCS)
        assert [(await client.dhan())[0].ltp > 0 for _ in range(2)] == [True, False]


async def test_event_times_can_be_skewed(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan, RELIANCE) as client:
        await dhan.inject(faults.Skew(ms=-19_800_000))
        dhan.emit(RELIANCE)
        assert abs((await client.dhan())[0].ltt - time.time()) < 3, "as if the shift were forgotten"


async def test_a_snapshot_can_be_as_old_as_wanted(dhan: DhanSimulator, yahoo: YahooSimulator) -> None:
    for sim in (dhan, yahoo):
        await sim.inject(faults.SnapshotAge(seconds=60 * 3600))
    async with dhan_client(dhan) as one, yahoo_client(yahoo) as other:
        await one.subscribe(RELIANCE)
        await other.subscribe_yahoo(["AAPL"])
        assert time.time() - ((await one.dhan())[0].ltt - 19_800) == pytest.approx(216_000, abs=5)
        assert time.time() - ((await other.yahoo()).time or 0) / 1000 == pytest.approx(216_000, abs=5)
        assert dhan.journal.ticks[0].snapshot


async def test_a_plain_snapshot_repeats_the_last_trade_with_its_own_time(dhan: DhanSimulator) -> None:
    dhan.emit(RELIANCE, price="1201.10", event_ms=1_795_000_000_000)
    async with dhan_client(dhan) as client:
        await client.subscribe(RELIANCE)
        (snapshot,) = await client.dhan()
        assert wire.utc_ms(snapshot.ltt) == 1_795_000_000_000
        assert snapshot.ltp == pytest.approx(1201.1)


async def test_volume_and_price_can_be_set_to_anything(dhan: DhanSimulator) -> None:
    async with dhan_client(dhan, RELIANCE, mode="quote") as client:
        (sent,) = dhan.emit(RELIANCE, price="1250.07", quantity=70_000, volume=70_500)
        (quote,) = await client.dhan()
        assert sent.price_text == "1250.07"
        assert (quote.ltp, quote.volume, quote.ltq) == (sent.float32, 70_500, 65_535)
        with pytest.raises(KeyError):
            dhan.emit("NSE_EQ:999999")


async def test_a_flood_multiplies_the_rate() -> None:
    async with DhanSimulator(rate=20) as sim, dhan_client(sim, RELIANCE) as client:
        await sim.inject(faults.Flood(factor=100))
        before = sim.ticks_made
        started = time.monotonic()
        for _ in range(600):
            await client.dhan()
        elapsed = time.monotonic() - started
        assert sim.ticks_made - before >= 600
        # 600 ticks take 30 s at the plain rate and 0.3 s in the flood.
        assert elapsed < 10 * FACTOR


async def test_a_client_that_does_not_read_costs_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_CONGESTED_BYTES", 64 * 1024)
    symbols = [f"NSE_EQ:{number}" for number in range(100_000, 100_100)]
    async with DhanSimulator(rate=500, any_symbol=True) as sim:
        stuck = socket.create_connection((sim.host, sim.port))
        with stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            payload = wire.subscribe_messages(wire.FeedMode.FULL, pairs(*symbols))[0].encode()
            frame = bytes((0x81, 0xFE)) + len(payload).to_bytes(2, "big") + bytes(4) + payload
            stuck.sendall(_handshake(sim) + frame)
            skipping = await eventually(
                lambda: next((it for it in sim.connections.values() if it.skipped > 1_000), None), within_s=15
            )
            async with dhan_client(sim, RELIANCE) as other:
                assert await other.dhan(), "the others are served"
            assert skipping.number == 1
            # What is skipped is not said to be sent.
            journaled = sum(tick.connection == 1 for tick in sim.journal.ticks)
            assert journaled == skipping.frames_sent


async def test_clear_lifts_every_lasting_fault(dhan: DhanSimulator) -> None:
    for fault in (
        faults.Mute(),
        faults.Pause(),
        faults.Duplicate(),
        faults.Stacked(),
        faults.Skew(ms=5),
        faults.HandshakeStatus(),
        faults.CloseOnConnect(),
        faults.Refuse(),
    ):
        await dhan.inject(fault)
    await dhan.inject(faults.Clear())
    assert dhan.faults == faults.FaultState()
    async with dhan_client(dhan, RELIANCE) as client:
        dhan.emit(RELIANCE)
        assert len(await client.dhan()) == 1


async def test_a_fault_of_the_other_vendor_is_refused(dhan: DhanSimulator, yahoo: YahooSimulator) -> None:
    with pytest.raises(ValueError, match="dhan cannot have the fault 'bad_base64'"):
        await dhan.inject(faults.BadBase64())
    with pytest.raises(ValueError, match="yahoo cannot have the fault 'stacked'"):
        await yahoo.inject(faults.Stacked())


async def test_rates_can_be_set_for_single_symbols() -> None:
    async with YahooSimulator(rate=0) as sim, yahoo_client(sim, "AAPL", "MSFT") as client:
        sim.set_rate(100, ["MSFT"])
        seen = {(await client.yahoo()).id for _ in range(20)}
        assert seen == {"MSFT"}
        sim.set_rate(100)
        await _until_seen(client, "AAPL")


async def _until_seen(client: object, symbol: str) -> None:
    for _ in itertools.count():
        data = await client.yahoo()  # type: ignore[attr-defined]
        if data.id == symbol:
            return
