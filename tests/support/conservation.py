"""The conservation oracle, which the drills share with the tests."""

from __future__ import annotations

from simulators.conservation import (
    InstrumentStore,
    Lost,
    StoredGap,
    StoredTick,
    Verdict,
    judge_all,
    read_everything,
)

__all__ = [
    "InstrumentStore",
    "Lost",
    "StoredGap",
    "StoredTick",
    "Verdict",
    "judge_all",
    "read_everything",
]
