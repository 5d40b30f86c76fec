"""The reader of the streams against a real Redis: everything, in order, once, and what is gone is said."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from services.market_data.clock import SystemClock
from services.market_data.records import ControlRecord, DataIngestionFormat, Record
from services.storage.client import make_client
from services.storage.stream_follower import PAGE_ENTRIES, StreamFollower
from tests.support.eventually import eventually


class Heard:
    """What a follower hands on, in order; holes are `(exchange, after, before, reason)`."""

    def __init__(self, redis_url: str) -> None:
        self.records: list[Record] = []
        self.all: list[Any] = []
        self.follower = StreamFollower(redis_url, SystemClock(), take=self._take, hole=self._hole)

    def _take(self, record: Record) -> None:
        self.records.append(record)
        self.all.append(record.position)

    def _hole(self, *hole: Any) -> None:
        self.all.append(hole)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        task = asyncio.create_task(self.follower.run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = make_client(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def heard(redis_url: str) -> Iterator[Heard]:
    return Heard(redis_url)


async def add(client: Redis, exchange: str, ms: int, count: int = 1, first: int = 0, **fields: Any) -> None:
    pipeline = client.pipeline(transaction=False)
    for seq in range(first, first + count):
        entry = {"type": "tick", "k": f"{exchange}:A", "t": ms, "r": ms, "p": seq, "src": "YF"} | fields
        pipeline.xadd(f"md:ticks:{exchange}", entry, id=f"{ms}-{seq}")
    await pipeline.execute()


async def test_every_entry_comes_once_in_order_from_the_position_on(client: Redis, heard: Heard) -> None:
    await add(client, "NSE", 1000, 3)
    heard.follower.follow({"NSE": (1000, 1), "BSE": (0, 0)})
    async with heard.running():
        await add(client, "NSE", 2000, 2 * PAGE_ENTRIES + 10)
        await add(client, "BSE", 5, 1, type="gap", **{"from": 1, "to": 2, "reason": "x"})
        await eventually(lambda: len(heard.records) == 2 * PAGE_ENTRIES + 12)
    nse = [record for record in heard.records if record.exchange == "NSE"]
    expected = [(1000, 2), *((2000, seq) for seq in range(2 * PAGE_ENTRIES + 10))]
    assert [(record.position_ms, record.position_seq) for record in nse] == expected
    assert isinstance(nse[0], DataIngestionFormat)
    (gap,) = (record for record in heard.records if isinstance(record, ControlRecord))
    assert (gap.type, gap.position, gap.fields["from"]) == ("gap", "5-0", 1)
    assert heard.follower.holes == 0


async def test_what_was_trimmed_past_the_reader_is_told_before_the_next_record(
    client: Redis, heard: Heard
) -> None:
    await add(client, "NSE", 1000)
    heard.follower.follow({"NSE": (1000, 0)})
    await add(client, "NSE", 2000, 3 * PAGE_ENTRIES)
    await client.xtrim("md:ticks:NSE", maxlen=PAGE_ENTRIES + 50, approximate=False)
    async with heard.running():
        await eventually(lambda: len(heard.records) == PAGE_ENTRIES + 50)
    first = 2 * PAGE_ENTRIES - 50
    assert heard.all[0] == ("NSE", (1000, 0), (2000, first), "trimmed")
    assert heard.all[1] == f"2000-{first}"
    assert heard.follower.holes == 1


async def test_a_long_way_back_that_is_whole_is_no_hole(client: Redis, heard: Heard) -> None:
    """A quiet night, and a page that is full: both are looked at, and found in order."""
    await add(client, "NSE", 1000)
    heard.follower.follow({"NSE": (1000, 0)})
    await add(client, "NSE", 90_000_000, 2 * PAGE_ENTRIES)
    async with heard.running():
        await eventually(lambda: len(heard.records) == 2 * PAGE_ENTRIES)
    assert heard.follower.holes == 0


async def test_exchanges_come_and_go_and_foreign_entries_are_passed_over(client: Redis, heard: Heard) -> None:
    heard.follower.follow({"NSE": (0, 0), "_PROBE": (0, 0)})
    async with heard.running():
        await client.xadd("md:ticks:NSE", {"what": "not ours"}, id="5-0")
        await add(client, "NSE", 6)
        await add(client, "_PROBE", 7)
        await eventually(lambda: len(heard.records) == 1)
        await eventually(lambda: "_PROBE" in heard.follower.probes)
        heard.follower.follow({"BSE": (0, 0)})
        heard.follower.forget("NSE")
        await add(client, "BSE", 8)
        await eventually(lambda: len(heard.records) == 2)
        await add(client, "NSE", 9)
        await add(client, "BSE", 9)
        await eventually(lambda: len(heard.records) == 3)
    assert heard.follower.unreadable == 1
    assert [record.exchange for record in heard.records] == ["NSE", "BSE", "BSE"]


async def test_a_new_history_whose_positions_begin_below_ours_is_read_whole(
    client: Redis, heard: Heard
) -> None:
    await add(client, "NSE", 9_000)
    heard.follower.follow({"NSE": (9_000, 0)})
    async with heard.running():
        await client.flushall()
        await add(client, "NSE", 10, 3)
        await asyncio.sleep(0.05)
        assert heard.records == []
        heard.follower.history_replaced({"NSE": (10, 2)})
        await eventually(lambda: len(heard.records) == 3)
