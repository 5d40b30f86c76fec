"""What compaction rules of TimeSeries do and do not: why longer bars are not made by them (ADR 8)."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import redis.asyncio

MINUTE = 60_000
BUCKET = 1_700_000_100_000


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    connection = redis.asyncio.from_url(redis_url, decode_responses=True)
    yield connection
    await connection.aclose()


async def ruled(client: redis.asyncio.Redis, how: str, length_ms: int, align_ms: int = 0) -> None:
    for key in ("minutes", "longer"):
        await client.ts().create(key, duplicate_policy="last")
    await client.ts().createrule("minutes", "longer", how, length_ms, align_ms)


async def test_a_rule_is_silent_until_the_next_bucket_begins(client: redis.asyncio.Redis) -> None:
    await ruled(client, "max", 5 * MINUTE)
    for number in range(5):
        await client.ts().add("minutes", BUCKET + number * MINUTE, 100 + number)
    assert await client.ts().range("longer", "-", "+") == []
    await client.ts().add("minutes", BUCKET + 5 * MINUTE, 1)
    assert await client.ts().range("longer", "-", "+") == [(BUCKET, 104.0)]


async def test_a_rule_follows_corrections_down_and_up_and_far_back(client: redis.asyncio.Redis) -> None:
    await ruled(client, "max", 5 * MINUTE)
    for number in range(6):
        await client.ts().add("minutes", BUCKET + number * MINUTE, 100 + number)
    await client.ts().add("minutes", BUCKET + 4 * MINUTE, 90)
    assert (await client.ts().range("longer", BUCKET, BUCKET))[0][1] == 103.0
    await client.ts().add("minutes", BUCKET + 2 * MINUTE, 500)
    await client.ts().add("minutes", BUCKET - 10 * MINUTE, 77)
    assert await client.ts().range("longer", "-", "+") == [(BUCKET - 10 * MINUTE, 77.0), (BUCKET, 500.0)]


async def test_one_grid_cuts_a_special_session_in_two(client: redis.asyncio.Redis) -> None:
    await ruled(client, "max", 60 * MINUTE, 45 * MINUTE)
    midnight = BUCKET - BUCKET % (24 * 60 * MINUTE)
    opens = midnight + (12 * 60 + 30) * MINUTE
    for number in range(60):
        await client.ts().add("minutes", opens + number * MINUTE, number)
    found = await client.ts().range("longer", "-", "+", latest=True)
    assert [(at_ms - midnight) // MINUTE for at_ms, _ in found] == [11 * 60 + 45, 12 * 60 + 45]


async def test_the_series_of_a_rule_takes_samples_of_others(client: redis.asyncio.Redis) -> None:
    await ruled(client, "max", 5 * MINUTE)
    await client.ts().add("longer", BUCKET - 24 * 60 * MINUTE, 5)
    assert await client.ts().range("longer", "-", "+") == [(BUCKET - 24 * 60 * MINUTE, 5.0)]
