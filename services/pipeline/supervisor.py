"""Owns every long-lived task: starts it, restarts it after a failure, counts, and stops all in bounded time.

A task that ends without being asked to is a fault, never a silence. Provider and sink loops handle
their own expected errors; what arrives here is unexpected, so it is logged with its trace, counted,
and the task is started again after a back-off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import structlog

from services.pipeline.backoff import Backoff

_log = structlog.get_logger(__name__)


class TaskCensus(msgspec.Struct):
    """How one supervised task has fared. `last_error` is empty while nothing went wrong."""

    name: str
    restarts: int = 0
    alive: bool = True
    last_error: str = ""


class Supervisor:
    """Keeps a set of named tasks alive until `stop`."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._census: dict[str, TaskCensus] = {}
        self._transient: set[asyncio.Task[None]] = set()
        self._stopping = False

    def keep(
        self, name: str, run: Callable[[], Awaitable[None]], *, backoff: Backoff | None = None
    ) -> asyncio.Task[None]:
        """Run `run()` for ever under `name`: whenever it raises or returns, it is started again."""
        if name in self._tasks and not self._tasks[name].done():
            raise ValueError(f"a task named {name} is already running")
        self._census[name] = TaskCensus(name)
        waits = backoff or Backoff(base_s=0.1, cap_s=5.0, floor_s=0.05)
        task = asyncio.create_task(self._keep_alive(name, run, waits), name=name)
        self._tasks[name] = task
        return task

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` once; a failure is logged and counted, not repeated."""
        task = asyncio.create_task(work, name=name)
        self._transient.add(task)
        task.add_done_callback(self._transient_done)
        return task

    async def end(self, name: str, within_s: float = 2.0) -> None:
        """Cancel one kept task and wait for it, at most `within_s` seconds."""
        task = self._tasks.pop(name, None)
        self._census.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=within_s)

    async def stop(self, within_s: float = 5.0) -> list[str]:
        """Cancel everything and wait at most `within_s` seconds; return the names still pending."""
        self._stopping = True
        tasks = [task for task in (*self._tasks.values(), *self._transient) if not task.done()]
        for task in tasks:
            task.cancel()
        if not tasks:
            return []
        _, pending = await asyncio.wait(tasks, timeout=within_s)
        names = sorted(task.get_name() for task in pending)
        if names:
            _log.error("tasks_still_pending", names=names)
        return names

    def census(self) -> list[TaskCensus]:
        """Return the state of every kept task, by name."""
        return [self._census[name] for name in sorted(self._census)]

    async def _keep_alive(self, name: str, run: Callable[[], Awaitable[None]], waits: Backoff) -> None:
        census = self._census[name]
        loop = asyncio.get_running_loop()
        while True:
            started_s = loop.time()
            census.alive = True
            try:
                await run()
                census.last_error = "ended without being asked to"
                _log.error("task_ended", task=name)
            except asyncio.CancelledError:
                census.alive = False
                raise
            except Exception as error:  # noqa: BLE001 - the one place that outlives any failure
                census.last_error = f"{type(error).__name__}: {error}"
                _log.error("task_failed", task=name, exc_info=True)
            census.alive = False
            census.restarts += 1
            waits.succeeded(loop.time() - started_s)
            await asyncio.sleep(waits.next_wait_s())

    def _transient_done(self, task: asyncio.Task[None]) -> None:
        self._transient.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not self._stopping:
            _log.error("task_failed", task=task.get_name(), exc_info=error)
