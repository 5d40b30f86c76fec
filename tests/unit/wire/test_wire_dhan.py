"""Dhan's live feed: documented frames, damaged frames, and any bytes at all."""

from __future__ import annotations

import math
import struct
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example
from hypothesis import strategies as st
from wire_frames import (
    DHAN_LIVE,
    Vector,
    dhan_frame,
    dhan_records,
    flipped,
    frame_of,
    given,
    name_of,
)

from services.errors import Verdict, WireFormatError
from services.wire import dhan

KINDS = {
    "ticker": dhan.Ticker,
    "quote": dhan.Quote,
    "oi": dhan.OpenInterest,
    "prev_close": dhan.PreviousClose,
    "full": dhan.Full,
    "market_status": dhan.MarketStatus,
    "heartbeat": dhan.Heartbeat,
    "disconnect": dhan.Disconnect,
}
TICKER = dhan.Ticker(1, 2885, 1192.5, 1_781_084_997)
REASONS = {"empty", "truncated", "bad_length", "short_packet"}

live = pytest.mark.parametrize("vector", DHAN_LIVE, ids=name_of)


def described(record: dhan.DhanRecord) -> dict[str, Any]:
    """Return a record as the vectors describe it."""
    fields: dict[str, Any] = {name: getattr(record, name) for name in record.__struct_fields__}
    if "ltt" in fields:
        raw = fields.pop("ltt")
        utc_ms = dhan.utc_ms(raw)
        fields["ltt_raw"] = raw
        fields["ltt_utc"] = (
            None if utc_ms is None else f"{datetime.fromtimestamp(utc_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
        )
    if "depth" in fields:
        fields["depth"] = [{name: getattr(it, name) for name in it.__struct_fields__} for it in record.depth]
    return {name: "NaN" if value != value else value for name, value in fields.items()}


@live
def test_every_field_of_a_documented_frame_is_read(vector: Vector) -> None:
    records, error = dhan.decode_frame(frame_of(vector))
    assert error is None
    assert [type(record) for record in records] == [KINDS[it["kind"]] for it in vector["expected"]]
    for record, expected in zip(records, vector["expected"], strict=True):
        fields = {name: it for name, it in expected.items() if name not in ("kind", "code", "length")}
        assert fields.pop("segment_name") == dhan.Segment(record.segment).name
        assert described(record) == fields


@live
def test_encoding_gives_back_the_same_bytes(vector: Vector) -> None:
    records, _ = dhan.decode_frame(frame_of(vector))
    assert b"".join(map(dhan.encode, records)) == frame_of(vector)


@given(st.lists(dhan_records, min_size=1, max_size=6))
def test_what_is_encoded_is_decoded_again(records: list[dhan.DhanRecord]) -> None:
    assert dhan.decode_frame(b"".join(map(dhan.encode, records))) == (records, None)


@given(st.lists(dhan_records, min_size=1, max_size=3))
def test_a_frame_cut_anywhere_gives_the_complete_packets_before_the_cut(
    records: list[dhan.DhanRecord],
) -> None:
    packets = [dhan.encode(record) for record in records]
    frame = b"".join(packets)
    ends = [sum(map(len, packets[:count])) for count in range(len(packets) + 1)]
    for cut in range(len(frame)):
        read, error = dhan.decode_frame(frame[:cut])
        complete = max(count for count, end in enumerate(ends) if end <= cut)
        assert read == records[:complete]
        if cut in ends[1:]:
            assert error is None
        else:
            assert error is not None
            assert error.reason == ("truncated" if cut else "empty")


@live
def test_a_documented_frame_cut_anywhere_is_damage_and_never_a_wrong_record(vector: Vector) -> None:
    frame = frame_of(vector)
    whole, _ = dhan.decode_frame(frame)
    lengths = [len(dhan.encode(record)) for record in whole]
    for cut in range(len(frame)):
        records, error = dhan.decode_frame(frame[:cut])
        assert list(map(dhan.encode, records)) == list(map(dhan.encode, whole[: len(records)]))
        assert sum(lengths[: len(records)]) <= cut
        assert (error is None) == (cut != 0 and cut == sum(lengths[: len(records)]))


@given(st.binary(max_size=400))
@example(b"")
@example(bytes(400))
@example(b"\xff" * 400)
def test_any_bytes_give_records_or_a_typed_error(frame: bytes) -> None:
    records, error = dhan.decode_frame(frame)
    assert records or error is not None
    assert error is None or (error.reason in REASONS and error.verdict is Verdict.DROP)


@given(flipped(st.sampled_from(DHAN_LIVE).map(frame_of)))
def test_flipped_bits_give_records_or_a_typed_error(frame: bytes) -> None:
    records, error = dhan.decode_frame(frame)
    assert records or error is not None
    assert error is None or error.reason in REASONS


def test_packets_with_codes_that_are_not_documented_are_skipped_and_kept_for_inspection() -> None:
    index_packet = struct.pack("<BHBI", 1, 12, 0, 13) + b"\x01\x02\x03\x04"
    records, error = dhan.decode_frame(index_packet + dhan.encode(TICKER))
    assert error is None
    assert records == [dhan.Unknown(0, 13, 1, 12, b"\x01\x02\x03\x04"), TICKER]


@pytest.mark.parametrize("name", [name_of(it) for it in DHAN_LIVE if len(it["expected"]) == 1])
def test_a_packet_longer_than_its_layout_is_read_and_the_surplus_skipped(name: str) -> None:
    frame = dhan_frame(name)
    known, _ = dhan.decode_frame(frame)
    longer = frame[:1] + struct.pack("<H", len(frame) + 5) + frame[3:] + b"later"
    records, error = dhan.decode_frame(longer + dhan.encode(TICKER))
    assert error is None
    assert records[1:] == [TICKER]
    assert dhan.encode(records[0]) == dhan.encode(known[0])


@pytest.mark.parametrize("name", [name_of(it) for it in DHAN_LIVE if it["size"] > 8])
def test_a_known_packet_that_declares_too_few_bytes_ends_the_walk(name: str) -> None:
    frame = dhan_frame(name)
    size = len(dhan.encode(dhan.decode_frame(frame)[0][0]))
    for declared in range(8, size):
        shorter = frame[:1] + struct.pack("<H", declared) + frame[3:]
        records, error = dhan.decode_frame(dhan.encode(TICKER) + shorter)
        assert records == [TICKER]
        assert error is not None
        assert error.reason == "short_packet"


@pytest.mark.parametrize("code", [0, 1, 2, 8, 50, 200])
@pytest.mark.parametrize("length", range(8))
def test_a_length_that_does_not_cover_the_header_ends_the_walk(code: int, length: int) -> None:
    bad = struct.pack("<BHBI", code, length, 1, 2885) + bytes(200)
    records, error = dhan.decode_frame(dhan.encode(TICKER) + bad)
    assert records == [TICKER]
    assert error is not None
    assert error.reason == "bad_length"
    assert error.frame == bad[:64]


@pytest.mark.parametrize("declared", [17, 162, 65_535])
def test_a_length_beyond_the_message_is_truncation_even_where_the_layout_would_fit(declared: int) -> None:
    frame = dhan.encode(TICKER)
    records, error = dhan.decode_frame(frame[:1] + struct.pack("<H", declared) + frame[3:])
    assert records == []
    assert error is not None
    assert error.reason == "truncated"


def test_the_last_trade_time_is_indian_wall_time_counted_as_epoch_seconds() -> None:
    at = datetime.fromtimestamp(1_781_065_197, UTC)
    assert dhan.utc_ms(1_781_084_997) == 1_781_065_197_000
    assert (at.hour, at.minute, at.second) == (4, 19, 57), "09:49:57 in India"


@pytest.mark.parametrize("ltt", [0, 1, 315_532_800, 315_532_800 - 19_800, 315_532_800 + 19_800])
def test_an_instrument_that_never_traded_has_no_time(ltt: int) -> None:
    assert dhan.utc_ms(ltt) is None


def test_the_first_second_that_counts_as_a_trade_is_the_second_of_january_1980() -> None:
    assert dhan.utc_ms(315_619_199) is None
    assert dhan.utc_ms(315_619_200) == (315_619_200 - 19_800) * 1000


def test_every_reason_that_the_documentation_names_has_a_text() -> None:
    assert set(dhan.DISCONNECT_REASONS) == {800, *range(804, 815), 820, 821}
    assert all(dhan.DISCONNECT_REASONS.values())


@pytest.mark.parametrize(
    "record",
    [
        dhan.Ticker(256, 1, 1.0, 1),
        dhan.Ticker(1, 2**32, 1.0, 1),
        dhan.Ticker(1, 1, 1e39, 1),
        dhan.Ticker(1, 1, 1.0, -1),
        dhan.Disconnect(65_536),
        dhan.MarketDepthV1(1, 1, 1.0, (dhan.DepthLevel(0, 0, 0, 0, 0.0, 0.0),) * 6),
        dhan.Unknown(1, 1, 1, 12, b"five!"),
    ],
)
def test_a_value_that_does_not_fit_its_field_is_not_encoded(record: dhan.DhanRecord) -> None:
    with pytest.raises(WireFormatError) as caught:
        dhan.encode(record)
    assert caught.value.reason == "not_encodable"


def test_missing_levels_are_sent_as_empty_ones() -> None:
    best = dhan.DepthLevel(10, 20, 1, 2, 99.5, 100.5)
    (record,), error = dhan.decode_frame(dhan.encode(dhan.MarketDepthV1(1, 1333, 100.0, (best,))))
    assert error is None
    assert isinstance(record, dhan.MarketDepthV1)
    assert record.depth == (best, *(dhan.DepthLevel(0, 0, 0, 0, 0.0, 0.0),) * 4)


def test_not_a_number_is_passed_on_as_it_came() -> None:
    (record,), _ = dhan.decode_frame(dhan_frame("ticker_nan_price"))
    assert isinstance(record, dhan.Ticker)
    assert math.isnan(record.ltp)
