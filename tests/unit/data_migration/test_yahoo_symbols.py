"""Yahoo's symbols from ours, and the suffix table against yfinance's own."""

from __future__ import annotations

import pytest
import yfinance.const

from data_migration.sources.yahoo_symbols import SUFFIX_BY_MIC, suffixed, yahoo_symbol


@pytest.mark.parametrize(
    ("key", "asset_class", "symbol"),
    [
        ("NSE:RELIANCE", "equity", "RELIANCE.NS"),
        ("NSE:M&M", "equity", "M&M.NS"),
        ("NSE:BAJAJ-AUTO", "equity", "BAJAJ-AUTO.NS"),
        ("NSE:NIFTYBEES", "etf", "NIFTYBEES.NS"),
        ("BSE:RELIANCE", "equity", "RELIANCE.BO"),
        ("NASDAQ:AAPL", "equity", "AAPL"),
        ("NYSE:BRK.B", "equity", "BRK-B"),
        ("ARCA:SPY", "etf", "SPY"),
        ("CRYPTO:BTC-USD", "crypto", "BTC-USD"),
        ("FX:EURUSD", "fx", "EURUSD=X"),
        ("NSE:NIFTY", "index", "^NSEI"),
        ("NSE:BANKNIFTY", "index", "^NSEBANK"),
        ("NSE:INDIAVIX", "index", "^INDIAVIX"),
        ("BSE:SENSEX", "index", "^BSESN"),
        ("INDEX:SPX", "index", "^GSPC"),
        ("INDEX:HSI", "index", "^HSI"),
        ("NSE:NIFTYIT", "index", None),
        ("NFO:NIFTY-2026-12-31-25000-CE", "option", None),
        ("MCX:GOLD-2027-02-05-FUT", "future", None),
        ("CDS:USDINR-2026-12-29-FUT", "future", None),
    ],
)
def test_each_kind_of_instrument_has_yahoos_name_or_none(
    key: str, asset_class: str, symbol: str | None
) -> None:
    exchange, _, name = key.partition(":")
    assert yahoo_symbol(exchange, name, asset_class) == symbol


def test_the_suffix_table_is_the_one_of_yfinance() -> None:
    assert {
        mic: suffix.upper() for mic, suffix in yfinance.const._MIC_TO_YAHOO_SUFFIX.items()
    } == SUFFIX_BY_MIC


def test_only_us_listings_write_share_classes_with_a_dash() -> None:
    assert suffixed("BRK.B", "XNYS") == "BRK-B"
    assert suffixed("RDS.A", "XLON") == "RDS.A.L"
