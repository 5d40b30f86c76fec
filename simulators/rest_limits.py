"""Rate limits of the simulated vendors' REST sides: so many requests a second, so many a day."""

from __future__ import annotations

import time


class RequestLimit:
    """So many requests in any second, and `per_day` in all (0: no such limit); both may be changed.

    `taken` counts what was let through, `refused` what was not.
    """

    def __init__(self, per_second: float, *, per_day: int = 0) -> None:
        self.per_second = per_second
        self.per_day = per_day
        self.taken = 0
        self.refused = 0
        self._credit = max(1.0, per_second)
        self._last_s = time.monotonic()

    def refusal(self) -> str | None:
        """Take one request; return which limit it breaches, None for neither."""
        now = time.monotonic()
        self._credit = min(max(1.0, self.per_second), self._credit + (now - self._last_s) * self.per_second)
        self._last_s = now
        if self.per_day and self.taken >= self.per_day:
            self.refused += 1
            return "the limit of the day"
        if self._credit < 1.0:
            self.refused += 1
            return "the limit of the second"
        self._credit -= 1.0
        self.taken += 1
        return None
