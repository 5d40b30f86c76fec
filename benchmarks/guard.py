"""`python -m benchmarks.guard [--record]`: instructions a tick on the path, against those recorded.

Counted by `valgrind --tool=callgrind`, which gives the same number on a busy machine as on a quiet one.
What is counted is `benchmarks.path`: decode, normalise, route, sequence, all sinks, the bytes for Redis and
its replies. It is counted in both its ways, compiled (where that is built) and interpreted, and each is
compared with its own record. One that takes over 10 % more instructions than recorded fails; one that takes
over 10 % less asks to be recorded anew. Counts depend on the Python and the libraries: they are kept by
Python version, and compared on the machine and in the environment that recorded them.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from benchmarks.machine import ROOT
from services import compiled

RECORDED = Path(__file__).resolve().parent / "guard.json"
TOLERANCE = 0.10
INSTRUMENTS = 200
TICKS = 3_200
MODES = ("quote", "full")
WAYS = {"compiled": "1", "interpreted": "0"}
"""How the path may run, and what `MARKETD_COMPILED` is then."""
EXIT_SLOWER, EXIT_CANNOT = 1, 78

console = Console(highlight=False, soft_wrap=True)


async def count(way: str, mode: str, ticks: int = TICKS, keep: Path | None = None) -> float:
    """Return the instructions per tick of one way and mode; `keep` is where callgrind's file is left."""
    with tempfile.TemporaryDirectory(prefix="marketd-guard-") as folder:
        file = keep or Path(folder) / "callgrind.out"
        process = await asyncio.create_subprocess_exec(
            "valgrind",
            "--tool=callgrind",
            "--collect-atstart=no",
            "--instr-atstart=no",
            "--toggle-collect=qsort_r",
            f"--callgrind-out-file={file}",
            *(sys.executable, "-m", "benchmarks.counted_path", mode, str(INSTRUMENTS), str(ticks)),
            cwd=ROOT,
            env={
                "PATH": os.environ.get("PATH", ""),
                "HOME": folder,
                "PYTHONHASHSEED": "0",
                "PYTHONMALLOC": "pymalloc",
                "OPENBLAS_NUM_THREADS": "1",
                "COUNTED": "from here",
                "MARKETD_COMPILED": WAYS[way],
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await process.communicate()
        if process.returncode != 0:
            raise RuntimeError(f"the counted path failed:\n{printed.decode('utf-8', 'replace')[-3000:]}")
        total = _total(file)
        if not total:
            raise RuntimeError("callgrind counted nothing: this C library has no qsort_r that it can see")
        return total / ticks


def _total(file: Path) -> int:
    for line in reversed(file.read_text(encoding="utf-8", errors="replace").splitlines()):
        if found := re.match(r"(?:totals|summary): (\d+)", line):
            return int(found.group(1))
    raise RuntimeError("callgrind wrote no total")


def main(
    record: Annotated[
        bool, typer.Option("--record", help="Keep what is counted as the new measure.")
    ] = False,
    way: Annotated[list[str] | None, typer.Option(help="compiled, interpreted; both without.")] = None,
    mode: Annotated[list[str] | None, typer.Option(help="quote, full; both without.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Leave callgrind's file here (one way and mode).")] = None,
) -> None:
    """Count instructions per tick and compare."""
    if shutil.which("valgrind") is None:
        console.print("valgrind is not installed, so nothing was compared: install it (apt install valgrind)")
        raise typer.Exit(EXIT_CANNOT)
    version = ".".join(platform.python_version_tuple()[:2])
    recorded = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
    slower = False
    for each in _ways(way):
        known: dict[str, int] = recorded.setdefault(version, {}).setdefault(each, {})
        for one in mode or MODES:
            counted = asyncio.run(count(each, one, keep=keep))
            verdict, worse = judge(counted, known.get(one), f"Python {version}, {each}")
            slower = slower or worse
            console.print(f"{each:<11} {one:<6} {counted:,.0f} instructions a tick; {verdict}")
            known[one] = round(counted)
    if record:
        RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        console.print(f"recorded in {RECORDED.relative_to(ROOT)}")
    elif slower:
        raise typer.Exit(EXIT_SLOWER)


def judge(counted: float, before: int | None, what: str) -> tuple[str, bool]:
    """Return what to say of a count beside the recorded one, and whether it is worse than allowed."""
    if before is None:
        return f"nothing recorded for {what}: run with --record", False
    change = counted / before - 1
    verdict = f"recorded {before:,}, {change:+.1%}"
    if change > TOLERANCE:
        return f"{verdict}: slower by more than {TOLERANCE:.0%}", True
    if change < -TOLERANCE:
        return f"{verdict}: record it (--record), so that it stays so", False
    return verdict, False


def _ways(asked: list[str] | None) -> list[str]:
    if unknown := set(asked or ()) - set(WAYS):
        raise typer.BadParameter(f"--way {unknown.pop()}: there is {', '.join(WAYS)}")
    there = compiled.look()
    if there.used:
        return asked or list(WAYS)
    if "compiled" in (asked or ()):
        console.print(f"the compiled path was not counted: {there.reason} ({compiled.REMEDY})")
        raise typer.Exit(EXIT_CANNOT)
    if not asked:
        console.print(f"only the interpreted path is counted, the compiled one is not there: {there.reason}")
    return ["interpreted"]


if __name__ == "__main__":
    typer.run(main)
