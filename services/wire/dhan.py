"""The codec of Dhan's live market feed: binary packets to records, and back for the simulator.

Stands between the Dhan provider's socket and its record handling. One WebSocket message may hold
several packets; each starts with an eight-byte header that declares its length. Never does I/O,
never rounds, never raises for whatever bytes arrive. The requests of the feed and the names of its
numbers live in modules of their own and are offered here too.

How a message is walked, where the documentation is silent:

    length below 8               error `bad_length`: there is no next packet to be found, the rest is dropped
    length beyond the message    error `truncated`
    known code, length too small error `short_packet`: the length is not to be trusted, the rest is dropped
    known code, length larger    the known fields are read, the extra bytes skipped: fields may be added later
    unknown code                 `Unknown`, skipped by its length

Source: DhanHQ v2 live market feed documentation; real frames of the feed (little endian, unsigned,
declared length includes the header).
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Any, NamedTuple

from services.errors import WireFormatError
from services.wire.dhan_codes import DISCONNECT_REASONS, FeedMode, RequestCode, Segment
from services.wire.dhan_encoding import encode
from services.wire.dhan_records import (
    DepthLevel,
    DhanRecord,
    Disconnect,
    Full,
    Heartbeat,
    MarketDepthV1,
    MarketStatus,
    OpenInterest,
    PreviousClose,
    Quote,
    Ticker,
    Unknown,
)
from services.wire.dhan_requests import (
    MAX_INSTRUMENTS_PER_REQUEST,
    FeedRequest,
    disconnect_message,
    parse_request,
    subscribe_messages,
    unsubscribe_messages,
)

__all__ = [
    "DISCONNECT_REASONS",
    "IST_OFFSET_S",
    "MAX_INSTRUMENTS_PER_REQUEST",
    "DepthLevel",
    "DhanRecord",
    "Disconnect",
    "FeedMode",
    "FeedRequest",
    "Full",
    "Heartbeat",
    "MarketDepthV1",
    "MarketStatus",
    "OpenInterest",
    "PreviousClose",
    "Quote",
    "RequestCode",
    "Segment",
    "Ticker",
    "Unknown",
    "decode_frame",
    "disconnect_message",
    "encode",
    "parse_request",
    "subscribe_messages",
    "unsubscribe_messages",
    "utc_ms",
]

IST_OFFSET_S = 19_800
"""Seconds that Indian wall time is ahead of UTC."""

_LAST_NEVER_TRADED_S = 315_619_199
"""The end of 1 January 1980, the date Dhan shows for an instrument that never traded."""

HEADER_BYTES = 8
_LEVEL_COUNT = 5

_HEADER = Struct("<BHBI")
# Decoding skips code and length, which the walk has looked at already.
_HEADER_ONLY = Struct("<3xBI")
_TICKER = Struct("<3xBIfI")
_QUOTE = Struct("<3xBIfHIfIIIffff")
_OPEN_INTEREST = Struct("<3xBII")
_FULL = Struct("<3xBIfHIfIIIIIIffff" + _LEVEL_COUNT * "IIHHff")
_MARKET_DEPTH_V1 = Struct("<3xBIf")
_LEVELS = Struct("<" + _LEVEL_COUNT * "IIHHff")
_DISCONNECT = Struct("<3xBIH")

_Values = tuple[Any, ...]


def _full_values(frame: bytes, offset: int) -> _Values:
    # One unpack of all 46 values and names for each: half the time of a second unpack and slices.
    # fmt: off
    (
        segment, security_id, ltp, ltq, ltt, atp, volume, total_sell, total_buy,
        oi, oi_day_high, oi_day_low, day_open, day_close, day_high, day_low,
        bid_qty_1, ask_qty_1, bid_orders_1, ask_orders_1, bid_px_1, ask_px_1,
        bid_qty_2, ask_qty_2, bid_orders_2, ask_orders_2, bid_px_2, ask_px_2,
        bid_qty_3, ask_qty_3, bid_orders_3, ask_orders_3, bid_px_3, ask_px_3,
        bid_qty_4, ask_qty_4, bid_orders_4, ask_orders_4, bid_px_4, ask_px_4,
        bid_qty_5, ask_qty_5, bid_orders_5, ask_orders_5, bid_px_5, ask_px_5,
    ) = _FULL.unpack_from(frame, offset)
    return (
        segment, security_id, ltp, ltq, ltt, atp, volume, total_sell, total_buy,
        oi, oi_day_high, oi_day_low, day_open, day_close, day_high, day_low,
        (
            DepthLevel(bid_qty_1, ask_qty_1, bid_orders_1, ask_orders_1, bid_px_1, ask_px_1),
            DepthLevel(bid_qty_2, ask_qty_2, bid_orders_2, ask_orders_2, bid_px_2, ask_px_2),
            DepthLevel(bid_qty_3, ask_qty_3, bid_orders_3, ask_orders_3, bid_px_3, ask_px_3),
            DepthLevel(bid_qty_4, ask_qty_4, bid_orders_4, ask_orders_4, bid_px_4, ask_px_4),
            DepthLevel(bid_qty_5, ask_qty_5, bid_orders_5, ask_orders_5, bid_px_5, ask_px_5),
        ),
    )
    # fmt: on


def _market_depth_v1_values(frame: bytes, offset: int) -> _Values:
    v = _LEVELS.unpack_from(frame, offset + _MARKET_DEPTH_V1.size)
    levels = tuple([DepthLevel(*v[start : start + 6]) for start in range(0, len(v), 6)])
    return (*_MARKET_DEPTH_V1.unpack_from(frame, offset), levels)


def _disconnect_values(frame: bytes, offset: int) -> _Values:
    segment, security_id, reason = _DISCONNECT.unpack_from(frame, offset)
    return reason, segment, security_id


class _Layout(NamedTuple):
    size_bytes: int
    read: Callable[[bytes, int], _Values]
    make: Callable[..., DhanRecord]


_LAYOUTS: dict[int, _Layout] = {
    0: _Layout(8, _HEADER_ONLY.unpack_from, Heartbeat),
    2: _Layout(16, _TICKER.unpack_from, Ticker),
    3: _Layout(112, _market_depth_v1_values, MarketDepthV1),
    4: _Layout(50, _QUOTE.unpack_from, Quote),
    5: _Layout(12, _OPEN_INTEREST.unpack_from, OpenInterest),
    6: _Layout(16, _TICKER.unpack_from, PreviousClose),
    7: _Layout(8, _HEADER_ONLY.unpack_from, MarketStatus),
    8: _Layout(162, _full_values, Full),
    50: _Layout(10, _disconnect_values, Disconnect),
}
"""Per response code: the size of the known layout, header included, what reads it and what it makes."""

_EXACT = {
    code.to_bytes(1, "little") + layout.size_bytes.to_bytes(2, "little"): (
        layout.size_bytes,
        layout.read,
        layout.make,
    )
    for code, layout in _LAYOUTS.items()
}
"""By the first three bytes of a packet of exactly the known size, which is nearly every packet."""


def decode_frame(frame: bytes) -> tuple[list[DhanRecord], WireFormatError | None]:
    """Decode every packet of one WebSocket message, in order.

    Packets that are complete before any damage are returned; the damage, if any, is the second
    value with reason `empty`, `truncated`, `bad_length` or `short_packet`. Raises nothing.

    Source: DhanHQ v2 live market feed documentation, response header.
    """
    size = len(frame)
    layout = _EXACT.get(frame[:3])
    if layout is not None and layout[0] == size:
        # One packet of the known size: nearly every message.
        return [layout[2](*layout[1](frame, 0))], None
    records: list[DhanRecord] = []
    if not size:
        return records, WireFormatError("empty", "a message without bytes")
    offset = 0
    while offset < size:
        layout = _EXACT.get(frame[offset : offset + 3])
        if layout is not None:
            size_bytes, read, make = layout
            end = offset + size_bytes
            if end <= size:
                records.append(make(*read(frame, offset)))
                offset = end
                continue
        try:
            record, offset = _unusual(frame, offset)
        except WireFormatError as damage:
            return records, damage
        records.append(record)
    return records, None


def _unusual(frame: bytes, offset: int) -> tuple[DhanRecord, int]:
    size = len(frame)
    if size - offset < HEADER_BYTES:
        raise _damage("truncated", "the header is cut off", frame, offset)
    code, length, segment, security_id = _HEADER.unpack_from(frame, offset)
    if length < HEADER_BYTES:
        raise _damage("bad_length", f"code {code} declares {length} bytes", frame, offset)
    end = offset + length
    if end > size:
        raise _damage("truncated", f"code {code} declares {length} bytes", frame, offset)
    layout = _LAYOUTS.get(code)
    if layout is None:
        return Unknown(segment, security_id, code, length, frame[offset + HEADER_BYTES : end]), end
    if length < layout.size_bytes:
        detail = f"code {code} declares {length} bytes, its layout has {layout.size_bytes}"
        raise _damage("short_packet", detail, frame, offset)
    return layout.make(*layout.read(frame, offset)), end


def _damage(reason: str, detail: str, frame: bytes, offset: int) -> WireFormatError:
    return WireFormatError(reason, f"{detail}, at byte {offset} of {len(frame)}", frame[offset : offset + 64])


def utc_ms(ltt: int) -> int | None:
    """Convert a last trade time of the wire to UTC epoch milliseconds; None where it never traded.

    The wire counts Indian wall time as if it were UTC, in whole seconds. Zero and the first day of
    1980 stand for "never".

    Source: measured on captured frames (the field runs 19 800 s ahead of the time of receipt).
    """
    if ltt <= _LAST_NEVER_TRADED_S:
        return None
    return (ltt - IST_OFFSET_S) * 1000
