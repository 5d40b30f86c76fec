"""Background work gives way: between slices to whatever is due, and altogether while the loop is late."""

from __future__ import annotations

import asyncio
import time

from services.pipeline import giving_way
from services.pipeline.giving_way import LATE_MS, GivingWay, slices
from services.pipeline.loop_lag import LoopLag
from tests.support.eventually import eventually


async def test_slices_hold_everything_once_and_let_others_run_between_them() -> None:
    ran: list[int] = []
    seen: list[int] = []
    async for part in slices(iter(range(7)), 3):
        assert len(part) <= 3
        assert len(ran) == len(seen) // 3
        seen += part
        asyncio.get_running_loop().call_soon(ran.append, part[0])
    assert seen == list(range(7))
    assert ran == [0, 3, 6]


async def test_nothing_is_held_back_while_the_loop_is_on_time() -> None:
    way = GivingWay(lambda: LATE_MS)
    await way.until_calm()
    assert way.waits == 0


async def test_work_waits_until_the_loop_is_on_time_again() -> None:
    lags = iter([LATE_MS + 1, LATE_MS + 1, LATE_MS + 1, 0.0])
    way = GivingWay(lambda: next(lags))
    await way.until_calm()
    assert way.waits == 1
    assert next(lags, None) is None


async def test_a_machine_that_is_always_late_is_not_waited_for_for_ever() -> None:
    looks: list[float] = []

    def late() -> float:
        looks.append(LATE_MS + 1)
        return looks[-1]

    await GivingWay(late).until_calm(longest_s=2 * giving_way._LOOK_AGAIN_S)
    assert len(looks) == 3


async def test_a_blocked_loop_is_measured() -> None:
    lag = LoopLag()
    assert lag.worst_ms == 0.0
    task = asyncio.ensure_future(lag.run())
    await asyncio.sleep(0.01)
    time.sleep(0.3)
    await eventually(lambda: lag.worst_ms >= 150.0, within_s=5)
    task.cancel()
