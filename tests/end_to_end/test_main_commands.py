"""The command line as one meets it: help in groups, true examples, JSON, completion, no colours in files."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import main
from tests.support.daemon import ROOT, clean_environment, run_script
from tests.support.eventually import FACTOR, eventually
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(120)
NO_JSON = {
    "run": "does not end",
    "record": "writes frames to a folder and its figures to the log",
    "mappings export": "prints CSV, which the other commands read",
}


def every_command() -> Iterator[tuple[str, Any]]:
    root: Any = typer.main.get_command(main.app)
    for name, command in root.commands.items():
        if hasattr(command, "commands"):
            yield from ((f"{name} {sub}", found) for sub, found in command.commands.items())
        else:
            yield name, command


def options_of(command: Any) -> set[str]:
    return {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize(
    ("name", "command"), list(every_command()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_command_says_what_it_does_and_speaks_json(name: str, command: Any) -> None:
    assert command.help
    assert command.help.splitlines()[0].endswith((".", ";", ",")), command.help
    assert ("--json" in options_of(command)) != (name in NO_JSON)


def test_commands_stand_in_groups_and_their_examples_exist() -> None:
    root: Any = typer.main.get_command(main.app)
    for name, command in root.commands.items():
        assert command.rich_help_panel, f"{name} stands in no group"
        for example in re.findall(r"python main\.py (.+)", command.epilog or ""):
            words = re.sub(r" \|.*", "", example).split()
            chosen = root.commands[words[0]]
            assert {word for word in words if word.startswith("--")} <= options_of(chosen), example
        if not hasattr(command, "commands"):
            assert command.epilog.startswith("Examples:"), name


async def test_help_teaches_and_has_no_colours_in_a_file(tmp_path: Path) -> None:
    environment = clean_environment(STATE_DIR=tmp_path, COLUMNS=100)
    environment.pop("FORCE_COLOR", None)
    code, text, _ = await run_script("main.py", "--help", environment=environment)
    assert code == 0
    for words in (
        "Running",
        "Looking at a running daemon",
        "The past",
        "Mappings and providers",
        "Examples:",
    ):
        assert words in text
    assert "\x1b" not in text


async def test_status_in_a_file_has_no_colours_and_watch_survives_a_restart(
    stack: Stack, tmp_path: Path
) -> None:
    async with stack.daemon(tmp_path / "state") as daemon:
        environment = clean_environment(
            STATE_DIR=tmp_path / "state", DATABASE_URL=stack.database_url, REDIS_URL=stack.redis_url
        )
        for command in ("status", "routes"):
            code, text, _ = await run_script("main.py", command, environment=environment)
            assert code == 0
            assert "DHAN" in text
            assert "\x1b" not in text, command
        code, text, _ = await run_script(
            "main.py", "providers", "active", "NSE:TCS", "--json", environment=environment
        )
        assert (code, json.loads(text)) == (0, "DHAN")
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "main.py", "status", "--watch", "--json"),
            cwd=ROOT,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        limit_s = 30 * FACTOR
        try:
            first = json.loads(await asyncio.wait_for(process.stdout.readline(), limit_s))
            assert {row["code"] for row in first["providers"]} == {"DHAN", "YF"}
            assert await daemon.stop() == 0
            async with stack.daemon(tmp_path / "state"):

                async def later() -> bool:
                    assert process.stdout is not None
                    line = json.loads(await asyncio.wait_for(process.stdout.readline(), limit_s))
                    return bool(line["time_ms"] > first["time_ms"] + 1_500)

                await eventually(later, within_s=30)
                process.send_signal(signal.SIGINT)
                _, errors = await asyncio.wait_for(process.communicate(), limit_s)
                assert (process.returncode, errors) == (0, b"")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    async def completed(words: str) -> set[str]:
        environment = clean_environment(
            STATE_DIR=tmp_path,
            MARKETD_COMMAND="marketd",
            _MARKETD_COMPLETE="complete_bash",
            COMP_WORDS=words,
            COMP_CWORD=len(words.split(" ")) - 1,
        )
        _, text, _ = await run_script("main.py", environment=environment)
        return set(text.split())

    assert await completed("marketd sta") == {"status"}
    assert {"list", "enable", "disable", "priority", "switch"} <= await completed("marketd providers ")
    assert "--watch" in await completed("marketd status --w")
    script = (ROOT / "scripts" / "marketd").read_text(encoding="utf-8")
    assert "MARKETD_COMMAND=marketd" in script
