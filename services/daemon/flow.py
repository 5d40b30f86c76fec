"""Where every record passes: it gets its position and goes to every sink. All publishers share it."""

from __future__ import annotations

from collections.abc import Sequence

from services.market_data.clock import Clock
from services.market_data.records import Record
from services.pipeline.bus import Bus
from services.pipeline.hop_times import SAMPLE_EVERY_MS, HopTimes
from services.pipeline.sequencer import Sequencer
from services.pipeline.sink import Sink
from services.storage.redis_sink import RedisSink


class Flow:
    """Sequencer and bus. `connect` the sinks before anything is published."""

    def __init__(self, clock: Clock) -> None:
        self.sequencer = Sequencer(clock)
        self.bus = Bus(())
        self.accepted_within = HopTimes()
        self._writers: Sequence[RedisSink] = ()
        self._time_from_ms = 0

    def connect(self, sinks: tuple[Sink, ...], writers: Sequence[RedisSink]) -> None:
        """Deliver to `sinks` from now on; `writers` are those of them whose speed is sampled."""
        self.bus = Bus(sinks)
        self._writers = writers

    def publish(self, record: Record) -> None:
        """Give a record its position and hand it to every sink."""
        self.sequencer.stamp(record)
        self.bus.publish(record)
        if record.position_ms >= self._time_from_ms:
            self._time_hops(record)

    def _time_hops(self, record: Record) -> None:
        self._time_from_ms = record.position_ms + SAMPLE_EVERY_MS
        self.accepted_within.note((record.position_ms - record.received_ms) / 1000)
        for writer in self._writers:
            writer.time_newest()
