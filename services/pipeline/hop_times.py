"""How long records take from one hop to the next: a histogram for each hop, filled by samples.

Beside the flow. A record is timed now and then (every `SAMPLE_EVERY_MS` at most), whatever the rate, so
that the timing costs the others one comparison. Knows no clock: whoever times a record brings the seconds.

    received --> accepted --> written, by sink
                          --> taken by a client's socket
"""

from __future__ import annotations

from bisect import bisect_left

SAMPLE_EVERY_MS = 50
BOUNDS_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""The upper ends of the histogram's buckets; what takes longer is in one more."""


class HopTimes:
    """The times of one hop. `counts` are those of the buckets, the last one without an upper end."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def note(self, seconds: float) -> None:
        """Add one sample; a clock that was set back in between counts as no time."""
        seconds = max(0.0, seconds)
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def figures(self) -> dict[str, object]:
        """Return `le` (upper ends in seconds), cumulative `counts`, one more than `le`, and `sum_s`."""
        total, cumulative = 0, []
        for count in self.counts:
            total += count
            cumulative.append(total)
        return {"le": list(BOUNDS_S), "counts": cumulative, "sum_s": self.sum_s}
