"""YahooFinanceConnection: Yahoo Finance's public stream as a provider.

Stands between the connection runner and the Yahoo codec. The stream is unofficial, needs no key and
sends conflated snapshots on a grid of whole seconds. Never does I/O itself.
Source: measured on the live stream and captured frames; nothing of it is documented by the vendor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

from services.base_provider import Capabilities, Delivery, ProviderContext
from services.connection.rules import ConnectionRules, Request
from services.connection.transport import Connector, Endpoint
from services.connection.websocket_provider import WebSocketProvider
from services.market_data.records import ProviderTick
from services.wire import yahoo

DEFAULT_STREAM_URL = "wss://streamer.finance.yahoo.com/?version=2"
_HEADERS = (
    ("Origin", "https://finance.yahoo.com"),
    (
        "User-Agent",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) "
        "Chrome/140.0.0.0 Safari/537.36",
    ),
)
_HEARTBEAT = 7
_OPTION = 13
_CRYPTO = 41
_HAS_DAY_VOLUME = frozenset({8, 13, 15, 18, 20})
"""Quote types whose `day_volume` is the session's traded quantity: equity, option, warrant, future, ETF.

Indices and FX have none; what crypto (41) sends is a rolling amount of 24 hours that can shrink."""
_REGULAR_MARKET = 1
_MOST_DECIMALS = 10


class YahooFinanceConnection(WebSocketProvider):
    """Yahoo Finance's stream. Provider symbols are Yahoo's, as in `AAPL`, `RELIANCE.NS`, `BTC-USD`.

    The server ignores symbols beyond 100 on a connection without a word, so more of them go over more
    connections. It was seen to forget symbols, so the whole list is repeated every 15 s.
    """

    code: ClassVar[str] = "YF"
    name: ClassVar[str] = "Yahoo Finance"
    # No field tells delayed quotes from others, so real time cannot be promised.
    capabilities: ClassVar[Capabilities] = Capabilities(stream=True, delivery=Delivery.DELAYED)
    setting_names: ClassVar[tuple[str, ...]] = ("YAHOO_STREAM_URL",)
    snapshot_first: ClassVar[bool] = True
    default_rules: ClassVar[ConnectionRules] = ConnectionRules(
        symbols_per_connection=100,
        max_connections=100,
        stagger_s=0.1,
        resubscribe_every_s=15.0,
    )

    def __init__(
        self,
        context: ProviderContext,
        *,
        rules: ConnectionRules | None = None,
        connector: Connector | None = None,
    ) -> None:
        super().__init__(context, rules=rules, connector=connector)
        self._aliases: dict[str, str] = {}

    def endpoint(self) -> Endpoint:
        """Return the stream's address and the headers of a browser."""
        return Endpoint(self.setting("YAHOO_STREAM_URL", DEFAULT_STREAM_URL), _HEADERS)

    async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
        """Distribute `symbols` over the connections, and remember under which ids they may come back."""
        symbols = list(symbols)
        await super().subscribe_symbols(symbols)
        for symbol in symbols:
            # What was asked for under its own id is never renamed.
            self._aliases.pop(symbol, None)
            canonical = canonical_id(symbol)
            if canonical not in self._plan:
                self._aliases[canonical] = symbol

    async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None:
        """Take `symbols` off their connections."""
        symbols = list(symbols)
        await super().unsubscribe_symbols(symbols)
        for symbol in symbols:
            canonical = canonical_id(symbol)
            if self._aliases.get(canonical) == symbol:
                del self._aliases[canonical]
            longer = f"USD{symbol}"
            if canonical_id(longer) == symbol and longer in self._plan:
                self._aliases[symbol] = longer

    def learn_names(self, symbols: Sequence[str]) -> None:
        """Remember under which ids `symbols` may come back, as `subscribe_symbols` does."""
        for symbol in symbols:
            canonical = canonical_id(symbol)
            if canonical not in symbols:
                self._aliases[canonical] = symbol

    def subscribe_requests(self, symbols: Sequence[str]) -> list[Request]:
        """Return the one message that asks for `symbols`."""
        return [Request(yahoo.subscribe_message(symbols), tuple(symbols))] if symbols else []

    def unsubscribe_requests(self, symbols: Sequence[str]) -> list[str | bytes]:
        """Return the one message that stops asking for `symbols`, which also frees their places."""
        return [yahoo.unsubscribe_message(symbols)] if symbols else []

    def message_handler(self, raw: str | bytes) -> None:
        """Decode one message and emit its quote. Raises `WireFormatError` when it is damaged."""
        data = yahoo.decode_frame(raw)
        counters = self.counters
        if data is None:
            counters.ignore("envelope")
            return
        counters.records += 1
        kind = data.quote_type
        if kind == _HEARTBEAT:
            counters.ignore("heartbeat")
            return
        symbol = data.id
        if not symbol:
            counters.ignore("without_id")
            return
        bid, ask, hint = data.bid or None, data.ask or None, data.price_hint
        regular = data.market_hours in (_REGULAR_MARKET, None)
        previous_close = data.previous_close or None
        if previous_close is None and regular and kind != _CRYPTO and hint is not None:
            # Seldom sent, but the change since then always is; its float32 is good to the price's decimals.
            previous_close = _before_change(data.price, data.change, hint)
        self.emit(
            ProviderTick(
                provider_symbol=self._aliases.get(symbol, symbol) if self._aliases else symbol,
                price=data.price,
                event_ms=data.time or None,
                event_resolution_ms=1000,
                # Outside the regular session the figure is another's, and must not become its baseline.
                cumulative_volume=data.day_volume if regular and kind in _HAS_DAY_VOLUME else None,
                bid=bid,
                ask=ask,
                bid_size=data.bid_size if bid else None,
                ask_size=data.ask_size if ask else None,
                oi=data.open_interest if kind == _OPTION else None,
                day_open=data.open_price or None,
                day_high=data.day_high or None,
                day_low=data.day_low or None,
                previous_close=previous_close,
                price_decimals=hint if hint is not None and 0 <= hint <= _MOST_DECIMALS else None,
            )
        )


def _before_change(price: float | None, change: float | None, decimals: int) -> float | None:
    if not price or change is None or not 0 <= decimals <= _MOST_DECIMALS:
        return None
    before = price - change
    return round(before, decimals) if math.isfinite(before) and before > 0 else None


def canonical_id(symbol: str) -> str:
    """Return the id under which Yahoo may send quotes for `symbol`: `INR=X` for `USDINR=X`."""
    if symbol.endswith("=X") and symbol.startswith("USD") and len(symbol) == len("USDINR=X"):
        return symbol[3:]
    return symbol
