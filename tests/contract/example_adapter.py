"""A provider as a third party would write it, from the documentation of the base class alone."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, ClassVar

import websockets

from services.base_provider import BaseMarketDataProvider
from services.errors import CredentialsRejected
from services.market_data.records import ProviderTick


class ExampleProvider(BaseMarketDataProvider):
    """Quotes of the Example exchange: JSON over one WebSocket, a key in a header."""

    code: ClassVar[str] = "EXAMPLE"
    credential_names: ClassVar[tuple[str, ...]] = ("EXAMPLE_KEY",)

    _ws: Any = None

    async def connect_websocket(self) -> None:
        try:
            self._ws = await websockets.connect(
                self.setting("EXAMPLE_URL"),
                additional_headers={"X-Key": self.setting("EXAMPLE_KEY")},
                open_timeout=1,
                close_timeout=0.5,
            )
        except websockets.InvalidStatus as refusal:
            if refusal.response.status_code == 401:
                raise CredentialsRejected("the Example key is not accepted") from refusal
            raise
        self.spawn(self._read(), "reader")

    async def _read(self) -> None:
        async for raw in self._ws:
            self.handle(raw)

    async def disconnect_websocket(self) -> None:
        if self._ws is not None:
            await self._ws.close()

    async def subscribe_symbols(self, symbols: Iterable[str]) -> None:
        await self._ws.send(json.dumps({"subscribe": list(symbols)}))

    async def unsubscribe_symbols(self, symbols: Iterable[str]) -> None:
        await self._ws.send(json.dumps({"unsubscribe": list(symbols)}))

    def message_handler(self, raw: str | bytes) -> None:
        quote = json.loads(raw)
        self.emit(ProviderTick(provider_symbol=quote["symbol"], price=quote["price"]))
