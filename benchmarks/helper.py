"""The other side of `rig.Helper`, and the latencies that such processes gather. Standard library only."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

STAMPS_PER_S = 100_000


def say(what: dict[str, Any]) -> None:
    """Answer one line."""
    print(json.dumps(what), flush=True)


def commands(data: bytes) -> list[dict[str, Any]]:
    """Return the commands in what was read from standard input."""
    return [json.loads(line) for line in data.splitlines() if line.strip()]


class Latencies:
    """How long ago stamped ticks were sent when they were seen."""

    def __init__(self, base_s: float) -> None:
        self._base_s = base_s
        self.seen = 0
        self._stamps: list[int] = []
        """Ages, in units of the stamps; at most a million, every nth beyond a rate that would fill it."""

    def now(self) -> int:
        """Return the present moment as a stamp."""
        return int((time.monotonic() - self._base_s) * STAMPS_PER_S)

    def note(self, now: int, stamps: list[int]) -> None:
        """Take note of ticks seen at `now`."""
        self.seen += len(stamps)
        if len(self._stamps) < 1_000_000:
            self._stamps += [now - stamp for stamp in stamps]

    def begin(self) -> None:
        """Forget what was before."""
        self.seen = 0
        self._stamps = []

    def end(self) -> dict[str, Any]:
        """Return count and quantiles in milliseconds."""
        ages = sorted(self._stamps)
        figures: dict[str, Any] = {"seen": self.seen}
        for name, part in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p999", 0.999), ("max", 1.0)):
            figures[name] = (
                ages[min(len(ages) - 1, int(len(ages) * part))] / STAMPS_PER_S * 1000 if ages else None
            )
        return figures


def stdin_bytes() -> bytes:
    """Return what waits on standard input; nothing at its end."""
    return bytes(sys.stdin.buffer.raw.read(65_536) or b"")  # type: ignore[attr-defined]
