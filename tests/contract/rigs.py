"""The rigs of the conformance kit: Dhan and Yahoo on their simulators, the example on its own server."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import struct
from http import HTTPStatus
from typing import Any

import msgspec
import websockets
from example_adapter import ExampleProvider
from provider_conformance import ProviderRig

from services.base_provider import BaseMarketDataProvider, ProviderContext
from services.connection.rules import ConnectionRules
from services.connection.transport import TransportLimits
from services.dhan_provider import DhanProvider
from services.wire.dhan import parse_request
from services.yahoo_finance_connection import YahooFinanceConnection
from simulators import DhanSimulator, YahooSimulator
from simulators import faults as f


def quick(rules: ConnectionRules, **changes: Any) -> ConnectionRules:
    """The vendor's rules with shorter waits."""
    quicker = {
        "transport": TransportLimits(open_timeout_s=0.6),
        "ping_after_s": 1.0,
        "pong_within_s": 1.0,
        "stagger_s": 0.0,
        "settle_s": 0.02,
        "close_within_s": 0.4,
    }
    return msgspec.structs.replace(rules, **{**quicker, **changes})


class _SimulatorRig(ProviderRig):
    simulator: DhanSimulator | YahooSimulator
    damaged: tuple[f.Garbage, ...]

    async def start(self) -> None:
        await self.simulator.start()

    async def stop(self) -> None:
        await self.simulator.stop()

    def emit(self, symbol: str, price: float) -> None:
        self.simulator.emit(symbol, price=price)

    def subscribed(self) -> set[str]:
        return {symbol for symbol, _ in self.simulator.watched()}

    def connections(self) -> int:
        return len(self.simulator.connections)

    def attempts(self) -> int:
        return self.simulator.handshakes

    async def end(self, how: str) -> None:
        fault: f.AnyFault = {"clean": f.Close(code=1000), "error": f.Close(code=1011), "reset": f.Abort()}[
            how
        ]
        assert await self.simulator.inject(fault)

    async def damage(self) -> int:
        for garbage in self.damaged:
            await self.simulator.inject(garbage)
        return len(self.damaged)

    async def refuse(self, on: bool) -> None:
        await self.simulator.inject(f.HandshakeStatus(status=503 if on else None))

    async def hang(self, on: bool) -> None:
        await self.simulator.inject(f.Hang(on=on))


class DhanRig(_SimulatorRig):
    """`DhanProvider` on the Dhan simulator; three instruments a connection, so that several are needed."""

    symbols = ("NSE_EQ:2885", "NSE_EQ:1333", "NSE_EQ:11536", "NSE_EQ:1594", "IDX_I:13", "BSE_EQ:500325")
    credentials = ("DHAN_CLIENT_ID", "DHAN_ACCESS_TOKEN")
    damaged = (f.Garbage(data="04"), f.Garbage(data="0410000100"), f.Garbage(data="0832ff0101000000"))

    def __init__(self) -> None:
        self.simulator = DhanSimulator(rate=0, ping_interval_s=0.5)

    async def start(self) -> None:
        await super().start()
        self.settings = {
            "DHAN_FEED_URL": self.simulator.url,
            "DHAN_CLIENT_ID": self.simulator.client_id,
            "DHAN_ACCESS_TOKEN": self.simulator.access_token,
        }

    def make(self, context: ProviderContext) -> BaseMarketDataProvider:
        rules = quick(DhanProvider.default_rules, symbols_per_connection=3, pace_s=0.001)
        return DhanProvider(context, rules=rules)

    def check_limits(self) -> None:
        assert self.simulator.connections_opened <= 5
        for request in self.simulator.requests:
            if request.kind == "text":
                assert len(parse_request(request.content).instruments) <= 100
        for connection in self.simulator.connections.values():
            assert len(self.simulator.watched(connection)) <= 3

    def refuse_credentials(self) -> None:
        self.simulator.tokens.expire(self.settings["DHAN_ACCESS_TOKEN"])

    def new_credentials(self) -> dict[str, str]:
        return {"DHAN_ACCESS_TOKEN": self.simulator.tokens.issue()}


class YahooRig(_SimulatorRig):
    """`YahooFinanceConnection` on the Yahoo simulator."""

    symbols = ("AAPL", "RELIANCE.NS", "^NSEI", "BTC-USD", "USDINR=X", "MSFT")
    damaged = (f.Garbage(text="{"), f.Garbage(text='{"type":"pricing"}'), f.Garbage(data="ff00"))

    def __init__(self) -> None:
        self.simulator = YahooSimulator(rate=0, slots=3)

    async def start(self) -> None:
        await super().start()
        self.settings = {"YAHOO_STREAM_URL": self.simulator.url}

    def make(self, context: ProviderContext) -> BaseMarketDataProvider:
        rules = quick(YahooFinanceConnection.default_rules, symbols_per_connection=3)
        return YahooFinanceConnection(context, rules=rules)

    def check_limits(self) -> None:
        for connection in self.simulator.connections.values():
            assert len(self.simulator.slots_used(connection)) <= 3


class ExampleRig(ProviderRig):
    """The example adapter on a server of the websockets library."""

    symbols = ("A", "B", "C", "D", "E", "F")
    credentials = ("EXAMPLE_KEY",)

    def __init__(self) -> None:
        self._good = {secrets.token_urlsafe(12)}
        self._clients: dict[Any, set[str]] = {}
        self._attempts = 0
        self._refusing = False
        self._answering = asyncio.Event()
        self._answering.set()

    async def start(self) -> None:
        self._server = await websockets.serve(
            self._serve, "127.0.0.1", 0, process_request=self._admit, close_timeout=0.5, open_timeout=None
        )
        port = self._server.sockets[0].getsockname()[1]
        self.settings = {"EXAMPLE_URL": f"ws://127.0.0.1:{port}/", "EXAMPLE_KEY": next(iter(self._good))}

    async def stop(self) -> None:
        self._answering.set()
        self._server.close()
        await self._server.wait_closed()

    async def _admit(self, connection: Any, request: Any) -> Any:
        self._attempts += 1
        await self._answering.wait()
        if self._refusing:
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "closed for now")
        if request.headers.get("X-Key") not in self._good:
            return connection.respond(HTTPStatus.UNAUTHORIZED, "no")
        return None

    async def _serve(self, connection: Any) -> None:
        wanted = self._clients[connection] = set()
        try:
            async for raw in connection:
                request = json.loads(raw)
                wanted.update(request.get("subscribe", ()))
                wanted.difference_update(request.get("unsubscribe", ()))
        except websockets.ConnectionClosed:
            return
        finally:
            del self._clients[connection]

    def make(self, context: ProviderContext) -> BaseMarketDataProvider:
        return ExampleProvider(context)

    def emit(self, symbol: str, price: float) -> None:
        chosen = [client for client, wanted in self._clients.items() if symbol in wanted]
        websockets.broadcast(chosen, json.dumps({"symbol": symbol, "price": price}))

    def subscribed(self) -> set[str]:
        return set().union(*self._clients.values())

    def connections(self) -> int:
        return len(self._clients)

    def attempts(self) -> int:
        return self._attempts

    def check_limits(self) -> None:
        assert len(self._clients) == 1

    async def end(self, how: str) -> None:
        for client in list(self._clients):
            if how == "reset":
                wire = client.transport.get_extra_info("socket")
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.transport.abort()
            else:
                await client.close(1000 if how == "clean" else 1011)

    async def damage(self) -> int:
        websockets.broadcast(self._clients, "{")
        websockets.broadcast(self._clients, '{"price": 5}')
        websockets.broadcast(self._clients, "[]")
        return 3

    async def refuse(self, on: bool) -> None:
        self._refusing = on

    async def hang(self, on: bool) -> None:
        if on:
            self._answering.clear()
        else:
            self._answering.set()

    def refuse_credentials(self) -> None:
        self._good.discard(self.settings["EXAMPLE_KEY"])

    def new_credentials(self) -> dict[str, str]:
        key = secrets.token_urlsafe(12)
        self._good.add(key)
        return {"EXAMPLE_KEY": key}
