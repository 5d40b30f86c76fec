"""What Redis itself takes: ready-made commands thrown at it, with nothing computed in between.

Two samples (one TS.MADD of 500) and one flat stream entry a tick, as the daemon writes them; four batches on
the way at a time, every reply counted. The bound of any writer on this machine.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from urllib.parse import urlsplit

import hiredis

from benchmarks.machine import output
from services.operations.redis_binary import find_redis

_TICKS_A_BATCH = 250
_IN_FLIGHT = 4


def command(*arguments: object) -> bytes:
    """Return one command as Redis reads it."""
    parts = [str(argument).encode() for argument in arguments]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%b\r\n" % (len(part), part) for part in parts)


class Blaster:
    """One connection that sends ready-made commands. Blocks: to be used in a thread."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._sock = socket.create_connection((parts.hostname, parts.port))
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = hiredis.Reader()
        self._send([command("AUTH", parts.password or "")], 1)

    def _send(self, payloads: list[bytes], replies_each: int) -> None:
        reader, sock = self._reader, self._sock
        owed: deque[int] = deque()
        for payload in [*payloads, b""]:
            if payload:
                sock.sendall(payload)
                owed.append(replies_each)
            while owed and (len(owed) >= _IN_FLIGHT or not payload):
                while owed[0] and (reply := reader.gets()) is not False:
                    if isinstance(reply, Exception):
                        raise reply
                    owed[0] -= 1
                if owed[0]:
                    reader.feed(sock.recv(1 << 18))
                else:
                    owed.popleft()

    def prepare(self, instruments: int) -> None:
        """Make the series anew, as the daemon makes them."""
        names = [
            f"ceiling:{number}:{field}" for number in range(instruments) for field in ("price", "volume")
        ]
        self._send([command("DEL", *names)], 1)
        create = [
            command(
                *("TS.CREATE", f"ceiling:{number}:{field}", "RETENTION", 172_800_000),
                *("DUPLICATE_POLICY", "LAST", "LABELS", "instrument", f"NSE:SYM{number}", "field", field),
            )
            for number in range(instruments)
            for field in ("price", "volume")
        ]
        self._send(create, 1)

    def run(self, payloads: list[bytes]) -> float:
        """Send what `encoded` has made; return how many seconds it took until every reply was there."""
        began_s = time.perf_counter()
        self._send(payloads, 1 + _TICKS_A_BATCH)
        return time.perf_counter() - began_s

    def close(self) -> None:
        """Leave, with the stream deleted."""
        self._send([command("DEL", "ceiling:ticks")], 1)
        self._sock.close()


def encoded(instruments: int, ticks: int) -> list[bytes]:
    """Return the commands for so many ticks, a batch each; a Redis takes them once."""
    payloads = []
    now_ms = time.time_ns() // 1_000_000
    for first in range(0, ticks, _TICKS_A_BATCH):
        samples: list[object] = ["TS.MADD"]
        entries = []
        for number in range(first, first + _TICKS_A_BATCH):
            which, stamp = number % instruments, now_ms + number // instruments
            price = 1_000 + number % 977 / 20
            samples += [f"ceiling:{which}:price", stamp, price]
            samples += [f"ceiling:{which}:volume", stamp, number % 400]
            head = ("XADD", "ceiling:ticks", "MAXLEN", "~", 250_000, f"{now_ms}-{number}", "type", "tick")
            names = ("k", f"NSE:SYM{which:05d}", "src", "DHAN", "t", stamp, "r", stamp, "p", price)
            day = ("o", price, "h", price, "l", price, "pc", price)
            entries.append(command(*head, *names, "v", number % 400, "cv", number, *day))
        payloads.append(command(*samples) + b"".join(entries))
    return payloads


async def blast(url: str, payloads: list[bytes], replies_each: int) -> None:
    """Send ready-made commands as fast as Redis takes them; each payload causes `replies_each` replies."""

    def run() -> None:
        blaster = Blaster(url)
        blaster._send(payloads, replies_each)
        blaster._sock.close()

    await asyncio.to_thread(run)


async def raw_blaster(url: str, payloads: list[bytes], *, instruments: int = 1_000) -> float:
    """Give Redis what `encoded` has made, the series made before; return how many seconds it took."""

    def run() -> float:
        blaster = Blaster(url)
        try:
            blaster.prepare(instruments)
            return blaster.run(payloads)
        finally:
            blaster.close()

    return await asyncio.to_thread(run)


async def redis_benchmark(url: str, requests: int = 200_000) -> float | None:
    """Return XADD of six fields a second as redis-benchmark measures it; None where there is none."""
    parts = urlsplit(url)
    program = await find_redis()
    tool = program.server.with_name("redis-benchmark")
    if not tool.exists():
        return None
    fields = [
        "k",
        "NSE:RELIANCE",
        "t",
        "1790000000000",
        "r",
        "1790000000000",
        "p",
        "2456.75",
        "v",
        "120",
        "src",
        "DHAN",
    ]
    code, text = await output(
        str(tool),
        *("-h", str(parts.hostname), "-p", str(parts.port), "-a", parts.password or "", "-n", str(requests)),
        *("-P", "100", "-c", "4", "-q", "XADD", "ceiling:benchmark", "MAXLEN", "~", "100000", "*", *fields),
        environment=program.environment(),
    )
    figures = [line for line in text.replace("\r", "\n").splitlines() if "requests per second" in line]
    if code or not figures:
        return None
    return float(figures[-1].rpartition("requests per second")[0].split()[-1])
