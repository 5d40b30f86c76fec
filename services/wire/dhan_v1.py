"""The binary requests of version 1 of Dhan's feed: login, subscribe, unsubscribe, disconnect.

Version 1 answers with the packets of the live feed's codec; only what a client sends is different.
The vendor's SDK also sends the disconnect request in binary at the end of a version 2 session, so a
server meets it there too. Used by the simulator and its tests; our own provider speaks version 2.
Never does I/O.

    every request   code (1), length (2), client id (30), zeros (50)                       83 bytes
    login (11)      ... access token (500), "2P" (2)                                      585 bytes
    subscribe       ... count (4), always a hundred of: segment (1), security id (20)   2 187 bytes

The declared length of a subscription counts only the instruments asked for, the message always
holds a hundred.

Source: DhanHQ v1 live market feed documentation; bytes sent by the vendor's SDK 2.3.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct

import msgspec

from services.errors import WireFormatError
from services.wire.dhan_codes import RequestCode, Segment
from services.wire.dhan_requests import MAX_INSTRUMENTS_PER_REQUEST

DISCONNECT_BYTES = 83
LOGIN_BYTES = 585
SUBSCRIPTION_BYTES = 2187

_HEADER = Struct("<BH30s50x")
_LOGIN = Struct("<500s2s")
_COUNT = Struct("<I")
_INSTRUMENT = Struct("<B20s")
_AUTHENTICATION = b"2P"
_SEGMENT_NAMES = {int(segment): segment.name for segment in Segment}
_SUBSCRIPTION_CODES = frozenset(
    {
        RequestCode.SUBSCRIBE_TICKER,
        RequestCode.UNSUBSCRIBE_TICKER,
        RequestCode.SUBSCRIBE_QUOTE,
        RequestCode.UNSUBSCRIBE_QUOTE,
        RequestCode.SUBSCRIBE_MARKET_DEPTH_V1,
        RequestCode.UNSUBSCRIBE_MARKET_DEPTH_V1,
    }
)


class V1Request(msgspec.Struct, frozen=True, gc=False):
    """One request: its code, who asks, the token of a login, the (segment name, security id) pairs."""

    code: int
    client_id: str
    access_token: str = ""
    instruments: tuple[tuple[str, str], ...] = ()


def encode_request(request: V1Request) -> bytes:
    """Encode one request, padded as the SDK pads it.

    Raises `WireFormatError` (`not_encodable`) for a code of version 2, more than 100 instruments, an
    unknown segment or text that does not fit its field.
    """
    client_id = _padded(request.client_id, 30, "client id")
    if request.code == RequestCode.DISCONNECT:
        return _HEADER.pack(request.code, DISCONNECT_BYTES, client_id)
    if request.code == RequestCode.CONNECT:
        token = _padded(request.access_token, 500, "access token")
        return _HEADER.pack(request.code, LOGIN_BYTES, client_id) + _LOGIN.pack(token, _AUTHENTICATION)
    if request.code not in _SUBSCRIPTION_CODES:
        raise WireFormatError("not_encodable", f"request code {request.code} is not one of version 1")
    count = len(request.instruments)
    if count > MAX_INSTRUMENTS_PER_REQUEST:
        raise WireFormatError("not_encodable", f"{count} instruments, a request holds 100")
    rows = _encode_instruments(request.instruments)
    length = _HEADER.size + _COUNT.size + _INSTRUMENT.size * count
    packet = _HEADER.pack(request.code, length, client_id) + _COUNT.pack(count) + rows
    return packet.ljust(SUBSCRIPTION_BYTES, b"\0")


def _encode_instruments(instruments: Sequence[tuple[str, str]]) -> bytes:
    rows = bytearray()
    for segment, security_id in instruments:
        if segment not in Segment.__members__:
            raise WireFormatError("not_encodable", f"exchange segment {segment!r}")
        rows += _INSTRUMENT.pack(Segment[segment], _padded(security_id, 20, "security id"))
    return bytes(rows)


def _padded(text: str, size: int, what: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) > size or not text.isascii() or "\0" in text:
        raise WireFormatError("not_encodable", f"a {what} that is not ASCII text of at most {size} bytes")
    return encoded


def parse_v1_request(frame: bytes) -> V1Request:
    """Read one request as the server does.

    Raises `WireFormatError` with reason `truncated`, `unknown_code`, `bad_length` (the frame or the
    declared length is not what the request has), `bad_text`, `bad_login`, `bad_count` or
    `bad_segment`.
    """
    if len(frame) < _HEADER.size:
        raise WireFormatError("truncated", f"{len(frame)} bytes, the header has {_HEADER.size}", frame)
    code, length, raw_client_id = _HEADER.unpack_from(frame)
    client_id = _text(raw_client_id, "client id", frame)
    if code == RequestCode.DISCONNECT:
        _expect_size(frame, DISCONNECT_BYTES, length, DISCONNECT_BYTES)
        return V1Request(code, client_id)
    if code == RequestCode.CONNECT:
        _expect_size(frame, LOGIN_BYTES, length, LOGIN_BYTES)
        raw_token, authentication = _LOGIN.unpack_from(frame, _HEADER.size)
        if authentication != _AUTHENTICATION:
            raise WireFormatError("bad_login", f"authentication type {authentication!r}", frame)
        return V1Request(code, client_id, _text(raw_token, "access token", frame))
    if code not in _SUBSCRIPTION_CODES:
        raise WireFormatError("unknown_code", f"request code {code}", frame)
    return V1Request(code, client_id, "", _parse_instruments(frame, length))


def _parse_instruments(frame: bytes, length: int) -> tuple[tuple[str, str], ...]:
    if len(frame) != SUBSCRIPTION_BYTES:
        raise WireFormatError("bad_length", f"{len(frame)} bytes, a request has {SUBSCRIPTION_BYTES}", frame)
    (count,) = _COUNT.unpack_from(frame, _HEADER.size)
    if count > MAX_INSTRUMENTS_PER_REQUEST:
        raise WireFormatError("bad_count", f"{count} instruments, a request holds 100", frame)
    start = _HEADER.size + _COUNT.size
    end = start + _INSTRUMENT.size * count
    _expect_size(frame, SUBSCRIPTION_BYTES, length, end)
    instruments = []
    for segment, raw_id in _INSTRUMENT.iter_unpack(frame[start:end]):
        if segment not in _SEGMENT_NAMES:
            raise WireFormatError("bad_segment", f"exchange segment {segment}", frame)
        instruments.append((_SEGMENT_NAMES[segment], _text(raw_id, "security id", frame)))
    return tuple(instruments)


def _expect_size(frame: bytes, size: int, declared: int, expected: int) -> None:
    if len(frame) != size or declared != expected:
        detail = f"{len(frame)} bytes declaring {declared}, expected {size} declaring {expected}"
        raise WireFormatError("bad_length", detail, frame)


def _text(padded: bytes, what: str, frame: bytes) -> str:
    raw = padded.rstrip(b"\0")
    if not raw.isascii() or b"\0" in raw:
        raise WireFormatError("bad_text", f"the {what} is not zero-padded ASCII text", frame)
    return raw.decode("ascii")
