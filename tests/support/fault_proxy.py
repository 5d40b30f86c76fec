"""A TCP proxy between us and a server, with faults that can be switched on while connections live.

    async with FaultProxy("127.0.0.1", port) as proxy: ... proxy.port
    proxy.refuse = True            new connections are reset at once
    proxy.silent = True            new connections are accepted, and nobody is behind them
    proxy.black_hole = True        connections stay open, nothing passes either way
    proxy.drop_replies = True      requests pass, replies are swallowed
    proxy.replies_flow.clear()     requests pass, replies wait until `set()`
    proxy.latency_s = 0.2          every chunk, both ways; plus up to `jitter_s`
    proxy.bytes_per_s = 10_000     each way of each connection
    proxy.slice_bytes = 3          chunks are at most so large
    proxy.cut_reply_after = 1000   a connection ends after so many bytes of replies, `cut_with` "rst" or "fin"
    proxy.reset_all()              all connections are reset now

Every switch takes effect at once, on the connections there are too. Counts what it did, so that a test
can tell that its fault really happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
import struct
from collections.abc import Iterator
from types import TracebackType
from typing import Literal, Self

_LINGER_ZERO = struct.pack("ii", 1, 0)
_CHUNK_BYTES = 1 << 16


class FaultProxy:
    """Forwards to `host:port` from a free loopback port."""

    def __init__(self, host: str, port: int, *, tls: ssl.SSLContext | None = None, seed: int = 1) -> None:
        """Prepare a proxy; with `tls` it speaks TLS to its clients and plain TCP to the server."""
        self._target = (host, port)
        self._tls = tls
        self._random = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self.refuse = self.silent = self.black_hole = self.drop_replies = False
        self.replies_flow = asyncio.Event()
        self.replies_flow.set()
        self.latency_s = self.jitter_s = 0.0
        self.bytes_per_s: float | None = None
        self.slice_bytes: int | None = None
        self.cut_reply_after: int | None = None
        self.cut_with: Literal["rst", "fin"] = "rst"
        self.accepted = self.refused = self.cuts = self.resets = 0
        self.swallowed_bytes = self.delayed_chunks = self.passed_bytes = 0

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        """How many clients are connected just now."""
        return len(self._writers)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, ssl=self._tls)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.reset_all()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._server.wait_closed()

    def reset_all(self) -> None:
        """Reset every connection: the peers see RST."""
        for writer in list(self._writers):
            self._reset(writer)

    def _reset(self, writer: asyncio.StreamWriter) -> None:
        if writer not in self._writers:
            return
        self._writers.discard(writer)
        self.resets += 1
        raw = writer.get_extra_info("socket")
        if raw is not None:
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
        writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream: asyncio.StreamWriter | None = None
        pumps: list[asyncio.Task[None]] = []
        try:
            if self.refuse:
                self.refused += 1
                self._reset(writer)
                return
            self.accepted += 1
            if self.silent:
                await self._swallow(reader)
                return
            answers, upstream = await asyncio.open_connection(*self._target)
            pumps = [
                asyncio.create_task(self._requests(reader, upstream)),
                asyncio.create_task(self._replies(answers, writer)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:
            self._reset(writer)
        finally:
            self._writers.discard(writer)
            # Closed, not reset, so that the bytes before the end arrive.
            writer.close()
            if upstream is not None:
                upstream.transport.abort()
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)

    async def _swallow(self, reader: asyncio.StreamReader) -> None:
        while data := await reader.read(_CHUNK_BYTES):
            self.swallowed_bytes += len(data)

    async def _requests(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK_BYTES):
            if self.black_hole:
                self.swallowed_bytes += len(data)
                continue
            await self._pass(data, target)

    async def _replies(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        passed = 0
        while data := await source.read(_CHUNK_BYTES):
            await self.replies_flow.wait()
            if self.black_hole or self.drop_replies:
                self.swallowed_bytes += len(data)
                continue
            limit = self.cut_reply_after
            if limit is not None and passed + len(data) > limit:
                await self._pass(data[: max(0, limit - passed)], target)
                self.cuts += 1
                if self.cut_with == "rst":
                    self._reset(target)
                return
            passed += len(data)
            await self._pass(data, target)

    async def _pass(self, data: bytes, target: asyncio.StreamWriter) -> None:
        for piece in self._pieces(data):
            wait_s = self.latency_s + self._random.uniform(0.0, self.jitter_s)
            if self.bytes_per_s:
                wait_s += len(piece) / self.bytes_per_s
            if wait_s:
                self.delayed_chunks += 1
                await asyncio.sleep(wait_s)
            target.write(piece)
            await target.drain()
            self.passed_bytes += len(piece)

    def _pieces(self, data: bytes) -> Iterator[bytes]:
        size = self.slice_bytes or len(data) or 1
        for start in range(0, len(data), size):
            yield data[start : start + size]
