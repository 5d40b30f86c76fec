"""The instruments as clients ask for them: by exchange and by words, from a view at most a second old.

Asking the daemon builds a view of every instrument; clients ask often, so one view serves many questions.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.gateway.backend import GatewayBackend, InstrumentView
from services.gateway.grants import EVERYTHING, Grant
from services.market_data.clock import Clock

VIEW_AGE_S = 1.0


class InstrumentDirectory:
    """Answers questions about the daemon's instruments."""

    def __init__(self, backend: GatewayBackend, clock: Clock) -> None:
        self._backend = backend
        self._clock = clock
        self._views: Sequence[InstrumentView] = ()
        self._keys: dict[str, list[str]] = {}
        self._read_s: float | None = None

    def forget(self) -> None:
        """Ask the daemon anew at the next question; the catalogue has changed."""
        self._read_s = None

    def keys_of(self, exchange: str) -> list[str]:
        """Return the keys of an exchange's instruments, in order; empty for an unknown exchange."""
        self._refresh()
        return self._keys.get(exchange, [])

    def search(
        self, exchange: str, words: str, limit: int, grant: Grant = EVERYTHING
    ) -> tuple[list[InstrumentView], int]:
        """Return at most `limit` instruments, and how many there are in all.

        `exchange` empty means all exchanges. Every word of `words` must stand in the key or the name,
        in any case; those whose symbol begins with the first word come first. Only what
        `grant` covers is seen.
        """
        self._refresh()
        wanted = words.casefold().split()
        found = [
            view
            for view in self._views
            if (not exchange or view.exchange == exchange)
            and grant.covers(view.key)
            and all(word in f"{view.key} {view.name}".casefold() for word in wanted)
        ]
        if wanted:
            found.sort(key=lambda view: not view.symbol.casefold().startswith(wanted[0]))
        return found[:limit], len(found)

    def _refresh(self) -> None:
        now_s = self._clock.monotonic_s()
        if self._read_s is not None and now_s - self._read_s < VIEW_AGE_S:
            return
        self._read_s = now_s
        self._views = sorted(self._backend.instruments(), key=lambda view: view.key)
        self._keys = {}
        for view in self._views:
            self._keys.setdefault(view.exchange, []).append(view.key)
