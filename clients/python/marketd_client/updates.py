"""What `DataSource` hands to callbacks. Event times are UTC epoch **microseconds**; None means unknown."""

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
