"""How long to wait before the next attempt: exponential, full jitter, forgiven only by lasting success."""

from __future__ import annotations

import random


class Backoff:
    """Waits of `uniform(0, min(cap_s, base_s * 2**attempts))` seconds, never under `floor_s`.

    Call `succeeded(uptime_s)` when a connection ends: only an uptime of at least `reset_after_s`
    starts the series anew, so a peer that accepts and closes at once is not hammered.
    """

    def __init__(
        self,
        base_s: float = 1.0,
        cap_s: float = 60.0,
        *,
        floor_s: float = 0.0,
        reset_after_s: float = 30.0,
        rng: random.Random | None = None,
    ) -> None:
        self.attempts = 0
        self._base_s = base_s
        self._cap_s = cap_s
        self._floor_s = floor_s
        self._reset_after_s = reset_after_s
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret

    def next_wait_s(self, minimum_s: float = 0.0) -> float:
        """Return the seconds to wait now, at least `minimum_s` (what the peer asked for)."""
        ceiling_s = min(self._cap_s, self._base_s * 2.0 ** min(self.attempts, 30))
        self.attempts += 1
        return max(minimum_s, self._floor_s, self._rng.uniform(0.0, ceiling_s))

    def succeeded(self, uptime_s: float) -> None:
        """Say that the last attempt worked for `uptime_s` seconds."""
        if uptime_s >= self._reset_after_s:
            self.attempts = 0
