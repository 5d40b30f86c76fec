"""ChainPoller: asks again for the chains that somebody watches, one at a time, what waited longest first.

    who watches ──► what is due ──► OptionsManager (quotas, failover) ──► whoever hears its chains

Runs while the daemon leads. More watchers make rounds longer, never requests more frequent than the sources
allow; a chain that says the same again and again, as after the close, is asked for ever more rarely.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from datetime import date, datetime, time

import msgspec

from services.market_data.clock import Clock
from services.options.manager import OptionsManager, UnknownExpiry, UnknownUnderlying
from services.options.source import Underlying
from services.pipeline.failover import NobodyAnswered

EVERY_S = 3.0
SLOWEST_S = 30.0
AFTER_REFUSAL_S = 10.0
_IDLE_S = 0.25

Wanted = tuple[str, str]
"""Underlying key, and the day its contracts end as an ISO date; empty for the next one."""


class _Turn(msgspec.Struct):
    due_s: float
    every_s: float = EVERY_S
    last: object = None


class ChainPoller:
    """Polls what is `wanted()`. `newest(wanted)` is what is known of a chain, another object when it changed.

    `refused(wanted, reason)` hears why one cannot be had just now, an empty reason when it can.
    """

    def __init__(
        self,
        manager: OptionsManager,
        clock: Clock,
        *,
        find: Callable[[str], Underlying | None],
        wanted: Callable[[], Iterable[Wanted]],
        newest: Callable[[Wanted], object],
        refused: Callable[[Wanted, str], None],
        every_s: float = EVERY_S,
    ) -> None:
        self._manager = manager
        self._clock = clock
        self._find = find
        self._wanted = wanted
        self._newest = newest
        self._refused = refused
        self._every_s = every_s
        self._turns: dict[Wanted, _Turn] = {}
        self.polls = 0

    async def run(self) -> None:
        """Ask in turns until cancelled."""
        while True:
            due = self._next()
            if due is None:
                await asyncio.sleep(min(_IDLE_S, self._every_s))
            else:
                await self._poll(due)

    def status(self) -> dict[str, int]:
        """Return how many chains are watched, and how often any was asked for."""
        return {"watched": len(self._turns), "polls": self.polls}

    def _next(self) -> Wanted | None:
        now_s = self._clock.monotonic_s()
        wanted = set(self._wanted())
        self._turns = {one: turn for one, turn in self._turns.items() if one in wanted}
        for one in sorted(wanted - self._turns.keys()):
            self._turns[one] = _Turn(now_s, self._every_s)
        found = min(self._turns, key=lambda one: self._turns[one].due_s, default=None)
        return found if found is not None and self._turns[found].due_s <= now_s else None

    async def _poll(self, wanted: Wanted) -> None:
        turn = self._turns[wanted]
        began_s = self._clock.monotonic_s()
        self.polls += 1
        try:
            await self._manager.chain(wanted[0], self._expiry_s(wanted))
        except (UnknownUnderlying, UnknownExpiry, NobodyAnswered) as error:
            self._refused(wanted, str(error))
            turn.every_s = max(self._every_s, min(AFTER_REFUSAL_S, 3 * self._every_s))
        else:
            self._refused(wanted, "")
            newest = self._newest(wanted)
            changed = newest is None or newest is not turn.last
            turn.last = newest
            turn.every_s = self._every_s if changed else min(SLOWEST_S, 1.5 * turn.every_s)
        turn.due_s = began_s + turn.every_s

    def _expiry_s(self, wanted: Wanted) -> int | None:
        underlying = self._find(wanted[0])
        if not wanted[1] or underlying is None:
            return None
        return int(datetime.combine(date.fromisoformat(wanted[1]), time(12), underlying.zone).timestamp())


def wanted_of_lease(member: str) -> Wanted | None:
    """Return what a member of `md:options_interest` asks for, None when it cannot be read."""
    symbol, _, day = member.strip().partition(" ")
    if ":" not in symbol:
        return None
    if day:
        try:
            day = date.fromisoformat(day.strip()).isoformat()
        except ValueError:
            return None
    return symbol, day
