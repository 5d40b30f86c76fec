"""Where time comes from: the system's clock, or one that a test moves by hand.

Durations always use the monotonic clock, stored times always the wall clock.
"""

from __future__ import annotations

import time
from typing import Protocol

from services.compiled import in_place_of


class Clock(Protocol):
    """What every module that needs the time is given."""

    def now_ms(self) -> int:
        """Return the wall clock as UTC epoch milliseconds."""
        ...

    def monotonic_s(self) -> float:
        """Return seconds on a clock that never steps; only differences mean anything."""
        ...

    def wall_step_ms(self) -> int:
        """Return how far the wall clock was set since the start, in ms; 0 while within two seconds."""
        ...


STEP_MS = 2_000
"""The wall clock was set when it is off by more than this; less is a correction that needs no care."""


class SystemClock:
    """The machine's clocks."""

    def __init__(self) -> None:
        self._anchor_ns = _wall_over_boot_ns()

    def wall_step_ms(self) -> int:
        """Return how far the wall clock was set since the start, in ms; 0 while within two seconds."""
        return _beyond_tolerance((_wall_over_boot_ns() - self._anchor_ns) // 1_000_000)

    @in_place_of("clock", "now_ms")
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
        self._stepped_ms = 0

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
        self._stepped_ms += milliseconds

    def wall_step_ms(self) -> int:
        """Return how far `step_wall` has moved the wall clock in all; 0 while within two seconds."""
        return _beyond_tolerance(self._stepped_ms)


def _beyond_tolerance(step_ms: int) -> int:
    return step_ms if abs(step_ms) > STEP_MS else 0


def _wall_over_boot_ns() -> int:
    # The boot clock goes on while the machine sleeps and is corrected at the same rate as the wall clock.
    return time.time_ns() - time.clock_gettime_ns(time.CLOCK_BOOTTIME)
