"""Reads the binary requests of the first version of Dhan's feed (login, subscribe, unsubscribe).

Pure. The 83-byte header alone (code 12) is also what the vendor's SDK sends when it leaves version 2.
Source: DhanHQ feed documentation, version 1; the vendor's SDK 2.3.0.
"""

from __future__ import annotations

import struct

import msgspec

from services.errors import WireFormatError
from services.wire.dhan import RequestCode, Segment

HEADER_BYTES = 83
_TOKEN_BYTES = 500
_HEADER = struct.Struct("<bH30s50s")
_COUNT = struct.Struct("<I")
_RECORD = struct.Struct("<B20s")


class BinaryRequest(msgspec.Struct, frozen=True):
    """A request: its code, the client id, and the token of a login or the instruments of the others."""

    code: int
    client_id: str
    token: str = ""
    instruments: tuple[tuple[str, str], ...] = ()


def parse_binary_request(payload: bytes) -> BinaryRequest:
    """Read one binary request. Raises `WireFormatError` for one that is shorter than it says."""
    if len(payload) < HEADER_BYTES:
        raise WireFormatError("truncated", f"{len(payload)} bytes of a binary request", payload)
    code, _, client, _ = _HEADER.unpack_from(payload)
    client_id = _text(client)
    if code == RequestCode.CONNECT:
        return BinaryRequest(
            code, client_id, token=_text(payload[HEADER_BYTES : HEADER_BYTES + _TOKEN_BYTES])
        )
    if code == RequestCode.DISCONNECT:
        return BinaryRequest(code, client_id)
    if len(payload) < HEADER_BYTES + _COUNT.size:
        raise WireFormatError("truncated", "no instrument count", payload)
    (count,) = _COUNT.unpack_from(payload, HEADER_BYTES)
    start = HEADER_BYTES + _COUNT.size
    if len(payload) < start + count * _RECORD.size:
        raise WireFormatError("truncated", f"fewer than {count} instruments", payload)
    instruments = []
    for index in range(count):
        segment, security_id = _RECORD.unpack_from(payload, start + index * _RECORD.size)
        if segment not in Segment.__members__.values():
            raise WireFormatError("bad_request", f"segment {segment}", payload)
        instruments.append((Segment(segment).name, _text(security_id)))
    return BinaryRequest(code, client_id, instruments=tuple(instruments))


def _text(padded: bytes) -> str:
    return padded.rstrip(b"\0").decode("ascii", "replace")
