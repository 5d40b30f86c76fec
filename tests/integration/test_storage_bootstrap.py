"""Reading back at start, and judging the server, against real Redis servers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.errors import StorageMisconfigured, StorageUnavailable
from services.market_data.clock import SystemClock
from services.market_data.records import FLAG_DELAYED, FLAG_SNAPSHOT
from services.operations.redis_binary import bundled_program
from services.pipeline.sink import SinkState
from services.storage.bootstrap import ensure_epoch, last_positions, last_ticks, newest_in_streams
from services.storage.client import check_server, make_client
from services.storage.latest_value_writer import LatestValueWriter
from services.storage.stream_writer import StreamWriter
from services.storage.time_series_writer import TimeSeriesWriter
from tests.support.eventually import FACTOR, eventually
from tests.support.servers import PrivateRedis
from tests.support.storage import Ticks, assert_all_stored, drained, offer, quick, running, three_writers

MakeRedis = Callable[[], Awaitable[PrivateRedis]]


@pytest.fixture
async def client(redis_url: str) -> Any:
    client = make_client(redis_url)
    yield client
    await client.aclose()


async def test_positions_are_the_greatest_ever_given_even_after_trimming(
    redis_url: str, client: Redis
) -> None:
    ticks = Ticks()
    sink = StreamWriter(redis_url, **quick())
    async with running(sink):
        offer([ticks.tick("NSE:A"), ticks.tick("BSE:A"), ticks.tick("BSE:A")], sink)
        await drained(sink)
    await client.xtrim("md:ticks:BSE", maxlen=0, approximate=False)
    last = ticks.made[-1]
    assert await last_positions(client, ["NSE", "BSE", "MCX"]) == {
        "NSE": (ticks.made[0].position_ms, ticks.made[0].position_seq),
        "BSE": (last.position_ms, last.position_seq),
        "MCX": (0, 0),
    }


async def test_a_stream_key_of_another_type_is_a_fault_that_names_the_key(client: Redis) -> None:
    await client.set("md:ticks:NSE", "mine")
    with pytest.raises(StorageMisconfigured, match="md:ticks:NSE"):
        await last_positions(client, ["BSE", "NSE"])


async def test_newest_ticks_come_back_as_they_were_written(redis_url: str, client: Redis) -> None:
    ticks = Ticks()
    full = ticks.tick(
        "NSE:M&M",
        2456.75,
        volume=10,
        cumulative_volume=99,
        bid=1.5,
        ask=2.5,
        bid_size=3,
        ask_size=4,
        oi=5,
        day_open=6.5,
        day_high=7.5,
        day_low=8.5,
        previous_close=9.5,
        flags=FLAG_SNAPSHOT | FLAG_DELAYED,
    )
    bare = ticks.tick("INDEX:^GSPC", 5_000.25, volume=None)
    sink = LatestValueWriter(redis_url, **quick())
    async with running(sink):
        offer([full, bare], sink)
        await drained(sink)
    found = await last_ticks(client, ["NSE:M&M", "INDEX:^GSPC", "NSE:NEVER"])
    assert set(found) == {"NSE:M&M", "INDEX:^GSPC"}
    for made in (full, bare):
        made.position_ms = made.position_seq = 0
        assert found[made.symbol] == made


@pytest.mark.parametrize(
    "fields",
    [
        {"p": "abc", "t": "1", "r": "1", "src": "DHAN"},
        {"p": "1"},
        {"p": "nan", "t": "1", "r": "1", "src": "X"},
    ],
)
async def test_a_hash_that_is_no_tick_is_left_out(client: Redis, fields: dict[str, str]) -> None:
    await client.hset("md:last:{NSE:BAD}", mapping=fields)
    await client.set("md:last:{NSE:WORSE}", "mine")
    assert await last_ticks(client, ["NSE:BAD", "NSE:WORSE"]) == {}


async def test_newest_ticks_of_25000_instruments_are_read_in_two_seconds(
    redis_url: str, client: Redis
) -> None:
    ticks = Ticks()
    records = [
        ticks.tick(f"NSE:SYM{n}", cumulative_volume=n, bid=1.5, ask=2.5, day_open=1.0, day_high=2.0)
        for n in range(25_000)
    ]
    sink = LatestValueWriter(redis_url, **quick())
    async with running(sink):
        offer(records, sink)
        await drained(sink, within_s=30)
    began_s = time.perf_counter()
    found = await last_ticks(client, [record.symbol for record in records])
    took_s = time.perf_counter() - began_s
    assert len(found) == 25_000
    assert took_s < 2.0 * FACTOR, f"took {took_s:.2f} s"


async def test_the_epoch_is_made_once_and_anew_when_the_history_is_lost(client: Redis) -> None:
    first, created = await ensure_epoch(client)
    assert created
    assert await ensure_epoch(client) == (first, False)
    await client.flushall()
    second, created = await ensure_epoch(client)
    assert created
    assert second != first


async def test_the_facts_of_a_good_server(redis_url: str, client: Redis) -> None:
    facts = await check_server(client)
    assert facts.role == "master"
    assert facts.aof_enabled
    assert facts.timeseries_version.count(".") == 2
    assert facts.maxmemory_policy == "noeviction"
    assert len(facts.run_id) == 40
    assert facts.version


async def test_a_wrong_password_is_told_with_the_remedy(redis_url: str) -> None:
    parts = urlsplit(redis_url)
    for credentials in (":wrong@", "", "nobody:wrong@"):
        client = make_client(f"redis://{credentials}{parts.hostname}:{parts.port}/0")
        with pytest.raises(StorageMisconfigured, match="REDIS_URL") as caught:
            await check_server(client)
        assert "wrong" not in str(caught.value).replace("wrong password", "")
        await client.aclose()


async def test_nobody_listening_is_a_passing_condition(unused_tcp_port: int) -> None:
    client = make_client(f"redis://127.0.0.1:{unused_tcp_port}/0")
    with pytest.raises(StorageUnavailable, match="cannot be reached"):
        await check_server(client)
    with pytest.raises(StorageUnavailable):
        await last_positions(client, ["NSE"])
    with pytest.raises(StorageUnavailable):
        await last_ticks(client, ["NSE:A"])
    with pytest.raises(StorageUnavailable):
        await ensure_epoch(client)
    await client.aclose()


async def test_a_replica_and_a_user_without_rights_are_refused(private_redis: MakeRedis) -> None:
    server = await private_redis()
    admin = make_client(server.url)
    parts = urlsplit(server.url)
    await admin.acl_setuser("weak", enabled=True, passwords=["+pw"], commands=["+ping"])
    weak = make_client(f"redis://weak:pw@{parts.hostname}:{parts.port}/0")
    with pytest.raises(StorageMisconfigured, match="lacks a right"):
        await check_server(weak)
    await weak.aclose()
    await admin.replicaof("127.0.0.1", "1")
    # For a moment only, in the middle of a failover: worth another attempt.
    with pytest.raises(StorageUnavailable, match="replica"):
        await check_server(admin)
    with pytest.raises(StorageUnavailable, match="replica"):
        await ensure_epoch(admin)
    await admin.aclose()


async def test_these_rights_and_no_others_are_needed(private_redis: MakeRedis) -> None:
    server = await private_redis()
    parts = urlsplit(server.url)
    admin = make_client(server.url)
    rights = [
        *("hello", "auth", "ping", "select", "multi", "exec", "client|setname", "client|setinfo", "info"),
        *("ts.create", "ts.alter", "ts.madd", "xadd", "hset", "hdel", "set", "xinfo|stream", "hgetall"),
    ]
    await admin.execute_command(
        "ACL", "SETUSER", "writer", "on", ">pw", "~md:*", "-@all", *(f"+{right}" for right in rights)
    )
    url = f"redis://writer:pw@{parts.hostname}:{parts.port}/0"
    ticks = Ticks()
    sinks = three_writers(url)
    async with running(*sinks):
        for _ in range(2):
            offer([ticks.tick(bid=1.5), ticks.tick()], *sinks)
            await drained(*sinks)
    client = make_client(url)
    assert (await check_server(client)).role == "master"
    assert await ensure_epoch(client)
    assert (await last_positions(client, ["NSE"]))["NSE"] > (0, 0)
    assert "NSE:RELIANCE" in await last_ticks(client, ["NSE:RELIANCE"])
    await assert_all_stored(admin, ticks, ["NSE:RELIANCE"])
    await client.aclose()
    await admin.aclose()


async def test_a_silent_server_is_given_up_within_its_bound_and_asked_only_once(
    private_redis: MakeRedis,
) -> None:
    server = await private_redis()
    client = make_client(server.url, reply_timeout_s=0.5)
    await client.ping()
    server.pause()
    began_s = time.perf_counter()
    with pytest.raises(RedisTimeoutError):
        await client.xadd("s", {"a": "1"})
    assert time.perf_counter() - began_s < 1.5
    server.resume()
    other = make_client(server.url)
    await eventually(lambda: other.exists("s"))
    assert await other.xlen("s") == 1
    await client.aclose()
    await other.aclose()


@pytest.fixture
async def plain_redis_url(tmp_path: Path, unused_tcp_port: int) -> AsyncIterator[str]:
    """A real Redis started without the TimeSeries module."""
    program = bundled_program()
    assert program is not None, "make setup installs a Redis whose TimeSeries is a module"
    options = {"port": str(unused_tcp_port), "bind": "127.0.0.1", "save": "", "dir": str(tmp_path)}
    process = await asyncio.create_subprocess_exec(
        str(program.server),
        *(text for name, value in options.items() for text in (f"--{name}", value)),
        env=program.environment(),
        stdout=asyncio.subprocess.DEVNULL,
    )
    yield f"redis://127.0.0.1:{unused_tcp_port}/0"
    process.terminate()
    await process.wait()


async def test_a_redis_without_timeseries_is_refused_with_the_remedy(plain_redis_url: str) -> None:
    client = make_client(plain_redis_url)

    async def answers() -> bool:
        try:
            return bool(await client.ping())
        except RedisConnectionError:
            return False

    await eventually(answers)
    with pytest.raises(StorageMisconfigured, match="no TimeSeries: use Redis 8 or newer"):
        await check_server(client)
    await client.aclose()

    sink = TimeSeriesWriter(plain_redis_url, clock=SystemClock(), **quick())
    async with running(sink):
        offer([Ticks().tick()], sink)
        await eventually(lambda: sink.state is SinkState.PARKED)
        assert "no TimeSeries" in sink.reason
        assert sink.queued == 1


async def test_a_tick_that_reached_its_stream_and_not_its_hash_is_known_all_the_same(redis_url: str) -> None:
    client = make_client(redis_url)
    common = {"type": "tick", "src": "DHAN", "r": "1700000000900"}
    for position, fields in (
        ("1700000000100-0", {"k": "NSE:A", "t": "1700000000100", "p": "1.5"}),
        ("1700000000200-0", {"k": "NSE:A", "t": "1700000000200", "p": "1.6", "cv": "70"}),
        ("1700000000200-1", {"k": "NSE:B", "t": "1700000000200", "p": "9"}),
        ("1700000000300-0", {"k": "NSE:A", "t": "1700000000150", "p": "1.4", "f": "late"}),
        ("1700000000300-1", {"type": "gap", "k": "NSE:B", "t": "1700000000300"}),
        ("1700000000300-2", {"k": "NSE:C", "t": "1700000000300", "p": "nan"}),
    ):
        await client.xadd("md:ticks:NSE", {**common, **fields}, id=position)
    found = await newest_in_streams(client, ["NSE", "BSE"])
    assert {key: (tick.price, tick.timestamp) for key, tick in found.items()} == {
        "NSE:A": (1.6, 1_700_000_000_200),
        "NSE:B": (9.0, 1_700_000_000_200),
    }
    assert found["NSE:A"].cumulative_volume == 70
    assert set(await newest_in_streams(client, ["NSE"], depth=1)) == set()
    await client.aclose()
