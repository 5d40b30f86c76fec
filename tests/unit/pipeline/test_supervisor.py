"""Tasks that die are restarted, counted and seen; stopping is bounded."""

from __future__ import annotations

import asyncio

from services.pipeline.backoff import Backoff
from services.pipeline.supervisor import Supervisor

QUICK = {"base_s": 0.0, "cap_s": 0.0}


async def test_a_failing_task_is_started_again_and_counted() -> None:
    supervisor, runs, third = Supervisor(), [], asyncio.Event()

    async def work() -> None:
        runs.append(1)
        if len(runs) == 3:
            third.set()
            await asyncio.Event().wait()
        raise RuntimeError("boom")

    supervisor.keep("work", work, backoff=Backoff(**QUICK))
    await asyncio.wait_for(third.wait(), 2)
    (census,) = supervisor.census()
    assert (census.restarts, census.alive, census.last_error) == (2, True, "RuntimeError: boom")
    assert await supervisor.stop() == []


async def test_a_task_that_returns_is_a_fault_and_is_started_again() -> None:
    supervisor, runs, second = Supervisor(), [], asyncio.Event()

    async def work() -> None:
        runs.append(1)
        if len(runs) == 2:
            second.set()

    supervisor.keep("work", work, backoff=Backoff(**QUICK))
    await asyncio.wait_for(second.wait(), 2)
    assert supervisor.census()[0].last_error == "ended without being asked to"
    await supervisor.stop()


async def test_stopping_names_what_is_still_pending() -> None:
    supervisor, release = Supervisor(), asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    supervisor.spawn(stubborn(), "stubborn")
    await asyncio.sleep(0)
    assert await supervisor.stop(within_s=0.05) == ["stubborn"]
    release.set()
    await asyncio.sleep(0)


async def test_a_single_failure_of_transient_work_does_not_disturb_the_rest() -> None:
    supervisor = Supervisor()

    async def fails() -> None:
        raise ValueError("once")

    task = supervisor.spawn(fails(), "fails")
    await asyncio.wait([task])
    assert supervisor.census() == []
    assert await supervisor.stop() == []
