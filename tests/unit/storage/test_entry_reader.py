"""What was written into a stream reads back as the same record."""

from __future__ import annotations

import hiredis
import msgspec

from services.market_data.records import ControlRecord, DataIngestionFormat
from services.storage.entry import ARGUMENTS, EntryEncoder, control_fields
from services.storage.entry_reader import record_of


def fields_of(arguments: int, text: str) -> dict[str, str]:
    reader = hiredis.Reader(encoding="utf-8")
    reader.feed(f"*{arguments}\r\n{text}".encode())
    flat = reader.gets()
    return dict(zip(flat[::2], flat[1::2], strict=True))


def test_a_tick_with_everything_and_one_with_nothing_read_back() -> None:
    bare = DataIngestionFormat(
        "NSE:M&M", 0.05, None, 1_700_000_000_000, "DHAN", exchange="NSE", received_ms=5
    )
    full = msgspec.structs.replace(
        bare,
        volume=0,
        cumulative_volume=10**12,
        bid=1e-7,
        ask=2456.8,
        bid_size=3,
        ask_size=4,
        oi=0,
        day_open=1.0,
        day_high=2.5,
        day_low=0.5,
        previous_close=100.0,
        flags=5,
    )
    for record in (bare, full):
        encoded = EntryEncoder().tick(record)
        read = record_of("NSE", (7, 8), fields_of(ARGUMENTS[encoded.mask], encoded.text))
        assert read == msgspec.structs.replace(record, position_ms=7, position_seq=8)


def test_control_records_read_back_with_numbers_as_numbers_and_reasons_as_text() -> None:
    gap = ControlRecord("gap", "NSE:TCS", "NSE", 1, 2, "DHAN", {"from": 5, "to": -9, "reason": "805"}, 7, 8)
    session = ControlRecord("session", "", "NSE", 1, 2, "", {"state": "close", "note": "007"}, 7, 8)
    for record in (gap, session):
        assert record_of("NSE", (7, 8), fields_of(*control_fields(record))) == record


def test_what_is_none_of_ours_is_passed_over() -> None:
    for fields in ({}, {"type": "tick"}, {"type": "gap"}, {"type": "tick", "k": "NSE:TCS", "p": "nan"}):
        assert record_of("NSE", (1, 0), fields) is None
