"""How long to wait before the next connection: exponential, with full jitter."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Backoff:
    """Waits of random length between 0 and a limit that doubles from `first_s` to `longest_s`.

    The limit falls back to `first_s` only after a connection that lasted `healthy_after_s`: a daemon
    that accepts and closes at once is not hammered.
    """

    first_s: float = 1.0
    longest_s: float = 30.0
    healthy_after_s: float = 30.0
    chance: Callable[[], float] = random.random
    _failures: int = field(default=0, init=False)

    def lasted(self, seconds: float) -> None:
        """Note how long the connection that just ended had been open."""
        if seconds >= self.healthy_after_s:
            self._failures = 0

    def next_s(self, at_least_s: float = 0.0) -> float:
        """Return the next wait in seconds, never less than `at_least_s` (as in `Retry-After`)."""
        limit_s = min(self.longest_s, self.first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return at_least_s + self.chance() * limit_s
