"""How long the daemon takes from its start until every mapped instrument is subscribed and has ticked.

First with an empty Redis, where every series is made meanwhile; then again as after an update, with all
that it had stored to recall: positions, newest values, the last minutes. Beside the wait, which a busy
machine makes longer, stands the processor time that the daemon took for it."""

from __future__ import annotations

from functools import partial
from statistics import mean
from typing import Any

from benchmarks.plot import Plot
from benchmarks.report import result, row
from benchmarks.rig import Rig
from benchmarks.turns import in_turn

ORDER = 40
GOAL_S = 5
_TRADED_S = 5.0


async def measure(quick: bool) -> dict[str, Any]:
    """Measure by number of instruments, for the first time and again."""
    sizes = (100, 5_000) if quick else (100, 1_000, 5_000, 25_000)
    starts = await in_turn(1 if quick else 3, {size: partial(_started, size) for size in sizes})
    took = {
        size: {name: mean(one[name] for one in each) for name in each[0]} for size, each in starts.items()
    }
    rows = []
    for size, found in took.items():
        goal = GOAL_S if size == 25_000 else None
        small = took[sizes[0]]
        rows += [
            row(f"{size} mappings: process start to all subscribed and ticked", found["first"], "s",
                at_most=goal, ratios=_times(found, small, "first")),
            row(f"{size} mappings: the daemon's processor time for it", found["first CPU"], "s"),
            row(f"{size} mappings: the same again, with all of it stored", found["again"], "s",
                at_most=goal, ratios=_times(found, small, "again")),
            row(f"{size} mappings: the daemon's processor time for that", found["again CPU"], "s"),
        ]  # fmt: skip
    lines = {name: [(size, found[name]) for size, found in took.items()] for name in took[sizes[0]]}
    plot = Plot(name="instruments", title="Start", x="instruments", y="s", lines=lines)
    return result(rows, plots=[plot], took=took, starts=starts)


async def _started(size: int) -> dict[str, float]:
    """Start with an empty Redis, and again with everything stored; return the seconds of both."""
    async with Rig(instruments=size) as rig:
        found = {"first": rig.started_in_s, "first CPU": rig.start_cpu_s}
        # Every instrument has a newest value, and the stream has an end to be read.
        await rig.load.run(rate=max(1_000, 2 * size / _TRADED_S), seconds=_TRADED_S)
        await rig.settled(120)
        await rig.restart()
        return {**found, "again": rig.started_in_s, "again CPU": rig.start_cpu_s}


def _times(found: dict[str, float], small: dict[str, float], which: str) -> dict[str, float]:
    return {} if found is small else {"the fewest instruments": found[which] / small[which]}
