"""Level2Update: an instrument's order book as it stood at one moment. Event times in microseconds.

Made by the depth desk out of what the vendors' packets say, stamped by the sequencer, and from there the same
object for the stream, for clients and for callbacks. Never a change of a book: each says all of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

Level = tuple[float, int, int]
"""Price in the instrument's currency, quantity in shares or contract units, number of orders."""

DEPTH_RECEIVED: Final = 1
"""The wire carries no time of the book: `timestamp` is when it arrived here."""
DEPTH_CROSSED: Final = 2
"""The best bid is at or above the best ask: not to be traded on."""
DEPTH_STALE: Final = 4
"""Old: nothing came for a while, or the connection is gone. The levels are the last ones known."""
DEPTH_GAP: Final = 8
"""Between this book and the one before it something was or may have been missed."""
DEPTH_ONE_SIDED: Final = 16
"""One side has levels, the other has none."""
DEPTH_PARTIAL: Final = 32
"""One side has not been said yet since the connection opened: it is unknown, not empty."""

_FLAG_NAMES = (
    (DEPTH_RECEIVED, "received"),
    (DEPTH_CROSSED, "crossed"),
    (DEPTH_STALE, "stale"),
    (DEPTH_GAP, "gap"),
    (DEPTH_ONE_SIDED, "one_sided"),
    (DEPTH_PARTIAL, "partial"),
)
DEPTH_FLAGS: Final[Mapping[str, int]] = {name: bit for bit, name in _FLAG_NAMES}
"""The flags by their names on the stream and towards clients."""
DEPTH_FLAG_TEXT: Final[tuple[str, ...]] = tuple(
    ",".join(name for bit, name in _FLAG_NAMES if flags & bit) for flags in range(64)
)
"""Flags as text, indexed by the bit set: `DEPTH_FLAG_TEXT[5] == "received,stale"`."""


class Level2Update(msgspec.Struct, gc=False):
    """One whole book, best levels first. Never mutated after the sequencer has seen it.

    `symbol` is the instrument key; `timestamp` the event time, UTC epoch **microseconds**; `received_ms` when
    the bytes arrived, UTC epoch ms. Both are those of the levels: a stale book keeps the times it had.
    `bids` and `asks` hold only levels that exist, bids from the highest price down, asks from the lowest up.
    `levels` is how many each side may have at its source: 5, 20 or 200. `flags` is a set of `DEPTH_...` bits.
    `position_ms` and `position_seq` are filled by the sequencer.
    """

    symbol: str
    exchange: str
    provider_code: str
    timestamp: int
    received_ms: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    levels: int
    flags: int = 0
    position_ms: int = 0
    position_seq: int = 0

    @property
    def position(self) -> str:
        """The record's place in its exchange's order, `<ms>-<seq>`; the id of its stream entry."""
        return f"{self.position_ms}-{self.position_seq}"

    @property
    def stale(self) -> bool:
        """Whether the levels are the last ones known and no longer those of now."""
        return bool(self.flags & DEPTH_STALE)
