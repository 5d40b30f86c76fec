"""The path of a tick, compiled and interpreted, over the same bad days: both do the same to the byte.

Two processes run the daemon's own stages between fakes (`benchmarks.path`) over the same random market
(`tests.support.whole_path`). PATH_SEEDS=100 plays as many days instead of two of each kind.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path

import pytest

from services.compiled import BUILD

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(1, int(os.environ.get("PATH_SEEDS", "2")) + 1)
HAPPENINGS = {
    *("packet", "again", "older", "several", "other", "damaged", "foreign", "odd times", "price jumps"),
    *("volume goes back", "refusals", "connections lost"),
    *("time: little", "time: second", "time: minute", "time: edge", "time: step"),
}


def play(way: str, mode: str, seed: int, file: Path) -> subprocess.Popen[bytes]:
    environment = {"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1"}
    with file.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.support.whole_path", mode, str(seed)],
            cwd=ROOT,
            env={**environment, "MARKETD_COMPILED": way},
            stdout=out,
            stderr=subprocess.PIPE,
        )


def transcript(process: subprocess.Popen[bytes], file: Path) -> list[str]:
    _, complaints = process.communicate(timeout=100)
    assert process.returncode == 0, complaints.decode()[-3000:]
    return file.read_text(encoding="utf-8").splitlines()


def first_difference(compiled: list[str], interpreted: list[str]) -> str:
    """Return where two transcripts part, with what went before; empty when they are equal."""
    for number, (one, other) in enumerate(zip_longest(compiled, interpreted, fillvalue="(the end)")):
        if one != other:
            at = next((at for at, (a, b) in enumerate(zip(one, other)) if a != b), 0)  # noqa: B905
            cut = slice(max(0, at - 150), at + 150)
            before = "\n".join(f"  {line[:200]}" for line in interpreted[max(0, number - 5) : number])
            return (
                f"line {number + 1} ({other[:40]} ...) differs at character {at + 1}, after\n{before}\n"
                f"compiled:    {one[cut]}\ninterpreted: {other[cut]}"
            )
    return ""


@pytest.mark.timeout(120)
@pytest.mark.skipif(not BUILD.used, reason=f"nothing compiled to compare with: {BUILD.reason}")
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("mode", ["quote", "full"])
def test_a_bad_day_goes_the_same_way_compiled_and_interpreted(mode: str, seed: int, tmp_path: Path) -> None:
    files = [tmp_path / "compiled", tmp_path / "interpreted"]
    running = [play(way, mode, seed, file) for way, file in zip("10", files, strict=True)]
    compiled, interpreted = map(transcript, running, files)
    assert (compiled.pop(0), interpreted.pop(0)) == ("path compiled", "path interpreted")
    if found := first_difference(compiled, interpreted):
        pytest.fail(f"seed {seed}, {mode}: {found}", pytrace=False)
    # It was a bad day, and most ticks came through it.
    (happened,) = [line for line in interpreted if line.startswith("happened ")]
    assert json.loads(happened.removeprefix("happened ")).keys() == HAPPENINGS
    last = [line for line in interpreted if line.startswith("normaliser ")][-1]
    accepted = re.search(r"accepted=(\d+)", last)
    assert accepted is not None
    assert int(accepted[1]) > 5_000
    assert all(f"'{refusal}'" in last for refusal in ("duplicate", "stale", "not_finite", "late", "suspect"))
    assert sum(line.startswith("written ") for line in interpreted) > 500


def test_the_first_difference_is_found_and_shown() -> None:
    lines = [f"written {number} bytes" for number in range(20)]
    changed = [*lines[:9], "written 9 other bytes", *lines[10:]]
    shown = first_difference(changed, lines)
    assert "line 10" in shown
    assert "compiled:    written 9 other bytes" in shown
    assert "  written 8 bytes\n" in shown
    assert first_difference(lines, lines) == ""
    assert "(the end)" in first_difference(lines[:-1], lines)
