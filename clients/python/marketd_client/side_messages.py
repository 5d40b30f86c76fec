"""Messages of the channels `quote trade depth options news` as updates. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from marketd_client.updates import (
    Level2Update,
    NewsUpdate,
    OptionChainUpdate,
    OptionLeg,
    QuoteUpdate,
    TradeUpdate,
)

Update = TradeUpdate | QuoteUpdate | Level2Update | OptionChainUpdate | NewsUpdate


def quote(instrument: str, data: Mapping[str, Any]) -> QuoteUpdate:
    """Return the quote in one value of a `quote` message."""
    return QuoteUpdate(
        instrument,
        data["ts_ms"] * 1000,
        data.get("bid"),
        data.get("ask"),
        data.get("src", ""),
        tuple(data.get("flags") or ()),
        data.get("bid_size"),
        data.get("ask_size"),
    )


def trade(instrument: str, data: Mapping[str, Any]) -> TradeUpdate:
    """Return the trade in one value of a `trade` message."""
    flags = tuple(data.get("flags") or ())
    return TradeUpdate(
        instrument, data["ts_ms"] * 1000, data["price"], data["quantity"], data.get("src", ""), flags
    )


def book(instrument: str, data: Mapping[str, Any]) -> Level2Update:
    """Return the order book in one value of a `depth` message."""
    return Level2Update(
        instrument,
        data["ts_ms"] * 1000,
        tuple((price, quantity, orders) for price, quantity, orders in data["bids"]),
        tuple((price, quantity, orders) for price, quantity, orders in data["asks"]),
        data["levels"],
        data.get("src", ""),
        tuple(data.get("flags") or ()),
        data.get("received_ms"),
        data.get("entry"),
    )


def chain(message: Mapping[str, Any]) -> OptionChainUpdate:
    """Return the chain in an `options` message."""
    return OptionChainUpdate(
        message["instrumentKey"],
        message["timestamp"] * 1000,
        message["expiry"],
        message["expiry_date"],
        message["is_next"],
        tuple(map(_leg, message["symbols"])),
        message.get("underlying_price"),
        message.get("forward"),
        message.get("atm_strike"),
        message.get("pcr"),
        message.get("max_pain"),
        message.get("completeness", 0.0),
        message.get("source", ""),
        message.get("received_ms"),
        message.get("entry"),
    )


def article(item: Mapping[str, Any]) -> NewsUpdate:
    """Return the article in a `news` message, or in an answer of `/api/news`."""
    return NewsUpdate(
        id=item["id"],
        event_us=item["ts_ms"] * 1000,
        headline=item["headline"],
        publisher=item["publisher"],
        url=item["url"],
        instruments=tuple(item["instruments"]),
        symbols=tuple(item["symbols"]),
        src=item["src"],
        received_ms=item["received_ms"],
    )


def updates_of(kind: str, message: Mapping[str, Any]) -> list[Update] | None:
    """Return the updates in a message of one of these channels, None for one of another type."""
    by_instrument = _BY_INSTRUMENT.get(kind)
    if by_instrument is not None:
        return [by_instrument(key, data) for key, data in message["data"].items()]
    if kind == "options":
        return [chain(message)]
    if kind == "news":
        return [article(message["article"])]
    return None


def _leg(leg: Mapping[str, Any]) -> OptionLeg:
    symbol, strike, side, _spot, last, volume, oi, change, _expiry, *greeks = leg["f"]
    told = (leg.get(name) for name in ("bid", "ask", "bid_size", "ask_size", "greeks_by"))
    return OptionLeg(symbol, strike, side, last, volume, oi, change, *greeks, *told)


_BY_INSTRUMENT: dict[str, Callable[[str, Mapping[str, Any]], Update]] = {
    "quote": quote,
    "trade": trade,
    "depth": book,
}
