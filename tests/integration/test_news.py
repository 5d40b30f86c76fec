"""News from the simulated Yahoo through Redis to `/api/news`: told once, in turns, within the budget."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import yfinance
from redis.asyncio import Redis

from services.errors import StorageError
from services.gateway.news_api import NewsSource
from services.market_data.clock import SystemClock
from services.news.desk import NewsDesk
from services.news.yahoo_news import YahooNews
from services.rest import vendor_limits
from services.rest.quota import Quota
from services.storage.client import make_client
from services.storage.news_stream import NewsBoard
from simulators.yahoo import YahooSimulator
from tests.support.eventually import eventually
from tests.support.gateway import GatewayRig, running_gateway

SYMBOLS = {"NASDAQ:AAPL": "AAPL", "NASDAQ:MSFT": "MSFT", "NSE:RELIANCE": "RELIANCE.NS"}
TOKENS = {"desk": "correct-horse", "screen": "rain-coat:ticks", "apple": "battery-staple:history@NASDAQ:AAPL"}


class Newsroom:
    """The simulated vendor, a Redis, and a desk that asks as fast as the budget lets it."""

    def __init__(self, redis_url: str) -> None:
        self.redis_url = redis_url
        self.yahoo = YahooSimulator(rate=0)
        self.yahoo.news.made_up = False
        self.wanted: set[str] = set()
        self.clock = SystemClock()
        self.quota = Quota("YF", vendor_limits.YAHOO, self.clock)
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Newsroom:
        await self._stack.enter_async_context(self.yahoo)
        self.redis: Redis = make_client(self.redis_url)
        self._stack.push_async_callback(self.redis.aclose)
        self.desk = self.new_desk()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def new_desk(self, *, topics: tuple[str, ...] = (), every_s: float = 0.2) -> NewsDesk:
        """Return a desk that knows nothing, as after a start."""
        self.board = NewsBoard(self.redis_url)
        source = YahooNews(lambda: {"YAHOO_REST_URL": self.yahoo.rest_url}, self.clock, self.quota)
        self._stack.push_async_callback(self.board.close)
        self._stack.push_async_callback(source.close)
        desk = NewsDesk(
            self.board,
            self.clock,
            code="YF",
            fetch=source.fetch,
            wanted=lambda: self.wanted,
            topics=topics,
            every_s=every_s,
            spacing_s=0.02,
        )
        desk.load(SYMBOLS)
        return desk

    @contextlib.asynccontextmanager
    async def running(self, desk: NewsDesk | None = None) -> AsyncIterator[NewsDesk]:
        """Run a desk."""
        task = asyncio.create_task((desk or self.desk).run())
        try:
            yield desk or self.desk
            assert not task.done()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def entries(self) -> list[dict[str, str]]:
        """Return what the stream holds."""
        return [fields for _, fields in await self.redis.xrange("md:news")]


@pytest.fixture
async def room(redis_url: str) -> AsyncIterator[Newsroom]:
    async with Newsroom(redis_url) as made:
        yield made


async def get(rig: GatewayRig, path: str, token: str = "") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with rig.http.get(rig.url + path, headers=headers) as response:
        return response.status, await response.json()


async def test_an_article_is_told_once_with_its_instruments_and_never_again_after_a_restart(
    room: Newsroom,
) -> None:
    room.wanted = {"NASDAQ:AAPL"}
    told = room.yahoo.news.publish("AAPL", "Apple and friends", "AAPL", "MSFT", "FOO.XX")
    async with room.running():
        await eventually(lambda: room.yahoo.news.answered["AAPL"] >= 3)
    (entry,) = await room.entries()
    assert entry["id"] == f"YF:{told['uuid']}"
    assert entry["k"].split() == ["NASDAQ:AAPL", "NASDAQ:MSFT"]
    assert entry["sym"] == "FOO.XX"
    assert (entry["type"], entry["src"], entry["h"]) == ("news", "YF", "Apple and friends")
    assert entry["t"] == str(told["providerPublishTime"] * 1000)
    asked = room.yahoo.news.answered["AAPL"]
    async with room.running(room.new_desk()) as again:
        await eventually(lambda: room.yahoo.news.answered["AAPL"] >= asked + 2)
        assert again.told == 0
    assert len(await room.entries()) == 1
    (article,) = await room.board.latest("NASDAQ:MSFT", 10)
    assert article.timestamp == told["providerPublishTime"] * 1_000_000, "microseconds"


async def test_nobody_interested_nothing_asked_and_topics_always(room: Newsroom) -> None:
    room.yahoo.news.publish("markets", "All markets", "ZZZ")
    async with room.running(room.new_desk(topics=("markets",))) as desk:
        await eventually(lambda: desk.told == 1)
    assert set(room.yahoo.news.answered) == {"markets"}
    assert (await room.entries())[0].get("k") is None
    async with room.running(room.new_desk()) as desk:
        await asyncio.sleep(0.3)
        assert desk.polls == 0


async def test_an_article_without_symbols_is_about_what_was_asked_for_and_grows(room: Newsroom) -> None:
    room.wanted = {"NSE:RELIANCE"}
    told = room.yahoo.news.publish("RELIANCE.NS", "A refinery")
    async with room.running():
        await eventually(lambda: room.desk.told == 1)
        room.yahoo.news.publish("AAPL", "A refinery", "AAPL", uuid=told["uuid"])
        room.wanted = {"NSE:RELIANCE", "NASDAQ:AAPL"}

        async def both() -> bool:
            return len(await room.entries()) == 2

        await eventually(both)
    assert (await room.entries())[1]["k"].split() == ["NASDAQ:AAPL", "NSE:RELIANCE"]
    assert len(await room.board.latest(None, 10)) == 1


async def test_the_budget_is_kept_and_everybody_has_a_turn(room: Newsroom) -> None:
    room.wanted = set(SYMBOLS)
    room.yahoo.charts.limit.per_second = vendor_limits.YAHOO.burst
    async with room.running():
        await eventually(lambda: len(room.yahoo.news.answered) == 3, within_s=20)
        await eventually(lambda: sum(room.yahoo.news.answered.values()) >= 6, within_s=20)
    counts = room.yahoo.news.answered.values()
    assert max(counts) - min(counts) <= 1
    assert room.yahoo.news.refused == {}
    assert room.quota.taken >= 6


@pytest.mark.parametrize("trouble", ["down", "broken"])
async def test_a_source_in_trouble_is_asked_more_rarely_and_told_of_in_the_status(
    room: Newsroom, trouble: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []
    fail = NewsDesk._failed

    def noted(desk: NewsDesk, error: Exception) -> float:
        waits.append(fail(desk, error))
        return 0.01

    monkeypatch.setattr(NewsDesk, "_failed", noted)
    room.wanted = set(SYMBOLS)
    setattr(room.yahoo.news, trouble, True)
    room.yahoo.news.publish("AAPL", "It is back", "AAPL")
    async with room.running():
        await eventually(lambda: len(waits) >= 3, within_s=20)
        assert room.desk.status()["reason"]
        setattr(room.yahoo.news, trouble, False)
        await eventually(lambda: room.desk.told == 1, within_s=20)
        assert room.desk.status()["reason"] == ""
    assert 5.0 <= waits[0] <= 10.0 <= waits[1] <= 20.0 <= waits[2] <= 40.0
    for _ in range(20):
        assert fail(room.desk, StorageError("x")) <= 900.0


async def test_a_redis_that_lost_everything_is_told_again(room: Newsroom) -> None:
    room.wanted = {"NASDAQ:AAPL"}
    room.yahoo.news.publish("AAPL", "Apple", "AAPL")
    async with room.running():
        await eventually(lambda: room.desk.told == 1)
        await room.redis.delete("md:news")

        async def there() -> bool:
            return len(await room.entries()) == 1

        await eventually(there)


async def test_news_over_http_by_instrument_by_limit_and_by_token(room: Newsroom) -> None:
    for number in range(5):
        room.yahoo.news.publish("AAPL", f"Apple {number}", "AAPL", providerPublishTime=1_796_000_000 + number)
    room.yahoo.news.publish("MSFT", "Microsoft", "MSFT", "AAPL", providerPublishTime=1_796_000_100)
    room.yahoo.news.publish("MSFT", "Only Microsoft", "MSFT", providerPublishTime=1_796_000_200)
    source = NewsSource(room.board, lambda key: key in SYMBOLS, room.desk.ask)
    async with running_gateway(SYMBOLS, news=source, tokens=TOKENS) as rig:
        status, body = await get(rig, "/api/news?instrument=nasdaq:aapl", "correct-horse")
        assert (status, body) == (200, {"instrument": "NASDAQ:AAPL", "news": [], "fetched_ms": None})
        # To have asked is to be interested: nothing else wants them.
        async with room.running():
            await eventually(lambda: room.desk.told == 5)
            assert set(room.yahoo.news.answered) == {"AAPL"}
            await get(rig, "/api/news?instrument=NASDAQ:MSFT", "correct-horse")
            await eventually(lambda: room.desk.told == 7)
        _, body = await get(rig, "/api/news?instrument=NASDAQ:AAPL&limit=2", "correct-horse")
        assert [it["headline"] for it in body["news"]] == ["Microsoft", "Apple 4"]
        assert body["news"][1] == {
            "id": body["news"][1]["id"],
            "ts_ms": 1_796_000_004_000,
            "received_ms": body["news"][1]["received_ms"],
            "headline": "Apple 4",
            "publisher": "Simulated Wire",
            "url": body["news"][1]["url"],
            "instruments": ["NASDAQ:AAPL"],
            "symbols": [],
            "src": "YF",
        }
        assert abs(body["fetched_ms"] - room.clock.now_ms()) < 60_000
        _, body = await get(rig, "/api/news", "correct-horse")
        assert len(body["news"]) == 7
        assert body["instrument"] is None
        _, body = await get(rig, "/api/news", "battery-staple")
        assert len(body["news"]) == 6
        assert {tuple(it["instruments"]) for it in body["news"]} == {("NASDAQ:AAPL",)}
        for path, token, status, code in (
            ("/api/news", "rain-coat", 403, "forbidden"),
            ("/api/news?instrument=NASDAQ:MSFT", "battery-staple", 403, "forbidden"),
            ("/api/news?instrument=NASDAQ:NOPE", "battery-staple", 403, "forbidden"),
            ("/api/news?instrument=NASDAQ:NOPE", "correct-horse", 404, "unknown_instrument"),
            ("/api/news?limit=0", "correct-horse", 400, "bad_parameter"),
            ("/api/news?limit=501", "correct-horse", 400, "bad_parameter"),
            ("/api/news?symbol=AAPL", "correct-horse", 400, "unknown_parameter"),
            ("/api/news", "", 401, "unauthorized"),
        ):
            got, body = await get(rig, path, token)
            assert (got, body["error"]["code"]) == (status, code), path


async def test_without_redis_the_answer_is_503() -> None:
    board = NewsBoard("redis://127.0.0.1:9/0")
    async with running_gateway(news=NewsSource(board, lambda _: True, lambda _: None)) as rig:
        status, body = await get(rig, "/api/news")
        assert (status, body["error"]["code"]) == (503, "unavailable")
    await board.close()


async def test_yfinance_reads_the_same_articles_from_the_same_server(
    room: Newsroom, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = room.yahoo.news.publish("AAPL", "Apple", "AAPL", "MSFT")
    monkeypatch.setattr("yfinance.search._BASE_URL_", room.yahoo.rest_url)
    found = await asyncio.to_thread(lambda: yfinance.Search("AAPL", news_count=20).news)
    assert found == [told]
