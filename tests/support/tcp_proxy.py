"""A TCP proxy on loopback that hurts what passes through it."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from types import TracebackType
from typing import Self

_LINGER_ZERO = struct.pack("ii", 1, 0)


class TcpProxy:
    """Stands between a client and `target_port`; every switch takes effect at once.

    `cut_after_bytes`: reset each connection after so many bytes of replies. `latency_s`: delay in each
    direction. `replies_held`: swallow nothing, but pass no reply on. `refusing`: reset new connections.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.cut_after_bytes: int | None = None
        self.latency_s = 0.0
        self.replies_flow = asyncio.Event()
        self.replies_flow.set()
        self.refusing = False
        self.accepted = 0
        self.cuts = 0

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.reset_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset_all(self) -> None:
        """Reset every connection that passes through."""
        for writer in list(self._writers):
            self._reset(writer)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        if writer.transport.is_closing():
            return
        sock = writer.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(1, 13, _LINGER_ZERO)  # SOL_SOCKET, SO_LINGER
        writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.refusing:
            self._reset(writer)
            return
        try:
            to_server = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            self._reset(writer)
            return
        self._writers |= {writer, to_server[1]}
        for work in (self._requests(reader, to_server[1]), self._replies(to_server[0], writer, to_server[1])):
            task = asyncio.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _requests(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                target.write(data)
        target.close()
        self._writers.discard(target)

    async def _replies(
        self, source: asyncio.StreamReader, client: asyncio.StreamWriter, server: asyncio.StreamWriter
    ) -> None:
        passed = 0
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if self.latency_s:
                    await asyncio.sleep(self.latency_s)
                await self.replies_flow.wait()
                if self.cut_after_bytes is not None and passed + len(data) > self.cut_after_bytes:
                    client.write(data[: max(0, self.cut_after_bytes - passed)])
                    self.cuts += 1
                    # A close, not a reset, so that the bytes before the cut arrive.
                    client.close()
                    server.transport.abort()
                    break
                passed += len(data)
                client.write(data)
        client.close()
        self._writers.discard(client)
