"""A WebSocket server that does as it is told, a minimal vendor for it, and what the tests share."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import msgspec
import picows

from services.connection.rules import ConnectionRules, Request
from services.connection.transport import Endpoint, TransportLimits
from services.connection.websocket_provider import WebSocketProvider
from services.market_data.records import ProviderTick
from tests.support.eventually import eventually
from tests.support.providers import Recorder

TOKEN = "s3cr3t-t0ken/+="


class Client(picows.WSListener):
    """One accepted connection, seen from the server."""

    def __init__(self, server: Server, request: picows.WSUpgradeRequest) -> None:
        super().__init__()
        self.server = server
        self.path = request.path.decode()
        self.headers = dict(request.headers)
        self.received: list[str] = []
        self.symbols: dict[str, None] = {}
        self.pings = 0
        self.open = False
        self.close_code: int | None = None
        self.transport: Any = None

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport
        self.open = True
        self.server.greet(self)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        self.open = False

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        if frame.msg_type is picows.WSMsgType.PING:
            self.pings += 1
            if self.server.answers_pings:
                transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type is picows.WSMsgType.CLOSE:
            self.close_code = int(frame.get_close_code())
            if self.server.answers_close:
                transport.send_close(frame.get_close_code())
                transport.disconnect()
        elif frame.msg_type is picows.WSMsgType.TEXT:
            text = frame.get_payload_as_utf8_text()
            self.received.append(text)
            request = json.loads(text)
            self.symbols.update(dict.fromkeys(request.get("subscribe", ())))
            for symbol in request.get("unsubscribe", ()):
                self.symbols.pop(symbol, None)
            self.server.asked(self, request)

    def send(self, payload: str | bytes) -> None:
        kind = picows.WSMsgType.TEXT if isinstance(payload, str) else picows.WSMsgType.BINARY
        self.transport.send(kind, payload)

    def tick(self, symbol: str, price: float = 1.0) -> None:
        self.send(json.dumps([symbol, price]))

    def close(self, code: int, reason: str = "") -> None:
        self.transport.send_close(code, reason)

    def reset(self) -> None:
        wire = self.transport.underlying_transport.get_extra_info("socket")
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.disconnect(graceful=False)

    def requests(self, action: str) -> list[list[str]]:
        return [json.loads(text)[action] for text in self.received if action in json.loads(text)]


class Server:
    """Accepts connections and remembers every attempt; `answer` decides about each."""

    def __init__(self) -> None:
        self.clients: list[Client] = []
        self.attempts: list[tuple[float, str]] = []
        self.answers_pings = True
        self.answers_close = True
        self.answer: Callable[[picows.WSUpgradeRequest], Any] = lambda request: None
        self.greet: Callable[[Client], None] = lambda client: None
        self.asked: Callable[[Client, dict[str, Any]], None] = lambda client, request: None
        self.port = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await picows.ws_create_server(
            self._accept, "127.0.0.1", self.port, enable_auto_pong=False
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for client in self.open_clients:
                client.transport.disconnect(graceful=False)
            await eventually(lambda: not self.open_clients)
            self._server = None

    def _accept(self, request: picows.WSUpgradeRequest) -> Any:
        self.attempts.append((time.monotonic(), request.path.decode()))
        decided = self.answer(request)
        if decided is not None:
            return picows.WSUpgradeResponseWithListener(decided, None)
        client = Client(self, request)
        self.clients.append(client)
        return client

    @property
    def open_clients(self) -> list[Client]:
        return [client for client in self.clients if client.open]

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/feed"


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    server = Server()
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def silent_listener() -> AsyncIterator[tuple[int, list[asyncio.StreamWriter]]]:
    """A TCP port that accepts and never says a word."""
    writers: list[asyncio.StreamWriter] = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        while await reader.read(1024):
            pass
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], writers
    finally:
        server.close()
        for writer in writers:
            writer.close()


RULES = ConnectionRules(
    symbols_per_connection=3,
    max_connections=2,
    transport=TransportLimits(open_timeout_s=0.5),
    ping_after_s=0.3,
    pong_within_s=0.3,
    stagger_s=0.0,
    settle_s=0.01,
    close_within_s=0.3,
)


class PairProvider(WebSocketProvider):
    """A vendor whose messages are `["SYMBOL", price]`."""

    code = "PAIR"
    credential_names = ("PAIR_TOKEN",)
    setting_names = ("PAIR_URL",)
    default_rules: ClassVar[ConnectionRules] = RULES

    def endpoint(self) -> Endpoint:
        token = self.setting("PAIR_TOKEN")
        return Endpoint(f"{self.setting('PAIR_URL')}?token={token}", (("X-Key", token),))

    def subscribe_requests(self, symbols: Sequence[str]) -> list[Request]:
        chunks = [tuple(symbols[start : start + 2]) for start in range(0, len(symbols), 2)]
        return [Request(json.dumps({"subscribe": chunk}), chunk) for chunk in chunks]

    def unsubscribe_requests(self, symbols: Sequence[str]) -> list[str | bytes]:
        return [json.dumps({"unsubscribe": list(symbols)})]

    def check_symbol(self, symbol: str) -> str | None:
        return "not a symbol" if symbol.startswith("!") else None

    def farewell(self) -> list[str | bytes]:
        return [json.dumps({"bye": True})]

    def message_handler(self, raw: str | bytes) -> None:
        symbol, price = msgspec.json.decode(raw)
        self.emit(ProviderTick(provider_symbol=symbol, price=price))


def recorder_for(server: Server, *, base_s: float = 0.02, **settings: str) -> Recorder:
    """A recording context whose settings lead to `server`."""
    return Recorder({"PAIR_URL": server.url, "PAIR_TOKEN": TOKEN, **settings}, base_s=base_s)
