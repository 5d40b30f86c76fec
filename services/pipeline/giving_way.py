"""How work in the background gives way to live data: it pauses between slices, and while the loop is late.

Beneath backfill, ledger and recall, which compute over thousands of rows. Ticks, clients and probes run on
the same event loop: none of them waits longer than one slice takes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from itertools import islice
from typing import TypeVar

SLICE = 500
"""Rows worked through at once: one to two milliseconds of what is done with a row here."""
LATE_MS = 50.0
"""While the event loop is later than this, nothing is begun that nobody waits for."""
_LOOK_AGAIN_S = 0.25
_LONGEST_S = 30.0

T = TypeVar("T")


async def slices(items: Iterable[T], size: int = SLICE) -> AsyncIterator[list[T]]:
    """Yield `items` in lists of at most `size`; between two of them whatever is due runs first."""
    rest = iter(items)
    while part := list(islice(rest, size)):
        yield part
        await asyncio.sleep(0)


class GivingWay:
    """Holds background work back while the loop is late. `lag_ms()` is how late it was lately."""

    def __init__(self, lag_ms: Callable[[], float] = lambda: 0.0) -> None:
        self._lag_ms = lag_ms
        self.waits = 0
        """How often something was held back."""

    async def until_calm(self, longest_s: float = _LONGEST_S) -> None:
        """Return when the loop is on time, or after `longest_s`: a machine that is always full waits too."""
        if self._lag_ms() <= LATE_MS:
            return
        self.waits += 1
        for _ in range(round(longest_s / _LOOK_AGAIN_S)):
            await asyncio.sleep(_LOOK_AGAIN_S)
            if self._lag_ms() <= LATE_MS:
                return
