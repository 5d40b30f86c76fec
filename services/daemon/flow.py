"""Where every record passes: it gets its position and goes to every sink. All publishers share it.

Ticks are kept until the end of the turn of the event loop that brought them, at most `LONGEST_RUN` of
them, and passed on as one run, which costs half of passing them on one by one. A control record goes on at
once, behind the ticks before it: the order is that of publishing, whatever the kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.market_data.clock import Clock
from services.market_data.records import DataIngestionFormat, Record
from services.pipeline.bus import Bus
from services.pipeline.hop_times import SAMPLE_EVERY_MS, HopTimes
from services.pipeline.sequencer import Sequencer
from services.pipeline.sink import Sink
from services.storage.redis_sink import RedisSink

LONGEST_RUN = 256
"""So many ticks go on before the turn ends: some milliseconds of work."""


class Flow:
    """Sequencer and bus. `connect` the sinks before anything is published."""

    __slots__ = ("__dict__", "__weakref__", "_run")

    def __init__(self, clock: Clock) -> None:
        self.sequencer = Sequencer(clock)
        self.bus = Bus(())
        self.accepted_within = HopTimes()
        self._writers: Sequence[RedisSink] = ()
        self._time_from_ms = 0
        self._run: list[DataIngestionFormat] = []

    def connect(self, sinks: tuple[Sink, ...], writers: Sequence[RedisSink]) -> None:
        """Deliver to `sinks` from now on; `writers` are those of them whose speed is sampled."""
        self.bus = Bus(sinks)
        self._writers = writers

    def publish(self, record: Record) -> None:
        """Give a record its position and hand it to every sink; a tick at the end of this turn."""
        run = self._run
        if type(record) is DataIngestionFormat:
            if not run:
                asyncio.get_running_loop().call_soon(self.flush)
            run.append(record)
            if len(run) >= LONGEST_RUN:
                self.flush()
            return
        if run:
            self.flush()
        self.sequencer.stamp(record)
        self.bus.publish(record)
        if record.position_ms >= self._time_from_ms:
            self._time_hops(record)

    def flush(self) -> None:
        """Pass on the ticks published in this turn of the loop, if any are left."""
        run = self._run
        if not run:
            return
        self._run = []
        self.sequencer.stamp_run(run)
        self.bus.publish_ticks(run)
        newest = run[-1]
        if newest.position_ms >= self._time_from_ms:
            self._time_hops(newest)

    def _time_hops(self, record: Record) -> None:
        self._time_from_ms = record.position_ms + SAMPLE_EVERY_MS
        self.accepted_within.note((record.position_ms - record.received_ms) / 1000)
        for writer in self._writers:
            writer.time_newest()
