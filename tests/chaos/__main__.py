"""`python -m tests.chaos --seed 1 --minutes 10`: a chaos run on a stack of its own; exit 1 when it fails."""

from __future__ import annotations

import argparse
import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.chaos_run import print_report, run_chaos


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="default: a random one, which is printed")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--targets", default="", help="comma-separated, default: all")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and data")
    arguments = parser.parse_args()
    seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    targets = frozenset(filter(None, arguments.targets.split(","))) or None
    folder = Path(tempfile.mkdtemp(prefix="marketd-chaos-"))
    began_s = time.monotonic()
    report = None
    try:
        report = asyncio.run(
            run_chaos(folder, seed=seed, seconds=arguments.minutes * 60, say=_say, targets=targets)
        )
        print_report(report, _say)
    finally:
        _say(f"{time.monotonic() - began_s:.0f} s in all")
        if arguments.keep or report is None or not report.passed:
            _say(f"logs and data: {folder}")
        else:
            import shutil

            shutil.rmtree(folder, ignore_errors=True)
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
