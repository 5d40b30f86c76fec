"""Chaos and outage runs on a stack of their own; exit 1 when a promise does not hold.

python -m tests.chaos --seed 1 --minutes 10
python -m tests.chaos --outage --minutes 10 --rate 5000
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

from tests.chaos.chaos_run import print_report, run_chaos
from tests.chaos.outage_run import run_outage


def _say(text: str) -> None:
    print(text, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seed", type=int, help="of the schedule; default: a random one, which is printed")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--targets", default="", help="comma-separated, default: all")
    parser.add_argument("--outage", action="store_true", help="one long Redis outage at full rate instead")
    parser.add_argument("--rate", type=float, default=5_000.0, help="ticks per second of an outage run")
    parser.add_argument("--freeze", action="store_true", help="stop Redis (SIGSTOP) instead of killing it")
    parser.add_argument("--keep", action="store_true", help="keep the folder with logs and data")
    return parser.parse_args()


def _chaos(arguments: argparse.Namespace, folder: Path) -> bool:
    seed = random.randrange(1_000_000) if arguments.seed is None else arguments.seed
    targets = frozenset(filter(None, arguments.targets.split(","))) or None
    run = run_chaos(folder, seed=seed, seconds=arguments.minutes * 60, say=_say, targets=targets)
    report = asyncio.run(run)
    print_report(report, _say)
    return report.passed


def _outage(arguments: argparse.Namespace, folder: Path) -> bool:
    run = run_outage(
        folder, minutes=arguments.minutes, rate=arguments.rate, freeze=arguments.freeze, say=_say
    )
    wrong = asyncio.run(run)
    for text in wrong:
        _say(f"FAULT: {text}")
    _say("FAILED" if wrong else "passed: nothing lost, nothing twice, order kept, memory flat")
    return not wrong


def main() -> int:
    """Run what was asked for; what it left behind is kept when it failed."""
    # Told to end, a run must take its servers with it, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = _arguments()
    folder = Path(tempfile.mkdtemp(prefix="marketd-chaos-"))
    began_s = time.monotonic()
    passed = False
    try:
        passed = (_outage if arguments.outage else _chaos)(arguments, folder)
    finally:
        _say(f"{time.monotonic() - began_s:.0f} s in all")
        if arguments.keep or not passed:
            _say(f"logs and data: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
