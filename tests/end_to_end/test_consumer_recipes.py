"""Every code block of docs/consumers.md and of the clients' pages, run as printed against the demo."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.asyncio

from services.storage.entry import OPTIONAL_FIELDS
from tests.support.daemon import ROOT, Daemon, clean_environment
from tests.support.eventually import FACTOR, eventually
from tests.support.javascript import node_command

pytestmark = pytest.mark.timeout(180)
PAGE = (ROOT / "docs" / "consumers.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON_CLIENT = (ROOT / "clients/python/README.md").read_text(encoding="utf-8")
JAVASCRIPT_CLIENT = (ROOT / "clients/javascript/README.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


@pytest.fixture
async def demo(tmp_path: Path) -> AsyncIterator[Daemon]:
    async with Daemon(tmp_path / "demo state", "run", "--demo") as daemon:
        client = redis.asyncio.from_url(daemon.runtime["redis_url"])
        for exchange, instrument in (("NSE", "NSE:RELIANCE"), ("NASDAQ", "NASDAQ:AAPL")):
            await eventually(lambda exchange=exchange: client.exists(f"md:ticks:{exchange}"), within_s=30)
            await eventually(lambda key=f"md:last:{{{instrument}}}": client.exists(key), within_s=30)
        await client.aclose()
        yield daemon


async def run(*command: str | Path, environment: dict[str, str], within_s: float = 60) -> str:
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=ROOT,
        env=environment,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), within_s * FACTOR)
    except TimeoutError:
        process.kill()
        await process.communicate()
        raise
    assert process.returncode == 0, f"{command}: {errors.decode()}"
    return output.decode()


async def test_every_recipe_runs_as_printed(demo: Daemon, tmp_path: Path) -> None:
    environment = clean_environment(STATE_DIR=demo.state_dir) | {"PYTHONPATH": str(ROOT / "clients/python")}
    recipes = blocks(PAGE, "python")
    assert len(recipes) == 7
    running = []
    for number, recipe in enumerate(recipes):
        script = tmp_path / f"recipe{number}.py"
        script.write_text(recipe.replace(".state-demo", str(demo.state_dir)), encoding="utf-8")
        running.append(run(sys.executable, script, environment=environment))
    outputs = await asyncio.gather(*running)
    for output, proof in zip(
        outputs, ("NSE:", "NSE:RELIANCE 20", "NSE:", "one ", "ticks today", "price", "to go on"), strict=True
    ):
        assert proof in output, (proof, output)
    streams, callbacks, frame = (tmp_path / f"{name}.py" for name in ("streams", "callbacks", "frame"))
    for script, example in zip((streams, callbacks, frame), blocks(PYTHON_CLIENT, "python"), strict=True):
        script.write_text(example.replace("http://127.0.0.1:8080", demo.runtime["api_url"]), encoding="utf-8")
    unbuffered = environment | {"PYTHONUNBUFFERED": "1"}
    assert "NSE:RELIANCE" in await first_lines(sys.executable, streams, environment=unbuffered)
    assert "NSE:RELIANCE" in await first_lines(sys.executable, callbacks, environment=unbuffered)
    table = await run(sys.executable, frame, environment=environment)
    assert "close" in table, table
    assert "volume" in table, table
    shell = [line for block in blocks(PAGE, "sh") for line in block.splitlines() if line]
    assert len(shell) == 7
    for line in shell:
        command = line.replace("http://127.0.0.1:8080", demo.runtime["api_url"])
        command = command.replace("scripts/redis-cli", f"'{sys.executable}' scripts/redis_cli.py")
        assert (await run("/bin/sh", "-c", command, environment=environment)).strip(), line


async def test_the_javascript_examples_run_as_printed(demo: Daemon, tmp_path: Path) -> None:
    node = node_command()
    api_url = demo.runtime["api_url"]
    entry = ROOT / "clients/javascript/src/index.js"
    found = [*blocks(PAGE, "js"), *blocks(README, "js"), *blocks(JAVASCRIPT_CLIENT, "js")]
    assert len(found) == 3
    for number, example in enumerate(found):
        text = example.replace("http://127.0.0.1:8080", api_url)
        text = text.replace('"./clients/javascript/src/index.js"', f'"{entry}"', 1)
        text = text.replace('from "marketd-client"', f'from "{entry}"')
        script = tmp_path / f"example{number}.mjs"
        script.write_text(text, encoding="utf-8")
        output = await first_lines(*node, script, environment=dict(os.environ))
        assert "NSE:RELIANCE" in output


async def first_lines(*command: str | Path, environment: dict[str, str]) -> str:
    """Return what a program prints until it has named an instrument, then end it."""
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    said = ""
    try:
        while "NSE:RELIANCE" not in said:
            line = await asyncio.wait_for(process.stdout.readline(), 30 * FACTOR)
            if not line:
                assert process.stderr is not None
                raise AssertionError(f"{command}: {(await process.stderr.read()).decode()}")
            said += line.decode()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()
    return said


def test_the_page_names_every_field_of_an_entry() -> None:
    described = set(re.findall(r"`([a-z]+)`", PAGE.partition("## The other keys")[0]))
    assert {"type", "k", "t", "r", "p", "src", *OPTIONAL_FIELDS} <= described
