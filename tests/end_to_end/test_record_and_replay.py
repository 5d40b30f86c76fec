"""`record` and `replay` as an operator meets them: a real daemon, the simulators, a real Redis."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import from_url

from services.recording.files import recording_files
from simulators import faults
from tests.support.daemon import ROOT, Daemon, clean_environment, run_script
from tests.support.eventually import FACTOR, eventually
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(180)

Entries = dict[str, list[tuple[bytes, dict[bytes, bytes]]]]


class Recording:
    """`main.py record` as a process."""

    def __init__(self, daemon: Daemon, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._environment = clean_environment(STATE_DIR=daemon.state_dir)
        self._arguments = arguments
        self.process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Recording:
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "main.py", "record", str(self.folder), *self._arguments),
            cwd=ROOT,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await eventually(lambda: bool(recording_files(self.folder)), within_s=20)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def end(self, number: int = signal.SIGINT) -> tuple[int, str, str]:
        assert self.process is not None
        self.process.send_signal(number)
        output, errors = await asyncio.wait_for(self.process.communicate(), 20 * FACTOR)
        assert self.process.returncode is not None
        return self.process.returncode, output.decode(), errors.decode()


def blocks(folder: Path) -> int:
    return sum(path.read_bytes().count(b"mdR1") for path in recording_files(folder))


async def replay(redis_url: str, state: Path, *arguments: object) -> tuple[int, dict[str, Any], str]:
    code, output, errors = await run_script(
        "main.py",
        "replay",
        *map(str, arguments),
        "--json",
        environment=clean_environment(STATE_DIR=state, REDIS_URL=redis_url),
    )
    assert "Traceback" not in errors
    return code, json.loads(output) if output.startswith("{") else {}, errors


async def stored(redis_url: str, prefix: str) -> tuple[Entries, dict[bytes, bytes], dict[bytes, Any]]:
    """Return the entries, the serialised streams and the samples under a prefix, without the prefix."""
    client = from_url(redis_url)
    entries: Entries = {}
    dumps, samples = {}, {}
    async for key in client.scan_iter(match=f"{prefix}*", count=1000):
        name = key[len(prefix) :]
        if name.startswith(b"ticks:"):
            entries[name.decode()] = await client.xrange(key)
            dumps[name] = await client.dump(key)
        elif name.startswith(b"ts:"):
            samples[name] = await client.execute_command("TS.RANGE", key, "-", "+")
    await client.aclose()
    return entries, dumps, samples


async def everything_live(redis_url: str) -> dict[bytes, bytes]:
    client = from_url(redis_url)
    keys = [key async for key in client.scan_iter(match="md:*", count=1000)]
    found = {key: await client.dump(key) for key in keys if not key.startswith(b"md:replay:")}
    await client.aclose()
    return found


@pytest.fixture
async def recorded(stack: Stack, tmp_path: Path) -> tuple[Stack, Path]:
    """A recording of some seconds with a lost connection in it; the daemon has ended."""
    folder = tmp_path / "morning"
    async with stack.daemon(tmp_path / "state") as daemon, Recording(daemon, folder) as recording:
        await eventually(lambda: blocks(folder) >= 4, within_s=30)
        await stack.dhan.inject(faults.Abort())
        had = blocks(folder)
        await eventually(lambda: blocks(folder) >= had + 3, within_s=30)
        await stack.quiet()
        await asyncio.sleep(0.5)
        code, output, errors = await recording.end()
        assert code == 0, errors
        assert "frames in" in output
        assert await daemon.stop() == 0
    return stack, folder


async def test_a_replay_gives_what_was_stored_and_the_same_bytes_each_time(
    recorded: tuple[Stack, Path], tmp_path: Path
) -> None:
    stack, folder = recorded
    redis_url = stack.redis_url
    live_before = await everything_live(redis_url)
    live, _, _ = await stored(redis_url, "md:")
    assert sum(map(len, live.values())) > 100

    code, first, errors = await replay(redis_url, tmp_path / "elsewhere", folder, "--name", "one")
    assert code == 0, errors
    code, second, _ = await replay(
        redis_url, tmp_path / "elsewhere", folder, "--name", "two", "--speed", "20"
    )
    assert code == 0
    assert first["digest"] == second["digest"]
    assert first["prefix"] == "md:replay:one:"
    assert first["refused"] == {"time_series": 0, "stream": 0, "latest_value": 0}
    one, one_dumps, one_samples = await stored(redis_url, "md:replay:one:")
    two, two_dumps, two_samples = await stored(redis_url, "md:replay:two:")
    assert one == two
    assert one_dumps == two_dumps
    assert one_samples == two_samples
    assert sum(map(len, one_samples.values())) > 100
    assert sum(map(len, one.values())) == first["ticks"] + first["controls"] > 100

    # What the daemon made of the same frames is the same, but for what it knew from before.
    begun: set[bytes] = set()
    compared = 0
    for name, replayed in one.items():
        known = [fields for _, fields in live[name]]
        for _, fields in replayed:
            if fields[b"k"] in begun or fields[b"type"] != b"tick":
                assert fields in known
                compared += 1
            begun.add(fields[b"k"])
    assert compared > 100
    assert first["controls"] >= 6, "the lost connection is a gap of each of its instruments"
    assert {fields[b"type"] for _, fields in one["ticks:NSE"]} == {b"tick", b"gap"}
    assert await everything_live(redis_url) == live_before, "no live key was touched"


async def test_live_queries_find_nothing_of_a_replay_and_its_keys_expire(
    recorded: tuple[Stack, Path], tmp_path: Path
) -> None:
    stack, folder = recorded
    client = from_url(stack.redis_url)
    before = await client.execute_command("TS.QUERYINDEX", "instrument=NSE:RELIANCE")
    kinds = await client.execute_command("TS.QUERYINDEX", "kind=tick")
    code, report, errors = await replay(stack.redis_url, tmp_path / "elsewhere", folder)
    assert code == 0, errors
    assert report["prefix"] == "md:replay:morning:"
    assert await client.execute_command("TS.QUERYINDEX", "instrument=NSE:RELIANCE") == before
    assert sorted(await client.execute_command("TS.QUERYINDEX", "kind=tick")) == sorted(kinds)
    assert await client.execute_command("TS.QUERYINDEX", "replay=morning")
    async for key in client.scan_iter(match="md:replay:*", count=1000):
        assert 0 < await client.ttl(key) <= 24 * 3600
    # The second run of the same name takes the first one's place.
    code, again, _ = await replay(stack.redis_url, tmp_path / "elsewhere", folder, "--keep-hours", "0")
    assert (code, again["digest"]) == (0, report["digest"])
    assert {await client.ttl(key) async for key in client.scan_iter(match="md:replay:*")} == {-1}
    code, output, _ = await run_script(
        *("main.py", "replay", str(folder), "--drop"),
        environment=clean_environment(STATE_DIR=tmp_path / "elsewhere", REDIS_URL=stack.redis_url),
    )
    assert code == 0
    assert "keys of md:replay:morning: deleted" in output
    assert [key async for key in client.scan_iter(match="md:replay:*", count=1000)] == []
    await client.aclose()


async def test_a_recorder_that_is_killed_leaves_a_recording_and_the_daemon_unharmed(
    stack: Stack, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    async with stack.daemon(tmp_path / "state") as daemon:
        async with Recording(daemon, folder) as recording:
            assert recording.process is not None
            code, _, errors = await run_script(
                *("main.py", "record", str(tmp_path / "second"), "--minutes", "0.1"),
                environment=clean_environment(STATE_DIR=daemon.state_dir),
            )
            assert code == 75
            assert "another recording of this daemon is running" in errors
            until = stack.journal.recorded + 60
            await eventually(lambda: stack.journal.recorded > until, within_s=20)
            await asyncio.sleep(1.5)
            recording.process.kill()
            await recording.process.wait()
        [path] = recording_files(folder)
        with path.open("ab") as file:
            file.write(path.read_bytes()[:50])
        code, report, errors = await replay(stack.redis_url, tmp_path / "x", folder, "--check")
        assert code == 0, errors
        assert report["ticks"] > 30
        assert report["unread"]["torn_bytes"] == 50
        # The next one may begin at once; it ends by itself.
        code, _, errors = await run_script(
            *("main.py", "record", str(tmp_path / "third"), "--minutes", "0.03", "--provider", "yf"),
            environment=clean_environment(STATE_DIR=daemon.state_dir),
        )
        assert code == 0, errors
        code, report, _ = await replay(stack.redis_url, tmp_path / "x", tmp_path / "third", "--check")
        assert code == 0
        assert set(report["frames"]) == {"YF"}
        status, _ = await daemon.get("/readyz")
        assert status == 200


async def test_damage_is_told_and_what_is_whole_is_replayed(
    recorded: tuple[Stack, Path], tmp_path: Path
) -> None:
    stack, folder = recorded
    code, whole, _ = await replay(stack.redis_url, tmp_path / "x", folder, "--check")
    assert code == 0
    path = recording_files(folder)[0]
    data = bytearray(path.read_bytes())
    second = data.find(b"mdR1", data.find(b"mdR1", 1) + 1)
    data[second + 40] ^= 0xFF
    path.write_bytes(data)
    code, damaged, _ = await replay(stack.redis_url, tmp_path / "x", folder, "--check")
    assert code == 1
    assert damaged["unread"]["damaged_blocks"] == 1
    assert 0 < damaged["ticks"] < whole["ticks"]


async def test_no_secret_is_in_a_recording(recorded: tuple[Stack, Path], tmp_path: Path) -> None:
    import zstandard

    stack, folder = recorded
    token = stack.dhan.access_token.encode()
    for path in recording_files(folder):
        data = path.read_bytes()
        assert token not in data
        starts = [offset for offset in range(len(data)) if data.startswith(b"mdR1", offset)]
        for start in starts:
            plain = zstandard.ZstdDecompressor().decompress(data[start + 17 :], max_output_size=1 << 26)
            assert plain
            assert token not in plain
            assert stack.dhan.client_id.encode() not in plain


async def test_mistakes_are_one_sentence(stack: Stack, tmp_path: Path) -> None:
    environment = clean_environment(STATE_DIR=tmp_path / "nobody", REDIS_URL=stack.redis_url)
    for arguments, code, words in (
        (("record", str(tmp_path / "x")), 75, "no daemon is running"),
        (("replay", str(tmp_path / "x")), 78, "there is no recording in"),
        (("replay", str(tmp_path / "x"), "--name", "live keys*"), 78, "is no name for a replay"),
    ):
        found, _, errors = await run_script("main.py", *arguments, environment=environment)
        assert (found, words in errors) == (code, True), errors
        assert "Traceback" not in errors
    async with stack.daemon(tmp_path / "state") as daemon:
        environment = clean_environment(STATE_DIR=daemon.state_dir)
        code, _, errors = await run_script(
            *("main.py", "record", str(tmp_path / "y"), "--provider", "IBKR"), environment=environment
        )
        assert code == 78
        assert "no provider IBKR here; there are DHAN, YF" in errors
        folder = tmp_path / "z"
        folder.mkdir()
        (folder / "frames-000001.mdr").write_bytes(b"")
        code, _, errors = await run_script("main.py", "record", str(folder), environment=environment)
        assert code == 78
        assert "holds a recording already" in errors
