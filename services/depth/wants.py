"""Who wants how much depth: counted, lingering a while, pinned ones first. Pure.

Stands beneath the desk. Two who want the same are one; what nobody wants any more stays for a while, so that
clients that come and go cause no traffic upstream.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice

LINGER_S = 30.0


class DepthWants:
    """What is wanted of one source. `linger_s` is how long one stays after its last interest."""

    def __init__(self, linger_s: float = LINGER_S) -> None:
        self._linger_s = linger_s
        self._counts: dict[str, int] = {}
        self._until_s: dict[str, float] = {}
        self.pinned: dict[str, None] = {}

    def __contains__(self, instrument: object) -> bool:
        return instrument in self._counts or instrument in self.pinned

    @property
    def asked(self) -> tuple[str, ...]:
        """Those somebody asked for by `add`, the first ones first."""
        return tuple(self._counts)

    def firm(self) -> int:
        """Return how many are pinned or asked for: those that need a place."""
        return len(self.pinned) + sum(1 for instrument in self._counts if instrument not in self.pinned)

    def pin(self, instruments: Iterable[str]) -> None:
        """Let these be wanted always, and no others."""
        self.pinned = dict.fromkeys(instruments)

    def add(self, instrument: str) -> None:
        """Count one more who wants it."""
        self._counts[instrument] = self._counts.get(instrument, 0) + 1
        self._until_s.pop(instrument, None)

    def remove(self, instrument: str, now_s: float) -> None:
        """Count one less; the last one lets it linger. Harmless when nobody is left. `now_s` is monotonic."""
        count = self._counts.get(instrument, 0)
        if count > 1:
            self._counts[instrument] = count - 1
        elif count == 1:
            del self._counts[instrument]
            self._until_s[instrument] = now_s + self._linger_s

    def is_over(self, now_s: float) -> bool:
        """Tell whether something has lingered long enough. `now_s` is monotonic."""
        return any(until_s <= now_s for until_s in self._until_s.values())

    def loose(self, now_s: float, capacity: int | None) -> dict[str, None]:
        """Return what is to be subscribed besides the pinned: asked for, then lingering, as many as fit."""
        for instrument in [it for it, until_s in self._until_s.items() if until_s <= now_s]:
            del self._until_s[instrument]
        found = dict.fromkeys(it for it in chain(self._counts, self._until_s) if it not in self.pinned)
        if capacity is None or len(self.pinned) + len(found) <= capacity:
            return found
        return dict.fromkeys(islice(found, max(0, capacity - len(self.pinned))))
