"""Records in words: every combination of known fields, and what is remembered between ticks."""

from __future__ import annotations

from typing import Any

import hiredis
import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.market_data.records import FLAG_TEXT, ControlRecord, DataIngestionFormat
from services.storage.entry import (
    ARGUMENTS,
    OPTIONAL_FIELDS,
    EntryEncoder,
    control_fields,
    without_bad_numbers,
)
from services.storage.resp import to_bytes

prices = st.floats(-1e9, 1e9, allow_nan=False)
quantities = st.integers(0, 2**53)
maybe_price, maybe_quantity = st.none() | prices, st.none() | quantities
ticks = st.builds(
    DataIngestionFormat,
    symbol=st.sampled_from(["NSE:A", "NSE:M&M"]),
    price=prices,
    volume=maybe_quantity,
    timestamp=st.integers(10**12, 2 * 10**12),
    provider_code=st.sampled_from(["DHAN", "YF"]),
    received_ms=st.integers(0, 2 * 10**12),
    cumulative_volume=maybe_quantity,
    bid=maybe_price,
    ask=maybe_price,
    bid_size=maybe_quantity,
    ask_size=maybe_quantity,
    oi=maybe_quantity,
    day_open=maybe_price,
    day_high=maybe_price,
    day_low=maybe_price,
    previous_close=maybe_price,
    flags=st.integers(0, 31),
    exchange=st.just("NSE"),
)
NAMES = {
    "v": "volume",
    "cv": "cumulative_volume",
    "b": "bid",
    "a": "ask",
    "bs": "bid_size",
    "as": "ask_size",
    "oi": "oi",
    "o": "day_open",
    "h": "day_high",
    "l": "day_low",
    "pc": "previous_close",
}


def read(arguments: int, text: str) -> dict[str, str]:
    reader = hiredis.Reader(encoding="utf-8")
    reader.feed(to_bytes([f"*{arguments}\r\n", text]))
    words: Any = reader.gets()
    assert reader.gets() is False
    return dict(zip(words[::2], words[1::2], strict=True))


def expected(tick: DataIngestionFormat) -> dict[str, Any]:
    known = {short: getattr(tick, name) for short, name in NAMES.items()}
    fields: dict[str, Any] = {name: value for name, value in known.items() if value is not None}
    fields |= {"p": tick.price, "t": tick.timestamp, "r": tick.received_ms}
    fields |= {"type": "tick", "k": tick.symbol, "src": tick.provider_code}
    return fields | ({"f": FLAG_TEXT[tick.flags]} if tick.flags else {})


@given(st.lists(ticks, min_size=1, max_size=5))
def test_a_series_of_ticks_is_read_back_exactly(sequence: list[DataIngestionFormat]) -> None:
    encoder = EntryEncoder()
    for tick in sequence:
        encoded = encoder.tick(tick)
        fields = read(ARGUMENTS[encoded.mask], encoded.text)
        wanted = expected(tick)
        assert fields.keys() == wanted.keys()
        for name, value in wanted.items():
            assert (fields[name] if isinstance(value, str) else type(value)(fields[name])) == value
        for bit, name in enumerate(OPTIONAL_FIELDS):
            assert bool(encoded.mask >> bit & 1) == (name in fields)


def test_the_same_record_is_put_into_words_once() -> None:
    encoder = EntryEncoder()
    tick = DataIngestionFormat("NSE:A", 1.0, 1, 1, "DHAN")
    text = encoder.tick(tick).text
    assert encoder.tick(tick).text is text
    assert encoder.tick(msgspec.structs.replace(tick)).text is not text


def test_an_encoder_goes_on_after_a_number_that_is_none() -> None:
    encoder = EntryEncoder()
    good = DataIngestionFormat("NSE:A", 1.0, 1, 1, "DHAN", day_open=2.0)
    before = encoder.tick(good).text
    for bad in ({"price": float("nan")}, {"day_open": float("inf")}):
        try:
            encoder.tick(msgspec.structs.replace(good, **bad))
        except ValueError:
            continue
        raise AssertionError("a bad number was put into words")
    again = encoder.tick(msgspec.structs.replace(good))
    assert again.text == before
    assert read(ARGUMENTS[again.mask], again.text)["o"] == "2.0"


def test_bad_side_fields_become_unknown_and_a_bad_price_makes_the_tick_unusable() -> None:
    tick = DataIngestionFormat("NSE:A", 1.0, 1, 1, "DHAN", bid=float("nan"), ask=2.0, day_low=float("-inf"))
    clean = without_bad_numbers(tick)
    assert clean is not None
    assert (clean.bid, clean.ask, clean.day_low) == (None, 2.0, None)
    assert without_bad_numbers(msgspec.structs.replace(tick, price=float("inf"))) is None


def test_a_control_record_has_its_own_fields_and_no_empty_ones() -> None:
    gap = ControlRecord("gap", "NSE:A", "NSE", 5, 6, "DHAN", {"from": 1, "to": 2, "reason": "reset"})
    assert read(*control_fields(gap)) == {
        "type": "gap",
        "k": "NSE:A",
        "src": "DHAN",
        "t": "5",
        "r": "6",
        "from": "1",
        "to": "2",
        "reason": "reset",
    }
    session = ControlRecord("session", "", "NSE", 5, 6, "", {"state": "open"})
    assert read(*control_fields(session)).keys() == {"type", "t", "r", "state"}
