"""How futures and options are named in instrument keys. Pure.

NIFTY-2026-12-31-FUT            a future: underlying, last trading day
NIFTY-2026-12-31-25000-CE       a call (PE: a put) with its strike, written without trailing zeros
"""

from __future__ import annotations

import re
from datetime import date
from decimal import Decimal
from typing import NamedTuple

_CONTRACT = re.compile(
    r"(?P<underlying>.+)-(?P<expiry>\d{4}-\d{2}-\d{2})-(?:FUT|(?P<strike>\d+(?:\.\d+)?)-(?P<option_type>CE|PE))"
)

UNDERLYING_EXCHANGE = {"NFO": "NSE", "BFO": "BSE", "CDS": "FX", "MCX": "MCX"}
"""Where the underlying of a contract of each derivatives exchange is found; a pair of CDS is one of FX."""


class Contract(NamedTuple):
    """The terms of one contract; `strike` and `option_type` are None for a future."""

    underlying: str
    expiry: date
    strike: Decimal | None = None
    option_type: str | None = None


def plain_number(number: Decimal) -> str:
    """Return a number as people write it: no exponent, no trailing zeros."""
    text = format(number, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def contract_symbol(contract: Contract) -> str:
    """Return the symbol of a contract, the part of its key behind the colon."""
    head = f"{contract.underlying}-{contract.expiry.isoformat()}"
    if contract.strike is None:
        return f"{head}-FUT"
    return f"{head}-{plain_number(contract.strike)}-{contract.option_type}"


def parse_contract_symbol(symbol: str) -> Contract | None:
    """Return the terms written in a symbol, None when it is not one of a future or option."""
    match = _CONTRACT.fullmatch(symbol)
    if match is None:
        return None
    try:
        expiry = date.fromisoformat(match["expiry"])
    except ValueError:
        return None
    strike = Decimal(match["strike"]) if match["strike"] else None
    return Contract(match["underlying"], expiry, strike, match["option_type"])


def underlying_key(exchange: str, underlying: str) -> str:
    """Return the instrument key of the underlying of a contract on `exchange`."""
    return f"{UNDERLYING_EXCHANGE.get(exchange, exchange)}:{underlying}"
