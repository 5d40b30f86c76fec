"""Generated trading days: how many ticks each instrument brings in every two seconds, by a seed.

Ticks come in clusters, the session has a shape, the day, the whole market and each instrument have a level of
their own that wanders, and news makes bursts. None of the figures is known to what is tested with it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

STEP_S = 2
CLASSES: dict[str, float] = {"liquid": 5.0, "medium": 0.5, "thin": 1 / 60, "illiquid": 1 / 1200}
"""Mean ticks a second of each class of liquidity."""


@dataclass(frozen=True)
class Temper:
    """How unruly a market is: logarithmic deviations, the size of clusters, the share with news a day."""

    day: float = 0.35
    market: float = 0.3
    own_day: float = 0.3
    own: float = 0.4
    cluster: float = 2.0
    news: float = 0.05
    memory_s: float = 600.0


def shape(steps: int, kind: str) -> NDArray[np.float64]:
    """Return how busy each step of a session is, with mean 1: `stock` or `round_the_clock`."""
    at = np.linspace(0.0, 1.0, steps)
    if kind == "stock":
        curve = 0.75 + 2.2 * np.exp(-at / 0.04) + 0.8 * np.exp(-(1 - at) / 0.05)
    else:
        curve = 1.0 + 0.5 * np.sin(2 * np.pi * (at - 0.3))
    return np.asarray(curve / curve.mean())


def day(
    rng: np.random.Generator,
    rates: NDArray[np.float64],
    seconds: int,
    *,
    kind: str = "stock",
    temper: Temper | None = None,
) -> NDArray[np.int32]:
    """Return the ticks of one session, one row per instrument (`rates` a second), one column per step."""
    temper = temper or Temper()
    count, steps = len(rates), seconds // STEP_S
    level = np.exp(rng.normal(0, temper.day)) * np.exp(rng.normal(0, temper.own_day, count))
    mean = (rates * level)[:, None] * shape(steps, kind)[None, :] * STEP_S
    mean *= np.exp(_wander(rng, 1, steps, temper.market, temper.memory_s))
    mean *= np.exp(_wander(rng, count, steps, temper.own, temper.memory_s))
    for row in np.flatnonzero(rng.random(count) < temper.news):
        begin = int(rng.integers(steps))
        decay_steps = rng.uniform(60, 600) / STEP_S
        later = np.arange(steps - begin)
        mean[row, begin:] *= 1.0 + rng.uniform(3, 15) * np.exp(-later / decay_steps)
    clusters = rng.poisson(mean / temper.cluster)
    # The sum of geometric cluster sizes with that mean.
    extra = np.zeros_like(clusters)
    some = clusters > 0
    extra[some] = rng.negative_binomial(clusters[some], 1.0 / temper.cluster)
    return np.asarray(clusters + extra, dtype=np.int32)


def seen_by_another(rng: np.random.Generator, ticks: NDArray[np.int32], share: float) -> NDArray[np.int32]:
    """Return what a second provider shows of the same trades: each with probability `share`."""
    return np.asarray(rng.binomial(ticks, share), dtype=np.int32)


def _wander(
    rng: np.random.Generator, rows: int, steps: int, deviation: float, memory_s: float
) -> NDArray[np.float64]:
    """Return an autoregressive level with mean 0 that forgets within `memory_s`, one value a minute held."""
    minutes = steps * STEP_S // 60 + 1
    keep = np.exp(-60.0 / memory_s)
    noise = rng.normal(0, deviation * np.sqrt(1 - keep**2), (rows, minutes))
    level = np.empty((rows, minutes))
    level[:, 0] = rng.normal(0, deviation, rows)
    for minute in range(1, minutes):
        level[:, minute] = keep * level[:, minute - 1] + noise[:, minute]
    held = np.repeat(level, 60 // STEP_S, axis=1)[:, :steps]
    return np.asarray(held - deviation**2 / 2)
