"""The schedule of a chaos run: which fault begins when, for how long; the same seed gives the same one.

Faults of one target never overlap, those of different targets do. What shortens the life of the process
comes in the first third only, so that its memory can be watched over the rest.
"""

from __future__ import annotations

import random
from typing import NamedTuple


class Kind(NamedTuple):
    """A fault that can be planned: on which target, how often against others, how long in seconds."""

    target: str
    name: str
    weight: float
    shortest_s: float
    longest_s: float
    early_only: bool = False


class Planned(NamedTuple):
    """One fault of the schedule, times in seconds from the start of the run."""

    at_s: float
    lasts_s: float
    kind: Kind
    number: int

    def __str__(self) -> str:
        return f"{self.at_s:7.1f} s  {self.kind.target:<9} {self.kind.name:<12} for {self.lasts_s:4.1f} s"


def _provider(target: str) -> list[Kind]:
    return [
        Kind(target, "abort", 2, 0, 0),
        Kind(target, "close_1000", 1, 0, 0),
        Kind(target, "close_1001", 1, 0, 0),
        Kind(target, "close_1011", 1, 0, 0),
        Kind(target, "mute", 1, 2, 12),
        Kind(target, "black_hole", 1.5, 2, 25),
        Kind(target, "refuse", 1, 1, 8),
        Kind(target, "hang", 1, 1, 8),
        Kind(target, "garbage", 1, 0, 0),
        Kind(target, "duplicates", 1, 2, 8),
        Kind(target, "burst", 1.5, 1, 4),
        Kind(target, "latency", 1, 2, 10),
    ]


KINDS: tuple[Kind, ...] = (
    Kind("redis", "kill", 2, 0.5, 12),
    Kind("redis", "freeze", 2, 0.5, 12),
    Kind("redis", "latency", 1, 3, 10),
    Kind("redis", "cut_replies", 2, 1, 5),
    Kind("redis", "reset", 1, 0, 0),
    Kind("redis", "black_hole", 1.5, 1, 10),
    Kind("redis", "refuse", 1, 1, 8),
    Kind("redis", "oom", 1.5, 2, 10),
    Kind("redis", "read_only", 1.5, 2, 10),
    Kind("postgres", "quit", 2, 1, 10),
    Kind("postgres", "black_hole", 1, 2, 10),
    Kind("postgres", "reset", 1, 0, 0),
    *_provider("dhan"),
    *_provider("yahoo"),
    Kind("daemon", "kill", 2, 0, 0, early_only=True),
    Kind("daemon", "stop", 2, 0, 0, early_only=True),
    Kind("daemon", "freeze", 1, 0.5, 3),
    Kind("clients", "slow", 1, 5, 20),
    Kind("clients", "frozen", 1, 5, 20),
)

# Mean pause between two faults of one target; after the process was ended it needs time to live.
_PAUSE_S = {"redis": 8.0, "postgres": 25.0, "dhan": 14.0, "yahoo": 16.0, "daemon": 25.0, "clients": 12.0}
_QUIET_AT_START_S = 5.0


def make_plan(seed: int, seconds: float, *, targets: frozenset[str] | None = None) -> list[Planned]:
    """Return the schedule of `seconds` seconds, in the order of time."""
    planned: list[tuple[float, float, Kind]] = []
    for target, pause_s in _PAUSE_S.items():
        if targets is not None and target not in targets:
            continue
        chosen = random.Random(f"{seed}:{target}")
        kinds = [kind for kind in KINDS if kind.target == target]
        at_s = _QUIET_AT_START_S + chosen.expovariate(1 / pause_s)
        while at_s < seconds:
            open_to = [kind for kind in kinds if not kind.early_only or at_s < seconds / 3]
            [kind] = chosen.choices(open_to, [kind.weight for kind in open_to])
            lasts_s = min(chosen.uniform(kind.shortest_s, kind.longest_s), seconds - at_s)
            planned.append((round(at_s, 1), round(lasts_s, 1), kind))
            at_s += lasts_s + 1.0 + chosen.expovariate(1 / pause_s)
    planned.sort(key=lambda item: (item[0], item[2].target))
    return [Planned(*item, number) for number, item in enumerate(planned, 1)]
