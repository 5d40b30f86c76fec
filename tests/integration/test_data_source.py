"""The callbacks in the daemon's own process: each in the order of the data, none able to hurt the flow."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from services.data_broadcast import DataBroadcast
from services.data_source import (
    BarUpdate,
    DataSource,
    Level2Update,
    NewsUpdate,
    QuoteUpdate,
    TradeUpdate,
)
from services.errors import RequestRefused
from services.market_data.bars import Bar, BarStatus, bar_record
from services.market_data.clock import ManualClock
from services.pipeline.supervisor import Supervisor
from tests.support.eventually import eventually
from tests.support.gateway import Market

TCS, RELIANCE, BTC = "NSE:TCS", "NSE:RELIANCE", "CRYPTO:BTC-USD"


class Desk:
    """Books and articles that are told by the test."""

    def __init__(self) -> None:
        self.wanted: list[tuple[str, int]] = []
        self.listeners: list[Callable[[Any], None]] = []

    def listen(self, callback: Callable[[Any], None]) -> Callable[[], None]:
        self.listeners.append(callback)
        return lambda: self.listeners.remove(callback)

    def want(self, instrument: str, levels: int = 5) -> None:
        if instrument == RELIANCE:
            raise RequestRefused("nobody has its depth", reason="no_depth")
        self.wanted.append((instrument, levels))

    def unwant(self, instrument: str, levels: int = 5) -> None:
        self.wanted.remove((instrument, levels))

    def tell(self, update: Any) -> None:
        for listener in list(self.listeners):
            listener(update)


class Rig:
    """A broadcast with a market before it and a source behind it."""

    def __init__(self, supervisor: Supervisor, **options: Any) -> None:
        self.broadcast = DataBroadcast(ManualClock(0))
        self.market = Market(self.broadcast)
        self.books, self.board = Desk(), Desk()
        self.source = DataSource(
            self.broadcast, supervisor.spawn, books=self.books, articles=self.board, **options
        )


@contextlib.asynccontextmanager
async def rig(**options: Any) -> AsyncIterator[Rig]:
    supervisor = Supervisor()
    try:
        yield Rig(supervisor, **options)
    finally:
        assert await supervisor.stop() == []


async def test_trades_and_quotes_come_in_order_to_functions_and_coroutine_functions() -> None:
    trades: list[TradeUpdate] = []
    everything: list[TradeUpdate] = []
    quotes: list[QuoteUpdate] = []

    async def slowly(trade: TradeUpdate) -> None:
        await asyncio.sleep(0)
        everything.append(trade)

    async with rig() as it:
        first = it.market.tick(TCS, 9.0, bid=8.5, ask=9.5)
        it.source.subscribe_trades([TCS], trades.append)
        it.source.subscribe_trades(["NSE:*", BTC], slowly)
        it.source.subscribe_quotes([TCS], quotes.append)
        made = [
            it.market.tick(TCS, 10.0, volume=3, bid=8.5, ask=9.5),
            it.market.tick(BTC, 50_000.0, volume=1),
            it.market.tick(TCS, 10.5, volume=0, bid=8.75, ask=9.5),
            it.market.tick(RELIANCE, 99.0, volume=7),
        ]
        await eventually(lambda: (len(trades), len(everything), len(quotes)) == (1, 3, 2))
        assert trades[0].timestamp == made[0].timestamp * 1000
        assert (trades[0].price, trades[0].quantity, trades[0].position) == (10.0, 3, made[0].position)
        assert [trade.symbol for trade in everything] == [TCS, BTC, RELIANCE]
        assert [(quote.bid, quote.timestamp) for quote in quotes] == [
            (8.5, first.timestamp * 1000),
            (8.75, made[2].timestamp * 1000),
        ]


async def test_unsubscribing_ends_it_alone_gives_the_interest_back_and_may_be_repeated() -> None:
    one: list[TradeUpdate] = []
    other: list[TradeUpdate] = []
    async with rig() as it:
        stop = it.source.subscribe_trades([TCS, "CRYPTO:*"], one.append)
        it.source.subscribe_trades([TCS], other.append)
        assert it.broadcast.watched() == {TCS, "CRYPTO:*"}
        it.market.tick(TCS, 1.0, volume=1)
        await eventually(lambda: len(one) == len(other) == 1)
        stop()
        stop()
        assert it.broadcast.watched() == {TCS}
        assert it.source.status()["subscriptions"] == 1
        it.market.tick(TCS, 2.0, volume=1)
        await eventually(lambda: len(other) == 2)
        assert len(one) == 1


async def test_a_callback_may_end_its_own_subscription_and_hears_nothing_more() -> None:
    heard: list[float] = []
    async with rig() as it:

        def once(trade: TradeUpdate) -> None:
            heard.append(trade.price)
            stop()

        stop = it.source.subscribe_trades([TCS], once)
        for price in (1.0, 2.0, 3.0):
            it.market.tick(TCS, price, volume=1)
        await eventually(lambda: bool(heard))
        await asyncio.sleep(0.05)
        assert heard == [1.0]
        assert it.broadcast.watched() == frozenset()


async def test_a_callback_that_raises_is_counted_and_hears_the_next_one_all_the_same() -> None:
    heard: list[float] = []
    calm: list[float] = []

    async def fails(trade: TradeUpdate) -> None:
        heard.append(trade.price)
        if trade.price < 3:
            raise RuntimeError("the user's own mistake")

    async with rig() as it:
        it.source.subscribe_trades([TCS], fails)
        it.source.subscribe_trades([TCS], lambda trade: calm.append(trade.price))
        for price in (1.0, 2.0, 3.0):
            it.market.tick(TCS, price, volume=1)
        await eventually(lambda: heard == calm == [1.0, 2.0, 3.0])
        assert it.source.errors == 2


async def test_a_slow_callback_loses_its_own_oldest_updates_and_nobody_elses() -> None:
    gate = asyncio.Event()
    slow: list[float] = []
    quick: list[float] = []

    async def waits(trade: TradeUpdate) -> None:
        await gate.wait()
        slow.append(trade.price)

    async with rig(queue_limit=10) as it:
        it.source.subscribe_trades([TCS], waits)
        it.source.subscribe_trades([TCS], lambda trade: quick.append(trade.price))
        for price in range(50):
            it.market.tick(TCS, float(price), volume=1)
            await asyncio.sleep(0)
        await eventually(lambda: len(quick) == 50)
        gate.set()
        await eventually(lambda: bool(slow) and slow[-1] == 49.0)
        assert it.source.dropped == 50 - len(slow)
        assert slow == sorted(slow)
        assert len(slow) <= 12


async def test_bars_are_the_finished_ones_of_their_interval() -> None:
    bars: list[BarUpdate] = []
    async with rig() as it:
        it.source.subscribe_bars([TCS], bars.append, interval="5m")
        for interval in ("1m", "5m"):
            bar = Bar(
                instrument=TCS,
                exchange="NSE",
                interval=interval,
                start_ms=1_700_000_100_000,
                open=1.0,
                high=4.0,
                low=0.5,
                close=2.0,
                volume=100,
                status=BarStatus.FINAL,
            )
            it.market.offer(bar_record(bar, 1_700_000_400_000))
        await eventually(lambda: len(bars) == 1)
        assert (bars[0].interval, bars[0].timestamp) == ("5m", 1_700_000_100_000_000)
        assert (bars[0].open, bars[0].high, bars[0].low, bars[0].close) == (1.0, 4.0, 0.5, 2.0)
        assert (bars[0].volume, bars[0].status) == (100, BarStatus.FINAL)
        with pytest.raises(ValueError, match="no interval"):
            it.source.subscribe_bars([TCS], bars.append, interval="7m")  # type: ignore[arg-type]


async def test_order_books_are_wanted_while_subscribed_and_a_refusal_changes_nothing() -> None:
    books: list[Level2Update] = []
    async with rig() as it:
        with pytest.raises(RequestRefused, match="nobody has its depth"):
            it.source.subscribe_level2([TCS, RELIANCE], books.append)
        assert it.books.wanted == []
        stop = it.source.subscribe_level2([TCS], books.append, levels=20)
        assert it.books.wanted == [(TCS, 20)]
        book = Level2Update(TCS, "NSE", "DHAN", 1_000, 1, ((1.0, 2, 3),), ((2.0, 2, 3),), 20)
        it.books.tell(book)
        it.books.tell(Level2Update(BTC, "CRYPTO", "DHAN", 1_000, 1, (), (), 20))
        await eventually(lambda: books == [book])
        stop()
        assert it.books.wanted == it.books.listeners == []
        with pytest.raises(ValueError, match="by instrument"):
            it.source.subscribe_level2(["NSE:*"], books.append)


async def test_news_come_by_instrument_or_all_of_them() -> None:
    asked: list[str] = []
    mine: list[str] = []
    every: list[str] = []
    async with rig(ask_news=asked.append) as it:
        it.source.subscribe_news(lambda article: mine.append(article.id), [TCS])
        stop = it.source.subscribe_news(lambda article: every.append(article.id))
        assert asked == [TCS]
        for name, instruments in (("a", (TCS, BTC)), ("b", (BTC,))):
            it.board.tell(
                NewsUpdate(
                    id=name,
                    timestamp=1,
                    received_ms=1,
                    provider_code="YF",
                    headline=name,
                    instruments=instruments,
                )
            )
        await eventually(lambda: every == ["a", "b"])
        assert mine == ["a"]
        stop()
        assert len(it.board.listeners) == 1


async def test_a_text_is_no_list_of_instruments() -> None:
    def nothing(_update: object) -> None: ...

    async with rig() as it:
        calls: list[Callable[[], object]] = [
            lambda: it.source.subscribe_trades(TCS, nothing),
            lambda: it.source.subscribe_quotes(TCS, nothing),
            lambda: it.source.subscribe_bars(TCS, nothing),
            lambda: it.source.subscribe_level2(TCS, nothing),
            lambda: it.source.subscribe_news(nothing, TCS),
        ]
        for call in calls:
            with pytest.raises(TypeError, match="list of keys"):
                call()
        assert it.source.status()["subscriptions"] == 0, "one that was refused leaves nothing behind"
