"""Faults of the process: signals under load, a frozen event loop, a log that nobody reads."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import redis.asyncio
import redis.exceptions

from services.storage.client import make_client
from services.storage.spool_inspection import inspect_spool
from tests.support.conservation import StoredTick, judge_all, read_everything
from tests.support.daemon import ROOT, Daemon
from tests.support.eventually import FACTOR, eventually
from tests.support.gateway import RawClient
from tests.support.row_report import report_row
from tests.support.servers import PrivateRedis
from tests.support.stack import NAMES, Stack

pytestmark = pytest.mark.timeout(180)

MakeRedis = Callable[[], Awaitable[PrivateRedis]]
RATE = 60.0


async def mute_client(daemon: Daemon) -> RawClient:
    """Return a client that asks for every tick of everything and never reads one."""
    client = await RawClient.connect(daemon.port, receive_buffer=4096)
    await client.send(
        {"action": "subscribe", "instruments": ["NSE:*", "NASDAQ:*", "CRYPTO:*"], "delivery": "all"}
    )
    return client


async def queued(daemon: Daemon) -> int:
    sinks = (await daemon.status())["pipeline"]["sinks"]
    return sum(sink["queued"] + sink["spooled"] for sink in sinks)


async def accepted_are_stored(stack: Stack, until_ms: int) -> tuple[int, int]:
    """Assert that what was received until `until_ms` is stored; return how many, and how many were not read.

    Frames are read in order, so what the daemon had accepted of a connection is a beginning of what was
    sent over it: no stored tick may follow one that is missing. All else is the conservation oracle's.
    """
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    store = await read_everything(client, NAMES.values())
    await client.aclose()
    prices = {
        key: {
            entry.price
            for entry in found.entries
            if isinstance(entry, StoredTick) and entry.received_ms <= until_ms
        }
        for key, found in store.items()
    }
    ended: set[str] = set()
    stored = unread = 0
    for tick in (tick for tick in stack.journal.ticks if tick.sent_ms <= until_ms):
        key = NAMES[tick.symbol]
        if tick.price in prices[key]:
            assert key not in ended, f"{key} {tick.price_text} is stored, one before it is not"
            stored += 1
        else:
            ended.add(key)
            unread += 1
    verdict = judge_all(stack.journal.ticks, store, NAMES)
    assert verdict.clean, "\n".join(verdict.lines())
    return stored, unread


async def market_goes_on(stack: Stack, daemon: Daemon) -> None:
    """Let some more ticks flow, stop the market, and wait until all is in Redis."""
    sent = len(stack.journal.ticks)
    stack.dhan.schedule.set_rate(20.0)
    stack.yahoo.schedule.set_rate(5.0)
    await eventually(lambda: len(stack.journal.ticks) > sent + 100, within_s=30)
    await stack.quiet()
    await eventually(lambda: _is_zero(queued(daemon)), within_s=30)


async def test_h1_a_stop_under_load_with_a_hung_redis_and_a_mute_client_spools_what_was_accepted(
    stack: Stack, tmp_path: Path, private_redis: MakeRedis
) -> None:
    server = await private_redis()
    stack.redis_url = server.url
    stack.dhan.schedule.set_rate(RATE)
    async with stack.daemon(tmp_path / "state") as daemon:
        client = await mute_client(daemon)
        await eventually(lambda: len(stack.journal.ticks) > 1_000, within_s=40)
        server.pause()
        sent = len(stack.journal.ticks)
        await eventually(lambda: len(stack.journal.ticks) > sent + 300, within_s=20)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        began_s = time.monotonic()
        assert await asyncio.wait_for(daemon.process.wait(), 20 * FACTOR) == 0, daemon.log()
        took_s = time.monotonic() - began_s
    stopped_ms = time.time_ns() // 1_000_000
    client.close()
    spooled = {channel.name: channel.records for channel in inspect_spool(tmp_path / "state" / "spool")}
    assert spooled["stream"] > 100, "the hung Redis took nothing, so it must be on disk"
    assert "unsettled={}" in daemon.log() or "unsettled={'latest_value'" in daemon.log(), daemon.log()
    assert "Traceback" not in daemon.log()
    server.resume()
    await stack.quiet()
    async with stack.daemon(tmp_path / "state") as daemon:
        await market_goes_on(stack, daemon)
        assert await daemon.stop() == 0
    stored, unread = await accepted_are_stored(stack, stopped_ms)
    assert stored > 1_000
    report_row(
        "H1",
        lost=f"0 of {stored} accepted ({spooled['stream']} by way of the disk), {unread} never read from the "
        f"socket; stopped in {took_s:.1f} s",
        allowed="accepted ticks 0; feed from stop to next start",
    )


async def test_r1_a_redis_that_forgets_what_it_confirmed_and_a_stop_before_it_is_back_lose_nothing(
    stack: Stack, tmp_path: Path, private_redis: MakeRedis
) -> None:
    server = await private_redis()
    stack.redis_url = server.url
    stack.dhan.schedule.set_rate(RATE)
    log = server.data_folder / "appendonlydir" / "appendonly.aof.1.incr.aof"
    async with stack.daemon(tmp_path / "state") as daemon:
        await eventually(lambda: len(stack.journal.ticks) > 1_000, within_s=40)
        async with make_client(server.url) as client:
            await server.logged()
            before = log.stat().st_size
            sent = len(stack.journal.ticks)
            await eventually(lambda: len(stack.journal.ticks) > sent + 300, within_s=20)
            await server.logged()
            known = await client.xlen("md:ticks:NSE")
        await server.kill()
        # A slow disk: half of what it confirmed in the last second is not in its log.
        os.truncate(log, (before + log.stat().st_size) // 2)
        assert await daemon.stop() == 0
    stopped_ms = time.time_ns() // 1_000_000
    again = {channel.name: channel.again for channel in inspect_spool(tmp_path / "state" / "spool")}
    assert min(again["stream"], again["time_series"]) > 100
    await stack.quiet()
    await server.start()
    async with make_client(server.url) as client:
        await eventually(lambda: _is_loaded(client), within_s=20)
        forgotten = known - await client.xlen("md:ticks:NSE")
    assert forgotten > 50, "it has forgotten nothing"
    async with stack.daemon(tmp_path / "state") as daemon:
        await market_goes_on(stack, daemon)
        assert await daemon.stop() == 0
        assert "confirmed_sent_again" in daemon.log()
    stored, unread = await accepted_are_stored(stack, stopped_ms)
    assert stored > 1_000
    report_row(
        "R1",
        lost=f"0 of {stored} accepted, {forgotten} of them confirmed and forgotten; {unread} never read",
        allowed="Redis side 0 acked, though marketd is stopped before it is back",
    )


async def _is_loaded(client: redis.asyncio.Redis) -> bool:
    try:
        return bool(await client.ping())
    except redis.exceptions.BusyLoadingError:
        return False


async def _is_zero(count: Awaitable[int]) -> bool:
    return await count == 0


@pytest.mark.slow
async def test_h2_a_second_signal_shortens_the_stop_and_the_rest_is_on_disk_or_counted(
    stack: Stack, tmp_path: Path, private_redis: MakeRedis
) -> None:
    server = await private_redis()
    stack.redis_url = server.url
    stack.dhan.schedule.set_rate(RATE)
    async with stack.daemon(tmp_path / "state") as daemon:
        client = await mute_client(daemon)
        await eventually(lambda: len(stack.journal.ticks) > 500, within_s=40)
        server.pause()
        sent = len(stack.journal.ticks)
        await eventually(lambda: len(stack.journal.ticks) > sent + 100, within_s=20)
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGTERM)
        await eventually(lambda: "daemon_stopping" in daemon.log(), within_s=10)
        daemon.process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(daemon.process.wait(), 15 * FACTOR) == 75, daemon.log()
    stopped_ms = time.time_ns() // 1_000_000
    client.close()
    log = daemon.log()
    assert "Traceback" not in log
    assert "unsettled=" in log, "what was left is said in the end"
    server.resume()
    await stack.quiet()
    async with stack.daemon(tmp_path / "state") as daemon:
        await market_goes_on(stack, daemon)
        assert await daemon.stop() == 0
    stored, unread = await accepted_are_stored(stack, stopped_ms)
    report_row(
        "H2",
        lost=f"0 of {stored} accepted, {unread} never read from the socket",
        allowed="the queue's remainder, counted in the last log line",
    )


class NotificationSocket:
    """What systemd would hear of the daemon."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        while True:
            try:
                self.heard.append(self._socket.recv(4096).decode())
            except BlockingIOError:
                return self.heard

    def fed(self) -> int:
        return self.listen().count("WATCHDOG=1")

    def close(self) -> None:
        self._socket.close()


async def test_h8_a_frozen_event_loop_is_dumped_not_fed_and_ended(stack: Stack, tmp_path: Path) -> None:
    systemd = NotificationSocket(tmp_path / "notify")
    daemon = stack.daemon(tmp_path / "state", NOTIFY_SOCKET=systemd.path, WATCHDOG_USEC=900_000)
    daemon.command = (sys.executable, ROOT / "tests" / "support" / "freezing_daemon.py")
    daemon._arguments = (str(tmp_path),)
    async with daemon:
        await eventually(lambda: systemd.fed() >= 3, within_s=10)
        assert any(message.startswith("EXTEND_TIMEOUT_USEC=") for message in systemd.heard)
        assert sum(message.startswith("READY=1\n") for message in systemd.heard) == 1
        assert not list((tmp_path / "state").glob("freeze-*.txt"))
        (tmp_path / "freeze").touch()
        dump = await eventually(lambda: list((tmp_path / "state").glob("freeze-*.txt")), within_s=10)
        fed = systemd.fed()
        assert daemon.process is not None
        assert await asyncio.wait_for(daemon.process.wait(), 15 * FACTOR) == 70
        assert systemd.fed() == fed, "no sign of life while the loop stood still"
    systemd.close()
    assert "block_the_loop" in dump[0].read_text(encoding="utf-8")
    assert "ends with exit code 70" in daemon.log()
    async with stack.daemon(tmp_path / "state") as again:
        assert await again.stop() == 0
    report_row("H8", lost="the freeze and the restart", allowed="freeze + restart")


async def test_h15_a_log_that_nobody_reads_blocks_nothing_and_what_is_dropped_is_counted(
    stack: Stack, tmp_path: Path
) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    filled = 0
    while True:
        try:
            filled += os.write(writer, b"x" * 4096)
        except BlockingIOError:
            break
    os.set_blocking(writer, True)
    daemon = stack.daemon(tmp_path / "state", LOG_LEVEL="DEBUG")
    # The real queue holds ten thousand lines: a short one is full after a few clients.
    code = "import sys, config.logging, main; config.logging._QUEUE_LIMIT = 20; sys.exit(main.main())"
    daemon.command = (sys.executable, "-c", code)
    daemon.errors_to = writer
    async with daemon:

        async def dropped() -> int:
            return int((await daemon.status())["pipeline"]["process"]["log_lines_dropped"])

        for _ in range(30):
            (await RawClient.connect(daemon.port)).close()
        lines = await eventually(dropped, within_s=20)
        sent = len(stack.journal.ticks)
        await eventually(lambda: len(stack.journal.ticks) > sent + 50, within_s=20)
        status = (await daemon.status())["pipeline"]
        assert status["loop_lag_ms"] < 500 * FACTOR
        assert (await daemon.get("/readyz"))[0] == 200
        assert await daemon.stop() == 0
    os.close(reader)
    os.close(writer)
    report_row("H15", lost=f"{lines} log lines, counted; the pipe held {filled} bytes", allowed="log lines")


async def idle_connections(port: int, count: int) -> list[socket.socket]:
    """Open so many connections at once that send nothing; those that are cut are left out."""
    loop = asyncio.get_running_loop()
    opened: list[socket.socket] = []
    for _ in range(count):
        connection = socket.socket()
        connection.setblocking(False)
        try:
            await loop.sock_connect(connection, ("127.0.0.1", port))
        except OSError:
            connection.close()
            continue
        opened.append(connection)
    return opened


async def test_h6_clients_cannot_take_the_descriptors_that_data_needs(
    stack: Stack, tmp_path: Path, private_redis: MakeRedis
) -> None:
    server = await private_redis()
    stack.redis_url = server.url
    daemon = stack.daemon(tmp_path / "state", API_MAX_CLIENTS=32)
    daemon.command = ("sh", "-c", 'ulimit -n 300; exec "$0" main.py "$@"', sys.executable)
    async with daemon:
        idle = await idle_connections(daemon.port, 600)
        await eventually(lambda: "connections_full" in daemon.log(), within_s=10)
        assert daemon.process is not None
        descriptors = len(list(Path(f"/proc/{daemon.process.pid}/fd").iterdir()))
        assert 40 < descriptors < 300
        # Redis goes and comes back: the writers need descriptors of their own for that.
        await server.kill()
        await eventually(lambda: "sink_unavailable" in daemon.log(), within_s=10)
        await server.start()
        await eventually(lambda: daemon.log().count("sink_recovered") >= 3, within_s=20)
        sent = len(stack.journal.ticks)
        await eventually(lambda: len(stack.journal.ticks) > sent + 100, within_s=20)
        for connection in idle:
            connection.close()
        await eventually(lambda: "connections_accepted_again" in daemon.log(), within_s=10)
        await stack.quiet()
        await eventually(lambda: _is_zero(queued(daemon)), within_s=20)
        assert (await daemon.get("/readyz"))[0] == 200
        assert await daemon.stop() == 0
    log = daemon.log()
    assert log.count("connections_full") == 1
    assert "Too many open files" not in log
    assert "Traceback" not in log
    stored, unread = await accepted_are_stored(stack, time.time_ns() // 1_000_000)
    assert unread == 0
    report_row(
        "H6", lost=f"0 of {stored} with {len(idle)} connections at 300 descriptors", allowed="0 for data path"
    )


async def test_h6_a_start_with_too_few_descriptors_is_refused_with_the_remedy(
    stack: Stack, tmp_path: Path
) -> None:
    daemon = stack.daemon(tmp_path / "state", API_MAX_CLIENTS=100)
    daemon.command = ("sh", "-c", 'ulimit -n 300; exec "$0" main.py "$@"', sys.executable)
    with pytest.raises(AssertionError, match="the daemon ended with 78"):
        await daemon.start()
    assert "API_MAX_CLIENTS=100 needs 381 open files and only 300 are allowed" in daemon.log()
    assert "LimitNOFILE=381" in daemon.log()
    assert stack.dhan.handshakes == 0
