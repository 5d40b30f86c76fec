"""Server-sent events over a real socket: what the WebSocket sends, and `Last-Event-ID` goes on from there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import aiohttp
import pytest

from services.gateway.limits import ClientLimits
from tests.support.eventually import FACTOR, eventually
from tests.support.gateway import GatewayRig, running_gateway

TOKENS = {
    "desk": "correct-horse",
    "reader": "battery-staple:ticks@NSE:TCS|NASDAQ:*",
    "ops": "ops-secret-1:admin",
}


class Events:
    """One stream and its events: the id of the newest, and every message."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self.last_id = ""

    async def next(self) -> dict[str, Any]:
        """Return the next message, passing over comments."""
        data = None
        while True:
            line = await asyncio.wait_for(self.response.content.readline(), 10 * FACTOR)
            if not line:
                raise EOFError
            text = line.decode().rstrip("\n")
            name, _, value = text.partition(": ")
            if name == "id":
                self.last_id = value
            elif name == "data":
                data = json.loads(value)
            elif not text and data is not None:
                message: dict[str, Any] = data
                return message


async def stream(rig: GatewayRig, query: str, **headers: str) -> Events:
    response = await rig.http.get(f"{rig.url}/api/stream?{query}", headers=headers)
    rig.responses.append(response)
    assert response.status == 200, await response.text()
    assert response.headers["Content-Type"] == "text/event-stream"
    assert response.headers["Cache-Control"] == "no-store"
    return Events(response)


async def test_events_are_the_messages_of_the_websocket_and_ids_resume(redis_url: str) -> None:
    async with running_gateway(redis_url=redis_url) as rig:
        rig.market.tick("NSE:TCS", 1.0)
        events = await stream(rig, "instruments=NSE:TCS,NASDAQ:AAPL,NSE:NOPE&delivery=all")
        answer = await events.next()
        assert (answer["type"], answer["rejected"]) == ("subscribed", {"NSE:NOPE": "unknown_instrument"})
        assert answer["snapshot"]["NSE:TCS"]["last_price"] == 1.0
        for price in (2.0, 3.0):
            rig.market.tick("NSE:TCS", price)
        seen = []
        while len(seen) < 2:
            seen += [data["last_price"] for data in (await events.next())["data"].values()]
        assert seen == [2.0, 3.0]
        events.response.close()
        await eventually(lambda: rig.figures()["connected"] == 0)
        rig.market.tick("NSE:TCS", 4.0)
        rig.market.tick("NASDAQ:AAPL", 40.0)
        rig.market.control("stale", "NSE:TCS")
        again = await stream(
            rig, "instruments=NSE:TCS,NASDAQ:AAPL&delivery=all", **{"Last-Event-ID": events.last_id}
        )
        assert (await again.next())["recovered"] is True
        missed = []
        while len(missed) < 3:
            message = await again.next()
            missed += list(message["data"]) if message["type"] == "raw_tick" else [message["type"]]
        assert missed == ["NSE:TCS", "NASDAQ:AAPL", "stale"]
        rig.backend.epoch = "epoch-2"
        lost = await stream(rig, "instruments=NSE:TCS", **{"Last-Event-ID": again.last_id})
        answer = await lost.next()
        assert (answer["recovered"], answer["reason"]) == (False, "epoch_changed")
        assert rig.backend.interest == {"NSE:TCS", "NASDAQ:AAPL"}
        for open_stream in (again, lost):
            open_stream.response.close()
        await eventually(lambda: rig.backend.interest == set())


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "invalid_message"),
        ("instruments=NSE:TCS&delivery=some", 400, "invalid_message"),
        ("instruments=NSE:TCS&every_ms=x", 400, "invalid_message"),
        ("instruments=NSE:TCS&from=1", 400, "unknown_parameter"),
        ("instruments=NSE:TCS&token=correct-horse", 400, "token_in_url"),
        ("instruments=NSE:NOPE", 404, "unknown_instrument"),
        ("instruments=NSE:*", 400, "too_many"),
    ],
)
async def test_what_cannot_be_streamed_is_refused_before_the_stream(
    query: str, status: int, code: str
) -> None:
    async with running_gateway(limits=ClientLimits(instruments_per_client=1)) as rig:
        async with rig.http.get(f"{rig.url}/api/stream?{query}") as response:
            assert (response.status, (await response.json())["error"]["code"]) == (status, code)
        assert rig.figures()["connected"] == 0
        assert rig.backend.interest == set()


async def test_tokens_scopes_and_revocation_hold_for_streams_too() -> None:
    async with running_gateway(tokens=TOKENS) as rig:
        for secret, query, status in (
            ("", "instruments=NSE:TCS", 401),
            ("wrong-secret", "instruments=NSE:TCS", 401),
            ("ops-secret-1", "instruments=NSE:TCS", 403),
            ("battery-staple", "instruments=NSE:RELIANCE", 403),
            ("battery-staple", "instruments=NSE:NOPE", 403),
        ):
            headers = {"Authorization": f"Bearer {secret}"}
            async with rig.http.get(f"{rig.url}/api/stream?{query}", headers=headers) as response:
                assert response.status == status, (secret, query)
        events = await stream(
            rig, "instruments=NSE:*,NASDAQ:AAPL&delivery=all", Authorization="Bearer battery-staple"
        )
        assert (await events.next())["accepted"] == ["NSE:*", "NASDAQ:AAPL"]
        rig.market.tick("NSE:RELIANCE", 1.0)
        rig.market.tick("NSE:TCS", 2.0)
        assert (await events.next())["data"].keys() == {"NSE:TCS"}
        rig.gateway.replace_tokens({"desk": "correct-horse"})
        with pytest.raises(EOFError):
            await events.next()
        await eventually(lambda: rig.figures()["closed_by_code"] == {4500: 1})


async def test_a_stream_that_nobody_reads_is_cut_and_a_quick_one_misses_nothing() -> None:
    keys = [f"NSE:S{number}" for number in range(200)]
    async with running_gateway(keys) as rig:
        quick = await stream(rig, "instruments=NSE:S0&delivery=all")
        await quick.next()
        frozen = socket.socket()
        frozen.setblocking(False)
        frozen.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(frozen, ("127.0.0.1", rig.port))
        request = (
            f"GET /api/stream?instruments=NSE:*&delivery=all HTTP/1.1\r\nHost: 127.0.0.1:{rig.port}\r\n\r\n"
        )
        await loop.sock_sendall(frozen, request.encode())
        await eventually(lambda: rig.figures()["connected"] == 2)
        heard: list[float] = []

        async def read() -> None:
            while True:
                heard.extend(data["last_price"] for data in (await quick.next())["data"].values())

        reading = asyncio.create_task(read())
        began_s = loop.time()
        price = 0.0
        while rig.figures()["connected"] == 2:
            assert loop.time() - began_s < 6.0 * FACTOR, "the frozen stream is still connected"
            price += 1.0
            for key in keys:
                rig.market.tick(key, price)
            await asyncio.sleep(0.02)
        assert rig.figures()["closed_by_code"] == {4008: 1}
        await eventually(lambda: len(heard) == price, 10.0)
        assert heard == [float(number) for number in range(1, int(price) + 1)]
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
        quick.response.close()
        frozen.close()


async def test_stopping_ends_streams_too() -> None:
    async with running_gateway() as rig:
        events = await stream(rig, "instruments=NSE:TCS")
        await events.next()
        await rig.gateway.stop()
        with pytest.raises(EOFError):
            await events.next()
        assert rig.figures()["closed_by_code"] == {1012: 1}
