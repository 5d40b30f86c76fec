"""Finding the underlying behind what somebody typed."""

from __future__ import annotations

from services.market_data.instruments import AssetClass, InstrumentMapping
from services.options.dhan_options import symbol_of as dhan_symbol
from services.options.nse_options import symbol_of as nse_symbol
from services.options.underlyings import Underlyings
from services.options.yahoo_options import symbol_of as yahoo_symbol


def row(key: str, provider: str, kind: AssetClass = AssetClass.EQUITY, **more: str) -> InstrumentMapping:
    exchange, _, symbol = key.partition(":")
    return InstrumentMapping(
        mapping_id=1,
        instrument=key,
        exchange=exchange,
        symbol=symbol,
        name=symbol,
        asset_class=kind,
        currency="INR",
        provider_code=provider,
        search_code=more.pop("search_code", symbol),
        **more,
    )


def loaded() -> Underlyings:
    underlyings = Underlyings()
    underlyings.load(
        [
            row("BSE:RELIANCE", "DHAN", segment="BSE_EQ", security_id="500325"),
            row("NSE:RELIANCE", "DHAN", segment="NSE_EQ", security_id="2885"),
            row("NSE:RELIANCE", "YF", search_code="RELIANCE.NS"),
            row("NSE:NIFTY", "DHAN", AssetClass.INDEX, segment="IDX_I", security_id="13"),
            row("NASDAQ:AAPL", "YF"),
            row("NFO:NIFTY-2026-12-29-FUT", "DHAN", AssetClass.FUTURE, segment="NSE_FNO", security_id="1"),
        ]
    )
    return underlyings


def test_a_key_is_exact_and_a_symbol_means_the_exchange_most_people_mean() -> None:
    underlyings = loaded()
    found = {text: underlyings.find(text) for text in (" reliance ", "BSE:RELIANCE", "aapl", "TCS", "NFO:X")}
    assert [item.key if item else None for item in found.values()] == [
        "NSE:RELIANCE",
        "BSE:RELIANCE",
        "NASDAQ:AAPL",
        None,
        None,
    ]
    assert [item.key for item in underlyings.all()] == [
        "BSE:RELIANCE",
        "NASDAQ:AAPL",
        "NSE:NIFTY",
        "NSE:RELIANCE",
    ]


def test_contracts_are_no_underlyings() -> None:
    assert loaded().find("NFO:NIFTY-2026-12-29-FUT") is None


def test_a_changed_snapshot_is_taken_over() -> None:
    underlyings = loaded()
    assert underlyings.find("AAPL")
    underlyings.load([row("NYSE:IBM", "YF")])
    assert underlyings.find("AAPL") is None
    assert underlyings.find("IBM")


def test_each_source_knows_which_underlyings_it_serves_and_by_which_name() -> None:
    underlyings = loaded()
    names = {
        item.key: (dhan_symbol(item), nse_symbol(item), yahoo_symbol(item)) for item in underlyings.all()
    }
    assert names == {
        "NSE:RELIANCE": ("NSE_EQ:2885", "RELIANCE", None),
        "BSE:RELIANCE": ("BSE_EQ:500325", None, None),
        "NSE:NIFTY": ("IDX_I:13", "INDEX:NIFTY", None),
        "NASDAQ:AAPL": (None, None, "AAPL"),
    }
