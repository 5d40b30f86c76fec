"""How the Python client comes back and when it does not, against a scripted server."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from marketd_client import Backoff, Client, ConnectionRefused, Disconnected, Subscribed, Tick
from tests.support.eventually import FACTOR

Script = Callable[[ServerConnection], Awaitable[None]]
AT_ONCE = {"first_s": 0.0, "longest_s": 0.0}


def test_waits_have_full_jitter_and_a_limit_that_doubles_up_to_the_longest() -> None:
    highest = Backoff(first_s=1, longest_s=30, chance=lambda: 1.0)
    assert [highest.next_s() for _ in range(7)] == [1, 2, 4, 8, 16, 30, 30]
    lowest = Backoff(chance=lambda: 0.0)
    assert [lowest.next_s() for _ in range(3)] == [0, 0, 0]
    assert lowest.next_s(at_least_s=10) == 10


def test_only_a_connection_that_lasted_makes_the_waits_short_again() -> None:
    backoff = Backoff(first_s=1, longest_s=30, healthy_after_s=30, chance=lambda: 1.0)
    backoff.next_s()
    backoff.next_s()
    backoff.lasted(29)
    assert backoff.next_s() == 4
    backoff.lasted(30)
    assert backoff.next_s() == 1


@contextlib.asynccontextmanager
async def scripted(*scripts: Script, **options: Any) -> AsyncIterator[str]:
    """A server whose n-th connection follows the n-th script; the last one serves all further ones."""
    count = 0

    async def handle(socket: ServerConnection) -> None:
        nonlocal count
        script = scripts[min(count, len(scripts) - 1)]
        count += 1
        await script(socket)

    async with serve(handle, "127.0.0.1", 0, **options) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def begin(socket: ServerConnection, **fields: Any) -> dict[str, Any]:
    """Answer the client's subscription; return it."""
    asked: dict[str, Any] = json.loads(await socket.recv())
    answer = {"type": "subscribed", "id": asked["id"], "accepted": asked["instruments"], "rejected": {}}
    await socket.send(
        json.dumps(answer | {"epoch": "e", "position": {"NSE": "1-0"}, "snapshot": {}} | fields)
    )
    return asked


async def send_tick(socket: ServerConnection, sequence: int) -> None:
    data = {"NSE:A": {"last_price": float(sequence), "ts_ms": sequence}}
    await socket.send(json.dumps({"type": "raw_tick", "data": data, "position": {"NSE": f"1-{sequence}"}}))


def closing(code: int) -> Script:
    async def script(socket: ServerConnection) -> None:
        await begin(socket)
        await socket.close(code, "because")

    return script


async def staying(socket: ServerConnection) -> None:
    await begin(socket)
    await socket.wait_closed()


@pytest.mark.parametrize("code", [1000, 1001, 1011, 1012, 4000, 4008, 4413, 4499])
async def test_close_codes_up_to_4499_come_back(code: int) -> None:
    async with (
        scripted(closing(code), staying) as url,
        Client(url, ["NSE:A"], backoff=Backoff(**AT_ONCE)) as records,
    ):
        first, gone, second = [await asyncio.wait_for(anext(records), 10 * FACTOR) for _ in range(3)]
    assert isinstance(first, Subscribed)
    assert gone == Disconnected(code, "because", 0.0)
    assert isinstance(second, Subscribed)


@pytest.mark.parametrize("code", [4500, 4501, 4999])
async def test_close_codes_from_4500_do_not(code: int) -> None:
    async with scripted(closing(code)) as url, Client(url, ["NSE:A"]) as records:
        assert isinstance(await anext(records), Subscribed)
        with pytest.raises(ConnectionRefused) as caught:
            await asyncio.wait_for(anext(records), 10 * FACTOR)
        assert caught.value.code == code
        assert [record async for record in records] == []


@pytest.mark.parametrize("status", [401, 403, 404])
async def test_a_handshake_refused_for_good_ends_the_client(status: int) -> None:
    def refuse(connection: ServerConnection, _request: Request) -> Response:
        return connection.respond(status, "no")

    async with scripted(staying, process_request=refuse) as url, Client(url, ["NSE:A"]) as records:
        with pytest.raises(ConnectionRefused) as caught:
            await asyncio.wait_for(anext(records), 10 * FACTOR)
        assert caught.value.code == status


async def test_a_busy_daemon_is_asked_again_and_its_wish_is_kept() -> None:
    requests = []

    def busy_once(connection: ServerConnection, request: Request) -> Response | None:
        requests.append(request.headers.get("Authorization"))
        if len(requests) > 1:
            return None
        response = connection.respond(503, "full")
        response.headers["Retry-After"] = "1"
        return response

    secrets = iter(("first", "second"))

    async def secret() -> str:
        return next(secrets)

    async with (
        scripted(staying, process_request=busy_once) as url,
        Client(url, ["NSE:A"], token=secret, backoff=Backoff(**AT_ONCE)) as records,
    ):
        gone = await anext(records)
        assert isinstance(gone, Disconnected)
        assert gone.retry_in_s == 1.0
        assert isinstance(await asyncio.wait_for(anext(records), 10 * FACTOR), Subscribed)
    assert requests == ["Bearer first", "Bearer second"]


async def test_a_connection_cut_without_a_word_is_resumed_where_it_broke() -> None:
    asked = []

    async def cut(socket: ServerConnection) -> None:
        asked.append(await begin(socket))
        await send_tick(socket, 1)
        await send_tick(socket, 2)
        socket.transport.abort()

    async def resumed(socket: ServerConnection) -> None:
        asked.append(await begin(socket, recovered=True, position={"NSE": "1-9"}))
        await send_tick(socket, 3)
        await socket.wait_closed()

    async with (
        scripted(cut, resumed) as url,
        Client(url, ["NSE:A"], delivery="all", backoff=Backoff(**AT_ONCE)) as client,
    ):
        kinds = []
        async for record in client:
            kinds.append(type(record).__name__)
            if isinstance(record, Tick) and record.price == 3.0:
                break
        assert kinds == ["Subscribed", "Tick", "Tick", "Disconnected", "Subscribed", "Tick"]
        assert client.resume_point is not None
        assert client.resume_point.position == {"NSE": "1-3"}
    assert "resume" not in asked[0]
    assert asked[1]["resume"] == {"epoch": "e", "position": {"NSE": "1-2"}}


async def test_positions_out_of_order_end_the_connection_and_are_not_resumed_from() -> None:
    asked = []

    async def wrong(socket: ServerConnection) -> None:
        asked.append(await begin(socket))
        await send_tick(socket, 2)
        await send_tick(socket, 1)
        await socket.wait_closed()

    async def right(socket: ServerConnection) -> None:
        asked.append(await begin(socket))
        await socket.wait_closed()

    async with (
        scripted(wrong, right) as url,
        Client(url, ["NSE:A"], delivery="all", backoff=Backoff(**AT_ONCE)) as records,
    ):
        seen = [await asyncio.wait_for(anext(records), 10 * FACTOR) for _ in range(4)]
    assert [type(record) for record in seen] == [Subscribed, Tick, Disconnected, Subscribed]
    assert "out_of_order" in seen[2].reason
    assert seen[3].recovered is False
    assert "resume" not in asked[1]


async def test_a_full_buffer_stops_the_reading_and_loses_nothing() -> None:
    sent = asyncio.Event()

    async def flood(socket: ServerConnection) -> None:
        await begin(socket)
        for sequence in range(1, 2_001):
            await send_tick(socket, sequence)
        sent.set()
        await socket.wait_closed()

    async with scripted(flood) as url, Client(url, ["NSE:A"], delivery="all", buffer_frames=5) as records:
        assert isinstance(await anext(records), Subscribed)
        prices = [(await asyncio.wait_for(anext(records), 10 * FACTOR)).price for _ in range(2_000)]
        assert prices == [float(number) for number in range(1, 2_001)]
        await sent.wait()
        assert records._buffer.qsize() <= 5


async def test_closing_ends_the_iteration_after_what_is_buffered() -> None:
    async with scripted(staying) as url:
        client = Client(url, ["NSE:A"])
        async with client:
            assert isinstance(await anext(client), Subscribed)
            waiting = asyncio.ensure_future(anext(client, None))
            await asyncio.sleep(0)
            await client.close()
            assert await asyncio.wait_for(waiting, 10 * FACTOR) is None
        assert [record async for record in client] == []


async def test_nobody_there_is_said_and_tried_again() -> None:
    async with scripted(staying) as url:
        pass
    async with Client(url, ["NSE:A"], backoff=Backoff(**AT_ONCE)) as records:
        for _ in range(3):
            gone = await asyncio.wait_for(anext(records), 10 * FACTOR)
            assert isinstance(gone, Disconnected)
            assert gone.code == 1006
