"""The demo as a newcomer meets it, and every example of the README run against it as printed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import redis.asyncio

from tests.support.daemon import ROOT, Daemon, clean_environment, run_script
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(180)
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with Daemon(tmp_path / "demo state", "run", "--demo") as daemon:
        yield daemon


def processes_of(folder: Path) -> list[str]:
    """Return the command lines of all processes that work in or were told of `folder`, and of simulators."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                inside = (entry / "cwd").readlink()
            except OSError:
                continue
            if str(folder) in command or inside.is_relative_to(folder):
                found.append(command)
    return found


async def test_both_providers_stream_into_series_streams_quotes_and_the_dashboard(demo: Daemon) -> None:
    status = await demo.status()
    assert status["demo"] is True
    client = redis.asyncio.from_url(demo.runtime["redis_url"], decode_responses=True)

    async def streaming() -> bool:
        rows = (await demo.status())["by_code"]
        return all(
            rows[code]["state"] == "streaming" and rows[code]["instruments_live"] for code in ("DHAN", "YF")
        )

    await eventually(streaming, within_s=30)
    for exchange in ("NSE", "NASDAQ"):
        await eventually(lambda exchange=exchange: client.exists(f"md:ticks:{exchange}"), within_s=20)
        for field in ("price", "volume"):

            async def has_series(exchange: str = exchange, field: str = field) -> bool:
                rows = await client.ts().mrange("-", "+", [f"exchange={exchange}", f"field={field}"], count=1)
                return len(rows) > 10

            await eventually(has_series, within_s=20)
    await client.aclose()
    async with aiohttp.ClientSession() as session, session.get(demo.runtime["api_url"]) as page:
        assert page.status == 200
        assert "marketd" in await page.text()
    assert "DEMO DATA" in demo.log()


async def test_doctor_looks_at_the_demo_that_runs_and_leaves_it_running(demo: Daemon) -> None:
    environment = clean_environment(STATE_DIR=demo.state_dir)
    code, output, errors = await run_script("main.py", "doctor", "--json", environment=environment)
    checks = {check["name"]: check for check in json.loads(output)}
    assert code == 0, (output, errors)
    assert checks["database"]["passed"]
    assert checks["mappings"]["passed"]
    assert checks["redis"]["passed"]
    assert (await demo.status())["demo"] is True


async def test_ctrl_c_leaves_no_process_behind(demo: Daemon) -> None:
    assert processes_of(demo.state_dir), "the servers are seen while they run"
    assert await demo.stop(signal.SIGINT) == 0
    await eventually(lambda: not processes_of(demo.state_dir))
    assert "Traceback" not in demo.log()


async def test_live_settings_and_data_stay_out_of_the_demo(tmp_path: Path) -> None:
    """A database and a Redis of one's own, and real credentials, are not touched by the demo."""
    settings = {
        "DATABASE_URL": "postgresql://nobody:nothing@127.0.0.1:9/live",
        "REDIS_URL": "redis://127.0.0.1:9/0",
        "DHAN_ACCESS_TOKEN": "a-real-token-of-the-operator",
        "DHAN_FEED_URL": "ws://127.0.0.1:9",
    }
    async with Daemon(tmp_path / "demo", "run", "--demo", **settings) as daemon:
        assert daemon.runtime["demo"] is True
        assert ":9/" not in daemon.runtime["database_url"]
    assert "a-real-token" not in daemon.log()


def shell_examples() -> list[str]:
    """Return the README's commands for another terminal."""
    return re.findall(r"^    ((?:\.venv/bin/python main\.py|scripts/redis-cli) .*)$", README, re.M)


async def test_the_commands_of_the_readme_answer(demo: Daemon) -> None:
    environment = clean_environment(STATE_DIR=demo.state_dir)
    commands = shell_examples()
    assert len(commands) >= 4
    for command in commands:
        words = [sys.executable if word == ".venv/bin/python" else word for word in shlex.split(command)]
        if words[0] == "scripts/redis-cli":
            words = [sys.executable, "scripts/redis_cli.py", *words[1:]]
        process = await asyncio.create_subprocess_exec(
            *words, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0, (command, errors)
        assert output.strip(), command


async def test_the_python_examples_of_the_readme_run_as_printed(demo: Daemon, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(blocks) == 4
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks).replace(".state-demo", str(demo.state_dir)), encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        script,
        env=os.environ | {"PYTHONPATH": str(ROOT / "clients/python")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == 0, errors.decode()
    text = output.decode()
    assert "NSE:" in text
    assert "raw_tick" in text
    assert "Tick(instrument=" in text
