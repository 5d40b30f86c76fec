"""Faults of Redis, one test for each: what happens, what is lost (nothing, where not said), what is said.

Every test runs the daemon's three writers with their spool against a real Redis under a steady feed of
some thousand ticks a second, makes the fault happen, proves that it did, heals it, and compares the
store with what was fed, value by value: nothing lost, doubled, foreign or changed. The event loop may
never stand still for 100 ms, and the account of every writer must balance (see `WritePath`).
"""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.data_broadcast import DataBroadcast, Skipped
from services.errors import StorageMisconfigured, StorageUnavailable
from services.market_data.clock import SystemClock
from services.market_data.records import Record
from services.operations.redis_binary import find_redis
from services.pipeline.sink import SinkState
from services.storage.client import check_server, make_client
from tests.support.certificates import Certificates
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.fault_rig import WritePath
from tests.support.row_report import report_row
from tests.support.servers import PrivateRedis, free_port
from tests.support.storage import RETENTION_MS, Ticks, assert_all_stored, entries, offer, samples

MakeRedis = Callable[[], Awaitable[PrivateRedis]]


@pytest.fixture
async def server(private_redis: MakeRedis) -> PrivateRedis:
    return await private_redis()


@pytest.fixture
async def client(server: PrivateRedis) -> AsyncIterator[Redis]:
    client = make_client(server.url)
    yield client
    await client.aclose()


async def warmed_up(path: WritePath) -> None:
    """Wait until ticks flow, so that the fault hits a running daemon."""
    await eventually(lambda: all(sink.counters.written > 300 for sink in path.spooled), 10.0)


async def fed(path: WritePath, count: int) -> None:
    """Wait until so many more ticks were fed."""
    until = len(path.ticks.made) + count
    await eventually(lambda: len(path.ticks.made) >= until, 20.0)


async def in_state(path: WritePath, state: SinkState, within_s: float = 10.0) -> None:
    await eventually(lambda: all(sink.state is state for sink in path.spooled), within_s)


async def all_is_well(client: Redis, path: WritePath) -> None:
    """Everything is in Redis as it was fed, and one more tick still passes."""
    offer([path.ticks.tick(symbol) for symbol in path.feed.instruments], *path.sinks)
    await path.settled()
    path.assert_nothing_lost()
    await in_state(path, SinkState.READY)
    await assert_all_stored(client, path.ticks, path.feed.instruments)


async def consume(broadcast: DataBroadcast, seen: list[Record]) -> None:
    """Take every record of the exchange, as a live client does."""
    async for item in broadcast.subscribe(["NSE:*"], limit=1_000_000):
        assert not isinstance(item, Skipped)
        seen.append(item)


def report(row: str, path: WritePath, allowed: str) -> None:
    """Say what the writers that keep everything gave up, by their own account."""
    lost = {
        f"{sink.name}: {reason}": count
        for sink in path.spooled
        for reason, count in (sink.counters.dropped | sink.counters.rejected).items()
    }
    named = ", ".join(f"{count} {what}" for what, count in lost.items()) or "0"
    report_row(row, lost=f"{named} of {path.stream.counters.offered} ticks", allowed=allowed)


def via(proxy: FaultProxy, server: PrivateRedis) -> str:
    return server.url.replace(f":{server.port}/", f":{proxy.port}/")


async def test_r1_killed_and_back(server: PrivateRedis, client: Redis, tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with WritePath(server.url, tmp_path / "spool") as path:
            seen: list[Record] = []
            broadcast = DataBroadcast(SystemClock())
            path.feed.sinks = (*path.feed.sinks, broadcast)
            live = asyncio.create_task(consume(broadcast, seen))
            async with path.feed.flowing():
                await warmed_up(path)
                await server.kill()
                await in_state(path, SinkState.UNAVAILABLE)
                await path.spilled()
                await fed(path, 3_000)
                # Whoever listens in this process has it all, at once and in order.
                await eventually(lambda: len(seen) > 3_000)
                await server.start()
                await in_state(path, SinkState.READY)
                await fed(path, 500)
            live.cancel()
            await asyncio.wait([live])
            fed_live = [record.position for record in path.ticks.made[-len(seen) :]]
            await all_is_well(client, path)
    assert [record.position for record in seen] == fed_live
    said = [log["event"] for log in logs if log.get("sink") == "stream"]
    assert said.count("sink_unavailable") == said.count("sink_recovered") == 1
    report("R1", path, "series 0; stream 0 up to 20 s, then the oldest beyond the queue, counted")


async def test_r2_down_for_longer_than_the_disk_lasts(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    limit_bytes = 400_000
    with capture_logs() as logs:
        async with WritePath(server.url, tmp_path / "spool", limit_bytes=limit_bytes) as path:
            async with path.feed.flowing():
                await warmed_up(path)
                before = path.stream.counters.written
                await server.kill()
                await in_state(path, SinkState.UNAVAILABLE)
                await eventually(lambda: "spool_full" in path.stream.counters.dropped, 30.0)
                await fed(path, 3_000)
                for channel in path.spool.status():
                    assert channel.size_bytes <= limit_bytes // 2 + 500
                await server.start()
                await in_state(path, SinkState.READY)
            await path.settled()
            await eventually(lambda: path.gaps("stream") and path.gaps("time_series"))
            await path.settled()
    for sink in path.spooled:
        assert sink.counters.dropped.keys() == {"spool_full"}
        assert sink.counters.rejected == {}
    stored = await entries(client)
    stored_ids = {entry_id for entry_id, _ in stored}
    missing = [record for record in path.ticks.made if record.position not in stored_ids]
    lost = path.stream.counters.dropped["spool_full"]
    assert len(missing) == lost > 1_000
    # What is lost is the oldest of the outage, in one piece; all else is there, in order.
    gap_at = path.ticks.made.index(missing[0])
    assert gap_at >= before
    fed_ids = [record.position for record in path.ticks.made]
    assert [entry_id for entry_id, _ in stored] == fed_ids[:gap_at] + fed_ids[gap_at + lost :]
    # It is declared in the stream, to the millisecond.
    said = [fields for _, fields in stored if fields["type"] == "gap" and fields["store"] == "stream"]
    assert {fields["reason"] for fields in said} == {"spool_full"}
    declared = [(int(fields["from"]), int(fields["to"])) for fields in said]
    assert all(any(a <= record.position_ms <= b for a, b in declared) for record in missing)
    assert min(a for a, _ in declared) == missing[0].position_ms
    assert max(b for _, b in declared) == missing[-1].position_ms
    found = 0
    absent = []
    for instrument in path.feed.instruments:
        held = dict(await samples(client, instrument, "price"))
        fed_samples = {record.timestamp: record.price for record in path.ticks.of(instrument)}
        assert held.items() <= fed_samples.items()
        absent += [record for record in path.ticks.of(instrument) if record.timestamp not in held]
        found += len(held)
    assert len(absent) == path.time_series.counters.dropped["spool_full"]
    spans = [(gap.fields["from"], gap.fields["to"]) for gap in path.gaps("time_series")]
    assert all(any(a <= record.position_ms <= b for a, b in spans) for record in absent)
    levels = [
        log["percent"] for log in logs if log["event"] == "spool_filling" and log["channel"] == "stream"
    ]
    assert levels == [50, 80, 100]
    assert any(log["event"] == "spool_emptying" for log in logs)
    report_row(
        "R2",
        lost=f"{lost} of {len(fed_ids)} entries, the oldest of the outage, counted and inside a gap",
        allowed="ticks beyond the spool's limit, all counted",
    )


async def set_aside_what_was_confirmed_before(client: Redis, ticks: Ticks, seen: int) -> None:
    """Take away what went once more, the newest of the `seen` first ticks, after a look at it."""
    new = ticks.made[seen]
    again = [entry_id for entry_id, _ in await entries(client)]
    again = again[: again.index(new.position)]
    assert again == [record.position for record in ticks.made[seen - len(again) : seen]]
    await client.xtrim("md:ticks:NSE", minid=new.position, approximate=False)
    for instrument in {record.symbol for record in ticks.made}:
        for name in ("price", "volume"):
            key = f"md:ts:{{{instrument}}}:{name}"
            if await client.exists(key):
                await client.ts().delete(key, 0, new.timestamp - 1)
    del ticks.made[:seen]


@pytest.mark.parametrize("how", ["flushed", "a new empty server"])
async def test_r3_restarted_empty(server: PrivateRedis, client: Redis, tmp_path: Path, how: str) -> None:
    with capture_logs() as logs:
        async with WritePath(server.url, tmp_path / "spool") as path:
            async with path.feed.flowing():
                await warmed_up(path)
            quiet = path.ticks.tick("NSE:QUIET")
            offer([quiet], *path.sinks)
            await path.settled()
            await eventually(lambda: path.history.epoch)
            former = path.history.epoch
            assert await client.get("md:epoch") == former
            seen = len(path.ticks.made)
            if how == "flushed":
                await client.flushall()
            else:
                await server.kill()
                await in_state(path, SinkState.UNAVAILABLE)
                offer([path.ticks.tick(f"NSE:SYM{n % 20}") for n in range(2_000)], *path.sinks)
                await path.spilled()
                shutil.rmtree(server.data_folder)
                await server.start()
            async with path.feed.flowing():
                await fed(path, 2_000)
            offer([path.ticks.tick(symbol) for symbol in path.feed.instruments], *path.sinks)
            await eventually(lambda: path.epochs)
            await path.settled()
            path.assert_nothing_lost()
            # Everybody can see that it is another history, and it was noticed once.
            assert path.epochs == [path.history.epoch]
            assert await client.get("md:epoch") == path.history.epoch != former
            # The newest value of an instrument that did not move since is there again.
            assert (await client.hgetall("md:last:{NSE:QUIET}"))["p"] == str(quiet.price)
            await set_aside_what_was_confirmed_before(client, path.ticks, seen)
            await assert_all_stored(client, path.ticks, path.feed.instruments)
            made = await client.ts().info("md:ts:{NSE:SYM3}:price")
            assert (made.retention_msecs, made.duplicate_policy) == (RETENTION_MS, "last")
            assert made.labels["instrument"] == "NSE:SYM3"
    assert [log["event"] for log in logs].count("history_lost") == 1
    report_row("R3", lost="0 new ticks; what Redis held before", allowed="all history in Redis; 0 new ticks")


async def test_r4_out_of_memory(server: PrivateRedis, client: Redis, tmp_path: Path) -> None:
    with capture_logs() as logs:
        async with WritePath(server.url, tmp_path / "spool") as path:
            async with path.feed.flowing():
                await warmed_up(path)
                await client.config_set("maxmemory", "1mb")
                await in_state(path, SinkState.UNAVAILABLE)
                assert "out of memory" in path.stream.reason
                assert path.latest.state is SinkState.UNAVAILABLE
                await path.spilled()
                await fed(path, 3_000)
                assert await client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
                await client.config_set("maxmemory", "0")
                await in_state(path, SinkState.READY)
            await all_is_well(client, path)
    # Connecting works all the while: that alone is no recovery.
    said = [log["event"] for log in logs if log.get("sink") == "stream"]
    assert said.count("sink_unavailable") == said.count("sink_recovered") == 1
    report("R4", path, "0 until the spool is full")


async def test_r5_hung_and_awake_again(server: PrivateRedis, client: Redis, tmp_path: Path) -> None:
    async with WritePath(server.url, tmp_path / "spool") as path:
        async with path.feed.flowing():
            await warmed_up(path)
            server.pause()
            await in_state(path, SinkState.UNAVAILABLE)
            assert "did not answer" in path.stream.reason
            await path.spilled()
            await fed(path, 2_000)
            server.resume()
            await in_state(path, SinkState.READY)
        await all_is_well(client, path)
        # What lay in the hung server's socket was carried out too, and recognised.
        assert path.stream.counters.already_written > 0
    report("R5", path, "0; no duplicate")


async def test_r6_slow(server: PrivateRedis, client: Redis, tmp_path: Path) -> None:
    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        WritePath(via(proxy, server), tmp_path / "spool") as path,
    ):
        async with path.feed.flowing():
            await warmed_up(path)
            proxy.latency_s = 0.1
            delayed = proxy.delayed_chunks
            batches = path.time_series.counters.batches
            records = path.time_series.counters.written
            await fed(path, 10_000)
            assert proxy.delayed_chunks > delayed
            assert path.stream.state is SinkState.READY
            # The queue is younger than two seconds: the feed offers 4 000 ticks/s at most.
            await eventually(lambda: all(sink.queued < 8_000 for sink in path.spooled))
            written = path.time_series.counters.written - records
            assert written / (path.time_series.counters.batches - batches) > 40
            proxy.latency_s = 0.0
        await all_is_well(client, path)
    report("R6", path, "0 at the nominal rate")


async def test_r7_read_only_replica(server: PrivateRedis, client: Redis, tmp_path: Path) -> None:
    async with WritePath(server.url, tmp_path / "spool") as path:
        async with path.feed.flowing():
            await warmed_up(path)
            await client.replicaof("127.0.0.1", free_port())
            await in_state(path, SinkState.UNAVAILABLE)
            assert "read-only replica" in path.stream.reason
            # Publishing still works there, which is why it proves nothing.
            assert await client.publish("md:anything", "x") == 0
            assert path.latest.state is SinkState.UNAVAILABLE
            await path.spilled()
            await fed(path, 2_000)
            await client.replicaof("NO", "ONE")
            await in_state(path, SinkState.READY)
        await all_is_well(client, path)
    report("R7", path, "0 until the spool is full")


async def test_r8_loading_after_a_restart(server: PrivateRedis, client: Redis, tmp_path: Path) -> None:
    refused = 0

    async def loading(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal refused
        try:
            while await reader.read(1 << 16):
                refused += 1
                writer.write(b"-LOADING Redis is loading the dataset in memory\r\n" * 2)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async with WritePath(server.url, tmp_path / "spool") as path:
        async with path.feed.flowing():
            await warmed_up(path)
            await server.kill()
            stand_in = await asyncio.start_server(loading, "127.0.0.1", server.port)
            await eventually(lambda: refused > 3)
            await eventually(lambda: all("loading" in sink.reason for sink in path.spooled))
            await in_state(path, SinkState.UNAVAILABLE)
            with pytest.raises(StorageUnavailable):
                await check_server(make_client(server.url))
            await path.spilled()
            stand_in.close()
            await stand_in.wait_closed()
            await server.start()
            await in_state(path, SinkState.READY)
        await all_is_well(client, path)
    report("R8", path, "0")


async def test_r9_password_changed_while_running(server: PrivateRedis, client: Redis, tmp_path: Path) -> None:
    password = server.url.partition("://:")[2].partition("@")[0]
    async with WritePath(server.url, tmp_path / "spool") as path:
        async with path.feed.flowing():
            await warmed_up(path)
            await client.config_set("requirepass", "something-else")
            for row in await client.client_list():
                if row["name"].startswith("marketd:") and row["name"] != "marketd:client":
                    await client.client_kill_filter(_id=row["id"])
            await in_state(path, SinkState.PARKED)
            assert "refuses the user name or password" in path.stream.reason
            assert password not in path.stream.reason
            await path.spilled()
            stranger = make_client(server.url)
            with pytest.raises(StorageMisconfigured):
                await check_server(stranger)
            await stranger.aclose()
            await client.config_set("requirepass", password)
            for sink in path.sinks:
                sink.retry_now()
            await in_state(path, SinkState.READY)
        await all_is_well(client, path)
    report("R9", path, "0 until the spool is full")


async def test_r9_a_right_is_missing_on_one_command(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    async with WritePath(server.url, tmp_path / "spool") as path:
        async with path.feed.flowing():
            await warmed_up(path)
            await client.execute_command("ACL", "SETUSER", "default", "-ts.madd")
            await eventually(lambda: path.time_series.state is SinkState.PARKED)
            assert "ts.madd" in path.time_series.reason.lower()
            written = path.stream.counters.written
            await eventually(lambda: path.time_series.counters.spooled > 500)
            await client.execute_command("ACL", "SETUSER", "default", "+ts.madd")
            path.time_series.retry_now()
            await in_state(path, SinkState.READY)
            assert path.stream.counters.written > written
        await all_is_well(client, path)
    report("R9", path, "0 until the spool is full")


async def test_r10_some_items_of_a_batch_are_refused(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    async with WritePath(server.url, tmp_path / "spool") as path:
        blocked = "md:ts:{NSE:SYM1}:price"
        await client.execute_command("TS.CREATE", blocked, "DUPLICATE_POLICY", "BLOCK")
        await client.execute_command("TS.ADD", blocked, path.ticks.start_ms + 1, 1)
        await client.set("md:ts:{NSE:WRONG}:price", "mine")
        wrong = [path.ticks.tick("NSE:WRONG") for _ in range(3)]
        old = path.ticks.tick("NSE:SYM2", timestamp=path.ticks.start_ms - 10 * RETENTION_MS)
        path.ticks.made.clear()
        offer([path.ticks.tick(f"NSE:SYM{n % 20}") for n in range(400)], *path.sinks)
        await path.settled()
        offer([*wrong, old], path.time_series)
        async with path.feed.flowing():
            await fed(path, 1_000)
        await path.settled()
        assert path.time_series.counters.rejected == {"wrong_type": 3, "older_than_retention": 1}
        assert path.time_series.counters.repaired == 0
        offer([path.ticks.tick(symbol) for symbol in path.feed.instruments], *path.sinks)
        await path.settled()
        await assert_all_stored(client, path.ticks, path.feed.instruments)
        assert await client.get("md:ts:{NSE:WRONG}:price") == "mine"
    report("R10", path, "exactly the refused items")


async def test_r11_a_sample_from_the_future_blocks_a_series(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    year_2100_ms = 4_102_444_800_000
    poisoned = ("md:ts:{NSE:SYM4}:price", "md:ts:{NSE:SYM5}:volume")
    with capture_logs() as logs:
        async with WritePath(server.url, tmp_path / "spool") as path:
            async with path.feed.flowing():
                await warmed_up(path)
                for key in poisoned:
                    # Its answer is the proof that it was there: the writers mend it at their next tick.
                    assert await client.execute_command("TS.ADD", key, year_2100_ms, 1) == year_2100_ms
                await eventually(lambda: path.time_series.counters.repaired == 2)
                await fed(path, 500)
            await all_is_well(client, path)
            assert path.time_series.counters.repaired == 2
            # A second time within the hour it is for an operator: refused ticks are counted, not hidden.
            await client.execute_command("TS.ADD", poisoned[0], year_2100_ms, 1)
            offer([path.ticks.tick("NSE:SYM4")], path.time_series)
            await path.settled()
            assert path.time_series.counters.repaired == 2
            assert path.time_series.counters.rejected == {"older_than_retention": 1}
    assert sorted(log["series"] for log in logs if log["event"] == "series_poisoned") == sorted(poisoned)
    report("R11", path, "ticks between poison and repair, at most a batch")


@pytest.mark.parametrize("after_bytes", [1, 37, 150, 400, 1_000, 3_000, 9_000, 30_000])
async def test_r12_cut_in_the_middle_of_a_reply(
    server: PrivateRedis, client: Redis, tmp_path: Path, after_bytes: int
) -> None:
    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        WritePath(via(proxy, server), tmp_path / "spool") as path,
    ):
        async with path.feed.flowing():
            await warmed_up(path)
            proxy.cut_reply_after = after_bytes
            proxy.reset_all()
            cuts = proxy.cuts
            await eventually(lambda: proxy.cuts >= cuts + 6, 15.0)
            proxy.cut_reply_after = None
            proxy.reset_all()
            await in_state(path, SinkState.READY)
        await all_is_well(client, path)
    report("R12", path, "0")


async def test_a_half_open_connection_is_given_up_in_time(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    async with (
        FaultProxy("127.0.0.1", server.port) as proxy,
        WritePath(via(proxy, server), tmp_path / "spool") as path,
    ):
        async with path.feed.flowing():
            await warmed_up(path)
            proxy.black_hole = True
            hung_s = time.monotonic()
            await in_state(path, SinkState.UNAVAILABLE)
            assert time.monotonic() - hung_s < 4.0
            assert proxy.swallowed_bytes > 0
            await path.spilled()
            proxy.black_hole = False
            proxy.reset_all()
            await in_state(path, SinkState.READY)
        await all_is_well(client, path)


async def test_r13_no_free_connection(server: PrivateRedis, client: Redis, tmp_path: Path) -> None:
    async with WritePath(server.url, tmp_path / "spool") as path:
        async with path.feed.flowing():
            await warmed_up(path)
            names = {row["name"] for row in await client.client_list()}
            assert {"marketd:time_series", "marketd:stream", "marketd:latest_value"} <= names
            await client.config_set("maxclients", "1")
            for row in await client.client_list():
                if row["name"] in {"marketd:time_series", "marketd:stream", "marketd:latest_value"}:
                    await client.client_kill_filter(_id=row["id"])
            await in_state(path, SinkState.UNAVAILABLE)
            await eventually(lambda: all("maxclients" in sink.reason for sink in path.spooled))
            assert (await client.info("stats"))["rejected_connections"] > 0
            await path.spilled()
            await client.config_set("maxclients", "100")
            await in_state(path, SinkState.READY)
            assert len(await client.client_list()) <= 8
        await all_is_well(client, path)
    report("R13", path, "0")


def over_tls(proxy: FaultProxy, server: PrivateRedis, trusted: Path) -> str:
    url = via(proxy, server).replace("redis://", "rediss://").replace("127.0.0.1", "localhost")
    return f"{url}?ssl_ca_certs={trusted}"


@pytest.mark.parametrize(
    ("name", "expired", "said"),
    [("localhost", True, "TLS.*certificate"), ("elsewhere.example", False, "TLS.*certificate")],
)
async def test_r14_tls_is_refused_with_the_reason(
    server: PrivateRedis, tmp_path: Path, name: str, expired: bool, said: str
) -> None:
    context, trusted = Certificates(tmp_path).server_context(name, expired=expired)
    async with FaultProxy("127.0.0.1", server.port, tls=context) as proxy:
        url = over_tls(proxy, server, trusted)
        stranger = make_client(url)
        with pytest.raises(StorageMisconfigured, match="TLS"):
            await check_server(stranger)
        await stranger.aclose()
        async with WritePath(url, tmp_path / "spool") as path:
            await in_state(path, SinkState.PARKED)
            assert "TLS" in path.stream.reason
            assert "certificate" in path.stream.reason.lower()
            offer([path.ticks.tick() for _ in range(100)], *path.sinks)
            await eventually(lambda: all(sink.counters.spooled == 100 for sink in path.spooled))
    report("R14", path, "0 until the spool is full")


async def test_r14_a_certificate_expires_while_running(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    certificates = Certificates(tmp_path)
    good, trusted = certificates.server_context("localhost")
    bad, bad_file = certificates.server_context("localhost", expired=True)
    trusted.write_bytes(trusted.read_bytes() + bad_file.read_bytes())
    current = good

    def choose(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        tls.context = current

    front, _ = certificates.server_context("front.example")
    front.sni_callback = choose  # type: ignore[assignment]
    async with (
        FaultProxy("127.0.0.1", server.port, tls=front) as proxy,
        WritePath(over_tls(proxy, server, trusted), tmp_path / "spool") as path,
    ):
        async with path.feed.flowing():
            await warmed_up(path)
            current = bad
            proxy.reset_all()
            await in_state(path, SinkState.PARKED)
            assert "expired" in path.stream.reason.lower()
            await path.spilled()
            current = good
            for sink in path.sinks:
                sink.retry_now()
            await in_state(path, SinkState.READY)
        await all_is_well(client, path)
    report("R14", path, "0 until the spool is full")


@pytest.fixture
async def plain_redis(tmp_path: Path) -> AsyncIterator[str]:
    """A Redis without TimeSeries."""
    program = await find_redis()
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        str(program.server), "--port", str(port), "--save", "", "--dir", str(tmp_path),
        "--loglevel", "warning",
        env=program.environment(), stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    yield f"redis://127.0.0.1:{port}/0"
    process.terminate()
    await process.wait()


async def test_r15_no_time_series(plain_redis: str, tmp_path: Path) -> None:
    stranger = make_client(plain_redis)

    async def answer() -> Any:
        try:
            return await check_server(stranger)
        except StorageUnavailable:
            return None
        except StorageMisconfigured as refusal:
            return refusal

    refusal = await eventually(answer)
    assert isinstance(refusal, StorageMisconfigured)
    assert "no TimeSeries" in str(refusal)
    assert "redis-stack" in str(refusal)
    async with WritePath(plain_redis, tmp_path / "spool") as path:
        offer([path.ticks.tick() for _ in range(10)], *path.sinks)
        await eventually(lambda: path.time_series.state is SinkState.PARKED)
        assert "no TimeSeries" in path.time_series.reason
        await eventually(lambda: path.stream.counters.written == 10)
        await eventually(lambda: path.time_series.counters.spooled == 10)
    await stranger.aclose()
    report("R15", path, "-")
