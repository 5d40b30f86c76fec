"""The keys of a replay, on a real Redis: no way out of them, and an end."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis, from_url

from services.errors import ConfigurationError, StorageMisconfigured
from services.market_data.clock import SystemClock
from services.pipeline.sink import SinkState
from services.storage.address import parse_address
from services.storage.keys import LIVE, KeySpace, last_tick, tick_series, tick_stream
from services.storage.replay_space import ReplaySpace, open_guarded, replay_keys
from services.storage.resp import command
from services.storage.stream_writer import StreamWriter
from services.storage.time_series_writer import TimeSeriesWriter
from tests.support.eventually import eventually
from tests.support.storage import Ticks


def test_the_live_key_space_spells_the_live_keys() -> None:
    assert LIVE.tick_series("NSE:M&M", "price") == tick_series("NSE:M&M", "price")
    assert LIVE.last_tick("NSE:M&M") == last_tick("NSE:M&M")
    assert LIVE.tick_stream("NSE") == tick_stream("NSE")


@pytest.mark.parametrize("name", ["", "*", "a:b", "../x", "a b", "-a", "x" * 65, "a{b}", "naïve"])
def test_a_name_that_could_reach_other_keys_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is no name for a replay"):
        replay_keys(name)


async def test_a_writer_that_would_write_live_keys_writes_nothing_at_all(redis_url: str) -> None:
    keys = replay_keys("guarded")
    client: Redis = from_url(redis_url)

    async def connect(address, name):  # type: ignore[no-untyped-def]
        return await open_guarded(address, name, keys)

    sinks = (
        StreamWriter(redis_url, connect=connect),
        TimeSeriesWriter(redis_url, clock=SystemClock(), connect=connect),
    )
    tasks = [asyncio.create_task(sink.run()) for sink in sinks]
    ticks = Ticks()
    for sink in sinks:
        sink.offer(ticks.tick())
    for sink in sinks:
        await eventually(lambda sink=sink: sink.state is SinkState.PARKED)  # type: ignore[misc]
        assert "a replay never writes md:t" in sink.reason
        assert sink.counters.written == 0
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    assert await client.keys("*") == []
    await client.aclose()


async def test_every_kind_of_command_with_a_live_key_is_stopped(redis_url: str) -> None:
    keys = replay_keys("guarded")
    connection = await open_guarded(parse_address(redis_url), "test", keys)
    for parts in (
        ("XADD", "md:ticks:NSE", "1-1", "a", "b"),
        ("TS.MADD", keys.tick_series("NSE:A", "price"), "1", "1", "md:ts:{NSE:A}:price", "1", "1"),
        ("HSET", "md:last:{NSE:A}", "a", "b"),
        ("DEL", "md:replay:other:ticks:NSE"),
        ("SET", "md:replay:guarded", "x"),
    ):
        with pytest.raises(StorageMisconfigured, match="a replay never writes"):
            connection.send(command(*parts).encode(), 1, lambda _: None)
    connection.abort(StorageMisconfigured("done"))
    with pytest.raises(StorageMisconfigured, match="never writes live keys"):
        await open_guarded(parse_address(redis_url), "test", KeySpace())


async def test_emptying_and_expiring_touch_the_replays_own_keys_alone(redis_url: str) -> None:
    client: Redis = from_url(redis_url, decode_responses=True)
    mine, other = replay_keys("mine"), replay_keys("mine2")
    for number in range(2_500):
        await client.set(mine.last_tick(f"NSE:S{number}"), "x")
    kept = [other.tick_stream("NSE"), "md:ticks:NSE", "md:replay:min", "unrelated"]
    for key in kept:
        await client.set(key, "x")
    space = ReplaySpace(redis_url, mine)
    assert await space.expire(60) == 2_500
    assert 0 < await client.ttl(mine.last_tick("NSE:S7")) <= 60
    assert await space.empty() == 2_500
    await space.close()
    assert sorted(await client.keys("*")) == sorted(kept)
    assert [await client.ttl(key) for key in kept] == [-1] * 4
    await client.aclose()
