"""The series of single ticks of one instrument: their keys, how they are made, what was last written.

Used by the time-series writer only. Series are made by us, never by a first sample: a series that
Redis makes on its own has no retention, no labels and refuses a second value for one millisecond.
"""

from __future__ import annotations

from math import nan
from typing import cast

import msgspec

from services.market_data.records import PROBE_EXCHANGE, DataIngestionFormat
from services.storage.keys import LIVE, TICK_FIELDS, KeySpace, TickField
from services.storage.resp import bulk
from services.storage.series_words import correct_series, create_series

CHUNK_BYTES = 1024
"""Memory is taken in steps of this size; a quarter of the default, for many series with few samples."""

PRICE, VOLUME, BID, ASK, OI = (1 << bit for bit in range(len(TICK_FIELDS)))


class InstrumentSeries:
    """Everything the writer must know of one instrument.

    `made` is the set of fields (bits) whose series exist as far as we know. `newest` is the tick with
    the greatest time among those written, `late` the last one that was older than the newest; both
    with the volume summed over all ticks of their millisecond. `slot` and `late_slot` are where their
    samples stand in the order of everything ever encoded. `price_text` is `last_price` in words: most
    ticks have the price of the tick before.
    """

    __slots__ = (
        "ask",
        "bid",
        "exchange",
        "instrument",
        "keys",
        "last_price",
        "late",
        "late_slot",
        "made",
        "newest",
        "oi",
        "price",
        "price_text",
        "slot",
        "volume",
    )

    def __init__(self, instrument: str, exchange: str, keys: KeySpace = LIVE) -> None:
        self.instrument = instrument
        self.keys = keys
        self.exchange = exchange
        self.made = 0
        self.last_price, self.price_text = nan, ""
        self.newest: DataIngestionFormat | None = None
        self.late: DataIngestionFormat | None = None
        self.slot = -1
        self.late_slot = -1

    def __getattr__(self, name: str) -> str:
        # The words of a key are made when the first sample of its field comes: most instruments lack some.
        if name not in TICK_FIELDS:
            raise AttributeError(name)
        words = bulk(self.keys.tick_series(self.instrument, name))
        setattr(self, name, words)
        return words

    def behind_newest(
        self, record: DataIngestionFormat, first_slot: int, next_slot: int
    ) -> tuple[DataIngestionFormat, int, bool]:
        """Place a tick that is not newer than the newest one.

        Returns the tick to write, the slot it goes to, and whether it replaces a sample that has a slot
        of its own. A slot before `next_slot` (and from `first_slot` on) is to be overwritten in place.
        """
        newest, late = self.newest, self.late
        if newest is not None and record.timestamp == newest.timestamp:
            merged = merge(newest, record)
            slot = self.slot
            in_place = slot >= first_slot and mask_of(merged) == mask_of(newest)
            self.newest, self.slot = merged, slot if in_place else next_slot
            return merged, self.slot, True
        if late is not None and record.timestamp == late.timestamp:
            merged = merge(late, record)
            slot = self.late_slot
            in_place = slot >= first_slot and mask_of(merged) == mask_of(late)
            self.late, self.late_slot = merged, slot if in_place else next_slot
            return merged, self.late_slot, True
        self.late, self.late_slot = record, next_slot
        return record, next_slot, False

    def left_the_batch(self, record: DataIngestionFormat) -> None:
        """Note that a record just placed is in no batch, so that none is overwritten in place for it."""
        if record is self.newest:
            self.slot = -1
        elif record is self.late:
            self.late_slot = -1

    def key(self, field: str) -> str:
        """Return the key of the series of `field`."""
        return self.keys.tick_series(self.instrument, cast(TickField, field))

    def forget(self, field: str) -> None:
        """Assume no longer that the series of `field` exists."""
        self.made &= ~(1 << TICK_FIELDS.index(cast(TickField, field)))

    def create(self, field: str, retention_ms: int) -> str:
        """Return the command that makes the series of `field`; it fails where there is one."""
        return create_series(self.key(field), retention_ms, CHUNK_BYTES, self._labels(field))

    def correct(self, field: str, retention_ms: int) -> str:
        """Return the command that gives an existing series of `field` our retention, policy and labels."""
        return correct_series(self.key(field), retention_ms, CHUNK_BYTES, self._labels(field))

    def _labels(self, field: str) -> dict[str, str]:
        kind = "probe" if self.exchange == PROBE_EXCHANGE else "tick"
        return self.keys.tick_labels(self.instrument, self.exchange, cast(TickField, field), kind)


def merge(earlier: DataIngestionFormat, later: DataIngestionFormat) -> DataIngestionFormat:
    """Return two ticks of one millisecond as one: what the later says, with both volumes."""
    volume = later.volume
    if earlier.volume is not None:
        volume = earlier.volume + (volume or 0)
    return msgspec.structs.replace(
        later,
        volume=volume,
        bid=earlier.bid if later.bid is None else later.bid,
        ask=earlier.ask if later.ask is None else later.ask,
        oi=earlier.oi if later.oi is None else later.oi,
    )


def fields_of(mask: int) -> list[TickField]:
    """Return the fields of a set of bits, in the order in which they are written."""
    return [field for bit, field in enumerate(TICK_FIELDS) if mask >> bit & 1]


def mask_of(record: DataIngestionFormat) -> int:
    """Return the set of bits of the fields that a tick has."""
    return (
        PRICE
        | (VOLUME if record.volume is not None else 0)
        | (BID if record.bid is not None else 0)
        | (ASK if record.ask is not None else 0)
        | (OI if record.oi is not None else 0)
    )
