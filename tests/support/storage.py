"""What tests of the Redis writers share: ticks with positions, running writers, reading everything back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from services.market_data.clock import SystemClock
from services.market_data.records import ControlRecord, DataIngestionFormat, Record
from services.pipeline.backoff import Backoff
from services.pipeline.sequencer import Sequencer
from services.pipeline.sink import Sink
from services.storage.entry import EntryEncoder
from services.storage.latest_value_writer import LatestValueWriter
from services.storage.redis_sink import RedisSink
from services.storage.stream_writer import StreamWriter
from services.storage.time_series_writer import TimeSeriesWriter

RETENTION_MS = 3_600_000


def quick() -> dict[str, Any]:
    """Options of a writer with the waits of a test."""
    return {
        "backoff": Backoff(base_s=0.05, cap_s=0.2, floor_s=0.01, reset_after_s=1.0),
        "parked_retry_s": 0.2,
    }


class Ticks:
    """Makes ticks with rising times and positions, and remembers them all in order."""

    def __init__(self) -> None:
        self.made: list[Record] = []
        self.start_ms = time.time_ns() // 1_000_000 - 60_000
        self._sequencer = Sequencer(SystemClock())

    def tick(self, instrument: str = "NSE:RELIANCE", price: float | None = None, **fields: Any) -> Any:
        """Return the next tick; its time is a millisecond after the last one's unless given."""
        number = len(self.made)
        values = {"timestamp": self.start_ms + number, "volume": number % 50, "received_ms": self.start_ms}
        record = DataIngestionFormat(
            instrument,
            100.0 + number / 20 if price is None else price,
            provider_code="DHAN",
            exchange=instrument.partition(":")[0],
            **(values | fields),
        )
        return self.remember(record)

    def control(self, kind: Any = "gap", instrument: str = "NSE:RELIANCE", **fields: str | int) -> Any:
        """Return the next control record."""
        at_ms = self.start_ms + len(self.made)
        exchange = instrument.partition(":")[0]
        return self.remember(ControlRecord(kind, instrument, exchange, at_ms, at_ms, "DHAN", fields))

    def remember(self, record: Record) -> Record:
        """Give a record its position, as the pipeline does when it publishes one."""
        self._sequencer.stamp(record)
        self.made.append(record)
        return record

    def of(self, instrument: str) -> list[Any]:
        """Return the ticks made of one instrument."""
        return [r for r in self.made if isinstance(r, DataIngestionFormat) and r.symbol == instrument]


def three_writers(url: str, **options: Any) -> tuple[TimeSeriesWriter, StreamWriter, LatestValueWriter]:
    """The three writers as the daemon has them."""
    encoder = EntryEncoder()
    return (
        TimeSeriesWriter(url, clock=SystemClock(), retention_ms=RETENTION_MS, **(quick() | options)),
        StreamWriter(url, max_entries=1_000_000, encoder=encoder, **(quick() | options)),
        LatestValueWriter(url, encoder=encoder, **(quick() | options)),
    )


@asynccontextmanager
async def running(*sinks: RedisSink) -> AsyncIterator[None]:
    """Run writers while the body lasts; none may fail, and every record must be accounted for."""
    tasks = [asyncio.create_task(sink.run(), name=sink.name) for sink in sinks]
    try:
        yield
        for sink in sinks:
            assert sink.counters.imbalance(sink.queued) == 0, sink.counters
        for task in tasks:
            assert not task.done(), f"{task.get_name()} ended: {task.exception()!r}"
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def offer(records: Iterable[Record], *sinks: Sink) -> None:
    """Hand records to writers as the bus does."""
    for record in records:
        for sink in sinks:
            sink.offer(record)


async def drained(*sinks: RedisSink, within_s: float = 10.0) -> None:
    """Wait until everything offered is settled."""
    for sink in sinks:
        remaining = await sink.drain(within_s)
        assert remaining == 0, (sink.name, remaining, sink.state, sink.reason, sink.counters)
        assert sink.counters.imbalance(0) == 0, sink.counters


async def samples(client: Redis, instrument: str, name: str) -> list[tuple[int, float]]:
    """Return one series of single ticks, in order; empty where there is none."""
    key = f"md:ts:{{{instrument}}}:{name}"
    if not await client.exists(key):
        return []
    return [(at_ms, float(value)) for at_ms, value in await client.ts().range(key, "-", "+")]


async def entries(client: Redis, exchange: str = "NSE") -> list[tuple[str, dict[str, str]]]:
    """Return an exchange's stream, in order."""
    return list(await client.xrange(f"md:ticks:{exchange}"))


async def assert_all_stored(client: Redis, ticks: Ticks, instruments: Iterable[str]) -> None:
    """Every tick made is in its series and in the stream once, with its value; the newest is the latest."""
    stored = await entries(client)
    assert [entry_id for entry_id, _ in stored] == [record.position for record in ticks.made]
    for (_, fields), record in zip(stored, ticks.made, strict=True):
        assert fields["k"] == record.symbol
        if isinstance(record, DataIngestionFormat):
            assert float(fields["p"]) == record.price
    for instrument in instruments:
        made = ticks.of(instrument)
        assert await samples(client, instrument, "price") == [(r.timestamp, r.price) for r in made]
        assert await samples(client, instrument, "volume") == [
            (r.timestamp, float(r.volume)) for r in made if r.volume is not None
        ]
        newest: Any = await client.hgetall(f"md:last:{{{instrument}}}")
        assert (int(newest["t"]), float(newest["p"])) == (made[-1].timestamp, made[-1].price)


@dataclass
class Feed:
    """Offers ticks of some instruments at a steady pace, as the pipeline does."""

    ticks: Ticks
    sinks: tuple[Sink, ...]
    instruments: list[str] = field(default_factory=lambda: [f"NSE:SYM{n}" for n in range(20)])
    burst: int = 20
    on_flow: Callable[[], None] = lambda: None

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator[None]:
        """Keep offering while the body lasts, 20 ticks every 5 ms."""
        self.on_flow()
        task = asyncio.create_task(self._flow())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _flow(self) -> None:
        while True:
            for number in range(self.burst):
                instrument = self.instruments[number % len(self.instruments)]
                offer([self.ticks.tick(instrument)], *self.sinks)
            await asyncio.sleep(0.005)
