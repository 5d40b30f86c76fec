"""Depth of a running daemon: pinned, leased in Redis, written in order, shown, going on after a restart."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.pipeline.sequencer import parse_position
from services.storage.client import make_client
from simulators.dhan_depth import DEPTH_20
from tests.support.eventually import eventually
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(240)


async def test_books_are_written_in_one_order_with_the_ticks_and_go_on_after_a_restart(
    stack: Stack, tmp_path: Path
) -> None:
    redis = make_client(stack.redis_url)
    settings = {
        "DHAN_DEPTH_20_URL": stack.dhan.depth_20_url,
        "DHAN_DEPTH_200_URL": stack.dhan.depth_200_url,
        "DEPTH_INSTRUMENTS": "NSE:RELIANCE@20, NSE:TCS, NSE:NIFTY, NSE:HDFCBANK@200",
    }

    async def newest(levels: str) -> dict[str, Any]:
        entries = await redis.xrevrange("md:depth:NSE", count=200)
        return {fields["k"]: (name, fields) for name, fields in reversed(entries) if fields["lv"] == levels}

    async def has(levels: str, instrument: str) -> bool:
        return instrument in await newest(levels)

    async with stack.daemon(tmp_path / "state", **settings) as daemon:
        await eventually(lambda: has("20", "NSE:RELIANCE"), within_s=20)
        await eventually(lambda: has("200", "NSE:HDFCBANK"), within_s=20)
        await eventually(lambda: has("5", "NSE:TCS"), within_s=20)
        entries = await redis.xrange("md:depth:NSE")
        assert {fields["k"] for _, fields in entries} == {"NSE:RELIANCE", "NSE:TCS", "NSE:HDFCBANK"}

        async def streams() -> bool:
            sources = (await daemon.status())["pipeline"]["depth"]["sources"]
            return [row.get("state") for row in sources[1:]] == ["streaming"] * 2

        await eventually(streams)
        pipeline = (await daemon.status())["pipeline"]
        depth = pipeline["depth"]
        assert {row["instrument"]: row["reason"] for row in depth["refused"]} == {"NSE:NIFTY": "no_depth"}
        assert [(row["levels"], row["carried"]) for row in depth["sources"]] == [(5, 3), (20, 1), (200, 1)]
        (sink,) = [row for row in pipeline["sinks"] if row["name"] == "depth_stream"]
        assert (sink["state"], sink["imbalance"]) == ("ready", 0)
        async with aiohttp.ClientSession() as http, http.get(daemon.runtime["api_url"] + "/metrics") as page:
            assert 'marketd_depth_carried{levels="20"} 1.0' in await page.text()

        # A consumer of the streams asks for one more, and gives it up.
        await redis.zadd("md:depth_interest", {"NSE:M&M 20": int(time.time() * 1000) + 60_000})
        await eventually(lambda: has("20", "NSE:M&M"), within_s=20)
        await redis.zrem("md:depth_interest", "NSE:M&M 20")
        assert await daemon.stop() == 0
    await eventually(lambda: not [it for it, variant in stack.dhan.watched() if variant == DEPTH_20])
    before = await redis.xrevrange("md:depth:NSE", count=1)
    stale = {name: fields for name, (_, fields) in (await newest("20")).items()}
    assert "stale" in stale["NSE:RELIANCE"]["f"].split(","), "who reads the stream hears that it ended"

    # Another daemon with its clock behind: here its last position lies ahead.
    ahead = f"{parse_position(before[0][0])[0] + 5_000}-0"
    await redis.xadd("md:depth:NSE", {"type": "depth"}, id=ahead)
    async with stack.daemon(tmp_path / "state", **settings):

        async def goes_on() -> bool:
            return len(await redis.xrange("md:depth:NSE", min=f"({ahead}", count=5)) == 5

        await eventually(goes_on, within_s=20)
        ids = [parse_position(name) for name, _ in await redis.xrange("md:depth:NSE")]
        assert ids == sorted(set(ids))
        ticks = [parse_position(name) for name, _ in await redis.xrevrange("md:ticks:NSE", count=500)]
        assert not set(ticks) & set(ids), "books and ticks of an exchange share one order"
    await redis.aclose()


async def test_depth_that_is_off_opens_nothing_and_writes_nothing(stack: Stack, tmp_path: Path) -> None:
    redis = make_client(stack.redis_url)
    settings = {"DHAN_DEPTH_20_URL": stack.dhan.depth_20_url, "DEPTH_INSTRUMENTS": "NSE:RELIANCE@20"}
    async with stack.daemon(tmp_path / "state", DEPTH="off", **settings) as daemon:

        async def ticks_flow() -> bool:
            return bool(await redis.xlen("md:ticks:NSE"))

        await eventually(ticks_flow, within_s=20)
        assert (await daemon.status())["pipeline"]["depth"]["on"] is False
    assert not [it for it, variant in stack.dhan.watched() if variant == DEPTH_20]
    assert await redis.exists("md:depth:NSE") == 0
    await redis.aclose()


async def test_in_dynamic_mode_a_wanted_book_makes_its_ticks_be_subscribed(
    stack: Stack, tmp_path: Path
) -> None:
    redis = make_client(stack.redis_url)
    async with stack.daemon(tmp_path / "state", SUBSCRIPTION_MODE="dynamic", SUBSCRIPTION_LINGER_S="0"):
        assert not stack.dhan.watched()
        await redis.zadd("md:depth_interest", {"NSE:TCS": int(time.time() * 1000) + 60_000})

        async def comes() -> bool:
            return bool(await redis.xlen("md:depth:NSE"))

        await eventually(comes, within_s=20)
        assert {symbol for symbol, _ in stack.dhan.watched()} == {"NSE_EQ:11536"}
        await redis.zrem("md:depth_interest", "NSE:TCS")
        await eventually(lambda: not stack.dhan.watched(), within_s=20)
    await redis.aclose()


async def test_clients_get_the_books_they_ask_for_and_hear_why_not_of_others(
    stack: Stack, tmp_path: Path
) -> None:
    settings = {"DHAN_DEPTH_20_URL": stack.dhan.depth_20_url, "SUBSCRIPTION_LINGER_S": "0"}
    wish = {"action": "subscribe", "id": 1, "channels": ["depth"], "levels": 20, "every_ms": 10}
    async with (
        stack.daemon(tmp_path / "state", **settings) as daemon,
        aiohttp.ClientSession() as http,
    ):
        async with http.ws_connect(daemon.runtime["api_url"] + "/ws") as socket:
            await socket.send_json(wish | {"instruments": ["NSE:RELIANCE", "NSE:NIFTY", "NASDAQ:AAPL"]})
            answer = await socket.receive_json(timeout=20)
            assert answer["type"] == "subscribed", answer
            assert answer["refused"] == {"depth": {"NSE:NIFTY": "no_depth", "NASDAQ:AAPL": "no_depth"}}
            while True:
                message = await socket.receive_json(timeout=20)
                if message["type"] == "depth" and message["data"]["NSE:RELIANCE"]["levels"] == 20:
                    break
            book = message["data"]["NSE:RELIANCE"]
            assert len(book["bids"]) == len(book["asks"]) == 20
            assert book["bids"][0][0] < book["asks"][0][0]
            assert {it for it, variant in stack.dhan.watched() if variant == DEPTH_20} == {"NSE_EQ:2885"}
        # With its last client the feed's socket is closed.
        await eventually(lambda: not [it for it, variant in stack.dhan.watched() if variant == DEPTH_20], 20)


async def test_a_client_of_a_gateway_gets_the_books_that_the_ingest_daemon_carries_for_it(
    stack: Stack, tmp_path: Path
) -> None:
    settings = {"DHAN_DEPTH_20_URL": stack.dhan.depth_20_url}
    wish = {"action": "subscribe", "id": 1, "channels": ["depth"], "levels": 20, "instruments": ["NSE:TCS"]}
    async with (
        stack.ingest(tmp_path / "state", **settings),
        stack.gateway(tmp_path / "gateway") as gateway,
        aiohttp.ClientSession() as http,
        http.ws_connect(gateway.runtime["api_url"] + "/ws") as socket,
    ):
        await socket.send_json(wish)
        while True:
            message = await socket.receive_json(timeout=30)
            if message["type"] == "depth" and message["data"]["NSE:TCS"]["levels"] == 20:
                break
        assert len(message["data"]["NSE:TCS"]["asks"]) == 20
