"""Callbacks instead of an iterator: say what you want to hear of, then `run`.

    source = DataSource("http://127.0.0.1:8080")
    stop = source.subscribe_trades(["NSE:RELIANCE"], on_trade)
    await source.run()

Above `Client`, of which it holds one for ticks, and one per interval of bars, depth of books and expiry of
chains; news are asked for over HTTP. A callback may be a function or a coroutine function. Those of one kind
are called one after the other, in the order of the data, and a slow one is felt as a slow client is: by the
daemon, never by the memory of this process. What one raises is counted and logged, and the next update comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Literal, NamedTuple, TypeVar
from urllib.error import HTTPError
from urllib.parse import urlencode, urlsplit
from urllib.request import Request, urlopen

from marketd_client.backoff import Backoff
from marketd_client.client import Client, Token
from marketd_client.errors import NewsRefused
from marketd_client.records import Bar, Control, Disconnected, ServerNotice, Skipped, Subscribed, Tick
from marketd_client.side_messages import article
from marketd_client.updates import (
    BarUpdate,
    Level2Update,
    NewsUpdate,
    OptionChainUpdate,
    QuoteUpdate,
    TradeUpdate,
)

Update = TypeVar("Update")
Callback = Callable[[Update], Awaitable[None] | None]
Unsubscribe = Callable[[], None]
Event = Control | Disconnected | ServerNotice | Skipped | Subscribed

_log = logging.getLogger("marketd_client")

_NEWS_TIMEOUT_S = 10.0
_LARGEST_ANSWER_BYTES = 8 << 20
_MOST_KNOWN = 20_000


class _Group(NamedTuple):
    """What one client serves: ticks, bars of an interval, books of a depth, chains of an expiry."""

    kind: Literal["tick", "chart", "depth", "options", "news"]
    detail: str = ""


class DataSource:
    """Hands updates of a daemon to callbacks. `run` delivers until it is cancelled.

    `url` is the daemon's address; `token` the secret, or a function that returns one. `on_event` hears what
    is no data: gaps, switches, lost and new connections, skipped messages. News are asked for every
    `news_every_s` seconds. Every `subscribe_…` returns what ends it, and may be called while `run` runs.
    `errors` counts what callbacks raised.
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
        self._grouped: dict[_Group, dict[str, list[Callback[Any]]]] = {}
        self._news: dict[str, list[Callback[NewsUpdate]]] = {}
        self._last_quote: dict[str, tuple[float | None, float | None]] = {}
        self._clients: dict[_Group, Client] = {}
        self._running = False
        self._changed = asyncio.Event()
        self.errors = 0

    # ---- what is wanted -------------------------------------------------------------------------

    def subscribe_trades(self, instruments: Iterable[str], callback: Callback[TradeUpdate]) -> Unsubscribe:
        """Hear of what is traded, every tick of it."""
        return self._add(self._trades, instruments, callback)

    def subscribe_quotes(self, instruments: Iterable[str], callback: Callback[QuoteUpdate]) -> Unsubscribe:
        """Hear of the best bid and ask: as they are at first, then whenever one of them changes."""
        return self._add(self._quotes, instruments, callback)

    def subscribe_bars(
        self, instruments: Iterable[str], callback: Callback[BarUpdate], *, interval: str = "1"
    ) -> Unsubscribe:
        """Hear of candles, finished ones and the one that forms; `interval` is `1 5 15 60` or `1D`."""
        return self._add(self._grouped.setdefault(_Group("chart", interval), {}), instruments, callback)

    def subscribe_level2(
        self, instruments: Iterable[str], callback: Callback[Level2Update], *, levels: int = 5
    ) -> Unsubscribe:
        """Hear of order books, each whole: as they are at first, then the newest ten times a second."""
        return self._add(self._grouped.setdefault(_Group("depth", str(levels)), {}), instruments, callback)

    def subscribe_options(
        self, underlyings: Iterable[str], callback: Callback[OptionChainUpdate], *, expiry: str = ""
    ) -> Unsubscribe:
        """Hear of option chains, each whole, when one has changed; `expiry` is a date, empty for the next."""
        return self._add(self._grouped.setdefault(_Group("options", expiry), {}), underlyings, callback)

    def subscribe_news(
        self, callback: Callback[NewsUpdate], instruments: Iterable[str] | None = None
    ) -> Unsubscribe:
        """Hear of articles that come in from now on, about `instruments` or (None) about anything."""
        return self._add(self._news, [""] if instruments is None else instruments, callback)

    async def run(self) -> None:
        """Deliver until cancelled. Raises what `Client` and the news refuse for good.

        Raises ValueError when nothing is subscribed.
        """
        if not self._wanted():
            raise ValueError("nothing is subscribed: call subscribe_trades and its like before run")
        self._running = True
        tasks: dict[_Group, asyncio.Task[None]] = {}
        try:
            while True:
                self._changed.clear()
                await self._follow_what_is_wanted(tasks)
                changed = asyncio.ensure_future(self._changed.wait())
                done, _ = await asyncio.wait({*tasks.values(), changed}, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                for task in done - {changed}:
                    await task
        finally:
            self._running = False
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    # ---- inner ----------------------------------------------------------------------------------

    def _add(
        self, wanted: dict[str, list[Callback[Any]]], instruments: Iterable[str], callback: Callback[Any]
    ) -> Unsubscribe:
        if isinstance(instruments, str):
            raise TypeError("instruments is a list of keys, as in ['NSE:RELIANCE']")
        keys = list(dict.fromkeys(instruments))
        for instrument in keys:
            if instrument.endswith("*"):
                raise ValueError(f"{instrument!r}: callbacks are for single instruments")
        for instrument in keys:
            wanted.setdefault(instrument, []).append(callback)
        self._changed.set()

        def unsubscribe() -> None:
            for instrument in keys:
                callbacks = wanted.get(instrument, [])
                if callback in callbacks:
                    callbacks.remove(callback)
                if not callbacks:
                    wanted.pop(instrument, None)
            keys.clear()
            self._changed.set()

        return unsubscribe

    def _wanted(self) -> dict[_Group, set[str]]:
        """Return the instruments each client serves."""
        wanted = {group: set(instruments) for group, instruments in self._grouped.items() if instruments}
        if ticks := {*self._trades, *self._quotes}:
            wanted[_Group("tick")] = ticks
        if self._news:
            wanted[_Group("news")] = set(self._news)
        return wanted

    async def _follow_what_is_wanted(self, tasks: dict[_Group, asyncio.Task[None]]) -> None:
        wanted = self._wanted()
        for group in [group for group in tasks if group not in wanted]:
            task = tasks.pop(group)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        for group, instruments in wanted.items():
            if group not in tasks:
                work = self._follow_news() if group.kind == "news" else self._follow(group, instruments)
                tasks[group] = asyncio.ensure_future(work)
            elif (client := self._clients.get(group)) is not None:
                now = set(client.instruments)
                if gone := now - instruments:
                    await client.unsubscribe(*sorted(gone))
                if new := instruments - now:
                    await client.subscribe(*sorted(new))

    async def _follow(self, group: _Group, instruments: Iterable[str]) -> None:
        options: dict[str, Any] = {"channels": (group.kind,)}
        match group.kind:
            case "tick":
                options["delivery"] = "all"
            case "chart":
                options["interval"] = group.detail
            case "depth":
                options["levels"] = int(group.detail)
            case "options":
                options["expiry"] = group.detail or None
        client = Client(self._url, sorted(instruments), token=self._token, backoff=self._backoff(), **options)
        self._clients[group] = client
        try:
            async with client:
                async for record in client:
                    await self._heard(group, record)
        finally:
            del self._clients[group]

    async def _heard(self, group: _Group, record: Any) -> None:
        match record:
            case Tick():
                await self._tick(record)
            case Bar():
                await self._call(self._callbacks(group, record.instrument), _bar(record))
            case Level2Update() | OptionChainUpdate():
                await self._call(self._callbacks(group, record.instrument), record)
            case _:
                if isinstance(record, Subscribed):
                    for tick in record.snapshot.values():
                        await self._quote(tick)
                if self._on_event is not None:
                    await self._call((self._on_event,), record)

    def _callbacks(self, group: _Group, instrument: str) -> Iterable[Callback[Any]]:
        return tuple(self._grouped.get(group, {}).get(instrument, ()))

    async def _tick(self, tick: Tick) -> None:
        if tick.quantity and "snapshot" not in tick.flags:
            trade = TradeUpdate(
                tick.instrument, tick.ts_ms * 1000, tick.price, tick.quantity, tick.src, tick.flags
            )
            await self._call(tuple(self._trades.get(tick.instrument, ())), trade)
        await self._quote(tick)

    async def _quote(self, tick: Tick) -> None:
        callbacks = tuple(self._quotes.get(tick.instrument, ()))
        quote = (tick.bid, tick.ask)
        # A tick that says nothing of bid and ask leaves them as they were.
        if not callbacks or quote == (None, None) or self._last_quote.get(tick.instrument) == quote:
            return
        self._last_quote[tick.instrument] = quote
        update = QuoteUpdate(tick.instrument, tick.ts_ms * 1000, tick.bid, tick.ask, tick.src, tick.flags)
        await self._call(callbacks, update)

    async def _follow_news(self) -> None:
        known: dict[str, dict[str, tuple[str, ...]]] = {}
        backoff = self._backoff()
        while True:
            wait_s = self._news_every_s
            for instrument, callbacks in [(key, tuple(found)) for key, found in self._news.items()]:
                try:
                    articles = await self._fetch_news(instrument)
                except (OSError, json.JSONDecodeError):
                    # The daemon is away, or its Redis: what was missed is in a later answer.
                    wait_s = backoff.next_s(0.0)
                    break
                # What was there before is not what comes in from now on.
                first = instrument not in known
                told = known.setdefault(instrument, {})
                for item in reversed(articles):
                    if told.get(item.id) == item.instruments:
                        continue
                    told.pop(item.id, None)
                    told[item.id] = item.instruments
                    if not first:
                        await self._call(callbacks, item)
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
        return [article(item) for item in (await asyncio.to_thread(_ask, request))["news"]]

    async def _call(self, callbacks: Iterable[Callback[Any]], update: Any) -> None:
        for callback in callbacks:
            try:
                answer = callback(update)
                if inspect.isawaitable(answer):
                    await answer
            except Exception:  # noqa: BLE001 - whatever a user's callback raises, the flow goes on
                self.errors += 1
                _log.exception("a callback of marketd_client failed (%d so far)", self.errors)


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
