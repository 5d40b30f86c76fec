"""Faults of clients, one test for each row: what the client is told, and what it costs everybody else.

Real sockets against the real gateway; where clients come back, the streams are in a real Redis.
"""

from __future__ import annotations

import asyncio
import json
import random
import resource
import zlib
from typing import Any

import aiohttp
import psutil
import pytest
from structlog.testing import capture_logs

from services.gateway.limits import ClientLimits
from services.gateway.recovery import RecoveryLimits
from tests.support.eventually import FACTOR, eventually
from tests.support.gateway import GatewayRig, ask, running_gateway
from tests.support.row_report import report_row

TOKENS = {
    "desk": "correct-horse",
    "reader": "battery-staple:ticks@NSE:TCS|NASDAQ:*",
    "archive": "history-only:history",
}


async def closed_with(socket: aiohttp.ClientWebSocketResponse) -> tuple[list[dict[str, Any]], int]:
    """Read to the end; return the messages before it and the close code."""
    messages = []
    while True:
        message = await socket.receive(timeout=20 * FACTOR)
        if message.type is aiohttp.WSMsgType.TEXT:
            messages.append(json.loads(message.data))
        else:
            assert socket.close_code is not None
            return messages, socket.close_code


class Witness:
    """A well-behaved client with every tick of one instrument: what the fault must not cost it."""

    def __init__(self, rig: GatewayRig, instrument: str = "NSE:TCS") -> None:
        self.rig, self.instrument = rig, instrument
        self.sent: list[float] = []
        self.heard: list[float] = []
        self.skipped = 0

    async def __aenter__(self) -> Witness:
        self.socket, _ = await self.rig.subscriber(self.instrument, delivery="all")
        self.task = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if error is None:
                self.tick()
                await eventually(lambda: len(self.heard) >= len(self.sent), 20.0)
                assert self.heard == self.sent, "a client that did nothing wrong lost ticks"
                assert self.skipped == 0
        finally:
            self.task.cancel()
            await asyncio.wait([self.task])

    def tick(self) -> None:
        """Offer one tick that the witness must hear."""
        self.sent.append(float(len(self.sent) + 1))
        self.rig.market.tick(self.instrument, self.sent[-1])

    async def _read(self) -> None:
        async for message in self.socket:
            body = json.loads(message.data)
            self.skipped += body["type"] == "skipped"
            self.heard += [data["last_price"] for data in body.get("data", {}).values()]


async def test_w1_a_slow_reader_gets_the_newest_values_and_costs_nobody_anything() -> None:
    keys = [f"NSE:S{number}" for number in range(40)]
    async with running_gateway([*keys, "NSE:TCS"]) as rig, Witness(rig) as witness:
        slow = await rig.raw_client(receive_buffer=4_096)
        await slow.send({"action": "subscribe", "instruments": ["NSE:*"], "every_ms": 20})
        await eventually(lambda: rig.figures()["watched"] == 42)
        heard: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 3.0
        price = 0.0
        while loop.time() < until_s:
            price += 1.0
            for key in keys:
                rig.market.tick(key, price)
            witness.tick()
            # About 10 KB a second.
            heard += await slow.read(512)
            await asyncio.sleep(0.05)
        assert rig.figures()["lag_ms_max"] > 0
        values: dict[str, float] = {}
        while values != dict.fromkeys(keys, price) or heard:
            for message in heard:
                for key, data in message.get("data", {}).items():
                    if key in keys:
                        assert data["last_price"] >= values.get(key, 0.0), "an older value after a newer one"
                        values[key] = data["last_price"]
            heard = [] if values == dict.fromkeys(keys, price) else await slow.read(65_536)
        assert rig.figures()["closed_by_code"] == {}
    report_row(
        "W1", lost="values in between, of the slow client only", allowed="that client's values in between"
    )


@pytest.mark.timeout(180)
async def test_w2_clients_that_never_read_are_cut_and_the_others_notice_nothing() -> None:
    """Two hundred clients, twenty of them frozen."""
    keys = ["NSE:TCS", *(f"NSE:S{number}" for number in range(100))]
    async with running_gateway(keys) as rig, Witness(rig) as witness:
        counts = [0] * 179

        async def count(number: int) -> None:
            socket, _ = await rig.subscriber("NSE:TCS", delivery="all")
            async for message in socket:
                counts[number] += len(json.loads(message.data).get("data", ()))

        readers = [asyncio.create_task(count(number)) for number in range(len(counts))]
        frozen = [await rig.raw_client() for _ in range(20)]
        for client in frozen:
            await client.send({"action": "subscribe", "instruments": ["NSE:*"], "delivery": "all"})
        await eventually(lambda: rig.figures()["watched"] == 180 + 20 * 101, 20.0)
        memory_before = psutil.Process().memory_info().rss
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        price = 0.0
        while rig.figures()["connected"] > 180:
            assert loop.time() - began_s < 6.0 * FACTOR, "the frozen clients are still connected"
            price += 1.0
            witness.tick()
            for key in keys[1:]:
                rig.market.tick(key, price)
            await asyncio.sleep(0.1)
        assert rig.figures()["closed_by_code"] == {4008: 20}
        assert all(client.is_cut() for client in frozen)
        assert psutil.Process().memory_info().rss - memory_before < 64 << 20
        await eventually(lambda: all(number == len(witness.sent) for number in counts), 30.0)
        for reader in readers:
            reader.cancel()
        await asyncio.wait(readers)
    report_row(
        "W2", lost="the 20 frozen sessions; 0 ticks of 180 others", allowed="the frozen client's session"
    )


async def test_w3_large_fragmented_and_compressed_frames_are_closed_at_16_kib() -> None:
    async with running_gateway() as rig, Witness(rig) as witness:
        large = await rig.connect()
        await large.send_str("x" * 1_000_000)
        assert (await closed_with(large))[1] in (1009, 1006)
        endless = await rig.raw_client()
        for number in range(17):
            await endless.send(b"x" * 1_000, 0x01 if number == 0 else 0x00)
        assert await asyncio.wait_for(endless.read(4_096), 10 * FACTOR) == [{"type": "close", "code": 1009}]
        bomb = await rig.raw_client()
        deflated = zlib.compress(b"\0" * 10_000_000)[:16_000]
        await bomb.send(deflated[:100], 0xC1)
        assert (await asyncio.wait_for(bomb.read(4_096), 10 * FACTOR))[0]["code"] in (1002, 1009)
        await eventually(lambda: rig.figures()["connected"] == 1)
        witness.tick()
    report_row("W3", lost="the three sessions", allowed="the session")


@pytest.mark.parametrize(
    "text",
    [
        "{nope",
        "[]",
        '{"action":5}',
        '{"action":"fly"}',
        '{"action":"ping","id":NaN}',
        '{"action":"ping","id":1e999}',
        '{"action":"ping","id":' + "9" * 5_000 + "}",
        '{"action":"ping","action":"list"}',
        "[" * 5_000 + "]" * 5_000,
        '{"action":"subscribe","instruments":"NSE:TCS"}',
        '{"action":"ping","id":"\\ud800"}',
    ],
    ids=str,
)
async def test_w4_bad_messages_are_answered_and_five_in_a_minute_end_the_session(text: str) -> None:
    async with running_gateway() as rig:
        socket = await rig.connect()
        for _ in range(5):
            await socket.send_str(text)
        messages, code = await closed_with(socket)
        assert [message["type"] for message in messages] == ["error"] * 5
        assert all(message["code"] and "Traceback" not in message["message"] for message in messages)
        assert code == 4501
        assert (await ask(await rig.connect(), action="ping", id=1))["type"] == "pong"
    report_row("W4", lost="0", allowed="0")


async def test_w5_a_flood_of_subscriptions_is_told_and_closed_and_reaches_no_provider() -> None:
    async with running_gateway() as rig, Witness(rig):
        greedy = await rig.connect()
        for number in range(1_000):
            action = "subscribe" if number % 2 else "unsubscribe"
            try:
                await greedy.send_json({"action": action, "instruments": ["NSE:TCS"]})
            except ConnectionError:
                break
        messages, code = await closed_with(greedy)
        assert (messages[-1]["code"], code) == ("rate_limited", 4413)
        assert rig.backend.interest_changes == 1, "the churn of one client reached the providers' side"
    report_row("W5", lost="0 for others", allowed="0 for others")


async def test_w6_no_wrong_revoked_and_misplaced_tokens_are_refused_and_logged_without_the_secret() -> None:
    limits = ClientLimits(authentication_s=0.3)
    with capture_logs() as logs:
        async with running_gateway(tokens=TOKENS, limits=limits) as rig:
            for headers, path, status in (
                ({"Authorization": "Bearer wrong-secret"}, "/ws", 401),
                ({"Authorization": "Bearer history-only"}, "/ws", 403),
                ({}, "/ws?token=correct-horse", 400),
            ):
                with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
                    await rig.http.ws_connect(rig.url + path, headers=headers)
                assert caught.value.status == status
            silent = await rig.connect()
            assert (await closed_with(silent))[1] == 4401
            for secret in ("correct-hors", "history-only"):
                wrong = await rig.connect()
                await wrong.send_json({"action": "auth", "token": secret})
                assert (await closed_with(wrong))[1] == 4500
            kept = await rig.connect(headers={"Authorization": "Bearer correct-horse"})
            other = await rig.connect(headers={"Authorization": "Bearer battery-staple"})
            rig.gateway.replace_tokens(TOKENS | {"reader": "battery-staple:ticks@NSE:*"})
            assert (await closed_with(other))[1] == 4402
            other = await rig.connect(headers={"Authorization": "Bearer battery-staple"})
            rig.gateway.replace_tokens({"desk": "correct-horse"})
            assert (await closed_with(other))[1] == 4500
            rig.gateway.replace_tokens({"desk": "correct-horse:every-thing"})
            assert (await ask(kept, action="ping", id=1))["type"] == "pong"
            await eventually(lambda: rig.figures()["connected"] == 1)
    lines = [entry for entry in logs if entry["event"] == "client_disconnected"]
    assert len(lines) == rig.figures()["accepted"]
    assert {"client", "name", "address", "origin", "code", "reason", "messages_in"} <= lines[0].keys()
    assert not [entry for entry in logs if any(secret in str(entry) for secret in ("correct-h", "battery"))]
    report_row("W6", lost="0", allowed="0")


async def test_w7_only_listed_origins_may_connect() -> None:
    async with running_gateway(allowed_origins=("https://desk.example.org",)) as rig:
        own = f"http://127.0.0.1:{rig.port}"
        for origin, welcome in (
            ("https://desk.example.org", True),
            ("HTTPS://DESK.example.org:443", True),
            (own, True),
            ("https://evil.example.org", False),
            ("https://desk.example.org.evil.org", False),
            ("https://evildesk.example.org", False),
            ("https://desk.example.org:8443", False),
            ("http://desk.example.org", False),
            ("https://desk.example.org@evil.org", False),
            ("null", False),
            ("", False),
        ):
            status = 101
            try:
                await rig.connect(headers={"Origin": origin})
            except aiohttp.WSServerHandshakeError as refused:
                status = refused.status
            assert status == (101 if welcome else 403), origin
        with pytest.raises(aiohttp.WSServerHandshakeError) as caught:
            await rig.connect(headers={"Sec-Fetch-Mode": "websocket", "User-Agent": "Mozilla/5.0"})
        assert caught.value.status == 403
        for program in ({}, {"Sec-Fetch-Mode": "websocket", "User-Agent": "node"}):
            socket = await rig.connect(headers=program)
            assert (await ask(socket, action="ping", id=1))["type"] == "pong"
    report_row("W7", lost="0", allowed="0")


async def test_w8_connections_that_say_nothing_are_closed_and_leave_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.gateway.server.IDLE_CONNECTION_S", 1.0)
    limits = ClientLimits(authentication_s=0.5)
    async with running_gateway(limits=limits, tokens={"desk": "correct-horse"}) as rig:
        held = [await asyncio.open_connection("127.0.0.1", rig.port) for _ in range(100)]
        for number, (_, writer) in enumerate(held):
            if number % 2:
                writer.write(b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ")
        upgraded = [await rig.raw_client() for _ in range(20)]
        assert rig.figures()["connections"] >= 100
        good = await rig.connect(headers={"Authorization": "Bearer correct-horse"})
        for reader, _ in held:
            assert await asyncio.wait_for(reader.read(), 20 * FACTOR) == b""
        await eventually(lambda: rig.figures()["closed_by_code"].get(4401) == len(upgraded), 10.0)
        assert (await ask(good, action="ping", id=1))["type"] == "pong"
        await eventually(lambda: rig.figures()["connections"] == 1, 10.0)
        for _, writer in held:
            writer.close()
    report_row("W8", lost="0", allowed="0")


async def test_w9_more_instruments_than_allowed_are_refused_as_a_whole() -> None:
    keys = [f"NSE:S{number}" for number in range(1_001)]
    async with running_gateway(keys) as rig:
        socket = await rig.connect()
        wildcard = await ask(socket, action="subscribe", id=1, instruments=["NSE:*"])
        named = await ask(socket, action="subscribe", id=2, instruments=keys)
        assert {wildcard["code"], named["code"]} == {"too_many"}
        assert rig.backend.interest == set()
        assert (await ask(socket, action="subscribe", id=3, instruments=keys[:1_000]))["type"] == "subscribed"
    report_row("W9", lost="0", allowed="0")


async def test_w10_what_lies_outside_a_scope_is_forbidden_whether_it_exists_or_not() -> None:
    async with running_gateway(tokens=TOKENS) as rig:
        reader = await rig.connect(headers={"Authorization": "Bearer battery-staple"})
        asked = ["NSE:TCS", "NSE:RELIANCE", "NSE:NOPE", "BSE:*", "BSE:NOPE", "NASDAQ:AAPL", "NASDAQ:NOPE"]
        answer = await ask(reader, action="subscribe", id=1, instruments=asked)
        assert answer["accepted"] == ["NSE:TCS", "NASDAQ:AAPL"]
        assert answer["rejected"] == {
            "NSE:RELIANCE": "forbidden",
            "NSE:NOPE": "forbidden",
            "BSE:*": "forbidden",
            "BSE:NOPE": "forbidden",
            "NASDAQ:NOPE": "unknown_instrument",
        }
        await ask(reader, action="subscribe", id=2, instruments=["NSE:*"], delivery="all")
        rig.backend.keys.append("NSE:INFY")
        rig.gateway.catalogue_changed()
        assert (await ask(reader, action="list"))["instruments"].keys() == {"NSE:TCS", "NASDAQ:AAPL"}
        headers = {"Authorization": "Bearer battery-staple"}
        for path, status in (
            ("/api/quotes?instruments=NSE:RELIANCE", 403),
            ("/api/quotes?instruments=NSE:NOPE", 403),
            ("/api/quotes?instruments=NSE:TCS,NSE:NOPE", 200),
            ("/api/instruments", 200),
            ("/api/providers/status", 403),
        ):
            async with rig.http.get(rig.url + path, headers=headers) as response:
                assert response.status == status, path
                body = await response.text()
            assert "RELIANCE" not in body
            assert "INFY" not in body
    report_row("W10", lost="0", allowed="0")


async def storm(count: int) -> None:
    """So many clients at once, all on this machine, while one more has every tick."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < 3 * count + 500:
        assert hard >= 3 * count + 500, "the machine does not allow enough open files for this test"
        resource.setrlimit(resource.RLIMIT_NOFILE, (3 * count + 500, hard))
    async with running_gateway() as rig, Witness(rig) as witness:
        rig.market.tick("NASDAQ:AAPL", 7.0)
        reading: list[asyncio.Task[None]] = []

        async def read_on(socket: aiohttp.ClientWebSocketResponse) -> None:
            async for _ in socket:
                pass

        async def visit() -> float:
            socket, answer = await rig.subscriber("NASDAQ:AAPL")
            # A client that does not read on answers no pings, and is cut as frozen.
            reading.append(asyncio.create_task(read_on(socket)))
            witness.tick()
            price: float = answer["snapshot"]["NASDAQ:AAPL"]["last_price"]
            return price

        assert await asyncio.gather(*(visit() for _ in range(count))) == [7.0] * count
        assert rig.figures()["connected"] == count + 1
        async with rig.http.get(f"{rig.url}/readyz") as response:
            assert response.status == 200
        for task in reading:
            task.cancel()
        await asyncio.wait(reading)
        assert rig.backend.interest_changes == 2, "the storm is one interest for the providers' side"


async def test_w11_a_storm_of_clients_is_served_from_memory() -> None:
    await storm(300)
    report_row("W11", lost="0", allowed="0")


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(240)
async def test_w11_a_storm_of_two_thousand_clients_is_served_from_memory() -> None:
    await storm(1_990)
    report_row("W11", lost="0", allowed="0")


class Stubborn:
    """A client with every tick that is killed again and again, and goes on from where it was."""

    def __init__(self, rig: GatewayRig, instruments: list[str]) -> None:
        self.rig, self.instruments = rig, instruments
        self.resume: dict[str, Any] | None = None
        self.heard: list[tuple[str, float]] = []
        self.recovered = 0

    async def live(self, records: int) -> None:
        """Connect, take about so many records, and die without a word."""
        client = await self.rig.raw_client()
        wish: dict[str, Any] = {"action": "subscribe", "id": 1, "instruments": self.instruments}
        wish["delivery"] = "all"
        if self.resume is not None:
            wish["resume"] = self.resume
        await client.send(wish)
        until = len(self.heard) + records
        while len(self.heard) < until:
            for message in await asyncio.wait_for(client.read(65_536), 30 * FACTOR):
                self._take(message)
                if len(self.heard) >= until:
                    # What else was read is lost with the client.
                    break
        client.close()

    def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "subscribed":
            assert message.get("recovered", True) is True, message.get("reason")
            self.recovered += "recovered" in message
            self.resume = {"epoch": message["epoch"], "position": dict(message["position"])}
            return
        assert message["type"] in {"raw_tick", "session"}, message
        self.heard += [(key, data["last_price"]) for key, data in message.get("data", {}).items()]
        if message["type"] == "session":
            self.heard.append((message["instrumentKey"], -1.0))
        assert self.resume is not None
        self.resume["position"].update(message["position"])


async def killed_and_resumed(redis_url: str, times: int, per_s: int) -> None:
    """Ticks at a high rate; the sequence held in the end is exactly that of the stream."""
    keys = [f"NSE:S{number}" for number in range(50)]
    chance = random.Random(times)
    async with running_gateway(keys, redis_url=redis_url, recovery=RecoveryLimits(patience_s=60.0)) as rig:
        made = rig.market.made

        async def flood() -> None:
            loop = asyncio.get_running_loop()
            began_s = loop.time()
            while True:
                # As many as that a second, as far as this machine goes.
                for _ in range(min(100, int((loop.time() - began_s) * per_s) - len(made))):
                    rig.market.tick(chance.choice(keys), float(len(made) + 1))
                if chance.random() < 0.05:
                    rig.market.control("session", "NSE:*", state="open")
                await asyncio.sleep(0.004)

        flooding = asyncio.create_task(flood())
        everything, some = Stubborn(rig, ["NSE:*"]), Stubborn(rig, keys[:10])
        for _ in range(times):
            # Some of what was missed, or all of it and a little of what is live.
            behind = (len(made) - len(everything.heard), len(made) // 5 - len(some.heard))
            await asyncio.gather(
                *(
                    client.live(1 + int(max(1, missed) * chance.uniform(0.3, 1.4)))
                    for client, missed in zip((everything, some), behind, strict=True)
                )
            )
            await asyncio.sleep(chance.random() * 0.05)
        flooding.cancel()
        await asyncio.wait([flooding])
        assert everything.recovered == some.recovered == times - 1
        for client, watched in ((everything, set(keys)), (some, set(keys[:10]))):
            expected = [
                (record.symbol, getattr(record, "price", -1.0))
                for record in made
                if record.symbol in watched or record.symbol == "NSE:*"
            ]
            first = next(index for index, item in enumerate(client.heard) if item[1] > 0)
            start = expected.index(client.heard[first]) - first
            assert client.heard == expected[start : start + len(client.heard)]
        assert rig.figures()["resumed"]["refused"] == {}
        assert rig.figures()["resumed"]["entries"] > 0, "nothing was ever read from the stream"


async def test_w12_a_client_killed_and_resumed_at_random_holds_the_sequence_of_the_stream(
    redis_url: str,
) -> None:
    await killed_and_resumed(redis_url, 30, 2_000)
    report_row("W12", lost="0", allowed="0")


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_w12_a_client_killed_and_resumed_five_hundred_times_holds_the_sequence(redis_url: str) -> None:
    await killed_and_resumed(redis_url, 500, 5_000)
    report_row("W12", lost="0", allowed="0")


async def test_w12_an_old_epoch_or_position_is_a_new_beginning_and_never_a_part(redis_url: str) -> None:
    async with running_gateway(redis_url=redis_url) as rig:
        seen = rig.market.tick("NSE:TCS", 1.0)
        for price in (2.0, 3.0):
            rig.market.tick("NSE:TCS", price)
        for epoch, position, reason in (
            ("epoch-0", seen.position, "epoch_changed"),
            (rig.backend.epoch, "1500000000000-0", "trimmed"),
            (rig.backend.epoch, "1700000000000-99", "position_ahead"),
        ):
            socket, answer = await rig.subscriber(
                "NSE:TCS", delivery="all", resume={"epoch": epoch, "position": {"NSE": position}}
            )
            assert (answer["recovered"], answer["reason"]) == (False, reason)
            assert answer["snapshot"]["NSE:TCS"]["last_price"] == 3.0
            assert (await ask(socket, action="ping", id=1))["type"] == "pong"
    report_row("W12", lost="0", allowed="0")
