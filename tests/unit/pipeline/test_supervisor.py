"""Tasks that die are restarted, counted and seen; stopping is bounded."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from services.pipeline.backoff import Backoff
from services.pipeline.supervisor import HOPELESS_AFTER, Supervisor, end_together
from tests.support.eventually import eventually

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


async def test_a_task_that_somebody_else_cancels_is_started_again() -> None:
    supervisor, runs = Supervisor(), []

    async def work() -> None:
        runs.append(asyncio.current_task())
        await asyncio.Event().wait()

    supervisor.keep("work", work, backoff=Backoff(**QUICK))
    await eventually(lambda: len(runs) == 1)
    runs[0].cancel()
    await eventually(lambda: len(runs) == 2)
    (census,) = supervisor.census()
    assert (census.restarts, census.alive) == (1, True)
    assert census.last_error == "cancelled without being asked to"
    assert await supervisor.stop() == []


async def test_a_keeper_that_somebody_else_cancels_is_started_again() -> None:
    supervisor, runs = Supervisor(), []

    async def work() -> None:
        runs.append(1)
        await asyncio.Event().wait()

    supervisor.keep("work", work, backoff=Backoff(**QUICK)).cancel()
    await eventually(lambda: supervisor.troubles() == ["the task work is down (its keeper was cancelled)"])
    await eventually(lambda: len(runs) >= 1 and supervisor.census()[0].alive)
    assert await supervisor.stop() == []
    count = len(runs)
    await asyncio.sleep(0.1)
    assert len(runs) == count, "after the stop nothing is started any more"


async def test_a_restart_is_trouble_for_a_while_and_then_forgotten() -> None:
    supervisor = Supervisor(recent_s=0.2)
    go = asyncio.Event()

    async def work() -> None:
        if not go.is_set():
            go.set()
            raise RuntimeError("boom")
        await asyncio.Event().wait()

    supervisor.keep("work", work, backoff=Backoff(**QUICK))
    await eventually(lambda: supervisor.troubles())
    assert "RuntimeError: boom" in supervisor.troubles()[0]
    await eventually(lambda: supervisor.troubles() == [])
    await supervisor.stop()


async def test_a_core_task_that_always_fails_is_reported_as_hopeless_and_others_are_not() -> None:
    supervisor, runs = Supervisor(), []

    async def work() -> None:
        raise RuntimeError("boom")

    async def provider() -> None:
        runs.append(1)
        raise RuntimeError("boom")

    # Traces take their time to print, and nobody reads these.
    with capture_logs():
        supervisor.keep("provider", provider, backoff=Backoff(**QUICK), core=False)
        await eventually(lambda: len(runs) > 2 * HOPELESS_AFTER)
        assert not supervisor.failed.is_set()
        supervisor.keep("work", work, backoff=Backoff(**QUICK))
        await eventually(supervisor.failed.is_set)
    assert "work failed 12 times in a row: RuntimeError: boom" in supervisor.failure
    await supervisor.stop()


@pytest.mark.parametrize("how", ["cancel", "raise", "return"])
async def test_work_that_belongs_together_ends_together(how: str) -> None:
    ended: list[str] = []

    async def one() -> None:
        if how == "raise":
            raise OSError("disk")
        if how == "cancel":
            await asyncio.Event().wait()

    async def other() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("other")

    whole = asyncio.create_task(end_together(("one", one()), ("other", other())))
    if how == "cancel":
        await eventually(lambda: [t for t in asyncio.all_tasks() if t.get_name() == "one"])
        next(task for task in asyncio.all_tasks() if task.get_name() == "one").cancel()
    with pytest.raises(OSError if how == "raise" else RuntimeError, match="disk|one ended"):
        await whole
    assert ended == ["other"]


async def test_work_that_is_cancelled_as_a_whole_ends_as_a_whole() -> None:
    ended: list[str] = []

    async def part(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)

    whole = asyncio.create_task(end_together(("one", part("one")), ("other", part("other"))))
    await eventually(lambda: len([t for t in asyncio.all_tasks() if t.get_name() in ("one", "other")]) == 2)
    await asyncio.sleep(0)
    whole.cancel()
    await asyncio.wait([whole])
    assert whole.cancelled()
    assert sorted(ended) == ["one", "other"]
