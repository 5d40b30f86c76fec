"""The channels beside ticks over two gateway processes: the ingest daemon gets what they ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from services.storage.client import make_client
from tests.support.eventually import FACTOR, eventually
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = make_client(redis_url)
    yield client
    await client.aclose()


async def chains_of(socket: Any, count: int) -> dict[str, dict[str, Any]]:
    """Return the next so many chains by their entry."""
    found: dict[str, dict[str, Any]] = {}
    while len(found) < count:
        chain = await next_of(socket, "options")
        found[chain["entry"]] = chain
    return found


async def subscribed(http: aiohttp.ClientSession, url: str, **wish: Any) -> tuple[Any, dict[str, Any]]:
    """Return a socket with a subscription, and the answer."""
    socket = await http.ws_connect(f"{url}/ws", max_msg_size=16 << 20)
    await socket.send_json({"action": "subscribe", "id": 1, **wish})
    return socket, await next_of(socket, "subscribed", "error")


async def next_of(socket: Any, *kinds: str) -> dict[str, Any]:
    while True:
        message: dict[str, Any] = await socket.receive_json(timeout=30 * FACTOR)
        if message["type"] in kinds:
            return message


async def test_two_gateways_show_the_same_chain_books_and_trades_and_ask_only_while_watched(
    stack: Stack, tmp_path: Path, redis: Redis
) -> None:
    async with (
        stack.ingest(tmp_path / "ingest"),
        stack.gateway(tmp_path / "one") as one,
        stack.gateway(tmp_path / "two") as two,
        aiohttp.ClientSession() as http,
    ):
        urls = [daemon.runtime["api_url"] for daemon in (one, two)]
        chains = []
        for url in urls:
            socket, answer = await subscribed(
                http, url, instruments=["NSE:NIFTY", "CRYPTO:BTC-USD"], channels=["options"]
            )
            assert answer["refused"] == {"options": {"CRYPTO:BTC-USD": "no_options"}}
            chains.append(socket)
        heard = await asyncio.gather(*(chains_of(socket, 3) for socket in chains))
        both = heard[0].keys() & heard[1].keys()
        assert both, "both saw the same chains go by"
        for entry in both:
            assert heard[0][entry] == heard[1][entry]
            assert await redis.xrange("md:options:{NSE:NIFTY}", entry, entry)
        assert await redis.zrange("md:options_interest", 0, -1) == ["NSE:NIFTY"]
        for socket in chains:
            await socket.close()

        depth, answer = await subscribed(http, urls[0], instruments=["NSE:TCS"], channels=["depth"])
        assert "refused" not in answer
        book = (await next_of(depth, "depth"))["data"]["NSE:TCS"]
        assert len(book["bids"]) == len(book["asks"]) == 5
        assert await redis.zrange("md:depth_interest", 0, -1) == ["NSE:TCS 5"]

        trades, answer = await subscribed(
            http, urls[1], instruments=["NSE:TCS"], channels=["trade"], delivery="all"
        )
        trade = await next_of(trades, "trade")
        ((position_key, position),) = trade["position"].items()
        ((_, fields),) = await redis.xrange(f"md:ticks:{position_key}", position, position)
        told = trade["data"]["NSE:TCS"]
        assert (float(fields["p"]), int(fields["v"])) == (told["price"], told["quantity"])

        await depth.close()
        await trades.close()

        async def nobody_asks() -> bool:
            return not await redis.zrange("md:options_interest", 0, -1)

        await eventually(nobody_asks, within_s=60)


async def test_one_daemon_tells_what_it_writes(stack: Stack, tmp_path: Path, redis: Redis) -> None:
    async with stack.daemon(tmp_path / "state") as daemon, aiohttp.ClientSession() as http:
        socket, _ = await subscribed(
            http, daemon.runtime["api_url"], instruments=["NSE:NIFTY"], channels=["options"]
        )
        entries = [(await next_of(socket, "options"))["entry"] for _ in range(2)]

        async def written() -> bool:
            stored = [name for name, _ in await redis.xrange("md:options:{NSE:NIFTY}")]
            return set(entries) <= set(stored)

        await eventually(written)
        pipeline = (await daemon.status())["pipeline"]
        assert pipeline["options"]["stream"]["written"] >= 2
        all_news, answer = await subscribed(
            http, daemon.runtime["api_url"], instruments=["*"], channels=["news"]
        )
        assert (answer["accepted"], answer["snapshots"]) == (["*"], {"news": []})
        await all_news.close()
        await socket.close()
