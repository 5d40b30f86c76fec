"""Who wants which instrument, and for how much longer: the union of clients and leases, with a linger.

Pure. In dynamic mode the set it answers is what is subscribed upstream. An instrument that nobody
wants any more stays for a while, so that clients that come and go cause no traffic at the providers.
"""

from __future__ import annotations

from collections.abc import Iterable

LINGER_S = 30.0


class Interest:
    """The instruments to keep subscribed. `linger_s` is how long one stays after its last interest."""

    def __init__(self, linger_s: float = LINGER_S) -> None:
        self._linger_s = linger_s
        self._last_wanted_s: dict[str, float] = {}

    def update(self, wanted: Iterable[str], now_s: float) -> frozenset[str]:
        """Take note of what is wanted now; return what is to stay subscribed. `now_s` is monotonic."""
        for instrument in wanted:
            self._last_wanted_s[instrument] = now_s
        expired = [
            instrument
            for instrument, seen_s in self._last_wanted_s.items()
            if now_s - seen_s > self._linger_s
        ]
        for instrument in expired:
            del self._last_wanted_s[instrument]
        return frozenset(self._last_wanted_s)


def expand(patterns: Iterable[str], known: Iterable[str]) -> set[str]:
    """Return the known instruments that `patterns` name; `NSE:*` names a whole exchange."""
    found: set[str] = set()
    known = set(known)
    for pattern in patterns:
        if pattern.endswith(":*"):
            prefix = pattern[:-1]
            found.update(instrument for instrument in known if instrument.startswith(prefix))
        elif pattern in known:
            found.add(pattern)
    return found
