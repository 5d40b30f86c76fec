"""What a packet of Dhan's live feed says, one struct per packet, fields in the order of the wire.

Made by the live feed codec, read by the Dhan provider and made by the simulator. Prices are the
exact doubles of the float32 on the wire, never rounded here; quantities are shares or contract
units; `ltt` is the raw integer (Indian wall time counted as epoch seconds). Never validated here
beyond the layout: NaN, zero and negative prices are passed on as they came.

Source: DhanHQ v2 live market feed documentation, binary response tables.
"""

from __future__ import annotations

import msgspec


class DepthLevel(msgspec.Struct, gc=False):
    """One of the five price levels, bid and ask side together; an empty side is all zeros."""

    bid_qty: int
    ask_qty: int
    bid_orders: int
    ask_orders: int
    bid_px: float
    ask_px: float


class Ticker(msgspec.Struct, gc=False):
    """Last traded price and its time (code 2)."""

    segment: int
    security_id: int
    ltp: float
    ltt: int


class Quote(msgspec.Struct, gc=False):
    """The day's summary (code 4). `ltq` cannot exceed 65 535; `volume` is the day's total so far.

    `day_close` carries the previous session's close while the market is open.
    """

    segment: int
    security_id: int
    ltp: float
    ltq: int
    ltt: int
    atp: float
    volume: int
    total_sell_qty: int
    total_buy_qty: int
    day_open: float
    day_close: float
    day_high: float
    day_low: float


class OpenInterest(msgspec.Struct, gc=False):
    """Open interest of a derivative (code 5), sent beside its quote packets."""

    segment: int
    security_id: int
    oi: int


class PreviousClose(msgspec.Struct, gc=False):
    """Close and open interest of the previous session (code 6)."""

    segment: int
    security_id: int
    prev_close: float
    prev_oi: int


class Full(msgspec.Struct, gc=False):
    """Quote, open interest and five levels of depth in one packet (code 8).

    The day's highest and lowest open interest are filled for NSE derivatives only.
    """

    segment: int
    security_id: int
    ltp: float
    ltq: int
    ltt: int
    atp: float
    volume: int
    total_sell_qty: int
    total_buy_qty: int
    oi: int
    oi_day_high: int
    oi_day_low: int
    day_open: float
    day_close: float
    day_high: float
    day_low: float
    depth: tuple[DepthLevel, ...]


class MarketDepthV1(msgspec.Struct, gc=False):
    """Last traded price and five levels of depth (code 3, version 1 of the feed only)."""

    segment: int
    security_id: int
    ltp: float
    depth: tuple[DepthLevel, ...]


class MarketStatus(msgspec.Struct, gc=False):
    """A market changed its state (code 7). No payload is documented, so nothing says which state."""

    segment: int = 0
    security_id: int = 0


class Heartbeat(msgspec.Struct, gc=False):
    """A packet that says nothing (code 0); not documented.

    Source: observed by other clients of the feed.
    """

    segment: int = 0
    security_id: int = 0


class Disconnect(msgspec.Struct, gc=False):
    """The server is about to end the connection (code 50); see `DISCONNECT_REASONS`."""

    reason: int
    segment: int = 0
    security_id: int = 0


class Unknown(msgspec.Struct, gc=False):
    """A packet whose layout is not documented (such as the index packet, code 1), skipped by its length.

    `length` is the declared one, header included; `payload` is what followed the header.
    """

    segment: int
    security_id: int
    code: int
    length: int
    payload: bytes = b""


DhanRecord = (
    Ticker
    | Quote
    | OpenInterest
    | PreviousClose
    | Full
    | MarketDepthV1
    | MarketStatus
    | Heartbeat
    | Disconnect
    | Unknown
)
"""Anything the live feed can say."""
