"""Faults of the disk under the spool: full, and damaged. One test for each row of the matrix.

The full disk is a real one of 1 MiB where we may mount it; elsewhere the limit on file sizes stands in.
"""

from __future__ import annotations

import asyncio
import contextlib
import resource
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from structlog.testing import capture_logs

from services.market_data.records import DataIngestionFormat, Record
from services.pipeline.sink import SinkState
from services.storage.client import make_client
from services.storage.spool import SpoolState
from services.storage.spool_inspection import inspect_channel
from services.storage.spool_log import SpoolLog
from tests.support.eventually import eventually
from tests.support.fault_rig import WritePath
from tests.support.row_report import report_row
from tests.support.servers import PrivateRedis
from tests.support.storage import entries, offer, samples

MakeRedis = Callable[[], Awaitable[PrivateRedis]]


@pytest.fixture
async def server(private_redis: MakeRedis) -> PrivateRedis:
    return await private_redis()


@pytest.fixture
async def client(server: PrivateRedis) -> AsyncIterator[Redis]:
    client = make_client(server.url)
    yield client
    await client.aclose()


async def run_tool(*arguments: str) -> int:
    try:
        tool = await asyncio.create_subprocess_exec(
            *arguments, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
        )
    except FileNotFoundError:
        return 127
    return await tool.wait()


@pytest.fixture
async def small_disk(tmp_path: Path) -> AsyncIterator[Path]:
    """A file system of 1 MiB; skips where we may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if await run_tool("mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)) != 0:
        pytest.skip("no right to mount: the limit on file sizes stands in for a full disk")
    yield folder
    assert await run_tool("umount", str(folder)) == 0


@contextlib.contextmanager
def file_sizes_limited(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def assert_lost_is_counted_and_declared(client: Redis, path: WritePath, reason: str) -> int:
    """What is not stored is counted under `reason` and inside a declared gap; return how much that is."""
    for sink in path.spooled:
        assert sink.counters.dropped.keys() <= {reason}, sink.counters
        assert sink.counters.rejected == {}
    stored = [entry_id for entry_id, _ in await entries(client)]
    assert stored == sorted(set(stored), key=lambda text: tuple(map(int, text.split("-"))))
    held = set(stored)
    missing = {"stream": [r for r in path.ticks.made if r.position not in held], "time_series": []}
    for instrument in {r.symbol for r in path.ticks.made if isinstance(r, DataIngestionFormat)}:
        found = dict(await samples(client, instrument, "price"))
        for record in path.ticks.of(instrument):
            assert found.get(record.timestamp, record.price) == record.price
            if record.timestamp not in found:
                missing["time_series"].append(record)
    for sink in path.spooled:
        lost: list[Record] = missing[sink.name]
        assert len(lost) == sink.counters.dropped.get(reason, 0), sink.name
        spans = [(gap.fields["from"], gap.fields["to"]) for gap in path.gaps(sink.name)]
        assert all(any(a <= record.position_ms <= b for a, b in spans) for record in lost), sink.name
        assert {gap.fields["reason"] for gap in path.gaps(sink.name)} <= {reason}
    return sum(map(len, missing.values()))


async def fill_and_overflow(path: WritePath, server: PrivateRedis) -> None:
    """Take Redis away and feed until the disk has taken what it can and the queue is full."""
    offer([path.ticks.tick(f"NSE:SYM{n % 20}") for n in range(500)], *path.sinks)
    await path.settled()
    path.lag.resting = False
    await server.kill()
    await eventually(lambda: all(sink.state is SinkState.UNAVAILABLE for sink in path.spooled))

    def overflowing() -> bool:
        offer([path.ticks.tick(f"NSE:SYM{n % 20}") for n in range(300)], *path.sinks)
        return all(
            path.spool.channels[sink.name].state is SpoolState.DISABLED
            and sink.counters.dropped.get("queue_full")
            for sink in path.spooled
        )

    await eventually(overflowing, 30.0)


async def recovered(path: WritePath, server: PrivateRedis) -> None:
    """The disk is well again: the spool takes records by itself, and then Redis everything."""
    await eventually(
        lambda: (
            all(c.state is SpoolState.READY for c in path.spool.channels.values())
            and all(sink.counters.spooled and not sink.queued for sink in path.spooled)
        ),
        20.0,
    )
    await server.start()
    await path.settled()
    await eventually(lambda: all(not len(sink.losses) for sink in path.spooled))
    await path.settled()


async def test_h4_the_disk_is_full(
    server: PrivateRedis, client: Redis, small_disk: Path, tmp_path: Path
) -> None:
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(800_000))
    with capture_logs() as logs:
        async with WritePath(server.url, small_disk / "spool", queue_limit=4_000) as path:
            await fill_and_overflow(path, server)
            for sink in path.spooled:
                # What fitted is on the disk in whole records, the rest waits in memory within its bound.
                assert sink.counters.spooled > 0
                assert sink.queued <= 4_000 + 2_000
                assert inspect_channel(small_disk / "spool" / sink.name).damaged == 0
            path.assert_balanced()
            ballast.unlink()
            await recovered(path, server)
            lost = await assert_lost_is_counted_and_declared(client, path, "queue_full")
    said = [log["event"] for log in logs if log.get("channel") == "stream"]
    assert said.count("spool_disabled") == said.count("spool_enabled") == 1
    assert lost > 0
    report_row(
        "H4",
        lost=f"{lost} of {2 * len(path.ticks.made)} copies, the oldest beyond the queue, counted, in a gap",
        allowed="beyond the queue, counted",
    )


async def test_h4_a_limit_on_file_sizes_cuts_a_write_short(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    async with WritePath(server.url, tmp_path / "spool", queue_limit=4_000) as path:
        with file_sizes_limited(40_000):
            await fill_and_overflow(path, server)
            sizes = [file.stat().st_size for file in (tmp_path / "spool").rglob("*.seg")]
            assert max(sizes) > 30_000, "the limit was hit"
        await recovered(path, server)
        lost = await assert_lost_is_counted_and_declared(client, path, "queue_full")
    report_row(
        "H4",
        lost=f"{lost} of {2 * len(path.ticks.made)} copies, the oldest beyond the queue, counted, in a gap",
        allowed="beyond the queue, counted",
    )


def ticks_on_disk(folder: Path, count: int) -> list[DataIngestionFormat]:
    """Write a small log, one record a frame, and return its records."""
    made = [
        DataIngestionFormat(
            "NSE:RELIANCE", 100.0 + n, n, 1_700_000_000_000 + n, "DHAN", exchange="NSE",
            position_ms=1_700_000_000_000 + n,
        )
        for n in range(count)
    ]  # fmt: skip
    log = SpoolLog(folder, limit_bytes=1 << 24)
    log.open()
    for record in made:
        assert log.append([(record, 0)]).taken == 1
    log.close()
    return made


def read_all(folder: Path) -> tuple[list[Record], int, list[tuple[int, int]], SpoolLog]:
    log = SpoolLog(folder, limit_bytes=1 << 24)
    log.open()
    found: list[Record] = []
    damaged, spans = 0, []
    while log.unread:
        out = log.read(4)
        found += [frame.record for frame in out.frames]
        damaged += out.damaged
        spans += list(out.lost.values())
    log.close()
    return found, damaged, spans, log


def test_h5_one_byte_flipped_at_every_offset(tmp_path: Path) -> None:
    made = ticks_on_disk(tmp_path / "whole", 8)
    (segment,) = (tmp_path / "whole").glob("*.seg")
    whole = segment.read_bytes()
    worst = 0
    for offset in range(len(whole)):
        folder = tmp_path / "flipped"
        folder.mkdir()
        data = bytearray(whole)
        data[offset] ^= 0x10
        (folder / segment.name).write_bytes(data)
        found, damaged, spans, log = read_all(folder)
        lost = [record for record in made if record not in found]
        assert found == [record for record in made if record in found], offset
        if log.corrupt_segments:
            # The header itself: set aside for an operator, and told so.
            assert [path.suffix for path in folder.iterdir() if path.name != "acked"] == [".corrupt"]
        else:
            # A torn tail cannot be told from a record that was never finished.
            assert damaged == len(lost) or (lost == made[-1:] and not damaged), offset
            assert all(any(a <= r.position_ms <= b for a, b in spans) for r in lost if damaged), offset
            worst = max(worst, len(lost))
        shutil.rmtree(folder)
    assert worst == 1
    report_row("H5", lost="at most the record whose byte was flipped", allowed="the damaged records")


def test_h5_a_file_without_content_and_a_file_of_somebody_else(tmp_path: Path) -> None:
    made = ticks_on_disk(tmp_path, 5)
    (tmp_path / f"{90:020d}.seg").write_bytes(b"")
    (tmp_path / f"{95:020d}.seg").write_bytes(b"PK\x03\x04 an archive that somebody left here" * 9)
    (tmp_path / "notes.txt").write_text("mine")
    with capture_logs() as logs:
        found, damaged, _, log = read_all(tmp_path)
    assert found == made
    assert damaged == 84, "the numbers up to the empty segment are counted as lost"
    assert sorted(log.foreign) == [f"{95:020d}.seg", "notes.txt"]
    assert (tmp_path / f"{90:020d}.corrupt").exists()
    assert (tmp_path / "notes.txt").read_text() == "mine"
    named = [name for entry in logs if entry["event"] == "spool_foreign_files" for name in entry["files"]]
    assert set(named) == {f"{95:020d}.seg", "notes.txt"}
    report_row("H5", lost="0 of the sound records; foreign files untouched", allowed="the damaged records")


async def test_h5_damage_is_counted_declared_and_costs_nothing_else(
    server: PrivateRedis, client: Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "spool"
    async with WritePath(server.url, folder) as path:
        await server.kill()
        await eventually(lambda: all(sink.state is SinkState.UNAVAILABLE for sink in path.spooled))
        for _ in range(10):
            offer([path.ticks.tick(f"NSE:SYM{n % 20}") for n in range(300)], *path.sinks)
            await asyncio.sleep(0)
        await eventually(lambda: all(sink.counters.spooled == 3_000 for sink in path.spooled))
        await eventually(lambda: all(not sink.queued for sink in path.spooled))
        await path.abandon()
    for channel in folder.iterdir():
        for segment in channel.glob("*.seg"):
            data = bytearray(segment.read_bytes())
            data[len(data) // 2] ^= 0xFF
            segment.write_bytes(data)
    await server.start()
    async with WritePath(server.url, folder, ticks=path.ticks) as again:
        await again.settled()
        await eventually(lambda: all(again.gaps(sink.name) for sink in again.spooled))
        await again.settled()
        lost = await assert_lost_is_counted_and_declared(client, again, "spool_damaged")
    assert 2 <= lost <= 2 * 64
    report_row("H5", lost=f"{lost} of 6000 copies for two damaged bytes", allowed="the damaged records")
