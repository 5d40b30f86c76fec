"""The channels depth, options and news against the real gateway, in one process and over Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from redis.asyncio import Redis

from services.errors import ProviderUnavailable
from services.gateway.channel_feeds import DepthFeed, NewsFeed, OptionFeed
from services.gateway.limits import ClientLimits
from services.market_data.clock import SystemClock
from services.market_data.events import NewsUpdate
from services.market_data.option_chains import OptionChainSnapshot, chain_of_entry, entry_of
from services.market_data.updates import DEPTH_CROSSED, DEPTH_STALE
from services.options.chain import Chain
from services.options.poller import ChainPoller, wanted_of_lease
from services.options.snapshot import snapshot_of
from services.storage.client import make_client
from services.storage.depth_follower import DepthFollower
from services.storage.depth_stream_writer import DepthStreamWriter
from services.storage.news_stream import NewsBoard
from services.storage.option_chain_stream import STREAM_ENTRIES, OptionChainFollower, OptionChainWriter
from tests.support.books import ToldBooks
from tests.support.eventually import FACTOR, eventually
from tests.support.gateway import GatewayRig, ask, running_gateway
from tests.support.options import NIFTY, ToldOptions, option_desk
from tests.support.storage import quick

TCS, RELIANCE = "NSE:TCS", "NSE:RELIANCE"
INSTRUMENTS = (TCS, RELIANCE, "NSE:NIFTY", "NASDAQ:AAPL")
Socket = Any


async def next_of(socket: Socket, *kinds: str) -> dict[str, Any]:
    """Return the next message of one of these types; whatever else comes is passed over."""
    while True:
        message: dict[str, Any] = await socket.receive_json(timeout=5 * FACTOR)
        if message["type"] in kinds:
            return message


@contextlib.asynccontextmanager
async def tasks(*works: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run these beside the test; none of them may end by itself."""
    running = [asyncio.create_task(work) for work in works]
    try:
        yield
        for task in running:
            assert not task.done(), task.exception()
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


# ---- depth --------------------------------------------------------------------------------------


async def test_depth_begins_with_the_newest_book_and_then_the_newest_wins() -> None:
    books = ToldBooks()
    async with running_gateway(INSTRUMENTS) as rig:
        DepthFeed(rig.gateway.channels, books)
        books.tell(TCS, 100.0)
        socket, answer = await rig.subscriber(TCS, RELIANCE, channels=["depth"], every_ms=50)
        assert answer["accepted"] == [TCS, RELIANCE]
        assert answer["refused"] == {"depth": {RELIANCE: "no_depth"}}
        book = (await next_of(socket, "depth"))["data"][TCS]
        assert book["bids"] == [[100.0 - level, 10 + level, 1] for level in range(5)], (
            "five levels, unless asked"
        )
        assert book["asks"][0] == [101.0, 20, 2]
        assert (book["levels"], book["src"], book["entry"]) == (5, "DHAN", "1700000000000-1")
        assert "flags" not in book
        for best in range(200, 300):
            books.tell(TCS, float(best), DEPTH_CROSSED | DEPTH_STALE)
        heard = []
        while not heard or heard[-1]["bids"][0][0] != 299.0:
            heard.append((await next_of(socket, "depth"))["data"][TCS])
        assert len(heard) <= 2
        assert heard[-1]["flags"] == ["crossed", "stale"]
        assert books.wanted == [(TCS, 5)]
        again = await ask(
            socket, action="subscribe", id=2, instruments=[TCS], channels=["depth"], levels=20, delivery="all"
        )
        assert again["accepted"] == [TCS]
        assert len((await next_of(socket, "depth"))["data"][TCS]["asks"]) == 20
        assert books.wanted == [(TCS, 20)], "the shallower one is given back"
        ended = await ask(socket, action="unsubscribe", id=3, instruments=[TCS])
        assert ended["instruments"] == [TCS]
        assert books.wanted == []


async def test_clients_with_different_depths_get_their_own_and_a_lost_client_gives_back_its_want() -> None:
    books = ToldBooks()
    async with running_gateway(INSTRUMENTS) as rig:
        DepthFeed(rig.gateway.channels, books)
        few, _ = await rig.subscriber(TCS, channels=["depth"])
        many, _ = await rig.subscriber(TCS, channels=["depth"], levels=20)
        other, _ = await rig.subscriber(TCS, channels=["depth"])
        books.tell(TCS, 100.0)
        for socket, levels in ((few, 5), (many, 20), (other, 5)):
            assert len((await next_of(socket, "depth"))["data"][TCS]["bids"]) == levels
        assert sorted(books.wanted) == [(TCS, 5), (TCS, 20)]
        await few.close()
        await many.close()
        await eventually(lambda: books.wanted == [(TCS, 5)])


async def test_a_gateway_process_shows_the_books_of_the_stream_and_leases_what_is_wanted(
    redis_url: str,
) -> None:
    desk, follower = ToldBooks(), DepthFollower(redis_url)
    writer = DepthStreamWriter(redis_url, **quick())
    desk.listen(writer.take)
    async with running_gateway(INSTRUMENTS) as rig, tasks(writer.run(), follower.run()):
        DepthFeed(rig.gateway.channels, follower)
        before = desk.tell(TCS, 50.0)
        await eventually(lambda: writer.counters.written == 1)
        socket, _ = await rig.subscriber(TCS, channels=["depth"], levels=20)
        assert follower.leases() == {f"{TCS} 20"}
        first = (await next_of(socket, "depth"))["data"][TCS]
        assert (first["bids"][0], first["entry"]) == ([50.0, 10, 1], before.position)
        desk.tell("NASDAQ:AAPL", 7.0)
        desk.tell(TCS, 60.0, DEPTH_STALE)
        second = (await next_of(socket, "depth"))["data"][TCS]
        assert (second["bids"][0], second["flags"]) == ([60.0, 10, 1], ["stale"])
        await socket.close()
        await eventually(lambda: follower.leases() == set())


# ---- option chains ------------------------------------------------------------------------------


class Daemon:
    """The option side of a daemon: a manager over told sources, the stream, the feed of its gateway."""

    def __init__(self, rig: GatewayRig, options: ToldOptions, redis_url: str) -> None:
        self.told = options
        self.writer = OptionChainWriter(redis_url)
        self.feed = OptionFeed(rig.gateway.channels, lambda key: key == NIFTY.key)
        self.leased: set[tuple[str, str]] = set()
        options.heard = self._chain
        self.poller = ChainPoller(
            options.manager,
            SystemClock(),
            find=options.desk.find,
            wanted=lambda: self.feed.wanted() | self.leased,
            newest=self.feed.newest,
            refused=self._refused,
            every_s=0.05,
        )

    def _refused(self, wanted: tuple[str, str], reason: str) -> None:
        self.feed.refused(wanted, reason)
        self.writer.refuse(*wanted, reason, SystemClock().now_ms())

    def _chain(self, chain: Chain) -> None:
        is_next = chain.expiry == self.told.manager.next_expiry(NIFTY)
        snapshot = snapshot_of(chain, NIFTY, is_next=is_next)
        if self.writer.offer(snapshot):
            self.feed.put(snapshot)


@contextlib.asynccontextmanager
async def option_daemon(redis_url: str) -> AsyncIterator[tuple[GatewayRig, Daemon]]:
    async with running_gateway(INSTRUMENTS) as rig, option_desk(redis_url, fresh_s=0.02) as options:
        daemon = Daemon(rig, options, redis_url)
        async with tasks(daemon.writer.run(), daemon.poller.run()):
            yield rig, daemon


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = make_client(redis_url)
    yield client
    await client.aclose()


async def test_a_watched_chain_is_polled_told_when_it_changes_and_stands_in_the_stream(
    redis_url: str, redis: Redis
) -> None:
    async with option_daemon(redis_url) as (rig, daemon):
        socket, answer = await rig.subscriber("NSE:NIFTY", TCS, channels=["options"], every_ms=20)
        assert answer["refused"] == {"options": {TCS: "no_options"}}
        first = await next_of(socket, "options")
        assert (first["instrumentKey"], first["is_next"]) == ("NSE:NIFTY", True)
        assert first["expiry_date"] == daemon.told.days[0].isoformat()
        assert [leg["f"][1:3] for leg in first["symbols"]][:2] == [["25000", "call"], ["25000", "put"]]
        assert all(len(leg["f"]) == 14 for leg in first["symbols"])
        polls = daemon.poller.polls
        await eventually(lambda: daemon.poller.polls >= polls + 3)
        daemon.told.dhan.oi["25000"] = (111, 55)
        second = await next_of(socket, "options")
        assert second["symbols"][0]["f"][6] == 111
        assert second["entry"] > first["entry"]
        await eventually(lambda: daemon.writer.written == 2)
        entries = await redis.xrange("md:options:{NSE:NIFTY}")
        assert [entry_id for entry_id, _ in entries] == [first["entry"], second["entry"]], (
            "one entry for each chain that changed, however often it was asked for"
        )
        assert entries[1][1]["type"] == "chain"
        assert 0 < await redis.ttl("md:options:{NSE:NIFTY}") <= 2 * 86_400
        await socket.close()
        await eventually(lambda: daemon.feed.wanted() == set())
        polls = daemon.poller.polls
        await asyncio.sleep(0.2)
        assert daemon.poller.polls <= polls + 1, "nobody watches, nobody is asked"


async def test_an_expiry_is_a_date_or_seconds_and_is_a_watch_of_its_own(redis_url: str) -> None:
    async with option_daemon(redis_url) as (rig, daemon):
        later = daemon.told.days[1].isoformat()
        socket, _ = await rig.subscriber("NSE:NIFTY", channels=["options"], expiry=later)
        message = await next_of(socket, "options")
        assert (message["expiry_date"], message["is_next"]) == (later, False)
        other, _ = await rig.subscriber("NSE:NIFTY", channels=["options"], expiry=message["expiry"])
        assert (await next_of(other, "options"))["expiry_date"] == later
        assert daemon.feed.wanted() == {("NSE:NIFTY", later)}
        listed = await ask(other, action="list", id=2)
        assert listed["channels"]["options"]["NSE:NIFTY"]["expiry"] == later


async def test_where_nobody_answers_the_reason_is_told_once_and_the_chain_when_it_is_back(
    redis_url: str,
) -> None:
    async with option_daemon(redis_url) as (rig, daemon):
        daemon.told.dhan.refusal = ProviderUnavailable("it is closed", reason="http_503")
        daemon.told.nse.refusal = ProviderUnavailable("it blocks us", reason="blocked")
        socket, _ = await rig.subscriber("NSE:NIFTY", channels=["options"], every_ms=20)
        notice = await next_of(socket, "stale", "options")
        assert (notice["type"], notice["channel"]) == ("stale", "options")
        assert "it is closed" in notice["reason"]
        daemon.told.dhan.refusal = daemon.told.nse.refusal = None
        assert (await next_of(socket, "stale", "options"))["type"] == "options"


async def test_another_gateway_hears_why_there_is_no_chain_and_of_the_same_one_again(redis_url: str) -> None:
    async with option_daemon(redis_url) as (_rig, daemon), running_gateway(INSTRUMENTS) as other:
        feed = OptionFeed(other.gateway.channels, lambda key: key == NIFTY.key)
        follower = OptionChainFollower(
            redis_url,
            wanted=feed.underlyings,
            take=feed.put,
            refused=lambda it: feed.refused((it.symbol, it.expiry_date), it.reason),
        )
        async with tasks(follower.run()):
            daemon.leased = {("NSE:NIFTY", "")}
            socket, _ = await other.subscriber("NSE:NIFTY", channels=["options"], every_ms=20)
            first = await next_of(socket, "options")
            daemon.told.dhan.refusal = ProviderUnavailable("it is closed", reason="http_503")
            daemon.told.nse.refusal = ProviderUnavailable("it blocks us", reason="blocked")
            notice = await next_of(socket, "stale", "options")
            assert (notice["type"], "it blocks us" in notice["reason"]) == ("stale", True)
            late, _ = await other.subscriber("NSE:NIFTY", channels=["options"], every_ms=20)
            assert (await next_of(late, "stale", "options"))["type"] == "stale"
            daemon.told.dhan.refusal = daemon.told.nse.refusal = None
            again, same = await asyncio.gather(next_of(socket, "options"), next_of(late, "options"))
            assert again == same
            assert again["entry"] > first["entry"]
            assert [leg["f"][6] for leg in again["symbols"]] == [leg["f"][6] for leg in first["symbols"]]


async def test_any_gateway_shows_the_same_chain_with_the_same_entry_and_asks_by_a_lease(
    redis_url: str, redis: Redis
) -> None:
    async with option_daemon(redis_url) as (rig, daemon), running_gateway(INSTRUMENTS) as other:
        feed = OptionFeed(other.gateway.channels, lambda key: key == NIFTY.key)
        follower = OptionChainFollower(redis_url, wanted=feed.underlyings, take=feed.put)
        async with tasks(follower.run()):
            far, _ = await other.subscriber("NSE:NIFTY", channels=["options"], every_ms=20)
            assert feed.leases() == {"NSE:NIFTY"}
            assert [wanted_of_lease(member) for member in feed.leases()] == [("NSE:NIFTY", "")]
            daemon.leased = {("NSE:NIFTY", "")}
            shown = await next_of(far, "options")
            near, _ = await rig.subscriber("NSE:NIFTY", channels=["options"], every_ms=20)
            same = await next_of(near, "options")
            assert shown == same
            daemon.told.dhan.oi["25050"] = (41, 21)
            assert await next_of(far, "options") == await next_of(near, "options")
            late, _ = await other.subscriber(
                "NSE:NIFTY", channels=["options"], expiry=daemon.told.days[0].isoformat()
            )
            assert (await next_of(late, "options"))["symbols"][2]["f"][6] == 41


async def test_the_stream_is_trimmed_and_an_entry_reads_back_as_it_was(redis_url: str, redis: Redis) -> None:
    writer = OptionChainWriter(redis_url)
    async with option_desk(redis_url) as options:
        kept: list[OptionChainSnapshot] = []
        options.heard = lambda chain: kept.append(snapshot_of(chain, NIFTY, is_next=True))
        await options.manager.chain("NIFTY")
        (chain,) = kept
        async with tasks(writer.run()):
            for number in range(STREAM_ENTRIES + 60):
                chain.underlying_price = 25_000.0 + number
                copy = chain_of_entry((1, 1), entry_of(chain))
                assert copy is not None
                assert writer.offer(copy)
                await eventually(lambda: not writer._queue)
        assert await redis.xlen("md:options:{NSE:NIFTY}") <= STREAM_ENTRIES + 20
        ((entry_id, fields),) = await redis.xrevrange("md:options:{NSE:NIFTY}", count=1)
        ms, _, sequence = entry_id.partition("-")
        read = chain_of_entry((int(ms), int(sequence)), fields)
        chain.position_ms, chain.position_seq = int(ms), int(sequence)
        assert read == chain
        assert chain_of_entry((1, 1), {"type": "later kind"}) is None


async def test_a_client_may_watch_so_many_chains_and_needs_the_scope_for_them(redis_url: str) -> None:
    tokens = {"a": "first-secret:ticks", "b": "other-secret:ticks+history@NSE:TCS"}
    async with running_gateway(INSTRUMENTS, tokens=tokens, limits=ClientLimits(chains_per_client=1)) as rig:
        OptionFeed(rig.gateway.channels, lambda _key: True)
        socket = await rig.connect(headers={"Authorization": "Bearer first-secret"})
        answer = await ask(socket, action="subscribe", id=1, instruments=[TCS], channels=["options"])
        assert (answer["type"], answer["code"]) == ("error", "forbidden")
        socket = await rig.connect(headers={"Authorization": "Bearer other-secret"})
        answer = await ask(
            socket, action="subscribe", id=2, instruments=[TCS, RELIANCE], channels=["options"]
        )
        assert (answer["accepted"], answer["rejected"]) == ([TCS], {RELIANCE: "forbidden"})
        answer = await ask(socket, action="subscribe", id=3, instruments=["NSE:*"], channels=["options"])
        assert (answer["type"], answer["code"]) == ("error", "invalid_message")
    async with running_gateway(INSTRUMENTS, limits=ClientLimits(chains_per_client=1)) as rig:
        OptionFeed(rig.gateway.channels, lambda _key: True)
        socket = await rig.connect()
        answer = await ask(
            socket, action="subscribe", id=4, instruments=[TCS, RELIANCE], channels=["options"]
        )
        assert (answer["type"], answer["code"]) == ("error", "too_many")


# ---- news ---------------------------------------------------------------------------------------


def article(name: str, *instruments: str, published_s: int = 1_700_000_000) -> NewsUpdate:
    return NewsUpdate(
        id=f"YF:{name}",
        timestamp=published_s * 1_000_000,
        received_ms=1_700_000_001_000,
        provider_code="YF",
        headline=f"about {name}",
        publisher="Reuters",
        instruments=instruments,
    )


@contextlib.asynccontextmanager
async def boards(redis_url: str) -> AsyncIterator[tuple[NewsBoard, NewsBoard]]:
    made = NewsBoard(redis_url), NewsBoard(redis_url)
    try:
        yield made
    finally:
        for board in made:
            await board.close()


async def some(socket: Socket, count: int) -> list[dict[str, Any]]:
    """Return the next so many articles."""
    return [(await next_of(socket, "news"))["article"] for _ in range(count)]


async def test_news_begin_with_the_newest_and_each_new_article_comes_once(redis_url: str) -> None:
    asked: list[str] = []
    async with boards(redis_url) as (writer, reader), running_gateway(INSTRUMENTS) as rig:
        for number in range(25):
            await writer.add(article(f"old-{number}", TCS, published_s=1_600_000_000 + number))
        feed = NewsFeed(rig.gateway.channels, reader, asked.append)
        async with tasks(feed.run()):
            await eventually(lambda: len(reader) == 25)
            socket, answer = await rig.subscriber(TCS, RELIANCE, channels=["news"])
            everything, all_answer = await rig.subscriber("*", channels=["news"])
            assert [it["headline"] for it in answer["snapshots"]["news"]] == [
                f"about old-{number}" for number in range(24, 4, -1)
            ]
            assert all_answer["accepted"] == ["*"]
            assert asked == [TCS, RELIANCE]
            await writer.add(article("both", TCS, RELIANCE))
            await writer.add(article("other", "NASDAQ:AAPL"))
            await writer.add(article("grown", TCS))
            await writer.add(article("grown", TCS, RELIANCE))
            heard, mine = await asyncio.gather(some(everything, 4), some(socket, 3))
            assert [it["id"] for it in mine] == ["YF:both", "YF:grown", "YF:grown"]
            assert [it["id"] for it in heard] == ["YF:both", "YF:other", "YF:grown", "YF:grown"]
            assert heard[0] == {
                "id": "YF:both",
                "ts_ms": 1_700_000_000_000,
                "received_ms": 1_700_000_001_000,
                "headline": "about both",
                "publisher": "Reuters",
                "url": None,
                "instruments": [TCS, RELIANCE],
                "symbols": [],
                "src": "YF",
            }


async def test_a_narrowed_token_sees_only_its_own_news_and_the_writer_tells_at_once(redis_url: str) -> None:
    tokens = {"a": "first-secret:ticks+history@NSE:TCS"}
    async with boards(redis_url) as (board, _), running_gateway(INSTRUMENTS, tokens=tokens) as rig:
        await board.refresh()
        NewsFeed(rig.gateway.channels, board, lambda _key: None)
        socket = await rig.connect(headers={"Authorization": "Bearer first-secret"})
        await board.add(article("earlier", TCS, RELIANCE))
        answer = await ask(socket, action="subscribe", id=1, instruments=["*"], channels=["news"])
        assert [it["instruments"] for it in answer["snapshots"]["news"]] == [[TCS]]
        await board.add(article("hidden", RELIANCE))
        await board.add(article("seen", RELIANCE, TCS))
        message = await next_of(socket, "news")
        assert (message["article"]["id"], message["article"]["instruments"]) == ("YF:seen", [TCS])


async def test_all_three_come_as_server_sent_events(redis_url: str) -> None:
    books = ToldBooks()
    async with boards(redis_url) as (board, _), running_gateway(INSTRUMENTS) as rig:
        await board.refresh()
        NewsFeed(rig.gateway.channels, board, lambda _key: None)
        DepthFeed(rig.gateway.channels, books)
        address = f"{rig.url}/api/stream?instruments={TCS}&channels=depth,news&levels=20"
        async with rig.http.get(address) as response:
            assert response.status == 200
            books.tell(TCS, 10.0)
            await board.add(article("streamed", TCS))
            seen: set[str] = set()
            while not {"depth", "news"} <= seen:
                line = (await asyncio.wait_for(response.content.readline(), 5 * FACTOR)).decode()
                seen |= {kind for kind in ("depth", "news") if f'"type":"{kind}"' in line}
        async with rig.http.get(f"{rig.url}/api/stream?instruments=*&channels=news") as response:
            assert response.status == 200
