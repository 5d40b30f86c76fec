"""Two daemons on one Redis: one writes, the other waits, and no pause lets both of them.

Real processes against the simulators' wire, judged by what the simulators sent and Redis holds. The
lease is shorter than an operator's (`tests/support/short_lease.py`), in the same proportions.
"""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import redis.asyncio
from redis.asyncio import Redis

from tests.support.daemon import Daemon, clean_environment, run_script
from tests.support.eventually import eventually
from tests.support.oracle import Judgement, judge, read_store
from tests.support.row_report import report_row
from tests.support.servers import PrivateRedis, free_port
from tests.support.stack import NAMES, Stack

pytestmark = pytest.mark.timeout(180)

UNKNOWN_QUANTITY = re.compile(r"seq \d+: quantity None instead of \d+, volume sample None$")
CUT_SHORT = re.compile(r"^\S+: \d+ samples for \d+ entries$")
SHORT_LEASE = "tests/support/short_lease.py"


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[Redis]:
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    yield client
    await client.aclose()


def second_daemon(stack: Stack, state_dir: Path, **more: object) -> Daemon:
    """A daemon that is up when it answers, ready or not."""
    return stack.daemon(state_dir, program=SHORT_LEASE, wait_for="/healthz", **more)


def connections(stack: Stack) -> int:
    """How many connections the simulators have ever been asked for."""
    return sum(event.event == "opened" for event in stack.journal.connections)


async def reasons(daemon: Daemon) -> str:
    status, body = await daemon.get("/readyz")
    return "" if status == 200 or not body else str(body["reasons"])


async def ready(daemon: Daemon) -> bool:
    return (await daemon.get("/readyz"))[0] == 200


async def lease(daemon: Daemon) -> dict[str, object]:
    return dict((await daemon.status())["pipeline"]["lease"])


async def ticks_pass(stack: Stack, count: int = 200) -> None:
    """Wait until the simulators have sent so many more ticks."""
    until = len(stack.journal.ticks) + count
    await eventually(lambda: len(stack.journal.ticks) >= until, within_s=30)


def quiet(stack: Stack) -> None:
    stack.dhan.schedule.set_rate(0)
    stack.yahoo.schedule.set_rate(0)


async def settled(stack: Stack, daemon: Daemon) -> None:
    """Stop the market and wait until the leader has stored all that it was sent."""
    quiet(stack)
    seen = -1

    async def still() -> bool:
        nonlocal seen
        sinks = (await daemon.status())["pipeline"]["sinks"]
        before, seen = seen, sum(sink["offered"] for sink in sinks if sink["name"] == "stream")
        probes = 3
        return seen - before <= probes and all(sink["queued"] <= probes for sink in sinks)

    await eventually(still, within_s=20, every_s=1.0)


async def gaps(client: Redis, key: str) -> list[tuple[int, int]]:
    """The declared gaps of an instrument, as (from, to) in epoch ms."""
    found = []
    for _, fields in await client.xrange(f"md:ticks:{key.partition(':')[0]}"):
        if fields["type"] == "gap" and fields["k"] == key:
            found.append((int(fields["from"]), int(fields["to"])))
    return found


async def undeclared(client: Redis, stack: Stack, verdict: Judgement) -> list[str]:
    """What was lost outside every declared gap of its instrument."""
    by_label = {}
    for tick in stack.journal.ticks:
        key = NAMES[tick.symbol]
        by_label[f"{key} {tick.price_text} seq {tick.seq}"] = (key, tick.sent_ms)
        by_label[f"{key} {tick.price_text}"] = (key, tick.sent_ms)
    declared = {key: await gaps(client, key) for key in NAMES.values()}
    left = []
    for label in verdict.lost:
        key, sent_ms = by_label[label]
        # What was on the wire when the gap was opened or closed may lie a moment beside it.
        if not any(start - 250 <= sent_ms <= end + 250 for start, end in declared[key]):
            left.append(f"{label} at {sent_ms}: {declared[key]}")
    return left


async def judged(client: Redis, stack: Stack, *, killed: bool = False) -> Judgement:
    """Compare what was sent with what is stored; nothing of it may be doubled, foreign or wrong."""
    verdict = judge(stack.journal.ticks, await read_store(client, sorted(NAMES.values())), NAMES)
    # What was traded across a gap is unknown to a new leader, and said to be.
    wrong = [said for said in verdict.changed if not UNKNOWN_QUANTITY.search(said)]
    # A SIGKILL between a batch of samples and its batch of entries leaves the samples alone.
    foreign = [said for said in verdict.foreign if not (killed and CUT_SHORT.search(said))]
    assert (verdict.doubled, foreign, wrong) == ([], [], [])
    return verdict


async def test_h9_a_second_daemon_on_the_same_state_directory_ends_with_75(
    stack: Stack, tmp_path: Path
) -> None:
    async with stack.daemon(tmp_path / "state") as first:
        assert first.process is not None
        began_s = time.monotonic()
        environment = clean_environment(
            STATE_DIR=tmp_path / "state", REDIS_URL=stack.redis_url, DATABASE_URL=stack.database_url
        )
        code, _, errors = await run_script("main.py", "run", environment=environment)
        took_s = time.monotonic() - began_s
        assert code == 75, errors
        assert f"pid {first.process.pid}" in errors
        assert len(errors.strip().splitlines()) == 1, errors
        assert await ready(first)
    report_row("H9", lost=f"nothing; ended with 75 after {took_s:.1f} s", allowed="nothing")


@pytest.mark.parametrize("how", [pytest.param("stopped", marks=pytest.mark.slow), "killed"])
async def test_h10_a_second_daemon_on_the_same_redis_waits_and_takes_over(
    stack: Stack, client: Redis, tmp_path: Path, how: str
) -> None:
    async with stack.daemon(tmp_path / "one", program=SHORT_LEASE) as first:
        assert first.process is not None
        await ticks_pass(stack)
        before = connections(stack)
        assert before > 0
        async with second_daemon(stack, tmp_path / "two") as second:
            assert second.process is not None
            assert (await second.get("/healthz"))[0] == 200
            said = await reasons(second)
            assert "stands by" in said
            assert f"pid {first.process.pid}" in said
            await ticks_pass(stack)
            assert connections(stack) == before, "it left the providers alone"
            assert (await lease(second))["role"] == "standing_by"
            environment = clean_environment(STATE_DIR=tmp_path / "two")
            code, shown, _ = await run_script("main.py", "status", environment=environment)
            assert (code, f"pid {first.process.pid} on" in shown) == (0, True), shown
            assert (await lease(first))["role"] == "leading"
            assert {sink["offered"] for sink in (await second.status())["pipeline"]["sinks"]} == {0}
            began_s = time.monotonic()
            if how == "stopped":
                assert await first.stop() == 0
            else:
                first.process.kill()
                await first.process.wait()
            await eventually(lambda: ready(second), within_s=20)
            took_s = time.monotonic() - began_s
            holder = json.loads(await client.get("md:lease"))
            assert (holder["pid"], holder["epoch"]) == (second.process.pid, 2)
            await ticks_pass(stack)
            await settled(stack, second)
    verdict = await judged(client, stack, killed=how == "killed")
    assert await undeclared(client, stack, verdict) == []
    assert verdict.stored > 400
    report_row(
        "H10",
        lost=f"{how}: {len(verdict.lost)} ticks in declared gaps; another led after {took_s:.1f} s",
        allowed="the gap until the lease ends (15 s, none after a stop), declared",
    )


async def test_h10_with_the_policy_exit_it_ends_naming_the_holder(stack: Stack, tmp_path: Path) -> None:
    async with stack.daemon(tmp_path / "one") as first:
        assert first.process is not None
        await eventually(lambda: len(stack.journal.ticks) > 20, within_s=20)
        before = connections(stack)
        environment = clean_environment(
            STATE_DIR=tmp_path / "two",
            REDIS_URL=stack.redis_url,
            DATABASE_URL=stack.database_url,
            API_PORT=0,
            LEASE_POLICY="exit",
        )
        code, _, errors = await run_script("main.py", "run", environment=environment)
        assert code == 75, errors
        said = errors.strip().splitlines()[-1]
        assert f"pid {first.process.pid} on {socket.gethostname()}" in said
        assert connections(stack) == before
        code, _, errors = await run_script("main.py", "spool", "replay", environment=environment)
        assert code == 75, errors
        assert f"pid {first.process.pid} on {socket.gethostname()}" in errors


async def test_a_restart_on_the_same_state_directory_does_not_wait_for_the_old_lease(
    stack: Stack, client: Redis, tmp_path: Path
) -> None:
    async with stack.daemon(tmp_path / "state") as first:
        assert first.process is not None
        first.process.kill()
        await first.process.wait()
    left_ms = await client.pttl("md:lease")
    assert left_ms > 5_000, "the dead daemon's lease stands"
    async with stack.daemon(tmp_path / "state") as second:
        assert second.process is not None
        assert json.loads(await client.get("md:lease"))["pid"] == second.process.pid
        assert "lease_held" not in second.log()


@pytest.mark.slow
async def test_h11_a_leader_that_was_paused_writes_nothing_when_it_wakes(
    stack: Stack, client: Redis, tmp_path: Path
) -> None:
    async with (
        stack.daemon(tmp_path / "one", program=SHORT_LEASE) as first,
        second_daemon(stack, tmp_path / "two") as second,
    ):
        assert first.process is not None
        assert second.process is not None
        await ticks_pass(stack)
        first.process.send_signal(signal.SIGSTOP)
        try:
            await eventually(lambda: ready(second), within_s=30)
            await ticks_pass(stack)
            written_by_first = (await _holders(client))["1"]
        finally:
            first.process.send_signal(signal.SIGCONT)
        # It wakes with a socket full of ticks and sinks that believe to be connected.
        await eventually(lambda: _stands_by_again(first), within_s=30)
        assert f"pid {second.process.pid}" in await reasons(first)
        assert "daemon_stepped_down" in first.log()
        assert "writers_fenced_off" in second.log(), "the old connections were there and were cut"
        await ticks_pass(stack)
        assert (await _holders(client))["1"] == written_by_first == 0
        status = await first.status()
        assert {row["connections"] for row in status["providers"]} == {0}
        for sink in status["pipeline"]["sinks"]:
            assert sink["imbalance"] == 0, sink
        spooled = sum(channel["records"] for channel in status["pipeline"]["spool"])
        await settled(stack, second)
        verdict = await judged(client, stack)
        assert await undeclared(client, stack, verdict) == []
        # And back again: it leads when the other ends, its old records harm nobody.
        stack.dhan.schedule.set_rate(20)
        stack.yahoo.schedule.set_rate(5)
        assert await second.stop() == 0
        await eventually(lambda: ready(first), within_s=20)
        await ticks_pass(stack)
        await settled(stack, first)
        await eventually(lambda: _nothing_waits(first), within_s=20)
        restarts = {task["name"]: task["restarts"] for task in (await first.status())["pipeline"]["tasks"]}
        assert {"mappings", "leadership", "lease", "provider_manager"} <= restarts.keys()
        assert set(restarts.values()) == {0}, restarts
        for sink in (await first.status())["pipeline"]["sinks"]:
            assert sink["imbalance"] == 0, sink
            if sink["name"] in ("stream", "time_series"):
                assert sink["dropped"] == {"lease_lost": sink["dropped"]["lease_lost"]}
                assert sink["rejected"] == {}
    verdict = await judged(client, stack)
    assert await undeclared(client, stack, verdict) == []
    report_row(
        "H11",
        lost=f"{len(verdict.lost)} ticks in declared gaps; {spooled} of the woken leader went to its disk",
        allowed="the gap until another leads (15 s), declared; nothing is written with an old epoch",
    )


async def _holders(client: Redis) -> dict[str, int]:
    """How many writers' connections each of the first two epochs has."""
    names = [row["name"] for row in await client.client_list()]
    return {
        epoch: sum(name.count(":") == 2 and name.split(":")[2].split(".")[0] == epoch for name in names)
        for epoch in ("1", "2")
    }


async def _stands_by_again(daemon: Daemon) -> bool:
    return "stands by" in await reasons(daemon)


async def _nothing_waits(daemon: Daemon) -> bool:
    pipeline = (await daemon.status())["pipeline"]
    return all(channel["records"] == 0 for channel in pipeline["spool"])


async def test_redis_down_at_the_start_is_waited_for(
    stack: Stack, tmp_path: Path, private_redis: Callable[[], Awaitable[PrivateRedis]]
) -> None:
    server = await private_redis()
    url = server.url
    await server.kill()
    async with second_daemon(stack, tmp_path / "state", REDIS_URL=url) as daemon:
        assert (await daemon.get("/healthz"))[0] == 200
        said = await reasons(daemon)
        assert "waits for Redis" in said
        assert "cannot be reached" in said
        assert connections(stack) == 0, "without the lease no provider is contacted"
        await server.start()
        await eventually(lambda: ready(daemon), within_s=20)
        await eventually(lambda: connections(stack) > 0, within_s=20)


async def test_a_wrong_password_at_the_start_is_not(stack: Stack, tmp_path: Path) -> None:
    environment = clean_environment(
        STATE_DIR=tmp_path / "state",
        DATABASE_URL=stack.database_url,
        REDIS_URL=f"redis://:wrong@{stack.redis_url.rpartition('@')[2]}",
        API_PORT=free_port(),
    )
    code, _, errors = await run_script("main.py", "run", environment=environment)
    assert code == 78, errors
    assert "password" in errors
