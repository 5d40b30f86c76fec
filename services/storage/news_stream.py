"""The stream `md:news`: articles in the order we heard of them, bounded; written by one daemon, read by all.

`NewsBoard` is what it says: read once, then only what is new, and kept by id and by instrument. Nothing is
written twice: an article is known by its id, and an entry by the id that we give it.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.errors import StorageError
from services.market_data.events import NewsUpdate, news_of_entry
from services.storage.client import make_client, storage_error
from services.storage.keys import NEWS

MAX_ENTRIES = 10_000
_PAGE = 1_000
_NOTHING = "0-0"


class NewsBoard:
    """What the stream says. `latest` reads what is new first; `close` ends the connection."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._redis: Redis | None = None
        self._reading = asyncio.Lock()
        self._seen = _NOTHING
        """The newest entry that was read."""
        self._reached = (0, 0)
        """The newest one that was read or written: a stream that ends before it is another one."""
        self._articles: OrderedDict[str, NewsUpdate] = OrderedDict()
        self._by_instrument: dict[str, dict[str, None]] = {}
        self._listeners: tuple[Callable[[NewsUpdate], None], ...] = ()
        self._read_once = False

    def __len__(self) -> int:
        return len(self._articles)

    def get(self, article_id: str) -> NewsUpdate | None:
        """Return an article as far as it was read."""
        return self._articles.get(article_id)

    def listen(self, callback: Callable[[NewsUpdate], None]) -> Callable[[], None]:
        """Call `callback` with every article that is new or about more than before; return what ends that.

        What the stream held already when it was first read is not told. It must neither raise nor wait.
        """

        def call(article: NewsUpdate) -> None:
            callback(article)

        self._listeners = (*self._listeners, call)

        def stop() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not call)

        return stop

    def known(self, instruments: Iterable[str], limit: int) -> list[NewsUpdate]:
        """Return the newest of what was read, about any of `instruments` or (`*`) about anything."""
        wanted = list(instruments)
        if "*" in wanted:
            found = list(self._articles.values())
        else:
            names = dict.fromkeys(name for key in wanted for name in self._by_instrument.get(key, ()))
            found = [self._articles[name] for name in names]
        found.sort(key=lambda article: article.timestamp, reverse=True)
        return found[:limit]

    async def latest(self, instrument: str | None, limit: int) -> list[NewsUpdate]:
        """Return the newest articles, of one instrument or of all, the last published first.

        Raises `StorageError` when Redis does not answer.
        """
        await self.refresh()
        if instrument is None:
            found = list(self._articles.values())
        else:
            found = [self._articles[name] for name in self._by_instrument.get(instrument, ())]
        found.sort(key=lambda article: article.timestamp, reverse=True)
        return found[:limit]

    async def refresh(self) -> None:
        """Read what the stream has and we have not. Raises `StorageError` when Redis does not answer."""
        async with self._reading:
            try:
                while await self._read_page() == _PAGE:
                    pass
                self._read_once = True
            except (RedisError, OSError) as error:
                raise _told(error) from error

    async def add(self, article: NewsUpdate) -> None:
        """Write an article; one of an id that is known replaces what is known, for instruments it adds.

        Raises `StorageError` when Redis does not take it, or does not say whether it has: then `refresh`
        knows.
        """
        client = self._client()
        try:
            # `*` is right here: only the leader writes, and the id of an article tells a repeat.
            entry_id = await client.xadd(NEWS, article.entry(), maxlen=MAX_ENTRIES, approximate=True)  # type: ignore[arg-type]
        except (RedisError, OSError) as error:
            raise _told(error) from error
        self._reached = max(self._reached, _position(str(entry_id)))
        self._take(article, is_news=True)

    async def close(self) -> None:
        """Close the connection; harmless when there is none."""
        client, self._redis = self._redis, None
        if client is not None:
            await client.aclose()

    # ---- inner ----------------------------------------------------------------------------------

    def _client(self) -> Redis:
        if self._redis is None:
            self._redis = make_client(self._redis_url, name="marketd:news")
        return self._redis

    async def _read_page(self) -> int:
        client = self._client()
        if self._reached != (0, 0) and await self._began_anew(client):
            self._seen, self._reached = _NOTHING, (0, 0)
            self._read_once = False
            self._articles.clear()
            self._by_instrument.clear()
        reply: Any = await client.xrange(NEWS, f"({self._seen}", "+", _PAGE)
        for entry_id, fields in reply:
            self._seen = str(entry_id)
            self._reached = max(self._reached, _position(self._seen))
            article = news_of_entry(fields)
            if article is not None:
                self._take(article, is_news=self._read_once)
        return len(reply)

    async def _began_anew(self, client: Redis) -> bool:
        """Tell whether the stream is another one than we read: Redis has lost it."""
        try:
            facts: Any = await client.xinfo_stream(NEWS)
        except ResponseError as error:
            if "no such key" in str(error):
                return True
            raise
        return _position(str(facts["last-generated-id"])) < self._reached

    def _take(self, article: NewsUpdate, *, is_news: bool) -> None:
        before = self._articles.pop(article.id, None)
        self._articles[article.id] = article
        for instrument in article.instruments:
            self._by_instrument.setdefault(instrument, {})[article.id] = None
        while len(self._articles) > MAX_ENTRIES:
            name, gone = self._articles.popitem(last=False)
            for instrument in gone.instruments:
                kept = self._by_instrument.get(instrument, {})
                kept.pop(name, None)
                if not kept:
                    self._by_instrument.pop(instrument, None)
        if is_news and article != before:
            for listener in self._listeners:
                listener(article)


def _position(entry_id: str) -> tuple[int, int]:
    ms, _, sequence = entry_id.partition("-")
    return int(ms), int(sequence)


def _told(error: Exception) -> StorageError:
    if isinstance(error, RedisError):
        return storage_error(error)
    return StorageError(f"Redis cannot be reached: {error}")
