"""Turns the texts of one row of Dhan's instrument master into an instrument under our names. Pure.

Source: DhanHQ v2 instruments documentation; rows of the files as published.
"""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from typing import NamedTuple

import msgspec

from data_migration.sources.contract_symbols import Contract, contract_symbol, underlying_key

SHARE_SERIES: dict[str, tuple[str, ...]] = {
    # Main board, trade to trade, small companies, then units of REITs and InvITs.
    "NSE": ("EQ", "BE", "BZ", "SM", "ST", "SZ", "RR", "IV"),
    # Groups of the main board, surveillance, small companies, ETFs, units of REITs and InvITs.
    "BSE": ("A", "B", "X", "T", "XT", "Z", "ZP", "M", "MT", "MS", "E", "IF"),
}
"""The series that are shares or ETFs, the preferred one first.

Rows marked `EQUITY` are bonds as well, some of them typed as shares and under a share's symbol: the
series alone tells them apart.
"""

_SEGMENTS: dict[tuple[str, str], tuple[str, str]] = {
    ("NSE", "E"): ("NSE_EQ", "NSE"),
    ("BSE", "E"): ("BSE_EQ", "BSE"),
    ("NSE", "I"): ("IDX_I", "NSE"),
    ("BSE", "I"): ("IDX_I", "BSE"),
    ("NSE", "D"): ("NSE_FNO", "NFO"),
    ("BSE", "D"): ("BSE_FNO", "BFO"),
    ("NSE", "C"): ("NSE_CURRENCY", "CDS"),
    ("MCX", "M"): ("MCX_COMM", "MCX"),
}
_LEFT_OUT_SEGMENTS = {
    ("NSE", "M"): "NSE commodities, which have no feed segment",
    ("BSE", "C"): "BSE currency, which has no exchange code",
}
_FUTURES = frozenset({"FUTIDX", "FUTSTK", "FUTCOM", "FUTCUR"})
_OPTIONS = frozenset({"OPTIDX", "OPTSTK", "OPTFUT", "OPTCUR"})

_SYMBOL = re.compile(r"[A-Z0-9][A-Z0-9.&_-]{0,63}")
_ISIN = re.compile(r"[A-Z]{2}[A-Z0-9]{9}[0-9]")
_EXPIRY = re.compile(r"(\d{4}-\d{2}-\d{2})(?:[ T]\d{2}:\d{2}(?::\d{2})?)?")
# NIFTY-Oct2024-FUT, CRUDEOIL-19Oct2026-FUT, BAJAJ-AUTO-Dec2026-9000-PE
_TRADING_SYMBOL = re.compile(r"(.+)-\d{0,2}[A-Za-z]{3}\d{2,4}-(?:FUT|\d+(?:\.\d+)?-(?:CE|PE))")
_NO_DATE = ("", "0001-01-01")
_PAISE_IN_A_RUPEE = 100


class RawRow(NamedTuple):
    """The texts of one row, whichever form of the file they come from; blank and `NA` are empty."""

    exchange: str
    segment: str
    security_id: str
    instrument: str
    symbol: str
    trading_symbol: str
    name: str
    lot: str
    expiry: str
    strike: str
    option_type: str
    tick: str
    type: str
    series: str
    isin: str = ""


class ScripRow(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One instrument of the master under our names.

    `segment` and `security_id` together are Dhan's key: an id alone means different instruments in
    different segments. `tick_size` is in the currency of the price, None for indices. `search_code` is
    `RELIANCE-EQ` for shares, the index's own name for indices, and our contract symbol for contracts:
    Dhan's own repeats itself over the weekly expiries of a month.
    """

    line: int
    exchange: str
    symbol: str
    segment: str
    security_id: str
    search_code: str
    trading_symbol: str
    name: str
    asset_class: str
    series: str = ""
    tick_size: Decimal | None = None
    lot_size: int | None = None
    underlying: str | None = None
    expiry: date | None = None
    strike: Decimal | None = None
    option_type: str | None = None
    isin: str | None = None


class RowIsOdd(ValueError):
    """The row cannot be understood; `reason` is one of a few stable texts, `detail` what it says."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class RowIsNotOurs(Exception):
    """The row is understood and left out; the text says why."""


def scrip_row(raw: RawRow, line: int) -> ScripRow:
    """Return the instrument of a row. Raises `RowIsOdd` or `RowIsNotOurs`."""
    market = (raw.exchange, raw.segment)
    if market not in _SEGMENTS:
        if market in _LEFT_OUT_SEGMENTS:
            raise RowIsNotOurs(_LEFT_OUT_SEGMENTS[market])
        raise RowIsOdd("unknown exchange and segment", f"{raw.exchange}/{raw.segment}")
    segment, exchange = _SEGMENTS[market]
    security_id = raw.security_id.removesuffix(".0")
    if not (security_id.isascii() and security_id.isdigit()):
        raise RowIsOdd("security id is not a number", raw.security_id)
    if raw.segment == "E":
        return _share(raw, line, segment, exchange, security_id)
    if raw.segment == "I":
        return _index(raw, line, exchange, security_id)
    return _contract(raw, line, segment, exchange, security_id)


def _share(raw: RawRow, line: int, segment: str, exchange: str, security_id: str) -> ScripRow:
    if raw.instrument != "EQUITY":
        raise RowIsNotOurs(f"instrument type {raw.instrument or 'blank'} in {segment}")
    if raw.series not in SHARE_SERIES[exchange]:
        raise RowIsNotOurs(f"{exchange} series other than shares and ETFs")
    symbol = _symbol(raw.symbol)
    return ScripRow(
        line=line,
        exchange=exchange,
        symbol=symbol,
        segment=segment,
        security_id=security_id,
        search_code=f"{symbol}-{raw.series}",
        trading_symbol=raw.symbol,
        name=raw.name or symbol,
        asset_class="etf" if raw.type == "ETF" else "equity",
        series=raw.series,
        tick_size=_tick(raw.tick),
        lot_size=_lot(raw.lot),
        isin=raw.isin if _ISIN.fullmatch(raw.isin) else None,
    )


def _index(raw: RawRow, line: int, exchange: str, security_id: str) -> ScripRow:
    if raw.instrument != "INDEX":
        raise RowIsNotOurs(f"instrument type {raw.instrument or 'blank'} in IDX_I")
    name = raw.symbol or raw.trading_symbol
    symbol = _symbol("".join(name.split()))
    # Tick and lot of index rows say nothing: an index is not traded.
    return ScripRow(
        line=line,
        exchange=exchange,
        symbol=symbol,
        segment="IDX_I",
        security_id=security_id,
        search_code=name,
        trading_symbol=name,
        name=raw.name or name,
        asset_class="index",
    )


def _contract(raw: RawRow, line: int, segment: str, exchange: str, security_id: str) -> ScripRow:
    is_option = raw.instrument in _OPTIONS
    if not is_option and raw.instrument not in _FUTURES:
        raise RowIsNotOurs(f"instrument type {raw.instrument or 'blank'} in {segment}")
    expiry = _expiry(raw.expiry)
    if expiry is None:
        raise RowIsOdd("contract without an expiry", raw.trading_symbol)
    strike = None
    if is_option:
        strike = _number(raw.strike, "strike")
        if strike is None:
            raise RowIsOdd("option without a strike", raw.trading_symbol)
        if raw.option_type not in ("CE", "PE"):
            raise RowIsOdd("option that is neither CE nor PE", raw.option_type)
    contract = Contract(_underlying(raw), expiry, strike, raw.option_type if is_option else None)
    symbol = _symbol(contract_symbol(contract))
    return ScripRow(
        line=line,
        exchange=exchange,
        symbol=symbol,
        segment=segment,
        security_id=security_id,
        search_code=symbol,
        trading_symbol=raw.trading_symbol,
        name=raw.name or symbol,
        asset_class="option" if is_option else "future",
        tick_size=_tick(raw.tick),
        lot_size=_lot(raw.lot),
        underlying=underlying_key(exchange, contract.underlying),
        expiry=expiry,
        strike=strike,
        option_type=contract.option_type,
    )


def _underlying(raw: RawRow) -> str:
    """Return the underlying's symbol; its id in the file is not the one the feed uses."""
    match = _TRADING_SYMBOL.fullmatch(raw.trading_symbol)
    # In the compact form both columns are the trading symbol.
    text = raw.symbol if raw.symbol and raw.symbol != raw.trading_symbol else match[1] if match else ""
    if not text:
        raise RowIsOdd("contract without an underlying", raw.trading_symbol)
    return _symbol("".join(text.split()))


def _symbol(text: str) -> str:
    symbol = text.upper()
    if not _SYMBOL.fullmatch(symbol):
        raise RowIsOdd("symbol does not fit an instrument key", text or "blank")
    return symbol


@lru_cache(maxsize=4096)
def _expiry(text: str) -> date | None:
    match = _EXPIRY.fullmatch(text)
    day = match[1] if match else text
    if day in _NO_DATE:
        return None
    try:
        return date.fromisoformat(day)
    except ValueError:
        raise RowIsOdd("expiry is not a date", text) from None


@lru_cache(maxsize=65_536)
def _number(text: str, what: str) -> Decimal | None:
    """Return a positive number; None for blank, zero and the -0.01 that stands for nothing."""
    if not text:
        return None
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise RowIsOdd(f"{what} is not a number", text) from None
    if not number.is_finite():
        raise RowIsOdd(f"{what} is not a number", text)
    return number if number > 0 else None


def _tick(text: str) -> Decimal | None:
    """Return the tick in rupees; the file has it in paise."""
    number = _number(text, "tick size")
    return None if number is None else number / _PAISE_IN_A_RUPEE


def _lot(text: str) -> int | None:
    """Return the lot size, which the file writes as `75.0`."""
    number = _number(text, "lot size")
    if number is None:
        return None
    if number != number.to_integral_value() or number >= 2**31:
        raise RowIsOdd("lot size is not a whole number", text)
    return int(number)
