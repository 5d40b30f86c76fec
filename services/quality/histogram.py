"""A histogram of fixed size over many magnitudes: latencies in ms, differences in basis points.

Each bucket is a fifth wider than the one before, so a quantile is right to a tenth. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

_GROWTH = math.log(1.2)
_OFFSET = 26
BUCKETS = 110
"""From 0.01 to 4 million."""


class Histogram:
    """Counts of values of 0 or more; what is smaller than 0.01 counts as 0.01."""

    def __init__(self, counts: Sequence[int] = ()) -> None:
        self.counts = [*counts, *[0] * (BUCKETS - len(counts))][:BUCKETS]

    def add(self, value: float) -> None:
        """Count one value."""
        place = round(math.log(max(value, 0.01)) / _GROWTH) + _OFFSET
        self.counts[min(BUCKETS - 1, max(0, place))] += 1

    def include(self, counts: Iterable[int]) -> None:
        """Add the counts of another histogram."""
        for place, count in enumerate(counts):
            if place < BUCKETS:
                self.counts[place] += count

    @property
    def total(self) -> int:
        """How many values were counted."""
        return sum(self.counts)

    def quantile(self, share: float) -> float | None:
        """Return the value below which `share` of all lie; None where there are none."""
        total = self.total
        if not total:
            return None
        left = share * total
        for place, count in enumerate(self.counts):
            left -= count
            if count and left <= 0:
                return math.exp((place - _OFFSET) * _GROWTH)
        return math.exp((BUCKETS - 1 - _OFFSET) * _GROWTH)

    def as_list(self) -> list[int]:
        """Return the counts without the empty end, fit for JSON."""
        last = max((place for place, count in enumerate(self.counts) if count), default=-1)
        return self.counts[: last + 1]
