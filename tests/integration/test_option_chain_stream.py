"""The stream of option chains against a real Redis: one entry a change, whatever happens to the clock."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from services.market_data.option_chains import OptionChainSnapshot, OptionLeg
from services.storage.client import make_client
from services.storage.option_chain_stream import OptionChainFollower, OptionChainWriter
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy

STREAM = "md:options:{NSE:NIFTY}"


def chain(oi: int, *, received_ms: int = 1_700_000_000_000, **fields: Any) -> OptionChainSnapshot:
    leg = OptionLeg(
        "NFO:NIFTY-2026-12-29-25000-CE", "25000", "call", 312.4, 7, oi, None, 0.53, greeks_by="computed"
    )
    values: dict[str, Any] = {"expiry": 1_798_538_400, "expiry_date": "2026-12-29", "is_next": True} | fields
    return OptionChainSnapshot(
        symbol="NSE:NIFTY",
        exchange="NSE",
        provider_code="DHAN",
        timestamp=received_ms * 1000,
        received_ms=received_ms,
        legs=(leg,),
        underlying_price=25_010.0,
        missing=(("25000", "put"),),
        **values,
    )


@contextlib.asynccontextmanager
async def running(writer: OptionChainWriter) -> AsyncIterator[None]:
    task = asyncio.create_task(writer.run())
    try:
        yield
        assert not task.done(), task.exception()
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    client = make_client(redis_url)
    yield client
    await client.aclose()


async def ids(redis: Redis) -> list[str]:
    return [str(entry_id) for entry_id, _ in await redis.xrange(STREAM)]


async def test_what_only_time_has_moved_is_no_entry_and_ids_are_given_before_writing(
    redis_url: str, redis: Redis
) -> None:
    writer = OptionChainWriter(redis_url)
    first, same, second = chain(1), chain(1, received_ms=1_700_000_003_000), chain(2)
    same.legs[0].delta = 0.54
    assert [writer.offer(it) for it in (first, same, second)] == [True, False, True]
    assert (first.position, second.position) == ("1700000000000-0", "1700000000000-1")
    assert same.position_ms == 0
    later = chain(3, received_ms=1_700_000_006_000)
    assert writer.offer(later)
    assert writer.offer(chain(1, expiry=1_799_000_000, expiry_date="2027-01-05"))
    async with running(writer):
        await eventually(lambda: writer.status()["queued"] == 0)
    assert writer.status() | {"written": 2, "unchanged": 1, "replaced": 2} == writer.status(), (
        "before it is written the newest of an expiry replaces what waits"
    )
    assert await ids(redis) == ["1700000006000-0", "1700000006000-1"]


async def test_while_redis_is_away_only_the_newest_waits() -> None:
    away = OptionChainWriter("redis://127.0.0.1:9/0")
    async with running(away):
        for oi in range(1, 6):
            assert away.offer(chain(oi, received_ms=1_700_000_000_000 + oi))
            await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert away.status()["queued"] == 1
        assert away.status()["written"] == 0


async def test_a_stream_that_is_ahead_of_our_clock_is_gone_on_behind(redis_url: str, redis: Redis) -> None:
    await redis.xadd(STREAM, {"type": "chain"}, id="1800000000000-7")
    writer = OptionChainWriter(redis_url)
    async with running(writer):
        writer.offer(chain(1))
        await eventually(lambda: writer.dropped == 1)
        assert writer.offer(chain(1)), "what was refused may be told again"
        await eventually(lambda: writer.written == 1)
    assert await ids(redis) == ["1800000000000-7", "1800000000000-8"]


async def test_a_follower_begins_with_the_newest_of_each_expiry_and_passes_over_what_it_cannot_read(
    redis_url: str, redis: Redis
) -> None:
    writer = OptionChainWriter(redis_url)
    heard: list[OptionChainSnapshot] = []
    wanted: set[str] = set()
    follower = OptionChainFollower(redis_url, wanted=lambda: wanted, take=heard.append)
    async with running(writer):
        for oi in (1, 2):
            writer.offer(chain(oi))
            writer.offer(chain(oi, expiry=1_799_000_000, expiry_date="2027-01-05", is_next=False))
            await eventually(lambda: writer.status()["queued"] == 0)
        await redis.xadd(STREAM, {"type": "of a later version", "e": "1"})
        task = asyncio.create_task(follower.run())
        try:
            await asyncio.sleep(0.1)
            assert heard == []
            wanted.add("NSE:NIFTY")
            await eventually(lambda: len(heard) == 2)
            assert sorted((it.expiry_date, it.legs[0].oi) for it in heard) == [
                ("2026-12-29", 2),
                ("2027-01-05", 2),
            ]
            assert heard[0].missing == (("25000", "put"),)
            assert follower.status() | {"underlyings": ["NSE:NIFTY"], "unreadable": 1} == follower.status()
            last = await redis.xinfo_stream(STREAM)
            assert int(str(last["last-generated-id"]).partition("-")[0]) > heard[0].position_ms
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def test_a_chain_whose_answer_was_lost_is_written_once_and_the_newest_follows(
    redis_url: str, redis: Redis
) -> None:
    address = urlsplit(redis_url)
    assert address.port is not None
    async with FaultProxy("127.0.0.1", address.port) as proxy:
        writer = OptionChainWriter(redis_url.replace(f":{address.port}", f":{proxy.port}"))
        async with running(writer):
            writer.offer(chain(1))
            await eventually(lambda: writer.written == 1)
            proxy.drop_replies = True
            writer.offer(chain(2, received_ms=1_700_000_001_000))
            await eventually(lambda: _has(redis, 2))
            for oi in range(3, 8):
                writer.offer(chain(oi, received_ms=1_700_000_000_000 + 1_000 * oi))
            proxy.reset_all()
            proxy.drop_replies = False
            await eventually(lambda: writer.status()["queued"] == 0, within_s=15)
    assert await ids(redis) == ["1700000000000-0", "1700000001000-0", "1700000007000-0"]


async def _has(redis: Redis, count: int) -> bool:
    return len(await ids(redis)) == count
