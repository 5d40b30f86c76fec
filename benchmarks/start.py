"""How long the daemon takes from its start until every mapped instrument is subscribed and has ticked."""

from __future__ import annotations

from typing import Any

from benchmarks.plot import Plot
from benchmarks.report import result, row
from benchmarks.rig import Rig

ORDER = 40


async def measure(quick: bool) -> dict[str, Any]:
    """Measure by number of instruments, the series of each being made meanwhile."""
    took = {}
    sizes = (100, 5_000) if quick else (100, 1_000, 5_000, 25_000)
    for size in sizes:
        async with Rig(instruments=size) as rig:
            took[size] = rig.started_in_s
    rows = [
        row(f"{size} mappings: process start to all subscribed and ticked", seconds, "s",
            at_most=5 if size == 25_000 else None,
            note="Dhan's 100 instruments a message, 20 ms apart, bound this" if size == 25_000 else "")
        for size, seconds in took.items()
    ]  # fmt: skip
    plot = Plot(
        name="instruments", title="Start", x="instruments", y="s", lines={"start": list(took.items())}
    )
    return result(rows, plots=[plot], took=took)
