"""The spool's commands as an operator meets them, on files and a Redis that are real."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from services.operations.state_dir import StateDirectory
from services.storage.client import make_client
from tests.support.daemon import clean_environment, run_script
from tests.support.eventually import eventually
from tests.support.fault_rig import WritePath, spool_files
from tests.support.servers import PrivateRedis
from tests.support.storage import offer

pytestmark = pytest.mark.timeout(120)


async def test_inspect_replay_and_drop(
    private_redis: Callable[[], Awaitable[PrivateRedis]], tmp_path: Path
) -> None:
    server = await private_redis()
    state = tmp_path / "state"
    with StateDirectory(state, demo=False):
        pass
    environment = clean_environment(STATE_DIR=state, REDIS_URL=server.url)

    async def spool(*arguments: str) -> tuple[int, str, str]:
        code, output, errors = await run_script("main.py", "spool", *arguments, environment=environment)
        assert "Traceback" not in errors
        return code, output, errors

    code, output, _ = await spool("inspect")
    assert (code, output.strip()) == (0, "nothing waits on disk")
    await server.kill()
    async with WritePath(server.url, state / "spool") as path:
        offer([path.ticks.tick(f"NSE:SYM{n % 20}") for n in range(500)], *path.spooled)
        await eventually(lambda: all(sink.counters.spooled == 500 for sink in path.spooled))
    code, output, _ = await spool("inspect", "--json")
    assert code == 0
    held = [channel for channel in json.loads(output) if channel["records"]]
    assert len(held) == len(path.spooled)
    for channel in held:
        assert (channel["records"], channel["damaged"]) == (500, 0)
        assert channel["oldest_ms"] == path.ticks.made[0].position_ms
        assert channel["newest_ms"] == path.ticks.made[-1].position_ms
    code, output, _ = await spool("inspect")
    assert "time_series" in output
    code, _, errors = await spool("drop")
    assert code == 78
    assert "1000 records" in errors
    assert "--yes" in errors
    code, _, errors = await spool("replay")
    assert code == 75
    with StateDirectory(state, demo=False) as daemon:
        daemon.lock_daemon()
        code, _, errors = await spool("replay")
        assert code == 75
        assert "running daemon replays the spool by itself" in errors
    await server.start()
    code, output, errors = await spool("replay")
    assert code == 0, errors
    assert "stream: 500 of 500 records are in Redis" in output
    client = make_client(server.url)
    for instrument in path.feed.instruments:
        offer([path.ticks.tick(instrument)], path.latest)
    stored = await client.xrange("md:ticks:NSE")
    assert [entry_id for entry_id, _ in stored] == [record.position for record in path.ticks.made[:500]]
    await client.aclose()
    assert spool_files(state / "spool") == []
    code, output, _ = await spool("drop", "--yes")
    assert (code, output.strip()) == (0, "0 records dropped")


async def test_dropped_records_are_gone_and_counted(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with StateDirectory(state, demo=False):
        pass
    async with WritePath("redis://127.0.0.1:1/0", state / "spool") as path:
        offer([path.ticks.tick() for _ in range(7)], *path.spooled)
        await eventually(lambda: all(sink.counters.spooled == 7 for sink in path.spooled))
    environment = clean_environment(STATE_DIR=state)
    code, output, errors = await run_script("main.py", "spool", "drop", "--yes", environment=environment)
    assert (code, output.strip()) == (0, "14 records dropped"), errors
    assert spool_files(state / "spool") == []
