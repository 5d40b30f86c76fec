"""The channels quote and trade against the real gateway: made of the tick flow, each by its rules."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.gateway.limits import ClientLimits
from tests.support.eventually import FACTOR, eventually
from tests.support.gateway import GatewayRig, ask, running_gateway

TCS, RELIANCE = "NSE:TCS", "NSE:RELIANCE"
Socket = Any


async def next_of(socket: Socket, *kinds: str) -> dict[str, Any]:
    """Return the next message of one of these types; whatever else comes is passed over."""
    while True:
        message: dict[str, Any] = await socket.receive_json(timeout=5 * FACTOR)
        if message["type"] in kinds:
            return message


async def nothing_more(socket: Socket) -> None:
    """Check that nothing but the answer to a ping comes."""
    await socket.send_json({"action": "ping", "id": "quiet"})
    assert (await socket.receive_json(timeout=5 * FACTOR))["type"] == "pong"


def cut_all(rig: GatewayRig) -> None:
    for session in list(rig.gateway._sockets.sessions):
        session.abort(1006, "cut by the test")


async def test_each_tick_with_a_quantity_is_one_trade_with_price_time_and_position() -> None:
    async with running_gateway() as rig:
        before = rig.market.tick(TCS, 9.0, volume=4)
        socket, answer = await rig.subscriber(TCS, channels=["trade"])
        assert answer["snapshot"] == {}, "the ticks were not asked for"
        assert answer["snapshots"]["trade"][TCS] == {
            "price": 9.0,
            "quantity": 4,
            "ts_ms": before.timestamp,
            "src": "DHAN",
        }
        rig.market.tick(TCS, 10.0, volume=0)
        rig.market.tick(TCS, 10.0, volume=None)
        rig.market.tick(TCS, 10.0, volume=50, flags=1)
        first = rig.market.tick(TCS, 10.5, volume=3)
        rig.market.tick(RELIANCE, 99.0, volume=3)
        second = rig.market.tick(TCS, 10.25, volume=7, flags=4)
        heard = [await socket.receive_json(timeout=5 * FACTOR) for _ in range(2)]
        assert [message["type"] for message in heard] == ["trade", "trade"]
        assert [message["data"] for message in heard] == [
            {TCS: {"price": 10.5, "quantity": 3, "ts_ms": first.timestamp, "src": "DHAN"}},
            {
                TCS: {
                    "price": 10.25,
                    "quantity": 7,
                    "ts_ms": second.timestamp,
                    "src": "DHAN",
                    "flags": ["late"],
                }
            },
        ]
        assert [message["position"] for message in heard] == [
            {"NSE": first.position},
            {"NSE": second.position},
        ]
        await nothing_more(socket)


async def test_trades_are_never_conflated_and_quotes_are_as_ticks_are() -> None:
    async with running_gateway() as rig:
        socket, _ = await rig.subscriber(TCS, channels=["quote", "trade"], every_ms=200)
        for price in range(1, 51):
            rig.market.tick(TCS, float(price), volume=1, bid=price - 0.5, ask=price + 0.5)
        trades, quotes = 0, []
        while trades < 50 or not quotes or quotes[-1]["bid"] != 49.5:
            message = await next_of(socket, "trade", "quote")
            if message["type"] == "trade":
                trades += 1
            else:
                quotes.append(message["data"][TCS])
        assert trades == 50
        assert len(quotes) <= 2, "fifty changes within a pace are the newest one"
        await nothing_more(socket)


async def test_a_quote_comes_only_when_bid_ask_or_a_size_has_changed() -> None:
    async with running_gateway() as rig:
        rig.market.tick(TCS, 10.0, bid=9.0, ask=11.0)
        socket, answer = await rig.subscriber(TCS, channels=["quote"], delivery="all")
        assert answer["snapshots"]["quote"][TCS]["bid"] == 9.0
        rig.market.tick(TCS, 10.5, bid=9.0, ask=11.0)
        rig.market.tick(TCS, 10.5)
        changed = [
            rig.market.tick(TCS, 10.5, bid=9.5, ask=11.0),
            rig.market.tick(TCS, 10.5, bid=9.5, ask=11.0, bid_size=100, ask_size=50),
            rig.market.tick(TCS, 10.5, bid=9.5, ask=10.5, bid_size=100, ask_size=50),
        ]
        heard = [await socket.receive_json(timeout=5 * FACTOR) for _ in changed]
        assert [message["position"]["NSE"] for message in heard] == [tick.position for tick in changed]
        assert heard[-1]["data"][TCS] == {
            "bid": 9.5,
            "ask": 10.5,
            "bid_size": 100,
            "ask_size": 50,
            "ts_ms": changed[-1].timestamp,
            "src": "DHAN",
        }
        await nothing_more(socket)


async def test_a_channel_is_a_subscription_of_its_own_and_ends_alone() -> None:
    async with running_gateway() as rig:
        socket, _ = await rig.subscriber(TCS, RELIANCE, delivery="all")
        answer = await ask(socket, action="subscribe", id=2, instruments=[TCS], channels=["trade"])
        assert answer["accepted"] == [TCS]
        listed = await ask(socket, action="list", id=3)
        assert listed["instruments"][TCS]["channels"] == ["tick"], "ticks go on as they were"
        assert listed["channels"] == {"trade": {TCS: {}}}
        rig.market.tick(TCS, 10.0, volume=1)
        assert {(await socket.receive_json(timeout=5))["type"] for _ in range(2)} == {"raw_tick", "trade"}
        ended = await ask(socket, action="unsubscribe", id=4, instruments=[TCS, RELIANCE], channels=["trade"])
        assert ended["instruments"] == [TCS]
        rig.market.tick(TCS, 11.0, volume=1)
        assert (await socket.receive_json(timeout=5))["type"] == "raw_tick"
        await ask(socket, action="subscribe", id=5, instruments=[TCS], channels=["trade", "quote"])
        ended = await ask(socket, action="unsubscribe", id=6, instruments=[TCS, RELIANCE])
        assert ended["instruments"] == [TCS, RELIANCE], "without channels all of them end"
        rig.market.tick(TCS, 12.0, volume=1, bid=1.0, ask=2.0)
        await nothing_more(socket)
        assert rig.broadcast.watched() == frozenset()


async def test_nobody_watching_nothing_is_made_and_the_interest_is_given_back() -> None:
    async with running_gateway() as rig:
        assert rig.broadcast.watched() == frozenset()
        socket, _ = await rig.subscriber(TCS, channels=["trade"])
        assert rig.broadcast.watched() == {TCS}
        await socket.close()
        await eventually(lambda: rig.broadcast.watched() == frozenset())


async def test_control_records_come_once_however_many_channels_are_watched() -> None:
    async with running_gateway() as rig:
        socket, _ = await rig.subscriber(TCS, channels=["trade", "quote"])
        await ask(socket, action="subscribe", id=2, instruments=[RELIANCE], delivery="all")
        rig.market.tick(TCS, 10.0, volume=1, bid=9.0, ask=11.0)
        rig.market.control("gap", TCS, **{"from": 1, "to": 2, "reason": "reset"})
        rig.market.control("session", "NSE:*", session="close")
        rig.market.control("bar", TCS, i="1m", s=0, o="1", h="1", l="1", c="1", v=1, n=1, st="final", rev=0)
        seen = [await socket.receive_json(timeout=5) for _ in range(4)]
        assert [message["type"] for message in seen] == ["trade", "quote", "gap", "session"], (
            "a quote that waits for its turn leaves before the control record that concerns it"
        )
        await nothing_more(socket)


async def test_a_slow_client_is_told_how_many_trades_it_lost_by_channel() -> None:
    async with running_gateway(limits=ClientLimits(outbox_bytes=20_000)) as rig:
        client = await rig.raw_client(receive_buffer=4096)
        await client.send({"action": "subscribe", "id": 1, "instruments": [TCS], "channels": ["trade"]})
        messages: list[dict[str, Any]] = []
        while not messages:
            messages += await client.read(4096)
        assert messages[0]["type"] == "subscribed"
        made = 0
        session = next(iter(rig.gateway._sockets.sessions))
        while not session.outbox.skipped_total:
            for _ in range(200):
                made += 1
                rig.market.tick(TCS, float(made), volume=1)
            await asyncio.sleep(0)
        rig.market.tick(TCS, float(made + 1), volume=1)
        heard = skipped = 0
        while heard + skipped < made + 1:
            for message in await client.read(65536):
                if message["type"] == "trade":
                    heard += 1
                    last = message["data"][TCS]["price"]
                elif message["type"] == "skipped":
                    skipped += message["n"]
                    assert message["channels"] == {"trade": message["n"]}
                    assert message["instruments"] == {TCS: message["n"]}
        assert skipped > 0
        assert last == made + 1, "the newest always arrives"


async def test_who_comes_back_gets_every_trade_it_missed_once_and_in_order(redis_url: str) -> None:
    async with running_gateway(redis_url=redis_url) as rig:
        rig.market.tick(TCS, 0.5, volume=1)
        socket, answer = await rig.subscriber(TCS, channels=["trade", "quote"], delivery="all")
        position, epoch = dict(answer["position"]), answer["epoch"]
        sent: list[float] = []
        heard: list[float] = []
        for round_number in range(4):
            for _ in range(30):
                price = float(len(sent) + 1)
                sent.append(price)
                rig.market.tick(TCS, price, volume=1, bid=price - 1, ask=price + 1)
                rig.market.tick(TCS, price, volume=0)
            while len(heard) < len(sent) - 10:
                message = await next_of(socket, "trade", "quote")
                position.update(message["position"])
                if message["type"] == "trade":
                    heard.append(message["data"][TCS]["price"])
            cut_all(rig)
            for _ in range(15):
                price = float(len(sent) + 1)
                sent.append(price)
                rig.market.tick(TCS, price, volume=1)
            socket = await rig.connect()
            answer = await ask(
                socket,
                action="subscribe",
                id=round_number,
                instruments=[TCS],
                channels=["trade", "quote"],
                delivery="all",
                resume={"epoch": epoch, "position": position},
            )
            assert answer["recovered"] is True, answer
        while len(heard) < len(sent):
            message = await next_of(socket, "trade")
            heard.append(message["data"][TCS]["price"])
        assert heard == sent
        await nothing_more(socket)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"channels": ["depth"]}, "channel_unavailable"),
        ({"channels": ["options"]}, "channel_unavailable"),
        ({"channels": ["news"]}, "channel_unavailable"),
        ({"channels": ["depth"], "levels": 7}, "unknown_levels"),
        ({"channels": ["options"], "expiry": "2026-13-41"}, "invalid_message"),
        ({"channels": ["orders"]}, "unknown_channel"),
    ],
)
async def test_what_cannot_be_had_is_refused_by_name_and_nothing_is_changed(
    fields: dict[str, Any], code: str
) -> None:
    async with running_gateway() as rig:
        socket = await rig.connect()
        answer = await ask(socket, action="subscribe", id=9, instruments=[TCS], **fields)
        assert (answer["type"], answer["id"], answer["code"]) == ("error", 9, code)
        listed = await ask(socket, action="list", id=10)
        assert listed["instruments"] == {}
        assert "channels" not in listed


async def test_a_wildcard_means_the_trades_of_what_the_token_covers_now_and_later() -> None:
    async with running_gateway(tokens={"a": "secret-secret:ticks@NSE:TCS"}) as rig:
        socket = await rig.connect(headers={"Authorization": "Bearer secret-secret"})
        answer = await ask(
            socket, action="subscribe", id=1, instruments=["NSE:*", RELIANCE, "*"], channels=["trade"]
        )
        assert answer["rejected"] == {RELIANCE: "forbidden", "*": "malformed"}
        rig.market.tick(RELIANCE, 1.0, volume=1)
        rig.market.tick(TCS, 2.0, volume=1)
        assert list((await socket.receive_json(timeout=5))["data"]) == [TCS]
    async with running_gateway() as rig:
        socket, _ = await rig.subscriber("NSE:*", channels=["trade"])
        rig.backend.keys.append("NSE:NEW")
        rig.gateway.catalogue_changed()
        rig.market.tick("NSE:NEW", 3.0, volume=1)
        assert list((await socket.receive_json(timeout=5))["data"]) == ["NSE:NEW"]


async def test_server_sent_events_bring_trades_and_go_on_behind_the_last_one(redis_url: str) -> None:
    async with running_gateway(redis_url=redis_url) as rig:
        address = f"{rig.url}/api/stream?instruments={TCS}&channels=trade"
        async with rig.http.get(address) as response:
            assert response.status == 200
            await next_event(response)
            rig.market.tick(TCS, 1.0, volume=5)
            last_id, body = await next_event(response)
            assert '"type":"trade"' in body
        rig.market.tick(TCS, 2.0, volume=6)
        async with rig.http.get(address, headers={"Last-Event-ID": last_id}) as response:
            _, answer = await next_event(response)
            assert '"recovered":true' in answer
            _, body = await next_event(response)
            assert '"quantity":6' in body


async def next_event(response: Any) -> tuple[str, str]:
    """Return id and data of the next event."""
    event_id = ""
    while True:
        line = (await asyncio.wait_for(response.content.readline(), 5 * FACTOR)).decode().rstrip("\n")
        if line.startswith("id: "):
            event_id = line[4:]
        elif line.startswith("data: "):
            return event_id, line[6:]
