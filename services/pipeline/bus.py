"""Hands each sequenced record to every sink, in one order, without waiting for any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from services.market_data.records import DataIngestionFormat, Record
from services.pipeline.sink import Sink


class Bus:
    """The fixed set of sinks behind the sequencer. Publishing is a plain call on the event loop."""

    def __init__(self, sinks: tuple[Sink, ...]) -> None:
        self.sinks = sinks
        self._offers: tuple[Callable[[Record], None], ...] = tuple(sink.offer for sink in sinks)
        self._runs: tuple[Callable[[Sequence[DataIngestionFormat]], None], ...] = tuple(
            sink.offer_ticks for sink in sinks
        )
        self.published = 0

    def publish(self, record: Record) -> None:
        """Offer one record, already carrying its position, to every sink."""
        self.published += 1
        for offer in self._offers:
            offer(record)

    def publish_ticks(self, ticks: Sequence[DataIngestionFormat]) -> None:
        """Offer ticks, already carrying their positions, to every sink, in their order."""
        self.published += len(ticks)
        for offer in self._runs:
            offer(ticks)
