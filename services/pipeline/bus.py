"""Hands each sequenced record to every sink, in one order, without waiting for any of them."""

from __future__ import annotations

from collections.abc import Callable

from services.market_data.records import Record
from services.pipeline.sink import Sink


class Bus:
    """The fixed set of sinks behind the sequencer. Publishing is a plain call on the event loop."""

    def __init__(self, sinks: tuple[Sink, ...]) -> None:
        self.sinks = sinks
        self._offers: tuple[Callable[[Record], None], ...] = tuple(sink.offer for sink in sinks)
        self.published = 0

    def publish(self, record: Record) -> None:
        """Offer one record, already carrying its position, to every sink."""
        self.published += 1
        for offer in self._offers:
            offer(record)
