"""Keeps requests within a vendor's limits, and lets a vendor that refuses alone for a while.

One pacer per vendor and limit, shared by all who ask. Pure but for the waiting.
"""

from __future__ import annotations

import asyncio

from services.errors import ProviderRateLimited, ProviderUnavailable
from services.market_data.clock import Clock


class Pacer:
    """At most `per_s` requests a second, `burst` of them at once.

    Turns are given in the order they are asked for. Whoever would wait longer than `patience_s` is told so
    at once by `ProviderRateLimited`, and may ask somebody else.
    """

    def __init__(
        self, vendor: str, clock: Clock, *, per_s: float, burst: int = 1, patience_s: float = 10.0
    ) -> None:
        self._vendor = vendor
        self._clock = clock
        self._every_s = 1.0 / per_s
        self._lead_s = (burst - 1) * self._every_s
        self._patience_s = patience_s
        self._next_s = 0.0

    async def turn(self) -> None:
        """Wait until a request may be made. Raises `ProviderRateLimited` when that takes too long."""
        now_s = self._clock.monotonic_s()
        due_s = max(self._next_s, now_s - self._lead_s)
        wait_s = due_s - now_s
        if wait_s > self._patience_s:
            raise ProviderRateLimited(
                f"{self._vendor} may be asked again in {wait_s:.0f} s", reason="paced", retry_after_s=wait_s
            )
        self._next_s = due_s + self._every_s
        if wait_s > 0:
            await asyncio.sleep(wait_s)

    def pause(self, seconds: float) -> None:
        """Give no turn for so many seconds, as the vendor asks."""
        self._next_s = max(self._next_s, self._clock.monotonic_s() + seconds)


class Breaker:
    """Opens after `failures` in a row and stays open for `open_s` seconds; then one attempt decides."""

    def __init__(self, vendor: str, clock: Clock, *, failures: int = 5, open_s: float = 300.0) -> None:
        self._vendor = vendor
        self._clock = clock
        self._limit = failures
        self._open_s = open_s
        self._failures = 0
        self._until_s = 0.0

    def check(self) -> None:
        """Raise `ProviderUnavailable` while it is open."""
        left_s = self._until_s - self._clock.monotonic_s()
        if left_s > 0:
            raise ProviderUnavailable(
                f"{self._vendor} refused {self._failures} times in a row: left alone for {left_s:.0f} s",
                reason="left_alone",
                retry_after_s=left_s,
            )

    def failed(self) -> None:
        """Count a refusal."""
        self._failures += 1
        if self._failures >= self._limit:
            self._until_s = self._clock.monotonic_s() + self._open_s

    def succeeded(self) -> None:
        """Forget the refusals."""
        self._failures, self._until_s = 0, 0.0
