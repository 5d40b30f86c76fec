"""NewsDesk: asks in turns for the news of what somebody is interested in, and tells each article once.

    who is interested ──► whose turn it is ──► source ──► known already? ──► `md:news` ──► /api/news

Runs while the daemon leads. It asks for one thing at a time, at an even pace, so that past bars and option
chains of the same vendor are hardly slowed: more interest makes rounds longer, not requests more frequent.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import structlog

from services.errors import ProviderError, StorageError, WireFormatError
from services.market_data.clock import Clock
from services.market_data.events import NewsUpdate
from services.storage.news_stream import NewsBoard
from services.wire.yahoo_news import Article

_log = structlog.get_logger(__name__)

SPACING_S = 5.0
"""Between two requests, however many are interested."""
ASKED_COUNTS_S = 900.0
"""So long somebody who asked for an instrument's news counts as interested in it."""
_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 10.0, 900.0
_IDLE_S = 1.0
_MOST_ASKED = 1_000
_MOST_KEPT_TURNS = 20_000


class NewsDesk:
    """Keeps the news of what is wanted. `run` it while leading.

    `fetch(words)` asks the source `code`; `wanted()` answers the instrument keys somebody is interested in;
    `topics` are asked for always; each is asked for every `every_s` seconds at most.
    """

    def __init__(
        self,
        board: NewsBoard,
        clock: Clock,
        *,
        code: str,
        fetch: Callable[[str], Awaitable[list[Article]]],
        wanted: Callable[[], Collection[str]],
        topics: Sequence[str] = (),
        every_s: float = 300.0,
        spacing_s: float = SPACING_S,
    ) -> None:
        self._board = board
        self._clock = clock
        self._code = code
        self._fetch = fetch
        self._wanted = wanted
        self._topics = tuple(topics)
        self._every_s = every_s
        self._spacing_s = spacing_s
        self._symbol_of: Mapping[str, str] = {}
        self._instrument_of: Mapping[str, str] = {}
        self._asked: dict[str, float] = {}
        self._polled_s: dict[str, float] = {}
        self._polled_ms: dict[str, int] = {}
        self._failures = 0
        self.reason = ""
        self.polls = 0
        self.told = 0

    def load(self, symbol_of: Mapping[str, str]) -> None:
        """Take over the mappings: the source's symbol of each instrument key."""
        self._symbol_of = dict(symbol_of)
        self._instrument_of = {symbol: instrument for instrument, symbol in symbol_of.items()}

    def ask(self, instrument: str) -> int | None:
        """Note that somebody asks for an instrument's news; return when they were fetched, UTC epoch ms."""
        self._asked.pop(instrument, None)
        self._asked[instrument] = self._clock.monotonic_s()
        if len(self._asked) > _MOST_ASKED:
            del self._asked[next(iter(self._asked))]
        return self._polled_ms.get(self._symbol_of.get(instrument, ""))

    async def run(self) -> None:
        """Ask in turns until cancelled; a source or a Redis that refuses is asked ever more rarely."""
        while True:
            words = self._next()
            if words is None:
                await asyncio.sleep(min(_IDLE_S, self._spacing_s))
                continue
            try:
                await self._poll(words)
            except (ProviderError, WireFormatError, StorageError) as error:
                await asyncio.sleep(self._failed(error))
            else:
                self._succeeded()
                await asyncio.sleep(self._spacing_s)

    def status(self) -> dict[str, Any]:
        """Return how many are wanted, what was done, and why nothing is if so."""
        return {
            "wanted": len(self._words()),
            "polls": self.polls,
            "told": self.told,
            "kept": len(self._board),
            "reason": self.reason,
        }

    # ---- inner ----------------------------------------------------------------------------------

    def _words(self) -> dict[str, None]:
        now_s = self._clock.monotonic_s()
        for instrument in [key for key, at_s in self._asked.items() if now_s - at_s > ASKED_COUNTS_S]:
            del self._asked[instrument]
        words = dict.fromkeys(self._topics)
        for instrument in (*self._asked, *sorted(self._wanted())):
            symbol = self._symbol_of.get(instrument)
            if symbol is not None:
                words[symbol] = None
        return words

    def _next(self) -> str | None:
        """Return what was not asked for the longest, None when nothing is due."""
        words = self._words()
        if len(self._polled_s) > _MOST_KEPT_TURNS:
            self._polled_s = {word: at_s for word, at_s in self._polled_s.items() if word in words}
            self._polled_ms = {word: at_ms for word, at_ms in self._polled_ms.items() if word in words}
        never = -self._every_s
        found = min(words, key=lambda word: self._polled_s.get(word, never), default=None)
        if (
            found is None
            or self._clock.monotonic_s() - self._polled_s.get(found, float("-inf")) < self._every_s
        ):
            return None
        return found

    async def _poll(self, words: str) -> None:
        # One that cannot be read must not hold up the others: it has had its turn.
        self._polled_s[words] = self._clock.monotonic_s()
        self.polls += 1
        articles = await self._fetch(words)
        await self._board.refresh()
        queried = self._instrument_of.get(words)
        for article in sorted(articles, key=lambda one: one.published_s):
            update = self._update(article, queried)
            known = self._board.get(update.id)
            if known is not None:
                update = _merged(known, update)
                if update == known:
                    continue
            await self._board.add(update)
            self.told += known is None
        self._polled_ms[words] = self._clock.now_ms()

    def _update(self, article: Article, queried: str | None) -> NewsUpdate:
        about = {symbol: self._instrument_of.get(symbol) for symbol in article.symbols}
        # An answer without symbols is about what was asked for; one with symbols says itself.
        instruments = [key for key in about.values() if key] if about else [queried] if queried else []
        return NewsUpdate(
            id=f"{self._code}:{article.id}",
            timestamp=article.published_s * 1_000_000,
            received_ms=self._clock.now_ms(),
            provider_code=self._code,
            headline=article.title,
            publisher=article.publisher,
            url=article.url,
            instruments=tuple(sorted(set(instruments))),
            symbols=tuple(sorted(symbol for symbol, key in about.items() if key is None)),
        )

    def _failed(self, error: Exception) -> float:
        if not self.reason:
            _log.warning("news_not_fetched", provider=self._code, reason=str(error))
        self.reason = str(error)
        longest_s = min(_LONGEST_BACKOFF_S, _FIRST_BACKOFF_S * 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        # A part of it by chance, so that daemons that lost the source together do not return together.
        return random.uniform(0.5, 1.0) * longest_s  # noqa: S311 - no secret

    def _succeeded(self) -> None:
        if self.reason:
            _log.info("news_fetched_again", provider=self._code)
        self.reason, self._failures = "", 0


def _merged(known: NewsUpdate, told: NewsUpdate) -> NewsUpdate:
    """Return what is known with the instruments that are new; a changed headline is no new article."""
    instruments = tuple(sorted({*known.instruments, *told.instruments}))
    symbols = tuple(sorted({*known.symbols, *told.symbols} - set(instruments)))
    return NewsUpdate(
        id=known.id,
        timestamp=known.timestamp,
        received_ms=known.received_ms,
        provider_code=known.provider_code,
        headline=known.headline,
        publisher=known.publisher,
        url=known.url,
        instruments=instruments,
        symbols=symbols,
    )
