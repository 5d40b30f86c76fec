"""What the judge of silence may find, and how it says so. Pure data."""

from __future__ import annotations

from enum import Enum

import msgspec


class Finding(str, Enum):
    """The state of one instrument at one provider, or of a whole feed.

    `PROVING`: subscribed, no tick yet, and too early to call that a fault. `FLOWING`: data comes as usual.
    `QUIET`: silence that is ordinary (closed, before the open, illiquid). The others are faults:
    `NEVER_STARTED` no tick since it was subscribed or since the open, `MUTE` ticks ceased,
    `BROWN_OUT` only a small part of the usual rate comes, `REPLAYED` ticks come whose times are old.
    """

    PROVING = "proving"
    FLOWING = "flowing"
    QUIET = "quiet"
    NEVER_STARTED = "never_started"
    MUTE = "mute"
    BROWN_OUT = "brown_out"
    REPLAYED = "replayed"

    @property
    def is_fault(self) -> bool:
        """Whether data that should come does not."""
        return self in FAULTS


FAULTS = frozenset({Finding.NEVER_STARTED, Finding.MUTE, Finding.BROWN_OUT, Finding.REPLAYED})


class Judgement(msgspec.Struct, frozen=True, gc=False):
    """One finding, since when (UTC epoch ms), why in words with figures, and how suspicious it looks.

    `score` is the evidence against it over the evidence that is needed: 0.0 nothing, from 1.0 on a fault.
    """

    finding: Finding
    since_ms: int
    reason: str
    score: float = 0.0


class Change(msgspec.Struct, frozen=True, gc=False):
    """A finding that changed in a way that routing must know: a fault began or ended, or a first tick came.

    `instrument` is empty where the whole feed of `exchange` is meant.
    """

    provider: str
    exchange: str
    instrument: str
    before: Finding
    now: Judgement
