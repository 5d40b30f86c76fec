"""The writers while Redis is killed, paused, emptied, full, read-only, locked, cut off or replaced.

Every test ends with the same judgement: each tick that was offered is stored once, with its value and
at its place, and every record is accounted for. Each also checks that the fault really happened.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from services.pipeline.sink import SinkState
from services.storage.client import make_client
from services.storage.redis_sink import RedisSink
from services.storage.stream_writer import StreamWriter
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.servers import PrivateRedis
from tests.support.storage import (
    Feed,
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
MakeClient = Callable[[str], Redis]


@pytest.fixture
async def client_of() -> AsyncIterator[MakeClient]:
    """Factory of clients that are closed at the end, whatever happens."""
    async with AsyncExitStack() as stack:
        made: list[Redis] = []

        def make(url: str) -> Redis:
            # The tests read all there is at once, on machines that are busy.
            made.append(make_client(url, reply_timeout_s=20.0))
            stack.push_async_callback(made[-1].aclose)
            return made[-1]

        yield make


class Rig:
    """Three running writers with ticks flowing into them, and an administrator's client."""

    def __init__(self, server: PrivateRedis, sinks: tuple[RedisSink, ...]) -> None:
        self.server = server
        self.sinks = sinks
        self.ticks = Ticks()
        self.feed = Feed(self.ticks, sinks)
        self.admin: Redis = make_client(server.url)

    async def everywhere(self, state: SinkState, within_s: float = 10.0) -> None:
        """Wait until every writer is in `state`."""
        await eventually(lambda: all(sink.state is state for sink in self.sinks), within_s)

    async def some_more(self, count: int = 200) -> None:
        """Wait until so many more ticks were offered."""
        target = len(self.ticks.made) + count
        await eventually(lambda: len(self.ticks.made) >= target)

    async def change_user(self, *rules: str) -> None:
        """Change the user that the writers log in as."""
        await self.admin.execute_command("ACL", "SETUSER", "default", *rules)

    async def cut(self) -> None:
        """Let the server close every connection but the administrator's."""
        await self.admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


@asynccontextmanager
async def rig(make_redis: MakeRedis, **options: Any) -> AsyncIterator[Rig]:
    """Ticks flow while the body lasts; afterwards all of them must be stored exactly."""
    server = await make_redis()
    stage = Rig(server, three_writers(server.url, **options))
    async with aclosing(stage.admin), running(*stage.sinks):
        async with stage.feed.flowing():
            await stage.everywhere(SinkState.READY)
            await stage.some_more()
            yield stage
            await stage.everywhere(SinkState.READY)
            await stage.some_more()
        await drained(*stage.sinks)
        for sink in stage.sinks:
            assert sink.counters.dropped == {}
            assert sink.counters.rejected == {}
        await assert_all_stored(stage.admin, stage.ticks, stage.feed.instruments)


async def test_killed_and_started_again_nothing_is_lost_or_doubled(private_redis: MakeRedis) -> None:
    async with rig(private_redis) as stage:
        await stage.server.kill()
        await stage.everywhere(SinkState.UNAVAILABLE)
        await stage.some_more()
        assert all(sink.queued for sink in stage.sinks)
        await stage.server.start()


async def test_paused_beyond_the_time_limit_and_woken_nothing_is_doubled(private_redis: MakeRedis) -> None:
    async with rig(private_redis) as stage:
        stage.server.pause()
        await stage.everywhere(SinkState.UNAVAILABLE)
        assert "did not answer" in stage.sinks[0].reason
        await stage.some_more()
        stage.server.resume()
    assert stage.sinks[1].counters.already_written > 0, "no delayed command was carried out"


async def test_connections_closed_by_the_server_again_and_again(private_redis: MakeRedis) -> None:
    async with rig(private_redis) as stage:
        for _ in range(20):
            await stage.cut()
            await stage.some_more(40)
            await stage.everywhere(SinkState.READY)
    assert all(sink.counters.errors >= 10 for sink in stage.sinks)


async def test_out_of_memory_refuses_and_gives_back_all(private_redis: MakeRedis) -> None:
    async with rig(private_redis) as stage:
        await stage.admin.config_set("maxmemory", "1mb")
        await stage.everywhere(SinkState.UNAVAILABLE)
        assert "out of memory" in stage.sinks[1].reason
        await stage.some_more()
        await stage.admin.config_set("maxmemory", "0")


async def test_memory_that_runs_out_and_comes_back_all_the_time_costs_no_entry(
    private_redis: MakeRedis, client_of: MakeClient
) -> None:
    server = await private_redis()
    admin = client_of(server.url)
    sinks = three_writers(server.url)
    ticks = Ticks()
    instruments = [f"NSE:SYM{n}" for n in range(20)]
    async with running(*sinks):
        # Deep queues, so that the memory is there for one batch and gone for the next.
        for _ in range(6):
            offer([ticks.tick(instrument) for instrument in instruments for _ in range(250)], *sinks)
            for _ in range(100):
                await admin.config_set("maxmemory", "1mb")
                await admin.config_set("maxmemory", "0")
        await drained(*sinks)
    for sink in sinks[:2]:
        assert sink.counters.errors > 0, f"{sink.name} was never refused anything"
        assert sink.counters.rejected == {}
    await assert_all_stored(admin, ticks, instruments)


async def test_a_master_that_turns_into_a_replica_and_back(private_redis: MakeRedis) -> None:
    async with rig(private_redis) as stage:
        await stage.admin.replicaof("127.0.0.1", "1")
        await stage.everywhere(SinkState.UNAVAILABLE)
        assert "read-only replica" in stage.sinks[0].reason
        await stage.some_more()
        await stage.admin.replicaof("NO", "ONE")


async def test_a_right_that_is_taken_away_parks_the_one_writer_that_needs_it(
    private_redis: MakeRedis,
) -> None:
    async with rig(private_redis) as stage:
        await stage.change_user("-ts.madd")
        await eventually(lambda: stage.sinks[0].state is SinkState.PARKED)
        assert "ts.madd" in stage.sinks[0].reason.lower()
        assert stage.sinks[1].state is SinkState.READY
        await stage.some_more()
        await stage.change_user("+ts.madd")


async def test_a_changed_password_parks_and_the_right_one_brings_everything_back(
    private_redis: MakeRedis,
) -> None:
    async with rig(private_redis) as stage:
        password = urlsplit(stage.server.url).password
        await stage.change_user(">another", f"<{password}")
        await stage.cut()
        await stage.everywhere(SinkState.PARKED)
        assert "password" in stage.sinks[0].reason
        assert "another" not in stage.sinks[0].reason
        await stage.some_more()
        await stage.change_user(f">{password}", "<another")


async def test_no_free_connection(private_redis: MakeRedis) -> None:
    async with rig(private_redis) as stage:
        await stage.admin.config_set("maxclients", 1)
        await stage.cut()
        await stage.everywhere(SinkState.UNAVAILABLE)
        await eventually(lambda: any("maxclients" in sink.reason for sink in stage.sinks))
        await stage.some_more()
        await stage.admin.config_set("maxclients", 100)


async def test_an_emptied_server_has_everything_since(
    private_redis: MakeRedis, client_of: MakeClient
) -> None:
    server = await private_redis()
    sinks = three_writers(server.url)
    ticks = Ticks()
    feed = Feed(ticks, sinks)
    admin = client_of(server.url)
    async with running(*sinks):
        async with feed.flowing():
            await eventually(lambda: len(ticks.made) > 400)
            await admin.flushall()
            offered_before = len(ticks.made)
            await eventually(lambda: len(ticks.made) > offered_before + 400)
        await drained(*sinks)
        for sink in sinks:
            assert sink.counters.rejected == {}
    ids = [entry_id for entry_id, _ in await entries(admin)]
    made = [record.position for record in ticks.made]
    assert 0 < len(ids) < len(made)
    assert ids == made[-len(ids) :]
    assert set(made[offered_before:]) <= set(ids)
    for instrument in feed.instruments:
        wanted = [(r.timestamp, r.price) for r in ticks.of(instrument)]
        stored = await samples(admin, instrument, "price")
        assert stored == wanted[-len(stored) :]
        since = {(r.timestamp, r.price) for r in ticks.made[offered_before:] if r.symbol == instrument}
        assert since <= set(stored)


@pytest.mark.parametrize("sink_number", [0, 1, 2])
async def test_a_connection_cut_at_any_byte_of_a_reply(
    private_redis: MakeRedis, client_of: MakeClient, sink_number: int
) -> None:
    server = await private_redis()
    password = urlsplit(server.url).password
    admin = client_of(server.url)
    cuts = 0
    for cut_after in [0, 1, 5, *range(150, 600, 23)]:
        await admin.flushall()
        ticks = Ticks()
        async with FaultProxy("127.0.0.1", server.port) as proxy:
            sinks = three_writers(f"redis://:{password}@127.0.0.1:{proxy.port}/0")
            sink = sinks[sink_number]
            proxy.cut_reply_after = cut_after
            async with running(sink):
                # Small batches, so that the cut falls into the first, a middle or the last one.
                for _ in range(6):
                    offer([ticks.tick(f"NSE:SYM{n}") for n in range(5)], sink)
                    await asyncio.sleep(0)
                if cut_after < 150:
                    await eventually(lambda p=proxy: p.cuts > 0)
                else:
                    await eventually(lambda p=proxy, s=sink: p.cuts > 0 or not s.queued)
                cuts += proxy.cuts
                proxy.cut_reply_after = None
                sink.retry_now()
                await drained(sink)
            assert sink.counters.rejected == {}
        if sink_number == 0:
            for number in range(5):
                made = ticks.of(f"NSE:SYM{number}")
                assert await samples(admin, f"NSE:SYM{number}", "price") == [
                    (r.timestamp, r.price) for r in made
                ]
        elif sink_number == 1:
            assert [entry_id for entry_id, _ in await entries(admin)] == [r.position for r in ticks.made]
        else:
            for number in range(5):
                newest = await admin.hget(f"md:last:{{NSE:SYM{number}}}", "p")
                assert float(newest or "nan") == ticks.of(f"NSE:SYM{number}")[-1].price
    assert cuts >= 10


async def test_an_answer_that_got_lost_is_not_counted_as_a_second_entry(
    private_redis: MakeRedis, client_of: MakeClient
) -> None:
    server = await private_redis()
    password = urlsplit(server.url).password
    ticks = Ticks()
    admin = client_of(server.url)
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        sink = StreamWriter(f"redis://:{password}@127.0.0.1:{proxy.port}/0", **quick())
        async with running(sink):
            await eventually(lambda: sink.state is SinkState.READY)
            proxy.replies_flow.clear()
            offer([ticks.tick() for _ in range(100)], sink)
            await eventually(lambda: admin.xlen("md:ticks:NSE"))
            proxy.reset_all()
            proxy.replies_flow.set()
            await drained(sink)
    assert sink.counters.already_written == sink.counters.written == 100
    assert await admin.xlen("md:ticks:NSE") == 100


async def test_volumes_of_one_millisecond_stay_exact_through_cuts(
    private_redis: MakeRedis, client_of: MakeClient
) -> None:
    server = await private_redis()
    admin = client_of(server.url)
    sink = three_writers(server.url)[0]
    ticks = Ticks()
    async with running(sink):
        for number in range(400):
            offer([ticks.tick(volume=1, price=float(number), timestamp=ticks.start_ms + number // 100)], sink)
            await asyncio.sleep(0)
            if number % 40 == 20:
                await eventually(lambda: sink.state is SinkState.READY)
                errors = sink.counters.errors
                await admin.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
                await eventually(lambda before=errors: sink.counters.errors > before)
        await drained(sink)
    assert await samples(admin, "NSE:RELIANCE", "volume") == [(ticks.start_ms + n, 100) for n in range(4)]
    assert await samples(admin, "NSE:RELIANCE", "price") == [
        (ticks.start_ms + n, 100.0 * n + 99) for n in range(4)
    ]
    assert (sink.counters.written, sink.counters.collapsed) == (4, 396)
    assert sink.counters.errors >= 5


async def test_a_slow_server_keeps_the_queue_short(private_redis: MakeRedis, client_of: MakeClient) -> None:
    server = await private_redis()
    password = urlsplit(server.url).password
    admin = client_of(server.url)
    async with FaultProxy("127.0.0.1", server.port) as proxy:
        proxy.latency_s = 0.1
        sinks = three_writers(f"redis://:{password}@127.0.0.1:{proxy.port}/0")
        ticks = Ticks()
        feed = Feed(ticks, sinks)
        deepest = 0
        async with running(*sinks):
            async with feed.flowing():
                await eventually(lambda: len(ticks.made) > 500)
                deadline_s = time.monotonic() + 3
                while time.monotonic() < deadline_s:
                    deepest = max(deepest, *(sink.queued for sink in sinks))
                    await asyncio.sleep(0.05)
            rate = len(ticks.made) / 3
            await drained(*sinks)
        # Natural batches carry what came in during a round trip; without them nearly all would wait.
        assert deepest < 2.5 * rate, f"{deepest} records waited at {rate:.0f} a second"
        await assert_all_stored(admin, ticks, feed.instruments)


async def test_what_does_not_fit_is_dropped_oldest_first_and_counted(
    private_redis: MakeRedis, client_of: MakeClient
) -> None:
    server = await private_redis()
    admin = client_of(server.url)
    sinks = three_writers(server.url, queue_limit=100)
    await server.kill()
    ticks = Ticks()
    async with running(*sinks):
        await eventually(lambda: all(sink.state is SinkState.UNAVAILABLE for sink in sinks))
        offer([ticks.tick(f"NSE:SYM{n}") for n in range(250)], *sinks)
        for sink in sinks:
            assert sink.counters.dropped == {"queue_full": 150}
            assert sink.queued == 100
            assert sink.counters.imbalance(sink.queued) == 0
        await server.start()
        await drained(*sinks)
    kept = ticks.made[-100:]
    assert [entry_id for entry_id, _ in await entries(admin)] == [record.position for record in kept]
    assert await samples(admin, "NSE:SYM149", "price") == []
    assert await samples(admin, "NSE:SYM150", "price") == [(kept[0].timestamp, kept[0].price)]


async def test_drain_ends_at_its_deadline_and_says_how_much_remains(private_redis: MakeRedis) -> None:
    server = await private_redis()
    sinks = three_writers(server.url)
    ticks = Ticks()
    async with running(*sinks):
        await eventually(lambda: all(sink.state is SinkState.READY for sink in sinks))
        server.pause()
        offer([ticks.tick(f"NSE:SYM{n}") for n in range(50)], *sinks)
        for sink in sinks:
            began_s = time.monotonic()
            assert await sink.drain(0.3) == 50
            assert 0.2 < time.monotonic() - began_s < 0.8
        server.resume()
        await drained(*sinks)


async def test_what_was_in_flight_when_the_writer_was_stopped_is_still_its_own(
    private_redis: MakeRedis,
    client_of: MakeClient,
) -> None:
    server = await private_redis()
    admin = client_of(server.url)
    sinks = three_writers(server.url)
    ticks = Ticks()
    async with running(*sinks):
        await eventually(lambda: all(sink.state is SinkState.READY for sink in sinks))
        server.pause()
        offer([ticks.tick(f"NSE:SYM{n}") for n in range(50)], *sinks)
        await asyncio.sleep(0)
    for sink in sinks:
        assert sink.state is SinkState.CLOSED
        assert sink.queued == 50
    server.resume()
    async with running(*sinks):
        await drained(*sinks)
    await assert_all_stored(admin, ticks, [f"NSE:SYM{n}" for n in range(50)])
