"""Faults of gateways that run as processes of their own, and of what they stand on.

Real processes: an ingest daemon and gateways on one Redis that the test may pause, stop and empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
import redis.asyncio

from tests.support.daemon import Daemon
from tests.support.eventually import FACTOR, eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.servers import PrivateRedis
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(240)

MakeRedis = Callable[[], Awaitable[PrivateRedis]]


class Listener:
    """A WebSocket client that keeps everything it is told."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self.socket = socket
        self.messages: list[dict[str, Any]] = []
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self.socket:
            self.messages.append(message.json())

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [message for message in self.messages if message["type"] == kind]

    async def end(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])


@contextlib.asynccontextmanager
async def listener(daemon: Daemon, *instruments: str, **fields: Any) -> AsyncIterator[Listener]:
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{daemon.runtime['api_url']}/ws", max_msg_size=16 << 20) as socket,
    ):
        wish = {"action": "subscribe", "id": 1, "instruments": list(instruments), "delivery": "all"}
        await socket.send_json(wish | fields)
        heard = Listener(socket)
        try:
            await eventually(lambda: heard.of("subscribed"))
            yield heard
        finally:
            await heard.end()


async def ready(daemon: Daemon) -> tuple[bool, str]:
    status, body = await daemon.get("/readyz")
    return status == 200, "; ".join(body["reasons"]) if body else ""


async def is_ready(daemon: Daemon) -> bool:
    return (await ready(daemon))[0]


async def not_ready(daemon: Daemon) -> bool:
    return not await is_ready(daemon)


async def test_without_its_ingest_daemon_a_gateway_says_so_within_five_seconds_and_comes_back_by_itself(
    stack: Stack, tmp_path: Path
) -> None:
    async with stack.ingest(tmp_path / "ingest") as ingest, stack.gateway(tmp_path / "gateway") as gateway:
        async with listener(gateway, "NSE:*", "NASDAQ:AAPL") as heard:
            await eventually(lambda: len(heard.of("raw_tick")) > 20, within_s=20)

            async def shown_streaming() -> bool:
                # As it was reported a second ago at most.
                rows = {row["code"]: row for row in (await gateway.status())["providers"]}
                return rows["DHAN"]["state"] == "streaming" and rows["DHAN"]["age_ms"] < 3_000 * FACTOR

            await eventually(shown_streaming, within_s=5)
            assert ingest.process is not None
            ingest.process.send_signal(signal.SIGKILL)
            began_s = time.monotonic()
            await eventually(lambda: not_ready(gateway), within_s=20)
            if FACTOR == 1:
                assert time.monotonic() - began_s < 5.0
            _, reasons = await ready(gateway)
            assert "nothing delivered for" in reasons
            assert f"pid {ingest.process.pid}" in reasons
            await eventually(
                lambda: {it["instrumentKey"] for it in heard.of("stale")} == {"NSE:*", "NASDAQ:*"}
            )
            assert all(message["position"] == {} for message in heard.of("stale"))

            async def shown_stale() -> bool:
                rows = {row["code"]: row for row in (await gateway.status())["providers"]}
                return rows["DHAN"]["state"] == "stale" and rows["DHAN"]["ticks_per_s"] == 0

            await eventually(shown_stale, within_s=10)
            async with aiohttp.ClientSession() as session:
                with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                    await session.ws_connect(f"{gateway.runtime['api_url']}/ws")
                assert refused.value.status == 503, "an old snapshot would look like live data"
            assert (await gateway.get("/healthz"))[0] == 200
            assert gateway.process is not None
            before = len(heard.of("raw_tick"))
            await ingest.process.wait()
            await ingest.start()
            await eventually(lambda: is_ready(gateway), within_s=20)
            await eventually(lambda: {it["instrumentKey"] for it in heard.of("resumed")} >= {"NSE:*"})
            await eventually(lambda: len(heard.of("raw_tick")) > before, within_s=20)
        assert await ingest.stop() == 0
        await eventually(lambda: not_ready(gateway), within_s=3)
        assert "was stopped" in (await ready(gateway))[1], "a clean stop is told, not found out"
        assert await gateway.stop() == 0


async def test_a_redis_that_hangs_or_starts_again_is_told_and_got_over(
    stack: Stack, tmp_path: Path, private_redis: MakeRedis
) -> None:
    server = await private_redis()
    stack.redis_url = server.url
    async with (
        stack.ingest(tmp_path / "ingest"),
        stack.gateway(tmp_path / "gateway") as gateway,
        listener(gateway, "NSE:*") as heard,
    ):
        await eventually(lambda: len(heard.of("raw_tick")) > 20, within_s=20)
        server.pause()
        try:
            began_s = time.monotonic()
            await eventually(lambda: not_ready(gateway), within_s=20)
            if FACTOR == 1:
                assert time.monotonic() - began_s < 5.5
            assert "Redis" in (await ready(gateway))[1]
        finally:
            server.resume()
        await eventually(lambda: is_ready(gateway), within_s=30)
        await server.stop()
        await eventually(lambda: not_ready(gateway), within_s=20)
        await server.start()
        await eventually(lambda: is_ready(gateway), within_s=60)
        before = len(heard.of("raw_tick"))
        await eventually(lambda: len(heard.of("raw_tick")) > before + 50, within_s=30)
        positions = [
            tuple(map(int, text.split("-")))
            for message in heard.of("raw_tick")
            if (text := message["position"].get("NSE"))
        ]
        assert positions == sorted(set(positions)), "nothing twice, nothing out of order"


async def test_a_redis_that_was_emptied_is_a_new_epoch_on_every_gateway(
    stack: Stack, tmp_path: Path, private_redis: MakeRedis
) -> None:
    server = await private_redis()
    stack.redis_url = server.url
    client = redis.asyncio.from_url(server.url, decode_responses=True)
    async with (
        stack.ingest(tmp_path / "ingest"),
        stack.gateway(tmp_path / "gateway") as gateway,
        listener(gateway, "NSE:*") as heard,
    ):
        await eventually(lambda: len(heard.of("raw_tick")) > 20, within_s=20)
        former = heard.of("subscribed")[0]["epoch"]
        await client.flushall()
        await eventually(lambda: heard.of("resync"), within_s=20)
        epoch = await client.get("md:epoch")
        assert heard.of("resync")[-1]["epoch"] == epoch != former
        assert [gap["reason"] for gap in heard.of("gap")] == ["history_lost"]
        before = len(heard.of("raw_tick"))
        await eventually(lambda: len(heard.of("raw_tick")) > before + 20, within_s=20)
        point = {"NSE": heard.of("raw_tick")[-1]["position"]["NSE"]}
        async with listener(gateway, "NSE:*", resume={"epoch": former, "position": point}) as old:
            assert old.of("subscribed")[0]["reason"] == "epoch_changed"
        async with listener(gateway, "NSE:*", resume={"epoch": epoch, "position": point}) as new:
            assert new.of("subscribed")[0]["recovered"] is True
    await client.aclose()


async def test_a_gateway_that_was_paused_reads_on_or_declares_what_was_trimmed(
    stack: Stack, tmp_path: Path
) -> None:
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    async with (
        stack.ingest(tmp_path / "ingest", STREAM_MAX_ENTRIES=2_000),
        stack.gateway(tmp_path / "gateway") as gateway,
        listener(gateway, "NSE:*") as heard,
    ):
        await eventually(lambda: len(heard.of("raw_tick")) > 20, within_s=20)
        assert gateway.process is not None
        for seconds, rate in ((4.0, 20.0), (8.0, 400.0)):
            before, gaps = len(heard.messages), len(heard.of("gap"))
            stack.dhan.schedule.set_rate(rate)
            gateway.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(seconds)
            gateway.process.send_signal(signal.SIGCONT)
            stack.dhan.schedule.set_rate(20)
            await eventually(lambda: is_ready(gateway), within_s=30)
            await stack.quiet()
            entries = [
                (fields["k"], float(fields["p"]))
                for _, fields in await client.xrange("md:ticks:NSE")
                if fields["type"] == "tick"
            ]
            await eventually(lambda last=entries[-1]: ticks(heard.messages)[-1] == last, within_s=20)
            declared = heard.of("gap")[gaps:]
            if rate < 100:
                assert declared == [], "all of it was still there"
                since = before
            else:
                (gap,) = declared
                assert gap["reason"] == "gateway_behind_trimmed"
                assert gap["instrumentKey"] == "NSE:*"
                assert gap["to"] - gap["from"] > 1_000
                since = heard.messages.index(gap)
            # Tick by tick: outside the gap nothing is missing, doubled or out of order.
            told = ticks(heard.messages[since:])
            count = min(len(told), len(entries))
            assert count > 100
            assert told[-count:] == entries[-count:]
            stack.dhan.schedule.set_rate(20)
            wanted = len(heard.messages) + 20
            await eventually(lambda more=wanted: len(heard.messages) > more, within_s=20)
    await client.aclose()


async def test_a_gateway_follows_the_mappings_and_starts_without_postgresql(
    stack: Stack, tmp_path: Path
) -> None:
    switch = "UPDATE exchanges SET is_active = $1 WHERE code = 'CRYPTO'"
    there = urlsplit(stack.database_url)
    database = await asyncpg.connect(stack.database_url)
    await database.execute(switch, False)
    proxy = FaultProxy(str(there.hostname), there.port or 5432)
    async with contextlib.AsyncExitStack() as up:
        await up.enter_async_context(proxy)
        url = stack.database_url.replace(f":{there.port}/", f":{proxy.port}/")
        await up.enter_async_context(stack.ingest(tmp_path / "ingest"))
        gateway = await up.enter_async_context(stack.gateway(tmp_path / "gateway", DATABASE_URL=url))
        assert (await gateway.get("/api/quotes?instruments=CRYPTO:BTC-USD"))[0] == 404
        async with listener(gateway, "NSE:TCS") as heard:
            await database.execute(switch, True)

            async def known() -> bool:
                return (await gateway.get("/api/quotes?instruments=CRYPTO:BTC-USD"))[0] == 200

            await eventually(known, within_s=20)
            async with listener(gateway, "CRYPTO:BTC-USD") as new:
                await eventually(lambda: len(new.of("raw_tick")) > 3, within_s=30)
                assert new.of("subscribed")[0]["accepted"] == ["CRYPTO:BTC-USD"]
            before = len(heard.of("raw_tick"))
            await eventually(lambda: len(heard.of("raw_tick")) > before, within_s=20)
            assert heard.of("stale") == []
        await database.close()
        assert await gateway.stop() == 0
        await proxy.__aexit__(None, None, None)
        await gateway.start()
        async with listener(gateway, "CRYPTO:BTC-USD") as again:
            await eventually(lambda: len(again.of("raw_tick")) > 3, within_s=30)
        pipeline = (await gateway.status())["pipeline"]
        assert pipeline["mappings"]["from_cache"] is True
        assert "mappings are not refreshed" in " ".join((await gateway.get("/readyz"))[1]["degraded"])


def ticks(messages: list[dict[str, Any]]) -> list[tuple[str, float]]:
    return [
        (key, data["last_price"])
        for message in messages
        if message["type"] == "raw_tick"
        for key, data in message["data"].items()
    ]
