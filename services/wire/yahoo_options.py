"""Yahoo Finance's option chain (`/v7/finance/options/{symbol}`). Pure.

Source: yfinance 1.7.0 (`Ticker.option_chain`) and the answers it reads. Expiries are midnight UTC of the day,
implied volatility is a fraction, there are no greeks and no Indian options.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Any

import msgspec

from services.errors import WireFormatError
from services.wire.option_fields import (
    AMERICAN_EXPIRY,
    NEW_YORK,
    expiry_moment_s,
    positive,
    strike_text,
    whole,
)
from services.wire.option_records import ChainAnswer, OptionQuote, OptionSide

_NO_VOLATILITY = 1e-4
"""Yahoo writes 0.00001 where it could not work one out."""
_SIDES: tuple[tuple[str, OptionSide], ...] = (("calls", "call"), ("puts", "put"))


def options_path(symbol: str) -> str:
    """Return the path for a symbol that is already quoted for a URL."""
    return f"/v7/finance/options/{symbol}"


def expiry_query(expiry: date) -> str:
    """Return the value of `date` that asks for one expiry."""
    return str(int(datetime(expiry.year, expiry.month, expiry.day, tzinfo=UTC).timestamp()))


def parse_expiries(body: bytes) -> list[date]:
    """Return the expiries, ascending. Raises `WireFormatError` when the answer is none."""
    found = _result(body).get("expirationDates")
    if not isinstance(found, list) or not all(isinstance(item, int) for item in found):
        raise WireFormatError("no_expiry_list", frame=body)
    return sorted(datetime.fromtimestamp(item, UTC).date() for item in found)


def parse_chain(body: bytes, *, expiry: date, received_ms: int) -> ChainAnswer:
    """Return the legs of `expiry`. Raises `WireFormatError` when the answer is no chain or of another day."""
    result = _result(body)
    quote = result.get("quote")
    quote = quote if isinstance(quote, dict) else {}
    chains = result.get("options")
    if not isinstance(chains, list):
        raise WireFormatError("no_chain", frame=body)
    quotes: list[OptionQuote] = []
    for chain in chains:
        day_s = chain.get("expirationDate") if isinstance(chain, dict) else None
        if not isinstance(day_s, int) or datetime.fromtimestamp(day_s, UTC).date() != expiry:
            raise WireFormatError("wrong_expiry", f"asked for {expiry}, got {day_s}", body)
        for name, side in _SIDES:
            quotes += [_quote(side, leg) for leg in chain.get(name) or () if isinstance(leg, dict)]
    price_s = whole(quote.get("regularMarketTime"))
    return ChainAnswer(
        quotes=tuple(quotes),
        timestamp=received_ms if price_s is None else price_s * 1000,
        underlying_price=positive(quote.get("regularMarketPrice")),
        expiry=expiry_moment_s(expiry, NEW_YORK, AMERICAN_EXPIRY),
    )


def _result(body: bytes) -> dict[str, Any]:
    try:
        answer = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise WireFormatError("not_json", frame=body) from error
    chain = answer.get("optionChain") if isinstance(answer, dict) else None
    if not isinstance(chain, dict):
        raise WireFormatError("no_chain", frame=body)
    if isinstance(chain.get("error"), dict):
        raise WireFormatError("refused", str(chain["error"].get("description"))[:120], body)
    results = chain.get("result")
    if not isinstance(results, list) or not results or not isinstance(results[0], dict):
        raise WireFormatError("no_chain", "Yahoo has no options of this symbol", body)
    return results[0]


def _quote(side: OptionSide, leg: dict[str, Any]) -> OptionQuote:
    iv = positive(leg.get("impliedVolatility"))
    traded_s = whole(leg.get("lastTradeDate"))
    contract = leg.get("contractSymbol")
    return OptionQuote(
        side=side,
        strike=strike_text(leg.get("strike")),
        contract=None if contract is None else str(contract),
        last_price=positive(leg.get("lastPrice")),
        bid=positive(leg.get("bid")),
        ask=positive(leg.get("ask")),
        volume=whole(leg.get("volume")),
        oi=whole(leg.get("openInterest")),
        iv=None if iv is None or iv < _NO_VOLATILITY else iv * 100,
        event_ms=None if traded_s is None else traded_s * 1000,
    )
