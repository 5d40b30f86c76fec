"""The bytes of the disk spool: a segment's header, and records framed so that damage stays small.

    segment = magic, version, number of its first record, newest positions, checksum; then frames
    frame   = marker, count, length, number of its first record, CRC-32 of all of it; then up to 64
              records in MessagePack, deflated (ticks resemble each other: to a third and less)

Pure: bytes in, records out. Every record has a number that rises by one, so a reader knows exactly how
many records lie in a damaged stretch. Nothing is trusted before its checksum is right.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple
from zlib import compress, crc32, decompressobj

import msgspec

from services.market_data.records import ControlRecord, ControlType, DataIngestionFormat, Record
from services.pipeline.sequencer import Position

MAGIC = b"MDSPOOL\n"
VERSION = 1
MARKER = b"\xa5\x5a"
FRAME_RECORDS = 64
"""What a damaged byte can cost at most, and enough for deflate to find what repeats."""
MOST_RECORD_BYTES = 1 << 14
MOST_PAYLOAD_BYTES = 1 << 21
"""A record is some hundred bytes; a length beyond this is damage."""

TRIED = 1
"""The record was sent before, with an unknown outcome."""
MERGED = 2
"""The record replaces a sample of its millisecond that is counted on its own."""
_CONTROL = 4
_PUBLIC_FLAGS = TRIED | MERGED

_FRAME = struct.Struct("<2sHIQ")
_CRC = struct.Struct("<I")
FRAME_OVERHEAD_BYTES = _FRAME.size + _CRC.size
_HEADER = struct.Struct("<8sHxxQI")
_MOST_POSITIONS_BYTES = 1 << 16

_pack = msgspec.msgpack.Encoder().encode
_astuple = msgspec.structs.astuple
_Number = float | int
_TickRow = tuple[
    int,
    str,
    _Number,
    int | None,
    int,
    str,
    str,
    int,
    int | None,
    _Number | None,
    _Number | None,
    int | None,
    int | None,
    int | None,
    _Number | None,
    _Number | None,
    _Number | None,
    _Number | None,
    int,
    str,
    int,
    int,
]
_ControlRow = tuple[int, ControlType, str, str, int, int, str, dict[str, str | int], int, int]
_unpack_rows = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_unpack_tick = msgspec.msgpack.Decoder(_TickRow).decode
_unpack_control = msgspec.msgpack.Decoder(_ControlRow).decode


class Frame(NamedTuple):
    """One record of the spool, with its number and its public flags (`TRIED`, `MERGED`)."""

    number: int
    flags: int
    record: Record


class SegmentHeader(NamedTuple):
    """What a segment says of itself; `size_bytes` is where its frames begin."""

    first_number: int
    positions: dict[str, Position]
    size_bytes: int


class NewerFormat(ValueError):
    """A sound header of a version that this program does not know."""


def encode_header(first_number: int, positions: Mapping[str, Position]) -> bytes:
    """Return the header of a segment; `positions` are the newest of each exchange in all segments before."""
    body = _pack(positions)
    head = _HEADER.pack(MAGIC, VERSION, first_number, len(body)) + body
    return head + _CRC.pack(crc32(head))


def decode_header(data: bytes) -> SegmentHeader | None:
    """Return the header at the start of `data`, None when it is damaged or none of ours.

    Raises `NewerFormat` for a sound one of a later version.
    """
    if len(data) < _HEADER.size:
        return None
    magic, version, first_number, length = _HEADER.unpack_from(data)
    end = _HEADER.size + length
    if magic != MAGIC or length > _MOST_POSITIONS_BYTES or len(data) < end + _CRC.size:
        return None
    if _CRC.unpack_from(data, end)[0] != crc32(data[:end]):
        return None
    if version != VERSION:
        raise NewerFormat(f"format {version}")
    try:
        positions = msgspec.msgpack.decode(data[_HEADER.size : end], type=dict[str, Position])
    except msgspec.DecodeError:
        return None
    return SegmentHeader(first_number, positions, end + _CRC.size)


def encode_row(record: Record, flags: int) -> msgspec.Raw | None:
    """Return a record as it stands in a frame, None when it is too large to be a record of ours."""
    if type(record) is not DataIngestionFormat:
        flags |= _CONTROL
    row = _pack((flags, *_astuple(record)))
    return msgspec.Raw(row) if len(row) <= MOST_RECORD_BYTES else None


def encode_frames(
    records: Sequence[tuple[Record, int]], first_number: int
) -> Iterator[tuple[bytes, list[Record], list[Record]]]:
    """Yield frames of the `(record, flags)` in order, numbered from `first_number`.

    With each frame come its records, and those of the given that were too large to be in it.
    """
    number = first_number
    for start in range(0, len(records), FRAME_RECORDS):
        rows: list[msgspec.Raw] = []
        kept: list[Record] = []
        too_large: list[Record] = []
        for record, flags in records[start : start + FRAME_RECORDS]:
            row = encode_row(record, flags)
            if row is None:
                too_large.append(record)
            else:
                rows.append(row)
                kept.append(record)
        payload = compress(_pack(rows), 1)
        head = _FRAME.pack(MARKER, len(rows), len(payload), number)
        yield head + _CRC.pack(crc32(payload, crc32(head))) + payload, kept, too_large
        number += len(rows)


def frame_at(data: bytes, offset: int) -> tuple[int, int, bytes, int] | None:
    """Return `(number, count, payload, end)` of the sound frame at `offset`, None when there is none."""
    body = offset + FRAME_OVERHEAD_BYTES
    if body > len(data):
        return None
    marker, count, length, number = _FRAME.unpack_from(data, offset)
    if marker != MARKER or length > MOST_PAYLOAD_BYTES:
        return None
    end = body + length
    if end > len(data):
        return None
    payload = data[body:end]
    crc_at = offset + _FRAME.size
    if _CRC.unpack_from(data, crc_at)[0] != crc32(payload, crc32(data[offset:crc_at])):
        return None
    return number, count, payload, end


def next_sound_frame(data: bytes, offset: int) -> int | None:
    """Return where the next sound frame at or after `offset` begins, None when there is none."""
    while (offset := data.find(MARKER, offset)) >= 0:
        if frame_at(data, offset) is not None:
            return offset
        offset += 1
    return None


def decode_records(number: int, payload: bytes) -> list[Frame]:
    """Return the records of a sound frame, numbered from `number`, without those that are none of ours."""
    try:
        # No more than a full frame can be: what is larger was never written by us.
        rows = _unpack_rows(decompressobj().decompress(payload, FRAME_RECORDS * MOST_RECORD_BYTES + 16))
    except (zlib.error, msgspec.DecodeError):
        return []
    found: list[Frame] = []
    for index, row in enumerate(rows):
        record: Record
        try:
            if _first_of(row) & _CONTROL:
                flags, *fields = _unpack_control(row)
                record = ControlRecord(*fields)
            else:
                flags, *values = _unpack_tick(row)
                record = DataIngestionFormat(*values)
        except msgspec.DecodeError:
            continue
        found.append(Frame(number + index, flags & _PUBLIC_FLAGS, record))
    return found


def _first_of(row: msgspec.Raw) -> int:
    """Return the flags of a row: a small number behind the head of an array."""
    view = memoryview(row)
    return view[1] if view[0] & 0xF0 == 0x90 else view[3]
