"""DataSource: callbacks for trades, quotes, bars, order books and news, in the daemon's own process.

    source = daemon.source
    stop = source.subscribe_trades(["NSE:RELIANCE", "CRYPTO:*"], on_trade)
    ...
    stop()

Stands behind the broadcast like any other consumer. A callback is a function or a coroutine function. Each
subscription has its own bounded queue and its own task: a slow one loses its own oldest updates, which is
counted and said, and one that raises is counted and logged; neither costs the flow or another one anything.
Updates come in the order of the data, with event times in UTC epoch microseconds.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, Generic, Protocol, TypeVar

import structlog

from services.data_broadcast import DataBroadcast, Publication
from services.market_data.bars import INTERVALS, Interval, parse_bar
from services.market_data.events import NewsUpdate
from services.market_data.records import ControlRecord, DataIngestionFormat
from services.market_data.trades_and_quotes import (
    BarUpdate,
    QuoteUpdate,
    TradeUpdate,
    bar_update,
    is_same_quote,
    quote_of,
    trade_of,
)
from services.market_data.updates import Level2Update

__all__ = ["BarUpdate", "DataSource", "Level2Update", "NewsUpdate", "QuoteUpdate", "TradeUpdate"]

_log = structlog.get_logger(__name__)

Update = TypeVar("Update")
Callback = Callable[[Update], Awaitable[None] | None]
Unsubscribe = Callable[[], None]
QUEUE_LIMIT = 10_000
"""Updates a callback may be behind before its oldest ones are dropped."""
_AT_A_TIME = 100


class Books(Protocol):
    """Who has order books: the depth desk."""

    def listen(self, callback: Callable[[Level2Update], None]) -> Unsubscribe:
        """Call `callback` with every update."""
        ...

    def want(self, instrument: str, levels: int = 5) -> None:
        """Count one more who wants depth. Raises `RequestRefused`."""
        ...

    def unwant(self, instrument: str, levels: int = 5) -> None:
        """Take back one `want`."""
        ...


class Articles(Protocol):
    """Who hears of news: the board of `md:news`."""

    def listen(self, callback: Callable[[NewsUpdate], None]) -> Unsubscribe:
        """Call `callback` with every new article."""
        ...


class DataSource:
    """Hands updates to callbacks. Every `subscribe_…` returns what ends it; that is harmless when repeated.

    `spawn(work, name)` runs a coroutine under the supervisor. `books` and `articles` are None where this
    process has none. `errors` counts what callbacks raised, `dropped` what was lost to slow ones.
    """

    def __init__(
        self,
        broadcast: DataBroadcast,
        spawn: Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]],
        *,
        books: Books | None = None,
        articles: Articles | None = None,
        ask_news: Callable[[str], object] = lambda _instrument: None,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        self._broadcast = broadcast
        self._spawn = spawn
        self._books = books
        self._articles = articles
        self._ask_news = ask_news
        self._queue_limit = max(1, queue_limit)
        self._count = 0
        self.subscriptions = 0
        self.errors = 0
        self.dropped = 0

    def subscribe_trades(self, instruments: Iterable[str], callback: Callback[TradeUpdate]) -> Unsubscribe:
        """Hear of what is traded: of every tick with a quantity. `instruments` are keys, or `EXCHANGE:*`."""
        wanted = _keys(instruments)
        worker = self._worker("trades", callback)
        return self._watch(wanted, _Ticks(worker.put, trade_of), worker)

    def subscribe_quotes(self, instruments: Iterable[str], callback: Callback[QuoteUpdate]) -> Unsubscribe:
        """Hear of the best bid and ask: as they are at first, then whenever a price or a size changes."""
        wanted = _keys(instruments)
        worker = self._worker("quotes", callback)
        quotes = _Quotes()
        for instrument in wanted:
            newest = self._broadcast.latest(instrument)
            if newest is not None and (quote := quotes.changed(newest)) is not None:
                worker.put(quote)
        return self._watch(wanted, _Ticks(worker.put, quotes.changed), worker)

    def subscribe_bars(
        self, instruments: Iterable[str], callback: Callback[BarUpdate], *, interval: Interval = "1m"
    ) -> Unsubscribe:
        """Hear of finished candles and of corrections; `interval` is `1m 5m 15m 1h` or `1d`."""
        if interval not in INTERVALS:
            raise ValueError(f"{interval!r} is no interval; there are {', '.join(INTERVALS)}")
        wanted = _keys(instruments)
        worker = self._worker("bars", callback)
        return self._watch(wanted, _Bars(worker.put, interval), worker)

    def subscribe_level2(
        self, instruments: Iterable[str], callback: Callback[Level2Update], *, levels: int = 5
    ) -> Unsubscribe:
        """Hear of order books, each whole, `levels` deep while that feed is there; flags say what is wrong.

        Raises `RequestRefused` with the reason, having subscribed nothing, for one that cannot be had.
        """
        books, wanted = self._books, dict.fromkeys(_keys(instruments))
        if books is None:
            raise ValueError("this process has no order books")
        if any(instrument.endswith(":*") for instrument in wanted):
            raise ValueError("order books are subscribed by instrument, not by EXCHANGE:*")
        held: list[str] = []
        try:
            for instrument in wanted:
                books.want(instrument, levels)
                held.append(instrument)
        finally:
            if len(held) < len(wanted):
                for instrument in held:
                    books.unwant(instrument, levels)
        worker = self._worker("level2", callback)

        def told(update: Level2Update) -> None:
            if update.symbol in wanted:
                worker.put(update)

        stop = books.listen(told)

        def end() -> None:
            stop()
            for instrument in held:
                books.unwant(instrument, levels)

        return worker.ended_by(end)

    def subscribe_news(
        self, callback: Callback[NewsUpdate], instruments: Iterable[str] | None = None
    ) -> Unsubscribe:
        """Hear of articles that come in from now on, about `instruments` or (None) about anything."""
        if self._articles is None:
            raise ValueError("this process has no news")
        wanted = None if instruments is None else frozenset(_keys(instruments))
        worker = self._worker("news", callback)
        for instrument in wanted or ():
            self._ask_news(instrument)

        def told(article: NewsUpdate) -> None:
            if wanted is None or not wanted.isdisjoint(article.instruments):
                worker.put(article)

        return worker.ended_by(self._articles.listen(told))

    def status(self) -> dict[str, int]:
        """Return how many subscriptions there are, what their callbacks raised and what they lost."""
        return {"subscriptions": self.subscriptions, "errors": self.errors, "dropped": self.dropped}

    # ---- inner ----------------------------------------------------------------------------------

    def _worker(self, kind: str, callback: Callback[Any]) -> _Worker[Any]:
        self._count += 1
        worker = _Worker(self, f"{kind}-{self._count}", callback, self._queue_limit)
        self.subscriptions += 1
        worker.task = self._spawn(worker.run(), f"callbacks:{worker.name}")
        return worker

    def _watch(self, keys: list[str], outlet: _Ticks | _Bars, worker: _Worker[Any]) -> Unsubscribe:
        exchanges = list(dict.fromkeys(key[:-2] for key in keys if key.endswith(":*")))
        singles = [key for key in dict.fromkeys(keys) if key.partition(":")[0] not in exchanges]
        broadcast = self._broadcast
        broadcast.attach(outlet, singles)
        broadcast.attach_exchanges(outlet, exchanges)

        def end() -> None:
            broadcast.detach(outlet, singles)
            broadcast.detach_exchanges(outlet, exchanges)

        return worker.ended_by(end)


class _Worker(Generic[Update]):
    """One subscription: what waits for its callback."""

    def __init__(self, source: DataSource, name: str, callback: Callback[Update], limit: int) -> None:
        self._source = source
        self.name = name
        self._callback = callback
        self._queue: deque[Update] = deque()
        self._limit = limit
        self._wake = asyncio.Event()
        self._behind = False
        self.task: asyncio.Task[None] | None = None
        self._ended = False

    def put(self, update: Update) -> None:
        """Queue one update; the oldest goes when there are too many."""
        self._queue.append(update)
        if len(self._queue) > self._limit:
            self._queue.popleft()
            self._source.dropped += 1
            if not self._behind:
                self._behind = True
                _log.warning("callback_behind", subscription=self.name, limit=self._limit)
        self._wake.set()

    async def run(self) -> None:
        """Call the callback with what is queued, until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            for number in range(1, len(self._queue) + 1):
                if self._ended:
                    # By its own callback: what waits is not delivered any more.
                    return
                await self._call(self._queue.popleft())
                if number % _AT_A_TIME == 0:
                    await asyncio.sleep(0)
            self._behind = False
            if self._queue:
                self._wake.set()
                await asyncio.sleep(0)

    def ended_by(self, end: Callable[[], None]) -> Unsubscribe:
        """Return what ends the subscription by `end`, at most once; what is queued is not delivered."""

        def unsubscribe() -> None:
            if self._ended:
                return
            self._ended = True
            self._source.subscriptions -= 1
            end()
            if self.task is not None:
                self.task.cancel()

        return unsubscribe

    async def _call(self, update: Update) -> None:
        try:
            answer = self._callback(update)
            if inspect.isawaitable(answer):
                await answer
        except Exception:  # noqa: BLE001 - whatever a user's callback raises, the flow goes on
            self._source.errors += 1
            _log.exception("callback_failed", subscription=self.name, errors=self._source.errors)


class _Ticks:
    """An outlet that queues what `made` makes of a tick, if anything."""

    def __init__(self, put: Callable[[Any], None], made: Callable[[DataIngestionFormat], Any]) -> None:
        self._put = put
        self._made = made

    def take(self, publication: Publication) -> None:
        """Look at one tick."""
        tick = publication.record
        if isinstance(tick, DataIngestionFormat) and (update := self._made(tick)) is not None:
            self._put(update)

    def take_control(self, publication: Publication) -> None:
        """Pass over one control record."""


class _Bars:
    """An outlet that queues the bars of one interval."""

    def __init__(self, put: Callable[[BarUpdate], None], interval: Interval) -> None:
        self._put = put
        self._interval = interval

    def take(self, publication: Publication) -> None:
        """Pass over one tick."""

    def take_control(self, publication: Publication) -> None:
        """Look at one control record."""
        record = publication.record
        if isinstance(record, ControlRecord) and record.type == "bar":
            bar = parse_bar(record)
            if bar is not None and bar.interval == self._interval:
                self._put(bar_update(bar))


class _Quotes:
    """The newest quote of each instrument of one subscription."""

    def __init__(self) -> None:
        self._newest: dict[str, QuoteUpdate] = {}

    def changed(self, tick: DataIngestionFormat) -> QuoteUpdate | None:
        """Return the quote of a tick where it is another than before."""
        if is_same_quote(self._newest.get(tick.symbol), tick):
            return None
        quote = quote_of(tick)
        if quote is not None:
            self._newest[tick.symbol] = quote
        return quote


def _keys(instruments: Iterable[str]) -> list[str]:
    if isinstance(instruments, str):
        raise TypeError("instruments is a list of keys, as in ['NSE:RELIANCE']")
    return list(instruments)
