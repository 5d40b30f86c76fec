"""What the manager needs to know of a source of option chains, and of the underlying it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple
from zoneinfo import ZoneInfo

from services.market_data.instruments import AssetClass, InstrumentMapping
from services.on_demand_provider import OptionsDataProvider
from services.wire.option_fields import INDIA, NEW_YORK

Settings = Callable[[], Mapping[str, str]]
PATIENCE_S = 10.0
"""So long a request waits for its turn; then the next source is asked."""
LEFT_FOR_HISTORY = 0.1
"""The part of a vendor's requests of the day that chains leave for the past that somebody looks at."""

DERIVATIVES_OF = {"NSE": "NFO", "BSE": "BFO", "MCX": "MCX"}
"""Where the contracts on instruments of an exchange are listed."""


class Underlying(NamedTuple):
    """An instrument that options are written on, with how each provider knows it, by code."""

    key: str
    exchange: str
    symbol: str
    asset_class: AssetClass
    currency: str
    mappings: Mapping[str, InstrumentMapping]

    @property
    def zone(self) -> ZoneInfo:
        """Where its contracts expire."""
        return INDIA if self.exchange in DERIVATIVES_OF else NEW_YORK


class OptionSource(NamedTuple):
    """A provider of option chains with its place in the order.

    `symbol_of(underlying)` is what the provider is given, None when it has no options of it. An answer is as
    good as a new one for `fresh_s` seconds: asking more often brings nothing, or is not allowed.
    """

    code: str
    provider: OptionsDataProvider
    symbol_of: Callable[[Underlying], str | None]
    fresh_s: float
