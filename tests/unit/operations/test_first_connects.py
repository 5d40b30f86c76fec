"""What a restarted process waits before its first connection, over the file it leaves behind."""

from __future__ import annotations

import random
from pathlib import Path

from services.market_data.clock import ManualClock
from services.operations.first_connects import FirstConnects


class Top(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


async def starts(path: Path, clock: ManualClock) -> float:
    """A process starts, connects after its wait, and crashes; return the wait."""
    process = FirstConnects(path, clock, Top())
    wait_s = process.wait_s("DHAN")
    clock.advance(wait_s)
    await process.note("DHAN")
    assert process.wait_s("DHAN") == 0.0, "only the first connection of a process waits"
    return wait_s


async def test_the_wait_doubles_with_every_crash_up_to_a_minute(tmp_path: Path) -> None:
    clock = ManualClock()
    path = tmp_path / "first.json"
    waits = [await starts(path, clock) for _ in range(9)]
    assert waits == [0, 0, 2, 4, 8, 16, 32, 60, 60]
    clock.advance(50)
    assert await starts(path, clock) == 10, "time that has passed anyway counts"
    assert path.stat().st_mode & 0o777 == 0o600


async def test_a_clean_stop_ends_the_series(tmp_path: Path) -> None:
    clock = ManualClock()
    path = tmp_path / "first.json"
    for _ in range(4):
        await starts(path, clock)
    process = FirstConnects(path, clock, Top())
    await process.note("DHAN")
    await process.stopped()
    assert await starts(path, clock) == 0


async def test_half_a_minute_of_life_ends_the_series(tmp_path: Path) -> None:
    clock = ManualClock()
    path = tmp_path / "first.json"
    for _ in range(4):
        await starts(path, clock)
    process = FirstConnects(path, clock, Top())
    await process.note("DHAN")
    clock.advance(31)
    await process._settle(clock.now_ms() - 30_000)
    assert await starts(path, clock) == 0


async def test_providers_do_not_share_a_series_and_damage_is_no_series(tmp_path: Path) -> None:
    clock = ManualClock()
    path = tmp_path / "first.json"
    for _ in range(4):
        await starts(path, clock)
    assert FirstConnects(path, clock).wait_s("YF") == 0
    clock.step_wall(-3_600_000)
    assert FirstConnects(path, clock, Top()).wait_s("DHAN") == 8, "a clock set back does not prolong it"
    path.write_text("{")
    assert FirstConnects(path, clock).wait_s("DHAN") == 0
