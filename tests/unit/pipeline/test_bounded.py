"""Bounded clean-up, in a task that is being cancelled as well."""

from __future__ import annotations

import asyncio

import pytest

from services.pipeline.bounded import finishes_within


async def test_what_ends_in_time_is_waited_for_and_its_failure_goes_through() -> None:
    async def fails() -> None:
        raise ValueError("broken")

    assert await finishes_within(asyncio.sleep(0), 1)
    with pytest.raises(ValueError, match="broken"):
        await finishes_within(fails(), 1)


async def test_what_hangs_is_given_up_even_while_we_are_being_cancelled() -> None:
    outcome: list[bool] = []
    hung = asyncio.Event()

    async def hangs() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            hung.set()

    async def worker() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            outcome.append(await finishes_within(hangs(), 0.05))

    task = asyncio.create_task(worker())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert outcome == [False]
    await asyncio.wait_for(hung.wait(), 1)
