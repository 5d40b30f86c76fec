"""A killed Redis that forgot what it had confirmed: its log ends before the last answers it gave.

That is what a slow disk does. While one fsync of the log runs, Redis with `appendfsync everysec` confirms
for up to two seconds what it has not even handed to the kernel. Here the log is cut instead.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.market_data.bars import Bar, bar_record
from services.market_data.clock import SystemClock
from services.market_data.records import Record
from services.pipeline.sink import SinkState
from services.storage.bar_series_writer import BarSeriesWriter
from services.storage.client import make_client
from services.storage.redis_sink import RedisSink
from services.storage.spool import Spool
from services.storage.spool_inspection import inspect_spool
from tests.support.eventually import eventually
from tests.support.servers import PrivateRedis
from tests.support.storage import (
    RETENTION_MS,
    Ticks,
    assert_all_stored,
    drained,
    entries,
    offer,
    quick,
    running,
    samples,
    three_writers,
)

MakeRedis = Callable[[], Awaitable[PrivateRedis]]
INSTRUMENTS = [f"NSE:SYM{number}" for number in range(5)]


def log_of(server: PrivateRedis) -> Path:
    return server.data_folder / "appendonlydir" / "appendonly.aof.1.incr.aof"


async def length_of_log(server: PrivateRedis) -> int:
    await server.logged()
    return log_of(server).stat().st_size


def made(ticks: Ticks, count: int) -> list[Record]:
    return [ticks.tick(INSTRUMENTS[number % len(INSTRUMENTS)]) for number in range(count)]


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("on_disk", [False, True])
async def test_what_a_killed_redis_had_confirmed_and_forgot_is_written_again(
    kept: float, on_disk: bool, private_redis: MakeRedis, tmp_path: Path
) -> None:
    server = await private_redis()
    spool = Spool(tmp_path / "spool")
    await spool.open()
    ticks = Ticks()
    series, stream, latest = three_writers(server.url)
    series._spool, stream._spool = spool.channels["time_series"], spool.channels["stream"]
    sinks: tuple[RedisSink, ...] = (series, stream, latest)
    async with running(*sinks):
        offer(made(ticks, 500), *sinks)
        await drained(*sinks)
        before = await length_of_log(server)
        offer(made(ticks, 300), *sinks)
        await drained(*sinks)
        after = await length_of_log(server)
        assert after > before
        await server.kill()
        os.truncate(log_of(server), before + int((after - before) * kept))
        if on_disk:
            offer(made(ticks, 100), *sinks)
            await eventually(lambda: series.counters.spooled and stream.counters.spooled, 10)
        await server.start()
        offer(made(ticks, 100), *sinks)
        await eventually(lambda: not any(sink.queued or sink.counters.spooled for sink in sinks), 20)
        async with make_client(server.url) as client:
            await assert_all_stored(client, ticks, INSTRUMENTS)
        # Going once more, they are counted once.
        assert stream.counters.written == stream.counters.offered == len(ticks.made)
        assert not stream.counters.already_written
        assert series.counters.written == len(ticks.made)
    await spool.close()


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("end", ["stopped", "stopped at once", "killed"])
async def test_it_comes_back_though_marketd_ends_as_well_before_redis_is_back(
    kept: float, end: str, private_redis: MakeRedis, tmp_path: Path
) -> None:
    server = await private_redis()
    spool = Spool(tmp_path / "spool")
    await spool.open()
    ticks = Ticks()
    series, stream, _ = three_writers(server.url)
    series._spool, stream._spool = spool.channels["time_series"], spool.channels["stream"]
    sinks = (series, stream)
    async with running(*sinks):
        offer(made(ticks, 500), *sinks)
        await drained(*sinks)
        before = await length_of_log(server)
        offer(made(ticks, 300), *sinks)
        await drained(*sinks)
        after = await length_of_log(server)
        await server.kill()
        os.truncate(log_of(server), before + int((after - before) * kept))
        await eventually(lambda: all(sink.state is SinkState.UNAVAILABLE for sink in sinks))
        if end != "stopped at once":
            # Newer ones are on disk before the end, in front of which the others belong.
            offer(made(ticks, 100), *sinks)
            await eventually(lambda: all(sink.counters.spooled for sink in sinks), 10)
            offer(made(ticks, 100), *sinks)
            await eventually(lambda: not any(sink.queued for sink in sinks), 10)
        if end != "killed":
            assert [await sink.drain(2.0) for sink in sinks] == [0, 0]
    await spool.close()
    assert [
        channel.again for channel in inspect_spool(tmp_path / "spool") if channel.name != "bar_series"
    ] == [
        800,
        800,
    ]

    await server.start()
    spool = Spool(tmp_path / "spool")
    await spool.open()
    series, stream, _ = three_writers(server.url)
    series._spool, stream._spool = spool.channels["time_series"], spool.channels["stream"]
    sinks = (series, stream)
    assert (await spool.newest_ticks(INSTRUMENTS))["NSE:SYM4"] == ticks.of("NSE:SYM4")[-1]
    async with running(*sinks):
        offer(made(ticks, 100), *sinks)
        await eventually(lambda: not any(sink.queued or sink.counters.spooled for sink in sinks), 20)
        async with make_client(server.url) as client:
            stored = await entries(client)
            assert [entry_id for entry_id, _ in stored] == [record.position for record in ticks.made]
            for instrument in INSTRUMENTS:
                of_it = ticks.of(instrument)
                assert await samples(client, instrument, "price") == [(t.timestamp, t.price) for t in of_it]
                volumes = await samples(client, instrument, "volume")
                assert volumes == [(t.timestamp, float(t.volume)) for t in of_it]
        for sink in sinks:
            assert sink.counters.resent == 800
            assert sink.counters.written == sink.counters.offered == len(ticks.made) - 800
            assert not sink.counters.rejected
        # Done with: nobody sends it a third time.
        await eventually(lambda: not any(channel.ahead for channel in spool.channels.values()))
    await spool.close()
    assert not any(channel.again or channel.records for channel in inspect_spool(tmp_path / "spool"))


async def test_what_was_on_its_way_when_redis_hung_is_not_lost_by_a_stop_with_newer_ones_on_disk(
    private_redis: MakeRedis, tmp_path: Path
) -> None:
    server = await private_redis()
    ticks = Ticks()
    for first in (True, False):
        spool = Spool(tmp_path / "spool")
        await spool.open()
        series, stream, _ = three_writers(server.url, queue_limit=200)
        series._spool, stream._spool = spool.channels["time_series"], spool.channels["stream"]
        sinks = (series, stream)
        async with running(*sinks):
            if first:
                offer(made(ticks, 50), *sinks)
                await drained(*sinks)
                server.pause()
                offer(made(ticks, 20), *sinks)
                await eventually(lambda: all(sink._in_flight for sink in sinks))  # noqa: B023
                offer(made(ticks, 180), *sinks)
                await eventually(lambda: all(sink.counters.spooled for sink in sinks))  # noqa: B023
                assert [await sink.drain(2.0) for sink in sinks] == [0, 0]
                assert all(sink.counters.imbalance(0) == 0 for sink in sinks)
                assert all(sink.counters.spooled >= 180 for sink in sinks)
            else:
                offer(made(ticks, 30), *sinks)
                await drained(*sinks)
                await eventually(lambda: not any(sink.counters.spooled for sink in sinks), 20)  # noqa: B023
                async with make_client(server.url) as client:
                    stored = await entries(client)
                    assert [entry_id for entry_id, _ in stored] == [record.position for record in ticks.made]
                    for instrument in INSTRUMENTS:
                        prices = [(t.timestamp, t.price) for t in ticks.of(instrument)]
                        assert await samples(client, instrument, "price") == prices
        await spool.close()
        if first:
            # What was on its way is not carried out after all: the connection it came over is gone.
            await server.kill()
            await server.start()


async def test_it_comes_back_without_a_newer_record_too(private_redis: MakeRedis) -> None:
    server = await private_redis()
    ticks = Ticks()
    sinks = three_writers(server.url)
    async with running(*sinks):
        await eventually(lambda: all(sink.state is SinkState.READY for sink in sinks))
        before = await length_of_log(server)
        offer(made(ticks, 300), *sinks)
        await drained(*sinks)
        await server.kill()
        os.truncate(log_of(server), before)
        await server.start()
        async with make_client(server.url) as client:
            await eventually(lambda: _all_there(client, len(ticks.made)), 10)
            await assert_all_stored(client, ticks, INSTRUMENTS)


async def _all_there(client: Redis, count: int) -> bool:
    newest = await client.hexists(f"md:last:{{{INSTRUMENTS[-1]}}}", "p")
    samples = [f"md:ts:{{{key}}}:price" for key in INSTRUMENTS]
    if not newest or await client.exists(*samples) < len(samples):
        return False
    stored = [(await client.ts().info(name)).total_samples for name in samples]
    return sum(stored) == await client.xlen("md:ticks:NSE") == count


async def test_a_bar_that_was_forgotten_comes_back_and_its_revision_stays_above_it(
    private_redis: MakeRedis,
) -> None:
    server = await private_redis()
    writer = BarSeriesWriter(server.url, clock=SystemClock(), retention_ms=RETENTION_MS, **quick())
    first_ms = SystemClock().now_ms() // 60_000 * 60_000 - 180_000
    second_ms = first_ms + 60_000

    def bar(start_ms: int, close: float, revision: int = 0) -> Record:
        minute = Bar(
            instrument="NSE:SYM0",
            exchange="NSE",
            interval="1m",
            start_ms=start_ms,
            open=100.0,
            high=120.0,
            low=90.0,
            close=close,
            volume=10 + revision,
            revision=revision,
        )
        return bar_record(minute, start_ms + 60_000)

    async with running(writer):
        await eventually(lambda: writer.state is SinkState.READY)
        before = await length_of_log(server)
        for record in (bar(first_ms, 101.0), bar(second_ms, 102.0), bar(first_ms, 103.0, 1)):
            offer([record], writer)
            await drained(writer)
        await server.kill()
        os.truncate(log_of(server), before)
        offer([bar(second_ms, 104.0, 1)], writer)
        await server.start()
        await drained(writer, within_s=20)
        async with make_client(server.url) as client:
            stored = [
                await client.ts().range(f"md:ts:{{NSE:SYM0}}:1m:{field}", "-", "+")
                for field in ("close", "volume")
            ]
        assert [[tuple(sample) for sample in series] for series in stored] == [
            [(first_ms, 103.0), (second_ms, 104.0)],
            [(first_ms, 11.0), (second_ms, 11.0)],
        ]
        assert writer.counters.written == writer.counters.offered == 4
