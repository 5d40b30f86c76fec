"""Names the machine and the versions that figures were measured with."""

from __future__ import annotations

import asyncio
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from services.compiled import BUILD
from services.errors import MarketdError
from services.operations.redis_binary import find_redis

ROOT = Path(__file__).resolve().parents[1]


async def describe(*, quick: bool) -> dict[str, Any]:
    """Return the machine, its load before the run, and the versions in use."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": await _commit(),
        "quick": quick,
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "path": str(BUILD),
        "redis": await _redis(),
        "load": load,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


async def _commit() -> str:
    code, text = await output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=9")
    return text.strip() if code == 0 else "unknown"


async def _redis() -> str:
    try:
        program = await find_redis()
    except MarketdError:
        return "none found"
    _, text = await output(str(program.server), "--version", environment=program.environment())
    words = dict(word.split("=", 1) for word in text.split() if "=" in word)
    return words.get("v", "unknown")


async def output(*command: str, environment: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a program; return its exit code and what it printed, 127 and nothing where it is missing."""
    try:
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    except OSError:
        return 127, ""
    text, _ = await process.communicate()
    return process.returncode or 0, text.decode("utf-8", "replace")
