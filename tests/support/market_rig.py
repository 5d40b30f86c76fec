"""A whole market for the daemon as a process: simulators in identity mode and a database mapped to them.

Every instrument has one provider, so that what a simulator sent can only be stored under it.
"""

from __future__ import annotations

from pathlib import Path

import asyncpg

from simulators.market import Kind
from simulators.universe import dhan_specs, price_list
from tests.support.daemon import ROOT, clean_environment, run_script

SCRIP_MASTER = ROOT / "simulators" / "data" / "dhan-scrip-master.csv"
YAHOO_NAMES = {"AAPL": "NASDAQ:AAPL", "MSFT": "NASDAQ:MSFT", "JPM": "NYSE:JPM", "BTC-USD": "CRYPTO:BTC-USD"}
_YAHOO_ROWS = """NASDAQ,AAPL,Apple,equity,USD
NASDAQ,MSFT,Microsoft,equity,USD
NYSE,JPM,JPMorgan Chase,equity,USD
CRYPTO,BTC-USD,Bitcoin,crypto,USD
"""
_ONE_PROVIDER_EACH = """
UPDATE provider_instrument_mappings SET is_active = false
WHERE provider_id = (SELECT id FROM providers WHERE code = 'YF')
  AND instrument_id IN (
    SELECT instrument_id FROM provider_instrument_mappings
    WHERE provider_id = (SELECT id FROM providers WHERE code = 'DHAN'))
"""


def dhan_names(count: int) -> dict[str, str]:
    """Return up to `count` shares at Dhan: provider symbol to instrument key, NSE before BSE."""
    listed = price_list()
    shares = {
        symbol: spec.name
        for symbol, spec in dhan_specs().items()
        if symbol.startswith(("NSE_EQ:", "BSE_EQ:")) and spec.kind is Kind.EQUITY and spec.name in listed
    }
    chosen = sorted(shares, key=lambda symbol: (symbol.startswith("BSE"), shares[symbol]))[:count]
    return {symbol: shares[symbol] for symbol in chosen}


def listing_of(names: dict[str, str], *, yahoo: bool) -> str:
    """Return the instruments file for the populate script."""
    rows = ["exchange,symbol,name,asset_class,currency"]
    for key in names.values():
        exchange, _, symbol = key.partition(":")
        rows.append(f"{exchange},{symbol},{symbol.title()},equity,INR")
    return "\n".join(rows) + "\n" + (_YAHOO_ROWS if yahoo else "")


async def map_database(url: str, folder: Path, names: dict[str, str], *, yahoo: bool = True) -> None:
    """Run the two scripts on an empty database, then leave each instrument its first provider."""
    folder.mkdir(parents=True, exist_ok=True)
    listing = folder / "instruments.csv"
    listing.write_text(listing_of(names, yahoo=yahoo), encoding="utf-8")
    environment = clean_environment(DATABASE_URL=url, STATE_DIR=folder)
    for script in (
        ["data_migration/setup_providers.py"],
        [
            "data_migration/populate_instrument_mappings.py",
            *("--instruments", listing, "--dhan-scrip-master", SCRIP_MASTER),
        ],
    ):
        code, output, errors = await run_script(*script, environment=environment)
        assert code == 0, output + errors
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(_ONE_PROVIDER_EACH)
    finally:
        await connection.close()
