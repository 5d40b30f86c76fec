"""A server that speaks Redis' protocol and answers as a test tells it to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

import hiredis

OK = b"+OK\r\n"
MASTER = b"*2\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
LOADING = b"-LOADING Redis is loading the dataset in memory\r\n"

Answer = Callable[[list[str]], bytes]


def willing(command: list[str]) -> bytes:
    """Answer like a Redis that takes everything the stream writer sends, outside and inside of MULTI."""
    name = command[0].upper()
    if name == "HELLO":
        return MASTER
    if name == "PING":
        return b"+PONG\r\n"
    return b"+QUEUED\r\n" if name == "XADD" else OK


class ScriptedRedis:
    """Accepts connections on a loopback port; `answer(command)` gives the bytes to send back."""

    def __init__(self, answer: Answer = willing) -> None:
        self.answer = answer
        self.commands: list[list[str]] = []
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        await asyncio.sleep(0)

    def send_all(self, data: bytes) -> None:
        """Send bytes on every connection, asked or not."""
        for writer in self._writers:
            writer.write(data)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        parser = hiredis.Reader(encoding="utf-8", errors="replace")
        try:
            while data := await reader.read(1 << 16):
                parser.feed(data)
                while (command := parser.gets()) is not False:
                    self.commands.append(command)
                    writer.write(self.answer(command))
        except OSError:
            return
        finally:
            self._writers.discard(writer)
            writer.close()
