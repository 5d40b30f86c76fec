"""The feeds of the channels depth, options and news: from whoever has them in this process to the hub.

In the daemon these are the depth desk, the option chains that are asked for and the news board; in a gateway
process the followers of their streams. Nothing here waits, but `NewsFeed.run`, which reads what is new.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec
import structlog

from services.errors import RequestRefused, StorageError
from services.gateway.channel_hub import ChannelHub, ChannelRefused, Topic
from services.gateway.side_messages import SideMessage
from services.gateway.side_subscriptions import ALL_NEWS
from services.market_data.events import NewsUpdate
from services.market_data.option_chains import OptionChainSnapshot
from services.market_data.updates import Level2Update
from services.storage.news_stream import NewsBoard

_log = structlog.get_logger(__name__)

KEPT_CHAINS = 512
NEWS_READ_EVERY_S = 1.0
NEWS_READ_IDLE_S = 5.0
_ASK_EVERY = 60


class DepthBooks(Protocol):
    """Who has order books in this process."""

    def latest(self, instrument: str) -> Level2Update | None:
        """Return the newest book of an instrument."""
        ...

    def listen(self, callback: Callable[[Level2Update], None]) -> Callable[[], None]:
        """Call `callback` with every update."""
        ...

    def want(self, instrument: str, levels: int = 5) -> None:
        """Count one more who wants depth. Raises `RequestRefused`."""
        ...

    def unwant(self, instrument: str, levels: int = 5) -> None:
        """Take back one `want`."""
        ...


class DepthFeed:
    """Fills `depth`; a topic's detail is how many levels are wanted."""

    def __init__(self, hub: ChannelHub, books: DepthBooks) -> None:
        self._hub = hub
        self._books = books
        self._details: dict[str, dict[str, None]] = {}
        books.listen(self._told)
        hub.connect("depth", self)

    def opened(self, topic: Topic) -> None:
        """Want the depth of an instrument; raises `ChannelRefused` with the desk's reason."""
        instrument, levels = topic
        try:
            self._books.want(instrument, int(levels))
        except RequestRefused as refusal:
            raise ChannelRefused(refusal.reason or "no_depth", str(refusal)) from refusal
        self._details.setdefault(instrument, {})[levels] = None

    def closed(self, topic: Topic) -> None:
        """Want it no longer."""
        instrument, levels = topic
        self._books.unwant(instrument, int(levels))
        details = self._details.get(instrument, {})
        details.pop(levels, None)
        if not details:
            self._details.pop(instrument, None)

    def newest(self, topic: Topic) -> SideMessage | None:
        """Return the newest book."""
        book = self._books.latest(topic[0])
        return None if book is None else SideMessage("depth", topic[0], book, topic[1])

    def _told(self, book: Level2Update) -> None:
        symbol = book.symbol
        for levels in self._details.get(symbol, ()):
            self._hub.publish((symbol, levels), SideMessage("depth", symbol, book, levels))


class OptionFeed:
    """Fills `options`; a topic's detail is the day of the expiry, empty for the next one.

    `has_options(instrument)` tells underlyings from other instruments; `changed()` is called when what is
    watched changes. `put` takes every chain.
    """

    def __init__(
        self, hub: ChannelHub, has_options: Callable[[str], bool], changed: Callable[[], None] = lambda: None
    ) -> None:
        self._hub = hub
        self._has_options = has_options
        self._changed = changed
        self._chains: OrderedDict[Topic, SideMessage] = OrderedDict()
        self._next: dict[str, SideMessage] = {}
        self._refused: dict[Topic, str] = {}
        hub.connect("options", self)

    def opened(self, topic: Topic) -> None:
        """Want a chain; raises `ChannelRefused` (`no_options`) where there can be none."""
        if not self._has_options(topic[0]):
            raise ChannelRefused("no_options", f"{topic[0]} is nothing that options are written on")
        self._changed()

    def closed(self, topic: Topic) -> None:
        """Want it no longer."""
        self._refused.pop(topic, None)
        self._changed()

    def newest(self, topic: Topic) -> SideMessage | None:
        """Return the newest chain that is known, or why there is none."""
        if reason := self._refused.get(topic):
            return _no_chain(topic, reason)
        return self._next.get(topic[0]) if not topic[1] else self._chains.get(topic)

    def wanted(self) -> set[Topic]:
        """Return what is watched here."""
        return set(self._hub.topics("options"))

    def underlyings(self) -> set[str]:
        """Return the underlyings of what is watched here."""
        return {symbol for symbol, _ in self._hub.topics("options")}

    def leases(self) -> set[str]:
        """Return what is watched here as members of `md:options_interest`."""
        return {f"{symbol} {day}".rstrip() for symbol, day in self._hub.topics("options")}

    def put(self, chain: OptionChainSnapshot) -> None:
        """Remember a chain and tell those who watch it."""
        topic = (chain.symbol, chain.expiry_date)
        message = SideMessage("options", chain.symbol, chain, chain.expiry_date)
        self._chains.pop(topic, None)
        self._chains[topic] = message
        if len(self._chains) > KEPT_CHAINS:
            (symbol, _), gone = self._chains.popitem(last=False)
            if self._next.get(symbol) is gone:
                del self._next[symbol]
        self._refused.pop(topic, None)
        self._hub.publish(topic, message)
        if chain.is_next:
            self._next[chain.symbol] = message
            self._refused.pop((chain.symbol, ""), None)
            self._hub.publish((chain.symbol, ""), message)

    def refused(self, topic: Topic, reason: str) -> None:
        """Tell those who watch a chain that it cannot be had just now, once; the next chain ends that."""
        if reason and topic in self._hub.topics("options") and self._refused.get(topic) != reason:
            self._refused[topic] = reason
            self._hub.publish(topic, _no_chain(topic, reason))


class NewsFeed:
    """Fills `news` from a board. Keep `run` running; `ask(instrument)` notes interest in its news."""

    def __init__(self, hub: ChannelHub, board: NewsBoard, ask: Callable[[str], object]) -> None:
        self._hub = hub
        self._board = board
        self._ask = ask
        self._watched = asyncio.Event()
        board.listen(self._told)
        hub.latest_news = board.known
        hub.connect("news", self)

    def opened(self, topic: Topic) -> None:
        """Note the interest, and read at once what is new."""
        self._watched.set()
        if topic[0] != ALL_NEWS:
            self._ask(topic[0])

    def closed(self, topic: Topic) -> None:
        """Do nothing: interest ends by itself."""

    def newest(self, topic: Topic) -> SideMessage | None:  # noqa: ARG002 - the answer has the articles
        """Return nothing: what there is stands in the answer."""
        return None

    async def run(self) -> None:
        """Read what is new, until cancelled; while Redis is away it is asked again."""
        said = False
        rounds = 0
        while True:
            watched = self._hub.topics("news")
            try:
                await self._board.refresh()
                said = False
            except StorageError as error:
                if not said:
                    _log.warning("news_not_read", reason=str(error))
                said = True
            rounds += 1
            if rounds % _ASK_EVERY == 0:
                self._keep_asking(symbol for symbol, _ in watched)
            if watched:
                await asyncio.sleep(NEWS_READ_EVERY_S)
            else:
                self._watched.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(NEWS_READ_IDLE_S):
                        await self._watched.wait()

    def _keep_asking(self, symbols: Iterable[str]) -> None:
        for symbol in symbols:
            if symbol != ALL_NEWS:
                self._ask(symbol)

    def _told(self, article: NewsUpdate) -> None:
        message = SideMessage("news", next(iter(article.instruments), ALL_NEWS), article)
        self._hub.publish_once([(symbol, "") for symbol in (*article.instruments, ALL_NEWS)], message)


def _no_chain(topic: Topic, reason: str) -> SideMessage:
    notice: dict[str, Any] = {
        "type": "stale",
        "instrumentKey": topic[0],
        "channel": "options",
        "expiry_date": topic[1] or None,
        "reason": reason,
        "position": {},
    }
    return SideMessage("options", topic[0], None, topic[1], fragment=msgspec.json.encode(notice))
