"""The sampler of the fault tests tells a loop that stands still from one that is merely kept waiting."""

from __future__ import annotations

import asyncio
import time

import pytest

from tests.support.eventually import FACTOR, eventually
from tests.support.loop_lag import LIMIT_MS, LoopLag


async def sampled(lag: LoopLag) -> asyncio.Task[None]:
    task = asyncio.create_task(lag.run())
    await eventually(lambda: lag.samples > 3)
    return task


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_a_call_that_blocks_the_loop_is_found_and_named() -> None:
    lag = LoopLag()
    task = await sampled(lag)
    time.sleep(3 * LIMIT_MS * FACTOR / 1000)
    seen = lag.samples
    await eventually(lambda: lag.samples > seen)
    await ended(task)
    with pytest.raises(AssertionError, match=r"stood still for \d+ ms(?s:.*)time\.sleep"):
        lag.check()


async def test_computation_that_does_not_give_way_is_found() -> None:
    lag = LoopLag()
    task = await sampled(lag)
    until_s = time.thread_time() + 3 * LIMIT_MS * FACTOR / 1000
    while time.thread_time() < until_s:
        pass
    seen = lag.samples
    await eventually(lambda: lag.samples > seen)
    await ended(task)
    with pytest.raises(AssertionError, match="stood still"):
        lag.check()


async def test_a_loop_that_is_never_sampled_is_no_proof() -> None:
    with pytest.raises(AssertionError, match="not measured"):
        LoopLag().check()
