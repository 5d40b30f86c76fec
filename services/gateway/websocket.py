"""The WebSocket end point `/ws`: the handshake, and the receiving half of each client.

Who may connect is decided before the upgrade wherever it can be. After it, aiohttp reads and checks
frames (at most 16 KiB, no compression), and a `ClientSession` does everything else.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from typing import Any

import structlog
from aiohttp import WSCloseCode, WSMsgType, web

from services.gateway.authentication import Authenticator, Principal, bearer_secret
from services.gateway.errors import HttpError
from services.gateway.grants import TICKS
from services.gateway.limits import AddressCensus, ClientLimits
from services.gateway.pacer import Pacer
from services.gateway.protocol import MAX_MESSAGE_BYTES, ClientMessageError
from services.gateway.session import CLOSE_RESTARTING, ClientSession, SessionContext

_log = structlog.get_logger(__name__)


SHOWN_SESSIONS = 20
"""So many clients are shown one by one, those furthest behind first."""


class WebSocketEndpoint:
    """Accepts clients and keeps the set of their sessions."""

    def __init__(
        self, context: SessionContext, authenticator: Authenticator, limits: ClientLimits, pacer: Pacer
    ) -> None:
        self._context = context
        self._authenticator = authenticator
        self._limits = limits
        self._pacer = pacer
        self._census = AddressCensus(limits.clients_per_address)
        self.sessions: set[ClientSession] = set()
        self.stopping = False
        self.relieving = False
        self.accepted = 0
        self.refused = 0
        self.closed_by_code: dict[int, int] = {}
        self._left: asyncio.Event | None = None
        self._past = dict.fromkeys(("frames_out", "bytes_out", "messages_in", "errors", "skipped"), 0)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one connection to `/ws` from the handshake to its end."""
        if not _asks_for_upgrade(request):
            raise HttpError(
                426,
                "upgrade_required",
                "this address speaks WebSocket only: connect to it with ws:// or wss://",
                headers={"Upgrade": "websocket", "Connection": "Upgrade"},
            )
        principal = self._authenticate(request)
        address = request.remote or ""
        self.take_place(principal, address)
        try:
            return await self._serve(request, principal, address)
        finally:
            self.leave_place(address)

    def take_place(self, principal: Principal | None, address: str) -> None:
        """Count a client in at its address. Raises 403 without the scope, 503 when all places are taken."""
        if self.stopping:
            raise HttpError(503, "not_ready", "the daemon takes no clients now; try again", retry_after_s=2)
        if self.relieving:
            self.refused += 1
            raise HttpError(503, "short_of_memory", "no new clients just now; try later", retry_after_s=10)
        if principal is not None and not principal.grant.allows(TICKS):
            self.refused += 1
            raise HttpError(403, "forbidden", "this token is not for live data: it lacks the scope ticks")
        full = len(self.sessions) >= self._limits.clients or not self.has_place(principal)
        if full or not self._census.enter(address):
            self.refused += 1
            raise HttpError(503, "too_many_clients", "all places are taken; try later", retry_after_s=10)

    def leave_place(self, address: str) -> None:
        """Count a client out."""
        self._census.leave(address)

    def has_place(self, principal: Principal | None) -> bool:
        """Tell whether one more client may use this token."""
        if principal is None or not self._authenticator.required:
            return True
        same = sum(
            1
            for session in self.sessions
            if session.principal is not None and session.principal.name == principal.name
        )
        return same < self._limits.clients_per_token

    def figures(self) -> dict[str, Any]:
        """Return how many clients there are, what they watch, and what was sent, heard and skipped."""
        now_s = self._context.clock.monotonic_s()
        sums = dict(self._past)
        for session in self.sessions:
            _add(sums, session)
        return {
            "connected": len(self.sessions),
            "watched": sum(session.instruments for session in self.sessions),
            "lag_ms_max": max((session.lag_ms(now_s) for session in self.sessions), default=0),
            "delivered_within": self._pacer.delivered_within.figures(),
            "accepted": self.accepted,
            "refused": self.refused,
            "closed_by_code": dict(self.closed_by_code),
            "by_protocol": self._by_protocol(now_s),
            **sums,
            "sessions": self._slowest(now_s),
        }

    def _by_protocol(self, now_s: float) -> dict[str, dict[str, int]]:
        """Return how many clients of each kind there are, and how far the slowest of them is behind."""
        found = {protocol: {"connected": 0, "lag_ms_max": 0} for protocol in ("websocket", "sse")}
        for session in self.sessions:
            kind = found[session.protocol]
            kind["connected"] += 1
            kind["lag_ms_max"] = max(kind["lag_ms_max"], session.lag_ms(now_s))
        return found

    def _slowest(self, now_s: float) -> list[dict[str, Any]]:
        """Return the clients that are furthest behind, at most `SHOWN_SESSIONS`."""
        furthest = heapq.nlargest(SHOWN_SESSIONS, self.sessions, key=lambda session: session.lag_ms(now_s))
        return [
            {
                "id": session.id,
                "name": session.principal.name if session.principal is not None else "",
                "address": session.address,
                "protocol": session.protocol,
                "instruments": session.instruments,
                "lag_ms": session.lag_ms(now_s),
                "skipped": session.outbox.skipped_total,
                "frames_out": session.counters.frames_out,
            }
            for session in furthest
        ]

    def relieve(self, on: bool) -> None:
        """While `on`, take no new clients and give those there are less."""
        self.relieving = on
        for session in self.sessions:
            session.relieve(on)

    async def close_all(self, within_s: float, reason: str = "the daemon stops; connect again") -> None:
        """Tell every client to connect again (1012), wait for them, cut those that remain."""
        self.stopping = True
        for session in list(self.sessions):
            session.close(CLOSE_RESTARTING, reason)
        if self.sessions:
            self._left = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await self._left.wait()
        for session in list(self.sessions):
            session.abort(CLOSE_RESTARTING, reason)

    def _authenticate(self, request: web.Request) -> Principal | None:
        """Return who connects, None when the first message must say so. Raises 401 for a wrong secret."""
        secret = bearer_secret(request.headers.get("Authorization"))
        if secret is None:
            if request.headers.get("Authorization") is not None:
                raise HttpError(401, "unauthorized", "the Authorization header must be Bearer SECRET")
            return None if self._authenticator.required else self._authenticator.check("")
        principal = self._authenticator.check(secret)
        if principal is None:
            self.refused += 1
            raise HttpError(401, "unauthorized", "the token is not valid")
        return principal

    async def _serve(
        self, request: web.Request, principal: Principal | None, address: str
    ) -> web.StreamResponse:
        socket = _Socket(
            timeout=self._limits.closing_s,
            autoclose=False,
            autoping=False,
            compress=False,
            max_msg_size=MAX_MESSAGE_BYTES,
            decode_text=False,
        )
        try:
            await socket.prepare(request)
        except ConnectionResetError:
            # Gone before the handshake was answered, as in a storm: no fault of ours.
            return socket
        transport = request.transport
        if transport is None:
            return socket
        session = ClientSession(
            self._context,
            transport,
            address=address,
            principal=principal,
            origin=request.headers.get("Origin", ""),
            has_place=self.has_place,
            descriptor=_descriptor_of(transport),
        )
        socket.session = session
        self.enter(session)
        try:
            await self._receive(socket, session)
        finally:
            self.leave(session, int(socket.close_code or 1006))
            # The closing handshake is ours and done; aiohttp must not begin another one. What is still
            # on its way may arrive, but a client that reads nothing must not hold the connection open.
            transport.close()
            asyncio.get_running_loop().call_later(self._limits.closing_s, transport.abort)
        return socket

    def enter(self, session: ClientSession) -> None:
        """Begin to serve a session."""
        self.accepted += 1
        self.sessions.add(session)
        self._pacer.enter(session)
        _log.info(
            "client_connected",
            client=session.id,
            protocol=session.protocol,
            address=session.address,
            origin=session.origin,
            name=session.principal.name if session.principal else "",
        )

    async def _receive(self, socket: _Socket, session: ClientSession) -> None:
        while True:
            message = await socket.receive()
            match message.type:
                case WSMsgType.PONG:
                    session.heard_pong(bytes(message.data))
                case WSMsgType.CLOSE:
                    session.heard_close(message.data or 1005)
                    return
                case WSMsgType.ERROR | WSMsgType.CLOSING | WSMsgType.CLOSED:
                    # aiohttp has refused a frame (too big, not UTF-8, not WebSocket) and told the client why.
                    session.heard_end(int(socket.close_code or 1006))
                    return
                case _ if session.closing:
                    continue
                case WSMsgType.TEXT:
                    session.hear(message.data)
                case WSMsgType.PING:
                    session.heard_ping(bytes(message.data))
                case _:
                    session.refuse(ClientMessageError("text_only", "messages must be text frames"))

    def leave(self, session: ClientSession, code: int) -> None:
        """Let go of a session whose connection is gone, and write what it was; `code` where it has none."""
        session.ended()
        self._pacer.leave(session)
        self.sessions.discard(session)
        if self._left is not None and not self.sessions:
            self._left.set()
        _add(self._past, session)
        code = session.close_code or code
        self.closed_by_code[code] = self.closed_by_code.get(code, 0) + 1
        now_s = self._context.clock.monotonic_s()
        _log.info(
            "client_disconnected",
            client=session.id,
            protocol=session.protocol,
            address=session.address,
            origin=session.origin,
            name=session.principal.name if session.principal else "",
            code=code,
            reason=session.close_reason,
            lasted_s=round(now_s - session.opened_s, 1),
            messages_in=session.counters.messages_in,
            errors=session.counters.errors,
            frames_out=session.counters.frames_out,
            bytes_out=session.counters.bytes_out,
            skipped=session.outbox.skipped_total,
        )


class _Socket(web.WebSocketResponse[bool]):
    """Tells the session when aiohttp closes on its own (for a frame it refuses), so that no data follows."""

    session: ClientSession | None = None

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        """Close the WebSocket."""
        if self.session is not None:
            # Without a refusal of its own aiohttp comes here only when the connection is lost.
            self.session.heard_end(1006 if code == WSCloseCode.OK else int(code))
        return await super().close(code=code, message=message, drain=drain)


def _add(sums: dict[str, int], session: ClientSession) -> None:
    counters = session.counters
    sums["frames_out"] += counters.frames_out
    sums["bytes_out"] += counters.bytes_out
    sums["messages_in"] += counters.messages_in
    sums["errors"] += counters.errors
    sums["skipped"] += session.outbox.skipped_total


def _descriptor_of(transport: asyncio.Transport) -> int:
    """Return the descriptor of a transport that writes to a socket as it is given; -1 for any other."""
    connection = transport.get_extra_info("socket")
    if connection is None or transport.get_extra_info("sslcontext") is not None:
        return -1
    return int(connection.fileno())


def _asks_for_upgrade(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").strip().lower() == "websocket"
