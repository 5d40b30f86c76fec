"""Packets of Dhan's live market feed as the server sends them; what the simulator speaks.

The other half of the live feed's codec: whatever this encodes, the decoder reads back unchanged.
Never does I/O, never clips a value to fit.

Source: DhanHQ v2 live market feed documentation, binary response tables.
"""

from __future__ import annotations

from struct import Struct
from struct import error as struct_error

from msgspec.structs import astuple

from services.errors import WireFormatError
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

_HEADER_BYTES = 8
_LEVEL_COUNT = 5

_HEADER = Struct("<BHBI")
_LEVEL = Struct("<IIHHff")
_TICKER = Struct("<BHBIfI")
_QUOTE = Struct("<BHBIfHIfIIIffff")
_OPEN_INTEREST = Struct("<BHBII")
_FULL_HEAD = Struct("<BHBIfHIfIIIIIIffff")
_MARKET_DEPTH_V1 = Struct("<BHBIf")
_DISCONNECT = Struct("<BHBIH")


def encode(record: DhanRecord) -> bytes:
    """Encode one packet as the server sends it.

    Raises `WireFormatError` (`not_encodable`) where a value does not fit its field or the depth has
    more than five levels; fewer are filled with empty ones.
    """
    try:
        return _encode(record)
    except (struct_error, OverflowError) as error:
        raise WireFormatError("not_encodable", f"{record!r}: {error}") from error


def _encode(record: DhanRecord) -> bytes:
    segment, security_id = record.segment, record.security_id
    match record:
        case Quote():
            return _QUOTE.pack(4, 50, *astuple(record))
        case Full():
            return _FULL_HEAD.pack(8, 162, *astuple(record)[:-1]) + _encode_levels(record.depth)
        case Ticker():
            return _TICKER.pack(2, 16, segment, security_id, record.ltp, record.ltt)
        case OpenInterest():
            return _OPEN_INTEREST.pack(5, 12, segment, security_id, record.oi)
        case PreviousClose():
            return _TICKER.pack(6, 16, segment, security_id, record.prev_close, record.prev_oi)
        case MarketDepthV1():
            head = _MARKET_DEPTH_V1.pack(3, 112, segment, security_id, record.ltp)
            return head + _encode_levels(record.depth)
        case MarketStatus():
            return _HEADER.pack(7, 8, segment, security_id)
        case Heartbeat():
            return _HEADER.pack(0, 8, segment, security_id)
        case Disconnect():
            return _DISCONNECT.pack(50, 10, segment, security_id, record.reason)
        case Unknown():
            if record.length != _HEADER_BYTES + len(record.payload):
                raise WireFormatError("not_encodable", f"{record!r}: length and payload disagree")
            return _HEADER.pack(record.code, record.length, segment, security_id) + record.payload


def _encode_levels(depth: tuple[DepthLevel, ...]) -> bytes:
    if len(depth) > _LEVEL_COUNT:
        raise WireFormatError("not_encodable", f"{len(depth)} levels of depth, the packet holds five")
    packed = b"".join([_LEVEL.pack(*astuple(level)) for level in depth])
    return packed.ljust(_LEVEL_COUNT * _LEVEL.size, b"\0")
