"""Listens, and takes connections off the listening sockets one by one, up to a limit.

In front of the HTTP server. A connection beyond the limit is cut before anything is made for it, so
however many come at once, they never hold more descriptors than the limit and one.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable

import structlog

_log = structlog.get_logger(__name__)

_AT_ONCE = 64
"""Connections taken before the event loop gets its turn."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_REST_S = 0.5
"""How long nothing is accepted after the operating system refused to."""


async def bound_sockets(host: str, port: int, backlog: int) -> list[socket.socket]:
    """Return listening sockets on every address of `host`, all on one port. Raises OSError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            sockets.append(listener)
            listener.setblocking(False)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], port or sockets[0].getsockname()[1], *address[2:]))
            listener.listen(backlog)
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    return sockets


class Acceptor:
    """Accepts on `sockets` from `start` to `close`; `serve()` returns the protocol of a new connection.

    Whoever ends a connection says so by `gone`.
    """

    def __init__(
        self, sockets: list[socket.socket], serve: Callable[[], asyncio.BaseProtocol], *, limit: int
    ) -> None:
        self.sockets = sockets
        self.open = 0
        self.cut = 0
        self._serve = serve
        self._limit = limit
        self._full = False
        self._exhausted = False
        self._closed = False
        self._opening: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to accept."""
        loop = asyncio.get_running_loop()
        for listener in self.sockets:
            loop.add_reader(listener, self._accept, listener)

    def close(self) -> None:
        """Accept nothing any more; harmless when repeated."""
        self._closed = True
        loop = asyncio.get_running_loop()
        for listener in self.sockets:
            if listener.fileno() >= 0:
                loop.remove_reader(listener)
                listener.close()

    def gone(self) -> None:
        """Count one connection out."""
        self.open -= 1
        if self._full and self.open <= self._limit * 9 // 10:
            self._full = False
            _log.info("connections_accepted_again", open=self.open, cut=self.cut)

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(_AT_ONCE):
            try:
                connection, _ = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._rest(listener, error)
                return
            if self.open >= self._limit:
                self._cut(connection)
                continue
            self.open += 1
            connection.setblocking(False)
            task = asyncio.get_running_loop().create_task(self._open(connection), name="accept")
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _open(self, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._serve, connection)
        except OSError:
            # It was gone before it was served; no protocol will say so.
            connection.close()
            self.gone()

    def _cut(self, connection: socket.socket) -> None:
        self.cut += 1
        if not self._full:
            self._full = True
            _log.warning("connections_full", open=self.open, remedy="raise API_MAX_CLIENTS")
        connection.close()

    def _rest(self, listener: socket.socket, error: OSError) -> None:
        if not self._exhausted:
            self._exhausted = True
            _log.error("accept_failed", error=error.strerror, remedy="raise the limit of open files")
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(_REST_S, self._again, listener)

    def _again(self, listener: socket.socket) -> None:
        self._exhausted = False
        if not self._closed:
            asyncio.get_running_loop().add_reader(listener, self._accept, listener)
