"""`main.py run` with quick watchdog limits and a task that blocks the event loop when told to.

Run as a script: `python freezing_daemon.py FOLDER`. It blocks once there is a file FOLDER/freeze.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import main
from services.live_data_ingestion import LiveDataIngestion
from services.operations.watchdog import WatchdogLimits


def block_the_loop() -> None:
    while True:
        time.sleep(60)


async def freeze_when_told(folder: Path) -> None:
    while not (folder / "freeze").exists():
        await asyncio.sleep(0.05)
    block_the_loop()


if __name__ == "__main__":
    folder = Path(sys.argv.pop())
    main.WATCHDOG = WatchdogLimits(dump_after_s=1.0, exit_after_s=3.0)
    start = LiveDataIngestion.start

    async def start_and_wait_to_freeze(daemon: LiveDataIngestion) -> None:
        await start(daemon)
        daemon.supervisor.keep("freezing", lambda: freeze_when_told(folder))

    LiveDataIngestion.start = start_and_wait_to_freeze  # type: ignore[method-assign]
    sys.argv[1:] = ["run"]
    sys.exit(main.main())
