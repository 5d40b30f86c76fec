"""The protocol buffers wire format, as far as one flat message needs it.

Used by the codec of Yahoo's messages. Knows varints, zigzag and how to pass over a field that a
schema does not name; knows no schema itself. Never builds objects, never does I/O.

Source: Protocol Buffers documentation, encoding.
"""

from __future__ import annotations

from services.errors import WireFormatError

VARINT = 0
FIXED64 = 1
LENGTH_DELIMITED = 2
START_GROUP = 3
END_GROUP = 4
FIXED32 = 5

_ONE_BYTE = tuple(bytes((value,)) for value in range(0x80))
_MAX_VARINT_BYTES = 10
_MAX_TAG = (1 << 32) - 1
_MAX_TAG_BYTES = 5
_MAX_GROUP_DEPTH = 100


def read_varint(payload: bytes, offset: int) -> tuple[int, int]:
    """Read one unsigned varint; return its value and the offset behind it.

    Raises `WireFormatError` (`overlong_varint`) above ten bytes or 64 bits and `IndexError` where
    the payload ends inside it.
    """
    value = shift = 0
    while True:
        byte = payload[offset]
        offset += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift >= 7 * _MAX_VARINT_BYTES:
            raise WireFormatError("overlong_varint", f"more than ten bytes before {offset}", payload)
    if value >> 64:
        raise WireFormatError("overlong_varint", f"more than 64 bits before {offset}", payload)
    return value, offset


def read_tag(payload: bytes, offset: int) -> tuple[int, int]:
    """Read one tag (field number and wire type); return it and the offset behind it.

    Raises `WireFormatError` (`bad_tag`) for field number 0 and for more than 32 bits or five bytes,
    else as `read_varint`.
    """
    tag, behind = read_varint(payload, offset)
    if tag < 8 or tag > _MAX_TAG or behind - offset > _MAX_TAG_BYTES:
        raise WireFormatError("bad_tag", f"tag {tag} at byte {offset}", payload)
    return tag, behind


def skip_field(payload: bytes, offset: int, tag: int) -> int:
    """Return the offset behind the value that follows `tag`; whole groups are passed over.

    Raises `WireFormatError` (`truncated`, `bad_wire_type`, `bad_group`), else as `read_tag`.
    """
    open_groups: list[int] = []
    while True:
        wire_type = tag & 7
        if wire_type == VARINT:
            _, offset = read_varint(payload, offset)
        elif wire_type == FIXED64:
            offset += 8
        elif wire_type == FIXED32:
            offset += 4
        elif wire_type == LENGTH_DELIMITED:
            length, offset = read_varint(payload, offset)
            offset += length
        elif wire_type == START_GROUP:
            if len(open_groups) == _MAX_GROUP_DEPTH:
                raise WireFormatError("bad_group", "groups are nested too deep", payload)
            open_groups.append(tag >> 3)
        elif wire_type == END_GROUP:
            if not open_groups or open_groups.pop() != tag >> 3:
                raise WireFormatError("bad_group", f"group {tag >> 3} ends without a start", payload)
        else:
            raise WireFormatError("bad_wire_type", f"wire type {wire_type}", payload)
        if offset > len(payload):
            raise WireFormatError("truncated", f"field {tag >> 3} ends behind the payload", payload)
        if not open_groups:
            return offset
        tag, offset = read_tag(payload, offset)


def write_varint(value: int) -> bytes:
    """Encode an unsigned integer below 2**64, in as few bytes as possible."""
    if value < 0x80:
        return _ONE_BYTE[value]
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def zigzag(value: int) -> int:
    """Fold a signed 64-bit integer into an unsigned one, small magnitudes first."""
    return value << 1 if value >= 0 else (-value << 1) - 1


def unzigzag(value: int) -> int:
    """Undo `zigzag`."""
    return value >> 1 ^ -(value & 1)
