"""Part of the set-up: runs pip quietly, shows in one line what it does, and keeps its last words."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import deque
from pathlib import Path


def say(sentence: str) -> None:
    """Print a line of progress."""
    print(f"marketd: {sentence}", flush=True)


def environment() -> dict[str, str]:
    """Return ours without what would send pip elsewhere than into the environment."""
    unwanted = ("PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_REQUIRE_VIRTUALENV", "PYTHONHOME")
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {
        **kept,
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }


def run_pip(command: list[str | Path]) -> list[str] | None:
    """Run pip, showing what it does; return None when it went well, else its last lines."""
    tail: deque[str] = deque(maxlen=25)
    progress = Progress()
    with subprocess.Popen(
        [*map(str, command)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(),
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            tail.append(line.rstrip())
            progress.show(line)
        progress.end()
    return None if process.returncode == 0 else list(tail)


class Progress:
    """What pip is doing: one line that changes on a terminal, a line per phase elsewhere."""

    def __init__(self) -> None:
        self._on_terminal = sys.stdout.isatty()
        self._phase = ""
        self._count = 0

    def show(self, line: str) -> None:
        """Take note of a line of pip's output."""
        words = line.split()
        if line.startswith("Installing collected packages:"):
            count = len(line.split(","))
            self._say("installing", f"installing {count} packages")
        elif words[:1] in (["Collecting"], ["Downloading"], ["Using"]):
            self._count += words[0] == "Collecting"
            detail = f" ({self._count}: {words[1].partition('=')[0][:40]})" if len(words) > 1 else ""
            self._say("fetching", "fetching packages", detail)
        elif words[:2] == ["WARNING:", "Retrying"]:
            self._say("retrying", "the package index does not answer, trying again")

    def end(self) -> None:
        """Clear the changing line."""
        if self._on_terminal:
            print("\r\033[K", end="", flush=True)

    def _say(self, phase: str, sentence: str, detail: str = "") -> None:
        if self._on_terminal:
            print(f"\r\033[Kmarketd: {sentence}{detail}", end="", flush=True)
        elif phase != self._phase:
            say(sentence)
        self._phase = phase
