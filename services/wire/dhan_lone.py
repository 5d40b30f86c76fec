"""A quote or full packet alone in its message, as nearly every message is: what differs from tick to tick.

Beside the codec, for the provider's shortest way: where the parts stand that every tick is made of, so that
they are read without the rest. Whatever else comes is the codec's. Never does I/O, never judges.

Source: DhanHQ v2 live market feed documentation, binary response tables; little endian.
"""

from __future__ import annotations

from struct import Struct

QUOTE_START, QUOTE_BYTES = b"\x04\x32\x00", 50
FULL_START, FULL_BYTES = b"\x08\xa2\x00", 162
"""The first three bytes, code and length, of a packet that is the whole message, and its size."""

read_quote = Struct("<8xf2xI4xI").unpack_from
"""Last price, its time, the day's volume; of a quote packet."""
read_full = Struct("<8xf2xI4xI8xI24xII4xff").unpack_from
"""Last price, its time, the day's volume, open interest, best bid and ask: quantities, prices."""
_read_day = Struct("<ffff").unpack
_KEY = Struct("<BI").pack


def wire_key(segment: int, security_id: int) -> bytes:
    """Return bytes 3 to 8 of an instrument's packets."""
    return _KEY(segment, security_id)


class KnownInstrument:
    """An instrument that was asked for, and the day's prices as its last packet had them, None for zeros.

    `day_bytes` are the packet's bytes of these prices: 34 to 50 of a quote, 46 to 62 of a full one.
    """

    __slots__ = (
        "day_bytes",
        "day_close",
        "day_high",
        "day_low",
        "day_open",
        "derivative",
        "segment",
        "symbol",
    )

    def __init__(self, symbol: str, segment: int, *, derivative: bool) -> None:
        self.symbol = symbol
        self.segment = segment
        self.derivative = derivative
        self.day_bytes = b""
        self.day_open: float | None = None
        self.day_close: float | None = None
        self.day_high: float | None = None
        self.day_low: float | None = None

    def take_day(self, day_bytes: bytes) -> None:
        """Read the day's prices, which are the same in most packets."""
        self.day_bytes = day_bytes
        day_open, day_close, day_high, day_low = _read_day(day_bytes)
        self.day_open, self.day_close = day_open or None, day_close or None
        self.day_high, self.day_low = day_high or None, day_low or None
