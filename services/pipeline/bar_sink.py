"""The sink that builds bars: every tick goes into them, and finished ones come out as `bar` records.

Behind the bus, before the broadcast. It adds to a bar in `offer` itself, which costs less than a queue would
(`benchmarks`), so nothing ever waits here. Its task asks the builder ten times a second what is finished and
publishes that through the sequencer like any record, some hundred at a time, so that the end of a minute
holds up no tick. It writes to no store: the writers take the records it publishes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from services.market_data.bar_builder import BarBuilder
from services.market_data.bars import Bar, Interval, bar_record
from services.market_data.clock import Clock
from services.market_data.records import ControlRecord, DataIngestionFormat, Record
from services.pipeline.sink import Sink, SinkState

LOOK_EVERY_S = 0.1
AT_ONCE = 100
"""Bars looked at in one turn of the event loop: about two milliseconds."""


class BarSink(Sink):
    """Feeds a builder and publishes what it finishes. `make` gives a new builder, without memory.

    `flush` hands over what was published in this turn of the loop: a bar is not closed before its ticks.
    """

    def __init__(
        self,
        make: Callable[[], BarBuilder],
        clock: Clock,
        publish: Callable[[Record], None],
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__("bars")
        self._flush = flush
        self._make = make
        self._clock = clock
        self._publish = publish
        self._builder = make()
        self.published = self.revised = 0

    @property
    def queued(self) -> int:
        """Always 0: a tick is settled when it is in its bar."""
        return 0

    def offer(self, record: Record) -> None:
        """Add a tick to its bar, or take note of a gap."""
        counters = self.counters
        counters.offered += 1
        counters.written += 1
        if isinstance(record, ControlRecord):
            self._builder.note(record)
        else:
            self.probe_ms = self._builder.take_run((record,)) or self.probe_ms

    def offer_ticks(self, ticks: Sequence[DataIngestionFormat]) -> None:
        """Add a run of ticks to their bars."""
        counters = self.counters
        counters.offered += len(ticks)
        counters.written += len(ticks)
        self.probe_ms = self._builder.take_run(ticks) or self.probe_ms

    async def run(self) -> None:
        """Publish finished bars until cancelled."""
        self.state = SinkState.READY
        try:
            while True:
                more = self.publish_finished()
                await asyncio.sleep(0 if more else LOOK_EVERY_S)
        finally:
            self.state = SinkState.CLOSED

    def publish_finished(self) -> bool:
        """Publish some of the bars that are finished now; tell whether there are more."""
        self._flush()
        now_ms = self._clock.now_ms()
        bars, more = self._builder.close(now_ms, AT_ONCE)
        for bar in bars:
            self.published += 1
            self.revised += bar.revision > 0
            self._publish(bar_record(bar, now_ms))
        return more

    async def drain(self, deadline_s: float) -> int:  # noqa: ARG002 - nothing is ever queued here
        """Return 0: what forms is built again from the stored ticks after a restart."""
        return 0

    def begin(self) -> BarBuilder:
        """Forget every bar; return the new builder, for what is to be recalled."""
        self._builder = self._make()
        return self._builder

    def refill(self, minutes: Mapping[str, list[Bar]]) -> None:
        """Make stored minutes a part of the longer bars that form: what `write_bars` returned."""
        for instrument, stored in minutes.items():
            self._builder.refill(instrument, stored)

    def forming(self, instrument: str, interval: Interval) -> Bar | None:
        """Return the bar of an instrument that is forming now, None when there is none."""
        return self._builder.forming(instrument, interval)

    def finished(self, instrument: str, interval: Interval) -> list[Bar]:
        """Return the bars of an instrument that were finished in the last minutes, oldest first."""
        return self._builder.finished(instrument, interval)

    def status(self) -> dict[str, Any]:
        """Return how many bars were published and revised, and which ticks made none, by reason."""
        return {
            "published": self.published,
            "revised": self.revised,
            "not_in_bars": dict(self._builder.refused),
        }
