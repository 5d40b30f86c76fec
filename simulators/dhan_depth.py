"""The full market depth feeds of the simulated Dhan: 20 and 200 levels, bid and ask packets.

Pure; used by the Dhan simulator. Bid and ask of an instrument are separate packets stacked in one
message; there is no time, no sequence and no last price on these feeds.
Source: DhanHQ v2 full market depth documentation; limits and the refusal of `APP` tokens as measured.
"""

from __future__ import annotations

from services.wire.dhan_depth import (
    MAX_INSTRUMENTS_20,
    DepthDisconnect,
    DepthRow,
    DepthSide,
    encode_depth_disconnect,
    encode_depth_side,
)
from simulators.market import Tick
from simulators.stream import Encoded, Listing
from simulators.tokens import consumer_type

DEPTH_20 = "depth20"
DEPTH_200 = "depth200"
SUBSCRIBE_CODE = 23
UNSUBSCRIBE_CODE = 25
"""24, of older documentation and of the SDK, mostly stops nothing, as measured: it is passed over here."""
_SEGMENTS = ("NSE_EQ", "NSE_FNO")
_ROWS = {DEPTH_20: 20, DEPTH_200: 200}


def family(feed: str) -> str:
    """Return under which limit of connections a feed falls: each type of feed has its own."""
    return feed if feed in _ROWS else "live"


def refusal(feed: str, token: str, symbols: set[str]) -> int | None:
    """Return the reason code that refuses this set of subscriptions on a depth feed, or None."""
    if feed == DEPTH_200 and consumer_type(token) == "APP":
        return 808
    if any(symbol.partition(":")[0] not in _SEGMENTS for symbol in symbols):
        return 814
    return 804 if len(symbols) > (MAX_INSTRUMENTS_20 if feed == DEPTH_20 else 1) else None


def disconnect_packet(reason: int) -> bytes:
    """Return the 14-byte packet that ends a connection."""
    return encode_depth_disconnect(DepthDisconnect(reason))


def encode_tick(listing: Listing, tick: Tick, variant: str, how: str | None = None) -> Encoded:
    """Return one message with the bid packet and the ask packet of an instrument.

    `how` is what the fault `depth` does to them.
    """
    book = [listing.instrument.book(level) for level in range(_ROWS[variant])]
    bids = [DepthRow(price, quantity, orders) for quantity, _, orders, _, price, _ in book]
    asks = [DepthRow(price, quantity, orders) for _, quantity, _, orders, _, price in book]
    sequence: int | None = tick.seq & 0xFFFF_FFFF
    if variant == DEPTH_200:
        # Levels that do not exist are not sent; the header says how many there are instead of a sequence.
        bids = [row for row in bids if row.qty]
        sequence = None
    bids, asks = _damaged(bids, asks, how)
    segment, security_id = listing.segment, listing.security_id
    both = (
        DepthSide(segment, security_id, "bid", tuple(bids), sequence),
        DepthSide(segment, security_id, "ask", tuple(asks), sequence),
    )
    packets = [encode_depth_side(it) for it in both if how not in ("bid", "ask") or how == it.side]
    messages = packets if how == "apart" else [b"".join(packets)]
    return Encoded(messages, variant, tick.event_ms, None, book[0][4] or None, book[0][5])


def _damaged(
    bids: list[DepthRow], asks: list[DepthRow], how: str | None
) -> tuple[list[DepthRow], list[DepthRow]]:
    if how == "crossed":
        return [row._replace(price=other.price) for row, other in zip(bids, asks, strict=False)], [
            row._replace(price=other.price) for row, other in zip(asks, bids, strict=False)
        ]
    if how == "unordered":
        return bids[::-1], asks[::-1]
    if how == "empty_bid":
        return [DepthRow(0.0, 0, 0) for _ in bids], asks
    return bids, asks
