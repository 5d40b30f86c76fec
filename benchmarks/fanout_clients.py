"""WebSocket clients for the fan-out benchmark, many in one process; the standard library and nothing of ours.

Run as a process: `fanout_clients.py PORT CLIENTS FIRST INSTRUMENTS EACH BASE_S`. Each line on standard input
is a command as JSON, each answer a line on standard output: `begin` and `end` bound a measurement, `freeze`
stops reading (a connection that the gateway cuts is opened again, and frozen again), `thaw` reads again.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import struct
import sys
import time
from typing import Any

STAMPS_PER_S = 10_000
_CUT_WITHIN_S = 7.0
_SAMPLED = 7
_STAMP = re.compile(rb'"last_price":(\d+)')


class Tally:
    """What all clients of this process saw since `begin`: ticks, and the ages of a sample of them."""

    def __init__(self, base_s: float) -> None:
        self.base_s = base_s
        self.begin()

    def begin(self) -> None:
        """Forget what was before."""
        self.ticks = 0
        self.chunks = 0
        self.ages: list[float] = []

    def take(self, data: bytes) -> None:
        """Take note of what one read brought."""
        self.ticks += data.count(b'"last_price"')
        self.chunks += 1
        if self.chunks % _SAMPLED == 0:
            now = (time.monotonic() - self.base_s) * STAMPS_PER_S
            self.ages += [(now - int(stamp)) / STAMPS_PER_S * 1000 for stamp in _STAMP.findall(data)[:20]]

    def end(self) -> dict[str, Any]:
        """Return ticks seen and quantiles of their ages in ms."""
        ages = sorted(self.ages)
        found: dict[str, Any] = {"ticks": self.ticks, "sampled": len(ages)}
        for name, part in (("p50", 0.5), ("p99", 0.99)):
            found[name] = ages[int((len(ages) - 1) * part)] if ages else None
        return found


class Reader(asyncio.Protocol):
    """One client: subscribes, counts, answers pings."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self.request, self.tally = request, tally
        self.transport: Any = None
        self.open = False
        self.subscribed = False
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        self.transport = transport
        self.transport.write(
            b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )

    def data_received(self, data: bytes) -> None:
        """Count ticks; find the pings between the frames."""
        if not self.open:
            self._rest += data
            _, end, data = self._rest.partition(b"\r\n\r\n")
            if not end:
                return
            self.open, self._rest = True, b""
            self.transport.write(masked(0x81, self.request))
        self.tally.take(data)
        self.subscribed = self.subscribed or b'"subscribed"' in data
        buffer = self._rest + data
        at, size = 0, len(buffer)
        while size - at >= 2:
            length, start = buffer[at + 1], at + 2
            if length == 126:
                if size < at + 4:
                    break
                length, start = int.from_bytes(buffer[at + 2 : at + 4], "big"), at + 4
            elif length == 127:
                if size < at + 10:
                    break
                length, start = int.from_bytes(buffer[at + 2 : at + 10], "big"), at + 10
            if size < start + length:
                break
            if buffer[at] == 0x89:
                self.transport.write(masked(0x8A, buffer[start : start + length]))
            at = start + length
        self._rest = buffer[at:]


def masked(first: int, payload: bytes) -> bytes:
    """Return a frame as clients send them, with a mask of zeros."""
    size = len(payload)
    length = struct.pack("!BB", first, 0x80 | size) if size < 126 else struct.pack("!BBH", first, 0xFE, size)
    return length + b"\0\0\0\0" + payload


class Crowd:
    """All clients of this process."""

    def __init__(self, port: int, count: int, first: int, instruments: int, each: int, base_s: float) -> None:
        self.port = port
        self.tally = Tally(base_s)
        self.frozen = False
        self.requests = []
        for number in range(first, first + count):
            keys = random.Random(number).sample(range(instruments), each)
            wish = {
                "action": "subscribe",
                "id": 1,
                "delivery": "all",
                "instruments": [f"NSE:S{key}" for key in keys],
            }
            self.requests.append(json.dumps(wish).encode())
        self.clients: list[Reader | None] = [None] * count

    async def connect(self, index: int) -> None:
        """Open one client's connection, in place of the one it had."""
        former = self.clients[index]
        if former is not None:
            former.transport.abort()
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(
            lambda: Reader(self.requests[index], self.tally), "127.0.0.1", self.port
        )
        self.clients[index] = client
        for _ in range(1_000):
            if client.subscribed:
                break
            await asyncio.sleep(0.01)
        if self.frozen:
            client.transport.pause_reading()

    async def connect_all(self) -> None:
        """Open every connection, a few at a time."""
        for start in range(0, len(self.clients), 25):
            await asyncio.gather(
                *(self.connect(index) for index in range(start, min(start + 25, len(self.clients))))
            )

    async def stay_frozen(self) -> None:
        """Come back once the gateway has cut the connection, and freeze again."""
        pause_s = _CUT_WITHIN_S / len(self.clients)
        while True:
            for index in range(len(self.clients)):
                await asyncio.sleep(pause_s)
                if self.frozen:
                    await self.connect(index)

    async def freeze(self, on: bool) -> None:
        """Stop reading everywhere, or connect anew and read."""
        self.frozen = on
        if on:
            for client in self.clients:
                if client is not None:
                    client.transport.pause_reading()
        else:
            await self.connect_all()


async def main(arguments: list[str]) -> None:
    """Connect, then obey."""
    port, count, first, instruments, each = map(int, arguments[:5])
    crowd = Crowd(port, count, first, instruments, each, float(arguments[5]))
    await crowd.connect_all()
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    coming_back = asyncio.ensure_future(crowd.stay_frozen())
    print(json.dumps({"connected": count}), flush=True)
    while line := await reader.readline():
        answer: dict[str, Any] = {}
        match json.loads(line)["do"]:
            case "begin":
                crowd.tally.begin()
            case "end":
                answer = crowd.tally.end()
            case "freeze":
                await crowd.freeze(True)
            case "thaw":
                await crowd.freeze(False)
        print(json.dumps(answer), flush=True)
    coming_back.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
