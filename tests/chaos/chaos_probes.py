"""What is watched while a daemon is under faults: memory, descriptors, loop lag, accounts, its log."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.keeper import Keeper

# Every kind of fault leaves buffers and caches at a new height once.
WARM_UP_S = 300.0
"""What the allocator keeps of bursts rises for about five minutes of faults, and then stays (measured)."""
_MIB = 1 << 20
_EVERY_S = 0.5


class Sample(NamedTuple):
    """One look at the process: monotonic seconds, resident bytes, open descriptors, loop lag in ms."""

    at_s: float
    pid: int
    rss_bytes: int
    descriptors: int
    loop_lag_ms: float | None


class Probes:
    """Samples the process of a keeper twice a second, over its restarts, until cancelled."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self.samples: list[Sample] = []
        self.dropped: dict[int, dict[str, dict[str, int]]] = {}
        self.imbalances: list[str] = []
        self._unbalanced: Counter[str] = Counter()

    async def run(self) -> None:
        """Sample until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(_EVERY_S)

    async def look(self) -> None:
        """Take one sample; the accounts of the last look at each process are kept."""
        pid = self._keeper.pid
        if pid is None:
            return
        pipeline = await self._keeper.pipeline()
        try:
            status = Path(f"/proc/{pid}/statm").read_text(encoding="ascii")
            descriptors = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        except OSError:
            return
        lag_ms = None if pipeline is None else float(pipeline["loop_lag_ms"])
        self.samples.append(Sample(time.monotonic(), pid, int(status.split()[1]) * 4096, descriptors, lag_ms))
        if pipeline is not None:
            self._note_accounts(pid, pipeline)

    def _note_accounts(self, pid: int, pipeline: Mapping[str, Any]) -> None:
        self.dropped[pid] = {
            sink["name"]: {**sink["dropped"], **{f"rejected_{k}": n for k, n in sink["rejected"].items()}}
            for sink in pipeline["sinks"]
        }
        for sink in pipeline["sinks"]:
            if not sink["imbalance"]:
                self._unbalanced[sink["name"]] = 0
                continue
            self._unbalanced[sink["name"]] += 1
            if self._unbalanced[sink["name"]] == 3:
                self.imbalances.append(f"{sink['name']}: {sink}")

    # ---- what came of it ------------------------------------------------------------------------

    def dropped_of(self, sink: str) -> Counter[str]:
        """Return what a sink counted as dropped or refused, by reason, over all processes."""
        total: Counter[str] = Counter()
        for sinks in self.dropped.values():
            total.update(sinks.get(sink, {}))
        return total

    def longest_life(self) -> list[Sample]:
        """Return the samples of the process that lived longest."""
        lives: dict[int, list[Sample]] = {}
        for sample in self.samples:
            lives.setdefault(sample.pid, []).append(sample)
        return max(lives.values(), key=lambda life: life[-1].at_s - life[0].at_s, default=[])

    def memory(self, warm_up_s: float = WARM_UP_S) -> dict[str, float]:
        """Return how the memory of the longest life went after warming up, in MiB."""
        life = self.longest_life()
        warm = [sample for sample in life if sample.at_s - life[0].at_s >= warm_up_s]
        if len(warm) < 10:
            return {}
        return {
            "seconds": warm[-1].at_s - warm[0].at_s,
            "first_mib": warm[0].rss_bytes / _MIB,
            "last_mib": warm[-1].rss_bytes / _MIB,
            "peak_mib": max(sample.rss_bytes for sample in warm) / _MIB,
            "growth_mib": _growth([sample.rss_bytes / _MIB for sample in warm])[0],
            "creep_mib": _growth([sample.rss_bytes / _MIB for sample in warm])[1],
        }

    def lags_ms(self) -> list[float]:
        """Return the loop lags that the daemon itself measured, in ms, ascending."""
        return sorted(sample.loop_lag_ms for sample in self.samples if sample.loop_lag_ms is not None)


def _growth(values: list[float]) -> tuple[float, float]:
    """Return how far the median of the last third lies above that of the first, and how steadily.

    The second figure is the smaller of the two steps between the thirds: what leaks grows in both, while the
    largest burst so far raises the mark once.
    """
    third = len(values) // 3
    first, middle, last = (
        sorted(part)[third // 2] for part in (values[:third], values[third : 2 * third], values[-third:])
    )
    return last - first, min(middle - first, last - middle)


def scan_log(text: str, secrets: Mapping[str, str]) -> list[str]:
    """Return what a log must not show: tracebacks, and secrets by their names."""
    found = [f"the log shows {name}" for name, secret in secrets.items() if secret and secret in text]
    lines = text.splitlines()
    found += [
        "\n".join(lines[max(0, number - 2) : number + 25])
        for number, line in enumerate(lines)
        if line.lstrip(" |+").startswith("Traceback (most recent call last)")
    ][:3]
    return found
