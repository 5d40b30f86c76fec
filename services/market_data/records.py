"""The records that travel through the pipeline, one shape for every provider.

A provider hands over a `ProviderTick` (its own symbol, what the wire said, times already UTC).
The normaliser answers with a `DataIngestionFormat` (instrument key, clean price, traded quantity),
the sequencer stamps its position, and from there every sink sees the same object.
Never mutated after the sequencer has seen it.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FLAG_SNAPSHOT = 1
"""The last known value, sent by the provider in answer to a subscription."""
FLAG_SUSPECT = 2
"""Kept, but outside what the recent past makes likely."""
FLAG_LATE = 4
"""Older than a tick of the same instrument that was already accepted."""
FLAG_DELAYED = 8
"""The provider delivers this instrument with a delay."""
FLAG_SKEWED = 16
"""The provider's time lay in our future; the receive time was used."""

_FLAG_NAMES = (
    (FLAG_SNAPSHOT, "snapshot"),
    (FLAG_SUSPECT, "suspect"),
    (FLAG_LATE, "late"),
    (FLAG_DELAYED, "delayed"),
    (FLAG_SKEWED, "skewed"),
)
FLAG_TEXT: tuple[str, ...] = tuple(
    ",".join(name for bit, name in _FLAG_NAMES if flags & bit) for flags in range(32)
)
"""Flags as text, indexed by the bit set: `FLAG_TEXT[5] == "snapshot,late"`."""


class ProviderTick(msgspec.Struct, gc=False):
    """What one wire message says of one instrument, in the provider's own names, times in UTC epoch ms.

    `event_ms` is None where the message carries no time. `event_resolution_ms` is 1000 where the
    source counts whole seconds. `cumulative_volume` is the day's traded quantity so far, None where
    the source gives none (or a figure that is not one, such as a rolling 24 h amount).
    `price` None makes the message an update of reference values only (open interest, previous close).
    `price_decimals` is what the source says about its own precision. None always means unknown.
    `day_mark`, where a provider sets it, is an object that is the same one for as long as the instrument's
    day prices and previous close are.
    """

    provider_symbol: str
    price: float | None = None
    event_ms: int | None = None
    event_resolution_ms: int = 1
    cumulative_volume: int | None = None
    bid: float | None = None
    ask: float | None = None
    bid_size: int | None = None
    ask_size: int | None = None
    oi: int | None = None
    day_open: float | None = None
    day_high: float | None = None
    day_low: float | None = None
    previous_close: float | None = None
    price_decimals: int | None = None
    flags: int = 0
    day_mark: bytes | None = None


class DataIngestionFormat(msgspec.Struct, gc=False):
    """One tick, the same for every provider; the record every sink and client is built on.

    `symbol` is the instrument key, `timestamp` the event time in UTC epoch ms, `price` in the
    instrument's currency, `volume` the quantity traded since the previous tick (None where unknown,
    never cumulative). `received_ms` is when the bytes arrived. `flags` is a set of `FLAG_...` bits.
    `position_ms` and `position_seq` are filled by the sequencer: the place in the exchange's stream.
    """

    symbol: str
    price: float
    volume: int | None
    timestamp: int
    provider_code: str
    provider_symbol: str = ""
    received_ms: int = 0
    cumulative_volume: int | None = None
    bid: float | None = None
    ask: float | None = None
    bid_size: int | None = None
    ask_size: int | None = None
    oi: int | None = None
    day_open: float | None = None
    day_high: float | None = None
    day_low: float | None = None
    previous_close: float | None = None
    flags: int = 0
    exchange: str = ""
    position_ms: int = 0
    position_seq: int = 0

    @property
    def position(self) -> str:
        """The record's place in its exchange's stream, `<ms>-<seq>`; the id of its stream entry."""
        return f"{self.position_ms}-{self.position_seq}"


ControlType = Literal["gap", "stale", "resumed", "switched", "backfilled", "session", "bar"]


class ControlRecord(msgspec.Struct, gc=False):
    """An event that consumers must see in order with the data: a gap, a provider switch, a session edge.

    `fields` are the stream fields beyond `type`, `k`, `t`, `r` and `src`, named as in the stream
    (`from`, `to`, `reason`, `from_src`, ...). Values are text or whole numbers. Times are UTC epoch ms.
    """

    type: ControlType
    symbol: str
    exchange: str
    timestamp: int
    received_ms: int
    provider_code: str
    fields: dict[str, str | int]
    position_ms: int = 0
    position_seq: int = 0

    @property
    def position(self) -> str:
        """The record's place in its exchange's stream, `<ms>-<seq>`; the id of its stream entry."""
        return f"{self.position_ms}-{self.position_seq}"


Record = DataIngestionFormat | ControlRecord

PROBE_EXCHANGE = "_PROBE"
"""The reserved exchange of the health probe; appears in no list, quote or client stream."""
PROBE_INSTRUMENT = "_PROBE:PROBE"
