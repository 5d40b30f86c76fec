"""Turns the simulated market's state into Dhan's packets, for each kind of subscription.

Pure; used by the Dhan simulator. Event times are cut to whole seconds and shifted to Indian wall time
counted as epoch, as the live feed does it.
"""

from __future__ import annotations

from services.wire.dhan import (
    IST_OFFSET_S,
    DepthLevel,
    Full,
    MarketDepthV1,
    OpenInterest,
    PreviousClose,
    Quote,
    Ticker,
    encode,
)
from simulators.market import DEPTH_LEVELS, Instrument, Kind, Tick
from simulators.stream import Encoded, Listing

TICKER = "ticker"
QUOTE = "quote"
FULL = "full"
DEPTH_V1 = "depth_v1"
_LARGEST_U16 = 65_535
_LARGEST_U32 = 4_294_967_295
_EMPTY_LEVEL = DepthLevel(0, 0, 0, 0, 0.0, 0.0)
_EMPTY_BOOK = (_EMPTY_LEVEL,) * DEPTH_LEVELS


def wire_time(event_ms: int) -> int:
    """Return UTC epoch ms as the feed counts it: whole seconds of Indian wall time."""
    return event_ms // 1000 + IST_OFFSET_S


def book_of(instrument: Instrument) -> tuple[DepthLevel, ...]:
    """Return five levels around the price; empty ones for an index, which has no book."""
    if instrument.kind is Kind.INDEX:
        return _EMPTY_BOOK
    return tuple(DepthLevel(*instrument.book(level)) for level in range(DEPTH_LEVELS))


def is_derivative(instrument: Instrument) -> bool:
    """Tell whether the instrument has open interest."""
    return instrument.kind in (Kind.FUTURE, Kind.OPTION)


def encode_tick(listing: Listing, tick: Tick, variant: str) -> Encoded:
    """Return the packets of one tick: code 2, 4 (with 5 for derivatives), 8 or 3."""
    event_ms = tick.event_ms // 1000 * 1000
    match variant:
        case "ticker":
            record = Ticker(listing.segment, listing.security_id, tick.price, wire_time(event_ms))
            return Encoded([encode(record)], TICKER, event_ms, None, None, None)
        case "quote":
            return _quote(listing, tick, event_ms)
        case "full":
            return _full(listing, tick, event_ms)
        case _:
            book = book_of(listing.instrument)
            depth = MarketDepthV1(listing.segment, listing.security_id, tick.price, book)
            return Encoded([encode(depth)], DEPTH_V1, event_ms, None, *_best(book))


def _totals(instrument: Instrument) -> tuple[int, int]:
    """Return total sell and total buy quantity of the whole book."""
    if not instrument.trades:
        return 0, 0
    lot = instrument.lot
    return (1 + instrument.seq % 211) * 400 * lot, (1 + instrument.seq % 197) * 420 * lot


def _best(book: tuple[DepthLevel, ...]) -> tuple[float | None, float | None]:
    return book[0].bid_px or None, book[0].ask_px or None


def _quote(listing: Listing, tick: Tick, event_ms: int) -> Encoded:
    it = listing.instrument
    volume = min(tick.volume, _LARGEST_U32)
    quote = Quote(
        listing.segment,
        listing.security_id,
        tick.price,
        min(tick.quantity, _LARGEST_U16),
        wire_time(event_ms),
        it.average_price,
        volume,
        *_totals(it),
        it.value(it.open_units),
        it.value(it.previous_close_units),
        it.value(it.high_units),
        it.value(it.low_units),
    )
    packets = [encode(quote)]
    if is_derivative(it):
        packets.append(encode(OpenInterest(listing.segment, listing.security_id, it.oi)))
    return Encoded(packets, QUOTE, event_ms, volume if it.trades else None, None, None)


def _full(listing: Listing, tick: Tick, event_ms: int) -> Encoded:
    it = listing.instrument
    book = book_of(it)
    volume = min(tick.volume, _LARGEST_U32)
    full = Full(
        listing.segment,
        listing.security_id,
        tick.price,
        min(tick.quantity, _LARGEST_U16),
        wire_time(event_ms),
        it.average_price,
        volume,
        *_totals(it),
        it.oi,
        it.oi_high,
        it.oi_low,
        it.value(it.open_units),
        it.value(it.previous_close_units),
        it.value(it.high_units),
        it.value(it.low_units),
        book,
    )
    return Encoded([encode(full)], FULL, event_ms, volume if it.trades else None, *_best(book))


def previous_close_packet(listing: Listing) -> bytes:
    """Return the code 6 packet, which the feed sends for indices on subscribe."""
    it = listing.instrument
    record = PreviousClose(
        listing.segment, listing.security_id, it.value(it.previous_close_units), it.previous_oi
    )
    return encode(record)
