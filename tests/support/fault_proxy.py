"""A TCP proxy between us and a server, with faults that can be switched on while connections live.

    async with FaultProxy("127.0.0.1", port) as proxy: ... proxy.port
    proxy.latency_s = 0.2          every chunk, both ways
    proxy.black_hole = True        connections stay open, nothing passes
    proxy.refuse = True            new connections are reset at once
    proxy.cut_reply_after = 1000   the next connections are reset after so many bytes of answers
    proxy.reset_all()              all connections are reset now

Counts what it did, so that a test can tell that its fault really happened.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from types import TracebackType


class FaultProxy:
    """Forwards to `host:port` from a free loopback port."""

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None) -> None:
        """Prepare a proxy; with `tls` it speaks TLS to its clients and plain TCP to the server."""
        self._target = (host, port)
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.latency_s = 0.0
        self.black_hole = False
        self.refuse = False
        self.cut_reply_after: int | None = None
        self.accepted = self.refused = self.resets = self.swallowed_bytes = self.delayed_chunks = 0

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
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
        await self._server.wait_closed()

    def reset_all(self) -> None:
        """Reset every connection: the peers see RST."""
        for writer in list(self._writers):
            self._reset(writer)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        if writer in self._writers:
            self._writers.discard(writer)
            self.resets += 1
            raw = writer.get_extra_info("socket")
            if raw is not None:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        upstream: asyncio.StreamWriter | None = None
        try:
            if self.refuse:
                self.refused += 1
                return
            self.accepted += 1
            answers, upstream = await asyncio.open_connection(*self._target)
            budget = self.cut_reply_after
            done, pending = await asyncio.wait(
                [
                    asyncio.ensure_future(self._pump(reader, upstream, None)),
                    asyncio.ensure_future(self._pump(answers, writer, budget)),
                ],
                return_when=asyncio.FIRST_COMPLETED,
            )
            for pump in pending:
                pump.cancel()
            await asyncio.gather(*done, *pending, return_exceptions=True)
        except OSError:
            pass
        finally:
            self._tasks.discard(task)
            self._reset(writer)
            if upstream is not None:
                upstream.transport.abort()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, budget: int | None
    ) -> None:
        while data := await reader.read(1 << 16):
            if self.latency_s:
                self.delayed_chunks += 1
                await asyncio.sleep(self.latency_s)
            if self.black_hole:
                self.swallowed_bytes += len(data)
                continue
            if budget is not None:
                data, budget = data[:budget], budget - len(data)
            writer.write(data)
            await writer.drain()
            if budget is not None and budget <= 0:
                return
