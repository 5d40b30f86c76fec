"""DepthPlan: who wants how much depth of what, what of it can be had, and the sources kept in line with it.

Stands between the desk, which asks and is told of books, and the sources. A request that does not fit is
refused before anything is asked upstream. Changes cost in proportion to what changes; what the operator
pinned is worked out anew only when mappings or providers are different, and in slices.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from itertools import chain
from typing import Any

import structlog

from services.depth.source import SLICE, DepthSource, in_slices
from services.depth.wants import LINGER_S, DepthWants
from services.errors import RequestRefused
from services.market_data.clock import Clock
from services.pipeline.interest import expand

_log = structlog.get_logger(__name__)

LEVELS_OF_TICKS = 5
"""The books of so many levels come with the ticks."""
_NAMED_IN_STATUS = 20


class DepthPlan:
    """What is wanted of which source.

    `keep(instruments)` and `drop(instruments)` say whose book is kept, `let_go(instruments, levels)` of whom
    the source of so many levels brings it no longer.
    `pinned` are pairs of an instrument key or `EXCHANGE:*` and how many levels are always wanted of it,
    `known()` the instruments there are. With `everything` the books that come with ticks are all taken.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        known: Callable[[], Mapping[str, object]],
        keep: Callable[[Iterable[str]], None],
        drop: Callable[[Iterable[str]], None],
        let_go: Callable[[Iterable[str], int], None],
        pinned: Iterable[tuple[str, int]] = (),
        everything: bool = False,
        linger_s: float = LINGER_S,
    ) -> None:
        self._monotonic_s = clock.monotonic_s
        self._known = known
        self._keep, self._drop, self._let_go = keep, drop, let_go
        self.pinned = tuple(pinned)
        self._everything = everything
        self._linger_s = linger_s
        self.sources: dict[int, DepthSource] = {}
        self._wants: dict[int, DepthWants] = {}
        self._pinned_by_name: tuple[str, ...] = ()
        self._shed: dict[tuple[str, int], str] = {}
        self._changes, self._followed = 1, 0
        self._stood: object = None
        self._anew = True
        self._base: dict[str, None] = {}
        """Everything that is pinned, of whatever depth."""
        self._loose: dict[int, dict[str, None]] = {}
        """What is carried besides, by levels."""
        self._kept: set[str] = set()
        self.changed = asyncio.Event()
        """Set when there is something to follow."""

    def add_source(self, source: DepthSource) -> None:
        """Take a source in; one for each depth."""
        self.sources[source.levels] = source
        self.sources = dict(sorted(self.sources.items()))
        self._wants[source.levels] = DepthWants(self._linger_s)

    def look_anew(self) -> None:
        """What can be had, or what it is called, is different from before."""
        self._stood = None
        self.changed.set()

    # ---- what is wanted -----------------------------------------------------------------------------

    def want(self, instrument: str, levels: int) -> None:
        """Count one more who wants it. Raises `RequestRefused`, having changed nothing."""
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
        self._note_change()

    def unwant(self, instrument: str, levels: int) -> None:
        """Take back one `want`; more than were counted are ignored."""
        wants = self._wants.get(levels)
        if wants is not None:
            wants.remove(instrument, self._monotonic_s())
            self._note_change()

    def wanted_levels(self, instrument: str) -> list[int]:
        """Return how deep an instrument's book is wanted."""
        return [levels for levels, wants in self._wants.items() if instrument in wants]

    @property
    def needs_ticks_of(self) -> frozenset[str]:
        """The instruments whose book comes with their ticks, and which must be subscribed for that."""
        wants = self._wants.get(LEVELS_OF_TICKS)
        return frozenset() if wants is None else frozenset((*self._pinned_by_name, *wants.asked))

    # ---- following it -------------------------------------------------------------------------------

    async def follow(self) -> None:
        """Bring the sources in line with what is wanted now; cheap where nothing is different."""
        now_s, changes = self._monotonic_s(), self._changes
        stand = (id(self._known()), *(source.stand() for source in self.sources.values()))
        if stand != self._stood:
            await self._pin()
            self._anew, self._stood = True, stand
        lingered = any(wants.is_over(now_s) for wants in self._wants.values())
        if changes == self._followed and not self._anew and not lingered:
            return
        loose = {
            levels: self._wants[levels].loose(now_s, source.capacity)
            for levels, source in self.sources.items()
        }
        if self._anew:
            await self._carry_all(loose)
        else:
            await self._carry_changes(loose)
        self._loose, self._anew, self._followed = loose, False, changes

    async def rest(self) -> None:
        """Have the sources bring nothing."""
        for source in self.sources.values():
            await source.carry(())
        self._kept.clear()
        self._anew = True
        self.look_anew()

    def status(self) -> dict[str, Any]:
        """Return what found no place, and what each source carries."""
        return {
            "refused": [
                {"instrument": instrument, "levels": levels, "reason": reason}
                for (instrument, levels), reason in list(self._shed.items())[:_NAMED_IN_STATUS]
            ],
            "sources": [
                {"levels": levels, "wanted": self._wants[levels].firm(), **source.status()}
                for levels, source in self.sources.items()
            ],
        }

    # ---- inner --------------------------------------------------------------------------------------

    def _note_change(self) -> None:
        self._changes += 1
        self.changed.set()

    def _source(self, levels: int) -> DepthSource:
        source = self.sources.get(levels)
        if source is not None:
            return source
        if not self.sources:
            raise RequestRefused("depth is switched off: set DEPTH in .env", reason="depth_off")
        offered = ", ".join(map(str, self.sources))
        raise RequestRefused(f"{levels} levels are not offered; ask for {offered}", reason="depth_levels")

    async def _carry_all(self, loose: Mapping[int, dict[str, None]]) -> None:
        self._base = dict.fromkeys(chain.from_iterable(wants.pinned for wants in self._wants.values()))
        everything = self._base | dict.fromkeys(chain.from_iterable(loose.values()))
        self._drop([instrument for instrument in self._kept if instrument not in everything])
        self._keep(everything)
        self._kept = set(everything)
        for levels, source in self.sources.items():
            # The books that come with the ticks stand in for deeper ones, and cost nothing more upstream.
            if levels == LEVELS_OF_TICKS:
                await source.carry(list(everything))
            else:
                target = self._wants[levels].pinned | loose[levels]
                await source.carry(list(target))
                self._let_go([instrument for instrument in everything if instrument not in target], levels)

    async def _carry_changes(self, loose: Mapping[int, dict[str, None]]) -> None:
        base = self._base
        before = dict.fromkeys(chain.from_iterable(self._loose.values()))
        after = dict.fromkeys(chain.from_iterable(loose.values()))
        new = [instrument for instrument in after if instrument not in before and instrument not in base]
        gone = [instrument for instrument in before if instrument not in after and instrument not in base]
        self._keep(new)
        self._drop(gone)
        self._kept.update(new)
        self._kept.difference_update(gone)
        for levels, source in self.sources.items():
            if levels == LEVELS_OF_TICKS:
                added, removed = new, gone
            else:
                added = [it for it in loose[levels] if it not in self._loose[levels]]
                removed = [it for it in self._loose[levels] if it not in loose[levels]]
            if added or removed:
                await source.change(added, removed)
                self._let_go(removed, levels)

    async def _pin(self) -> None:
        """Let what the operator pinned be wanted as far as it can be had; the rest is said once."""
        known, shed = self._known(), {}
        for levels, source in self.sources.items():
            fit: list[str] = []
            for pattern in (name for name, asked in self.pinned if asked == levels):
                single = not pattern.endswith(":*")
                if single and pattern not in known:
                    shed[pattern, levels] = "unknown_instrument"
                for place, instrument in enumerate(sorted(expand((pattern,), known))):
                    if place % SLICE == SLICE - 1:
                        await asyncio.sleep(0)
                    if _never(source.refusal(instrument)):
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
                    fit += await self._all_that_have_a_book(source)
            self._wants[levels].pin(fit)
        if shed and shed.keys() != self._shed.keys():
            (instrument, levels), reason = next(iter(shed.items()))
            _log.warning(
                "depth_not_pinned", count=len(shed), instrument=instrument, levels=levels, reason=reason
            )
        self._shed = shed

    async def _all_that_have_a_book(self, source: DepthSource) -> list[str]:
        found = []
        async for some in in_slices(list(self._known())):
            found += [instrument for instrument in some if not _never(source.refusal(instrument))]
        return found


def _never(refused: RequestRefused | None) -> bool:
    """Tell whether an instrument has no such book at all, rather than none just now."""
    return refused is not None and refused.reason == "no_depth"
