"""A tiny adapter over an in-memory feed, for the tests of the provider template."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import msgspec

from services.base_provider import BaseMarketDataProvider, ProviderContext
from services.market_data.records import ProviderTick


class FeedAdapter(BaseMarketDataProvider):
    """An adapter over an in-memory feed that tests put messages and errors into."""

    code = "FEED"

    def __init__(self, context: ProviderContext) -> None:
        super().__init__(context)
        self.calls: list[tuple[str, tuple[str, ...]]] = []
        self.feed: asyncio.Queue[str | bytes | Exception] = asyncio.Queue()
        self.connect_errors: list[Exception] = []
        self.closed = 0

    async def connect_websocket(self) -> None:
        self.calls.append(("connect", ()))
        if self.connect_errors:
            raise self.connect_errors.pop(0)
        self.feed = asyncio.Queue()
        self.spawn(self._read(), "reader")

    async def _read(self) -> None:
        while True:
            item = await self.feed.get()
            if isinstance(item, Exception):
                raise item
            if item == "bye":
                return
            self.handle(item)

    async def disconnect_websocket(self) -> None:
        self.closed += 1

    async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
        self.calls.append(("subscribe", tuple(symbols)))

    async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None:
        self.calls.append(("unsubscribe", tuple(symbols)))

    def message_handler(self, raw: str | bytes) -> Any:
        symbol, price = msgspec.json.decode(raw)
        self.emit(ProviderTick(provider_symbol=symbol, price=price))

    def count(self, name: str) -> int:
        return sum(1 for call, _ in self.calls if call == name)
