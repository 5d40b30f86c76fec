"""Whether our code ever kept the event loop from running, told apart from a machine that was busy.

A timer every 10 ms measures how late it fires. What the kernel kept this process from running is taken
off: the time that any of its threads stood in the queue for a processor (a thread that waits there may
hold the interpreter's lock, which then keeps the loop waiting too), and what the host of a virtual machine
took away. What is left is ours: computation that does not give way, or a call that blocks.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import threading
import traceback
from collections import Counter
from pathlib import Path

from tests.support.eventually import FACTOR

LIMIT_MS = 100.0
"""No fault may block the event loop for longer."""
_EVERY_S = 0.01
_SUSPECT_S = 0.04
_TASKS = Path("/proc/self/task")
_MACHINE = Path("/proc/stat")
_STEAL = 8
_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


class LoopLag:
    """Samples the loop it runs on. `worst_ms` is the longest stretch that was our own doing."""

    def __init__(self) -> None:
        self.worst_ms = 0.0
        self.samples = 0
        self.resting = False
        """Set while the test itself reads and compares, which is not what is measured."""
        self._ticked_s = 0.0
        self._stacks: Counter[str] = Counter()
        self._worst_stacks: Counter[str] = Counter()
        self._ended = threading.Event()

    async def run(self) -> None:
        """Sample until cancelled."""
        loop = asyncio.get_running_loop()
        # What a long test run has left behind is not ours: the collector need not walk it again.
        gc.collect()
        gc.freeze()
        self._ticked_s = loop.time()
        watcher = threading.Thread(
            target=self._watch, args=(loop, threading.get_ident()), name="loop lag", daemon=True
        )
        watcher.start()
        try:
            while True:
                waits, due_s = _waits_ns(watcher.native_id), loop.time() + _EVERY_S
                await asyncio.sleep(_EVERY_S)
                now_s = loop.time()
                late_s = 0.0 if self.resting else now_s - due_s
                if late_s * 1000 > self.worst_ms:
                    late_s -= _waited_s(waits, watcher.native_id)
                    if late_s * 1000 > self.worst_ms:
                        self.worst_ms = late_s * 1000
                        self._worst_stacks = Counter(self._stacks)
                self._ticked_s = now_s
                self._stacks.clear()
                self.samples += 1
        finally:
            self._ended.set()
            watcher.join()
            gc.unfreeze()

    def check(self) -> None:
        """Assert that the loop ran, and was never blocked for too long; the message says where it stood."""
        assert self.samples > 0, "the loop's lag was not measured"
        where = "".join(f"\n{count} x {stack}" for stack, count in self._worst_stacks.most_common(3))
        assert self.worst_ms < LIMIT_MS * FACTOR, f"the loop stood still for {self.worst_ms:.0f} ms{where}"

    def _watch(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        """Look what the loop's thread does while it is late."""
        while not self._ended.wait(_EVERY_S):
            if loop.time() - self._ticked_s > _SUSPECT_S:
                frame = sys._current_frames().get(thread_id)
                self._stacks["".join(traceback.format_stack(frame)[-4:])] += 1


def _waits_ns(watcher: int | None) -> dict[str, int]:
    """Return how long each thread but the watcher, and the machine itself, has waited for a processor."""
    found = {"": int(_MACHINE.read_text().split(maxsplit=_STEAL + 1)[_STEAL]) * _TICK_NS}
    for task in _TASKS.iterdir():
        if task.name == str(watcher):
            continue
        try:
            found[task.name] = int((task / "schedstat").read_text().split()[1])
        except (OSError, IndexError, ValueError):
            continue
    return found


def _waited_s(before: dict[str, int], watcher: int | None) -> float:
    return sum(after - before.get(thread, after) for thread, after in _waits_ns(watcher).items()) / 1e9
