"""Ends tasks for certain: cancels them again while they go on as if they had not been cancelled.

Beneath the supervisor. A cancellation can be lost on its way: in Python 3.11 `wait_for`, and time-outs like
it in libraries, drop one that arrives in the same turn as what they wait for. The task then lives on, and
nobody will cancel it a second time. Time for clean-up is given before each further cancellation; what does
not end after the last of them is named in the log and left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import structlog

_log = structlog.get_logger(__name__)

CLEANUP_S = 1.5
"""What a task may take to end after a cancellation before it is cancelled again."""
MOST_CANCELLATIONS = 5


async def end_tasks(
    tasks: Iterable[asyncio.Task[Any]],
    *,
    cleanup_s: float = CLEANUP_S,
    within_s: float | None = None,
) -> set[asyncio.Task[Any]]:
    """Cancel `tasks` until they have ended; return those that live on after all, logged.

    Each has `cleanup_s` after every one of at most `MOST_CANCELLATIONS`, all of them together `within_s`.
    Holds while the caller is cancelled as well: that goes through at the end.
    """
    loop = asyncio.get_running_loop()
    started_s = loop.time()
    pending = {task for task in tasks if not task.done()}
    interrupted = False
    for attempt in range(MOST_CANCELLATIONS):
        if attempt and pending:
            names = sorted(task.get_name() for task in pending)
            _log.warning("cancellation_swallowed", tasks=names, cancelled=attempt + 1)
        for task in pending:
            task.cancel()
        until_s = loop.time() + cleanup_s
        if within_s is not None:
            until_s = min(until_s, started_s + within_s)
        while pending and (left_s := until_s - loop.time()) > 0:
            try:
                await asyncio.wait(pending, timeout=left_s)
            except asyncio.CancelledError:
                interrupted = True
            pending = {task for task in pending if not task.done()}
        if not pending or (within_s is not None and loop.time() >= started_s + within_s):
            break
    if pending:
        _log.error("tasks_not_ended", tasks=sorted(task.get_name() for task in pending))
    if interrupted:
        raise asyncio.CancelledError
    return pending
