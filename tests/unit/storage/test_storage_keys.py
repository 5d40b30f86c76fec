"""The names of keys, letter by letter."""

from __future__ import annotations

import pytest

from services.storage.keys import (
    EPOCH,
    INTEREST,
    TICK_FIELDS,
    bar_series,
    last_tick,
    tick_labels,
    tick_series,
    tick_stream,
)


def test_keys_are_those_that_consumers_know() -> None:
    assert [tick_series("NSE:RELIANCE", field) for field in TICK_FIELDS] == [
        "md:ts:{NSE:RELIANCE}:price",
        "md:ts:{NSE:RELIANCE}:volume",
        "md:ts:{NSE:RELIANCE}:bid",
        "md:ts:{NSE:RELIANCE}:ask",
        "md:ts:{NSE:RELIANCE}:oi",
    ]
    assert bar_series("NSE:RELIANCE", "1m", "open") == "md:ts:{NSE:RELIANCE}:1m:open"
    assert last_tick("NSE:RELIANCE") == "md:last:{NSE:RELIANCE}"
    assert tick_stream("NSE") == "md:ticks:NSE"
    assert (INTEREST, EPOCH) == ("md:interest", "md:epoch")


@pytest.mark.parametrize(
    "instrument", ["NSE:M&M", "NSE:BAJAJ-AUTO", "INDEX:^GSPC", "NASDAQ:BRK.B", "FX:EUR=X"]
)
def test_instruments_with_special_characters_keep_them(instrument: str) -> None:
    assert tick_series(instrument, "price") == f"md:ts:{{{instrument}}}:price"
    assert last_tick(instrument) == f"md:last:{{{instrument}}}"


def test_all_keys_of_one_instrument_have_the_same_hash_tag() -> None:
    keys = [
        *(tick_series("NSE:M&M", field) for field in TICK_FIELDS),
        bar_series("NSE:M&M", "5m", "close"),
        last_tick("NSE:M&M"),
    ]
    assert {key.partition("{")[2].partition("}")[0] for key in keys} == {"NSE:M&M"}


def test_labels_of_a_series() -> None:
    assert tick_labels("NFO:NIFTY-2026-12-31-25000-CE", "NFO", "oi") == {
        "instrument": "NFO:NIFTY-2026-12-31-25000-CE",
        "exchange": "NFO",
        "symbol": "NIFTY-2026-12-31-25000-CE",
        "field": "oi",
        "kind": "tick",
    }
