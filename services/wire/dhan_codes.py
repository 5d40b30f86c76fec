"""Dhan's numbers and their names: exchange segments, request codes, feed modes, disconnect reasons.

Shared by the three Dhan codecs (live feed, depth feed, version 1 requests) and by nothing else.
Never decodes or encodes anything itself.

Source: DhanHQ v2 annexure (exchange segment, feed request code, data API error tables).
"""

from __future__ import annotations

from enum import Enum, IntEnum


class Segment(IntEnum):
    """Exchange segment numbers of the binary packets; 6 is unused. The names are those of the JSON requests.

    Source: DhanHQ v2 annexure, exchange segment.
    """

    IDX_I = 0
    NSE_EQ = 1
    NSE_FNO = 2
    NSE_CURRENCY = 3
    BSE_EQ = 4
    MCX_COMM = 5
    BSE_CURRENCY = 7
    BSE_FNO = 8


class RequestCode(IntEnum):
    """What a request asks for. Code 24 is what older documents and the SDK send to end full depth.

    Source: DhanHQ v2 annexure, feed request code; 25 instead of 24 confirmed by Dhan's support.
    """

    CONNECT = 11
    DISCONNECT = 12
    SUBSCRIBE_TICKER = 15
    UNSUBSCRIBE_TICKER = 16
    SUBSCRIBE_QUOTE = 17
    UNSUBSCRIBE_QUOTE = 18
    SUBSCRIBE_MARKET_DEPTH_V1 = 19
    UNSUBSCRIBE_MARKET_DEPTH_V1 = 20
    SUBSCRIBE_FULL = 21
    UNSUBSCRIBE_FULL = 22
    SUBSCRIBE_FULL_DEPTH = 23
    UNSUBSCRIBE_FULL_DEPTH_OLD = 24
    UNSUBSCRIBE_FULL_DEPTH = 25


class FeedMode(Enum):
    """How much the live feed sends of an instrument: price only, day's summary too, or book too."""

    TICKER = "ticker"
    QUOTE = "quote"
    FULL = "full"

    @property
    def subscribe_code(self) -> RequestCode:
        """The request code that starts this mode."""
        return _MODE_CODES[self][0]

    @property
    def unsubscribe_code(self) -> RequestCode:
        """The request code that ends this mode."""
        return _MODE_CODES[self][1]


_MODE_CODES = {
    FeedMode.TICKER: (RequestCode.SUBSCRIBE_TICKER, RequestCode.UNSUBSCRIBE_TICKER),
    FeedMode.QUOTE: (RequestCode.SUBSCRIBE_QUOTE, RequestCode.UNSUBSCRIBE_QUOTE),
    FeedMode.FULL: (RequestCode.SUBSCRIBE_FULL, RequestCode.UNSUBSCRIBE_FULL),
}

DISCONNECT_REASONS: dict[int, str] = {
    800: "internal server error",
    804: "more instruments requested than the limit allows",
    805: "too many requests or connections",
    806: "data APIs are not subscribed",
    807: "access token expired",
    808: "authentication failed: client id or access token invalid",
    809: "access token invalid",
    810: "client id invalid",
    811: "expiry date invalid",
    812: "date format invalid",
    813: "security id invalid",
    814: "request invalid",
    820: "market data subscription required",
    821: "market data subscription required",
}
"""What the reason of a disconnect packet means.

Source: DhanHQ v2 annexure, data API error; 820 and 821 as observed by other clients of the feed.
"""
