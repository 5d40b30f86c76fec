"""The figures of one provider on one exchange on one day, and the score they make. Pure.

The score is 0 to 100: the mean of six parts, each 100 where all is well and 0 from a stated level on,
weighted by what a wrong or missing price costs. A part without figures (no second provider to compare with)
is left out.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import date

import msgspec

from services.quality.histogram import Histogram

LEAST_MINUTES = 30
"""A day is scored from so many minutes of open market on."""


class Part(msgspec.Struct, frozen=True):
    """How one part of the score is made: its weight, and the figures that are worth 100 and 0."""

    weight: int
    good: float
    bad: float
    logarithmic: bool = False

    def points(self, value: float) -> float:
        """Return 0 to 100."""
        good, bad = self.good, self.bad
        if self.logarithmic:
            value, good, bad = (math.log(max(one, 1e-6)) for one in (value, good, bad))
        return 100.0 * min(1.0, max(0.0, (bad - value) / (bad - good)))


PARTS: dict[str, Part] = {
    "freshness": Part(40, 0.0, 0.05),
    "gaps": Part(20, 0.0, 0.02),
    "duplicates": Part(5, 0.0, 0.2),
    "out_of_order": Part(10, 0.0, 0.05),
    "disagreement": Part(15, 2.0, 100.0, logarithmic=True),
    "latency": Part(10, 250.0, 15_000.0, logarithmic=True),
}
"""Freshness: share of the connected instrument-minutes judged faulty. Gaps: share without a connection.
Duplicates and out of order: shares of ticks. Disagreement: median in basis points. Latency: median in ms."""


class DayFigures(msgspec.Struct):
    """What was seen in the open minutes of one day.

    `expected` counts subscribed instruments times minutes, `missing` those without a connection, `faulty`
    those that were connected and did not bring what they should. `latency` is of ticks, in ms,
    `disagreement` of instruments with another real-time provider, in basis points of the price.
    """

    day: date
    provider: str
    exchange: str
    minutes: int = 0
    expected: int = 0
    missing: int = 0
    faulty: int = 0
    ticks: int = 0
    duplicates: int = 0
    late: int = 0
    latency: list[int] = []
    disagreement: list[int] = []

    @property
    def key(self) -> tuple[date, str, str]:
        """What the figures are of."""
        return (self.day, self.provider, self.exchange)

    def include(self, other: DayFigures) -> None:
        """Add the figures of another part of the same day."""
        for name in ("minutes", "expected", "missing", "faulty", "ticks", "duplicates", "late"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in ("latency", "disagreement"):
            sum_ = Histogram(getattr(self, name))
            sum_.include(getattr(other, name))
            setattr(self, name, sum_.as_list())


class Score(msgspec.Struct, frozen=True):
    """The score of a day; `parts` are points, `values` the figures behind them. None: too little was seen."""

    day: date
    provider: str
    exchange: str
    score: float | None
    parts: dict[str, float]
    values: dict[str, float]
    minutes: int


def score(figures: DayFigures) -> Score:
    """Return what the figures are worth."""
    values: dict[str, float] = {}
    connected = figures.expected - figures.missing
    if figures.expected:
        values["gaps"] = figures.missing / figures.expected
    if connected:
        values["freshness"] = figures.faulty / connected
    if figures.ticks:
        values["duplicates"] = figures.duplicates / (figures.ticks + figures.duplicates)
        values["out_of_order"] = figures.late / figures.ticks
    for name, counts in (("disagreement", figures.disagreement), ("latency", figures.latency)):
        median = Histogram(counts).quantile(0.5)
        if median is not None:
            values[name] = median
    parts = {name: PARTS[name].points(value) for name, value in values.items()}
    weight = sum(PARTS[name].weight for name in parts)
    total = None
    if weight and figures.minutes >= LEAST_MINUTES:
        total = round(sum(PARTS[name].weight * points for name, points in parts.items()) / weight, 1)
        if not connected:
            total = 0.0
    return Score(figures.day, figures.provider, figures.exchange, total, parts, values, figures.minutes)


def by_day(rows: Iterable[DayFigures]) -> list[DayFigures]:
    """Return the sums of the parts of each day (a daemon that restarts makes several), in order."""
    found: dict[tuple[date, str, str], DayFigures] = {}
    for row in rows:
        whole = found.get(row.key)
        if whole is None:
            found[row.key] = msgspec.structs.replace(row)
        else:
            whole.include(row)
    return [found[key] for key in sorted(found, key=lambda key: (key[2], key[1], key[0]))]
