"""Every command and snippet of README.md and MULTI_PROVIDER_SETUP.md is run as printed, or says here why not.

A new block that is in neither list fails: somebody decides what becomes of it.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

import main
from tests.support.daemon import ROOT, clean_environment
from tests.support.eventually import FACTOR, eventually
from tests.support.stack import SCRIP_MASTER, Stack

pytestmark = pytest.mark.timeout(300)
GUIDES = ("README.md", "MULTI_PROVIDER_SETUP.md")

DEMO_TEST = "tests/end_to_end/test_demo_and_readme.py"
_NOT_RUN: dict[str, str] = {
    r"make (demo|run)\b": "the daemon itself: does not end (tests/integration/test_setup.py)",
    r"make (test|check)\b": "runs this test among others",
    r"sudo |systemctl ": "needs root and systemd (tests/unit/deploy/test_deploy_files.py)",
    r"curl -N ": "does not end (tests/integration/test_gateway_event_stream.py)",
    r"python main\.py run --role": "does not end (tests/end_to_end/test_several_gateways.py)",
    r"STATE_DIR=\S+ .*main\.py run": "does not end (tests/end_to_end/test_several_gateways.py)",
    r"python data_migration/populate_instrument_mappings\.py( --dry-run| --instruments my\.csv)?$": (
        "downloads Dhan's list; run with a file instead, below and in tests/integration/test_populate.py"
    ),
    r"\.venv/bin/python main\.py doctor": "may fail (tests/end_to_end/test_operator_commands.py)",
    r"REDIS_ADMIN_PASSWORD=…": "secrets to fill in (tests/faults/test_security_rights.py)",
    r'NOTICE_COMMAND="': "a setting, not a command (tests/end_to_end/test_notices_of_the_daemon.py)",
    r"(exchange|exchanges|NFO|NSE BSE NFO BFO|MCX|NSE BSE),": "lines of a file, not commands",
}
"""What is not run: by how it begins, and why; the tests that cover it stand in brackets."""

_SNIPPETS = {
    ("README.md", "python"): DEMO_TEST,
    ("README.md", "js"): "tests/end_to_end/test_consumer_recipes.py",
    ("MULTI_PROVIDER_SETUP.md", "python"): "tests/integration/test_documented_provider.py",
}
_PICTURES = ("", "text")
"""Fences without a language are drawings."""

ALLOWED_CODES = {"python main.py mappings diff nse.csv": (0, 1)}


class Block(msgspec.Struct, frozen=True):
    """One indented line of a guide, without the comment behind it."""

    guide: str
    line: int
    command: str


def commands(guide: str) -> Iterator[Block]:
    """Give the indented lines of a guide outside of fences; a backslash joins a line with the next."""
    fenced, before = False, ""
    for number, text in enumerate((ROOT / guide).read_text(encoding="utf-8").splitlines(), 1):
        if text.startswith("```"):
            fenced = not fenced
        elif not fenced and re.match(r" {4}\S", text) and (before == "" or before.startswith("    ")):
            yield Block(guide, number, re.sub(r"\s{2,}#.*$", "", text.strip()).removesuffix("\\").strip())
        before = text


def reason_not_run(command: str) -> str | None:
    return next((reason for start, reason in _NOT_RUN.items() if re.match(start, command)), None)


def to_run(guide: str) -> list[str]:
    return [block.command for block in commands(guide) if reason_not_run(block.command) is None]


@pytest.mark.parametrize("guide", GUIDES)
def test_every_block_is_a_command_that_can_be_run_or_has_a_reason(guide: str) -> None:
    found = list(commands(guide))
    assert len(found) > 15
    for block in found:
        known = re.match(r"(\.venv/bin/)?python (main\.py|data_migration/)|scripts/redis-cli ", block.command)
        assert known or reason_not_run(block.command), f"{guide}:{block.line}: {block.command}"


def test_no_reason_is_left_over() -> None:
    every = [block.command for guide in GUIDES for block in commands(guide)]
    for start, reason in _NOT_RUN.items():
        assert any(re.match(start, command) for command in every), start
        for path in re.findall(r"tests/[\w/]+\.py", reason):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("guide", GUIDES)
def test_every_snippet_has_a_test_that_reads_it(guide: str) -> None:
    fences = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / guide).read_text(encoding="utf-8"), re.M | re.S)
    assert fences
    for language, _ in fences:
        if language in _PICTURES:
            continue
        test = ROOT / _SNIPPETS[guide, language]
        text = test.read_text(encoding="utf-8")
        assert guide in text, f"{test.name} does not read {guide}"


def test_commands_named_anywhere_in_the_guides_exist() -> None:
    """Also those within sentences, in every page of the documentation."""
    root: Any = typer.main.get_command(main.app)
    seen = 0
    for page in (*map(ROOT.joinpath, GUIDES), *sorted((ROOT / "docs").glob("*.md"))):
        for found in re.finditer(r"main\.py ([a-z]+)(?: ([a-z-]+))?", page.read_text(encoding="utf-8")):
            command = root.commands.get(found[1])
            assert command is not None, f"{page.name}: {found[0]}"
            if hasattr(command, "commands") and found[2]:
                assert found[2] in command.commands, f"{page.name}: {found[0]}"
            seen += 1
    assert seen > 40


@pytest.mark.parametrize("guide", GUIDES)
async def test_the_commands_of_a_guide_do_what_it_says(stack: Stack, tmp_path: Path, guide: str) -> None:
    home = checkout(tmp_path / "checkout")
    async with stack.daemon(tmp_path / "state") as daemon:

        async def flows() -> bool:
            return (await daemon.get("/api/quotes?instruments=NSE:RELIANCE"))[1].get("quotes", {}) != {}

        await eventually(flows, within_s=20)
        environment = clean_environment(
            STATE_DIR=tmp_path / "state", DATABASE_URL=stack.database_url, REDIS_URL=stack.redis_url
        )
        environment["PATH"] = f"{home / '.venv' / 'bin'}:{os.environ['PATH']}"
        ran = to_run(guide)
        assert len(ran) > 4
        for command in ran:
            code, output, errors = await run(command, home, environment)
            assert code in ALLOWED_CODES.get(command, (0,)), (command, output, errors)
            assert output or errors or ">" in command, f"{command} says nothing"
            assert "Traceback" not in errors, command
        if guide == "MULTI_PROVIDER_SETUP.md":
            assert (home / "nse.csv").read_text(encoding="utf-8").count("\n") > 3
        assert (await daemon.get("/readyz"))[0] == 200


async def test_the_population_is_run_with_files_instead_of_a_download(stack: Stack, tmp_path: Path) -> None:
    """The one thing that is not as printed: Dhan's list comes from a file."""
    home = checkout(tmp_path / "checkout")
    environment = clean_environment(STATE_DIR=tmp_path / "state", DATABASE_URL=stack.database_url)
    (home / "my.csv").write_text(
        "exchange,symbol,name,asset_class,currency\nNSE,INFY,Infosys,equity,INR\n", encoding="utf-8"
    )
    environment["PATH"] = f"{home / '.venv' / 'bin'}:{os.environ['PATH']}"
    every = [block.command for block in commands("MULTI_PROVIDER_SETUP.md")]
    lines = [command for command in every if "populate_instrument_mappings.py" in command]
    assert len(lines) >= 3
    for command in lines:
        code, output, errors = await run(f"{command} --dhan-scrip-master {SCRIP_MASTER}", home, environment)
        assert code == 0, (command, output, errors)


def checkout(folder: Path) -> Path:
    """Return a folder that looks like the checkout; what commands write there does not reach the real one."""
    folder.mkdir()
    for entry in ROOT.iterdir():
        if entry.name not in (".venv", ".git", ".env") and not entry.name.startswith(".state"):
            (folder / entry.name).symlink_to(entry)
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return folder


async def run(command: str, home: Path, environment: dict[str, str]) -> tuple[int, str, str]:
    """Run a line in a shell; return exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(
        *("bash", "-c", command),
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await asyncio.wait_for(process.communicate(), 60 * FACTOR)
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()
