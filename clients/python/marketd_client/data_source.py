"""Callbacks instead of an iterator: say what you want to hear of, then `run`.

    source = DataSource("http://127.0.0.1:8080")
    source.subscribe_trades(["NSE:RELIANCE"], on_trade)
    await source.run()

Above `Client`, of which it holds one for ticks and one per interval of bars; news are asked for over HTTP. A
callback may be a function or a coroutine function. They are called one after the other, in the order of the
data, and a slow one is felt as a slow client is: by the daemon, never by the memory of this process.
"""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from marketd_client.backoff import Backoff
from marketd_client.client import Client, Token
from marketd_client.errors import NewsRefused
from marketd_client.records import Bar, Control, Disconnected, ServerNotice, Skipped, Subscribed, Tick
from marketd_client.updates import BarUpdate, NewsUpdate, QuoteUpdate, TradeUpdate

Update = TypeVar("Update")
Callback = Callable[[Update], Awaitable[None] | None]
Event = Control | Disconnected | ServerNotice | Skipped | Subscribed

_NEWS_TIMEOUT_S = 10.0
_LARGEST_ANSWER_BYTES = 8 << 20
_MOST_KNOWN = 20_000


class DataSource:
    """Hands updates of a daemon to callbacks. Subscribe first, then `run`, until it is cancelled.

    `url` is the daemon's address; `token` the secret, or a function that returns one. `on_event` hears what
    is no data: gaps, switches, lost and new connections, skipped messages. News are asked for every
    `news_every_s` seconds. An exception of a callback ends `run` and is raised by it.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Token | None = None,
        on_event: Callback[Event] | None = None,
        news_every_s: float = 15.0,
        backoff: Callable[[], Backoff] = Backoff,
    ) -> None:
        if urlsplit(url).scheme not in ("http", "https"):
            raise ValueError("url must be the daemon's, as in http://127.0.0.1:8080")
        self._url = url.rstrip("/")
        self._token = token
        self._on_event = on_event
        self._news_every_s = news_every_s
        self._backoff = backoff
        self._trades: dict[str, list[Callback[TradeUpdate]]] = {}
        self._quotes: dict[str, list[Callback[QuoteUpdate]]] = {}
        self._bars: dict[str, dict[str, list[Callback[BarUpdate]]]] = {}
        self._news: dict[str, list[Callback[NewsUpdate]]] = {}
        self._last_quote: dict[str, tuple[float | None, float | None]] = {}
        self._running = False

    # ---- what is wanted -------------------------------------------------------------------------

    def subscribe_trades(self, instruments: Iterable[str], callback: Callback[TradeUpdate]) -> None:
        """Hear of what is traded, every tick of it."""
        self._add(self._trades, instruments, callback)

    def subscribe_quotes(self, instruments: Iterable[str], callback: Callback[QuoteUpdate]) -> None:
        """Hear of the best bid and ask: as they are at first, then whenever one of them changes."""
        self._add(self._quotes, instruments, callback)

    def subscribe_bars(
        self, instruments: Iterable[str], callback: Callback[BarUpdate], *, interval: str = "1"
    ) -> None:
        """Hear of candles, finished ones and the one that forms; `interval` is `1 5 15 60` or `1D`."""
        self._add(self._bars.setdefault(interval, {}), instruments, callback)

    def subscribe_news(
        self, callback: Callback[NewsUpdate], instruments: Iterable[str] | None = None
    ) -> None:
        """Hear of articles that come in from now on, about `instruments` or (None) about anything."""
        self._add(self._news, [""] if instruments is None else instruments, callback)

    async def run(self) -> None:
        """Deliver until cancelled. Raises what a callback raises, and what `Client` and the news refuse.

        Raises ValueError when nothing is subscribed.
        """
        parts = []
        ticks = {*self._trades, *self._quotes}
        if ticks:
            parts.append(self._follow(ticks, delivery="all", channels=("tick",)))
        for interval, wanted in self._bars.items():
            parts.append(self._follow(set(wanted), channels=("chart",), interval=interval))
        if self._news:
            parts.append(self._follow_news())
        if not parts:
            raise ValueError("nothing is subscribed: call subscribe_trades and its like before run")
        self._running = True
        tasks = [asyncio.ensure_future(part) for part in parts]
        try:
            await asyncio.gather(*tasks)
        finally:
            self._running = False
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # ---- inner ----------------------------------------------------------------------------------

    def _add(
        self, wanted: dict[str, list[Callback[Any]]], instruments: Iterable[str], callback: Callback[Any]
    ) -> None:
        if self._running:
            raise RuntimeError("it runs already: subscribe before run")
        if isinstance(instruments, str):
            raise TypeError("instruments is a list of keys, as in ['NSE:RELIANCE']")
        for instrument in instruments:
            if instrument.endswith("*"):
                raise ValueError(f"{instrument!r}: callbacks are for single instruments")
            wanted.setdefault(instrument, []).append(callback)

    async def _follow(self, instruments: Iterable[str], **options: Any) -> None:
        client = Client(self._url, sorted(instruments), token=self._token, backoff=self._backoff(), **options)
        interval = str(options.get("interval", ""))
        async with client:
            async for record in client:
                if isinstance(record, Tick):
                    await self._tick(record)
                elif isinstance(record, Bar):
                    await _call(self._bars[interval].get(record.instrument, ()), _bar(record))
                else:
                    if isinstance(record, Subscribed):
                        for tick in record.snapshot.values():
                            await self._quote(tick)
                    if self._on_event is not None:
                        await _call((self._on_event,), record)

    async def _tick(self, tick: Tick) -> None:
        if tick.quantity and "snapshot" not in tick.flags:
            trade = TradeUpdate(
                tick.instrument, tick.ts_ms * 1000, tick.price, tick.quantity, tick.src, tick.flags
            )
            await _call(self._trades.get(tick.instrument, ()), trade)
        await self._quote(tick)

    async def _quote(self, tick: Tick) -> None:
        callbacks = self._quotes.get(tick.instrument, ())
        quote = (tick.bid, tick.ask)
        # A tick that says nothing of bid and ask leaves them as they were.
        if not callbacks or quote == (None, None) or self._last_quote.get(tick.instrument) == quote:
            return
        self._last_quote[tick.instrument] = quote
        update = QuoteUpdate(tick.instrument, tick.ts_ms * 1000, tick.bid, tick.ask, tick.src, tick.flags)
        await _call(callbacks, update)

    async def _follow_news(self) -> None:
        known: dict[str, dict[str, tuple[str, ...]]] = {}
        backoff = self._backoff()
        while True:
            wait_s = self._news_every_s
            for instrument, callbacks in self._news.items():
                try:
                    articles = await self._fetch_news(instrument)
                except (OSError, json.JSONDecodeError):
                    # The daemon is away, or its Redis: what was missed is in a later answer.
                    wait_s = backoff.next_s(0.0)
                    break
                # What was there before is not what comes in from now on.
                first = instrument not in known
                told = known.setdefault(instrument, {})
                for article in reversed(articles):
                    if told.get(article.id) == article.instruments:
                        continue
                    told.pop(article.id, None)
                    told[article.id] = article.instruments
                    if not first:
                        await _call(callbacks, article)
                while len(told) > _MOST_KNOWN:
                    del told[next(iter(told))]
            else:
                backoff = self._backoff()
            await asyncio.sleep(wait_s)

    async def _fetch_news(self, instrument: str) -> list[NewsUpdate]:
        """Return the newest articles, newest first. Raises OSError when it may work later."""
        query = {"limit": "200"} | ({"instrument": instrument} if instrument else {})
        headers = {}
        if self._token is not None:
            given = self._token if isinstance(self._token, str) else self._token()
            headers["Authorization"] = f"Bearer {await given if inspect.isawaitable(given) else given}"
        request = Request(f"{self._url}/api/news?{urlencode(query)}", headers=headers)  # noqa: S310 - checked
        return [_article(item) for item in (await asyncio.to_thread(_ask, request))["news"]]


async def _call(callbacks: Iterable[Callback[Any]], update: Any) -> None:
    for callback in callbacks:
        answer = callback(update)
        if inspect.isawaitable(answer):
            await answer


def _ask(request: Request) -> Any:
    try:
        with urlopen(request, timeout=_NEWS_TIMEOUT_S) as response:  # noqa: S310 - made by us
            return json.loads(response.read(_LARGEST_ANSWER_BYTES))
    except HTTPError as error:
        if error.code in (408, 429) or error.code >= 500:
            raise
        try:
            body = json.loads(error.read())["error"]
            raise NewsRefused(error.code, body["code"], body["message"]) from error
        except (ValueError, KeyError, TypeError):
            raise NewsRefused(error.code, f"http_{error.code}", "the daemon gives no reason") from error


def _bar(bar: Bar) -> BarUpdate:
    return BarUpdate(
        bar.instrument,
        bar.start_s * 1_000_000,
        bar.interval,
        bar.open,
        bar.high,
        bar.low,
        bar.close,
        bar.volume,
    )


def _article(item: Any) -> NewsUpdate:
    return NewsUpdate(
        id=item["id"],
        event_us=item["ts_ms"] * 1000,
        headline=item["headline"],
        publisher=item["publisher"],
        url=item["url"],
        instruments=tuple(item["instruments"]),
        symbols=tuple(item["symbols"]),
        src=item["src"],
        received_ms=item["received_ms"],
    )
