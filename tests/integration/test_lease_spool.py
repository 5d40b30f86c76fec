"""What a daemon that was deposed has on its disk, when it leads again: nothing doubled, all of it counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from services.errors import StorageUnavailable
from services.market_data.clock import SystemClock
from services.storage.address import RedisAddress
from services.storage.client import make_client
from services.storage.connection import RedisConnection, open_connection
from services.storage.led_times import LedTimes
from tests.support.eventually import eventually
from tests.support.fault_rig import WritePath
from tests.support.storage import Ticks, entries, offer, samples


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = make_client(redis_url)
    yield client
    await client.aclose()


class Gate:
    """Stands in for the leadership: lets writers connect, or does not."""

    def __init__(self) -> None:
        self.leads = False

    async def connect(self, address: RedisAddress, name: str) -> RedisConnection:
        if not self.leads:
            raise StorageUnavailable("another daemon leads")
        return await open_connection(address, name)


async def group(ticks: Ticks, count: int) -> list[Any]:
    """Some ticks that share no millisecond of their positions with any made before."""
    last_ms = ticks.made[-1].position_ms if ticks.made else 0
    await eventually(lambda: SystemClock().now_ms() > last_ms)
    return [ticks.tick() for _ in range(count)]


async def test_records_of_the_time_in_which_another_led_are_dropped_and_counted_and_all_others_follow(
    redis_url: str, client: Redis, tmp_path: Path
) -> None:
    gate, ticks = Gate(), Ticks()
    async with WritePath(redis_url, tmp_path / "spool", ticks=ticks, connect=gate.connect) as path:
        ours, theirs, later = await group(ticks, 1_200), await group(ticks, 700), await group(ticks, 900)
        offer([*ours, *theirs, *later], *path.sinks)
        await path.spilled()
        led_times = LedTimes(tmp_path / "leadership.json")
        led_times.lose(theirs[0].position_ms, theirs[-1].position_ms)
        for sink in path.spooled:
            sink.led_times = led_times
        gate.leads = True
        for writer in path.sinks:
            writer.retry_now()
        await path.settled()
        for sink in path.spooled:
            assert sink.counters.dropped == {"lease_lost": len(theirs)}
            assert sink.counters.rejected == {}
        await eventually(lambda: not any(channel.pending for channel in path.spool.channels.values()))
    assert [entry_id for entry_id, _ in await entries(client)] == [tick.position for tick in ours + later]
    stored = await samples(client, "NSE:RELIANCE", "price")
    assert stored == [(tick.timestamp, tick.price) for tick in ours + later]


async def test_a_lost_time_at_the_end_leaves_nothing_on_disk(
    redis_url: str, client: Redis, tmp_path: Path
) -> None:
    gate, ticks = Gate(), Ticks()
    async with WritePath(redis_url, tmp_path / "spool", ticks=ticks, connect=gate.connect) as path:
        theirs = await group(ticks, 3_000)
        offer(theirs, *path.sinks)
        await path.spilled()
        led_times = LedTimes(tmp_path / "leadership.json")
        led_times.lose(theirs[0].position_ms, theirs[-1].position_ms)
        for sink in path.spooled:
            sink.led_times = led_times
        gate.leads = True
        for writer in path.sinks:
            writer.retry_now()
        await path.settled()
        await eventually(lambda: not any(channel.pending for channel in path.spool.channels.values()))
    assert await entries(client) == []


@pytest.mark.parametrize("another_led", [False, True])
async def test_an_entry_below_the_streams_top_counts_as_stored_only_when_nobody_else_led(
    redis_url: str, client: Redis, tmp_path: Path, another_led: bool
) -> None:
    gate, ticks = Gate(), Ticks()
    async with WritePath(redis_url, tmp_path / "spool", ticks=ticks, connect=gate.connect) as path:
        offer(await group(ticks, 300), *path.spooled)
        await asyncio.gather(*(sink.drain(0.0) for sink in path.spooled))
        assert path.stream.counters.spooled == 300
    (above,) = await group(ticks, 1)
    await client.xadd("md:ticks:NSE", {"type": "tick"}, id=above.position)
    gate.leads = True
    async with WritePath(redis_url, tmp_path / "spool", ticks=ticks, connect=gate.connect) as again:
        if another_led:
            again.stream.overtaken_until_ms = SystemClock().now_ms()
        await eventually(lambda: again.stream.counters.recovered == 300)
        await again.settled()
        await eventually(lambda: again.lag.samples > 0)
        counters = again.stream.counters
    assert (counters.already_written, counters.rejected) == (
        (0, {"behind_stream_top": 300}) if another_led else (300, {})
    )
