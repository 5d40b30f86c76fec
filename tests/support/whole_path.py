"""`python -m tests.support.whole_path MODE SEED`: a bad day of a random market through `benchmarks.path`.

Prints, a line each, everything that leaves the daemon on the way and what it remembers: the bytes for Redis,
what clients are shown, what is logged, and now and then every counter, newest value, forming bar and state.
The same seed gives the same lines: two ways of running the path are equal when theirs are. The first line
says which way it ran, the one called `happened` how often each kind of thing happened.
"""

from __future__ import annotations

import asyncio
import collections
import itertools
import math
import random
import re
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import structlog

# What differs from run to run is made the same: waits at random, the machine's clock, work in threads.
SHARED_LUCK = random.Random(1)


class SameLuck(random.Random):
    def __init__(self, seed: Any = None) -> None:
        super().__init__(SHARED_LUCK.random() if seed is None else seed)


def at_once(loop: Any, _: Any, work: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
    done = loop.create_future()
    try:
        done.set_result(work(*arguments))
    except (OSError, ValueError) as error:
        done.set_exception(error)
    return done


random.Random = SameLuck  # type: ignore[misc]
asyncio.BaseEventLoop.run_in_executor = at_once  # type: ignore[method-assign]
machine_s = [0.0]
time.monotonic = lambda: machine_s[0]

from benchmarks.path import TickPath, answer  # noqa: E402
from benchmarks.ticks import IST_OFFSET_S, Mode  # noqa: E402
from services.compiled import BUILD  # noqa: E402
from services.data_broadcast import Pending, Publication  # noqa: E402
from services.market_data.bars import INTERVALS  # noqa: E402
from services.market_data.instruments import (  # noqa: E402
    AssetClass,
    InstrumentMapping,
    MappingSnapshot,
    ProviderEntry,
)

MONDAY_0850_IST_MS = 1_790_565_600_000
"""2026-09-28, before the markets open."""
BURSTS = 700
STATE_EVERY = 50
SEGMENTS = {"NSE": ("NSE_EQ", 1), "NFO": ("NSE_FNO", 2), "INDEX": ("IDX_I", 0), "MCX": ("MCX_COMM", 5)}
MARKET = ("NSE",) * 12 + ("NFO",) * 5 + ("INDEX",) * 2 + ("MCX",) * 3
CLASSES = {"NSE": AssetClass.EQUITY, "INDEX": AssetClass.INDEX}
TICK_SIZES = (0.05, 0.05, 0.01, None, 0.25)
ODD_PRICES = (0.0, -1.0, math.nan, math.inf, -math.inf, 1e30, 1e-30, 123.456789, 3.4e38, 99_999_999.0)
ERRORS = (
    "ERR TSDB: Timestamp is older than retention",
    "ERR TSDB: Error at upsert, update is not supported when DUPLICATE_POLICY is set to BLOCK mode",
    "ERR TSDB: the key is not a TSDB key",
    "ERR The ID specified in XADD is equal or smaller than the target stream top item",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "OOM command not allowed when used memory > 'maxmemory'.",
)
ONE_REPLY = re.compile(rb":\d+\r\n|\$\d+\r\n\d+-\d+\r\n")


class Instrument:
    """One instrument as the exchange has it."""

    def __init__(self, number: int, exchange: str, luck: random.Random) -> None:
        self.number, self.exchange = number, exchange
        self.key = f"{exchange}:SYM{number:03d}"
        self.tick = TICK_SIZES[number % len(TICK_SIZES)]
        self.price = self.on_grid(luck.choice((3.5, 97.3, 1_234.55, 55_000.0)) * luck.uniform(0.8, 1.2))
        self.volume = luck.randrange(0, 4_000_000_000 if number % 7 == 0 else 50_000)
        self.interest = luck.randrange(10_000)
        self.day = [self.price] * 4
        self.sent: list[bytes] = []

    def on_grid(self, price: float) -> float:
        """Return the nearest price that the exchange would have."""
        step = self.tick or 0.05
        return max(1, round(price / step)) * step

    def mapping(self) -> InstrumentMapping:
        """Return its row."""
        return InstrumentMapping(
            mapping_id=self.number,
            instrument=self.key,
            exchange=self.exchange,
            symbol=self.key.partition(":")[2],
            name=self.key,
            asset_class=CLASSES.get(self.exchange, AssetClass.FUTURE),
            currency="INR",
            provider_code="DHAN",
            search_code=self.key,
            segment=SEGMENTS[self.exchange][0],
            security_id=str(self.number),
            tick_size=self.tick,
            is_primary=True,
            priority=1,
        )


class BadDay:
    """What the world does; every choice from one seed."""

    def __init__(self, mode: Mode, seed: int, path: TickPath, instruments: list[Instrument]) -> None:
        self.luck = random.Random(seed)
        self.mode, self.path, self.instruments = mode, path, instruments
        self.happened: collections.Counter[str] = collections.Counter()

    # ---- the provider ---------------------------------------------------------------------------

    def burst(self) -> list[bytes]:
        """Return the messages of one read."""
        return [self.message() for _ in range(self.luck.choice((1, 1, 2, 5, 20, 64)))]

    def message(self) -> bytes:
        luck = self.luck
        it = luck.choice(self.instruments[: luck.choice((2, len(self.instruments)))])
        kind = luck.choices(
            ("packet", "again", "older", "several", "other", "damaged", "foreign"),
            (100, 6, 6, 4, 6, 3, 2),
        )[0]
        self.happened[kind] += 1
        if kind == "again" and it.sent:
            return it.sent[-1]
        if kind == "older" and it.sent:
            return luck.choice(it.sent)
        if kind == "several":
            return b"".join(self.packet(luck.choice(self.instruments)) for _ in range(luck.randrange(2, 5)))
        if kind == "other":
            return self.other(it)
        message = self.packet(it)
        if kind == "damaged":
            return self.damaged(message)
        if kind == "foreign":
            return message[:4] + struct.pack("<I", luck.choice((0, 999_999, it.number + 1))) + message[8:]
        it.sent = [*it.sent[-20:], message]
        return message

    def packet(self, it: Instrument) -> bytes:
        luck = self.luck
        self.trade(it)
        price = luck.choice(ODD_PRICES) if luck.random() < 0.03 else it.price
        day = [0.0] * 4 if luck.random() < 0.02 else it.day
        head = (
            *(
                SEGMENTS[it.exchange][1],
                it.number,
                price,
                luck.randrange(1, 400),
                self.trade_time(),
                it.price,
            ),
            *(it.volume % (1 << 32), 1_000, 2_000),
        )
        mode = self.mode if luck.random() < 0.95 else luck.choice(("quote", "full"))
        if mode == "quote":
            return struct.pack("<BHBIfHIfIIIffff", 4, 50, *head, *day)
        packed = struct.pack("<BHBIfHIfIIIIIIffff", 8, 162, *head, it.interest, 9, 8, *day)
        return packed + b"".join(self.level(it, place) for place in range(5))

    def level(self, it: Instrument, place: int) -> bytes:
        if self.luck.random() < 0.05:
            return struct.pack("<IIHHff", 0, 0, 0, 0, 0.0, self.luck.choice((0.0, *ODD_PRICES)))
        step = (it.tick or 0.05) * (place + 1)
        sizes = self.luck.randrange(5_000), self.luck.randrange(5_000)
        return struct.pack("<IIHHff", *sizes, 3, 4, it.price - step, it.price + step)

    def trade(self, it: Instrument) -> None:
        luck = self.luck
        step = it.tick or 0.05
        it.price = it.on_grid(it.price + luck.choice((-step, 0.0, 0.0, step)))
        if luck.random() < 0.01:
            it.price *= luck.choice((0.4, 0.9, 1.1, 3.0))
            if luck.random() < 0.8:
                it.price = it.on_grid(it.price)
            self.happened["price jumps"] += 1
        it.volume += luck.choice((0, 1, 1, 50, 1_000))
        if luck.random() < 0.01:
            it.volume = luck.choice((0, max(0, it.volume - 100), it.volume // 2))
            self.happened["volume goes back"] += 1
        it.interest = max(0, it.interest + luck.choice((-10, 0, 0, 10)))
        it.day[2], it.day[3] = max(it.day[2], it.price), min(it.day[3], it.price)

    def trade_time(self) -> int:
        luck = self.luck
        now_s = self.path.clock.now_ms() // 1_000 + IST_OFFSET_S
        if luck.random() < 0.8:
            return now_s
        if luck.random() < 0.85:
            return now_s - luck.choice((1, 1, 2, 5))
        self.happened["odd times"] += 1
        return luck.choice(
            (
                *(now_s - 20, now_s + 1, now_s - 61, now_s + 3, now_s + 90, now_s - 4_000),
                *(0, 1, 315_532_800, 4_294_967_295, now_s - 86_400, now_s + 86_400),
                *(now_s - IST_OFFSET_S, now_s + IST_OFFSET_S),
            )
        )

    def other(self, it: Instrument) -> bytes:
        luck = self.luck
        who = SEGMENTS[it.exchange][1], it.number
        return luck.choice(
            (
                struct.pack("<BHBIfI", 2, 16, *who, it.price, self.trade_time()),
                struct.pack("<BHBII", 5, 12, *who, luck.randrange(20_000)),
                struct.pack("<BHBIfI", 6, 16, *who, it.price, 7),
                struct.pack("<BHBI", 7, 8, *who),
                struct.pack("<BHBI", 0, 8, *who),
                struct.pack("<BHBIf", 77, 12, *who, 1.0),
            )
        )

    def damaged(self, message: bytes) -> bytes:
        luck = self.luck
        at = luck.randrange(len(message))
        return luck.choice(
            (
                *(b"", message[:at], message + b"\0", message + message[:at], luck.randbytes(at)),
                message[:at] + luck.randbytes(1) + message[at + 1 :],
                message[:1] + struct.pack("<H", luck.randrange(200)) + message[3:],
            )
        )

    # ---- Redis ----------------------------------------------------------------------------------

    def reply(self, written: bytes) -> bytes:
        """Return what Redis answers; sometimes that it refuses something."""
        said = answer(written)
        if self.luck.random() < 0.05 and (found := list(ONE_REPLY.finditer(said))):
            self.happened["refusals"] += 1
            one = self.luck.choice(found)
            said = (
                said[: one.start()] + b"-" + self.luck.choice(ERRORS).encode() + b"\r\n" + said[one.end() :]
            )
        return said

    # ---- time -----------------------------------------------------------------------------------

    def time_passes(self) -> None:
        """Move the clocks: mostly a little, sometimes to where something begins or ends."""
        luck, clock = self.luck, self.path.clock
        what = luck.choices(("little", "second", "minute", "edge", "step"), (200, 20, 5, 1.5, 1.5))[0]
        self.happened[f"time: {what}"] += 1
        if what == "little":
            clock.advance(luck.choice((0.0, 0.001, 0.003, 0.02, 0.2)))
        elif what == "second":
            # To the very millisecond at which a minute begins, now and then.
            to_the_minute = 60.0 - clock.now_ms() % 60_000 / 1_000
            clock.advance(to_the_minute if luck.random() < 0.3 else luck.uniform(0.5, 3.0))
        elif what == "minute":
            self.long_while(luck.choice((30.0, 60.0, 61.0, 200.0)))
        elif what == "edge":
            self.long_while(self.until_an_edge())
        else:
            clock.step_wall(luck.choice((-1_500, 1_500, -20_000, 20_000, 500, -500, 3_600_000, -3_600_000)))

    def until_an_edge(self) -> float:
        now_s = self.path.clock.now_ms() / 1_000
        day_s = (now_s + IST_OFFSET_S) % 86_400
        edges = (0, 9 * 3_600, 9.25 * 3_600, 15.5 * 3_600, 15.5 * 3_600 + 60, 23.5 * 3_600, 86_399)
        return min(
            (edge - day_s) % 86_400 or 86_400 for edge in self.luck.sample(edges, 2)
        ) - self.luck.choice((0, 1))

    def long_while(self, seconds: float) -> None:
        for _ in range(4):
            self.path.clock.advance(max(0.0, seconds) / 4)
            self.path.turn()


class Client:
    """Somebody who is shown ticks; prints what he is shown."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.pending: Pending = {}

    def take(self, publication: Publication) -> None:
        show("shown", self.name, record(publication.record), publication.fragment, publication.frame)

    take_control = take

    def look(self) -> None:
        """Print the newest values that wait, and let them be sent."""
        for key, publication in self.pending.items():
            show("waiting", self.name, key, record(publication.record))
        self.pending.clear()


def show(*parts: Any) -> None:
    print(*parts)


def record(value: Any) -> str:
    """Return every field of a record, with its type to be seen."""
    return f"{type(value).__name__}{msgspec.structs.astuple(value)}"


def slots(value: Any, *left_out: str) -> dict[str, str]:
    """Return what an object's slots hold."""
    named = [name for cls in type(value).__mro__ for name in getattr(cls, "__slots__", ())]
    return {
        name: record(held) if isinstance(held, msgspec.Struct) else repr(held)
        for name in sorted(set(named) - set(left_out))
        if not callable(held := getattr(value, name, None))
    }


def figures(path: TickPath) -> Iterator[tuple[Any, ...]]:
    """Give everything the daemon remembers and counts."""
    daemon = path.daemon
    status = daemon.pipeline_status()
    # What the machine and the event loop do is not the path's; which way runs is what is compared.
    for name in ("process", "compiled", "loop_lag_ms", "tasks", "lease"):
        status.pop(name)
    status["hops"].pop("event_loop")
    yield from (("status", name, repr(value)) for name, value in sorted(status.items()))
    for code, runtime in daemon.providers.runtimes.items():
        yield ("provider", code, repr({**runtime.status(), "latency_ms": None}))
        normaliser = runtime.normaliser
        yield ("normaliser", code, repr(normaliser.counters), repr(normaliser.reference_quote))
        for symbol, state in normaliser._states.items():
            # What was seen lately is remembered by its hash, which is another one in every process.
            yield ("state", symbol, slots(state, "mapping", "grid", "tally", "recent"), repr(state.tally))
    for sink in daemon.sinks:
        yield ("sink", sink.name, sink.queued, repr(sink.counters))
    yield ("positions", daemon.broadcast.positions())


def remembered(path: TickPath, instruments: Iterable[Instrument]) -> None:
    for line in figures(path):
        show(*line)
    for it in instruments:
        newest = path.daemon.broadcast.latest(it.key)
        show("newest", it.key, None if newest is None else record(newest))
        for interval in INTERVALS:
            show("forming", it.key, interval, path.daemon.bars.forming(it.key, interval))


def main(mode: Mode, seed: int) -> None:
    """Play the day."""
    show("path", BUILD)
    structlog.configure(processors=[lambda _, level, event: f"log {level} {event}"])
    luck = random.Random(seed)
    instruments = [Instrument(number, exchange, luck) for number, exchange in enumerate(MARKET, start=1)]
    mappings = MappingSnapshot(
        version=1,
        loaded_ms=MONDAY_0850_IST_MS,
        providers=(ProviderEntry(code="DHAN", name="Dhan"),),
        mappings=tuple(it.mapping() for it in instruments),
    )
    with tempfile.TemporaryDirectory(prefix="marketd-day-") as folder:
        (Path(folder) / "spool").mkdir()
        path = TickPath(
            *(len(instruments), mode, Path(folder)),
            start_ms=MONDAY_0850_IST_MS,
            always_open=bool(seed % 2),
            mappings=mappings,
        )
        day = BadDay(mode, seed, path, instruments)
        path.loop.call_soon(path.daemon.supervisor.keep, "bars", path.daemon.bars.run)
        clients = watch(path, instruments)
        held: list[tuple[Any, bytes]] = []
        for number in range(BURSTS):
            day.time_passes()
            machine_s[0] = path.clock.monotonic_s()
            assert path._connector.listener is not None
            path.on_frame = path._connector.listener.on_frame
            path.feed(day.burst())
            held += written(path, day)
            if luck.random() < 0.7:
                hear(path, held, luck)
                held = []
            if luck.random() < 0.01:
                lose_a_connection(path, luck, day)
            if luck.random() < 0.2:
                luck.choice(clients).look()
            if luck.random() < 0.1:
                change_audience(path, clients, instruments, luck)
            if number % STATE_EVERY == STATE_EVERY - 1:
                remembered(path, instruments)
        settle(path, day, held)
        remembered(path, instruments)
        for client in clients:
            client.look()
        show("happened", msgspec.json.encode(day.happened).decode())
        path.close()


def watch(path: TickPath, instruments: list[Instrument]) -> list[Client]:
    clients = [Client(f"client {number}") for number in range(6)]
    keys = [it.key for it in instruments]
    for number, client in enumerate(clients[:4]):
        path.daemon.broadcast.attach(client, keys[number::3], client.pending if number % 2 else None)
    path.daemon.broadcast.attach_exchanges(clients[4], ["NFO"])
    return clients


def change_audience(
    path: TickPath, clients: list[Client], instruments: list[Instrument], luck: random.Random
) -> None:
    broadcast, client = path.daemon.broadcast, luck.choice(clients)
    keys = [it.key for it in luck.sample(instruments, 4)]
    what = luck.randrange(5)
    if what == 0:
        broadcast.detach(client, keys)
    elif what == 1:
        broadcast.attach_exchanges(client, ["NSE"])
    elif what == 2:
        broadcast.detach_exchanges(client, ["NSE"])
    else:
        broadcast.attach(client, keys, client.pending if what == 3 else None)


def written(path: TickPath, day: BadDay) -> list[tuple[Any, bytes]]:
    """Print what was written to Redis since, and return its answers."""
    answers = []
    for number, (transport, connection) in enumerate(path._redis):
        while transport.written:
            payload = transport.written.popleft()
            show("written", number, payload)
            answers.append((connection, day.reply(payload)))
    return answers


def hear(path: TickPath, answers: list[tuple[Any, bytes]], luck: random.Random) -> None:
    """Give Redis's answers to the daemon, some of them in pieces."""
    for connection, reply in answers:
        if connection.closed_by is None:
            at = luck.randrange(len(reply)) if luck.random() < 0.1 else 0
            for piece in filter(None, (reply[:at], reply[at:])):
                path.loop.call_soon(connection.data_received, piece)
    path.turn()


def lose_a_connection(path: TickPath, luck: random.Random, day: BadDay) -> None:
    alive = [connection for _, connection in path._redis if connection.closed_by is None]
    if alive:
        day.happened["connections lost"] += 1
        luck.choice(alive).connection_lost(ConnectionResetError())
        path.turn()


def settle(path: TickPath, day: BadDay, held: list[tuple[Any, bytes]]) -> None:
    """Let Redis answer until nothing is written any more."""
    for _ in itertools.repeat(None, 60):
        path.clock.advance(0.5)
        path.turn()
        hear(path, held, day.luck)
        held = written(path, day)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))  # type: ignore[arg-type]
