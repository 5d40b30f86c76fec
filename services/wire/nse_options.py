"""The option chain of NSE's website: expiry list and chain, and what its empty answers mean. Pure.

There is no official interface; these are the JSON calls of www.nseindia.com as they have been since the end
of 2025 (`/api/option-chain-contract-info`, `/api/option-chain-v3`). Source: answers recorded by several
clients in 2026. Implied volatility is in percent, 0 when unknown; no greeks; times are Indian wall time.
Stale cookies are answered with 200 and `{}`, an unknown expiry with 200 and no rows: neither is a success.
"""

from __future__ import annotations

from datetime import date
from typing import Any

import msgspec

from services.errors import WireFormatError
from services.wire.option_fields import (
    INDIA,
    INDIAN_EXPIRY,
    day_of,
    expiry_moment_s,
    indian_wall_time_ms,
    positive,
    strike_text,
    whole,
)
from services.wire.option_records import ChainAnswer, OptionQuote, OptionSide

WARM_UP_PATHS = ("/", "/option-chain")
CONTRACT_INFO_PATH = "/api/option-chain-contract-info"
CHAIN_PATH = "/api/option-chain-v3"
_SIDES: tuple[tuple[str, OptionSide], ...] = (("CE", "call"), ("PE", "put"))


class StaleSession(WireFormatError):
    """The answer is `{}`: the cookies are too old."""


def contract_info_query(symbol: str) -> dict[str, str]:
    """Return the query that asks for the expiries of a symbol."""
    return {"symbol": symbol}


def chain_query(symbol: str, expiry: date, *, is_index: bool) -> dict[str, str]:
    """Return the query that asks for one chain."""
    return {"type": "Indices" if is_index else "Equity", "symbol": symbol, "expiry": _day_text(expiry)}


def parse_expiries(body: bytes) -> list[date]:
    """Return the expiries, ascending. Raises `StaleSession` for `{}`, `WireFormatError` for anything else."""
    found = _object(body).get("expiryDates")
    if not isinstance(found, list):
        raise WireFormatError("no_expiry_list", frame=body)
    days = [day_of(text, "%d-%b-%Y") for text in found]
    if None in days:
        raise WireFormatError("bad_expiry", frame=body)
    return sorted(day for day in days if day is not None)


def parse_chain(body: bytes, *, expiry: date, received_ms: int) -> ChainAnswer:
    """Return the legs of `expiry`; rows of other expiries are left out.

    Raises `StaleSession` for `{}` and `WireFormatError` for what is no chain. No rows give a chain without
    legs: that is how an unknown expiry is answered.
    """
    records = _object(body).get("records")
    rows = records.get("data") if isinstance(records, dict) else None
    if not isinstance(records, dict) or not isinstance(rows, list):
        raise WireFormatError("no_chain", frame=body)
    quotes = []
    for row in rows:
        if not isinstance(row, dict) or not _is_of(row, expiry):
            continue
        for name, side in _SIDES:
            leg = row.get(name)
            # A contract that does not exist is written as zeros without an identifier.
            if isinstance(leg, dict) and leg.get("identifier"):
                quotes.append(_quote(side, strike_text(row.get("strikePrice")), leg))
    return ChainAnswer(
        quotes=tuple(quotes),
        timestamp=indian_wall_time_ms(records.get("timestamp")) or received_ms,
        underlying_price=positive(records.get("underlyingValue")),
        expiry=expiry_moment_s(expiry, INDIA, INDIAN_EXPIRY),
    )


def _object(body: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise WireFormatError("not_json", frame=body) from error
    if not isinstance(found, dict):
        raise WireFormatError("not_an_object", frame=body)
    if not found:
        raise StaleSession("stale_session", "an empty object: the cookies are too old", body)
    return found


def _is_of(row: dict[str, Any], expiry: date) -> bool:
    # The plural holds one date; the older shape has the singular.
    text = row.get("expiryDates", row.get("expiryDate"))
    return day_of(text, "%d-%b-%Y", "%d-%m-%Y") == expiry


def _quote(side: OptionSide, strike: str, leg: dict[str, Any]) -> OptionQuote:
    return OptionQuote(
        side=side,
        strike=strike,
        contract=str(leg["identifier"]),
        last_price=positive(leg.get("lastPrice")),
        bid=positive(leg.get("buyPrice1", leg.get("bidprice"))),
        bid_size=whole(leg.get("buyQuantity1", leg.get("bidQty"))),
        ask=positive(leg.get("sellPrice1", leg.get("askPrice"))),
        ask_size=whole(leg.get("sellQuantity1", leg.get("askQty"))),
        volume=whole(leg.get("totalTradedVolume")),
        oi=whole(leg.get("openInterest")),
        oi_change=whole(leg.get("changeinOpenInterest")),
        iv=positive(leg.get("impliedVolatility")),
    )


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _day_text(day: date) -> str:
    return f"{day.day:02}-{_MONTHS[day.month - 1]}-{day.year}"
