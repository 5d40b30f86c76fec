"""The JavaScript client against the real gateway: under Node, and in a real headless Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from services.gateway.channel_feeds import DepthFeed
from tests.support.books import ToldBooks
from tests.support.eventually import FACTOR, eventually
from tests.support.gateway import GatewayRig, running_gateway
from tests.support.javascript import CLIENT, Browser, browser_path, node_command

pytestmark = pytest.mark.timeout(120)


class Follower:
    """The client under Node, as a process that prints each record it gets."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.point: Any = None

    async def next_of(self, *kinds: str) -> dict[str, Any]:
        """Return the next record of one of these types."""
        assert self._process.stdout is not None
        while True:
            line = await asyncio.wait_for(self._process.stdout.readline(), 20 * FACTOR)
            assert line, "the client has ended"
            record: dict[str, Any] = json.loads(line)
            if "point" in record:
                self.point = record.pop("point")
            if record["type"] in kinds:
                return record

    async def tell(self, *words: str) -> None:
        """Call a method of the client with these arguments."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        await self._process.stdin.drain()


@contextlib.asynccontextmanager
async def following(url: str | list[str], *instruments: str, **options: Any) -> AsyncIterator[Follower]:
    process = await asyncio.create_subprocess_exec(
        *node_command(),
        CLIENT / "examples" / "follow.mjs",
        url if isinstance(url, str) else ",".join(url),
        json.dumps(instruments),
        json.dumps(options),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    try:
        yield Follower(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.communicate(), 10 * FACTOR)
        except TimeoutError:
            process.kill()
            await process.communicate()


def cut_all(rig: GatewayRig) -> None:
    assert rig.gateway._sockets.sessions, "there is a connection to cut"
    for session in list(rig.gateway._sockets.sessions):
        session.abort(1006, "cut by the test")


async def test_node_gets_every_tick_and_control_record_in_order() -> None:
    async with running_gateway() as rig:
        rig.market.tick("NSE:TCS", 99.5, bid=99.0)
        async with following(rig.url, "NSE:TCS", "NSE:NOPE", delivery="all") as client:
            begun = await client.next_of("subscribed")
            assert begun["rejected"] == {"NSE:NOPE": "unknown_instrument"}
            assert begun["snapshot"]["NSE:TCS"]["bid"] == 99.0
            assert "recovered" not in begun
            for price in range(1, 301):
                rig.market.tick("NSE:TCS", float(price))
                if price == 150:
                    rig.market.control("gap", "NSE:TCS", **{"from": 1, "to": 2, "reason": "reset"})
            heard = [await client.next_of("tick", "control") for _ in range(301)]
            assert [record["price"] for record in heard if record["type"] == "tick"] == list(range(1, 301))
            assert heard[150]["event"] == "gap"
            assert heard[150]["fields"] == {"from": 1, "to": 2, "reason": "reset"}
            assert client.point == {"epoch": "epoch-1", "position": rig.broadcast.positions()}


async def test_node_comes_back_resumes_and_says_what_is_lost() -> None:
    async with running_gateway() as rig:
        rig.market.tick("NSE:TCS", 1.0)
        async with following(rig.url, "NSE:TCS", delivery="all") as client:
            await client.next_of("subscribed")
            cut_all(rig)
            assert (await client.next_of("disconnected"))["code"] == 1006
            assert (await client.next_of("subscribed"))["recovered"] is True
            cut_all(rig)
            rig.market.tick("NSE:TCS", 2.0)
            await client.next_of("disconnected")
            back = await client.next_of("subscribed")
            rig.market.tick("NSE:TCS", 3.0)
            if back["recovered"]:
                assert [(await client.next_of("tick"))["price"] for _ in range(2)] == [2.0, 3.0]
            else:
                assert back["snapshot"]["NSE:TCS"]["price"] == 2.0
                assert (await client.next_of("tick"))["price"] == 3.0
            rig.backend.epoch = "epoch-2"
            cut_all(rig)
            assert (await client.next_of("subscribed"))["recovered"] is False


async def test_node_watches_more_and_less_while_it_runs() -> None:
    async with running_gateway() as rig, following(rig.url, "NSE:TCS", everyMs=10) as client:
        await client.next_of("subscribed")
        await client.tell("subscribe", "NASDAQ:AAPL")
        assert (await client.next_of("subscribed"))["accepted"] == ["NASDAQ:AAPL"]
        await client.tell("unsubscribe", "NSE:TCS")
        await eventually(lambda: rig.backend.interest == {"NASDAQ:AAPL"}, within_s=10)


async def test_the_secret_is_the_first_message_and_a_wrong_one_ends_the_client() -> None:
    async with running_gateway(tokens={"reader": "a-good-secret"}) as rig:
        async with following(rig.url, "NSE:TCS", token="a-good-secret") as client:
            await client.next_of("subscribed")
            (session,) = rig.gateway._sockets.sessions
            assert session.principal is not None
            assert session.principal.name == "reader"
        async with following(rig.url, "NSE:TCS", token="a-bad-secret") as client:
            ended = await client.next_of("ended")
            assert (ended["name"], ended["code"]) == ("ConnectionRefused", 4500)


async def test_node_hears_trades_and_books_and_goes_on_at_another_gateway(redis_url: str) -> None:
    books = ToldBooks()
    async with running_gateway(redis_url=redis_url) as one, running_gateway() as other:
        DepthFeed(one.gateway.channels, books)
        async with following(one.url, "NSE:TCS", "NSE:RELIANCE", channels=["depth"]) as client:
            begun = await client.next_of("subscribed")
            assert begun["refused"] == {"depth": {"NSE:RELIANCE": "no_depth"}}
            books.tell("NSE:TCS", 100.0)
            book = await client.next_of("depth")
            assert (book["bids"][0], book["flags"], book["levels"]) == ([100.0, 10, 1], [], 5)
        options = {"channels": ["trade"], "delivery": "all"}
        async with following([one.url, other.url], "NSE:TCS", **options) as client:
            await client.next_of("subscribed")
            first = one.market.tick("NSE:TCS", 1.0, volume=5)
            trade = await client.next_of("trade")
            assert (trade["price"], trade["quantity"], trade["tsMs"]) == (1.0, 5, first.timestamp)
            # The other gateway stands where this one does, as both follow one stream.
            other.market.offer(first)
            cut_all(one)
            await client.next_of("disconnected")
            assert (await client.next_of("subscribed"))["recovered"] is True
            assert other.figures()["connected"] == 1
            other.market.sequence = first.position_seq
            other.market.tick("NSE:TCS", 2.0, volume=6)
            assert (await client.next_of("trade"))["quantity"] == 6


PAGE = b"""<!doctype html><title>client</title><script type="module">
import { Backoff, Client } from "/client/index.js";
window.records = [];
window.follow = (url, keys, options) => {
  const backoff = new Backoff({ firstMs: 20 });
  const client = (window.client = new Client(url, keys, { ...options, backoff }));
  (async () => { for await (const record of client) window.records.push(record); })()
    .catch((error) => window.records.push({ type: "ended", name: error.name, code: error.code }));
};
window.ready = true;
</script>"""


@contextlib.asynccontextmanager
async def web_site() -> AsyncIterator[str]:
    """A web site of somebody else, with a page that uses the client."""

    async def page(_request: web.Request) -> web.Response:
        return web.Response(body=PAGE, content_type="text/html")

    application = web.Application()
    application.router.add_get("/", page)
    application.router.add_static("/client", CLIENT / "src")
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


async def test_a_page_in_a_real_browser_follows_comes_back_and_resumes(tmp_path: Path) -> None:
    browser_path()
    async with (
        web_site() as site,
        running_gateway(tokens={"page": "a-good-secret"}, allowed_origins=(site,)) as rig,
        Browser.open(site, tmp_path / "profile") as page,
    ):
        await eventually(lambda: page.evaluate("window.ready === true"), within_s=20)
        rig.market.tick("NSE:TCS", 0.5)
        wish = json.dumps([rig.url, ["NSE:TCS"], {"delivery": "all", "token": "a-good-secret"}])
        await page.evaluate(f"void follow(...{wish})")

        async def seen(kind: str, count: int) -> list[dict[str, Any]]:
            async def enough() -> list[dict[str, Any]]:
                found = await page.evaluate(f"records.filter(record => record.type === '{kind}')")
                return found if len(found) >= count else []

            return await eventually(enough, within_s=20)

        await seen("subscribed", 1)
        for price in range(1, 101):
            rig.market.tick("NSE:TCS", float(price))
        assert [tick["price"] for tick in await seen("tick", 100)] == list(range(1, 101))
        (session,) = rig.gateway._sockets.sessions
        assert session.principal is not None
        cut_all(rig)
        await seen("disconnected", 1)
        assert (await seen("subscribed", 2))[1]["recovered"] is True
        rig.market.tick("NSE:TCS", 101.0)
        assert (await seen("tick", 101))[-1]["price"] == 101
        assert await page.evaluate("client.resumePoint.position") == rig.broadcast.positions()
        await page.evaluate("client.close()")
        await eventually(lambda: not rig.gateway._sockets.sessions, within_s=10)


async def test_a_page_of_a_foreign_site_gets_nothing(tmp_path: Path) -> None:
    browser_path()
    async with (
        web_site() as site,
        running_gateway() as rig,
        Browser.open(site, tmp_path / "profile") as page,
    ):
        await eventually(lambda: page.evaluate("window.ready === true"), within_s=20)
        await page.evaluate(f"void follow('{rig.url}', ['NSE:TCS'], {{}})")

        async def refused() -> list[dict[str, Any]]:
            found: list[dict[str, Any]] = await page.evaluate("records")
            return found if len(found) >= 2 else []

        assert {record["type"] for record in await eventually(refused, within_s=20)} == {"disconnected"}
        assert rig.figures()["accepted"] == 0
