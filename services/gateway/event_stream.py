"""Server-sent events at `/api/stream`: the WebSocket protocol for people with `curl`, read only.

A client is the same `ClientSession` as on the WebSocket, with the same outbox, limits and resume; only
its transport is another one. It takes the frames a WebSocket would get and writes their text as events.
The `id` of an event is where the client is after it, `Last-Event-ID` asks to go on from there. Such a
client answers no pings: what the operating system reports as received stands for its pongs.
"""

from __future__ import annotations

import array
import asyncio
import fcntl
import json
import random
import termios
from collections import deque
from collections.abc import Iterator
from typing import Any, cast

import msgspec
from aiohttp import web

from services.gateway.backend import GatewayBackend
from services.gateway.directory import InstrumentDirectory
from services.gateway.errors import HttpError
from services.gateway.guard import PRINCIPAL, Guard, JsonRequestHandler
from services.gateway.protocol import (
    ClientMessageError,
    Subscribe,
    is_well_formed,
    parse_client_message,
)
from services.gateway.session import ClientSession, SessionContext
from services.gateway.side_subscriptions import ALL_NEWS
from services.gateway.websocket import WebSocketEndpoint

DRAIN_POLL_S = 0.02
RETRY_MS = (1_000, 5_000)
"""Clients come back after a time between these, so that they do not all come at once."""
_PARAMETERS = ("instruments", "channels", "interval", "delivery", "every_ms", "expiry", "levels")


class _Head(msgspec.Struct):
    """What an event's id is made of."""

    type: str
    position: dict[str, str] = {}
    epoch: str = ""


_decode_head = msgspec.json.Decoder(_Head).decode


class EventStreamEndpoint:
    """Serves `/api/stream`; the sessions are kept, counted and closed with those of `/ws`."""

    def __init__(
        self,
        context: SessionContext,
        sockets: WebSocketEndpoint,
        guard: Guard,
        backend: GatewayBackend,
        directory: InstrumentDirectory,
    ) -> None:
        self._context = context
        self._sockets = sockets
        self._guard = guard
        self._backend = backend
        self._directory = directory

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Serve one client until it goes."""
        wish = _wish(request)
        self._check_instruments(request, wish)
        address = request.remote or ""
        self._sockets.take_place(request[PRINCIPAL], address)
        try:
            return await self._serve(request, wish, address)
        finally:
            self._sockets.leave_place(address)

    async def _serve(self, request: web.Request, wish: Subscribe, address: str) -> web.StreamResponse:
        inner = request.transport
        response = _EventStreamResponse()
        if inner is None:
            return response
        transport = EventTransport(inner)
        cast(JsonRequestHandler, request.protocol).on_lost = transport.lost
        session = ClientSession(
            self._context,
            transport,
            address=address,
            principal=request[PRINCIPAL],
            origin=request.headers.get("Origin", ""),
            protocol="sse",
        )
        try:
            session.subscribe(wish)
        except ClientMessageError as refusal:
            session.ended()
            raise HttpError(400, refusal.code, str(refusal)) from None
        self._guard.add_headers(request, response)
        self._sockets.enter(session)
        try:
            try:
                await response.prepare(request)
            except ConnectionResetError:
                # Gone before the answer began: no fault of ours.
                return response
            transport.begin()
            while not transport.ended.is_set():
                await transport.changed.wait()
                transport.changed.clear()
                await _answer_pings(transport, session)
        finally:
            self._sockets.leave(session, 1006)
            inner.close()
            asyncio.get_running_loop().call_later(self._context.limits.closing_s, inner.abort)
        return response

    def _check_instruments(self, request: web.Request, wish: Subscribe) -> None:
        """Raise 403 or 404 when there is nothing to stream of all that was asked for."""
        grant = request[PRINCIPAL].grant
        allowed = [
            key
            for key in wish.instruments
            if (grant.touches(key[:-2]) if key.endswith(":*") else grant.covers(key))
            or _is_all_news(key, wish)
        ]
        if not allowed:
            raise HttpError(403, "forbidden", "this token is not for these instruments")
        for key in allowed:
            if _is_all_news(key, wish):
                return
            if not is_well_formed(key):
                continue
            if self._directory.keys_of(key[:-2]) if key.endswith(":*") else self._backend.is_known(key):
                return
        raise HttpError(404, "unknown_instrument", f"not known: {', '.join(allowed[:10])}")


class EventTransport(asyncio.Transport):
    """Takes WebSocket frames and writes server-sent events to the connection beneath."""

    def __init__(self, inner: asyncio.Transport) -> None:
        super().__init__()
        self._inner = inner
        self._held: list[bytes] | None = []
        self._written = 0
        self._epoch = ""
        self._position: dict[str, str] = {}
        self._pings: deque[tuple[bytes, int]] = deque()
        self.ended = asyncio.Event()
        self.changed = asyncio.Event()

    def begin(self) -> None:
        """Send what was held back until the answer's head was out, and everything from now on."""
        held, self._held = self._held or [], None
        self._send(b"retry: %d\n\n" % random.randint(*RETRY_MS))  # noqa: S311 - no secret
        for data in held:
            self.write(data)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        """Write complete WebSocket frames as events."""
        frames = bytes(data)
        if self._held is not None:
            self._held.append(frames)
            return
        events: list[bytes] = []
        for opcode, payload in _frames(frames):
            if opcode == 1:
                events.append(self._event(payload))
            elif opcode == 8:
                self._send(b"".join(events))
                self.close()
                return
            elif opcode == 9:
                # A comment keeps proxies from closing a quiet stream.
                events.append(b": ping\n\n" if not events else b"")
                self._pings.append((payload, self._written + sum(map(len, events))))
                self.changed.set()
        self._send(b"".join(events))

    def read_pings(self) -> list[bytes]:
        """Return the pings that everything before them has reached the client's machine for."""
        arrived = self._written - self._inner.get_write_buffer_size() - self._unacknowledged()
        answered = []
        while self._pings and self._pings[0][1] <= arrived:
            answered.append(self._pings.popleft()[0])
        return answered

    @property
    def awaits_pong(self) -> bool:
        """Whether a ping is not answered yet."""
        return bool(self._pings)

    def lost(self) -> None:
        """Take note that the connection is gone."""
        self.ended.set()
        self.changed.set()

    def close(self) -> None:
        """Send what is written and close."""
        self._inner.close()
        self.lost()

    def abort(self) -> None:
        """Close at once."""
        self._inner.abort()
        self.lost()

    def is_closing(self) -> bool:
        """Tell whether the connection is closing or closed."""
        return self.ended.is_set() or self._inner.is_closing()

    def get_write_buffer_size(self) -> int:
        """Return how many bytes wait in this process."""
        return self._inner.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return a fact of the connection beneath."""
        return self._inner.get_extra_info(name, default)

    def _send(self, data: bytes) -> None:
        if data and not self._inner.is_closing():
            self._written += len(data)
            self._inner.write(data)

    def _event(self, payload: bytes) -> bytes:
        head = _decode_head(payload)
        if head.type == "subscribed":
            self._epoch, self._position = head.epoch, dict(head.position)
        else:
            self._position.update(head.position)
        place = ",".join(f"{exchange}={text}" for exchange, text in self._position.items())
        return b"id: %b\ndata: %b\n\n" % (f"{self._epoch};{place}".encode(), payload)

    def _unacknowledged(self) -> int:
        connection = self._inner.get_extra_info("socket")
        size = array.array("i", [0])
        try:
            fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, size)
        except (OSError, ValueError):
            return 0
        return size[0]


class _EventStreamResponse(web.StreamResponse):
    """A response of unknown length that ends with the connection."""

    _length_check = False

    def __init__(self) -> None:
        super().__init__(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", "Connection": "close"}
        )
        self.force_close()


async def _answer_pings(transport: EventTransport, session: ClientSession) -> None:
    while transport.awaits_pong and not transport.ended.is_set():
        answered = transport.read_pings()
        if answered:
            session.heard_pong(answered[-1])
        else:
            await asyncio.sleep(DRAIN_POLL_S)


def _wish(request: web.Request) -> Subscribe:
    """Return the request as a `subscribe` message. Raises 400 for what cannot be one."""
    for name in request.query:
        if name not in _PARAMETERS:
            raise HttpError(
                400,
                "unknown_parameter",
                f"{name[:40]!r} is no parameter here; there are {', '.join(_PARAMETERS)}",
            )
    asked = ",".join(request.query.getall("instruments", [])).split(",")
    message: dict[str, Any] = {
        "action": "subscribe",
        "instruments": [key for key in (part.strip() for part in asked) if key],
        "delivery": request.query.get("delivery"),
        "interval": request.query.get("interval"),
    }
    if "channels" in request.query:
        message["channels"] = [name.strip() for name in request.query["channels"].split(",")]
    for name in ("every_ms", "expiry", "levels"):
        text = request.query.get(name)
        if text is not None:
            message[name] = int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text
    last_event_id = request.headers.get("Last-Event-ID")
    if last_event_id:
        message["resume"] = _resume(last_event_id)
    try:
        wish = parse_client_message(json.dumps(message))
    except ClientMessageError as refusal:
        raise HttpError(400, refusal.code, str(refusal)) from None
    return cast(Subscribe, wish)


def _is_all_news(key: str, wish: Subscribe) -> bool:
    return key == ALL_NEWS and wish.channels == ("news",)


def _resume(last_event_id: str) -> dict[str, Any]:
    epoch, _, places = last_event_id.strip().partition(";")
    pairs = (place.partition("=") for place in places.split(",") if place)
    return {"epoch": epoch, "position": {exchange: text for exchange, _, text in pairs}}


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield opcode and payload of complete unmasked frames."""
    at = 0
    while at < len(data):
        size, start = data[at + 1], at + 2
        if size == 126:
            size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif size == 127:
            size, start = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        yield data[at] & 15, data[start : start + size]
        at = start + size
