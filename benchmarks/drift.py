"""Whether a figure drifts over a long run: its slope by Theil and Sen, which no outlier bends. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import msgspec

WARM_UP = 0.2
"""This part of a run, its beginning, is left out: caches fill, longer bars are made for the first time."""


class Drift(msgspec.Struct, frozen=True):
    """How a figure went: its `middle`, and by how much it grew over the looked-at part, in its own unit.

    `share` is that growth as a part of the middle.
    """

    middle: float
    grown: float

    @property
    def share(self) -> float:
        """The growth as a part of the middle; 0 where the middle is."""
        return self.grown / self.middle if self.middle else 0.0


def drift(points: Sequence[tuple[float, float]]) -> Drift:
    """Return the drift of `(moment, value)` pairs, ascending, without the warm-up.

    The slope is the median of those between all pairs of points. Raises ValueError for fewer than four.
    """
    if len(points) < 4:
        raise ValueError("a drift needs four points at least")
    from_s = points[0][0] + WARM_UP * (points[-1][0] - points[0][0])
    kept = [point for point in points if point[0] >= from_s]
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(kept)
        for later in kept[index + 1 :]
        if later[0] > earlier[0]
    ]
    return Drift(median(value for _, value in kept), median(slopes) * (kept[-1][0] - kept[0][0]))
