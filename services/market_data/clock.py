"""Where time comes from: the system's clock, or one that a test moves by hand.

Durations always use the monotonic clock, stored times always the wall clock.
"""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What every module that needs the time is given."""

    def now_ms(self) -> int:
        """Return the wall clock as UTC epoch milliseconds."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds on a clock that never steps; only differences mean anything."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> int:
        """Return the wall clock as UTC epoch milliseconds."""
        return time.time_ns() // 1_000_000

    def monotonic_s(self) -> float:
        """Return seconds on the monotonic clock."""
        return time.monotonic()


class ManualClock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now_ms: int = 1_700_000_000_000) -> None:
        self._now_ms = now_ms
        self._monotonic_s = 1_000.0

    def now_ms(self) -> int:
        """Return the wall clock as UTC epoch milliseconds."""
        return self._now_ms

    def monotonic_s(self) -> float:
        """Return seconds on the monotonic clock."""
        return self._monotonic_s

    def advance(self, seconds: float) -> None:
        """Move both clocks forward by `seconds`."""
        self._now_ms += round(seconds * 1000)
        self._monotonic_s += seconds

    def step_wall(self, milliseconds: int) -> None:
        """Step the wall clock alone, as an NTP correction does."""
        self._now_ms += milliseconds
