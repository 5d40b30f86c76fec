"""The path of one tick through the daemon, without sockets: from the received message to the bytes for Redis.

The daemon's own stages, wired as `LiveDataIngestion` wires them, between a provider connection that never
sends and Redis connections that answer what Redis would. The clock and the loop's time move by hand, so
that the same ticks always take the same steps: what the guard counts and what a profiler looks at.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from benchmarks.ticks import Mode, TickSource
from services.connection.transport import CloseInfo, Transport, TransportListener
from services.data_broadcast import Pending, Publication
from services.dhan_provider import DhanProvider
from services.live_data_ingestion import IngestionConfig, LiveDataIngestion
from services.market_data.clock import ManualClock
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry
from services.storage.connection import RedisConnection

START_MS = 1_790_000_000_000
CLIENTS, WATCHED = 10, 50
TICKS_A_BURST = 64
"""What one read of a busy socket brings."""


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: ManualClock) -> None:
        self._by_hand = clock
        super().__init__()

    def time(self) -> float:
        return self._by_hand.monotonic_s()


class _Feed(Transport):
    """A provider's socket that takes every request and answers pings."""

    def __init__(self, listener: TransportListener) -> None:
        self._listener = listener

    def send(self, payload: str | bytes) -> None:
        return

    def ping(self) -> None:
        self._listener.on_pong()

    def abort(self) -> None:
        return

    async def close(self, within_s: float) -> None:
        return

    async def wait_closed(self) -> CloseInfo:
        return CloseInfo()


class _Connector:
    def __init__(self) -> None:
        self.listener: TransportListener | None = None

    async def open(
        self, endpoint: object, listener: TransportListener, limits: object, **_: object
    ) -> Transport:
        self.listener = listener
        return _Feed(listener)


class _Answering:
    """The transport of a Redis connection: keeps what was written until it is answered."""

    def __init__(self) -> None:
        self.written: deque[bytes] = deque()
        self.bytes = 0

    def write(self, payload: bytes) -> None:
        self.written.append(payload)
        self.bytes += len(payload)

    def set_write_buffer_limits(self, high: int) -> None:
        return

    def abort(self) -> None:
        return


class _Watcher:
    """A conflating client of the broadcast, without its socket."""

    def take(self, publication: Publication) -> None:
        raise NotImplementedError

    def take_control(self, publication: Publication) -> None:
        return


class TickPath:
    """The stages between two fakes. `feed` is what the daemon does; the rest is what the world does."""

    def __init__(
        self,
        instruments: int,
        mode: Mode,
        state_dir: Path,
        *,
        start_ms: int = START_MS,
        always_open: bool = True,
        mappings: MappingSnapshot | None = None,
    ) -> None:
        self.clock = ManualClock(start_ms)
        self._always_open = always_open
        self._mappings = mappings or snapshot(instruments)
        self.loop = _Loop(self.clock)
        asyncio.set_event_loop(self.loop)
        self.source = TickSource(range(1, instruments + 1), mode=mode)
        self.ticks = 0
        self._connector = _Connector()
        self._redis: list[tuple[_Answering, RedisConnection]] = []
        self.daemon = self.loop.run_until_complete(self._build(instruments, mode, state_dir))
        self._settle_in()
        assert self._connector.listener is not None
        self.on_frame = self._connector.listener.on_frame
        self._now_ms = START_MS

    async def _build(self, instruments: int, mode: Mode, state_dir: Path) -> LiveDataIngestion:
        daemon = LiveDataIngestion(
            IngestionConfig(
                database_url="postgresql://nobody@127.0.0.1:1/none",
                redis_url="redis://127.0.0.1:1/0",
                state_dir=state_dir,
                always_open=self._always_open,
            ),
            provider_settings=lambda: {
                "DHAN_CLIENT_ID": "1",
                "DHAN_ACCESS_TOKEN": "token",
                "DHAN_FEED_URL": "ws://127.0.0.1:1",
                "DHAN_FEED_MODE": mode,
            },
            clock=self.clock,
            factories={"DHAN": lambda context: DhanProvider(context, connector=cast(Any, self._connector))},
        )
        daemon.providers.load(self._mappings)
        keys = [instrument_key(number) for number in range(1, instruments + 1)]
        for number in range(CLIENTS):
            watched = [
                keys[(number * WATCHED + place) % len(keys)] for place in range(min(WATCHED, len(keys)))
            ]
            pending: Pending = {}
            daemon.broadcast.attach(_Watcher(), watched, pending)
        for writer in daemon.storage.writers:
            writer._connect = cast(Any, self._connect)
            daemon.supervisor.keep(f"sink:{writer.name}", writer.run)
        await daemon.storage.spool.open()
        await daemon.providers.start()
        return daemon

    async def _connect(self, address: object, name: object) -> RedisConnection:
        transport, connection = _Answering(), RedisConnection()
        connection.connection_made(cast(Any, transport))
        self._redis.append((transport, connection))
        return connection

    def _settle_in(self) -> None:
        for _ in range(200):
            self.clock.advance(0.05)
            time.sleep(0.005)  # files are written by threads, which the clock does not move
            self.turn()
            if self._connector.listener is not None and len(self._redis) >= len(self.daemon.storage.writers):
                break
        for _ in range(20):
            self.clock.advance(0.1)
            self.turn()

    def turn(self) -> None:
        """Let everything run that is ready, and what becomes ready by it: writers send a turn after."""
        self.loop.call_soon(self.loop.call_soon, self.loop.call_soon, self.loop.stop)
        self.loop.run_forever()

    def frames(self, count: int) -> list[bytes]:
        """Return the next messages of the feed."""
        return self.source.payloads(count, now_s=self.clock.now_ms() / 1000)

    def feed(self, frames: list[bytes]) -> None:
        """Take one burst of messages, as one read of the socket brings them, and let the writers send."""
        self.loop.call_soon(self._read, frames)
        self.turn()

    def _read(self, frames: list[bytes]) -> None:
        on_frame = self.on_frame
        for frame in frames:
            on_frame(frame)

    def replies(self) -> list[tuple[RedisConnection, bytes]]:
        """Return what Redis answers to everything that was written since."""
        answers = []
        for transport, connection in self._redis:
            while transport.written:
                answers.append((connection, answer(transport.written.popleft())))
        return answers

    def hear(self, answers: list[tuple[RedisConnection, bytes]]) -> None:
        """Take Redis's answers, as one read of each connection brings them."""
        for connection, reply in answers:
            self.loop.call_soon(connection.data_received, reply)
        self.turn()

    def run(self, ticks: int, around: Callable[[Callable[[], None]], None] = lambda work: work()) -> None:
        """Bring `ticks` ticks through; `around` is given each piece of the daemon's own work."""
        for _ in range(0, ticks, TICKS_A_BURST):
            self.clock.advance(0.001)
            burst = self.frames(TICKS_A_BURST)
            around(lambda burst=burst: self.feed(burst))  # type: ignore[misc]
            while answers := self.replies():
                around(lambda answers=answers: self.hear(answers))  # type: ignore[misc]
            self.ticks += TICKS_A_BURST

    def check(self) -> None:
        """Raise AssertionError unless every tick went all the way."""
        for _ in range(10):
            self.clock.advance(0.05)
            self.turn()
            self.hear(self.replies())
        for sink in self.daemon.sinks:
            if sink.name == "bar_series":
                # It writes finished bars, of which so short a while has none.
                continue
            counters = sink.counters
            done = counters.written + counters.collapsed
            assert done >= self.ticks, f"{sink.name}: {done} of {self.ticks} ticks done"
            assert not counters.dropped, counters.dropped
            assert not counters.rejected, counters.rejected
            assert not counters.errors, f"{sink.name}: {counters.errors} errors"

    def close(self) -> None:
        """End every task."""
        stopping = self.loop.create_task(self.daemon.supervisor.stop(within_s=5.0))
        while not stopping.done():
            self.clock.advance(0.01)
            time.sleep(0.001)
            self.turn()
        self.loop.close()


@contextlib.contextmanager
def path(instruments: int = 1_000, mode: Mode = "quote") -> Iterator[TickPath]:
    """Give a path that is ready for ticks."""
    with tempfile.TemporaryDirectory(prefix="marketd-path-") as folder:
        (Path(folder) / "spool").mkdir()
        made = TickPath(instruments, mode, Path(folder))
        try:
            yield made
        finally:
            made.close()


def instrument_key(number: int) -> str:
    """Return the key of a made-up instrument; its Dhan security id is its number."""
    return f"NSE:SYM{number:05d}"


def snapshot(instruments: int) -> MappingSnapshot:
    """Return the mappings of that many instruments, all at Dhan."""
    return MappingSnapshot(
        version=1,
        loaded_ms=START_MS,
        providers=(ProviderEntry(code="DHAN", name="Dhan"),),
        mappings=tuple(
            InstrumentMapping(
                mapping_id=number,
                instrument=instrument_key(number),
                exchange="NSE",
                symbol=f"SYM{number:05d}",
                name=f"Made up {number}",
                asset_class=AssetClass.EQUITY,
                currency="INR",
                provider_code="DHAN",
                search_code=f"SYM{number:05d}-EQ",
                segment="NSE_EQ",
                security_id=str(number),
                tick_size=0.05,
                is_primary=True,
                priority=1,
            )
            for number in range(1, instruments + 1)
        ),
    )


def answer(payload: bytes) -> bytes:
    """Return what Redis replies to one batch of a writer, everything being stored."""
    replies: list[bytes] = []
    queued: list[bytes] | None = None
    for arguments in _commands(payload):
        name = arguments[0]
        if name == b"MULTI":
            queued = []
            replies.append(b"+OK\r\n")
        elif name == b"EXEC":
            replies.append(b"*%d\r\n%b" % (len(queued or ()), b"".join(queued or ())))
            queued = None
        else:
            reply = _reply(name, arguments)
            if queued is None:
                replies.append(reply)
            else:
                queued.append(reply)
                replies.append(b"+QUEUED\r\n")
    return b"".join(replies)


def _reply(name: bytes, arguments: list[bytes]) -> bytes:
    if name == b"TS.MADD":
        return b"*%d\r\n%b" % (len(arguments) // 3, b"".join(b":%b\r\n" % stamp for stamp in arguments[2::3]))
    if name == b"XADD":
        place = next(i for i, argument in enumerate(arguments) if b"-" in argument and argument[:1].isdigit())
        return b"$%d\r\n%b\r\n" % (len(arguments[place]), arguments[place])
    if name in (b"HSET", b"HDEL"):
        return b":0\r\n"
    return b"+OK\r\n"


def _commands(payload: bytes) -> Iterator[list[bytes]]:
    at = 0
    while at < len(payload):
        end = payload.index(b"\r\n", at)
        count, at = int(payload[at + 1 : end]), end + 2
        arguments = []
        for _ in range(count):
            end = payload.index(b"\r\n", at)
            length, at = int(payload[at + 1 : end]), end + 2
            arguments.append(payload[at : at + length])
            at += length + 2
        yield arguments
