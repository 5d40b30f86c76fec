"""What a provider answers when asked: past bars, option chains, open interest.

Part of the provider contract beside the stream of `BaseMarketDataProvider`; a provider implements
whichever it has. Everything is asynchronous; a blocking library runs in a thread of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import msgspec

from services.wire.option_records import ChainAnswer, OptionQuote, OptionSide

__all__ = [
    "Candle",
    "HistoricalDataProvider",
    "OpenInterest",
    "OptionChain",
    "OptionQuote",
    "OptionRow",
    "OptionSide",
    "OptionsDataProvider",
    "chain_of",
]

Candle = tuple[int, float, float, float, float, int | None]
"""`(start, open, high, low, close, volume)`; start in UTC epoch **seconds**, volume None where unknown."""


class OptionRow(msgspec.Struct, frozen=True):
    """One leg of an option chain, as the fields of `f` in this order.

    Symbol, strike (text), side, spot, last price, volume, open interest, its change, expiry (UTC epoch
    **seconds**), delta, gamma, theta, vega, implied volatility, in the units of `OptionQuote`.
    None where unknown.
    """

    f: tuple[
        str,
        str,
        OptionSide,
        float | None,
        float | None,
        int | None,
        int | None,
        int | None,
        int,
        float | None,
        float | None,
        float | None,
        float | None,
        float | None,
    ]


class OptionChain(msgspec.Struct, frozen=True):
    """All legs of one underlying and expiry. `timestamp` is in UTC epoch ms.

    `quotes` are the same legs with everything the provider said (bid, ask, ...), in the order of
    `symbols`; empty where it said nothing beyond the rows.
    """

    timestamp: int
    underlying_price: float | None
    symbols: tuple[OptionRow, ...]
    quotes: tuple[OptionQuote, ...] = ()


def chain_of(answer: ChainAnswer) -> OptionChain:
    """Return a vendor's answer as a chain, ordered by strike, calls before puts."""
    ordered = tuple(sorted(answer.quotes, key=lambda quote: (float(quote.strike), quote.side)))
    rows = tuple(
        OptionRow(
            (
                quote.contract or "",
                quote.strike,
                quote.side,
                answer.underlying_price,
                quote.last_price,
                quote.volume,
                quote.oi,
                quote.oi_change,
                answer.expiry,
                quote.delta,
                quote.gamma,
                quote.theta,
                quote.vega,
                quote.iv,
            )
        )
        for quote in ordered
    )
    return OptionChain(answer.timestamp, answer.underlying_price, rows, ordered)


class OpenInterest(msgspec.Struct, frozen=True):
    """Open interest at one strike, in contracts; None where unknown."""

    strike: str
    call_oi: int | None
    put_oi: int | None


class OptionsDataProvider(ABC):
    """A source of option chains. Symbols are the underlying's at the provider, expiries UTC epoch seconds."""

    @abstractmethod
    async def get_option_chain(self, symbol: str, expiry: int) -> OptionChain:
        """Return every leg of `symbol` at `expiry`. Raises a `ProviderError`."""

    @abstractmethod
    async def get_oi_data(self, symbol: str, expiry: int, time_s: int | None = None) -> list[OpenInterest]:
        """Return open interest by strike, now or as of `time_s` (UTC epoch s). Raises a `ProviderError`."""

    @abstractmethod
    async def get_expiry_dates(self, symbol: str) -> list[int]:
        """Return the expiries of `symbol` that can be asked for, ascending. Raises a `ProviderError`."""


class HistoricalDataProvider(ABC):
    """A source of past bars."""

    @abstractmethod
    async def get_hist_candles(self, symbol: str, interval: str, count: int) -> list[Candle]:
        """Return the newest `count` bars of `symbol`, oldest first.

        `interval` is one of `1m 5m 15m 1h 1d`. Prices are as traded, not adjusted. Raises a
        `ProviderError`, `ValueError` for an interval the provider has not.
        """
