"""A task that is to end does end, though it swallows cancellations as time-outs of Python 3.11 do."""

from __future__ import annotations

import asyncio

from structlog.testing import capture_logs

from services.pipeline import ending
from services.pipeline.ending import end_tasks
from services.pipeline.supervisor import Supervisor, end_together
from tests.support.eventually import eventually


class Swallowing:
    """Works for ever, and takes the first cancellations for something else."""

    def __init__(self, swallows: int = 1) -> None:
        self.swallows = swallows
        self.cancelled = 0
        self.started = 0
        self.ended = False

    async def run(self) -> None:
        self.started += 1
        try:
            while True:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    self.cancelled += 1
                    if self.cancelled > self.swallows:
                        raise
        finally:
            self.ended = True


async def test_a_kept_task_that_swallows_a_cancellation_is_ended_nevertheless() -> None:
    supervisor, work = Supervisor(), Swallowing()
    supervisor.keep("work", work.run, cleanup_s=0.05)
    await eventually(lambda: work.started)
    with capture_logs() as logs:
        await supervisor.end("work")
    assert work.ended
    assert work.cancelled == 2
    (event,) = [entry for entry in logs if entry["event"] == "cancellation_swallowed"]
    assert (event["tasks"], event["cancelled"]) == (["work"], 2)
    # Nobody starts it again.
    await asyncio.sleep(0.1)
    assert work.started == 1
    assert await supervisor.stop() == []


async def test_its_keeper_goes_on_to_end_it_when_nobody_waits_any_more() -> None:
    supervisor, work = Supervisor(), Swallowing()
    supervisor.keep("work", work.run, cleanup_s=0.1)
    await eventually(lambda: work.started)
    await supervisor.end("work", within_s=0.01)
    assert not work.ended
    await eventually(lambda: work.ended)


async def test_a_stop_ends_kept_and_spawned_tasks_that_swallow_a_cancellation() -> None:
    supervisor, kept, spawned = Supervisor(), Swallowing(), Swallowing()
    supervisor.keep("kept", kept.run, cleanup_s=0.05)
    task = supervisor.spawn(spawned.run(), "spawned")
    await eventually(lambda: kept.started and spawned.started)
    assert await supervisor.stop() == []
    assert kept.ended
    assert spawned.ended
    assert task.cancelled()


async def test_what_belongs_together_is_ended_though_a_part_swallows_a_cancellation() -> None:
    part = Swallowing()

    async def fails() -> None:
        await eventually(lambda: part.started)
        raise OSError("disk")

    (outcome,) = await asyncio.gather(
        end_together(("part", part.run()), ("fails", fails())), return_exceptions=True
    )
    assert isinstance(outcome, OSError)
    assert part.ended


async def test_time_for_clean_up_is_left_alone() -> None:
    cleaned = asyncio.Event()

    async def tidy() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            cleaned.set()

    task = asyncio.create_task(tidy())
    await asyncio.sleep(0)
    assert await end_tasks([task]) == set()
    assert cleaned.is_set()
    assert task.cancelled()


async def test_what_never_ends_is_named_after_a_bounded_number_of_cancellations() -> None:
    work = Swallowing(swallows=ending.MOST_CANCELLATIONS)
    task = asyncio.create_task(work.run(), name="stubborn")
    await eventually(lambda: work.started)
    with capture_logs() as logs:
        assert await end_tasks([task], cleanup_s=0.01) == {task}
    assert work.cancelled == ending.MOST_CANCELLATIONS
    assert logs[-1] == {"event": "tasks_not_ended", "tasks": ["stubborn"], "log_level": "error"}
    task.cancel()
    await asyncio.wait([task])
    assert work.ended


async def test_it_goes_on_while_its_caller_is_cancelled_and_lets_that_through_at_the_end() -> None:
    work = Swallowing(swallows=2)
    task = asyncio.create_task(work.run())
    caller = asyncio.create_task(end_tasks([task], cleanup_s=0.05))
    await eventually(lambda: work.cancelled == 1)
    caller.cancel()
    await asyncio.wait([caller])
    assert caller.cancelled()
    assert work.ended
