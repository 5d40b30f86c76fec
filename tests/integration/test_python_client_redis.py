"""The Python client's readers of Redis: tail, replay, consumer groups and data frames, on a real Redis."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pandas as pd
import pytest
import redis
import redis.asyncio

from marketd_client import Control, Tick, Trimmed, frames
from marketd_client.streams import Delivery, GroupReader, replay, tail
from services.market_data.records import ControlRecord, DataIngestionFormat
from services.storage.stream_writer import StreamWriter
from tests.support.eventually import FACTOR, eventually

KEY = "md:ticks:NSE"
START_MS = 1_700_000_000_000


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.from_url(redis_url, decode_responses=True)
    yield client
    await client.aclose()


async def fill(client: redis.asyncio.Redis, first: int, last: int) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in range(first, last + 1):
        fields = {"type": "tick", "k": "NSE:TCS", "t": number, "r": number, "p": number, "src": "DHAN"}
        pipeline.xadd(KEY, fields, id=f"{START_MS + number}-0")
    await pipeline.execute()


async def take(records: AsyncIterator[Any], count: int) -> list[Any]:
    return [await asyncio.wait_for(anext(records), 10 * FACTOR) for _ in range(count)]


def prices(records: list[Any]) -> list[float]:
    return [record.price for record in records if isinstance(record, Tick)]


async def test_every_field_the_daemon_writes_is_read(client: redis.asyncio.Redis, redis_url: str) -> None:
    writer = StreamWriter(redis_url)
    task = asyncio.create_task(writer.run())
    tick = DataIngestionFormat(
        "NSE:TCS", 2456.75, 10, 5, "DHAN", received_ms=6, cumulative_volume=100, bid=2456.7, ask=2456.8,
        bid_size=1, ask_size=2, oi=3, day_open=1.5, day_high=2.5, day_low=0.5, previous_close=1.0, flags=5,
        exchange="NSE", position_ms=START_MS, position_seq=0,
    )  # fmt: skip
    gap = ControlRecord(
        "gap", "NSE:TCS", "NSE", 7, 8, "DHAN", {"from": 1, "to": 2, "reason": "reset"}, START_MS, 1
    )
    writer.offer(tick)
    writer.offer(gap)
    first, second = await take(tail(client, "NSE", "0-0"), 2)
    assert first == Tick(
        "NSE:TCS", 2456.75, 5, 10, 2456.7, 2456.8, 1, 2, 100, 3, 1.5, 2.5, 0.5, 1.0, "DHAN",
        ("snapshot", "late"), 6, f"{START_MS}-0",
    )  # fmt: skip
    fields = {"r": "8", "from": "1", "to": "2", "reason": "reset"}
    assert second == Control("gap", "NSE:TCS", 7, "DHAN", fields, f"{START_MS}-1")
    task.cancel()
    await asyncio.wait({task})


async def test_tail_follows_what_comes_and_goes_on_from_a_position(client: redis.asyncio.Redis) -> None:
    await fill(client, 1, 5)
    live = tail(client, "NSE", block_ms=200)
    waiting = asyncio.ensure_future(take(live, 3))
    await eventually(lambda: _blocked(client), within_s=10)
    await fill(client, 6, 8)
    assert prices(await waiting) == [6, 7, 8]
    assert prices(await take(tail(client, "NSE", f"{START_MS + 2}-0", count=2), 6)) == [3, 4, 5, 6, 7, 8]


async def _blocked(client: redis.asyncio.Redis) -> bool:
    return int((await client.info("clients"))["blocked_clients"]) > 0


async def test_tail_says_how_much_was_trimmed_before_it_came(client: redis.asyncio.Redis) -> None:
    await fill(client, 1, 100)
    records = tail(client, "NSE", f"{START_MS + 90}-0", block_ms=50)
    assert prices(await take(records, 10)) == list(range(91, 101))
    waiting = asyncio.ensure_future(anext(records))
    await eventually(lambda: _blocked(client), within_s=10)
    pipeline = client.pipeline(transaction=True)
    for number in range(101, 121):
        pipeline.xadd(KEY, {"type": "tick", "k": "NSE:TCS", "t": 1, "p": number}, id=f"{START_MS + number}-0")
    pipeline.xtrim(KEY, maxlen=5, approximate=False)
    await pipeline.execute()
    hole = await asyncio.wait_for(waiting, 10 * FACTOR)
    assert hole == Trimmed(KEY, f"{START_MS + 100}-0", f"{START_MS + 116}-0", lost=15)
    assert prices(await take(records, 5)) == [116, 117, 118, 119, 120]
    (unknown,) = await take(tail(client, "NSE", f"{START_MS + 50}-0"), 1)
    assert unknown == Trimmed(KEY, f"{START_MS + 50}-0", f"{START_MS + 116}-0", lost=None)
    (all_of_it,) = await take(tail(client, "NSE", "0-0"), 1)
    assert all_of_it.lost == 115


async def test_tail_that_had_everything_is_not_told_of_a_loss(client: redis.asyncio.Redis) -> None:
    await fill(client, 1, 10)
    records = tail(client, "NSE", "0-0", block_ms=50)
    await take(records, 10)
    waiting = asyncio.ensure_future(anext(records))
    await eventually(lambda: _blocked(client), within_s=10)
    await client.xtrim(KEY, maxlen=0, approximate=False)
    await fill(client, 11, 11)
    assert (await asyncio.wait_for(waiting, 10 * FACTOR)).price == 11


async def test_tail_says_that_the_stream_was_begun_anew(client: redis.asyncio.Redis) -> None:
    await fill(client, 1, 10)
    records = tail(client, "NSE", "0-0", block_ms=50)
    await take(records, 10)
    await client.delete(KEY)
    (hole,) = await take(records, 1)
    assert hole.recreated
    waiting = asyncio.ensure_future(anext(records))
    await fill(client, 3, 3)
    assert (await asyncio.wait_for(waiting, 10 * FACTOR)).price == 3


async def test_replay_gives_a_span_of_time_and_ends(client: redis.asyncio.Redis) -> None:
    await fill(client, 1, 50)
    found = [item async for item in replay(client, "NSE", START_MS + 10, START_MS + 20, count=3)]
    assert prices(found) == list(range(10, 20))
    await client.xtrim(KEY, maxlen=35, approximate=False)
    found = [item async for item in replay(client, "NSE", START_MS + 10, START_MS + 20)]
    assert isinstance(found[0], Trimmed)
    assert prices(found) == [16, 17, 18, 19]


async def test_a_group_shares_the_work_and_takes_over_from_the_dead(client: redis.asyncio.Redis) -> None:
    await fill(client, 1, 6)
    dead = GroupReader(client, "NSE", "work", "dead", start="0-0", count=3, claim_idle_ms=1)
    given = await take(dead.deliveries(), 3)
    await given[0].ack()
    await eventually(lambda: _idle(client, "work", 2), within_s=10)
    alive = GroupReader(client, "NSE", "work", "alive", count=3, claim_idle_ms=1)
    work = alive.deliveries()
    taken = await take(work, 5)
    assert [(item.record.price, item.times) for item in taken] == [(2, 2), (3, 2), (4, 1), (5, 1), (6, 1)]
    for item in taken:
        await item.ack()
    assert (await client.xpending(KEY, "work"))["pending"] == 0


async def _idle(client: redis.asyncio.Redis, group: str, milliseconds: int) -> bool:
    entries = await client.xpending_range(KEY, group, "-", "+", 10)
    return all(entry["time_since_delivered"] > milliseconds for entry in entries)


async def test_a_group_that_was_trimmed_is_told(client: redis.asyncio.Redis) -> None:
    await fill(client, 1, 20)
    reader = GroupReader(client, "NSE", "late", "one", start="0-0", count=2, claim_idle_ms=1)
    work = reader.deliveries()
    assert [item.record.price for item in await take(work, 2)] == [1, 2]
    await client.xtrim(KEY, maxlen=10, approximate=False)
    await eventually(lambda: _idle(client, "late", 2), within_s=10)
    unfinished, unread, *rest = await take(work, 4)
    assert unfinished == Trimmed(KEY, f"{START_MS + 1}-0", f"{START_MS + 2}-0", lost=2)
    assert unread == Trimmed(KEY, f"{START_MS + 2}-0", f"{START_MS + 11}-0", lost=8)
    assert [item.record.price for item in rest if isinstance(item, Delivery)] == [11, 12]


async def test_series_become_a_data_frame(redis_url: str, client: redis.asyncio.Redis) -> None:
    for field, samples in {"price": {1: 10.5, 2: 11, 4: 12}, "volume": {1: 5, 4: 7}, "bid": {2: 9.5}}.items():
        for second, value in samples.items():
            await client.ts().add(f"md:ts:{{NSE:TCS}}:{field}", START_MS + second * 1_000, value)
    for decode in (True, False):
        with redis.from_url(redis_url, decode_responses=decode) as blocking:
            frame = frames.ticks(blocking, "NSE:TCS")
            assert list(frame.columns) == ["price", "volume", "bid", "ask", "oi"]
            assert str(frame.index.dtype) == "datetime64[ms, UTC]"
            assert frame.index[0] == pd.Timestamp(START_MS + 1_000, unit="ms", tz="UTC")
            assert frame["price"].tolist() == [10.5, 11.0, 12.0]
            assert frame["volume"].fillna(-1).tolist() == [5, -1, 7]
            assert frame["ask"].isna().all()
            after = datetime.fromtimestamp(START_MS / 1000 + 2, UTC)
            assert frames.ticks(blocking, "NSE:TCS", after)["price"].tolist() == [11.0, 12.0]
            assert frames.ticks(blocking, "NSE:NOPE").empty
            assert frames.bars(blocking, "NSE:TCS", "5m").empty
            with pytest.raises(ValueError, match="zone"):
                frames.ticks(blocking, "NSE:TCS", datetime(2026, 1, 1))


async def test_a_stream_becomes_a_data_frame(redis_url: str, client: redis.asyncio.Redis) -> None:
    await fill(client, 1, 3)
    await client.xadd(
        KEY, {"type": "gap", "k": "NSE:TCS", "t": 1, "from": 1, "to": 2}, id=f"{START_MS + 9}-0"
    )
    with redis.from_url(redis_url) as blocking:
        frame = frames.stream(blocking, "NSE")
    assert frame["price"].tolist() == [1.0, 2.0, 3.0]
    assert frame["position"].tolist()[0] == f"{START_MS + 1}-0"
    assert math.isnan(frame["bid"].astype(float).iloc[0])
