"""The callbacks of the Python client against the real gateway: trades, quotes, bars, news out of Redis."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from marketd_client import (
    Backoff,
    BarUpdate,
    Client,
    ConnectionRefused,
    Control,
    DataSource,
    Level2Update,
    NewsRefused,
    NewsUpdate,
    OptionChainUpdate,
    QuoteUpdate,
    Subscribed,
    TradeUpdate,
)
from services.gateway.channel_feeds import DepthFeed, OptionFeed
from services.gateway.news_api import NewsSource
from services.market_data import events
from services.market_data.bar_builder import BarBuilder
from services.market_data.bar_grid import BarGrid
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import ManualClock
from services.market_data.updates import DEPTH_CROSSED
from services.market_data.updates import Level2Update as Level2Record
from services.options.snapshot import snapshot_of
from services.pipeline.bar_sink import BarSink
from services.storage.news_stream import NewsBoard
from tests.support.eventually import eventually
from tests.support.gateway import running_gateway
from tests.support.options import NIFTY, option_desk


def soon() -> Backoff:
    return Backoff(first_s=0.01, longest_s=0.05)


Boards = tuple[NewsBoard, NewsBoard]


@pytest.fixture
async def boards(redis_url: str) -> AsyncIterator[Boards]:
    made = NewsBoard(redis_url), NewsBoard(redis_url)
    yield made
    for board in made:
        await board.close()


@contextlib.asynccontextmanager
async def running(source: DataSource) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(source.run())
    try:
        yield task
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def test_trades_and_quotes_come_in_order_each_to_its_callbacks() -> None:
    trades: list[TradeUpdate] = []
    quotes: list[QuoteUpdate] = []
    both: list[Any] = []
    heard: list[Any] = []

    async def slowly(update: Any) -> None:
        await asyncio.sleep(0)
        both.append(update)

    async with running_gateway() as rig:
        first = rig.market.tick("NSE:TCS", 10.0, bid=9.0, ask=11.0)
        source = DataSource(rig.url, backoff=soon, on_event=heard.append)
        source.subscribe_trades(["NSE:TCS"], trades.append)
        source.subscribe_trades(["NSE:TCS", "NSE:RELIANCE"], slowly)
        source.subscribe_quotes(["NSE:TCS"], quotes.append)
        async with running(source):
            await eventually(lambda: len(quotes) == 1)
            made = [
                rig.market.tick("NSE:TCS", 10.5, volume=3, bid=9.0, ask=11.0),
                rig.market.tick("NSE:TCS", 10.5, volume=0, bid=9.5, ask=11.0),
                rig.market.tick("NSE:TCS", 10.6, volume=None),
                rig.market.tick("NSE:RELIANCE", 99.0, volume=7, bid=98.0, ask=100.0),
                rig.market.tick("NSE:TCS", 10.7, volume=5, bid=9.5, ask=11.0),
            ]
            rig.market.control("gap", "NSE:TCS", **{"from": 1, "to": 2, "reason": "reset"})
            await eventually(lambda: any(isinstance(it, Control) for it in heard))
            assert [(it.price, it.quantity, it.event_us) for it in trades] == [
                (10.5, 3, made[0].timestamp * 1000),
                (10.7, 5, made[4].timestamp * 1000),
            ]
            assert [(it.instrument, it.quantity) for it in both] == [
                ("NSE:TCS", 3),
                ("NSE:RELIANCE", 7),
                ("NSE:TCS", 5),
            ]
            assert quotes == [
                QuoteUpdate("NSE:TCS", first.timestamp * 1000, 9.0, 11.0, "DHAN", ()),
                QuoteUpdate("NSE:TCS", made[1].timestamp * 1000, 9.5, 11.0, "DHAN", ()),
            ]


async def test_after_a_cut_what_was_traded_meanwhile_is_delivered_once(redis_url: str) -> None:
    trades: list[TradeUpdate] = []
    heard: list[Any] = []
    async with running_gateway(redis_url=redis_url) as rig:
        source = DataSource(rig.url, backoff=soon, on_event=heard.append)
        source.subscribe_trades(["NSE:TCS"], trades.append)
        async with running(source):
            await eventually(lambda: any(isinstance(it, Subscribed) for it in heard))
            for price in range(1, 20):
                rig.market.tick("NSE:TCS", float(price))
            await eventually(lambda: len(trades) == 19)
            for session in list(rig.gateway._sockets.sessions):
                session.abort(1006, "cut by the test")
            for price in range(20, 40):
                rig.market.tick("NSE:TCS", float(price))
            await eventually(lambda: len(trades) >= 39, within_s=10)
            again = [it.recovered for it in heard if isinstance(it, Subscribed)]
        assert again == [None, True]
        assert [it.price for it in trades] == [float(price) for price in range(1, 40)]


async def test_bars_are_candles_with_their_start_in_microseconds() -> None:
    start_ms = 1_700_000_220_000
    clock, bars = ManualClock(start_ms), []
    sink = BarSink(lambda: BarBuilder(BarGrid(MarketCalendar(always_open=True))), clock, lambda _: None)
    async with running_gateway(bars=sink) as rig:
        source = DataSource(rig.url, backoff=soon)
        source.subscribe_bars(["NSE:TCS"], bars.append, interval="1")
        async with running(source):
            await eventually(lambda: rig.figures()["connected"] == 1)

            def forming() -> bool:
                rig.market.tick("NSE:TCS", 12.5, timestamp=start_ms + 5_000, volume=4)
                return bool(bars)

            await eventually(forming)
        assert isinstance(bars[0], BarUpdate)
        assert (bars[0].instrument, bars[0].interval, bars[0].event_us) == ("NSE:TCS", "1", start_ms * 1000)
        assert (bars[0].open, bars[0].close) == (12.5, 12.5)


async def test_news_that_come_in_are_told_once_and_again_when_they_grow(boards: Boards) -> None:
    board, writer = boards
    mine: list[NewsUpdate] = []
    all_of_it: list[NewsUpdate] = []
    asked: list[str] = []

    def article(name: str, *instruments: str) -> events.NewsUpdate:
        return events.NewsUpdate(
            id=f"YF:{name}",
            timestamp=1_796_000_000_000_000,
            received_ms=1_796_000_000_500,
            provider_code="YF",
            headline=f"About {name}",
            instruments=instruments,
        )

    def ask(instrument: str) -> int | None:
        asked.append(instrument)
        return None

    await writer.add(article("old", "NSE:TCS"))
    async with running_gateway(news=NewsSource(board, lambda key: key.startswith("NSE:"), ask)) as rig:
        source = DataSource(rig.url, news_every_s=0.05, backoff=soon)
        source.subscribe_news(mine.append, ["NSE:TCS"])
        source.subscribe_news(all_of_it.append)
        async with running(source):
            await eventually(lambda: len(asked) >= 2)
            await writer.add(article("new", "NSE:TCS"))
            await writer.add(article("other", "NSE:RELIANCE"))
            await eventually(lambda: len(all_of_it) == 2 and len(mine) == 1)
            assert mine[0].id == "YF:new"
            assert (mine[0].event_us, mine[0].url) == (1_796_000_000_000_000, None)
            await writer.add(article("other", "NSE:RELIANCE", "NSE:TCS"))
            await eventually(lambda: len(mine) == 2)
            assert mine[1].instruments == ("NSE:RELIANCE", "NSE:TCS")
        refused = DataSource(rig.url, backoff=soon)
        refused.subscribe_news(mine.append, ["XX:NOPE"])
        with pytest.raises(NewsRefused, match="unknown_instrument"):
            await refused.run()


async def test_a_daemon_that_is_away_is_asked_again_and_a_wrong_token_ends_it(boards: Boards) -> None:
    news = NewsSource(boards[0], lambda _: True, lambda _: None)
    heard: list[NewsUpdate] = []
    away = DataSource("http://127.0.0.1:9", backoff=soon)
    away.subscribe_news(heard.append)
    async with running(away):
        await asyncio.sleep(0.3)
    async with running_gateway(news=news, tokens={"desk": "correct-horse"}) as rig:
        wrong = DataSource(rig.url, token="wrong-secret", backoff=soon)
        wrong.subscribe_trades(["NSE:TCS"], lambda _: None)
        with pytest.raises(ConnectionRefused):
            await wrong.run()
        wrong = DataSource(rig.url, token="wrong-secret", backoff=soon)
        wrong.subscribe_news(heard.append)
        with pytest.raises(NewsRefused, match="unauthorized"):
            await wrong.run()
        right = DataSource(rig.url, token=lambda: "correct-horse", news_every_s=0.05, backoff=soon)
        right.subscribe_news(heard.append)
        async with running(right):
            await asyncio.sleep(0.2)


async def test_what_a_callback_raises_is_counted_and_mistakes_are_told_at_once() -> None:
    heard: list[float] = []

    def broken(trade: TradeUpdate) -> None:
        heard.append(trade.price)
        raise ZeroDivisionError("mine")

    async with running_gateway() as rig:
        source = DataSource(rig.url, backoff=soon)
        with pytest.raises(ValueError, match="nothing is subscribed"):
            await source.run()
        with pytest.raises(TypeError):
            source.subscribe_trades("NSE:TCS", broken)
        with pytest.raises(ValueError, match="single instruments"):
            source.subscribe_trades(["NSE:*"], broken)
        source.subscribe_trades(["NSE:TCS"], broken)
        async with running(source):
            await eventually(lambda: rig.figures()["watched"] == 1)
            rig.market.tick("NSE:TCS", 1.0)
            rig.market.tick("NSE:TCS", 2.0)
            await eventually(lambda: heard == [1.0, 2.0])
            assert source.errors == 2
    with pytest.raises(ValueError, match="url must be"):
        DataSource("ws://127.0.0.1:1")


async def test_what_is_subscribed_may_change_while_it_runs() -> None:
    one: list[float] = []
    other: list[str] = []
    async with running_gateway() as rig:
        source = DataSource(rig.url, backoff=soon)
        stop = source.subscribe_trades(["NSE:TCS"], lambda trade: one.append(trade.price))
        async with running(source):
            await eventually(lambda: rig.broadcast.watched() == {"NSE:TCS"})
            source.subscribe_trades(["NSE:RELIANCE", "NSE:TCS"], lambda it: other.append(it.instrument))
            await eventually(lambda: rig.broadcast.watched() == {"NSE:TCS", "NSE:RELIANCE"})
            rig.market.tick("NSE:TCS", 1.0)
            await eventually(lambda: (one, other) == ([1.0], ["NSE:TCS"]))
            stop()
            stop()
            rig.market.tick("NSE:TCS", 2.0)
            rig.market.tick("NSE:RELIANCE", 3.0)
            await eventually(lambda: other == ["NSE:TCS", "NSE:TCS", "NSE:RELIANCE"])
            assert one == [1.0]


class _Books:
    """One book, and who listens to it."""

    def __init__(self) -> None:
        self.wanted: list[tuple[str, int]] = []
        self.tell: Any = None
        self.book: Level2Record | None = None

    def latest(self, instrument: str) -> Level2Record | None:
        return self.book if self.book is not None and self.book.symbol == instrument else None

    def listen(self, callback: Any) -> Any:
        self.tell = callback
        return lambda: None

    def want(self, instrument: str, levels: int = 5) -> None:
        self.wanted.append((instrument, levels))

    def unwant(self, instrument: str, levels: int = 5) -> None:
        self.wanted.remove((instrument, levels))


async def test_order_books_come_whole_with_their_flags_and_chains_leg_by_leg(redis_url: str) -> None:
    books: list[Level2Update] = []
    chains: list[OptionChainUpdate] = []
    desk = _Books()
    desk.book = Level2Record(
        *("NSE:TCS", "NSE", "DHAN", 1_700_000_000_000_001, 1_700_000_000_000),
        *(((10.0, 5, 1),), ((10.5, 6, 2), (11.0, 1, 1)), 20, DEPTH_CROSSED),
    )
    async with (
        running_gateway(("NSE:TCS", "NSE:NIFTY")) as rig,
        option_desk(redis_url) as told,
    ):
        DepthFeed(rig.gateway.channels, desk)
        feed = OptionFeed(rig.gateway.channels, lambda _key: True)
        told.heard = lambda chain: feed.put(snapshot_of(chain, NIFTY, is_next=True))
        source = DataSource(rig.url, backoff=soon)
        stop = source.subscribe_level2(["NSE:TCS"], books.append, levels=20)
        source.subscribe_options(["NSE:NIFTY"], chains.append)
        async with running(source):
            await eventually(lambda: len(books) == 1)
            assert desk.wanted == [("NSE:TCS", 20)]
            assert (books[0].instrument, books[0].event_us) == ("NSE:TCS", 1_700_000_000_000_000)
            assert (books[0].bids, books[0].asks[1]) == (((10.0, 5, 1),), (11.0, 1, 1))
            assert (books[0].flags, books[0].levels, books[0].src) == (("crossed",), 20, "DHAN")
            await told.manager.chain("NIFTY")
            await eventually(lambda: len(chains) == 1)
            assert [(leg.strike, leg.side, leg.oi) for leg in chains[0].legs] == [
                ("25000", "call", 100),
                ("25000", "put", 50),
                ("25050", "call", 40),
                ("25050", "put", 20),
            ]
            assert (chains[0].instrument, chains[0].is_next, chains[0].src) == ("NSE:NIFTY", True, "DHAN")
            stop()
            await eventually(lambda: desk.wanted == [])


async def test_the_iterator_yields_the_other_channels_too_and_says_what_is_refused() -> None:
    async with running_gateway() as rig:
        rig.market.tick("NSE:TCS", 9.0, volume=2, bid=8.0, ask=10.0)
        client = Client(rig.url, ["NSE:TCS"], channels=["quote", "trade"], delivery="all", backoff=soon())
        async with client:
            begun = await anext(client)
            assert isinstance(begun, Subscribed)
            assert (begun.quotes["NSE:TCS"].bid, begun.trades["NSE:TCS"].quantity) == (8.0, 2)
            tick = rig.market.tick("NSE:TCS", 9.5, volume=3, bid=8.5, ask=10.0, bid_size=7)
            trade, quote = await anext(client), await anext(client)
            assert trade == TradeUpdate("NSE:TCS", tick.timestamp * 1000, 9.5, 3, "DHAN")
            assert quote == QuoteUpdate("NSE:TCS", tick.timestamp * 1000, 8.5, 10.0, "DHAN", (), 7, None)
            assert client.resume_point is not None
            assert client.resume_point.position == {"NSE": tick.position}
