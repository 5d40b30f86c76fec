"""Dhan's option chain and expiry list: request bodies and answers. Pure.

Source: DhanHQ v2 documentation of `/optionchain` and `/optionchain/expirylist`; the legs as they are in
its examples and in answers recorded by others. Implied volatility is in percent, theta for a day, vega for a
percentage point. A leg may be missing, and neither chain nor leg has a time.
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
    number,
    positive,
    strike_text,
    whole,
)
from services.wire.option_records import ChainAnswer, OptionQuote, OptionSide

CHAIN_PATH = "/optionchain"
EXPIRIES_PATH = "/optionchain/expirylist"
SECONDS_PER_REQUEST = 3.0
"""One unique request (underlying and expiry) in three seconds; different ones may go beside each other."""
_SIDES: tuple[tuple[str, OptionSide], ...] = (("ce", "call"), ("pe", "put"))


class _Answer(msgspec.Struct):
    data: Any = None
    status: str = ""


def underlying_body(security_id: str, segment: str) -> dict[str, Any]:
    """Return the body that names an underlying, as of segment `IDX_I` and security id `13`."""
    return {"UnderlyingScrip": int(security_id), "UnderlyingSeg": segment}


def chain_body(security_id: str, segment: str, expiry: date) -> dict[str, Any]:
    """Return the body that asks for one chain."""
    return underlying_body(security_id, segment) | {"Expiry": expiry.isoformat()}


def parse_expiries(body: bytes) -> list[date]:
    """Return the expiries, ascending. Raises `WireFormatError` when there is no list of dates."""
    data = _data(body)
    if not isinstance(data, list):
        raise WireFormatError("no_expiry_list", frame=body)
    days = [day_of(text, "%Y-%m-%d") for text in data]
    if None in days:
        raise WireFormatError("bad_expiry", frame=body)
    return sorted(day for day in days if day is not None)


def parse_chain(body: bytes, *, expiry: date, received_ms: int) -> ChainAnswer:
    """Return the chain; its time is when it was received, the vendor gives none.

    Raises `WireFormatError` when the answer is no chain. An empty `oc` is a chain without legs.
    """
    data = _data(body)
    strikes = data.get("oc") if isinstance(data, dict) else None
    if not isinstance(strikes, dict):
        raise WireFormatError("no_chain", frame=body)
    quotes = []
    for text, legs in strikes.items():
        strike = strike_text(text)
        for name, side in _SIDES:
            leg = legs.get(name) if isinstance(legs, dict) else None
            if isinstance(leg, dict) and leg:
                quotes.append(_quote(side, strike, leg))
    return ChainAnswer(
        quotes=tuple(quotes),
        timestamp=received_ms,
        underlying_price=positive(data.get("last_price")),
        expiry=expiry_moment_s(expiry, INDIA, INDIAN_EXPIRY),
    )


def _data(body: bytes) -> Any:
    try:
        answer = msgspec.json.decode(body, type=_Answer)
    except msgspec.DecodeError as error:
        raise WireFormatError("not_json", frame=body) from error
    if answer.status != "success":
        raise WireFormatError("not_successful", answer.status[:40], body)
    return answer.data


def _quote(side: OptionSide, strike: str, leg: dict[str, Any]) -> OptionQuote:
    greeks = leg.get("greeks")
    greeks = greeks if isinstance(greeks, dict) else {}
    iv = positive(leg.get("implied_volatility"))
    # Where the vendor has no volatility its greeks are zeros that mean nothing.
    known = iv is not None
    oi, before = whole(leg.get("oi")), whole(leg.get("previous_oi"))
    security_id = leg.get("security_id")
    return OptionQuote(
        side=side,
        strike=strike,
        contract=None if security_id is None else str(security_id),
        last_price=positive(leg.get("last_price")),
        bid=positive(leg.get("top_bid_price")),
        bid_size=whole(leg.get("top_bid_quantity")),
        ask=positive(leg.get("top_ask_price")),
        ask_size=whole(leg.get("top_ask_quantity")),
        volume=whole(leg.get("volume")),
        oi=oi,
        oi_change=None if oi is None or before is None else oi - before,
        iv=iv,
        delta=number(greeks.get("delta")) if known else None,
        gamma=number(greeks.get("gamma")) if known else None,
        theta=number(greeks.get("theta")) if known else None,
        vega=number(greeks.get("vega")) if known else None,
    )
