"""Bad, slow, frozen and greedy clients: each is dealt with as documented, and costs nobody else anything."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import Any

import aiohttp
import psutil
import pytest

from services.gateway.flow import FlowLimits
from services.gateway.limits import ClientLimits
from tests.support.eventually import FACTOR, eventually
from tests.support.gateway import GatewayRig, RawClient, ask, running_gateway

TOKENS = {"desk": "correct-horse", "robot": "battery-staple"}


async def closed_with(socket: aiohttp.ClientWebSocketResponse) -> tuple[list[dict[str, Any]], int]:
    """Read to the end; return the messages before it and the close code."""
    messages = []
    while True:
        message = await socket.receive(timeout=10)
        if message.type is aiohttp.WSMsgType.TEXT:
            messages.append(json.loads(message.data))
        else:
            assert socket.close_code is not None
            return messages, socket.close_code


# ---- authentication -----------------------------------------------------------------------------


async def test_a_token_on_the_handshake_opens_the_session() -> None:
    async with running_gateway(tokens=TOKENS) as rig:
        socket = await rig.connect(headers={"Authorization": "Bearer battery-staple"})
        assert (await ask(socket, action="subscribe", id=1, instruments=["NSE:TCS"]))["type"] == "subscribed"


async def test_a_wrong_token_on_the_handshake_is_refused_before_the_upgrade() -> None:
    async with running_gateway(tokens=TOKENS) as rig:
        for header in ("Bearer wrong", "Basic Zm9v", "Bearer"):
            with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                await rig.connect(headers={"Authorization": header})
            assert caught.value.status == 401
        assert rig.figures()["accepted"] == 0


async def test_the_first_message_may_bring_the_token() -> None:
    async with running_gateway(tokens=TOKENS) as rig:
        socket = await rig.connect()
        assert await ask(socket, action="auth", id=1, token="correct-horse") == {
            "type": "authenticated",
            "id": 1,
            "name": "desk",
        }
        assert (await ask(socket, action="subscribe", instruments=["NSE:TCS"]))["type"] == "subscribed"


async def test_nothing_is_served_before_the_token() -> None:
    async with running_gateway(tokens=TOKENS) as rig:
        rig.market.tick("NSE:TCS", 1.0)
        socket = await rig.connect()
        for message in (
            {"action": "subscribe", "instruments": ["NSE:TCS"]},
            {"action": "list"},
            {"action": "ping"},
        ):
            assert (await ask(socket, **message))["code"] == "unauthenticated"
        assert rig.backend.interest == set()


async def test_a_wrong_first_token_ends_the_session_for_good() -> None:
    async with running_gateway(tokens=TOKENS) as rig:
        socket = await rig.connect()
        await socket.send_json({"action": "auth", "id": 1, "token": "correct-hors"})
        messages, code = await closed_with(socket)
        assert [message["code"] for message in messages] == ["unauthorized"]
        assert code == 4500


async def test_a_client_that_brings_no_token_in_time_is_closed() -> None:
    async with running_gateway(tokens=TOKENS, limits=ClientLimits(authentication_s=0.3)) as rig:
        good = await rig.connect(headers={"Authorization": "Bearer correct-horse"})
        silent = await rig.connect()
        began_s = time.monotonic()
        assert (await closed_with(silent))[1] == 4401
        assert time.monotonic() - began_s < 2 * FACTOR
        assert (await ask(good, action="ping", id=1))["type"] == "pong"


async def test_the_default_deadline_for_the_token_is_five_seconds() -> None:
    assert ClientLimits().authentication_s == 5.0


@pytest.mark.parametrize("origin", ["https://evil.test", "null", "http://127.0.0.1:1"])
async def test_a_foreign_page_cannot_connect(origin: str) -> None:
    async with running_gateway() as rig:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await rig.connect(origin=origin)
        assert caught.value.status == 403


async def test_the_own_page_can_connect() -> None:
    async with running_gateway() as rig:
        socket = await rig.connect(origin=rig.url)
        assert (await ask(socket, action="ping"))["type"] == "pong"


async def test_a_token_in_the_url_is_refused_with_the_reason() -> None:
    async with running_gateway(tokens=TOKENS) as rig:
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await rig.http.ws_connect(f"{rig.url}/ws?token=correct-horse")
        assert caught.value.status == 400


# ---- limits -------------------------------------------------------------------------------------


async def test_more_instruments_than_allowed_are_refused_as_a_whole() -> None:
    keys = [f"NSE:S{number}" for number in range(30)]
    async with running_gateway(keys, limits=ClientLimits(instruments_per_client=20)) as rig:
        socket = await rig.connect()
        for wanted in (keys[:21], ["NSE:*"]):
            refused = await ask(socket, action="subscribe", id=1, instruments=wanted)
            assert (refused["id"], refused["code"]) == (1, "too_many")
        assert rig.backend.interest == set()
        await ask(socket, action="subscribe", id=2, instruments=keys[:20])
        again = await ask(socket, action="subscribe", id=3, instruments=keys[:20], delivery="all")
        assert again["type"] == "subscribed"
        one_more = await ask(socket, action="subscribe", id=4, instruments=[keys[25]])
        assert one_more["code"] == "too_many"
        assert len(rig.backend.interest) == 20


async def test_the_paces_of_one_client_are_limited() -> None:
    async with running_gateway(limits=ClientLimits(paces_per_client=2)) as rig:
        socket = await rig.connect()
        for every_ms, instrument in ((50, "NSE:TCS"), (60, "NSE:RELIANCE")):
            answer = await ask(socket, action="subscribe", instruments=[instrument], every_ms=every_ms)
            assert answer["type"] == "subscribed"
        refused = await ask(socket, action="subscribe", instruments=["NASDAQ:AAPL"], every_ms=70)
        assert refused["code"] == "too_many"


async def test_a_flood_of_messages_is_told_and_closed_and_the_provider_side_sees_none_of_it() -> None:
    async with running_gateway() as rig:
        good, _ = await rig.subscriber("NSE:TCS", every_ms=10)
        greedy = await rig.connect()
        for number in range(200):
            action = "subscribe" if number % 2 else "unsubscribe"
            await greedy.send_json({"action": action, "instruments": ["NSE:TCS"]})
        messages, code = await closed_with(greedy)
        assert code == 4413
        assert messages[-1]["code"] == "rate_limited"
        assert len(messages) < 190
        assert rig.backend.interest_changes == 1
        rig.market.tick("NSE:TCS", 1.0)
        assert (await good.receive_json(timeout=5))["type"] == "raw_tick"


async def test_a_flood_of_pings_is_closed() -> None:
    async with running_gateway() as rig:
        client = await rig.raw_client()
        for _ in range(300):
            await client.send(b"", 0x89)
        await eventually(lambda: rig.figures()["closed_by_code"].get(4413) == 1)


async def test_five_bad_messages_in_a_minute_end_the_session_for_good() -> None:
    async with running_gateway() as rig:
        socket = await rig.connect()
        for _ in range(5):
            await socket.send_str("{nope")
        messages, code = await closed_with(socket)
        assert [message["code"] for message in messages] == ["invalid_json"] * 5
        assert code == 4501


async def test_good_messages_beyond_a_limit_do_not_end_the_session() -> None:
    async with running_gateway(limits=ClientLimits(instruments_per_client=1)) as rig:
        socket = await rig.connect()
        for _ in range(8):
            refused = await ask(socket, action="subscribe", instruments=["NSE:TCS", "NSE:RELIANCE"])
            assert refused["code"] == "too_many"


async def test_one_client_too_many_is_refused_and_a_place_comes_free() -> None:
    async with running_gateway(limits=ClientLimits(clients=2)) as rig:
        first = await rig.connect()
        await rig.connect()
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await rig.connect()
        assert caught.value.status == 503
        assert caught.value.headers is not None
        assert "Retry-After" in caught.value.headers
        await first.close()
        await eventually(lambda: rig.figures()["connected"] == 1)
        await rig.connect()


async def test_one_connection_too_many_is_cut_and_others_go_on() -> None:
    async with running_gateway(limits=ClientLimits(connections=3)) as rig:
        socket = await rig.connect()
        held = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(), 5) == b""
        assert rig.figures()["connections_refused"] == 1
        assert (await ask(socket, action="ping"))["type"] == "pong"
        for _, other in (*held, (reader, writer)):
            other.close()


# ---- frames -------------------------------------------------------------------------------------


async def test_a_message_beyond_16_kib_is_closed_with_1009() -> None:
    async with running_gateway() as rig:
        socket = await rig.connect()
        await socket.send_str("x" * 16_385)
        assert (await closed_with(socket))[1] == 1009
        await eventually(lambda: rig.figures()["closed_by_code"] == {1009: 1})


async def test_a_huge_frame_is_closed_from_its_header() -> None:
    async with running_gateway() as rig:
        client = await rig.raw_client()
        await client.send_raw(b"\x81\xff" + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0")
        assert await asyncio.wait_for(client.read(4_096), 5) == [{"type": "close", "code": 1009}]


async def test_an_endless_fragmented_message_is_closed_with_1009() -> None:
    async with running_gateway() as rig:
        client = await rig.raw_client()
        for number in range(20):
            await client.send(b"x" * 1_000, 0x01 if number == 0 else 0x00)
        assert await asyncio.wait_for(client.read(4_096), 5) == [{"type": "close", "code": 1009}]


async def test_compression_is_not_negotiated() -> None:
    async with running_gateway() as rig:
        socket = await rig.connect(compress=15)
        assert socket.compress == 0
        assert (await ask(socket, action="ping"))["type"] == "pong"


async def test_text_that_is_not_utf8_is_refused() -> None:
    async with running_gateway() as rig:
        client = await rig.raw_client()
        await client.send(b'{"action":"\xff"}')
        (message,) = await asyncio.wait_for(client.read(4_096), 5)
        assert message.get("code") in {"invalid_json", 1007}


async def test_an_idle_connection_without_a_request_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.server.IDLE_CONNECTION_S", 0.3)
    async with running_gateway() as rig:
        for opening in (b"", b"GET / HTTP/1.1\r\nHost: x"):
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.port)
            writer.write(opening)
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()


# ---- slow and frozen ----------------------------------------------------------------------------


class Crowd:
    """Readers that count what they get, each tick of one instrument."""

    def __init__(self, rig: GatewayRig) -> None:
        self.rig = rig
        self.prices: list[list[float]] = []
        self.worst_delay_s = 0.0
        self.sent_s: dict[float, float] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def join(self, count: int) -> None:
        for _ in range(count):
            socket, _ = await self.rig.subscriber("NSE:TCS", delivery="all")
            self.prices.append([])
            self.tasks.append(asyncio.create_task(self._read(socket, self.prices[-1])))

    async def _read(self, socket: aiohttp.ClientWebSocketResponse, prices: list[float]) -> None:
        async for message in socket:
            price = json.loads(message.data)["data"]["NSE:TCS"]["last_price"]
            prices.append(price)
            self.worst_delay_s = max(self.worst_delay_s, time.monotonic() - self.sent_s[price])

    async def send(self, price: float) -> None:
        self.sent_s[price] = time.monotonic()
        self.rig.market.tick("NSE:TCS", price)

    async def leave(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


@pytest.mark.slow
async def test_frozen_clients_among_a_hundred_are_cut_and_the_others_notice_nothing() -> None:
    """Twenty frozen under a flood, and one to which only five ticks a second are sent."""
    keys = ["NSE:TCS", "BSE:QUIET", *(f"NSE:S{number}" for number in range(300))]
    async with running_gateway(keys) as rig:
        crowd = Crowd(rig)
        await crowd.join(80)
        frozen = [await rig.raw_client() for _ in range(20)]
        for number, client in enumerate(frozen):
            delivery = "all" if number % 2 else "latest"
            await client.send({"action": "subscribe", "instruments": ["NSE:*"], "delivery": delivery})
        quiet = await rig.raw_client()
        await quiet.send({"action": "subscribe", "instruments": ["BSE:QUIET"]})
        await eventually(lambda: rig.figures()["watched"] == 80 + 20 * 301 + 1)
        memory_before = psutil.Process().memory_info().rss
        began_s = time.monotonic()
        price = 0.0
        while rig.figures()["connected"] > 80:
            assert time.monotonic() - began_s < 6.0 * FACTOR, "the frozen clients are still connected"
            price += 1.0
            await crowd.send(price)
            for key in keys[2:]:
                rig.market.tick(key, price)
            if price % 4 == 0:
                rig.market.tick("BSE:QUIET", price)
            await asyncio.sleep(0.05)
        assert rig.figures()["closed_by_code"] == {4008: 21}
        await eventually(lambda: all(len(prices) == price for prices in crowd.prices))
        expected = [float(number) for number in range(1, int(price) + 1)]
        assert all(prices == expected for prices in crowd.prices)
        assert crowd.worst_delay_s < 1.0 * FACTOR
        assert psutil.Process().memory_info().rss - memory_before < 64 << 20
        assert all(client.is_cut() for client in (*frozen, quiet))
        await crowd.leave()


@pytest.mark.slow
async def test_a_slow_reader_stays_is_told_what_it_lost_and_gets_the_newest_values() -> None:
    keys = [f"NSE:S{number}" for number in range(40)]
    async with running_gateway(keys, limits=ClientLimits(outbox_bytes=128 * 1024)) as rig:
        conflated = await rig.raw_client(receive_buffer=4_096)
        whole = await rig.raw_client(receive_buffer=4_096)
        await conflated.send({"action": "subscribe", "instruments": ["NSE:*"], "every_ms": 20})
        await whole.send({"action": "subscribe", "instruments": ["NSE:*"], "delivery": "all"})
        await eventually(lambda: rig.figures()["watched"] == 80)
        heard: dict[RawClient, list[dict[str, Any]]] = {conflated: [], whole: []}

        async def sip(client: RawClient, per_second: int) -> None:
            while True:
                heard[client].extend(await client.read(per_second // 20))
                await asyncio.sleep(0.05)

        sips = [asyncio.create_task(sip(conflated, 10_000)), asyncio.create_task(sip(whole, 10_000))]
        began_s = time.monotonic()
        price = 0.0
        while time.monotonic() - began_s < 6.0:
            price += 1.0
            for key in keys:
                rig.market.tick(key, price)
            await asyncio.sleep(0.01)
        assert rig.figures()["connected"] == 2, "a client that reads slowly was cut"
        assert rig.figures()["lag_ms_max"] > 500
        for task in sips:
            task.cancel()
        await asyncio.gather(*sips, return_exceptions=True)

        async def drain(client: RawClient, done: Any) -> None:
            while not done(heard[client]):
                heard[client].extend(await asyncio.wait_for(client.read(65_536), 10))

        def newest(messages: list[dict[str, Any]]) -> dict[str, float]:
            values: dict[str, float] = {}
            for message in messages:
                for key, data in message.get("data", {}).items():
                    assert data["last_price"] > values.get(key, 0.0), "an older value after a newer one"
                    values[key] = data["last_price"]
            return values

        def has_newest(messages: list[dict[str, Any]]) -> bool:
            return newest(messages) == dict.fromkeys(keys, price)

        await drain(conflated, has_newest)
        await drain(whole, has_newest)
        assert not [message for message in heard[conflated] if message["type"] == "skipped"]
        lost = sum(message["n"] for message in heard[whole] if message["type"] == "skipped")
        got = sum(len(message["data"]) for message in heard[whole] if message["type"] == "raw_tick")
        assert lost > 0
        assert lost + got == price * len(keys)


async def test_an_idle_client_that_vanished_is_noticed() -> None:
    flow = FlowLimits(idle_ping_s=0.3, idle_patience_s=0.5)
    async with running_gateway(flow=flow) as rig:
        await rig.raw_client()
        alive = await rig.connect()
        reading = asyncio.create_task(alive.receive())
        await eventually(lambda: rig.figures()["closed_by_code"].get(4008) == 1)
        assert rig.figures()["connected"] == 1
        reading.cancel()


# ---- stopping -----------------------------------------------------------------------------------


async def test_stopping_tells_clients_to_come_back_and_does_not_wait_for_mute_ones() -> None:
    async with running_gateway() as rig:
        mute = await rig.raw_client()
        await mute.send({"action": "subscribe", "instruments": ["NSE:TCS"]})
        polite, _ = await rig.subscriber("NSE:TCS", delivery="all")
        await eventually(lambda: rig.figures()["watched"] == 2)
        reading = asyncio.create_task(closed_with(polite))
        rig.market.tick("NSE:TCS", 5.0)
        began_s = time.monotonic()
        await rig.gateway.stop()
        assert time.monotonic() - began_s < 4.0 * FACTOR
        messages, code = await reading
        assert code == 1012
        assert [message["data"]["NSE:TCS"]["last_price"] for message in messages] == [5.0]
        assert rig.figures()["connected"] == 0
        assert rig.backend.interest == set()


async def test_a_storm_of_connections_is_served_from_memory() -> None:
    async with running_gateway() as rig:
        rig.market.tick("NSE:TCS", 7.0)

        async def visit() -> float:
            socket, answer = await rig.subscriber("NSE:TCS")
            await socket.close()
            price: float = answer["snapshot"]["NSE:TCS"]["last_price"]
            return price

        assert await asyncio.gather(*(visit() for _ in range(300))) == [7.0] * 300
        await eventually(lambda: rig.figures()["connected"] == 0)
        assert rig.figures()["accepted"] == 300
        await eventually(lambda: rig.figures()["connections"] <= 1)
        assert rig.backend.interest == set()
