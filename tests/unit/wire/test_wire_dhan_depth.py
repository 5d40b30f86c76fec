"""Dhan's 20- and 200-level depth: documented frames, damaged frames, and any bytes at all."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from hypothesis import strategies as st
from wire_frames import DHAN_DEPTH, Vector, dhan_frame, flipped, frame_of, given, name_of, u8, u16, u32

from services.errors import WireFormatError
from services.wire import dhan_depth
from services.wire.dhan_depth import DepthDisconnect, DepthRow, DepthSide, DepthUnknown

REASONS = {"empty", "truncated", "bad_length", "short_packet", "bad_rows"}
documented = pytest.mark.parametrize("vector", DHAN_DEPTH, ids=name_of)
rows = st.builds(DepthRow, st.floats(allow_nan=False), u32, u32)


def sides(most: int, sequences: st.SearchStrategy[int | None]) -> st.SearchStrategy[DepthSide]:
    """Build sides of a book with at most `most` levels."""
    books = st.lists(rows, max_size=most).map(tuple)
    return st.builds(DepthSide, u8, u32, st.sampled_from(["bid", "ask"]), books, sequences)


disconnects = st.builds(DepthDisconnect, u16, u8, u32)


def counted(vector: Vector) -> bool:
    """Tell whether the header of the vector's feed counts the rows."""
    return bool(vector["feed"] == "depth200")


def encoded(record: Any) -> bytes:
    if isinstance(record, DepthSide):
        return dhan_depth.encode_depth_side(record)
    return dhan_depth.encode_depth_disconnect(record)


@documented
def test_every_field_of_a_documented_frame_is_read(vector: Vector) -> None:
    records, error = dhan_depth.decode_depth_frame(frame_of(vector), rows_in_header=counted(vector))
    assert error is None
    assert len(records) == len(vector["expected"])
    for record, expected in zip(records, vector["expected"], strict=True):
        assert (record.segment, record.security_id) == (expected["segment"], expected["security_id"])
        if expected["kind"] == "disconnect":
            assert isinstance(record, DepthDisconnect)
            assert record.reason == expected["reason"]
            continue
        assert isinstance(record, DepthSide)
        assert f"depth_{record.side}" == expected["kind"]
        levels = [
            {"price": it.price, "qty": it.qty, "orders": it.orders}
            for it in map(DepthRow._make, record.levels)
        ]
        assert levels == expected["levels"]
        assert record.sequence == expected.get("seq")


@documented
def test_encoding_gives_back_the_same_bytes(vector: Vector) -> None:
    records, _ = dhan_depth.decode_depth_frame(frame_of(vector), rows_in_header=counted(vector))
    assert b"".join(map(encoded, records)) == frame_of(vector)


@given(st.lists(sides(20, u32) | disconnects, min_size=1, max_size=3))
def test_what_is_encoded_for_twenty_levels_is_decoded_again(records: list[Any]) -> None:
    frame = b"".join(map(encoded, records))
    assert dhan_depth.decode_depth_frame(frame, rows_in_header=False) == (records, None)


@given(st.lists(sides(30, st.none()) | disconnects, min_size=1, max_size=3))
def test_what_is_encoded_for_two_hundred_levels_is_decoded_again(records: list[Any]) -> None:
    frame = b"".join(map(encoded, records))
    assert dhan_depth.decode_depth_frame(frame, rows_in_header=True) == (records, None)


def test_the_largest_packet_has_two_hundred_levels() -> None:
    side = DepthSide(1, 1333, "bid", (DepthRow(1.5, 2, 3),) * 200)
    packet = dhan_depth.encode_depth_side(side)
    assert len(packet) == 3212
    assert dhan_depth.decode_depth_frame(packet, rows_in_header=True) == ([side], None)
    with pytest.raises(WireFormatError, match="not_encodable"):
        dhan_depth.encode_depth_side(DepthSide(1, 1333, "bid", (DepthRow(1.5, 2, 3),) * 201))


@documented
def test_a_frame_cut_anywhere_gives_the_complete_packets_before_the_cut(vector: Vector) -> None:
    frame = frame_of(vector)
    whole, _ = dhan_depth.decode_depth_frame(frame, rows_in_header=counted(vector))
    ends = [sum(len(encoded(it)) for it in whole[:count]) for count in range(len(whole) + 1)]
    for cut in range(len(frame)):
        records, error = dhan_depth.decode_depth_frame(frame[:cut], rows_in_header=counted(vector))
        complete = max(count for count, end in enumerate(ends) if end <= cut)
        assert records == whole[:complete]
        if cut in ends[1:]:
            assert error is None
        else:
            assert error is not None
            assert error.reason == ("truncated" if cut else "empty")


@given(st.binary(max_size=800), st.booleans())
def test_any_bytes_give_records_or_a_typed_error(frame: bytes, rows_in_header: bool) -> None:
    records, error = dhan_depth.decode_depth_frame(frame, rows_in_header=rows_in_header)
    assert records or error is not None
    assert error is None or error.reason in REASONS


@given(flipped(st.sampled_from(DHAN_DEPTH).map(frame_of)), st.booleans())
def test_flipped_bits_give_records_or_a_typed_error(frame: bytes, rows_in_header: bool) -> None:
    records, error = dhan_depth.decode_depth_frame(frame, rows_in_header=rows_in_header)
    assert records or error is not None
    assert error is None or error.reason in REASONS


def packet(length: int, code: int, last_field: int, body: bytes) -> bytes:
    return struct.pack("<HBBII", length, code, 1, 1333, last_field) + body


@pytest.mark.parametrize(
    ("frame", "rows_in_header", "reason"),
    [
        (packet(0, 41, 0, bytes(320)), False, "bad_length"),
        (packet(11, 41, 0, bytes(320)), False, "bad_length"),
        (packet(333, 41, 0, bytes(320)), False, "truncated"),
        (packet(331, 41, 0, bytes(320)), False, "bad_rows"),
        (packet(60, 51, 4, bytes(48)), True, "bad_rows"),
        (packet(60, 51, 2**32 - 1, bytes(48)), True, "bad_rows"),
        (packet(12 + 16 * 201, 51, 201, bytes(16 * 201)), True, "bad_rows"),
        (packet(13, 50, 0, b"\x27"), False, "short_packet"),
        (packet(12, 50, 0, b""), True, "short_packet"),
    ],
)
def test_a_packet_that_contradicts_itself_ends_the_walk(
    frame: bytes, rows_in_header: bool, reason: str
) -> None:
    good = DepthSide(1, 1333, "ask", (), None if rows_in_header else 7)
    records, error = dhan_depth.decode_depth_frame(encoded(good) + frame, rows_in_header=rows_in_header)
    assert records == [good]
    assert error is not None
    assert error.reason == reason


def test_bytes_behind_the_counted_rows_are_skipped() -> None:
    frame = packet(12 + 16 + 5, 41, 1, struct.pack("<dII", 99.5, 10, 2) + b"later")
    records, error = dhan_depth.decode_depth_frame(frame * 2, rows_in_header=True)
    assert error is None
    assert records == [DepthSide(1, 1333, "bid", (DepthRow(99.5, 10, 2),))] * 2


def test_packets_with_codes_that_are_not_documented_are_skipped_by_their_length() -> None:
    frame = packet(15, 42, 0, b"???") + dhan_frame("depth_disconnect_807")
    records, error = dhan_depth.decode_depth_frame(frame, rows_in_header=False)
    assert error is None
    assert records == [DepthUnknown(1, 1333, 42, 15), DepthDisconnect(807)]


@pytest.mark.parametrize(
    "record",
    [
        DepthSide(1, 2**32, "bid", ()),
        DepthSide(1, 1, "bid", (DepthRow(1.0, -1, 0),)),
        DepthSide(1, 1, "bid", (), 2**32),
        DepthDisconnect(65_536),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_not_encoded(record: Any) -> None:
    with pytest.raises(WireFormatError) as caught:
        encoded(record)
    assert caught.value.reason == "not_encodable"
