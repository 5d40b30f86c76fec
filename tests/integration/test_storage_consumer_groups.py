"""Consumer groups on a real Redis: how far they are, and that trimming past them is noticed and said once."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest
import redis.asyncio
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console
from structlog.testing import capture_logs

from services.gateway.metrics import MetricsPage
from services.market_data.clock import ManualClock
from services.operations.terminal_views import status_view
from services.storage.stream_keeper import StreamKeeper
from tests.support.eventually import eventually
from tests.support.gateway import StubBackend

KEY = "md:ticks:NSE"
HOUR_MS = 3_600_000
START_MS = 1_700_000_000_000


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.from_url(redis_url, decode_responses=True)
    # Trimming goes in whole blocks; small ones make it visible with few entries.
    before = await client.config_get("stream-node-max-entries")
    await client.config_set("stream-node-max-entries", 10)
    yield client
    await client.config_set("stream-node-max-entries", before["stream-node-max-entries"])
    await client.aclose()


def keeper_of(redis_url: str, clock: ManualClock, **options: Any) -> StreamKeeper:
    return StreamKeeper(redis_url, clock=clock, exchanges=lambda: ["BSE", "NSE"], **options)


async def fill(client: redis.asyncio.Redis, count: int, first: int = 0, every_ms: int = 1_000) -> None:
    pipeline = client.pipeline(transaction=False)
    for number in range(first, first + count):
        pipeline.xadd(KEY, {"type": "tick", "n": number}, id=f"{START_MS + number * every_ms}-0")
    await pipeline.execute()


async def groups_of(keeper: StreamKeeper, client: redis.asyncio.Redis) -> dict[str, dict[str, Any]]:
    await keeper.watch(client)
    return {group["group"]: group for group in keeper.status()["groups"]}


async def test_lag_pending_and_consumers_are_shown(client: redis.asyncio.Redis, redis_url: str) -> None:
    keeper = keeper_of(redis_url, ManualClock(START_MS))
    await fill(client, 50)
    await client.xgroup_create(KEY, "archive", "0")
    await client.xreadgroup("archive", "one", {KEY: ">"}, count=20)
    await client.xack(KEY, "archive", *[f"{START_MS + number * 1_000}-0" for number in range(5)])
    group = (await groups_of(keeper, client))["archive"]
    assert (group["lag"], group["pending"], group["consumers"], group["trimmed"]) == (30, 15, 1, False)
    assert group["idle_ms"] >= 0
    assert keeper.status()["streams"] == [
        {"exchange": "NSE", "entries": 50, "oldest_ms": START_MS, "newest_ms": START_MS + 49_000}
    ]


async def test_a_group_that_was_trimmed_is_known_by_number_and_said_once(
    client: redis.asyncio.Redis, redis_url: str
) -> None:
    keeper = keeper_of(redis_url, ManualClock(START_MS))
    await fill(client, 100)
    for name, at in (("never read", "0"), ("half", "0"), ("at the end", "$"), ("somewhere", f"{START_MS}-5")):
        await client.xgroup_create(KEY, name, at)
    await client.xreadgroup("half", "one", {KEY: ">"}, count=50)
    assert not any(group["trimmed"] for group in (await groups_of(keeper, client)).values())
    with capture_logs() as logs:
        await client.xtrim(KEY, maxlen=20, approximate=False)
        await groups_of(keeper, client)
        found = await groups_of(keeper, client)
    assert {name: (group["trimmed"], group["lost"]) for name, group in found.items()} == {
        "never read": (True, 80),
        "half": (True, 30),
        "at the end": (False, 0),
        "somewhere": (True, None),
    }
    said = [entry for entry in logs if entry["event"] == "consumer_group_trimmed"]
    assert [(entry["group"], entry["lost"]) for entry in said] == [
        ("half", 30),
        ("never read", 80),
        ("somewhere", None),
    ]
    with capture_logs() as logs:
        await client.xreadgroup("half", "one", {KEY: ">"}, count=1)
        half = (await groups_of(keeper, client))["half"]
    assert (half["trimmed"], half["lost_total"]) == (False, 30)
    assert [entry["event"] for entry in logs] == ["consumer_group_back"]


async def test_a_group_that_had_everything_is_not_accused_when_the_stream_was_emptied_behind_it(
    client: redis.asyncio.Redis, redis_url: str
) -> None:
    keeper = keeper_of(redis_url, ManualClock(START_MS))
    await fill(client, 30)
    await client.xgroup_create(KEY, "all of it", "0")
    await client.xgroup_create(KEY, "new ones", "$")
    await client.xreadgroup("all of it", "one", {KEY: ">"})
    await groups_of(keeper, client)
    await client.xtrim(KEY, maxlen=0, approximate=False)
    await fill(client, 3, first=30)
    found = await groups_of(keeper, client)
    assert {name: (group["trimmed"], group["lost"]) for name, group in found.items()} == {
        "all of it": (False, 0),
        "new ones": (False, 0),
    }
    await client.xtrim(KEY, maxlen=1, approximate=False)
    found = await groups_of(keeper, client)
    assert {name: (group["trimmed"], group["lost"]) for name, group in found.items()} == {
        "all of it": (True, 2),
        "new ones": (True, 2),
    }


async def test_entries_are_trimmed_by_age_counted_from_the_newest(
    client: redis.asyncio.Redis, redis_url: str
) -> None:
    clock = ManualClock(START_MS + 10 * HOUR_MS)
    keeper = keeper_of(redis_url, clock, max_age_ms=2 * HOUR_MS)
    await fill(client, 100, every_ms=HOUR_MS // 10)
    await keeper.watch(client)
    assert await keeper.trim(client) == 70
    assert await client.xlen(KEY) == 30
    assert (await client.xrange(KEY, count=1))[0][0] == f"{START_MS + 7 * HOUR_MS}-0"
    clock.advance(3_600_000)
    await keeper.watch(client)
    assert await keeper.trim(client) == 0, "a quiet exchange keeps what it sent last"


async def test_a_clock_that_is_wrong_empties_nothing(client: redis.asyncio.Redis, redis_url: str) -> None:
    keeper = keeper_of(redis_url, ManualClock(START_MS + 10_000 * HOUR_MS), max_age_ms=2 * HOUR_MS)
    await fill(client, 100)
    await keeper.watch(client)
    assert await keeper.trim(client) == 0


async def test_the_task_goes_on_after_redis_was_away(redis_url: str, client: redis.asyncio.Redis) -> None:
    await fill(client, 10)
    keeper = keeper_of(redis_url, ManualClock(START_MS), watch_every_s=0.01)
    running = asyncio.create_task(keeper.run())
    try:
        await eventually(lambda: keeper.status()["streams"])
        await client.client_kill_filter(_type="normal", skipme=True)
        await client.xgroup_create(KEY, "after", "0")
        await eventually(lambda: keeper.status()["groups"])
        assert not running.done()
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def test_only_streams_that_a_group_reads_are_looked_at_each_time(
    client: redis.asyncio.Redis, redis_url: str
) -> None:
    await fill(client, 10)
    await client.xadd("md:ticks:BSE", {"type": "tick"}, id="5-0")
    await client.xgroup_create("md:ticks:BSE", "archive", "0")
    keeper = keeper_of(redis_url, ManualClock(START_MS))
    await keeper.watch(client)
    await fill(client, 10, first=10)
    await client.xadd("md:ticks:BSE", {"type": "tick"}, id="6-0")
    asked = await calls(client)
    await keeper.watch(client, only_groups=True)
    assert await calls(client) == asked + 2, "one stream, and its groups"
    assert {row["exchange"]: row["entries"] for row in keeper.status()["streams"]} == {"BSE": 2, "NSE": 10}
    assert keeper.status()["groups"][0]["lag"] == 2
    await keeper.watch(client)
    assert {row["exchange"]: row["entries"] for row in keeper.status()["streams"]} == {"BSE": 2, "NSE": 20}


async def calls(client: redis.asyncio.Redis) -> int:
    """Return how often a stream or its groups were asked for."""
    figures = await client.info("commandstats")
    return sum(figures.get(f"cmdstat_xinfo|{name}", {}).get("calls", 0) for name in ("stream", "groups"))


async def test_nothing_is_trimmed_where_nothing_is_too_old(
    client: redis.asyncio.Redis, redis_url: str
) -> None:
    keeper = keeper_of(redis_url, ManualClock(START_MS + HOUR_MS), max_age_ms=2 * HOUR_MS)
    await fill(client, 100)
    await keeper.watch(client)
    await client.config_resetstat()
    assert await keeper.trim(client) == 0
    assert "cmdstat_xtrim" not in await client.info("commandstats")


async def test_operators_see_the_groups_in_status_and_metrics(
    client: redis.asyncio.Redis, redis_url: str
) -> None:
    keeper = keeper_of(redis_url, ManualClock(START_MS))
    await fill(client, 100)
    await client.xgroup_create(KEY, "archive", "0")
    await client.xtrim(KEY, maxlen=20, approximate=False)
    await keeper.watch(client)

    class Backend(StubBackend):
        def pipeline_status(self) -> dict[str, Any]:
            return super().pipeline_status() | {"streams": keeper.status()}

    clients = dict.fromkeys(
        ("connected", "watched", "lag_ms_max", "accepted", "refused", "frames_out", "bytes_out"), 0
    ) | {"messages_in": 0, "skipped": 0, "closed_by_code": {}, "http_refused": {}, "by_protocol": {}}
    page, _ = MetricsPage(Backend(), lambda: clients).render()
    samples = {
        sample.name: sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
        if sample.name.startswith(("marketd_consumer_group", "marketd_stream"))
    }
    assert samples["marketd_consumer_group_lag"] == 20
    assert samples["marketd_consumer_group_trimmed"] == 1
    assert samples["marketd_consumer_group_lost_total"] == 80
    assert samples["marketd_stream_entries"] == 20
    console = Console(width=160, file=io.StringIO())
    console.print(status_view({"providers": [], "pipeline": {"streams": keeper.status()}}))
    assert "archive" in (text := console.file.getvalue())
    assert "trimmed: 80 entries it never got" in text
