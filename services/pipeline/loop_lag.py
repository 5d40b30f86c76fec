"""How late the event loop runs its timers: what everything in the process waits before it is served.

Shown in the status, and what background work gives way by. It measures and decides nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

from services.pipeline.hop_times import HopTimes

EVERY_S = 0.1
_SAMPLES = 10


class LoopLag:
    """The lag of the loop it runs on. Keep `run` running; until then it is 0."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque([0.0], maxlen=_SAMPLES)
        self.times = HopTimes()
        """All lags since the start."""

    @property
    def worst_ms(self) -> float:
        """The worst of the last second."""
        return round(max(self._samples), 1)

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            # The loop's own clock stands still while it works off what is due.
            began_s = time.perf_counter()
            await asyncio.sleep(EVERY_S)
            late_s = time.perf_counter() - began_s - EVERY_S
            self._samples.append(max(0.0, late_s * 1000))
            self.times.note(late_s)
