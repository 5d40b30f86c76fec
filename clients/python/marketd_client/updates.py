"""Trades, quotes, books, chains, bars and news: what `DataSource` hands to callbacks and `Client` yields.

Event times are UTC epoch **microseconds**; None means unknown.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TradeUpdate:
    """What was traded of an instrument since its previous tick: `quantity` in all, `price` the last one.

    Vendors send ticks, not single trades: one update may stand for several trades.
    """

    instrument: str
    event_us: int
    price: float
    quantity: int
    src: str = ""
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QuoteUpdate:
    """Best bid and ask of an instrument; comes when one of them is another than before."""

    instrument: str
    event_us: int
    bid: float | None
    ask: float | None
    src: str = ""
    flags: tuple[str, ...] = ()
    bid_size: int | None = None
    ask_size: int | None = None


Level = tuple[float, int, int]
"""Price, quantity, number of orders."""


@dataclass(frozen=True, slots=True)
class Level2Update:
    """A whole order book, best levels first; not a change of one.

    `flags` are among `crossed`, `stale`, `gap`, `one_sided`, `partial`, `received` (the event time is when it
    was received). `entry` is the id of its entry in `md:depth:EXCHANGE`.
    """

    instrument: str
    event_us: int
    bids: tuple[Level, ...]
    asks: tuple[Level, ...]
    levels: int
    src: str = ""
    flags: tuple[str, ...] = ()
    received_ms: int | None = None
    entry: str | None = None


@dataclass(frozen=True, slots=True)
class OptionLeg:
    """One leg of a chain; `iv` in percent, `greeks_by` is `vendor` or `computed`."""

    symbol: str
    strike: str
    side: str
    last_price: float | None
    volume: int | None
    oi: int | None
    oi_change: int | None
    delta: float | None
    gamma: float | None
    theta: float | None
    vega: float | None
    iv: float | None
    bid: float | None = None
    ask: float | None = None
    bid_size: int | None = None
    ask_size: int | None = None
    greeks_by: str | None = None


@dataclass(frozen=True, slots=True)
class OptionChainUpdate:
    """All legs of an underlying and expiry at one moment, from one source.

    `expiry` is in epoch seconds, `expiry_date` the day where the contracts are listed, `is_next` whether none
    of this underlying ends before. `entry` is the id of its entry in `md:options:{UNDERLYING}`.
    """

    instrument: str
    event_us: int
    expiry: int
    expiry_date: str
    is_next: bool
    legs: tuple[OptionLeg, ...]
    underlying_price: float | None = None
    forward: float | None = None
    atm_strike: str | None = None
    pcr: float | None = None
    max_pain: str | None = None
    completeness: float = 0.0
    src: str = ""
    received_ms: int | None = None
    entry: str | None = None


@dataclass(frozen=True, slots=True)
class BarUpdate:
    """One candle; `event_us` is its start. The last one of an interval may come again with newer values.

    `interval` is in minutes as text, or `1D`; `volume` is None where nobody knows it.
    """

    instrument: str
    event_us: int
    interval: str
    open: float
    high: float
    low: float
    close: float
    volume: float | None


@dataclass(frozen=True, slots=True)
class NewsUpdate:
    """One article; `event_us` is when it was published. `url` is None where there is no link.

    `instruments` are instrument keys, `symbols` the vendor's symbols that are mapped to none. An article that
    turns out to be about more instruments comes again with the same `id`.
    """

    id: str
    event_us: int
    headline: str
    publisher: str
    url: str | None
    instruments: tuple[str, ...]
    symbols: tuple[str, ...]
    src: str
    received_ms: int
