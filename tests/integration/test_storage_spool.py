"""Writers with a disk behind their queue, against a real Redis that goes away and comes back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.market_data.records import PROBE_INSTRUMENT
from services.storage.batch import Batch
from services.storage.client import make_client
from services.storage.time_series_writer import TimeSeriesWriter
from tests.support.eventually import eventually
from tests.support.fault_rig import WritePath, spool_files
from tests.support.servers import PrivateRedis
from tests.support.storage import Ticks, assert_all_stored, offer, samples

MakeRedis = Callable[[], Awaitable[PrivateRedis]]


@pytest.fixture
async def server(private_redis: MakeRedis) -> PrivateRedis:
    return await private_redis()


@pytest.fixture
async def client(server: PrivateRedis) -> AsyncIterator[Redis]:
    client = make_client(server.url)
    yield client
    await client.aclose()


async def test_what_redis_could_not_take_before_a_stop_is_written_after_the_next_start(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    async with WritePath(server.url, folder) as path:
        async with path.feed.flowing():
            await eventually(lambda: path.stream.counters.written > 500)
            await server.kill()
            await eventually(lambda: len(path.ticks.made) > 4_000)
        assert await asyncio.gather(path.time_series.drain(10.0), path.stream.drain(10.0)) == [0, 0]
        assert all(sink.counters.spooled > 2_000 for sink in path.spooled)
        path.assert_nothing_lost()
        instruments = path.feed.instruments
    await server.start()
    async with WritePath(server.url, folder, ticks=path.ticks) as again:
        offer([again.ticks.tick(instruments[n % 20]) for n in range(100)], *again.sinks)
        await again.settled()
        assert all(sink.counters.recovered > 2_000 for sink in again.spooled)
        again.assert_nothing_lost()
        # What an unanswered batch had written is recognised, not written again.
        await assert_all_stored(client, again.ticks, instruments)
        await eventually(lambda: spool_files(folder) == [])


async def test_a_kill_while_redis_is_away_loses_only_what_was_not_on_disk_yet(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    async with WritePath(server.url, folder) as path:
        async with path.feed.flowing():
            await eventually(lambda: path.stream.counters.written > 500)
            await server.kill()
            await path.spilled()
            await eventually(lambda: path.stream.counters.spooled > 2_000)
        await eventually(lambda: all(sink.queued == 0 for sink in path.spooled))
        await path.abandon()
    await server.start()
    async with WritePath(server.url, folder, ticks=path.ticks) as again:
        offer([again.ticks.tick(symbol) for symbol in path.feed.instruments], *again.sinks)
        await again.settled()
        await assert_all_stored(client, again.ticks, path.feed.instruments)


async def test_live_samples_flow_while_the_backlog_is_replayed(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    async with WritePath(server.url, tmp_path / "spool") as path:
        offer([path.ticks.tick(f"NSE:SYM{n % 20}") for n in range(100)], *path.sinks)
        await path.settled()
        await server.kill()
        await eventually(lambda: path.time_series.state.value == "unavailable")
        for _ in range(30):
            offer([path.ticks.tick(f"NSE:SYM{n % 20}") for n in range(1_000)], *path.sinks)
            await asyncio.sleep(0)
        await eventually(lambda: path.time_series.counters.spooled >= 29_000)
        await server.start()
        await eventually(lambda: path.time_series.state.value == "ready")
        live = path.ticks.tick("NSE:LIVE")
        offer([live], *path.sinks)
        await eventually(lambda: path.time_series.queued == 0)
        backlog = path.time_series.counters.spooled
        assert await samples(client, "NSE:LIVE", "price") == [(live.timestamp, live.price)]
        await path.settled()
        assert backlog > 5_000
        path.assert_nothing_lost()
    # Reading so much back keeps the loop busy, which is not the writers' doing.
    await assert_all_stored(client, path.ticks, path.feed.instruments)


async def test_replay_never_goes_twice_while_live_samples_wait(
    server: PrivateRedis, client: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns: list[str] = []
    real = TimeSeriesWriter._next_batch

    def next_batch(sink: TimeSeriesWriter) -> Batch | None:
        waiting = sink._pending_count
        batch = real(sink)
        if batch is not None:
            # What kind of batch took this turn, and whether live samples stood behind it.
            turns.append("live" if not batch.spooled_until else "replay before live" if waiting else "replay")
        return batch

    monkeypatch.setattr(TimeSeriesWriter, "_next_batch", next_batch)
    async with WritePath(server.url, tmp_path / "spool") as path:
        await path.settled()
        await server.kill()
        await eventually(lambda: path.time_series.state.value == "unavailable")
        for _ in range(20):
            offer([path.ticks.tick(f"NSE:SYM{n % 20}") for n in range(1_000)], path.time_series)
            await asyncio.sleep(0)
        await eventually(lambda: path.time_series.counters.spooled >= 19_000)
        await server.start()
        await eventually(lambda: path.time_series.state.value == "ready")
        turns.clear()
        while path.time_series.counters.spooled:
            offer([path.ticks.tick("NSE:LIVE") for _ in range(3)], path.time_series)
            await asyncio.sleep(0)
        await path.settled()
        path.assert_nothing_lost()
    live = path.ticks.of("NSE:LIVE")
    assert await samples(client, "NSE:LIVE", "price") == [(r.timestamp, r.price) for r in live]
    assert sum(turn.startswith("replay") for turn in turns) >= 20
    text = " ".join("L" if turn == "live" else "R" if turn == "replay" else "W" for turn in turns)
    # A replayed batch that went before waiting samples is followed by theirs, not by another one.
    assert "W R" not in text
    assert "W W" not in text
    assert text.count("L") >= text.count("W") > 0


async def test_ticks_of_one_millisecond_are_summed_once_however_they_travelled(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    async with WritePath(server.url, tmp_path / "spool") as path:
        ticks = path.ticks
        at = ticks.start_ms
        offer([ticks.tick(price=9.0, volume=1, timestamp=at + 1)], path.time_series)
        offer([ticks.tick(price=1.0, volume=1, timestamp=at)], path.time_series)
        await path.settled()
        await server.kill()
        await eventually(lambda: path.time_series.state.value == "unavailable")
        for volume in range(2, 30):
            offer([ticks.tick(price=float(volume), volume=volume, timestamp=at)], path.time_series)
            offer([ticks.tick(price=9.0, volume=volume, timestamp=at + 1)], path.time_series)
        # A backlog that takes a while, and then more of the same milliseconds behind it.
        for _ in range(40):
            offer([ticks.tick(f"NSE:SYM{n % 20}") for n in range(500)], path.time_series)
            await asyncio.sleep(0)
        await eventually(lambda: path.time_series.counters.spooled > 19_000)
        await server.start()
        await eventually(lambda: path.time_series.state.value == "ready")
        for volume in range(30, 60):
            offer([ticks.tick(price=float(volume), volume=volume, timestamp=at)], path.time_series)
            offer([ticks.tick(price=9.5, volume=volume, timestamp=at + 1)], path.time_series)
            await asyncio.sleep(0)
        await path.settled()
        total = sum(range(60))
        assert await samples(client, "NSE:RELIANCE", "volume") == [(at, total), (at + 1, total)]
        assert await samples(client, "NSE:RELIANCE", "price") == [(at, 59.0), (at + 1, 9.5)]
        counters = path.time_series.counters
        assert counters.collapsed == 2 * 58
        assert counters.offered == counters.written + counters.collapsed


async def test_a_probe_is_not_kept_for_later(server: PrivateRedis, tmp_path: Path) -> None:
    async with WritePath(server.url, tmp_path / "spool") as path:
        await path.settled()
        await server.kill()
        await eventually(lambda: path.stream.state.value == "unavailable")
        probe = path.ticks.tick(PROBE_INSTRUMENT, 1.0, volume=None)
        offer([probe, path.ticks.tick()], *path.spooled)
        await eventually(lambda: [sink.counters.spooled for sink in path.spooled] == [1, 1])
        assert [sink.counters.collapsed for sink in path.spooled] == [1, 1]


async def test_positions_on_disk_are_known_before_anything_new_is_stamped(
    server: PrivateRedis, tmp_path: Path
) -> None:
    async with WritePath(server.url, tmp_path / "spool") as path:
        await server.kill()
        offer([path.ticks.tick("NSE:A"), path.ticks.tick("BSE:B"), path.ticks.tick("NSE:C")], *path.sinks)
        await eventually(lambda: path.stream.counters.spooled == 3)
        made: list = path.ticks.made
    async with WritePath(server.url, tmp_path / "spool", ticks=Ticks()) as again:
        assert again.spool.positions() == {
            "NSE": (made[2].position_ms, made[2].position_seq),
            "BSE": (made[1].position_ms, made[1].position_seq),
        }
        await eventually(lambda: [sink.counters.recovered for sink in again.spooled] == [3, 3])


async def test_without_a_spool_disk_records_wait_in_memory_and_the_disk_is_used_when_it_is_back(
    server: PrivateRedis, client: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    real = os.pwrite
    full = True

    def pwrite(file: int, data: bytes, offset: int) -> int:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(file, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    async with WritePath(server.url, tmp_path / "spool", queue_limit=3_000) as path:
        await path.settled()
        await server.kill()
        await eventually(lambda: path.stream.state.value == "unavailable")
        offer([path.ticks.tick(f"NSE:SYM{n % 20}") for n in range(2_000)], *path.spooled)
        await eventually(lambda: path.spool.channels["stream"].state.value == "disabled")
        offer([path.ticks.tick(f"NSE:SYM{n % 20}") for n in range(4_000)], *path.spooled)
        assert path.stream.counters.dropped["queue_full"] > 0
        assert path.stream.queued <= 3_000 + 2_000
        path.assert_balanced()
        full = False
        await eventually(lambda: all(sink.counters.spooled and not sink.queued for sink in path.spooled))
        assert path.spool.channels["stream"].state.value == "ready"
        await server.start()
        await path.settled()
        counters = path.stream.counters
        assert counters.written == counters.offered - counters.dropped["queue_full"]
        assert len(await client.xrange("md:ticks:NSE")) == counters.written
