"""The contract of a sink: where sequenced records go (time series, stream, latest value, clients).

The bus hands every record to every sink by a plain call, on the event loop: ticks by runs, others one by
one. A sink therefore only queues in `offer`; the work is done by its own supervised `run`.
A sink never pushes back, never raises into the bus, and accounts for every record it was offered.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum

from services.market_data.records import DataIngestionFormat, Record


class SinkState(str, Enum):
    """Whether a sink can do its work."""

    STARTING = "starting"
    READY = "ready"
    UNAVAILABLE = "unavailable"
    PARKED = "parked"
    CLOSED = "closed"


@dataclass(slots=True)
class SinkCounters:
    """What became of the records a sink was offered.

    At any moment `offered = written + collapsed + sum(dropped) + sum(rejected) + queued + spooled`, where
    queued includes what is in flight and `spooled` is what waits on disk. `already_written` counts replayed
    records that the store had (they are part of `written`), `resent` those that went once more because a
    killed Redis may forget what it confirmed (they are part of nothing else), `recovered` those that an
    earlier run left on disk (they are part of `offered`), `repaired` series that had to be mended before they
    took samples again; `batches` and `errors` are for rates only.
    """

    offered: int = 0
    written: int = 0
    collapsed: int = 0
    spooled: int = 0
    recovered: int = 0
    already_written: int = 0
    resent: int = 0
    repaired: int = 0
    batches: int = 0
    errors: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    rejected: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int = 1) -> None:
        """Count `count` records that were given up on, for example `queue_full`."""
        self.dropped[reason] = self.dropped.get(reason, 0) + count

    def reject(self, reason: str, count: int = 1) -> None:
        """Count `count` records that the store will never accept."""
        self.rejected[reason] = self.rejected.get(reason, 0) + count

    def imbalance(self, queued: int) -> int:
        """Return how many records are unaccounted for; anything but 0 is a bug."""
        settled = self.written + self.collapsed + sum(self.dropped.values()) + sum(self.rejected.values())
        return self.offered - settled - queued - self.spooled


class Sink(ABC):
    """One destination of the bus: own bounded queue, own task, own policy, own counters."""

    name: str
    counters: SinkCounters
    state: SinkState
    reason: str
    """Why the state is not READY, in words for an operator; empty otherwise."""
    has_disk: bool = False
    """Whether what the store does not take is kept on disk, so that a drain ends by itself."""
    probe_ms: int
    """`position_ms` of the newest health-probe record that was delivered; 0 before the first."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.counters = SinkCounters()
        self.state = SinkState.STARTING
        self.reason = ""
        self.probe_ms = 0

    @property
    @abstractmethod
    def queued(self) -> int:
        """Records that were offered and are not settled yet."""

    @abstractmethod
    def offer(self, record: Record) -> None:
        """Take one record. Called on the event loop: never blocks, never raises."""

    def offer_ticks(self, ticks: Sequence[DataIngestionFormat]) -> None:
        """Take a run of ticks, as `offer` takes each of them. The run is shared: it must not be changed."""
        for tick in ticks:
            self.offer(tick)

    @abstractmethod
    async def run(self) -> None:
        """Do the sink's work until cancelled. The supervisor restarts it after an exception."""

    @abstractmethod
    async def drain(self, deadline_s: float) -> int:
        """Write out what is queued, for at most `deadline_s` seconds; return how many records remain."""
