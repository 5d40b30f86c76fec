"""Trades, quotes and bars as records of their own, made from what the tick flow says. Pure.

Vendors send ticks: the last price, what was traded since the tick before, the best bid and ask. A *trade* is
a tick with a quantity, a *quote* a tick whose bid, ask or one of their sizes is another than before. Both are
made only where somebody wants them. Event times are UTC epoch **microseconds**; None is unknown, never zero.
"""

from __future__ import annotations

import msgspec

from services.market_data.bars import Bar, BarStatus, Interval
from services.market_data.records import FLAG_LATE, FLAG_SNAPSHOT, DataIngestionFormat


class TradeUpdate(msgspec.Struct, gc=False):
    """What was traded of an instrument since its tick before: `quantity` in all, `price` the last one.

    `symbol` is the instrument key; one update may stand for several trades. `flags` are those of the tick
    (`FLAG_...`), `position_ms` and `position_seq` its place in the exchange's stream.
    """

    symbol: str
    exchange: str
    provider_code: str
    timestamp: int
    received_ms: int
    price: float
    quantity: int
    flags: int = 0
    position_ms: int = 0
    position_seq: int = 0

    @property
    def position(self) -> str:
        """The place of its tick in the exchange's stream, `<ms>-<seq>`."""
        return f"{self.position_ms}-{self.position_seq}"


class QuoteUpdate(msgspec.Struct, gc=False):
    """Best bid and ask of an instrument with their sizes, in shares or contract units."""

    symbol: str
    exchange: str
    provider_code: str
    timestamp: int
    received_ms: int
    bid: float | None
    ask: float | None
    bid_size: int | None = None
    ask_size: int | None = None
    flags: int = 0
    position_ms: int = 0
    position_seq: int = 0

    @property
    def position(self) -> str:
        """The place of its tick in the exchange's stream, `<ms>-<seq>`."""
        return f"{self.position_ms}-{self.position_seq}"


class BarUpdate(msgspec.Struct, gc=False):
    """One candle; `timestamp` is its start. One of the same start replaces it when it comes again.

    `status` is `forming`, `final` or `revised`; `volume` is None where nobody knows it.
    """

    symbol: str
    exchange: str
    timestamp: int
    interval: Interval
    open: float
    high: float
    low: float
    close: float
    volume: int | None
    status: BarStatus


def trade_of(tick: DataIngestionFormat) -> TradeUpdate | None:
    """Return what was traded by a tick, None when that is nothing or nobody knows.

    A snapshot that answers a subscription is no trade.
    """
    quantity = tick.volume
    if quantity is None or quantity <= 0 or tick.flags & FLAG_SNAPSHOT:
        return None
    return TradeUpdate(
        tick.symbol,
        tick.exchange,
        tick.provider_code,
        tick.timestamp * 1000,
        tick.received_ms,
        tick.price,
        quantity,
        tick.flags,
        tick.position_ms,
        tick.position_seq,
    )


def quote_of(tick: DataIngestionFormat) -> QuoteUpdate | None:
    """Return the quote that a tick says, None when it says nothing of bid and ask, or comes late."""
    if (tick.bid is None and tick.ask is None) or tick.flags & FLAG_LATE:
        return None
    return QuoteUpdate(
        tick.symbol,
        tick.exchange,
        tick.provider_code,
        tick.timestamp * 1000,
        tick.received_ms,
        tick.bid,
        tick.ask,
        tick.bid_size,
        tick.ask_size,
        tick.flags,
        tick.position_ms,
        tick.position_seq,
    )


def is_same_quote(one: QuoteUpdate | None, tick: DataIngestionFormat) -> bool:
    """Tell whether a tick says the very quote that is known."""
    return (
        one is not None
        and one.bid == tick.bid
        and one.ask == tick.ask
        and one.bid_size == tick.bid_size
        and one.ask_size == tick.ask_size
    )


def bar_update(bar: Bar) -> BarUpdate:
    """Return a bar as a record of its own."""
    return BarUpdate(
        bar.instrument,
        bar.exchange,
        bar.start_ms * 1000,
        bar.interval,
        bar.open,
        bar.high,
        bar.low,
        bar.close,
        bar.volume,
        bar.status,
    )
