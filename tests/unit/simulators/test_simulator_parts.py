"""The parts under the simulators: schedule, subscriptions, frames, tokens, requests of version 1, journal."""

from __future__ import annotations

import csv
import json
import struct
import time
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.wire import dhan as wire
from services.wire import yahoo as yahoo_wire
from simulators import dhan_packets, yahoo_frames
from simulators.connection import BINARY, TEXT, server_frame
from simulators.faults import BadPrice, Close, DhanFault, FaultState, YahooFault
from simulators.journal import ConnectionEvent, Journal, SentTick
from simulators.market import Instrument, InstrumentSpec, Kind
from simulators.schedule import MAX_BACKLOG_S, Schedule
from simulators.stream import Listing
from simulators.tokens import TokenBook, consumer_type, expiry_s
from simulators.universe import SCRIP_MASTER, SCRIP_MASTER_DETAILED

# Schedule.


def test_the_schedule_spreads_ticks_evenly_and_keeps_the_rate() -> None:
    schedule = Schedule(rate=2.0)
    for symbol in ("A", "B", "C"):
        schedule.add(symbol)
    due = [symbol for _ in range(1_000) for symbol in schedule.due(0.01)]
    assert abs(len(due) - 60) <= 1
    assert due[:6] == ["A", "B", "C", "A", "B", "C"]


def test_symbols_with_a_rate_of_their_own_keep_it_when_the_default_changes() -> None:
    schedule = Schedule(rate=0.0)
    schedule.add("A")
    schedule.add("B")
    schedule.set_rate(10.0, ["B"])
    schedule.set_rate(1.0)
    due = [symbol for _ in range(100) for symbol in schedule.due(0.1)]
    assert (due.count("A"), due.count("B")) in ((10, 100), (9, 99), (10, 99), (9, 100))


def test_time_lost_to_a_busy_machine_is_given_up() -> None:
    schedule = Schedule(rate=100.0)
    schedule.add("A")
    assert len(schedule.due(3_600.0)) == int(MAX_BACKLOG_S * 100)


def test_a_symbol_that_is_removed_ticks_no_more() -> None:
    schedule = Schedule(rate=100.0)
    schedule.add("A")
    schedule.add("B")
    schedule.due(0.1)
    schedule.remove("A")
    assert set(schedule.due(0.1)) == {"B"}
    schedule.remove("B")
    assert (schedule.due(1.0), len(schedule)) == ([], 0)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 8), st.floats(0, 0.2)), max_size=60))
def test_only_symbols_that_are_wanted_tick(moves: list[tuple[bool, int, float]]) -> None:
    schedule = Schedule(rate=37.0)
    wanted: set[str] = set()
    for add, number, elapsed in moves:
        symbol = str(number)
        if add:
            schedule.add(symbol)
            wanted.add(symbol)
        else:
            schedule.remove(symbol)
            wanted.discard(symbol)
        assert set(schedule.due(elapsed)) <= wanted


def test_a_negative_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="zero or more"):
        Schedule(rate=1.0).set_rate(-1.0)


# Frames.


@pytest.mark.parametrize(
    ("size", "head"),
    [
        (0, b"\x82\x00"),
        (125, b"\x82\x7d"),
        (126, b"\x82\x7e\x00\x7e"),
        (65_535, b"\x82\x7e\xff\xff"),
        (65_536, b"\x82\x7f" + (65_536).to_bytes(8, "big")),
    ],
)
def test_a_server_frame_has_the_length_form_its_size_asks_for(size: int, head: bytes) -> None:
    assert server_frame(BINARY, bytes(size)) == head + bytes(size)
    assert server_frame(TEXT, b"")[0] == 0x81


# Tokens.


def test_a_token_carries_the_vendors_claims_and_is_good_for_its_client_only() -> None:
    book = TokenBook("1100000000")
    token = book.current
    assert consumer_type(token) == "SELF"
    assert abs((expiry_s(token) or 0) - time.time() - 86_400) < 5
    assert book.refusal(token, "1100000000") is None
    assert book.refusal(token, "1100000001") == 810
    assert book.refusal("nonsense", "1100000000") == 809


def test_renewing_gives_a_new_token_and_expires_the_old() -> None:
    book = TokenBook()
    old = book.current
    new = book.renew(old)
    assert new == book.current != old
    assert book.refusal(old, book.client_id) == 807
    assert book.renew(old) is None


def test_a_token_expires_by_its_own_claim_too() -> None:
    book = TokenBook()
    assert book.refusal(book.issue(life_s=-1), book.client_id) == 807


def test_tokens_made_elsewhere_can_be_accepted() -> None:
    book = TokenBook()
    book.accept("plain-text")
    assert book.refusal("plain-text", book.client_id) is None
    assert expiry_s("plain-text") is None
    assert consumer_type("a.b.c") == ""


# Packets.


def _listing(kind: Kind, **spec: object) -> Listing:
    instrument = Instrument(InstrumentSpec(name="X", kind=kind, price="100.00", **spec), identity=True)  # type: ignore[arg-type]
    return Listing(symbol="X", instrument=instrument, segment=1, security_id=7, wire_id="X", exchange="NMS")


def test_event_times_are_cut_to_seconds_and_shifted() -> None:
    listing = _listing(Kind.EQUITY)
    made = dhan_packets.encode_tick(listing, listing.instrument.step(1_795_000_000_999), "ticker")
    (record,), damage = wire.decode_frame(made.packets[0])
    assert damage is None
    assert isinstance(record, wire.Ticker)
    assert record.ltt == 1_795_000_000 + 19_800
    assert wire.utc_ms(record.ltt) == made.event_ms == 1_795_000_000_000


@pytest.mark.parametrize("variant", ["ticker", "quote", "full", "depth_v1"])
def test_every_kind_of_packet_is_whole(variant: str) -> None:
    listing = _listing(Kind.FUTURE, oi=500)
    made = dhan_packets.encode_tick(listing, listing.instrument.step(1_795_000_000_000), variant)
    for packet in made.packets:
        records, damage = wire.decode_frame(packet)
        assert (len(records), damage) == (1, None)


def test_figures_beyond_their_field_stop_at_its_end() -> None:
    listing = _listing(Kind.EQUITY, day_volume=2**32)
    tick = listing.instrument.trade(1_795_000_000_000, quantity=100_000)
    (record,), _ = wire.decode_frame(dhan_packets.encode_tick(listing, tick, "quote").packets[0])
    assert isinstance(record, wire.Quote)
    assert (record.ltq, record.volume) == (65_535, 2**32 - 1)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_message_of_every_kind_passes_through_the_codec(kind: Kind) -> None:
    listing = _listing(kind, rolling_volume=1_000_000)
    tick = listing.instrument.step(1_795_000_000_500)
    data = yahoo_frames.message_of(listing, tick, 1)
    decoded = yahoo_wire.decode_frame(yahoo_wire.encode_frame(data))
    assert decoded is not None
    assert decoded.time == 1_795_000_000_000
    assert {name for name in decoded.__struct_fields__ if getattr(decoded, name) is not None} == {
        name for name in data.__struct_fields__ if getattr(data, name) is not None
    }


# Journal.


def _tick(seq: int) -> SentTick:
    return SentTick(
        "dhan", "NSE_EQ:2885", seq, 1192.3 + seq, 2, 1_000, 5, 100 + seq, None, None, 1_234, 1, "full"
    )


def test_the_journal_forgets_the_oldest_and_says_how_many() -> None:
    journal = Journal(limit=3)
    for seq in range(5):
        journal.record(_tick(seq))
    assert [tick.seq for tick in journal.ticks] == [2, 3, 4]
    assert (journal.recorded, journal.forgotten) == (5, 2)
    assert [entry.seq for entry in journal.since(0, 2)[1] if isinstance(entry, SentTick)] == [2, 3]
    assert journal.since(0, 2)[0] == 4
    assert journal.since(4, 10) == (5, [journal.ticks[-1]])
    assert journal.since(99, 10) == (99, [])


def test_the_journal_file_holds_every_entry_as_a_line(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    with Journal(limit=1, path=path) as journal:
        journal.record(ConnectionEvent("dhan", 1, "opened", 1_000))
        journal.record(_tick(1))
        nan = _tick(2)
        nan.price = float("nan")
        journal.record(nan)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["type"] for line in lines] == ["connection", "tick", "tick"]
    assert lines[1]["price"] == "1193.30"
    assert lines[1]["float32"] == "1193.300048828125"
    assert (lines[2]["price"], lines[2]["float32"]) == ("nan", "nan")


@given(st.floats(-1e38, 1e38))
def test_the_float32_of_a_price_is_what_the_wire_carries(price: float) -> None:
    tick = _tick(0)
    tick.price = price
    assert tick.float32 == struct.unpack("<f", struct.pack("<f", price))[0]


def test_a_price_that_no_float32_can_hold_is_journaled_as_it_was_meant() -> None:
    tick = _tick(0)
    tick.price = 1e300
    assert tick.float32 == 1e300


# Faults.


def test_a_fault_is_read_from_json_by_its_name() -> None:
    assert msgspec.json.decode(b'{"fault":"close","code":1013}', type=DhanFault) == Close(code=1013)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"fault":"stacked"}', type=YahooFault)
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"fault":"close","cod":1}', type=DhanFault)


def test_bad_prices_are_counted_down_for_the_chosen_symbols_only() -> None:
    state = FaultState(bad_price=BadPrice(value="zero", symbols=("A",)), bad_prices_left=2)
    taken = [state.take_bad_price(symbol) for symbol in ("B", "A", "A", "A")]
    assert taken == [None, "zero", "zero", None]


# The shipped scrip master.


def test_the_two_forms_of_the_scrip_master_list_the_same_instruments() -> None:
    with SCRIP_MASTER.open(newline="") as file:
        compact = list(csv.DictReader(file))
    with SCRIP_MASTER_DETAILED.open(newline="") as file:
        detailed = list(csv.DictReader(file))
    assert [(row["SEM_EXM_EXCH_ID"], row["SEM_SEGMENT"], row["SEM_SMST_SECURITY_ID"]) for row in compact] == [
        (row["EXCH_ID"], row["SEGMENT"], row["SECURITY_ID"]) for row in detailed
    ]
    assert [row["SEM_TICK_SIZE"] for row in compact] == [row["TICK_SIZE"] for row in detailed]
    nifty_50 = [
        row for row in compact if row["SEM_SERIES"] == "EQ" and row["SEM_EXCH_INSTRUMENT_TYPE"] == "ES"
    ]
    assert len(nifty_50) >= 50
    assert {row["SYMBOL_NAME"] for row in detailed} >= {"MAHINDRA & MAHINDRA, LTD", 'LARSEN & TOUBRO, "L&T"'}
