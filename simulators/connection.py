"""One accepted WebSocket connection of a simulator, with control over every byte of it.

Stands between a simulator and aiohttp's transport. Data frames are assembled here and written in
batches; a connection whose client does not read is not written to beyond a bound.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
import zlib

_ABORT_AFTER_CLOSE_S = 2.0
_CONGESTED_BYTES = 8 * 1024 * 1024
_LINGER_ZERO = struct.pack("ii", 1, 0)
TEXT = 0x81
BINARY = 0x82
_CLOSE = 0x88
_PING = 0x89
_PONG = 0x8A
_COMPRESSED = 0x40
_SYNC_TAIL = b"\x00\x00\xff\xff"


def server_frame(first_byte: int, payload: bytes) -> bytes:
    """Return one unmasked, final WebSocket frame. Source: RFC 6455, section 5.2."""
    size = len(payload)
    if size < 126:
        return bytes((first_byte, size)) + payload
    if size < 65_536:
        return struct.pack("!BBH", first_byte, 126, size) + payload
    return struct.pack("!BBQ", first_byte, 127, size) + payload


class Connection:
    """A connected client. `number` counts the connections of a simulator, from 1.

    `compression_bits` is the agreed window of permessage-deflate, 0 for none. `skipped` counts packets
    that were not sent because the client did not read.
    """

    def __init__(self, number: int, transport: asyncio.Transport, *, compression_bits: int = 0) -> None:
        self.number = number
        self.opened_monotonic_s = time.monotonic()
        self.last_pong_s = self.opened_monotonic_s
        self.last_ping_s = self.opened_monotonic_s
        self.frames_sent = 0
        self.skipped = 0
        self.close_reason = ""
        self.closing = False
        self._transport = transport
        self._pending: list[bytes] = []
        self._deflate = zlib.compressobj(wbits=-compression_bits) if compression_bits else None

    @property
    def congested(self) -> bool:
        """Whether so much is unread that nothing more may be queued."""
        return self._transport.get_write_buffer_size() > _CONGESTED_BYTES

    def queue(self, payload: bytes) -> None:
        """Queue one data packet; `flush` sends what is queued."""
        self._pending.append(payload)

    def flush(self, first_byte: int, *, packets_per_frame: int = 1, copies: int = 1) -> int:
        """Send what is queued, in order, each frame `copies` times; return the number of frames."""
        pending, self._pending = self._pending, []
        if not pending or self.closing or self._transport.is_closing():
            return 0
        if packets_per_frame > 1:
            pending = [
                b"".join(pending[start : start + packets_per_frame])
                for start in range(0, len(pending), packets_per_frame)
            ]
        if copies > 1:
            pending = [payload for payload in pending for _ in range(copies)]
        self.frames_sent += len(pending)
        self._transport.write(b"".join([self._data_frame(first_byte, payload) for payload in pending]))
        return len(pending)

    def _data_frame(self, first_byte: int, payload: bytes) -> bytes:
        if self._deflate is None:
            return server_frame(first_byte, payload)
        # A full flush suits clients that keep the window as well as those that do not.
        packed = self._deflate.compress(payload) + self._deflate.flush(zlib.Z_FULL_FLUSH)
        return server_frame(first_byte | _COMPRESSED, packed.removesuffix(_SYNC_TAIL))

    def send_now(self, first_byte: int, payload: bytes) -> None:
        """Send one data frame at once."""
        if not self.closing and not self._transport.is_closing():
            self.frames_sent += 1
            self._transport.write(self._data_frame(first_byte, payload))

    def ping(self) -> None:
        """Send a ping."""
        self.last_ping_s = time.monotonic()
        self._control(_PING, b"")

    def pong(self, payload: bytes) -> None:
        """Answer a ping."""
        self._control(_PONG, payload)

    def _control(self, first_byte: int, payload: bytes) -> None:
        if not self.closing and not self._transport.is_closing():
            self._transport.write(server_frame(first_byte, payload))

    def close(self, code: int | None, reason: str = "") -> None:
        """Send a close frame (without a status for None) and give the client a moment to answer."""
        if self.closing or self._transport.is_closing():
            return
        payload = b"" if code is None else struct.pack("!H", code) + reason.encode()[:123]
        self._transport.write(server_frame(_CLOSE, payload))
        self.closing = True
        self.close_reason = self.close_reason or ("close without status" if code is None else f"close {code}")
        asyncio.get_running_loop().call_later(_ABORT_AFTER_CLOSE_S, self._transport.abort)

    def answer_close(self, code: int | None) -> None:
        """Finish the close handshake that the client began, or that it has just answered."""
        if not self.closing:
            self.close(code if code and 1000 <= code < 5000 and code not in (1005, 1006) else None)
            self.close_reason = "closed by the client"
        self.end()

    def end(self) -> None:
        """Let go of the TCP connection once everything is written."""
        self._transport.close()

    def abort(self, *, reset: bool = True) -> None:
        """Drop the TCP connection without a close frame, by default with a reset."""
        self.closing = True
        self.close_reason = self.close_reason or "abort"
        if reset and not self._transport.is_closing():
            wire = self._transport.get_extra_info("socket")
            if wire is not None:
                wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        self._transport.abort()
