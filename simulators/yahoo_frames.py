"""Turns the simulated market's state into Yahoo's messages, with the fields each kind really carries.

Pure; used by the Yahoo simulator. Zeros are sent explicitly, times lie on a whole-second grid.
Source: captured frames of US and Indian listings, an index, a crypto pair; yfinance's public fixtures.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from services.wire.yahoo import PricingData
from simulators.market import Kind, Tick
from simulators.stream import Listing

REGULAR = 1
_QUOTE_TYPES = {
    Kind.EQUITY: 8,
    Kind.INDEX: 9,
    Kind.OPTION: 13,
    Kind.FX: 14,
    Kind.FUTURE: 18,
    Kind.ETF: 20,
    Kind.CRYPTO: 41,
}
HEARTBEAT_QUOTE_TYPE = 7
_OPTION = re.compile(r"^([A-Z.]+?)(\d{6})([CP])(\d{8})$")
_LARGEST_ROLLING = 2**62


def message_of(listing: Listing, tick: Tick, market_hours: int) -> PricingData:
    """Return the message of one tick. `market_hours` is 0 pre, 1 regular, 2 post, 4 overnight."""
    it = listing.instrument
    previous_close = it.value(it.previous_close_units)
    change = tick.price - previous_close
    data = PricingData(
        id=listing.wire_id,
        price=tick.price,
        time=tick.event_ms // 1000 * 1000,
        exchange=listing.exchange,
        quote_type=_QUOTE_TYPES[it.kind],
        market_hours=market_hours,
        change=change,
        change_percent=100.0 * change / previous_close,
        price_hint=it.decimals,
    )
    _ADDITIONS[it.kind](data, listing, tick, market_hours)
    return data


def _share(data: PricingData, listing: Listing, tick: Tick, market_hours: int) -> None:
    if listing.exchange == "NSI":
        data.full_day_change, data.full_day_change_percent = data.change, data.change_percent
    elif listing.exchange == "BSE":
        data.currency = listing.currency
    if market_hours == REGULAR:
        # Outside regular hours the stream carries no volume.
        data.day_volume = tick.volume
        # The last size is missing in part of the messages.
        if tick.seq % 4 and listing.exchange != "BSE":
            data.last_size = tick.quantity


def _index(data: PricingData, listing: Listing, tick: Tick, market_hours: int) -> None:  # noqa: ARG001
    data.currency = listing.currency


def _exchange_rate(data: PricingData, listing: Listing, tick: Tick, market_hours: int) -> None:  # noqa: ARG001
    it = listing.instrument
    data.currency = listing.currency
    data.day_high, data.day_low = it.value(it.high_units), it.value(it.low_units)
    data.open_price, data.previous_close = it.value(it.open_units), it.value(it.previous_close_units)


def _future(data: PricingData, listing: Listing, tick: Tick, market_hours: int) -> None:  # noqa: ARG001
    data.currency = listing.currency
    data.day_volume = tick.volume


def _crypto(data: PricingData, listing: Listing, tick: Tick, market_hours: int) -> None:  # noqa: ARG001
    it = listing.instrument
    # All four are the same rolling 24 h amount in quote currency, none is a traded quantity.
    rolling = min(it.rolling_volume, _LARGEST_ROLLING)
    data.day_volume = data.last_size = data.vol_24hr = data.vol_all_currencies = rolling
    data.currency = listing.currency
    data.day_high, data.day_low = it.value(it.high_units), it.value(it.low_units)
    data.open_price = it.value(it.open_units)
    data.from_currency = listing.symbol.partition("-")[0]
    data.circulating_supply = 19_941_792.0
    data.market_cap = data.circulating_supply * it.price


def _option(data: PricingData, listing: Listing, tick: Tick, market_hours: int) -> None:  # noqa: ARG001
    it = listing.instrument
    bid_size, ask_size, _, _, bid, ask = it.book(0)
    data.currency = listing.currency
    data.day_volume, data.last_size = tick.volume, tick.quantity
    data.bid, data.bid_size, data.ask, data.ask_size = bid, bid_size, ask, ask_size
    data.open_interest = it.oi
    data.mini_option = 0
    parts = _OPTION.match(listing.symbol)
    if parts is not None:
        root, expiry, side, strike = parts.groups()
        data.underlying_symbol = root
        data.expire_date = int(datetime.strptime(expiry, "%y%m%d").replace(tzinfo=UTC).timestamp())
        data.options_type = 1 if side == "P" else 0
        data.strike_price = int(strike) / 1000


_ADDITIONS = {
    Kind.EQUITY: _share,
    Kind.ETF: _share,
    Kind.INDEX: _index,
    Kind.FX: _exchange_rate,
    Kind.FUTURE: _future,
    Kind.CRYPTO: _crypto,
    Kind.OPTION: _option,
}


def heartbeat(now_ms: int) -> PricingData:
    """Return a message of the heartbeat quote type, which carries no price."""
    return PricingData(id="^HB", time=now_ms // 1000 * 1000, quote_type=HEARTBEAT_QUOTE_TYPE)


def journaled_volume(listing: Listing, data: PricingData) -> int | None:
    """Return the cumulative traded volume a message carries, None where it has none that means trades."""
    return None if listing.instrument.kind is Kind.CRYPTO else data.day_volume
