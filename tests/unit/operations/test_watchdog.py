"""A loop that stands still is seen from outside; one that was paused with its process is not blamed."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from services.operations import watchdog as module
from services.operations.watchdog import LoopWatchdog, WatchdogLimits
from tests.support.eventually import eventually

QUICK = WatchdogLimits(dump_after_s=0.1, exit_after_s=0.3, stop_within_s=0.2)


def test_a_frozen_loop_is_dumped_and_the_process_ended(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    ended: list[int] = []
    gone = threading.Event()

    def end(code: int) -> None:
        ended.append(code)
        gone.set()

    async def freeze_here() -> None:
        dog = LoopWatchdog(asyncio.get_running_loop(), tmp_path, QUICK, end=end)
        dog.start()
        gone.wait(20)
        dog.stop()
        assert dog.dumps == 1

    asyncio.run(freeze_here())
    assert ended == [70]
    (dump,) = tmp_path.glob("freeze-*.txt")
    assert "freeze_here" in dump.read_text(encoding="utf-8")
    assert "ends with exit code 70" in capfd.readouterr().err


async def test_a_loop_that_turns_is_left_alone(tmp_path: Path) -> None:
    ended: list[int] = []
    dog = LoopWatchdog(asyncio.get_running_loop(), tmp_path, WatchdogLimits(), end=ended.append)
    asked = []
    original = dog._ask
    dog._ask = lambda: (asked.append(1), original())  # type: ignore[method-assign]
    dog.start()
    await eventually(lambda: len(asked) >= 2)
    dog.stop()
    assert (dog.dumps, ended) == (0, [])


def test_a_pause_of_the_whole_process_is_not_held_against_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock jumps by a minute at every look, as after SIGSTOP: two looks are what it counts for."""
    now = iter(range(0, 100_000, 60))
    monkeypatch.setattr(module.time, "monotonic", lambda: float(next(now)))
    limits = WatchdogLimits(dump_after_s=10.0, exit_after_s=30.0)
    dog = LoopWatchdog(asyncio.new_event_loop(), tmp_path, limits, end=lambda _: None)
    looks = []

    class Over:
        def wait(self, _: float) -> bool:
            looks.append(1)
            return len(looks) > 5

        def set(self) -> None: ...

    dog._over = Over()  # type: ignore[assignment]
    dog._watch()
    assert dog.dumps == 0
    dog._loop.close()


async def test_a_stop_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    ended: list[int] = []
    dog = LoopWatchdog(asyncio.get_running_loop(), tmp_path, QUICK, end=ended.append)
    dog.start()
    dog.stop_begins()
    await eventually(lambda: ended == [70])
    dog.stop()
