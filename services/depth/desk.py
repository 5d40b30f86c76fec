"""DepthDesk: keeps one book for each instrument, and tells whoever listens of every change.

    full packets, 20 levels, 200 levels ──► book ──► sequencer ──► listeners: stream, clients, callbacks
                    ▲                                                  │
                    └──────── DepthPlan: what is wanted, counted ◄─────┘

The deepest source that delivers has the book; while it is away, a shallower one stands in. Everything here
happens on the event loop, and nothing on the way of a book waits. Never invents a level, and never drops one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from services.depth.book import marks
from services.depth.plan import DepthPlan
from services.depth.source import DepthSource
from services.depth.wants import LINGER_S
from services.market_data.clock import Clock
from services.market_data.updates import (
    DEPTH_CROSSED,
    DEPTH_FLAG_TEXT,
    DEPTH_GAP,
    DEPTH_STALE,
    Level,
    Level2Update,
)

STALE_AFTER_S = 30.0
LOOK_EVERY_S = 0.5
_SETTLE_S = 0.05
_COUNTED_NAMES = ((DEPTH_CROSSED, "crossed"), (DEPTH_STALE, "stale"), (DEPTH_GAP, "gap"))
_COUNTED = DEPTH_CROSSED | DEPTH_STALE | DEPTH_GAP


class _Book:
    __slots__ = ("exchange", "gap", "levels", "seen_s", "update")

    def __init__(self, instrument: str) -> None:
        self.exchange = instrument.partition(":")[0]
        self.update: Level2Update | None = None
        self.levels = 0
        """Which source has the book now; 0 while none delivers."""
        self.seen_s = 0.0
        self.gap = False


class DepthDesk:
    """The books. `stamp(update)` gives an update its position; `run` it while data flows.

    `known`, `pinned`, `everything` and `linger_s` are those of `DepthPlan`. A book is stale when nothing came
    for `stale_after_s` seconds.
    """

    def __init__(
        self,
        clock: Clock,
        stamp: Callable[[Level2Update], None],
        *,
        known: Callable[[], Mapping[str, object]],
        pinned: Iterable[tuple[str, int]] = (),
        everything: bool = False,
        linger_s: float = LINGER_S,
        stale_after_s: float = STALE_AFTER_S,
    ) -> None:
        self._monotonic_s = clock.monotonic_s
        self._stamp = stamp
        self._stale_after_s = stale_after_s
        self._books: dict[str, _Book] = {}
        self._listeners: tuple[Callable[[Level2Update], None], ...] = ()
        self.plan = DepthPlan(
            clock,
            known=known,
            keep=self._keep,
            drop=self._drop,
            let_go=self._let_go,
            pinned=pinned,
            everything=everything,
            linger_s=linger_s,
        )
        self.updates = 0
        self.flagged: Counter[str] = Counter()
        """How many updates were crossed or stale, or came after a gap."""
        self.unwanted = 0
        """Books that came although nobody wants them (any more)."""
        self.outdone = 0
        """Books passed over because a deeper source has a better one."""

    # ---- for those who want depth -------------------------------------------------------------------

    def latest(self, instrument: str) -> Level2Update | None:
        """Return the newest book of an instrument, with its flags; None when there is none."""
        book = self._books.get(instrument)
        return None if book is None else book.update

    def listen(self, callback: Callable[[Level2Update], None]) -> Callable[[], None]:
        """Call `callback` with every update, on the event loop; return what ends that.

        It must neither raise nor wait: the next listener, and the feed, wait for it.
        """

        def call(update: Level2Update) -> None:
            callback(update)

        self._listeners = (*self._listeners, call)

        def stop() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not call)

        return stop

    def want(self, instrument: str, levels: int = 5) -> None:
        """Count one more who wants `levels` of depth; the first one makes it be subscribed upstream.

        Raises `RequestRefused` before anything is changed when it cannot be had; its `reason` is
        `unknown_instrument`, `depth_levels`, `no_depth`, `depth_credentials`, `depth_unavailable`,
        `depth_off` or `depth_full`.
        """
        self.plan.want(instrument, levels)

    def unwant(self, instrument: str, levels: int = 5) -> None:
        """Take back one `want` with the same arguments; more than were counted are ignored."""
        self.plan.unwant(instrument, levels)

    @property
    def needs_ticks_of(self) -> frozenset[str]:
        """The instruments whose book comes with their ticks, and which must be subscribed for that."""
        return self.plan.needs_ticks_of

    # ---- for sources --------------------------------------------------------------------------------

    def add_source(self, source: DepthSource) -> None:
        """Take books of `source`, too; one for each depth, before `run`."""
        self.plan.add_source(source)

    def take(
        self,
        instrument: str,
        bids: tuple[Level, ...],
        asks: tuple[Level, ...],
        *,
        levels: int,
        provider_code: str,
        received_ms: int,
        flags: int,
    ) -> None:
        """Take how a book stands at the source of so many `levels`, and tell it.

        `bids` and `asks` are best first and hold only levels that exist; `flags` what the source knows.
        """
        book = self._books.get(instrument)
        if book is None:
            self.unwanted += 1
            return
        if levels < book.levels:
            self.outdone += 1
            return
        book.levels = levels
        book.seen_s = self._monotonic_s()
        flags |= marks(bids, asks)
        if book.gap:
            book.gap = False
            flags |= DEPTH_GAP
        self._tell(
            book,
            Level2Update(
                instrument,
                book.exchange,
                provider_code,
                received_ms * 1000,
                received_ms,
                bids,
                asks,
                levels,
                flags,
            ),
        )

    def lost(self, instruments: Iterable[str], levels: int) -> None:
        """Mark the books that the source of so many `levels` had; what comes next comes after a gap."""
        for instrument in instruments:
            book = self._books.get(instrument)
            if book is not None and book.levels == levels:
                self._grow_old(book, DEPTH_STALE | DEPTH_GAP)
                book.gap = True

    def look_soon(self) -> None:
        """Look soon at what can be had."""
        self.plan.look_anew()

    # ---- life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the sources at what is wanted, and mark what grows old, until cancelled."""
        changed = self.plan.changed
        while True:
            await self.plan.follow()
            self.look()
            await asyncio.sleep(_SETTLE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S - _SETTLE_S):
                    await changed.wait()
            changed.clear()

    async def rest(self) -> None:
        """Have the sources bring nothing, and forget the books: this daemon leads no longer."""
        await self.plan.rest()
        self._books.clear()

    def look(self) -> None:
        """Mark the books of which nothing has come for too long."""
        until_s = self._monotonic_s() - self._stale_after_s
        for book in self._books.values():
            if book.levels and book.seen_s <= until_s:
                self._grow_old(book, DEPTH_STALE)

    def explain(self, instrument: str) -> dict[str, Any] | None:
        """Return how an instrument's book stands and how deep it is wanted; None when nobody wants it."""
        book = self._books.get(instrument)
        if book is None:
            return None
        update = book.update
        return {
            "wanted": self.plan.wanted_levels(instrument),
            "levels": book.levels or None,
            "age_s": None if update is None else round(self._monotonic_s() - book.seen_s, 1),
            "flags": "" if update is None else DEPTH_FLAG_TEXT[update.flags],
            "position": None if update is None else update.position,
        }

    def status(self) -> dict[str, Any]:
        """Return what is wanted and carried, how old the books are, and what found no place."""
        told = [book for book in self._books.values() if book.update is not None]
        oldest_s = min((book.seen_s for book in told), default=None)
        return {
            "books": len(told),
            "awaited": len(self._books) - len(told),
            "stale": sum(1 for book in told if book.update is not None and book.update.stale),
            "oldest_s": None if oldest_s is None else round(self._monotonic_s() - oldest_s, 1),
            "updates": self.updates,
            "flagged": dict(self.flagged),
            "unwanted": self.unwanted,
            "outdone": self.outdone,
            **self.plan.status(),
        }

    # ---- inner --------------------------------------------------------------------------------------

    def _keep(self, instruments: Iterable[str]) -> None:
        for instrument in instruments:
            if instrument not in self._books:
                self._books[instrument] = _Book(instrument)

    def _drop(self, instruments: Iterable[str]) -> None:
        for instrument in instruments:
            self._books.pop(instrument, None)

    def _let_go(self, instruments: Iterable[str], levels: int) -> None:
        """Let a shallower source have the books that this one brings no longer."""
        for instrument in instruments:
            book = self._books.get(instrument)
            if book is not None and book.levels == levels:
                book.levels = 0

    def _grow_old(self, book: _Book, flags: int) -> None:
        book.levels = 0
        last = book.update
        if last is not None:
            kept = last.flags & ~DEPTH_GAP
            self._tell(
                book,
                Level2Update(
                    last.symbol,
                    last.exchange,
                    last.provider_code,
                    last.timestamp,
                    last.received_ms,
                    last.bids,
                    last.asks,
                    last.levels,
                    kept | flags,
                ),
            )

    def _tell(self, book: _Book, update: Level2Update) -> None:
        self._stamp(update)
        book.update = update
        self.updates += 1
        if update.flags & _COUNTED:
            for bit, name in _COUNTED_NAMES:
                if update.flags & bit:
                    self.flagged[name] += 1
        for call in self._listeners:
            call(update)
