"""A WebSocket server with every fault at hand: listener, handshakes, connections, keep-alive.

Stands under the vendors' simulators, which add paths, protocol and packets. Both its tasks are watched:
a crash of one is seen by `wait_failed` and raised by `stop`.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, ClassVar, Self

import msgspec
from aiohttp import WSMsgType, web

from simulators.connection import Connection
from simulators.faults import FaultState
from simulators.journal import ConnectionEvent, Journal

_KEEPALIVE_CHECK_S = 0.25
_MAX_MESSAGE_BYTES = 8 * 1024 * 1024


class ClientRequest(msgspec.Struct, frozen=True):
    """One message or HTTP request of a client, or a handshake (`connection` 0: none yet).

    `kind` is `handshake`, `http`, `text` or `binary`; `content` is the text as sent, bytes in hexadecimal.
    """

    connection: int
    at_ms: int
    kind: str
    content: str


class WireServer(ABC):
    """The sockets of one vendor. `port` 0 takes a free one.

    `requests` holds the newest messages of clients, `faults` the faults that last, `fault_counts` how often
    each took effect. `ping_interval_s` 0 sends no pings; a client that answers none for `pong_timeout_s` is
    dropped. Use it as an async context manager inside a running loop.
    """

    provider: ClassVar[str]

    def __init__(
        self,
        *,
        journal: Journal | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        compression: bool = False,
        ping_interval_s: float = 0.0,
        pong_timeout_s: float = 40.0,
        now_ms: Callable[[], int] | None = None,
    ) -> None:
        self.journal = journal or Journal()
        self.faults = FaultState()
        self.fault_counts: Counter[str] = Counter()
        self.requests: deque[ClientRequest] = deque(maxlen=20_000)
        self.connections: dict[int, Connection] = {}
        self.handshakes = 0
        self.connections_opened = 0
        self.compression = compression
        self.ping_interval_s = ping_interval_s
        self.pong_timeout_s = pong_timeout_s
        self.now_ms = now_ms or (lambda: time.time_ns() // 1_000_000)
        self.host = host
        self.port = port
        self._runner: web.AppRunner | None = None
        self._listener: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._released = asyncio.Event()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    @abstractmethod
    def url(self) -> str:
        """The WebSocket URL a client connects to."""

    async def start(self) -> None:
        """Listen. Raises OSError when the port is taken."""
        app = web.Application(client_max_size=_MAX_MESSAGE_BYTES)
        self._add_routes(app)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        await self.listen()
        self._tasks = [asyncio.create_task(work) for work in self._work()]

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        return [self._keep_alive()]

    @abstractmethod
    def _add_routes(self, app: web.Application) -> None:
        """Add the vendor's paths."""

    async def listen(self) -> None:
        """Accept connections (again); harmless when it does already."""
        if self._listener is not None:
            return
        if self._runner is None or self._runner.server is None:
            raise RuntimeError("start() comes first")
        self._listener = await asyncio.get_running_loop().create_server(
            self._runner.server, self.host, self.port, backlog=512, reuse_address=True
        )
        self.port = self._listener.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Stop listening: new TCP connections are refused, open ones stay."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def release_hanging(self) -> None:
        """Let go of the handshakes that are left hanging."""
        self._released.set()
        self._released = asyncio.Event()

    async def stop(self) -> None:
        """Drop all connections and stop listening; raises what made a task of ours fail, if one did."""
        self.refuse()
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        self._released.set()
        for connection in list(self.connections.values()):
            connection.close_reason = connection.close_reason or "simulator stopped"
            connection.abort(reset=False)
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
        self.journal.flush()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome

    async def wait_failed(self) -> None:
        """Return only when a task of the simulator has ended, which none does by itself."""
        await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)

    def note(self, kind: str, content: str, connection: int = 0) -> None:
        """Remember what a client sent."""
        self.requests.append(ClientRequest(connection, self.now_ms(), kind, content))

    # A connection's life, from handshake to end.

    async def serve(self, request: web.Request, opened: Callable[[Connection], None]) -> web.StreamResponse:
        """Answer a WebSocket handshake and serve the connection until it ends.

        `opened` is called once the handshake is through; it may close the connection.
        """
        self.handshakes += 1
        self.note("handshake", request.path_qs)
        refusal = await self._refused_handshake(request)
        if refusal is not None:
            return refusal
        socket = web.WebSocketResponse(
            autoping=False, autoclose=False, compress=self.compression, max_msg_size=_MAX_MESSAGE_BYTES
        )
        if not socket.can_prepare(request):
            return web.Response(status=426, text="Upgrade Required")
        await socket.prepare(request)
        transport = request.transport
        if transport is None:
            return socket
        self.connections_opened += 1
        connection = Connection(
            self.connections_opened, transport, compression_bits=int(socket.compress or 0)
        )
        self.connections[connection.number] = connection
        self._record(connection, "opened")
        try:
            how = self.faults.close_on_connect
            if how is None:
                opened(connection)
            else:
                self.fault_counts["close_on_connect"] += 1
                if isinstance(how, int):
                    connection.close(how)
                else:
                    connection.abort()
            await self._read(connection, socket)
        finally:
            self.forget(connection)
            connection.end()
            del self.connections[connection.number]
            self._record(connection, "closed", connection.close_reason or "lost")
        return socket

    async def _refused_handshake(self, request: web.Request) -> web.Response | None:
        if self.faults.hanging:
            self.fault_counts["hang"] += 1
            await self._released.wait()
            if request.transport is not None:
                request.transport.abort()
            return web.Response(status=503)
        wanted = self.faults.handshake
        if wanted is None or wanted.status is None:
            return None
        self.fault_counts["handshake_status"] += 1
        headers = {} if wanted.retry_after_s is None else {"Retry-After": str(wanted.retry_after_s)}
        return web.Response(status=wanted.status, headers=headers, text=wanted.body)

    def _record(self, connection: Connection, event: str, reason: str = "") -> None:
        self.journal.record(ConnectionEvent(self.provider, connection.number, event, self.now_ms(), reason))
        self.journal.flush()

    async def _read(self, connection: Connection, socket: web.WebSocketResponse) -> None:
        while True:
            message = await socket.receive()
            kind = message.type
            if kind is WSMsgType.TEXT:
                self.note("text", message.data, connection.number)
                if not connection.closing:
                    self.on_text(connection, message.data)
            elif kind is WSMsgType.BINARY:
                payload = bytes(message.data)
                self.note("binary", payload.hex(), connection.number)
                if not connection.closing:
                    self.on_binary(connection, payload)
            elif kind is WSMsgType.PING:
                connection.pong(bytes(message.data))
            elif kind is WSMsgType.PONG:
                connection.last_pong_s = time.monotonic()
            elif kind is WSMsgType.CLOSE:
                connection.answer_close(message.data)
                return
            else:
                return

    @abstractmethod
    def on_text(self, connection: Connection, text: str) -> None:
        """Act on a text message."""

    @abstractmethod
    def on_binary(self, connection: Connection, payload: bytes) -> None:
        """Act on a binary message."""

    @abstractmethod
    def forget(self, connection: Connection) -> None:
        """Drop everything that is known of a connection that has ended."""

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(_KEEPALIVE_CHECK_S)
            if not self.ping_interval_s:
                continue
            now = time.monotonic()
            for connection in list(self.connections.values()):
                if now - connection.last_pong_s > self.pong_timeout_s:
                    connection.close_reason = "no pong"
                    connection.abort(reset=False)
                elif now - connection.last_ping_s >= self.ping_interval_s:
                    connection.ping()
