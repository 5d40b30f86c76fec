"""A gateway on real sockets over a backend that tests fill by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import select
import socket
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp

from services.data_broadcast import DataBroadcast
from services.errors import ConfigurationError
from services.gateway.backend import InstrumentView, Readiness
from services.gateway.news_api import NewsSource
from services.gateway.options_api import OptionDesk
from services.gateway.server import Gateway, GatewayConfig
from services.market_data.candles import CoverageSpan, HistoryAnswer, HistoryRequest
from services.market_data.clock import SystemClock
from services.market_data.records import ControlRecord, DataIngestionFormat, Record
from services.pipeline.bar_sink import BarSink
from services.pipeline.hop_times import HopTimes
from services.pipeline.sink import Sink
from services.storage.stream_history import StreamHistory
from services.storage.stream_writer import StreamWriter
from tests.support.storage import quick


class StubBackend:
    """A daemon with instruments and nothing behind them."""

    def __init__(self, instruments: Sequence[str] = ()) -> None:
        self.demo = True
        self.epoch = "epoch-1"
        self.keys = list(instruments)
        self.ready = Readiness(ready=True)
        self.providers: list[dict[str, Any]] = [provider_status("DHAN"), provider_status("YF", "backing_off")]
        self.interest: set[str] = set()
        self.switches: list[dict[str, Any]] = []
        self.interest_changes = 0
        self.asked: list[Any] = []
        self.past: HistoryAnswer | Exception = HistoryAnswer(
            candles=[(1_700_000_040, 10.0, 11.0, 9.5, 10.5, 100)], complete=True
        )
        self.hop = HopTimes()
        for seconds in (0.0003, 0.0004, 0.001, 0.3):
            self.hop.note(seconds)

    def provider_status(self) -> list[dict[str, Any]]:
        return self.providers

    def instruments(self) -> list[InstrumentView]:
        return [
            InstrumentView(
                key=key,
                exchange=key.partition(":")[0],
                symbol=key.partition(":")[2],
                name=f"{key.partition(':')[2].title()} Limited",
                asset_class="equity",
                currency="INR",
                tick_size=0.05,
                provider="DHAN",
            )
            for key in self.keys
        ]

    def is_known(self, instrument: str) -> bool:
        return instrument in self.keys

    def readiness(self) -> Readiness:
        return self.ready

    def pipeline_status(self) -> dict[str, Any]:
        return {
            "sinks": [
                {
                    "name": "stream",
                    "state": "ready",
                    "reason": "",
                    "queued": 3,
                    "imbalance": 0,
                    "offered": 10,
                    "written": 6,
                    "collapsed": 0,
                    "already_written": 0,
                    "resent": 2,
                    "batches": 2,
                    "errors": 0,
                    "dropped": {"queue_full": 1},
                    "rejected": {},
                }
            ],
            "ledger": {"DHAN": {"frames": 12, "decoded": 11, "wire_errors": {"truncated": 1}, "passed": 10}},
            "hops": {"accepted_to_stream": self.hop.figures()},
            "tasks": [{"name": "sink:stream", "restarts": 1, "alive": True, "last_error": ""}],
        }

    async def why(self, instrument: str) -> dict[str, Any] | None:
        if not self.is_known(instrument):
            return None
        return {
            "instrument": instrument,
            "name": "An instrument",
            "time_ms": 1_790_748_968_000,
            "verdict": "all is well",
            "next_action": "nothing to do",
            "candidates": [],
            "hops": [],
            "events": [],
        }

    async def history(self, request: HistoryRequest) -> HistoryAnswer:
        self.asked.append(request)
        if isinstance(self.past, Exception):
            raise self.past
        return self.past

    async def coverage(self, instrument: str) -> list[CoverageSpan]:
        return [
            CoverageSpan(
                instrument=instrument, type=kind, source="DHAN", from_ms=0, to_ms=60_000, state="have"
            )
            for kind in ("1m", "1d")
        ]

    def backfill_status(self) -> dict[str, Any]:
        return {"jobs": [], "counters": {}, "sources": {}}

    async def order_backfill(
        self, instruments: Sequence[str], interval: str, from_ms: int, to_ms: int
    ) -> dict[str, Any]:
        self.asked.append((list(instruments), interval, from_ms, to_ms))
        return {"id": 1, "windows": len(instruments), "finished_ms": None}

    def routes(self) -> dict[str, Any]:
        return {"providers": [], "routing": {}}

    async def route(self, instrument: str, events: int) -> dict[str, Any] | None:
        if not self.is_known(instrument):
            return None
        shown = self.switches[-events:]
        return {"instrument": instrument, "active": "DHAN", "candidates": [], "events": shown}

    def switch_route(
        self, instrument: str, to: str | None, *, for_s: float, by: str, why: str
    ) -> dict[str, Any]:
        if to not in (None, "YF"):
            raise ConfigurationError(f"{instrument} is mapped to DHAN, YF, not to {to}")
        self.switches.append({"to": to, "for_s": for_s, "by": by, "why": why})
        return {"instrument": instrument, "active": "DHAN", "candidates": [], "events": self.switches}

    def similar(self, instrument: str) -> list[str]:
        return ["NSE:TCS"]

    def interest_changed(self, added: frozenset[str], removed: frozenset[str]) -> None:
        assert not added & self.interest
        assert removed <= self.interest
        self.interest = (self.interest | added) - removed
        self.interest_changes += 1


def provider_status(code: str, state: str = "streaming") -> dict[str, Any]:
    """A status with every field of the interface."""
    return {
        "code": code,
        "name": code.title(),
        "state": state,
        "reason": "" if state == "streaming" else "http_429",
        "since_ms": 1_700_000_000_000,
        "connections": 1,
        "subscribed": 50,
        "instruments_live": 48,
        "ticks_per_s": 120.5,
        "last_tick_ms": 1_700_000_001_000,
        "latency_ms": {"p50": 3, "p99": 12} if state == "streaming" else {"p50": None, "p99": None},
        "reconnects": 2,
        "last_error": None,
        "credential_expires_ms": None,
    }


class Market:
    """Makes ticks with positions and offers them to a broadcast, and to a stream writer if there is one."""

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = sinks
        self.made: list[Record] = []
        self.position_ms = 1_700_000_000_000
        self.sequence = 0

    def tick(self, instrument: str, price: float, **fields: Any) -> DataIngestionFormat:
        """Offer one tick, newer than all before it unless `timestamp` says otherwise."""
        self.sequence += 1
        values = {"timestamp": self.position_ms + self.sequence, "volume": 10} | fields
        record = DataIngestionFormat(
            instrument,
            price,
            provider_code="DHAN",
            exchange=instrument.partition(":")[0],
            position_ms=self.position_ms,
            position_seq=self.sequence,
            **values,
        )
        return self.offer(record)

    def offer(self, record: Any) -> Any:
        """Hand one record to every sink, as the bus does."""
        self.made.append(record)
        for sink in self.sinks:
            sink.offer(record)
        return record

    def control(self, kind: Any, instrument: str, **fields: str | int) -> ControlRecord:
        """Offer one control record."""
        self.sequence += 1
        record = ControlRecord(
            kind,
            instrument,
            instrument.partition(":")[0],
            self.position_ms + self.sequence,
            self.position_ms + self.sequence,
            "DHAN",
            fields,
            self.position_ms,
            self.sequence,
        )
        self.offer(record)
        return record


class GatewayRig:
    """A running gateway with its broadcast, its backend and a client's HTTP session."""

    def __init__(
        self,
        backend: StubBackend,
        broadcast: DataBroadcast,
        gateway: Gateway,
        url: str,
        stream: StreamWriter | None,
    ) -> None:
        self.backend, self.broadcast, self.gateway, self.url = backend, broadcast, gateway, url
        self.market = Market(broadcast, *([stream] if stream else []))
        self.stream = stream
        self.port = int(url.rpartition(":")[2])
        self.http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        self.sockets: list[aiohttp.ClientWebSocketResponse] = []
        self.raw_clients: list[RawClient] = []
        self.responses: list[aiohttp.ClientResponse] = []

    async def connect(self, **options: Any) -> aiohttp.ClientWebSocketResponse:
        """Open a WebSocket."""
        options.setdefault("max_msg_size", 16 << 20)
        opened = await self.http.ws_connect(f"{self.url}/ws", **options)
        # One that nobody holds would be closed by the garbage collector.
        self.sockets.append(opened)
        return opened

    async def subscriber(
        self, *instruments: str, **fields: Any
    ) -> tuple[aiohttp.ClientWebSocketResponse, dict[str, Any]]:
        """Open a WebSocket and subscribe; return it with the answer."""
        socket = await self.connect()
        answer = await ask(socket, action="subscribe", id=1, instruments=list(instruments), **fields)
        assert answer["type"] == "subscribed", answer
        return socket, answer

    async def raw_client(self, *, receive_buffer: int | None = None) -> RawClient:
        """Open a WebSocket on a bare socket; closed with the gateway."""
        client = await RawClient.connect(self.port, receive_buffer=receive_buffer)
        self.raw_clients.append(client)
        return client

    def figures(self) -> dict[str, Any]:
        """The gateway's own figures."""
        return self.gateway.client_figures()


@contextlib.asynccontextmanager
async def running_gateway(
    instruments: Sequence[str] = ("NSE:RELIANCE", "NSE:TCS", "NASDAQ:AAPL"),
    *,
    redis_url: str | None = None,
    max_entries: int = 1_000_000,
    bars: BarSink | None = None,
    options: OptionDesk | None = None,
    news: NewsSource | None = None,
    **config: Any,
) -> AsyncIterator[GatewayRig]:
    """A gateway on a free loopback port, stopped (within its bound) at the end.

    With `redis_url` the market's records go into streams there, and clients that come back are
    answered from them. `bars` hears the market's records and is what charts show; `options` answers for
    option chains, `news` for news.
    """
    backend = StubBackend(instruments)
    broadcast = DataBroadcast(SystemClock())
    config.setdefault("port", 0)
    history = stream = None
    if redis_url is not None:
        history = StreamHistory(redis_url)
        stream = StreamWriter(redis_url, max_entries=max_entries, **quick())
    gateway = Gateway(
        backend, broadcast, GatewayConfig(**config), history, bars, routes=backend, options=options, news=news
    )
    url = await gateway.start()
    serving = asyncio.create_task(gateway.run())
    writing = asyncio.create_task(stream.run()) if stream else None
    rig = GatewayRig(backend, broadcast, gateway, url, stream)
    if bars is not None:
        rig.market.sinks = (bars, *rig.market.sinks)
    try:
        yield rig
        assert not serving.done(), "the gateway's loop ended"
    finally:
        # Let go of now: the collector may find a connection before the answer that owns it, and complain.
        for response in (*rig.responses, *(opened._response for opened in rig.sockets)):
            response.close()
        await rig.http.close()
        for client in rig.raw_clients:
            client.close()
        began_s = time.monotonic()
        await gateway.stop()
        took_s = time.monotonic() - began_s
        tasks = [serving] + ([writing] if writing else [])
        for task in tasks:
            task.cancel()
        # Not awaited one by one: an exception would tie this frame, and its sockets, into a cycle.
        await asyncio.wait(tasks)
    assert took_s < 4.0, f"stopping took {took_s:.1f} s"


async def ask(socket: aiohttp.ClientWebSocketResponse, **message: Any) -> dict[str, Any]:
    """Send one message and return the next one that is not data."""
    await socket.send_json(message)
    while True:
        answer = await socket.receive_json(timeout=5)
        if answer["type"] != "raw_tick":
            return answer


class RawClient:
    """A WebSocket client on a bare socket, which reads only when told to."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.buffer = b""
        self.pongs = 0

    @classmethod
    async def connect(cls, port: int, *, receive_buffer: int | None = None) -> RawClient:
        """Open a connection and finish the handshake."""
        connection = socket.socket()
        connection.setblocking(False)
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", port))
        request = (
            f"GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        client = cls(connection)
        await loop.sock_sendall(connection, request.encode())
        while b"\r\n\r\n" not in client.buffer:
            client.buffer += await loop.sock_recv(connection, 1)
        assert client.buffer.startswith(b"HTTP/1.1 101"), client.buffer
        client.buffer = b""
        return client

    async def send(self, message: dict[str, Any] | bytes, opcode: int = 0x81) -> None:
        """Send one masked frame."""
        payload = message if isinstance(message, bytes) else json.dumps(message).encode()
        size = len(payload)
        length = bytes([0x80 | size]) if size < 126 else bytes([0x80 | 126]) + size.to_bytes(2, "big")
        await self.send_raw(bytes([opcode]) + length + b"\0\0\0\0" + payload)

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        await asyncio.get_running_loop().sock_sendall(self.connection, data)

    async def read(self, at_most: int) -> list[dict[str, Any]]:
        """Read some bytes, answer pings, return the messages that are complete now; EOFError at the end."""
        data = await asyncio.get_running_loop().sock_recv(self.connection, at_most)
        if not data:
            raise EOFError
        self.buffer += data
        messages = []
        while (frame := self._frame()) is not None:
            opcode, payload = frame
            if opcode == 9:
                self.pongs += 1
                await self.send(payload, 0x8A)
            elif opcode == 1:
                messages.append(json.loads(payload))
            elif opcode == 8:
                messages.append({"type": "close", "code": int.from_bytes(payload[:2], "big")})
        return messages

    def _frame(self) -> tuple[int, bytes] | None:
        buffer = self.buffer
        if len(buffer) < 2:
            return None
        size, start = buffer[1], 2
        if size == 126:
            size, start = int.from_bytes(buffer[2:4], "big"), 4
        elif size == 127:
            size, start = int.from_bytes(buffer[2:10], "big"), 10
        if len(buffer) < start or len(buffer) < start + size:
            return None
        self.buffer = buffer[start + size :]
        return buffer[0] & 15, buffer[start : start + size]

    def is_cut(self) -> bool:
        """Tell, without reading, whether the other side has cut the connection."""
        return self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0 or bool(
            self._poll() & (select.POLLHUP | select.POLLERR)
        )

    def _poll(self) -> int:
        poller = select.poll()
        poller.register(self.connection, select.POLLHUP | select.POLLERR)
        events = poller.poll(0)
        return events[0][1] if events else 0

    def close(self) -> None:
        """Close the socket."""
        self.connection.close()
