"""The codec of Dhan's 20-level and 200-level depth feeds, and their requests.

Stands beside the live feed's codec; the packets have a longer header (twelve bytes, length first)
and bid and ask sides travel as packets of their own, several in one WebSocket message. The feed
carries neither a time nor a traded price. Never does I/O, never raises for whatever bytes arrive.

How a message is walked, where the documentation is silent:

    length below 12              error `bad_length`, the rest is dropped
    length beyond the message    error `truncated`
    side, 20 levels              as many rows as the length holds; a part of a row is error `bad_rows`
    side, 200 levels             as many rows as the header counts; fewer bytes than that, or more than
                                 200 rows, is error `bad_rows`; extra bytes are skipped
    disconnect below 14 bytes    error `short_packet`
    unknown code                 skipped by its length, as `DepthUnknown`

Source: DhanHQ v2 full market depth documentation; disconnect packet as in its 20-level section.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct
from struct import error as struct_error
from typing import Literal, NamedTuple

import msgspec

from services.errors import WireFormatError
from services.wire.dhan_codes import RequestCode
from services.wire.dhan_requests import disconnect_message, flat_message, list_messages, parse_request

__all__ = [
    "MAX_INSTRUMENTS_20",
    "DepthDisconnect",
    "DepthRow",
    "DepthSide",
    "DepthUnknown",
    "decode_depth_frame",
    "disconnect_message",
    "encode_depth_disconnect",
    "encode_depth_side",
    "parse_request",
    "subscribe_message_200",
    "subscribe_messages_20",
    "unsubscribe_message_200",
    "unsubscribe_messages_20",
]

MAX_INSTRUMENTS_20 = 50
"""Instruments of one 20-level connection, which one message may hold. The 200-level feed takes one."""
MAX_ROWS = 200

_BID = 41
_ASK = 51
_DISCONNECT = 50
_HEADER_BYTES = 12
_ROW_BYTES = 16
_DISCONNECT_BYTES = 14

_HEADER = Struct("<HBBII")
_ROW = Struct("<dII")
_REASON = Struct("<H")


class DepthRow(NamedTuple):
    """One price level of one side; an empty level is all zeros. Decoded rows are plain tuples like it."""

    price: float
    qty: int
    orders: int


class DepthSide(msgspec.Struct, gc=False):
    """One side of an instrument's book, best level first.

    `sequence` is the message sequence of the 20-level feed; None on the 200-level feed, whose
    header has the number of rows in its place.
    """

    segment: int
    security_id: int
    side: Literal["bid", "ask"]
    levels: tuple[tuple[float, int, int], ...]
    sequence: int | None = None


class DepthDisconnect(msgspec.Struct, gc=False):
    """The server is about to end the connection; see `DISCONNECT_REASONS`."""

    reason: int
    segment: int = 0
    security_id: int = 0


class DepthUnknown(msgspec.Struct, gc=False):
    """A packet with a code that is not documented, skipped by its length (header included)."""

    segment: int
    security_id: int
    code: int
    length: int


DepthRecord = DepthSide | DepthDisconnect | DepthUnknown
"""Anything a depth feed can say."""


def decode_depth_frame(
    frame: bytes, *, rows_in_header: bool
) -> tuple[list[DepthRecord], WireFormatError | None]:
    """Decode every packet of one WebSocket message, in order.

    `rows_in_header` is True for the 200-level feed and False for the 20-level one. Packets that are
    complete before any damage are returned; the damage, if any, is the second value with reason
    `empty`, `truncated`, `bad_length`, `short_packet` or `bad_rows`. Raises nothing.

    Source: DhanHQ v2 full market depth documentation, response header.
    """
    records: list[DepthRecord] = []
    size = len(frame)
    if not size:
        return records, WireFormatError("empty", "a message without bytes")
    offset = 0
    while offset < size:
        if size - offset < _HEADER_BYTES:
            return records, _damage("truncated", "the header is cut off", frame, offset)
        length, code, segment, security_id, last_field = _HEADER.unpack_from(frame, offset)
        if length < _HEADER_BYTES:
            return records, _damage("bad_length", f"code {code} declares {length} bytes", frame, offset)
        end = offset + length
        if end > size:
            return records, _damage("truncated", f"code {code} declares {length} bytes", frame, offset)
        if code in (_BID, _ASK):
            rows, spare = divmod(length - _HEADER_BYTES, _ROW_BYTES)
            counted = last_field if rows_in_header else rows
            if counted > min(rows, MAX_ROWS) or (spare and not rows_in_header):
                detail = f"{counted} rows in a packet of {length} bytes"
                return records, _damage("bad_rows", detail, frame, offset)
            start = offset + _HEADER_BYTES
            body = frame[start : start + counted * _ROW_BYTES]
            records.append(
                DepthSide(
                    segment,
                    security_id,
                    "bid" if code == _BID else "ask",
                    tuple(_ROW.iter_unpack(body)),
                    None if rows_in_header else last_field,
                )
            )
        elif code == _DISCONNECT:
            if length < _DISCONNECT_BYTES:
                detail = f"a disconnect of {length} bytes, its layout has {_DISCONNECT_BYTES}"
                return records, _damage("short_packet", detail, frame, offset)
            (reason,) = _REASON.unpack_from(frame, offset + _HEADER_BYTES)
            records.append(DepthDisconnect(reason, segment, security_id))
        else:
            records.append(DepthUnknown(segment, security_id, code, length))
        offset = end
    return records, None


def _damage(reason: str, detail: str, frame: bytes, offset: int) -> WireFormatError:
    return WireFormatError(reason, f"{detail}, at byte {offset} of {len(frame)}", frame[offset : offset + 64])


def encode_depth_side(side: DepthSide) -> bytes:
    """Encode one side as the server sends it: without `sequence` as the 200-level feed does.

    Raises `WireFormatError` (`not_encodable`) where a value does not fit its field or there are
    more than 200 levels.
    """
    if len(side.levels) > MAX_ROWS:
        raise WireFormatError("not_encodable", f"{len(side.levels)} levels, the packet holds {MAX_ROWS}")
    code = _BID if side.side == "bid" else _ASK
    length = _HEADER_BYTES + _ROW_BYTES * len(side.levels)
    last_field = len(side.levels) if side.sequence is None else side.sequence
    try:
        header = _HEADER.pack(length, code, side.segment, side.security_id, last_field)
        return header + b"".join([_ROW.pack(*row) for row in side.levels])
    except struct_error as error:
        raise WireFormatError("not_encodable", f"{side.segment}/{side.security_id}: {error}") from error


def encode_depth_disconnect(disconnect: DepthDisconnect) -> bytes:
    """Encode the packet that ends a connection; raises `WireFormatError` (`not_encodable`)."""
    try:
        header = _HEADER.pack(_DISCONNECT_BYTES, _DISCONNECT, disconnect.segment, disconnect.security_id, 0)
        return header + _REASON.pack(disconnect.reason)
    except struct_error as error:
        raise WireFormatError("not_encodable", f"{disconnect!r}: {error}") from error


def subscribe_messages_20(instruments: Sequence[tuple[str, str]]) -> list[str]:
    """Return the requests that subscribe (segment name, security id) pairs to 20 levels, at most 50 each."""
    return list_messages(RequestCode.SUBSCRIBE_FULL_DEPTH, instruments, MAX_INSTRUMENTS_20)


def unsubscribe_messages_20(instruments: Sequence[tuple[str, str]]) -> list[str]:
    """Return the requests that end what `subscribe_messages_20` with the same arguments began."""
    return list_messages(RequestCode.UNSUBSCRIBE_FULL_DEPTH, instruments, MAX_INSTRUMENTS_20)


def subscribe_message_200(segment: str, security_id: str) -> str:
    """Return the request that subscribes the connection's one instrument to 200 levels."""
    return flat_message(RequestCode.SUBSCRIBE_FULL_DEPTH, segment, security_id)


def unsubscribe_message_200(segment: str, security_id: str) -> str:
    """Return the request that ends what `subscribe_message_200` with the same arguments began."""
    return flat_message(RequestCode.UNSUBSCRIBE_FULL_DEPTH, segment, security_id)
