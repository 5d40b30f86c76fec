"""DepthDesk: keeps one book for each instrument, and tells whoever listens of every change.

    full packets, 20 levels, 200 levels ──► book ──► sequencer ──► listeners: stream, clients, callbacks
                    ▲                                                  │
                    └──────────── what is wanted, counted ◄────────────┘

The deepest source that delivers has the book; while it is away, a shallower one stands in. Everything here
happens on the event loop, and nothing on the way of a book waits. Never invents a level, and never drops one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import structlog

from services.depth.book import marks
from services.depth.source import DepthSource
from services.depth.wants import LINGER_S, DepthWants
from services.errors import RequestRefused
from services.market_data.clock import Clock
from services.market_data.updates import (
    DEPTH_CROSSED,
    DEPTH_FLAG_TEXT,
    DEPTH_GAP,
    DEPTH_STALE,
    Level,
    Level2Update,
)
from services.pipeline.interest import expand

_log = structlog.get_logger(__name__)

STALE_AFTER_S = 30.0
LEVELS_OF_TICKS = 5
"""The books of so many levels come with the ticks."""
LOOK_EVERY_S = 0.5
_SETTLE_S = 0.05
_NAMED_IN_STATUS = 20
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

    `pinned` are pairs of an instrument key or `EXCHANGE:*` and how many levels are always wanted of it,
    `known()` the instruments there are. With `everything` the books that come with ticks are all taken,
    whether somebody wants them or not. A book is stale when nothing came for `stale_after_s` seconds.
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
        self._clock = clock
        self._monotonic_s = clock.monotonic_s
        self._stamp = stamp
        self._known = known
        self._pinned = tuple(pinned)
        self._everything = everything
        self._pinned_by_name: tuple[str, ...] = ()
        self._linger_s = linger_s
        self._stale_after_s = stale_after_s
        self._sources: dict[int, DepthSource] = {}
        self._wants: dict[int, DepthWants] = {}
        self._books: dict[str, _Book] = {}
        self._listeners: tuple[Callable[[Level2Update], None], ...] = ()
        self._wake = asyncio.Event()
        self._changed = True
        self._stood: object = None
        self._shed: dict[tuple[str, int], str] = {}
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
        `unknown_instrument`, `depth_levels`, `no_depth`, `depth_credentials`, `depth_off` or `depth_full`.
        """
        source = self._source(levels)
        wants = self._wants[levels]
        if instrument not in self._known():
            raise RequestRefused(f"{instrument} is not a known instrument", reason="unknown_instrument")
        if (refused := source.refusal(instrument)) is not None:
            raise refused
        capacity = source.capacity
        if capacity is not None and instrument not in wants and wants.firm() >= capacity:
            raise RequestRefused(
                f"{levels} levels can be had of {capacity} instruments at a time, and that many are in use: "
                "ask for fewer levels, or give one up",
                reason="depth_full",
            )
        wants.add(instrument)
        self._changed = True
        self._wake.set()

    def unwant(self, instrument: str, levels: int = 5) -> None:
        """Take back one `want` with the same arguments; more than were counted are ignored."""
        wants = self._wants.get(levels)
        if wants is not None:
            wants.remove(instrument, self._monotonic_s())
            self._changed = True
            self._wake.set()

    @property
    def needs_ticks_of(self) -> frozenset[str]:
        """The instruments whose book comes with their ticks, and which must be subscribed for that."""
        wants = self._wants.get(LEVELS_OF_TICKS)
        return frozenset() if wants is None else frozenset((*self._pinned_by_name, *wants.asked))

    # ---- for sources --------------------------------------------------------------------------------

    def add_source(self, source: DepthSource) -> None:
        """Take books of `source`, too; one for each depth, before `run`."""
        self._sources[source.levels] = source
        self._sources = dict(sorted(self._sources.items()))
        self._wants[source.levels] = DepthWants(self._linger_s)

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
        """Look soon at what is wanted and what can be had."""
        self._changed = True
        self._stood = None
        self._wake.set()

    # ---- life ---------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep the sources at what is wanted, and mark what grows old, until cancelled."""
        while True:
            await self.follow()
            self.look()
            await asyncio.sleep(_SETTLE_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S - _SETTLE_S):
                    await self._wake.wait()
            self._wake.clear()

    async def follow(self) -> None:
        """Bring the sources in line with what is wanted now; cheap where nothing is different."""
        now_s = self._monotonic_s()
        stand = (id(self._known()), *(source.stand() for source in self._sources.values()))
        if stand != self._stood:
            self._pin()
            self._stood, self._changed = stand, True
        if not self._changed and not any(wants.is_over(now_s) for wants in self._wants.values()):
            return
        self._changed = False
        wanted = {
            levels: self._wants[levels].wanted(now_s, source.capacity)
            for levels, source in self._sources.items()
        }
        everything = dict.fromkeys(instrument for some in wanted.values() for instrument in some)
        for instrument in [it for it in self._books if it not in everything]:
            del self._books[instrument]
        for instrument in everything:
            if instrument not in self._books:
                self._books[instrument] = _Book(instrument)
        for levels, source in self._sources.items():
            # The books that come with the ticks stand in for deeper ones, and cost nothing more upstream.
            await source.carry(list(everything) if levels == LEVELS_OF_TICKS else wanted[levels])

    async def rest(self) -> None:
        """Have the sources bring nothing, and forget the books: this daemon leads no longer."""
        for source in self._sources.values():
            await source.carry(())
        self._books.clear()
        self.look_soon()

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
            "wanted": [levels for levels, wants in self._wants.items() if instrument in wants],
            "levels": book.levels or None,
            "age_s": None if update is None else round(self._monotonic_s() - book.seen_s, 1),
            "flags": "" if update is None else DEPTH_FLAG_TEXT[update.flags],
            "position": None if update is None else update.position,
        }

    def status(self) -> dict[str, Any]:
        """Return what is wanted and carried, how old the books are, and what found no place."""
        now_s, ages = self._monotonic_s(), []
        for book in self._books.values():
            if book.update is not None:
                ages.append(now_s - book.seen_s)
        return {
            "books": len(ages),
            "awaited": len(self._books) - len(ages),
            "stale": sum(1 for it in self._books.values() if it.update is not None and it.update.stale),
            "oldest_s": round(max(ages), 1) if ages else None,
            "updates": self.updates,
            "flagged": dict(self.flagged),
            "unwanted": self.unwanted,
            "outdone": self.outdone,
            "refused": [
                {"instrument": instrument, "levels": levels, "reason": reason}
                for (instrument, levels), reason in list(self._shed.items())[:_NAMED_IN_STATUS]
            ],
            "sources": [
                {"levels": levels, "wanted": self._wants[levels].firm(), **source.status()}
                for levels, source in self._sources.items()
            ],
        }

    # ---- inner --------------------------------------------------------------------------------------

    def _source(self, levels: int) -> DepthSource:
        source = self._sources.get(levels)
        if source is not None:
            return source
        if not self._sources:
            raise RequestRefused("depth is switched off: set DEPTH in .env", reason="depth_off")
        offered = ", ".join(map(str, self._sources))
        raise RequestRefused(f"{levels} levels are not offered; ask for {offered}", reason="depth_levels")

    def _pin(self) -> None:
        """Let what the operator pinned be wanted as far as it can be had; the rest is said once."""
        known, shed = self._known(), {}
        for levels, source in self._sources.items():
            fit: list[str] = []
            for pattern in (name for name, asked in self._pinned if asked == levels):
                single = not pattern.endswith(":*")
                if single and pattern not in known:
                    shed[pattern, levels] = "unknown_instrument"
                for instrument in sorted(expand((pattern,), known)):
                    refused = source.refusal(instrument)
                    if _never(refused):
                        # Of a whole exchange those are meant that have a book.
                        if single:
                            shed[instrument, levels] = "no_depth"
                    elif source.capacity is not None and len(fit) >= source.capacity:
                        shed[instrument, levels] = "depth_full"
                    else:
                        # Where only the credentials are wanting it stays wanted, and begins with them.
                        fit.append(instrument)
            if levels == LEVELS_OF_TICKS:
                self._pinned_by_name = tuple(fit)
                if self._everything:
                    fit += [it for it in known if not _never(source.refusal(it))]
            self._wants[levels].pin(fit)
        if shed.keys() != self._shed.keys() and shed:
            (instrument, levels), reason = next(iter(shed.items()))
            _log.warning(
                "depth_not_pinned", count=len(shed), instrument=instrument, levels=levels, reason=reason
            )
        self._shed = shed

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


def _never(refused: RequestRefused | None) -> bool:
    """Tell whether an instrument has no such book at all, rather than none just now."""
    return refused is not None and refused.reason == "no_depth"
