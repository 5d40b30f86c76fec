"""A daemon's life as a process: the signals that ask for its end, and an end that takes bounded time.

Around `start` and `stop` of whatever daemon runs, on the event loop of its process. Knows nothing of what
the daemon does; decides no exit code.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Protocol

import structlog

from services.pipeline.ending import end_tasks

STOP_START_WITHIN_S = 5.0
STOP_WITHIN_S = 14.0
"""After so long a stop is hurried; the process must end within 20 s."""
HURRIED_WITHIN_S = 4.0


class Stoppable(Protocol):
    """What is stopped."""

    async def stop(self) -> Mapping[str, int]:
        """Stop in order; return how many records could not be settled, by sink."""
        ...

    def hurry(self) -> None:
        """Let the stop under way take about one second more."""
        ...

    def unsettled(self) -> Mapping[str, int]:
        """Return how many records are not settled, by sink."""
        ...


class StopRequest:
    """SIGINT and SIGTERM ask for a stop, a second one for a quick stop, SIGHUP for a look at the secrets."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.hurried = asyncio.Event()
        self.on_hangup: Callable[[], None] = lambda: None

    def listen(self) -> None:
        """Listen to the signals, on the loop that runs."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._asked)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.on_hangup())  # noqa: PLW0108 - set later

    def _asked(self) -> None:
        if self.requested.is_set():
            self.hurried.set()
        self.requested.set()


async def done_unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work` unless a stop is asked for before its end; tell whether it was done. Failures go through."""
    task = asyncio.create_task(work, name="start")
    asked = asyncio.ensure_future(stop.wait())
    await asyncio.wait([task, asked], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    await end_tasks([task] if not task.done() else [], within_s=STOP_START_WITHIN_S)
    if not task.done() or task.cancelled():
        return False
    await task
    return not stop.is_set()


async def first_of(*events: asyncio.Event) -> None:
    """Wait until one of `events` is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def stop_in_time(daemon: Stoppable, stop: StopRequest) -> bool:
    """Stop the daemon; a second signal, or a stop that takes too long, shortens that to about a second.

    Returns whether it ended without being hurried by a signal.
    """
    stopping = asyncio.ensure_future(daemon.stop())
    hurried = asyncio.ensure_future(stop.hurried.wait())
    await asyncio.wait([stopping, hurried], timeout=STOP_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if stopping.done():
        await stopping
        return not stop.hurried.is_set()
    daemon.hurry()
    await asyncio.wait([stopping], timeout=HURRIED_WITHIN_S)
    if not stopping.done():
        stopping.cancel()
        await asyncio.wait([stopping], timeout=1.0)
        structlog.get_logger(__name__).error("daemon_stop_cut_short", unsettled=daemon.unsettled())
    elif not stopping.cancelled():
        await stopping
    return not stop.hurried.is_set()
