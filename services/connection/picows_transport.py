"""WebSocket connections by picows: the only module that knows the library.

Stands under the connection runner. TLS with the system's certificates, no compression, no redirects,
messages bounded, pings answered at once. Never logs: the library would log addresses with tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import aiohappyeyeballs
import picows

from services.compiled import load
from services.connection.failures import handshake_error
from services.connection.resolver import AddressInfo, Resolver
from services.connection.transport import (
    CloseInfo,
    Endpoint,
    Transport,
    TransportLimits,
    TransportListener,
)
from services.errors import ProviderError, ProviderUnavailable, SettingsUnusable
from services.pipeline.bounded import finishes_within
from services.provider_lifecycle import as_provider_error

_silent = logging.getLogger("picows.silent")
_silent.setLevel(logging.CRITICAL + 1)

_BINARY = picows.WSMsgType.BINARY
_TEXT = picows.WSMsgType.TEXT
_CONTINUATION = picows.WSMsgType.CONTINUATION
_PING = picows.WSMsgType.PING
_PONG = picows.WSMsgType.PONG
_HAPPY_EYEBALLS_DELAY_S = 0.25
_AT_A_STRETCH = 128
"""So many messages of one read are handled before the event loop turns again: some milliseconds.

A read may bring thousands of them, and a full socket is read again and again before anything else runs (up to
32 times by libuv's `uv__read`); timers, clients, and what the disk and Redis answer would wait for all.
"""
_REST_S = 0.005
_MOST_REST_S = 2.0
"""So long reading rests at most; then a disk or Redis is in the way of the queues, and not a flood."""
_Listener: Any = getattr(load("listener"), "Listener", None)


class PicowsConnector:
    """Opens connections; keeps one TLS context, because reading the certificates takes milliseconds.

    While `crowded()` is true, what a flood brings is read and handled no further, for two seconds at most.
    """

    def __init__(self, crowded: Callable[[], bool] = bool) -> None:
        self._crowded = crowded
        self._tls: ssl.SSLContext | None = None
        self._resolver = Resolver()

    async def open(
        self,
        endpoint: Endpoint,
        listener: TransportListener,
        limits: TransportLimits,
        *,
        has_credentials: bool,
    ) -> Transport:
        """Open a connection within `open_timeout_s`. Raises a `ProviderError` that holds no secret."""
        dialler = _Dialler(self._resolver, limits.receive_buffer_bytes)
        frames = _Frames(listener, limits.max_message_bytes, self._crowded)
        error: ProviderError | None = None
        transport: picows.WSTransport | None = None
        try:
            async with asyncio.timeout(limits.open_timeout_s):
                transport, _ = await picows.ws_connect(
                    lambda: _listening(frames),
                    endpoint.url,
                    ssl_context=self._tls_context(endpoint.url),
                    websocket_handshake_timeout=None,
                    logger_name=_silent,
                    enable_auto_pong=False,
                    max_frame_size=limits.max_message_bytes,
                    extra_headers=endpoint.headers,
                    max_redirects=0,
                    socket_factory=dialler.dial,
                )
        except picows.WSHandshakeError as refusal:
            error = _refusal(refusal, has_credentials=has_credentials)
        except TimeoutError:
            error = ProviderUnavailable(
                f"no WebSocket within {limits.open_timeout_s:g} s of trying", reason="open_timeout"
            )
        except OSError as failure:
            # Before ValueError, because an error of a certificate is both.
            error = as_provider_error(failure)
        except (picows.WSInvalidURL, ValueError):
            error = SettingsUnusable("the address of the feed is not a WebSocket address", reason="bad_url")
        finally:
            if transport is None:
                dialler.hang_up()
        # Raised out here, so that no library exception with the address in it hangs on as context.
        if error is not None:
            raise error
        if transport is None or frames.transport is None:
            raise ProviderUnavailable(
                "the server dropped the connection during the handshake", reason="handshake_dropped"
            )
        return _PicowsTransport(transport)

    def _tls_context(self, url: str) -> ssl.SSLContext | None:
        if urlsplit(url).scheme != "wss":
            return None
        if self._tls is None:
            self._tls = ssl.create_default_context()
        return self._tls


class _Dialler:
    """Makes the TCP connection, and ends it when the attempt is given up half-way."""

    def __init__(self, resolver: Resolver, receive_buffer_bytes: int) -> None:
        self._resolver = resolver
        self._receive_buffer_bytes = receive_buffer_bytes
        self._socket: socket.socket | None = None

    async def dial(self, url: picows.WSParsedURL) -> socket.socket:
        addresses = await self._resolver.resolve(url.host, url.port)
        self._socket = await aiohappyeyeballs.start_connection(
            addresses,
            happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY_S,
            interleave=1,
            socket_factory=self._make_socket,
        )
        return self._socket

    def hang_up(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _make_socket(self, address: AddressInfo) -> socket.socket:
        made = socket.socket(address[0], address[1], address[2])
        # Before connecting, because the window is agreed upon then.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self._receive_buffer_bytes)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return made


class _Frames(picows.WSListener):
    """Turns picows frames into whole messages for the listener."""

    __slots__ = (
        "_crowded",
        "_is_tls",
        "_later",
        "_listener",
        "_max_message_bytes",
        "_on_frame",
        "_parts",
        "_parts_are_text",
        "_resting_since_s",
        "_stretch",
        "transport",
    )

    def __init__(
        self, listener: TransportListener, max_message_bytes: int, crowded: Callable[[], bool]
    ) -> None:
        super().__init__()
        self._crowded = crowded
        self._resting_since_s: float | None = None
        self.transport: picows.WSTransport | None = None
        self._listener = listener
        self._on_frame = listener.on_frame
        self._max_message_bytes = max_message_bytes
        self._parts = bytearray()
        self._parts_are_text = False
        self._is_tls = False
        self._stretch = 0
        self._later: deque[str | bytes | None] = deque()

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        self.transport = transport
        self._is_tls = transport.underlying_transport.get_extra_info("ssl_object") is not None

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        kind = frame.msg_type
        if kind is _BINARY and frame.fin:
            if self._stretch < _AT_A_STRETCH:
                self._stretch = 0 if frame.last_in_buffer else self._stretch + 1
                self._on_frame(frame.get_payload_as_bytes())
            else:
                self._handle_later(frame.get_payload_as_bytes())
        elif kind is _TEXT and frame.fin:
            self._take(_text(frame.get_payload_as_bytes()), last=frame.last_in_buffer)
        elif kind is _PING:
            # At once, whatever else waits: the peer counts the seconds.
            transport.send_pong(frame.get_payload_as_bytes())
            self._listener.on_sign_of_life()
        elif kind is _PONG:
            if self._later:
                # It says that what came before it was heard.
                self._later.append(None)
            else:
                self._listener.on_pong()
        elif kind in (_BINARY, _TEXT, _CONTINUATION):
            self._collect(frame)
        else:
            self._handle_waiting(len(self._later))
            transport.send_close(picows.WSCloseCode.OK)
            transport.disconnect()

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:  # noqa: ARG002 - the library's signature
        self._handle_waiting(len(self._later))
        self._listener.on_closed()

    # ---- more at a time than the event loop may stand still for --------------------------------------

    def _take(self, message: str | bytes, *, last: bool) -> None:
        if self._stretch < _AT_A_STRETCH:
            self._stretch = 0 if last else self._stretch + 1
            self._on_frame(message)
        else:
            self._handle_later(message)

    def _handle_later(self, message: str | bytes) -> None:
        self._later.append(message)
        if len(self._later) > 1:
            return
        loop = asyncio.get_running_loop()
        if self._is_tls:
            # Paused within a read, what the library has deciphered already would lie there until the peer
            # sends more (aiofastnet 1.2.0); it ends a read by itself after some hundred KiB.
            loop.call_soon(self._pause_reading)
        else:
            self._pause_reading()
        loop.call_soon(self._handle_more)

    def _rests(self) -> bool:
        """Tell whether the queues need a rest, which is given once for each time they are full."""
        if not self._crowded():
            self._resting_since_s = None
            return False
        now_s = asyncio.get_running_loop().time()
        if self._resting_since_s is None:
            self._resting_since_s = now_s
        return now_s - self._resting_since_s < _MOST_REST_S

    def _handle_more(self) -> None:
        if self._rests():
            asyncio.get_running_loop().call_later(_REST_S, self._handle_more)
            return
        self._handle_waiting(_AT_A_STRETCH)
        if self._later:
            asyncio.get_running_loop().call_soon(self._handle_more)
            return
        self._stretch = 0
        if self.transport is not None and not self.transport.is_disconnected:
            self.transport.underlying_transport.resume_reading()

    def _handle_waiting(self, most: int) -> None:
        later = self._later
        for _ in range(min(most, len(later))):
            message = later.popleft()
            if message is None:
                self._listener.on_pong()
            else:
                self._on_frame(message)

    def _pause_reading(self) -> None:
        if self._later and self.transport is not None and not self.transport.is_disconnected:
            self.transport.underlying_transport.pause_reading()

    def pause_writing(self) -> None:
        """Requests are few and small; the liveness check finds a peer that stopped reading."""

    def resume_writing(self) -> None:
        """See `pause_writing`."""

    def _collect(self, frame: picows.WSFrame) -> None:
        if frame.msg_type is not _CONTINUATION:
            self._parts.clear()
            self._parts_are_text = frame.msg_type is _TEXT
        if len(self._parts) + frame.payload_size > self._max_message_bytes:
            raise picows.WSProtocolError(picows.WSCloseCode.MESSAGE_TOO_BIG, "fragmented message too big")
        self._parts += frame.get_payload_as_memoryview()
        if frame.fin:
            whole = bytes(self._parts)
            self._parts.clear()
            self._take(_text(whole) if self._parts_are_text else whole, last=frame.last_in_buffer)


def _listening(frames: _Frames) -> picows.WSListener:
    """Return what picows is to call: `frames` itself, or the compiled one that stands before it."""
    if _Listener is None:
        return frames
    listener: picows.WSListener = _Listener(_Frames, frames, frames._on_frame, _AT_A_STRETCH)
    return listener


class _PicowsTransport(Transport):
    def __init__(self, transport: picows.WSTransport) -> None:
        self._transport = transport

    def send(self, payload: str | bytes) -> None:
        self._transport.send(_TEXT if isinstance(payload, str) else _BINARY, payload)

    def ping(self) -> None:
        self._transport.send_ping(b"")

    def abort(self) -> None:
        self._transport.disconnect(graceful=False)

    async def close(self, within_s: float) -> None:
        if not self._transport.is_disconnected:
            self._transport.send_close(picows.WSCloseCode.OK)
        if not await finishes_within(self.wait_closed(), within_s):
            self.abort()
            await self.wait_closed()

    async def wait_closed(self) -> CloseInfo:
        (failure,) = await asyncio.gather(self._transport.wait_disconnected(), return_exceptions=True)
        handshake = self._transport.close_handshake
        received = handshake.recv if handshake is not None else None
        if received is None:
            return CloseInfo(failure=failure)
        return CloseInfo(
            close_frame=True,
            code=_number(received.code) or None,
            reason=received.reason or "",
            failure=failure,
        )


def _refusal(refusal: picows.WSHandshakeError, *, has_credentials: bool) -> ProviderError:
    response = refusal.response
    if response is None:
        return ProviderUnavailable("the server did not answer in HTTP", reason="not_http")
    if int(response.status) == 101:
        return ProviderUnavailable("the server's handshake is not valid", reason="bad_handshake")
    return handshake_error(int(response.status), response.headers, has_credentials=has_credentials)


def _number(code: int | picows.WSCloseCode) -> int:
    """Codes that the library has no name for come as plain numbers."""
    return int(code) if isinstance(code, int) else int(code.value)


def _text(payload: bytes) -> str | bytes:
    """Text that is not UTF-8 is handed on as it came; the decoder counts it as damaged."""
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        return payload
