"""What others do with the same ticks: reads the load's feed and stores it, in one process as they are used.

    python -m benchmarks.peer awaits|cryptofeed FEED_URL REDIS_URL INSTRUMENTS

`awaits`: redis-py's asyncio client, three awaits a tick (two samples, one stream entry). `cryptofeed`: its
TradeStream backend, called as its feed handler calls it. Both decode the packets with `struct` and check
nothing. Answers every command with what it has handed over so far.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from decimal import Decimal
from urllib.parse import urlsplit

import websockets

from benchmarks.helper import say, stdin_bytes

_QUOTE = struct.Struct("<BHBIfHIfIIIffff")
_IST_OFFSET_S = 19_800
_RECEIVE_BUFFER_BYTES = 128 << 10
"""That of the daemon (`services.connection.transport`), which the Python of cryptofeed cannot import."""
Store = Callable[[str, float, int, int, float], Awaitable[None]]


def awaits(redis_url: str) -> Store:
    """Return redis-py, three awaits a tick."""
    import redis.asyncio

    client = redis.asyncio.from_url(redis_url)
    newest: dict[str, int] = {}

    async def store(symbol: str, price: float, quantity: int, time_ms: int, received_s: float) -> None:
        time_ms = newest[symbol] = max(time_ms, newest.get(symbol, 0) + 1)
        await client.execute_command("TS.ADD", f"peer:{symbol}:price", time_ms, price)
        await client.execute_command("TS.ADD", f"peer:{symbol}:volume", time_ms, quantity)
        await client.xadd(
            "peer:ticks",
            {
                "k": symbol,
                "t": time_ms,
                "r": int(received_s * 1000),
                "p": price,
                "v": quantity,
                "src": "DHAN",
            },
            maxlen=250_000,
            approximate=True,
        )

    return store


def cryptofeed(redis_url: str) -> Store:
    """Return cryptofeed's TradeStream, started as its feed handler starts it."""
    from cryptofeed.backends.redis import TradeStream
    from cryptofeed.types import Trade

    address = redis_url.removeprefix("redis://").removesuffix("/0")
    host, _, port = address.rpartition(":")
    backend = TradeStream(host=host, port=int(port))
    backend.start(asyncio.get_running_loop())

    async def store(symbol: str, price: float, quantity: int, time_ms: int, received_s: float) -> None:
        trade = Trade("NSE", symbol, "buy", Decimal(quantity), Decimal(price), time_ms / 1000, id=None)
        await backend(trade, received_s)

    return store


async def main(which: str, feed_url: str, redis_url: str, instruments: int) -> None:
    """Store what the feed brings until standard input ends."""
    store = {"awaits": awaits, "cryptofeed": cryptofeed}[which](redis_url)
    handed = 0
    ended = asyncio.Event()

    def heard() -> None:
        if not stdin_bytes():
            ended.set()
        else:
            say({"handed": handed})

    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), heard)
    # No pings: behind what it has not read yet a slow program would hear the answers too late.
    async with websockets.connect(
        feed_url, sock=_connection(feed_url), ping_interval=None, compression=None
    ) as feed:
        for first in range(1, instruments + 1, 100):
            rows = [
                {"ExchangeSegment": "NSE_EQ", "SecurityId": str(number)}
                for number in range(first, min(first + 100, instruments + 1))
            ]
            await feed.send(
                json.dumps({"RequestCode": 17, "InstrumentCount": len(rows), "InstrumentList": rows})
            )
        say({"ready": True})
        stopping = asyncio.ensure_future(ended.wait())

        async def read() -> None:
            nonlocal handed
            async for message in feed:
                _, _, _, number, price, quantity, ltt, *_ = _QUOTE.unpack(message)
                await store(f"SYM{number:05d}", price, quantity, (ltt - _IST_OFFSET_S) * 1000, time.time())
                handed += 1

        reading = asyncio.ensure_future(read())
        await asyncio.wait([stopping, reading], return_when=asyncio.FIRST_COMPLETED)
        reading.cancel()


def _connection(feed_url: str) -> socket.socket:
    """Return a socket that holds as little unread as the daemon's, so that a slow program is soon done."""
    parts = urlsplit(feed_url)
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
    made.connect((parts.hostname, parts.port))
    made.setblocking(False)
    return made


if __name__ == "__main__":
    try:
        import uvloop

        uvloop.run(main(*sys.argv[1:4], int(sys.argv[4])))
    except ImportError:
        asyncio.run(main(*sys.argv[1:4], int(sys.argv[4])))
