"""Bars over a real Redis, with a market day in seconds: the sinks of the daemon behind a clock of our own.

`resampled` is the independent judge: pandas, and session times written down by hand.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.market_data.bar_builder import BarBuilder
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import Bar, parse_bar
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import ManualClock
from services.market_data.records import (
    FLAG_SNAPSHOT,
    FLAG_SUSPECT,
    ControlRecord,
    DataIngestionFormat,
    Record,
)
from services.pipeline.bar_sink import BarSink
from services.pipeline.bus import Bus
from services.pipeline.sequencer import Sequencer, parse_position
from services.pipeline.sink import Sink
from services.storage.bar_recall import BarRecall, Recalled
from services.storage.bar_series_writer import BarSeriesWriter
from services.storage.bootstrap import last_positions
from services.storage.entry_reader import record_of
from services.storage.redis_sink import RedisSink
from services.storage.spool import Spool
from services.storage.stream_writer import StreamWriter
from services.storage.time_series_writer import TimeSeriesWriter
from tests.support.storage import drained, quick

INTERVALS = {"1m": "1min", "5m": "5min", "15m": "15min", "1h": "1h", "1d": "24h"}
YEAR_MS = 365 * 86_400_000


class BarRig:
    """Sequencer, bus, bar builder and the three writers, running; `clock` is moved by what is played."""

    def __init__(self, url: str, folder: Path, start_ms: int, **calendar: Any) -> None:
        self.clock = ManualClock(start_ms)
        self.calendar = MarketCalendar(**calendar)
        self.grid = BarGrid(self.calendar)
        self.spool = Spool(folder)
        channels = self.spool.channels
        options = quick() | {"spill_after_s": 0.1}
        self.stream = StreamWriter(url, max_entries=1_000_000, spool=channels["stream"], **options)
        self.series = TimeSeriesWriter(
            url, clock=self.clock, retention_ms=YEAR_MS, spool=channels["time_series"], **options
        )
        self.bar_series = BarSeriesWriter(
            url, clock=self.clock, retention_ms=YEAR_MS, spool=channels["bar_series"], **options
        )
        self.bars = BarSink(lambda: BarBuilder(self.grid), self.clock, self.publish)
        self.writers: tuple[RedisSink, ...] = (self.series, self.stream, self.bar_series)
        self.sequencer = Sequencer(self.clock)
        sinks: tuple[Sink, ...] = (*self.writers, self.bars)
        self.bus = Bus(sinks)

    def publish(self, record: Record) -> None:
        self.sequencer.stamp(record)
        self.bus.publish(record)

    def until(self, at_ms: int) -> None:
        """Let the time go on, with what the builder finishes meanwhile."""
        while (left_ms := at_ms - self.clock.now_ms()) > 0:
            self.clock.advance(min(left_ms, 1_000) / 1000)
            while self.bars.publish_finished():
                pass

    async def play(self, arrivals: Iterable[tuple[int, Record]]) -> None:
        """Publish records at their arrival times (UTC epoch ms)."""
        for count, (at_ms, record) in enumerate(arrivals):
            self.until(at_ms)
            if isinstance(record, DataIngestionFormat):
                record.received_ms = at_ms
            self.publish(record)
            if count % 100 == 0:
                await asyncio.sleep(0)

    async def settle(self) -> None:
        await drained(*self.writers)

    async def recall(self, client: Redis, instruments: Iterable[str], **options: Any) -> Recalled:
        """Begin as a restarted daemon does: positions and bars from what is stored."""
        keys = {key: key.partition(":")[0] for key in instruments}
        positions = await last_positions(client, sorted(set(keys.values())))
        for exchange, position in (positions | self.spool.positions()).items():
            positions[exchange] = max(position, positions[exchange])
            self.sequencer.resume_after(exchange, positions[exchange])
        recall = BarRecall(client, self.bars.begin(), self.grid, self.spool, **options)
        newest = {key: tick for key in keys if (tick := await _newest(client, key))}
        found = await recall.run(positions, keys, newest)
        for record in found.said:
            self.bar_series.offer(record)
        return found

    @asynccontextmanager
    async def running(self) -> AsyncIterator[BarRig]:
        """Run the writers while the body lasts; at the end every record must be accounted for."""
        await self.spool.open()
        tasks = [asyncio.create_task(sink.run(), name=sink.name) for sink in self.writers]
        try:
            yield self
            for sink in (*self.writers, self.bars):
                assert sink.counters.imbalance(sink.queued) == 0, (sink.name, sink.counters)
                assert not sink.counters.rejected, (sink.name, sink.counters)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.spool.close()


async def _newest(client: Redis, key: str) -> DataIngestionFormat | None:
    """Return the newest tick of an instrument, as its hash of the newest tick would have it."""
    exchange = key.partition(":")[0]
    for entry_id, fields in await client.xrevrange(f"md:ticks:{exchange}"):
        record = record_of(exchange, parse_position(entry_id), fields)
        if isinstance(record, DataIngestionFormat) and record.symbol == key:
            return record
    try:
        stored = await client.ts().get(f"md:ts:{{{key}}}:price")
    except ResponseError:
        return None
    if not stored:
        return None
    return DataIngestionFormat(
        key, float(stored[1]), None, stored[0], "", exchange=exchange, received_ms=stored[0]
    )


def walk(
    key: str, spans: Iterable[tuple[int, int]], *, every_ms: int, seed: int, provider: str = "DHAN"
) -> Iterator[tuple[int, DataIngestionFormat]]:
    """A random walk of trades, thinly and unevenly spread; each arrives some ms after its time."""
    dice = random.Random(seed)
    price = 2_400.0
    for begin_ms, end_ms in spans:
        at_ms = begin_ms
        while at_ms < end_ms:
            price = max(1.0, round(price + dice.gauss(0, 1.5), 2))
            volume = None if dice.random() < 0.05 else dice.randint(0, 500)
            tick = DataIngestionFormat(key, price, volume, at_ms, provider, exchange=key.partition(":")[0])
            yield at_ms + dice.randint(5, 300), tick
            at_ms += dice.choice((1, every_ms // 7, every_ms, every_ms * 2))


async def stored_ticks(client: Redis, key: str) -> pd.DataFrame:
    """Return the trades of an instrument in its exchange's stream, in their order there."""
    exchange = key.partition(":")[0]
    rows = []
    for _, fields in await client.xrange(f"md:ticks:{exchange}"):
        if (
            fields["type"] == "tick"
            and fields["k"] == key
            and fields.get("f", "") not in ("snapshot", "suspect")
        ):
            rows.append((int(fields["t"]), float(fields["p"]), int(fields["v"]) if "v" in fields else None))
    return pd.DataFrame(rows, columns=["t", "p", "v"])


def resampled(
    ticks: pd.DataFrame, interval: str, sessions: list[tuple[str, str]]
) -> dict[int, tuple[Any, ...]]:
    """Return open, high, low, close, volume and count by bar start (epoch ms), each session for itself.

    `sessions` are given as local times with zone; the closing second belongs to the last minute.
    """
    found: dict[int, tuple[Any, ...]] = {}
    for open_text, close_text in sessions:
        opens, closes = pd.Timestamp(open_text), pd.Timestamp(close_text)
        first_ms, last_ms = (int(moment.timestamp() * 1000) for moment in (opens, closes))
        day = ticks[(ticks.t >= first_ms) & (ticks.t < last_ms + 1_000)].sort_values("t", kind="stable")
        index = pd.to_datetime(day.t.clip(upper=last_ms - 1), unit="ms", utc=True)
        frame = day.set_index(index)
        rule = {"rule": INTERVALS[interval], "origin": opens.tz_convert("UTC")}
        prices = frame.p.resample(**rule).ohlc()
        volumes = frame.v.astype("float").resample(**rule).sum(min_count=1)
        counts = frame.p.resample(**rule).count()
        for at in prices.dropna().index:
            row = prices.loc[at]
            volume = None if pd.isna(volumes[at]) else int(volumes[at])
            start_ms = int(at.timestamp() * 1000)
            found[start_ms] = (row.open, row.high, row.low, row.close, volume, int(counts[at]))
    return found


async def stored_series(client: Redis, key: str, interval: str) -> dict[int, tuple[Any, ...]]:
    """Return open, high, low, close and volume by bar start, as the series have them."""
    columns = []
    for field in ("open", "high", "low", "close", "volume"):
        name = f"md:ts:{{{key}}}:{interval}:{field}"
        rows = await client.ts().range(name, "-", "+") if await client.exists(name) else []
        columns.append({at_ms: float(value) for at_ms, value in rows})
    opens, highs, lows, closes, volumes = columns
    assert set(opens) == set(highs) == set(lows) == set(closes)
    assert set(volumes) <= set(opens)
    return {
        at: (opens[at], highs[at], lows[at], closes[at], None if at not in volumes else int(volumes[at]))
        for at in opens
    }


async def said_bars(client: Redis, key: str) -> list[Bar]:
    """Return the `bar` records of an instrument, in order, those of regular sessions."""
    exchange = key.partition(":")[0]
    bars = []
    for _, fields in await client.xrange(f"md:ticks:{exchange}"):
        record = record_of(exchange, (0, 0), fields)
        if isinstance(record, ControlRecord) and record.type == "bar" and record.symbol == key:
            bar = parse_bar(record)
            assert bar is not None
            bars.append(bar)
    return bars


async def assert_bars_are_true(client: Redis, key: str, sessions: list[tuple[str, str]]) -> None:
    """Every interval's series and records equal the judge's bars, value by value; none is said twice."""
    ticks = await stored_ticks(client, key)
    regular = [bar for bar in await said_bars(client, key) if bar.phase.value == "regular"]
    for interval in INTERVALS:
        expected = resampled(ticks, interval, sessions)
        assert expected, "the day has no trades"
        stored = await stored_series(client, key, interval)
        assert stored == {at: row[:5] for at, row in expected.items()}, interval
        said = [bar for bar in regular if bar.interval == interval]
        revisions: dict[int, list[int]] = {}
        for bar in said:
            revisions.setdefault(bar.start_ms, []).append(bar.revision)
        assert all(numbers == list(range(len(numbers))) for numbers in revisions.values()), interval
        last = {bar.start_ms: bar for bar in said}
        assert {
            at: (bar.open, bar.high, bar.low, bar.close, bar.volume) for at, bar in last.items()
        } == stored, interval


def marked(tick: DataIngestionFormat, flags: int) -> DataIngestionFormat:
    """Return a tick with flags."""
    tick.flags = flags
    return tick


NO_TRADES = (FLAG_SNAPSHOT, FLAG_SUSPECT)
