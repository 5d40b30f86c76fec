"""How much processor time each turn of the event loop takes, whatever else the machine is busy with.

A turn is one callback, or one stretch of a task between two waits. Counted is the time the loop's thread
computed, not the time that passed: neither a full machine nor another thread makes a turn longer.
For loops of plain asyncio, which is what tests run on.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import time
from asyncio import events
from collections.abc import Iterator

_KEPT = 5


class LoopTurns:
    """What was measured. `worst_ms` is the longest turn, `longest` the longest ones with what ran in them."""

    def __init__(self) -> None:
        self.turns = 0
        self.longest: list[tuple[float, str]] = []

    @property
    def worst_ms(self) -> float:
        """Processor time of the longest turn."""
        return max((took_ms for took_ms, _ in self.longest), default=0.0)

    def note(self, took_ms: float, handle: asyncio.Handle) -> None:
        """Count a turn."""
        self.turns += 1
        if len(self.longest) < _KEPT:
            heapq.heappush(self.longest, (took_ms, _what(handle)))
        elif took_ms > self.longest[0][0]:
            heapq.heapreplace(self.longest, (took_ms, _what(handle)))

    def report(self) -> str:
        """Return the longest turns as lines, the longest first."""
        return "\n".join(f"{took_ms:.1f} ms {what}" for took_ms, what in sorted(self.longest, reverse=True))


@contextlib.contextmanager
def measured_turns() -> Iterator[LoopTurns]:
    """Measure every turn of the loops of this thread while the context is open."""
    turns, run = LoopTurns(), events.Handle._run

    def measured(handle: asyncio.Handle) -> None:
        began = time.thread_time_ns()
        run(handle)
        turns.note((time.thread_time_ns() - began) / 1e6, handle)

    # What a long test run has left behind is not ours: the collector need not walk it again.
    gc.collect()
    gc.freeze()
    events.Handle._run = measured  # type: ignore[method-assign]
    try:
        yield turns
    finally:
        events.Handle._run = run  # type: ignore[method-assign]
        gc.unfreeze()


def _what(handle: asyncio.Handle) -> str:
    task = getattr(getattr(handle, "_callback", None), "__self__", None)
    if not isinstance(task, asyncio.Task):
        return repr(handle)
    # Where the task waits now is where the turn ended.
    frames = []
    waits = task.get_coro()
    while waits is not None:
        frame = getattr(waits, "cr_frame", None)
        if frame is not None:
            frames.append(f"{frame.f_code.co_qualname}:{frame.f_lineno}")
        waits = getattr(waits, "cr_await", None)
    return f"{task.get_name()} {' > '.join(frames)}"
