"""Empties every sink at the end, in bounded time, and says how many records each still holds.

Between the providers' end and the gateway's. A sink that keeps its rest on disk does so by itself; one
whose store is away and that has no disk is not waited for once the others are done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from services.pipeline.ending import end_tasks
from services.pipeline.sink import Sink, SinkState

HURRIED_S = 1.0
"""What is left of the time once `hurry` is set."""
_LOOK_EVERY_S = 0.1
_AWAY = (SinkState.UNAVAILABLE, SinkState.PARKED)


async def drain_all(sinks: tuple[Sink, ...], deadline_s: float, hurry: asyncio.Event) -> dict[str, int]:
    """Drain all sinks, for at most `deadline_s` seconds; return what each could not settle, by name.

    From the moment `hurry` is set there is one more second, and what has a disk goes there at once.
    """
    drains = {asyncio.create_task(sink.drain(deadline_s)): sink for sink in sinks}
    try:
        await _wait(drains, hurry)
    finally:
        await end_tasks(drains)
    if hurry.is_set():
        rest = [asyncio.create_task(sink.drain(0.0)) for sink in sinks if sink.queued]
        if rest:
            await asyncio.wait(rest, timeout=HURRIED_S)
            await end_tasks(rest)
    for task in drains:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    return {sink.name: sink.queued for sink in sinks if sink.queued}


async def until_hurried(work: Coroutine[Any, Any, None], hurry: asyncio.Event) -> None:
    """Do `work`; once `hurry` is set it has one more second, and is cancelled after that."""
    task = asyncio.ensure_future(work)
    hurried = asyncio.ensure_future(hurry.wait())
    try:
        await asyncio.wait([task, hurried], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([task], timeout=HURRIED_S)
    finally:
        hurried.cancel()
        task.cancel()
    if task.done() and not task.cancelled():
        task.result()


async def _wait(drains: dict[asyncio.Task[int], Sink], hurry: asyncio.Event) -> None:
    while not hurry.is_set():
        pending = [task for task in drains if not task.done()]
        if all(drains[task].state in _AWAY and not drains[task].has_disk for task in pending):
            return
        await asyncio.wait(pending, timeout=_LOOK_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
