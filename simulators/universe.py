"""The simulated instruments, read from `data/`: base prices, and the names each vendor uses for them.

Pure look-ups on shipped files; knows no wire. The price list is made up (see the README beside it).
"""

from __future__ import annotations

import csv
import zlib
from functools import cache
from pathlib import Path

import msgspec

from simulators.market import InstrumentSpec, Kind

DATA = Path(__file__).resolve().parent / "data"
SCRIP_MASTER = DATA / "dhan-scrip-master.csv"
SCRIP_MASTER_DETAILED = DATA / "dhan-scrip-master-detailed.csv"
_PRICES = DATA / "prices.csv"

_SEGMENTS = {
    ("NSE", "E"): "NSE_EQ",
    ("NSE", "D"): "NSE_FNO",
    ("NSE", "C"): "NSE_CURRENCY",
    ("NSE", "I"): "IDX_I",
    ("BSE", "I"): "IDX_I",
    ("BSE", "E"): "BSE_EQ",
    ("BSE", "D"): "BSE_FNO",
    ("BSE", "C"): "BSE_CURRENCY",
    ("MCX", "M"): "MCX_COMM",
}
"""Exchange and segment letter of the scrip master to the feed's segment. Source: DhanHQ v2 annexure."""
_UNDERLYING_EXCHANGE = {"NSE_FNO": "NSE", "BSE_FNO": "BSE", "MCX_COMM": "MCX"}


class PriceRow(msgspec.Struct, frozen=True):
    """One row of the price list."""

    spec: InstrumentSpec
    yahoo_symbol: str
    yahoo_exchange: str
    currency: str


@cache
def price_list() -> dict[str, PriceRow]:
    """Return the price list by name."""
    rows: dict[str, PriceRow] = {}
    with _PRICES.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            spec = InstrumentSpec(
                name=row["name"],
                kind=Kind(row["kind"]),
                price=row["price"],
                tick=row["tick"],
                day_volume=int(row["day_volume"]),
                lot=int(row["lot"]),
                oi=int(row["oi"]),
                rolling_volume=int(row["rolling_volume"]),
            )
            rows[spec.name] = PriceRow(spec, row["yahoo_symbol"], row["yahoo_exchange"], row["currency"])
    return rows


@cache
def yahoo_rows() -> dict[str, PriceRow]:
    """Return the rows that Yahoo lists, by Yahoo symbol."""
    return {row.yahoo_symbol: row for row in price_list().values() if row.yahoo_symbol}


@cache
def dhan_specs() -> dict[str, InstrumentSpec]:
    """Return what the shipped scrip master lists, by `SEGMENT:SECURITY_ID`, each with a price."""
    specs: dict[str, InstrumentSpec] = {}
    with SCRIP_MASTER.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            segment = _SEGMENTS.get((row["SEM_EXM_EXCH_ID"], row["SEM_SEGMENT"]))
            if segment is not None:
                specs[f"{segment}:{row['SEM_SMST_SECURITY_ID']}"] = _dhan_spec(segment, row)
    return specs


def _dhan_spec(segment: str, row: dict[str, str]) -> InstrumentSpec:
    name = f"{row['SEM_EXM_EXCH_ID']}:{row['SEM_TRADING_SYMBOL']}"
    listed = price_list().get(name)
    if listed is not None and row["SEM_SEGMENT"] in ("E", "I"):
        return listed.spec
    tick = f"{float(row['SEM_TICK_SIZE']) / 100:.4f}"
    if row["SEM_SEGMENT"] in ("E", "I"):
        return made_up_spec(name, tick=tick)
    underlying, *_ = row["SEM_TRADING_SYMBOL"].rsplit("-", 2 if _is_future(row) else 3)
    exchange = _UNDERLYING_EXCHANGE.get(segment, "CDS")
    base = price_list().get(f"{exchange}:{underlying}")
    spot = float(base.spec.price) if base is not None else 100.0
    price = spot * 1.004 if _is_future(row) else _option_price(spot, row)
    lot = int(float(row["SEM_LOT_UNITS"]))
    return InstrumentSpec(
        name=f"{segment}:{row['SEM_TRADING_SYMBOL']}",
        kind=Kind.FUTURE if _is_future(row) else Kind.OPTION,
        price=_on_grid(price, tick),
        tick=tick,
        day_volume=lot * 1_200,
        lot=lot,
        oi=lot * 8_000,
    )


def _is_future(row: dict[str, str]) -> bool:
    return row["SEM_INSTRUMENT_NAME"].startswith("FUT")


def _option_price(spot: float, row: dict[str, str]) -> float:
    strike = float(row["SEM_STRIKE_PRICE"])
    intrinsic = spot - strike if row["SEM_OPTION_TYPE"] == "CE" else strike - spot
    distance = abs(spot - strike) / spot
    return max(intrinsic, 0.0) + spot * 0.012 / (1.0 + 40.0 * distance)


def _on_grid(price: float, tick: str) -> str:
    step = float(tick)
    return f"{max(1, round(price / step)) * step:.4f}"


def made_up_spec(name: str, *, tick: str = "0.05", kind: Kind = Kind.EQUITY) -> InstrumentSpec:
    """Return an instrument for a name nobody listed; the price follows from the name."""
    ticks = 2_000 + zlib.crc32(name.encode()) % 60_000
    return InstrumentSpec(name=name, kind=kind, price=f"{ticks * float(tick):.4f}", tick=tick)
