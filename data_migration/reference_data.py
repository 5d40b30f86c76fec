"""What marketd ships about providers and exchanges: who there is, where, and who serves what.

Written into the tables by `setup_providers.py`; the operator's own changes there win from then on.
"""

from __future__ import annotations

from decimal import Decimal
from typing import NamedTuple

PRIMARY_PRIORITY = 10
SECONDARY_PRIORITY = 20


class ShippedProvider(NamedTuple):
    """A row of `providers`; `rate_limit` is in REST requests per second."""

    code: str
    name: str
    rate_limit: Decimal | None


class ShippedExchange(NamedTuple):
    """A row of `exchanges`; `calendar` is a name of exchange_calendars."""

    code: str
    name: str
    timezone: str
    calendar: str | None
    country: str | None
    currency: str | None


class ShippedRoute(NamedTuple):
    """A row of `exchange_provider_mappings`; `delivery` None is what the provider promises."""

    exchange: str
    provider: str
    is_primary: bool
    priority: int
    delivery: str | None = None
    allow_delayed: bool = False


PROVIDERS = (
    # Yahoo publishes no limit; one a second is the careful end of what its users report.
    ShippedProvider("YF", "Yahoo Finance", Decimal(1)),
    # Source: DhanHQ v2 rate limits, data APIs.
    ShippedProvider("DHAN", "DhanHQ", Decimal(5)),
)

_INDIA, _NEW_YORK = "Asia/Kolkata", "America/New_York"
EXCHANGES = (
    ShippedExchange("NASDAQ", "Nasdaq", _NEW_YORK, "XNYS", "US", "USD"),
    ShippedExchange("NYSE", "New York Stock Exchange", _NEW_YORK, "XNYS", "US", "USD"),
    ShippedExchange("ARCA", "NYSE Arca", _NEW_YORK, "XNYS", "US", "USD"),
    ShippedExchange("NSE", "National Stock Exchange of India", _INDIA, "XBOM", "IN", "INR"),
    ShippedExchange("BSE", "BSE Limited", _INDIA, "XBOM", "IN", "INR"),
    ShippedExchange("NFO", "NSE futures and options", _INDIA, "XBOM", "IN", "INR"),
    ShippedExchange("BFO", "BSE futures and options", _INDIA, "XBOM", "IN", "INR"),
    # exchange_calendars has neither MCX nor the hours of NSE's currency segment.
    ShippedExchange("MCX", "Multi Commodity Exchange of India", _INDIA, None, "IN", "INR"),
    ShippedExchange("CDS", "NSE currency derivatives", _INDIA, None, "IN", "INR"),
    ShippedExchange("CRYPTO", "Crypto currencies", "UTC", "24/7", None, None),
    ShippedExchange("FX", "Foreign exchange", "UTC", "24/5", None, None),
    ShippedExchange("INDEX", "Indices of the United States", _NEW_YORK, "XNYS", "US", "USD"),
)

_DHAN_EXCHANGES = ("NSE", "BSE", "NFO", "BFO", "MCX", "CDS")
_YAHOO_EXCHANGES = ("NASDAQ", "NYSE", "ARCA", "CRYPTO", "FX", "INDEX")
_YAHOO_BESIDE_DHAN = ("NSE", "BSE")
ROUTES = (
    *(ShippedRoute(exchange, "DHAN", True, PRIMARY_PRIORITY) for exchange in _DHAN_EXCHANGES),
    # Yahoo promises no real-time prices of India: it may stand in, and its ticks are marked `delayed`.
    *(
        ShippedRoute(exchange, "YF", False, SECONDARY_PRIORITY, "delayed", True)
        for exchange in _YAHOO_BESIDE_DHAN
    ),
    *(ShippedRoute(exchange, "YF", True, PRIMARY_PRIORITY, "real_time") for exchange in _YAHOO_EXCHANGES),
)
