"""The messages of the channels beside ticks and charts: quotes, trades, depth, option chains, news.

Pure: no I/O. A message is made into JSON once, by the first client that needs it, and shared by all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, cast, get_args

import msgspec

from services.gateway.encoding import text_frame, to_json
from services.market_data.events import NewsUpdate
from services.market_data.option_chains import OptionChainSnapshot
from services.market_data.records import FLAG_TEXT
from services.market_data.trades_and_quotes import QuoteUpdate, TradeUpdate
from services.market_data.updates import DEPTH_FLAG_TEXT, Level2Update

Channel = Literal["quote", "trade", "depth", "options", "news"]
SIDE_CHANNELS: tuple[Channel, ...] = get_args(Channel)
GROUPED: frozenset[str] = frozenset({"quote", "trade", "depth"})
"""Channels whose frames hold `data` by instrument; a frame of the others is one message."""
NEVER_CONFLATED: frozenset[str] = frozenset({"trade", "news"})
NEWEST_ONLY: frozenset[str] = frozenset({"depth", "options"})
MAX_MESSAGES_PER_FRAME = 100

_FLAGS = tuple(text.split(",") if text else None for text in FLAG_TEXT)
_DEPTH_FLAGS = tuple(text.split(",") if text else None for text in DEPTH_FLAG_TEXT)


class SideMessage(msgspec.Struct, gc=False):
    """One message of a channel: what it is about, and the depth or expiry that was asked for in `detail`.

    `position_ms` is 0 where the record has no place in a tick stream.
    """

    channel: Channel
    symbol: str
    record: Any
    detail: str = ""
    position_ms: int = 0
    position_seq: int = 0
    fragment: bytes | None = None
    frame: bytes | None = None


def side_fragment(message: SideMessage) -> bytes:
    """Return `"KEY":{…}` of a grouped channel, the whole message of another; made once, then shared."""
    made = message.fragment
    if made is None:
        body = _BODIES[message.channel](message)
        made = b"%b:%b" % (to_json(message.symbol), body) if message.channel in GROUPED else body
        message.fragment = made
    return made


def side_frame(message: SideMessage) -> bytes:
    """Return the complete frame of one message; made once, then shared."""
    frame = message.frame
    if frame is None:
        grouped = message.channel in GROUPED
        frame = group_frame([message]) if grouped else text_frame(side_fragment(message))
        message.frame = frame
    return frame


def group_frame(batch: list[SideMessage]) -> bytes:
    """Return one frame of messages of one grouped channel, of different instruments."""
    newest: dict[str, tuple[int, int]] = {}
    for message in batch:
        if message.position_ms:
            exchange = message.symbol.partition(":")[0]
            position = (message.position_ms, message.position_seq)
            if position > newest.get(exchange, (0, 0)):
                newest[exchange] = position
    body = b",".join(map(side_fragment, batch))
    head = b'{"type":"%b","data":{%b}' % (batch[0].channel.encode(), body)
    if not newest:
        return text_frame(head + b"}")
    places = b",".join(b'%b:"%d-%d"' % (to_json(name), *position) for name, position in newest.items())
    return text_frame(head + b',"position":{%b}}' % places)


def frames_of(batch: Iterable[SideMessage]) -> list[bytes]:
    """Return the frames of messages of one channel, as few as may be."""
    messages = list(batch)
    if len(messages) == 1:
        return [side_frame(messages[0])]
    if not messages or messages[0].channel not in GROUPED:
        return [side_frame(message) for message in messages]
    return [
        group_frame(messages[at : at + MAX_MESSAGES_PER_FRAME])
        for at in range(0, len(messages), MAX_MESSAGES_PER_FRAME)
    ]


# ---- what a message says ------------------------------------------------------------------------


def quote_body(quote: QuoteUpdate) -> dict[str, Any]:
    """Return a quote as clients see it; a field that is absent is unknown."""
    return _known(
        bid=quote.bid,
        ask=quote.ask,
        bid_size=quote.bid_size,
        ask_size=quote.ask_size,
        ts_ms=quote.timestamp // 1000,
        src=quote.provider_code,
        flags=_FLAGS[quote.flags & 31],
    )


def trade_body(trade: TradeUpdate) -> dict[str, Any]:
    """Return a trade as clients see it."""
    return _known(
        price=trade.price,
        quantity=trade.quantity,
        ts_ms=trade.timestamp // 1000,
        src=trade.provider_code,
        flags=_FLAGS[trade.flags & 31],
    )


def depth_body(book: Level2Update, levels: int) -> dict[str, Any]:
    """Return the best `levels` of a book as clients see it: `[price, quantity, orders]` a level."""
    return _known(
        bids=book.bids[:levels],
        asks=book.asks[:levels],
        levels=min(levels, book.levels),
        ts_ms=book.timestamp // 1000,
        received_ms=book.received_ms,
        src=book.provider_code,
        flags=_DEPTH_FLAGS[book.flags & 63],
        entry=book.position if book.position_ms else None,
    )


def options_body(chain: OptionChainSnapshot) -> dict[str, Any]:
    """Return a chain as the `options` message, its legs in the 14 fields of `/api/options/…/chain`."""
    spot, expiry = chain.underlying_price, chain.expiry
    return {
        "type": "options",
        "instrumentKey": chain.symbol,
        "expiry": expiry,
        "expiry_date": chain.expiry_date,
        "is_next": chain.is_next,
        "timestamp": chain.timestamp // 1000,
        "received_ms": chain.received_ms,
        "source": chain.provider_code,
        "underlying_price": spot,
        "forward": chain.forward,
        "forward_by": chain.forward_by,
        "atm_strike": chain.atm_strike,
        "style": chain.style,
        "completeness": chain.completeness,
        "missing": chain.missing,
        "pcr": chain.pcr,
        "pcr_volume": chain.pcr_volume,
        "max_pain": chain.max_pain,
        "entry": chain.position if chain.position_ms else None,
        "symbols": [
            {
                "f": (
                    *(leg.symbol, leg.strike, leg.side, spot, leg.last_price, leg.volume, leg.oi),
                    *(leg.oi_change, expiry, leg.delta, leg.gamma, leg.theta, leg.vega, leg.iv),
                ),
                "bid": leg.bid,
                "ask": leg.ask,
                "bid_size": leg.bid_size,
                "ask_size": leg.ask_size,
                "event_ms": leg.event_ms,
                "greeks_by": leg.greeks_by,
            }
            for leg in chain.legs
        ],
    }


def news_body(article: NewsUpdate) -> dict[str, Any]:
    """Return an article as clients see it; `url` is None where there is no link."""
    return {
        "id": article.id,
        "ts_ms": article.timestamp // 1000,
        "received_ms": article.received_ms,
        "headline": article.headline,
        "publisher": article.publisher,
        "url": article.url or None,
        "instruments": article.instruments,
        "symbols": article.symbols,
        "src": article.provider_code,
    }


def _known(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _news_message(message: SideMessage) -> bytes:
    article = cast(NewsUpdate, message.record)
    return to_json({"type": "news", "article": news_body(article)})


_BODIES: dict[Channel, Callable[[SideMessage], bytes]] = {
    "quote": lambda message: to_json(quote_body(message.record)),
    "trade": lambda message: to_json(trade_body(message.record)),
    "depth": lambda message: to_json(depth_body(message.record, int(message.detail))),
    "options": lambda message: to_json(options_body(message.record)),
    "news": _news_message,
}
