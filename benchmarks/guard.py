"""`python -m benchmarks.guard [--record]`: instructions a tick on the path, against those recorded.

Counted by `valgrind --tool=callgrind`, which gives the same number on a busy machine as on a quiet one.
What is counted is `benchmarks.path`: decode, normalise, route, sequence, all sinks, the bytes for Redis and
its replies. A path that takes over 10 % more instructions than recorded fails; one that takes over 10 %
less asks to be recorded anew. Counts depend on the Python and the libraries: they are kept by Python version,
and compared on the machine and in the environment that recorded them.
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

RECORDED = Path(__file__).resolve().parent / "guard.json"
TOLERANCE = 0.10
INSTRUMENTS = 200
TICKS = 3_200
MODES = ("quote", "full")
EXIT_SLOWER, EXIT_CANNOT = 1, 78

console = Console(highlight=False, soft_wrap=True)


async def count(mode: str, ticks: int = TICKS, keep: Path | None = None) -> float:
    """Return the instructions per tick of one mode; `keep` is where callgrind's file is left."""
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
    mode: Annotated[list[str] | None, typer.Option(help="quote, full; both without.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Leave callgrind's file here (one mode).")] = None,
) -> None:
    """Count instructions per tick and compare."""
    if shutil.which("valgrind") is None:
        console.print("valgrind is not installed, so nothing was compared: install it (apt install valgrind)")
        raise typer.Exit(EXIT_CANNOT)
    version = ".".join(platform.python_version_tuple()[:2])
    recorded = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.exists() else {}
    known: dict[str, int] = recorded.setdefault(version, {})
    slower = False
    for each in mode or MODES:
        counted = asyncio.run(count(each, keep=keep))
        before = known.get(each)
        if before is None:
            verdict = f"nothing recorded for Python {version}: run with --record"
        else:
            change = counted / before - 1
            verdict = f"recorded {before:,}, {change:+.1%}"
            if change > TOLERANCE:
                slower = True
                verdict += f": slower by more than {TOLERANCE:.0%}"
            elif change < -TOLERANCE:
                verdict += ": record it (--record), so that it stays so"
        console.print(f"{each:<6} {counted:,.0f} instructions a tick; {verdict}")
        known[each] = round(counted)
    if record:
        RECORDED.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        console.print(f"recorded in {RECORDED.relative_to(ROOT)}")
    elif slower:
        raise typer.Exit(EXIT_SLOWER)


if __name__ == "__main__":
    typer.run(main)
