"""Clients that come back: everything they missed, in order and once, or a new beginning; never a part.

A real gateway and a real client over real sockets; the streams are in a real Redis.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from services.gateway.recovery import RecoveryLimits
from services.storage.client import make_client
from services.storage.keys import tick_stream
from tests.support.eventually import FACTOR, eventually
from tests.support.gateway import GatewayRig, ask, running_gateway
from tests.support.servers import PrivateRedis

KEYS = ("NSE:RELIANCE", "NSE:TCS", "NASDAQ:AAPL")


async def receive(socket: aiohttp.ClientWebSocketResponse) -> dict[str, Any]:
    message: dict[str, Any] = await socket.receive_json(timeout=10 * FACTOR)
    return message


async def all_before_the_pong(socket: aiohttp.ClientWebSocketResponse) -> list[dict[str, Any]]:
    """Everything that stands before the answer to a ping."""
    await socket.send_json({"action": "ping", "id": "end"})
    messages = []
    while (message := await receive(socket))["type"] != "pong":
        messages.append(message)
    return messages


def prices(messages: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [
        (key, data["last_price"]) for message in messages for key, data in message.get("data", {}).items()
    ]


def here(rig: GatewayRig, **position: str) -> dict[str, Any]:
    return {"epoch": rig.backend.epoch, "position": position}


async def test_all_that_was_missed_comes_in_order_and_once_with_the_control_records(redis_url: str) -> None:
    async with running_gateway(KEYS, redis_url=redis_url) as rig:
        seen = rig.market.tick("NSE:TCS", 1.0)
        rig.market.tick("NSE:TCS", 2.0, volume=None, bid=1.5, oi=7, flags=8)
        rig.market.tick("NSE:RELIANCE", 50.0)
        gap = rig.market.control("gap", "NSE:TCS", **{"from": 5, "to": 9, "reason": "805"})
        rig.market.control("bar", "NSE:TCS", i="1m", s=60)
        rig.market.control("stale", "NSE:RELIANCE")
        rig.market.control("session", "NSE:*", state="close")
        rig.market.tick("NSE:TCS", 3.0)
        socket, answer = await rig.subscriber("NSE:TCS", delivery="all", resume=here(rig, NSE=seen.position))
        assert answer["recovered"] is True
        assert answer["position"] == {"NSE": seen.position}
        assert answer["snapshot"] == {}
        rig.market.tick("NSE:TCS", 4.0)
        missed = await all_before_the_pong(socket)
        assert [message["type"] for message in missed] == [
            "raw_tick",
            "gap",
            "session",
            "raw_tick",
            "raw_tick",
        ]
        assert prices(missed) == [("NSE:TCS", 2.0), ("NSE:TCS", 3.0), ("NSE:TCS", 4.0)]
        assert missed[1] == {
            "type": "gap",
            "instrumentKey": "NSE:TCS",
            "ts_ms": gap.timestamp,
            "src": "DHAN",
            "from": 5,
            "to": 9,
            "reason": "805",
            "position": {"NSE": gap.position},
        }
        live, _ = await rig.subscriber("NSE:TCS", delivery="all")
        again = rig.market.tick("NSE:TCS", 2.0, volume=None, bid=1.5, oi=7, flags=8)
        (frame,) = await all_before_the_pong(live)
        stored = missed[0]["data"]["NSE:TCS"]
        assert stored | {"ts_ms": again.timestamp} == frame["data"]["NSE:TCS"]


async def test_what_is_live_joins_what_was_missed_without_a_seam(redis_url: str) -> None:
    """A flood goes on while clients come back, each from another place, some of them to a wildcard."""
    keys = [f"NSE:S{number}" for number in range(20)]
    async with running_gateway(keys, redis_url=redis_url) as rig:
        prices_of = itertools.count(1)

        async def flood() -> None:
            while True:
                for key in keys:
                    rig.market.tick(key, float(next(prices_of)))
                if len(rig.market.made) % 500 < 20:
                    rig.market.control("session", "NSE:*", state="open")
                await asyncio.sleep(0.002)

        flooding = asyncio.create_task(flood())
        await eventually(lambda: len(rig.market.made) > 3_000, 20.0)

        async def come_back(number: int) -> None:
            start = rig.market.made[number * 137]
            wanted = ["NSE:*"] if number % 2 else [keys[number], keys[number + 1]]
            socket, answer = await rig.subscriber(
                *wanted, delivery="all", resume=here(rig, NSE=start.position)
            )
            assert answer["recovered"] is True, answer
            until = len(rig.market.made) + 500
            heard: list[dict[str, Any]] = []
            while len(rig.market.made) < until:
                heard.extend(await all_before_the_pong(socket))
            await socket.close()
            expected = [
                (record.symbol, getattr(record, "price", None))
                for record in rig.market.made[number * 137 + 1 :]
                if number % 2 or record.symbol in (*wanted, "NSE:*")
            ]
            got = [
                item
                for message in heard
                for item in (
                    [(key, data["last_price"]) for key, data in message["data"].items()]
                    if message["type"] == "raw_tick"
                    else [(message["instrumentKey"], None)]
                )
            ]
            assert got == expected[: len(got)]
            assert len(got) > 500 / (1 if number % 2 else 20)

        await asyncio.gather(*(come_back(number) for number in range(12)))
        flooding.cancel()
        figures = rig.figures()["resumed"]
        assert figures["recovered"] == 12
        assert figures["scans"] < 12, "clients that wait together are served together"


async def test_latest_gets_the_newest_values_and_every_control_record(redis_url: str) -> None:
    async with running_gateway(KEYS, redis_url=redis_url) as rig:
        rig.market.tick("NSE:RELIANCE", 50.0)
        seen = rig.market.tick("NSE:TCS", 1.0)
        rig.market.tick("NSE:TCS", 2.0)
        rig.market.control("stale", "NSE:TCS")
        rig.market.control("resumed", "NSE:TCS")
        rig.market.tick("NSE:TCS", 3.0)
        socket, answer = await rig.subscriber("NSE:*", every_ms=10, resume=here(rig, NSE=seen.position))
        assert (answer["recovered"], answer["snapshot"]) == (True, {})
        assert [(await receive(socket))["type"] for _ in range(2)] == ["stale", "resumed"]
        frame = await receive(socket)
        assert dict(prices([frame])) == {"NSE:TCS": 3.0, "NSE:RELIANCE": 50.0}


async def test_exchanges_are_recovered_together_or_not_at_all(redis_url: str) -> None:
    async with running_gateway(KEYS, redis_url=redis_url) as rig:
        nse = rig.market.tick("NSE:TCS", 1.0)
        nasdaq = rig.market.tick("NASDAQ:AAPL", 10.0)
        for price in (2.0, 3.0):
            rig.market.tick("NASDAQ:AAPL", price * 10)
            rig.market.tick("NSE:TCS", price)
        both = here(rig, NSE=nse.position, NASDAQ=nasdaq.position)
        socket, answer = await rig.subscriber("NSE:TCS", "NASDAQ:AAPL", delivery="all", resume=both)
        assert answer["recovered"] is True
        assert prices(await all_before_the_pong(socket)) == [
            ("NASDAQ:AAPL", 20.0),
            ("NSE:TCS", 2.0),
            ("NASDAQ:AAPL", 30.0),
            ("NSE:TCS", 3.0),
        ]
        for position in (
            {"NSE": nse.position},
            {"NSE": nse.position, "NASDAQ": "1700000000000-1"},
            {"NSE": nse.position, "NASDAQ": "1900000000000-1"},
        ):
            other, answer = await rig.subscriber(
                "NSE:TCS", "NASDAQ:AAPL", delivery="all", resume=here(rig, **position)
            )
            assert answer["recovered"] is False
            assert answer["reason"] in {"position_unknown", "position_ahead", "trimmed"}
            assert answer["snapshot"].keys() == {"NSE:TCS", "NASDAQ:AAPL"}
            assert answer["position"] == rig.broadcast.positions()
            rig.market.tick("NSE:TCS", 4.0)
            assert prices(await all_before_the_pong(other)) == [("NSE:TCS", 4.0)]


async def test_a_client_that_saw_nothing_yet_is_recovered_from_the_very_beginning(redis_url: str) -> None:
    async with running_gateway(KEYS, redis_url=redis_url) as rig:
        socket, answer = await rig.subscriber("NSE:TCS", delivery="all")
        assert answer["position"] == {"NSE": "0-0"}
        await socket.close()
        for price in (1.0, 2.0):
            rig.market.tick("NSE:TCS", price)
        socket, answer = await rig.subscriber(
            "NSE:TCS", delivery="all", resume={"epoch": answer["epoch"], "position": answer["position"]}
        )
        assert answer["recovered"] is True
        assert prices(await all_before_the_pong(socket)) == [("NSE:TCS", 1.0), ("NSE:TCS", 2.0)]


async def test_a_stream_that_no_longer_reaches_back_makes_a_new_beginning(redis_url: str) -> None:
    async with running_gateway(KEYS, redis_url=redis_url, max_entries=100) as rig:
        seen = rig.market.tick("NSE:TCS", 0.0)
        for price in range(1, 1_000):
            rig.market.tick("NSE:TCS", float(price))
        client: Redis = make_client(redis_url)
        await eventually(lambda: rig.stream is not None and rig.stream.queued == 0)
        assert await client.xlen(tick_stream("NSE")) < 500
        for start in (seen.position, "0-0"):
            socket, answer = await rig.subscriber("NSE:TCS", delivery="all", resume=here(rig, NSE=start))
            assert (answer["recovered"], answer["reason"]) == (False, "trimmed")
            assert answer["snapshot"]["NSE:TCS"]["last_price"] == 999.0
            assert await all_before_the_pong(socket) == []
        await client.aclose()


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (RecoveryLimits(entries=300), "too_far_behind"),
        (RecoveryLimits(bytes=2_000), "too_far_behind"),
        (RecoveryLimits(bytes_in_all=2_000), "busy"),
    ],
)
async def test_more_than_the_limits_allow_makes_a_new_beginning(
    limits: RecoveryLimits, reason: str, redis_url: str
) -> None:
    async with running_gateway(KEYS, redis_url=redis_url, recovery=limits) as rig:
        seen = rig.market.tick("NSE:TCS", 0.0)
        for price in range(1, 1_000):
            rig.market.tick("NSE:TCS", float(price))
        socket, answer = await rig.subscriber("NSE:TCS", delivery="all", resume=here(rig, NSE=seen.position))
        assert (answer["recovered"], answer["reason"]) == (False, reason)
        assert await all_before_the_pong(socket) == []
        near = rig.market.made[-3].position
        socket, answer = await rig.subscriber("NSE:TCS", delivery="all", resume=here(rig, NSE=near))
        assert answer["recovered"] is True
        assert [price for _, price in prices(await all_before_the_pong(socket))] == [998.0, 999.0]
        assert rig.figures()["resumed"]["refused"] == {reason: 1}


async def test_an_absent_redis_makes_a_new_beginning_and_live_ticks_go_on(
    private_redis: Callable[[], Awaitable[PrivateRedis]],
) -> None:
    server = await private_redis()
    async with running_gateway(KEYS, redis_url=server.url, recovery=RecoveryLimits(behind_s=0.3)) as rig:
        seen = rig.market.tick("NSE:TCS", 1.0)
        other, _ = await rig.subscriber("NSE:TCS", delivery="all")
        await eventually(lambda: rig.stream is not None and rig.stream.queued == 0)
        for harm, heal in ((server.pause, server.resume), (server.kill, None)):
            result = harm()
            if result is not None:
                await result
            rig.market.tick("NSE:TCS", 2.0)
            resuming = asyncio.create_task(
                rig.subscriber("NSE:TCS", delivery="all", resume=here(rig, NSE=seen.position))
            )
            assert prices([await receive(other)]) == [("NSE:TCS", 2.0)]
            socket, answer = await resuming
            assert (answer["recovered"], answer["reason"]) == (False, "history_unavailable")
            assert answer["snapshot"]["NSE:TCS"]["last_price"] == 2.0
            rig.market.tick("NSE:TCS", 3.0)
            assert prices(await all_before_the_pong(socket)) == [("NSE:TCS", 3.0)]
            assert prices([await receive(other)]) == [("NSE:TCS", 3.0)]
            if heal is not None:
                heal()
                await eventually(lambda: rig.stream is not None and rig.stream.queued == 0, 10.0)


async def test_messages_after_a_resume_are_answered_behind_what_was_missed(redis_url: str) -> None:
    async with running_gateway(KEYS, redis_url=redis_url) as rig:
        seen = rig.market.tick("NSE:TCS", 1.0)
        rig.market.tick("NSE:TCS", 2.0)
        socket = await rig.connect()
        await socket.send_json(
            {
                "action": "subscribe",
                "id": 1,
                "instruments": ["NSE:TCS"],
                "delivery": "all",
                "resume": here(rig, NSE=seen.position),
            }
        )
        await socket.send_json({"action": "unsubscribe", "id": 2, "instruments": ["NSE:TCS"]})
        await socket.send_json({"action": "list", "id": 3})
        messages = [await receive(socket) for _ in range(4)]
        assert [message["type"] for message in messages] == [
            "subscribed",
            "raw_tick",
            "unsubscribed",
            "subscriptions",
        ]
        assert messages[2]["instruments"] == ["NSE:TCS"]
        assert rig.backend.interest == set()


async def test_a_client_that_goes_while_its_history_is_read_leaves_nothing_behind(
    private_redis: Callable[[], Awaitable[PrivateRedis]],
) -> None:
    server = await private_redis()
    async with running_gateway(KEYS, redis_url=server.url) as rig:
        seen = rig.market.tick("NSE:TCS", 1.0)
        rig.market.tick("NSE:TCS", 2.0)
        server.pause()
        socket = await rig.connect()
        await socket.send_json(
            {
                "action": "subscribe",
                "instruments": ["NSE:TCS"],
                "delivery": "all",
                "resume": here(rig, NSE=seen.position),
            }
        )
        await eventually(lambda: rig.backend.interest == {"NSE:TCS"})
        await socket.close()
        await eventually(lambda: rig.backend.interest == set())
        server.resume()
        _, answer = await rig.subscriber("NSE:TCS", delivery="all", resume=here(rig, NSE=seen.position))
        assert "recovered" in answer


async def test_a_pong_tells_the_position_so_that_quiet_instruments_do_not_fall_behind(
    redis_url: str,
) -> None:
    async with running_gateway(KEYS, redis_url=redis_url) as rig:
        socket, _ = await rig.subscriber("NSE:TCS", delivery="all")
        newest = rig.market.tick("NSE:RELIANCE", 1.0)
        assert (await ask(socket, action="ping", id=1))["position"] == {"NSE": newest.position}


async def test_a_client_from_a_gateway_that_was_ahead_is_waited_for_and_misses_nothing(
    redis_url: str,
) -> None:
    limits = RecoveryLimits(ahead_s=5.0 * FACTOR)
    async with running_gateway(KEYS, redis_url=redis_url, recovery=limits) as rig:
        seen = rig.market.tick("NSE:TCS", 1.0)
        ahead = f"{seen.position_ms}-{seen.position_seq + 1}"
        socket = await rig.connect()
        wish = {"action": "subscribe", "id": 1, "instruments": ["NSE:TCS"], "delivery": "all"}
        await socket.send_json(wish | {"resume": here(rig, NSE=ahead)})
        await socket.send_json({"action": "ping", "id": 2})
        await asyncio.sleep(0.1)
        rig.market.tick("NSE:RELIANCE", 50.0)
        rig.market.tick("NSE:TCS", 2.0)
        messages = [await receive(socket) for _ in range(3)]
        assert [message["type"] for message in messages] == ["subscribed", "raw_tick", "pong"], messages
        assert messages[0]["recovered"] is True
        assert prices(messages) == [("NSE:TCS", 2.0)], "the tick it was ahead by is not sent again"


async def test_a_client_that_is_ahead_of_everything_begins_anew_after_a_while(redis_url: str) -> None:
    async with running_gateway(KEYS, redis_url=redis_url, recovery=RecoveryLimits(ahead_s=0.3)) as rig:
        seen = rig.market.tick("NSE:TCS", 1.0)
        ahead = f"{seen.position_ms}-{seen.position_seq + 1_000}"
        _, answer = await rig.subscriber("NSE:TCS", delivery="all", resume=here(rig, NSE=ahead))
        assert (answer["recovered"], answer["reason"]) == (False, "position_ahead")
        gone = await rig.connect()
        wish = {"action": "subscribe", "id": 1, "instruments": ["NSE:TCS"], "delivery": "all"}
        await gone.send_json(wish | {"resume": here(rig, NSE=ahead)})
        await gone.close()
        await eventually(lambda: rig.figures()["connected"] == 1)
        assert rig.figures()["resumed"]["refused"] == {"position_ahead": 1}
