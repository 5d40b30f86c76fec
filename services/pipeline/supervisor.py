"""Owns every long-lived task: starts it, restarts it after a failure, counts, and stops all in bounded time.

A task that ends without being asked to is a fault, never a silence: whether it raised, returned, or was
cancelled by somebody else. Provider and sink loops handle their own expected errors; what arrives here
is unexpected, so it is logged with its trace, counted, and the task is started again after a back-off.
`troubles` names every task that is down or was started again a moment ago: health hangs on it.
A task that is to end is cancelled until it has ended (`ending`).
A core task that fails again and again at once is beyond help: `failed` is set, and whoever runs the
daemon drains and ends it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
import structlog

from services.pipeline.backoff import Backoff
from services.pipeline.ending import CLEANUP_S, end_tasks

_log = structlog.get_logger(__name__)

RECENT_S = 3.0
"""For so long after its restart a task is reported as trouble, so that no look from outside misses it."""
STEADY_S = 10.0
"""A task that ran for this long has started well."""
HOPELESS_AFTER = 12
"""A core task that ended so many times in a row without having been steady cannot be helped by restarts."""
_REVIVE_AFTER_S = 0.05


class TaskCensus(msgspec.Struct):
    """How one supervised task has fared. `last_error` is empty while nothing went wrong."""

    name: str
    restarts: int = 0
    alive: bool = True
    last_error: str = ""


class Supervisor:
    """Keeps a set of named tasks alive until `stop`. `recent_s` is how long a restart counts as trouble."""

    def __init__(self, *, recent_s: float = RECENT_S) -> None:
        self.failed = asyncio.Event()
        """Set when a core task is beyond help; `failure` says which and why."""
        self.failure = ""
        self._recent_s = recent_s
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._census: dict[str, TaskCensus] = {}
        self._failed_s: dict[str, float] = {}
        self._transient: set[asyncio.Task[None]] = set()
        self._stopping = False

    def keep(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        *,
        backoff: Backoff | None = None,
        core: bool = True,
        cleanup_s: float = CLEANUP_S,
    ) -> asyncio.Task[None]:
        """Run `run()` for ever under `name`: whenever it ends, however that is, it is started again.

        Without `core` it may fail as often as it likes, and the daemon goes on without it. `cleanup_s` is
        what it may take to end before it is cancelled again.
        """
        if name in self._tasks and not self._tasks[name].done():
            raise ValueError(f"a task named {name} is already running")
        self._census[name] = TaskCensus(name)
        waits = backoff or Backoff(base_s=0.1, cap_s=5.0, floor_s=0.05)
        return self._start(name, run, waits, core, cleanup_s)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run `work` once; a failure is logged and counted, not repeated."""
        task = asyncio.create_task(work, name=name)
        self._transient.add(task)
        task.add_done_callback(self._transient_done)
        return task

    async def end(self, name: str, within_s: float = 2.0) -> None:
        """Cancel one kept task and wait for it, at most `within_s` seconds; its keeper goes on to end it."""
        task = self._tasks.pop(name, None)
        self._census.pop(name, None)
        self._failed_s.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task], timeout=within_s)

    async def stop(self, within_s: float = 5.0) -> list[str]:
        """Cancel everything and wait at most `within_s` seconds; return the names still pending."""
        self._stopping = True
        tasks = [task for task in (*self._tasks.values(), *self._transient) if not task.done()]
        pending = await end_tasks(tasks, within_s=within_s)
        return sorted(task.get_name().removeprefix("keeper:") for task in pending)

    def census(self) -> list[TaskCensus]:
        """Return the state of every kept task, by name."""
        return [self._census[name] for name in sorted(self._census)]

    def troubles(self) -> list[str]:
        """Return every task that is down or was started again a moment ago, one sentence each."""
        now_s = asyncio.get_running_loop().time()
        found = []
        for census in self.census():
            ago_s = now_s - self._failed_s.get(census.name, now_s - 2 * self._recent_s - 1)
            if not census.alive:
                found.append(f"the task {census.name} is down ({census.last_error})")
            elif ago_s <= self._recent_s:
                found.append(f"the task {census.name} was started again just now ({census.last_error})")
        return found

    def _start(
        self, name: str, run: Callable[[], Awaitable[None]], waits: Backoff, core: bool, cleanup_s: float
    ) -> asyncio.Task[None]:
        task = asyncio.create_task(self._keep_alive(name, run, waits, core, cleanup_s), name=f"keeper:{name}")
        self._tasks[name] = task

        def ended(done: asyncio.Task[None]) -> None:
            if self._stopping or self._tasks.get(name) is not done:
                return
            # Somebody cancelled the keeper itself. While the loop is being closed it is not revived.
            error = None if done.cancelled() else done.exception()
            self._note_end(name, "its keeper was cancelled" if error is None else f"its keeper: {error!r}")
            _log.error("task_keeper_ended", task=name, exc_info=error)
            asyncio.get_running_loop().call_later(_REVIVE_AFTER_S, revive, done)

        def revive(done: asyncio.Task[None]) -> None:
            if not self._stopping and self._tasks.get(name) is done:
                self._start(name, run, waits, core, cleanup_s)

        task.add_done_callback(ended)
        return task

    async def _keep_alive(
        self, name: str, run: Callable[[], Awaitable[None]], waits: Backoff, core: bool, cleanup_s: float
    ) -> None:
        census = self._census[name]
        loop = asyncio.get_running_loop()
        in_a_row = 0
        while True:
            started_s = loop.time()
            census.alive = True
            # In a task of its own: a cancellation that reaches only the work is nobody's wish to stop it.
            work = asyncio.create_task(_run(run), name=name)
            try:
                await asyncio.wait([work])
            except BaseException:
                # However the keeper ends, its work ends with it: it must never run twice.
                census.alive = False
                if not await end_tasks([work], cleanup_s=cleanup_s) and not work.cancelled():
                    work.exception()
                raise
            self._note_end(name, _how_it_ended(name, work))
            lived_s = loop.time() - started_s
            in_a_row = 1 if lived_s >= STEADY_S else in_a_row + 1
            if core and in_a_row >= HOPELESS_AFTER and not self.failed.is_set():
                self.failure = f"the task {name} failed {in_a_row} times in a row: {census.last_error}"
                _log.critical("task_beyond_help", task=name, failures=in_a_row, error=census.last_error)
                self.failed.set()
            waits.succeeded(lived_s)
            await asyncio.sleep(waits.next_wait_s())

    def _note_end(self, name: str, error: str) -> None:
        census = self._census[name]
        census.alive = False
        census.restarts += 1
        census.last_error = error
        self._failed_s[name] = asyncio.get_running_loop().time()

    def _transient_done(self, task: asyncio.Task[None]) -> None:
        self._transient.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not self._stopping:
            _log.error("task_failed", task=task.get_name(), exc_info=error)


async def _run(run: Callable[[], Awaitable[None]]) -> None:
    await run()


def _how_it_ended(name: str, work: asyncio.Task[None]) -> str:
    if work.cancelled():
        _log.error("task_cancelled", task=name)
        return "cancelled without being asked to"
    error = work.exception()
    if error is None:
        _log.error("task_ended", task=name)
        return "ended without being asked to"
    if not isinstance(error, Exception):
        raise error
    _log.error("task_failed", task=name, exc_info=error)
    return f"{type(error).__name__}: {error}"


async def end_together(*works: tuple[str, Coroutine[Any, Any, None]]) -> None:
    """Run named coroutines side by side until the first ends, however that is; then end the others.

    Raises what the first one raised, `RuntimeError` when it returned or was cancelled by somebody else:
    work that belongs together never goes on without a part of it.
    """
    tasks = [asyncio.create_task(work, name=name) for name, work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        await end_tasks(tasks)
    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error
    raise RuntimeError(f"{', '.join(sorted(task.get_name() for task in done))} ended without being asked to")
