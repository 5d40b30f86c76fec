"""The WebSocket protocol, spoken by a real client over real sockets."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.support.eventually import eventually
from tests.support.gateway import ask, running_gateway


async def receive(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    message: dict[str, Any] = await socket.receive_json(timeout=5)
    return message


async def test_subscribing_answers_with_snapshot_and_position_and_then_ticks_come() -> None:
    async with running_gateway() as rig:
        before = rig.market.tick("NSE:RELIANCE", 2456.75, bid=2456.7, ask=2456.8, oi=5)
        socket, answer = await rig.subscriber("NSE:RELIANCE", "NASDAQ:AAPL", "NSE:NOPE", "nonsense", "BSE:*")
        assert answer == {
            "type": "subscribed",
            "id": 1,
            "accepted": ["NSE:RELIANCE", "NASDAQ:AAPL"],
            "rejected": {
                "NSE:NOPE": "unknown_instrument",
                "nonsense": "malformed",
                "BSE:*": "unknown_exchange",
            },
            "epoch": "epoch-1",
            "position": {"NASDAQ": "0-0", "NSE": before.position},
            "snapshot": {
                "NSE:RELIANCE": {
                    "last_price": 2456.75,
                    "ltq": 10,
                    "ts_ms": before.timestamp,
                    "bid": 2456.7,
                    "ask": 2456.8,
                    "oi": 5,
                    "src": "DHAN",
                }
            },
        }
        tick = rig.market.tick("NASDAQ:AAPL", 190.5, volume=None)
        assert await receive(socket) == {
            "type": "raw_tick",
            "data": {"NASDAQ:AAPL": {"last_price": 190.5, "ts_ms": tick.timestamp, "src": "DHAN"}},
            "position": {"NASDAQ": tick.position},
        }
        assert rig.backend.interest == {"NSE:RELIANCE", "NASDAQ:AAPL"}
        await socket.close()
        await eventually(lambda: rig.backend.interest == set())


async def test_delivery_all_sends_every_tick_in_order_and_one_instrument_once_a_frame() -> None:
    async with running_gateway() as rig:
        socket, _ = await rig.subscriber("NSE:RELIANCE", "NSE:TCS", delivery="all")
        expected = []
        for price in range(1, 501):
            instrument = "NSE:RELIANCE" if price % 3 else "NSE:TCS"
            rig.market.tick(instrument, float(price))
            expected.append((instrument, float(price)))
            if price % 50 == 0:
                await asyncio.sleep(0)
        received: list[tuple[str, float]] = []
        last_position = (0, 0)
        while len(received) < len(expected):
            frame = await receive(socket)
            ms, _, seq = frame["position"]["NSE"].partition("-")
            assert (int(ms), int(seq)) > last_position
            last_position = (int(ms), int(seq))
            received.extend((key, data["last_price"]) for key, data in frame["data"].items())
        assert received == expected


async def test_delivery_latest_sends_the_newest_value_of_a_burst_once() -> None:
    async with running_gateway() as rig:
        socket, _ = await rig.subscriber("NSE:RELIANCE", "NSE:TCS", every_ms=50)
        for price in range(1, 1_001):
            rig.market.tick("NSE:RELIANCE", float(price))
        rig.market.tick("NSE:TCS", 7.0)
        frame = await receive(socket)
        assert {key: data["last_price"] for key, data in frame["data"].items()} == {
            "NSE:RELIANCE": 1_000.0,
            "NSE:TCS": 7.0,
        }
        rig.market.tick("NSE:RELIANCE", 1_001.0)
        frame = await receive(socket)
        assert frame["data"].keys() == {"NSE:RELIANCE"}


async def test_late_ticks_reach_those_who_want_all_and_not_those_who_want_the_newest() -> None:
    async with running_gateway() as rig:
        newest, _ = await rig.subscriber("NSE:TCS", every_ms=10)
        every, _ = await rig.subscriber("NSE:TCS", delivery="all")
        rig.market.tick("NSE:TCS", 100.0)
        rig.market.tick("NSE:TCS", 99.0, timestamp=1_600_000_000_000, flags=4)
        rig.market.tick("NSE:TCS", 101.0)
        prices = [data["last_price"] for _ in range(3) for data in (await receive(every))["data"].values()]
        assert prices == [100.0, 99.0, 101.0]
        seen = []
        while not seen or seen[-1] != 101.0:
            seen.extend(data["last_price"] for data in (await receive(newest))["data"].values())
        assert 99.0 not in seen


async def test_each_client_keeps_its_own_pace() -> None:
    async with running_gateway() as rig:
        quick, _ = await rig.subscriber("NSE:TCS", every_ms=10)
        slow, _ = await rig.subscriber("NSE:TCS", every_ms=400)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 1.3
        price = 0.0
        while loop.time() < until_s:
            price += 1.0
            rig.market.tick("NSE:TCS", price)
            await asyncio.sleep(0.005)
        counts = {}
        for name, socket in (("quick", quick), ("slow", slow)):
            frames = 0
            last = 0.0
            while last < price:
                last = (await receive(socket))["data"]["NSE:TCS"]["last_price"]
                frames += 1
            counts[name] = frames
        assert counts["slow"] <= 5
        assert counts["quick"] >= 20


async def test_control_records_come_in_order_with_the_data() -> None:
    async with running_gateway() as rig:
        for fields in ({"delivery": "all"}, {"every_ms": 200}):
            socket, _ = await rig.subscriber("NSE:TCS", "NSE:RELIANCE", **fields)
            rig.market.tick("NSE:TCS", 1.0)
            gap = rig.market.control("gap", "NSE:TCS", **{"from": 5, "to": 9, "reason": "reset"})
            rig.market.tick("NSE:TCS", 2.0)
            rig.market.control("stale", "NASDAQ:AAPL")
            rig.market.control("session", "NSE:*", state="close")
            frames = [await receive(socket) for _ in range(4)]
            assert [frame["type"] for frame in frames] == ["raw_tick", "gap", "raw_tick", "session"]
            assert frames[0]["data"]["NSE:TCS"]["last_price"] == 1.0
            assert frames[1] == {
                "type": "gap",
                "instrumentKey": "NSE:TCS",
                "ts_ms": gap.timestamp,
                "src": "DHAN",
                "from": 5,
                "to": 9,
                "reason": "reset",
                "position": {"NSE": gap.position},
            }
            assert frames[2]["data"]["NSE:TCS"]["last_price"] == 2.0
            assert frames[3]["instrumentKey"] == "NSE:*"
            await socket.close()


async def test_a_second_subscribe_adds_and_changes_delivery_and_list_shows_it() -> None:
    async with running_gateway() as rig:
        socket, _ = await rig.subscriber("NSE:TCS", every_ms=60_000)
        rig.market.tick("NSE:TCS", 1.0)
        answer = await ask(
            socket, action="subscribe", id=2, instruments=["NSE:TCS", "NASDAQ:AAPL"], delivery="all"
        )
        assert answer["snapshot"]["NSE:TCS"]["last_price"] == 1.0
        rig.market.tick("NSE:TCS", 2.0)
        assert (await receive(socket))["data"]["NSE:TCS"]["last_price"] == 2.0
        listed = await ask(socket, action="list", id="l")
        assert listed["type"] == "subscriptions"
        assert listed["id"] == "l"
        assert {key: watch["delivery"] for key, watch in listed["instruments"].items()} == {
            "NSE:TCS": "all",
            "NASDAQ:AAPL": "all",
        }


async def test_a_wildcard_means_all_of_the_exchange_now_and_later() -> None:
    async with running_gateway() as rig:
        socket, answer = await rig.subscriber("NSE:*", delivery="all")
        assert answer["accepted"] == ["NSE:*"]
        assert (await ask(socket, action="unsubscribe", id=2, instruments=["NSE:TCS"]))["instruments"] == [
            "NSE:TCS"
        ]
        rig.backend.keys = ["NSE:TCS", "NSE:INFY", "NASDAQ:AAPL"]
        rig.gateway.catalogue_changed()
        listed = await ask(socket, action="list")
        assert listed["instruments"].keys() == {"NSE:INFY"}
        assert listed["wildcards"] == ["NSE:*"]
        rig.market.tick("NSE:INFY", 5.0)
        assert (await receive(socket))["data"].keys() == {"NSE:INFY"}
        gone = await ask(socket, action="unsubscribe", id=3, instruments=["NSE:*"])
        assert gone == {"type": "unsubscribed", "id": 3, "instruments": ["NSE:INFY"]}
        assert rig.backend.interest == set()


async def test_after_unsubscribing_nothing_more_comes() -> None:
    async with running_gateway() as rig:
        socket, _ = await rig.subscriber("NSE:TCS", "NSE:RELIANCE", every_ms=50)
        rig.market.tick("NSE:TCS", 1.0)
        answer = await ask(socket, action="unsubscribe", id=9, instruments=["NSE:TCS", "NSE:NOPE"])
        assert answer == {"type": "unsubscribed", "id": 9, "instruments": ["NSE:TCS"]}
        rig.market.tick("NSE:TCS", 2.0)
        rig.market.tick("NSE:RELIANCE", 3.0)
        assert (await receive(socket))["data"].keys() == {"NSE:RELIANCE"}


async def test_pings_are_answered_in_both_layers() -> None:
    async with running_gateway() as rig:
        client = await rig.raw_client()
        await client.send({"action": "ping", "id": 3})
        assert await client.read(4_096) == [{"type": "pong", "id": 3}]
        await client.send(b"are you there", 0x89)
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client.connection, 100), 5)
        assert b"\x8a\x0dare you there" in client.buffer + data


async def test_resuming_is_all_or_nothing() -> None:
    async with running_gateway() as rig:
        tick = rig.market.tick("NSE:TCS", 1.0)
        here = {"epoch": "epoch-1", "position": {"NSE": tick.position}}
        socket, answer = await rig.subscriber("NSE:TCS", resume=here)
        assert answer["recovered"] is True
        assert answer["snapshot"] == {}
        for resume in (
            {"epoch": "epoch-0", "position": {"NSE": tick.position}},
            {"epoch": "epoch-1", "position": {"NSE": "1-1"}},
            {"epoch": "epoch-1", "position": {}},
        ):
            answer = await ask(socket, action="subscribe", instruments=["NSE:TCS"], resume=resume)
            assert answer["recovered"] is False
            assert answer["snapshot"]["NSE:TCS"]["last_price"] == 1.0
        rig.market.tick("NSE:RELIANCE", 2.0)
        answer = await ask(socket, action="subscribe", instruments=["NSE:TCS"], resume=here)
        assert answer["recovered"] is False


async def test_the_chart_channel_is_accepted_and_brings_no_ticks() -> None:
    async with running_gateway() as rig:
        socket, answer = await rig.subscriber("NSE:TCS", channels=["chart"], interval="5")
        assert answer["accepted"] == ["NSE:TCS"]
        rig.market.tick("NSE:TCS", 1.0)
        assert (await ask(socket, action="ping", id=1))["type"] == "pong"
        refused = await ask(
            socket, action="subscribe", id=2, instruments=["NSE:TCS"], channels=["chart"], interval="7"
        )
        assert (refused["type"], refused["id"], refused["code"]) == ("error", 2, "unknown_interval")


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"action": "subscribe", "id": 4}, "invalid_message"),
        ({"action": "fly", "id": 4}, "unknown_action"),
        (
            {"action": "subscribe", "id": 4, "instruments": ["NSE:TCS"], "channels": ["orders"]},
            "unknown_channel",
        ),
    ],
)
async def test_a_refused_message_is_answered_and_the_session_goes_on(
    message: dict[str, Any], code: str
) -> None:
    async with running_gateway() as rig:
        socket = await rig.connect()
        error = await ask(socket, **message)
        assert (error["type"], error["id"], error["code"]) == ("error", 4, code)
        assert error["message"]
        assert (await ask(socket, action="ping", id=5))["id"] == 5


async def test_binary_messages_are_refused() -> None:
    async with running_gateway() as rig:
        socket = await rig.connect()
        await socket.send_bytes(b'{"action":"ping"}')
        assert (await receive(socket))["code"] == "text_only"


async def test_a_seeded_value_is_in_the_snapshot_and_is_not_part_of_the_stream() -> None:
    async with running_gateway() as rig:
        socket, _ = await rig.subscriber("NSE:TCS", every_ms=10)
        newest = rig.market.tick("NASDAQ:AAPL", 1.0)
        newest.symbol, newest.exchange, newest.timestamp = "NSE:TCS", "NSE", 5
        rig.broadcast.seed([newest])
        frame = await receive(socket)
        assert frame["data"]["NSE:TCS"]["last_price"] == 1.0
        assert frame["position"] == {}
        _, answer = await rig.subscriber("NSE:TCS")
        assert answer["snapshot"]["NSE:TCS"]["ts_ms"] == 5
