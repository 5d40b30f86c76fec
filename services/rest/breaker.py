"""Lets a vendor that refuses again and again alone for a while. Pure."""

from __future__ import annotations

from services.errors import ProviderUnavailable
from services.market_data.clock import Clock


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
