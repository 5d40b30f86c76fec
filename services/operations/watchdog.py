"""Notices an event loop that stands still, says where, and ends the process so that it is started again.

A thread asks the loop for an answer several times a second. Without one for `dump_after_s` it writes
the stack of every thread to a file in the state directory and to stderr; without one for
`exit_after_s` it ends the process at once with exit code 70, whereupon systemd or Docker starts it
anew. Nothing is lost by that beyond what a kill loses. A stop that takes longer than `stop_within_s`
is ended in the same way.

Code that keeps the interpreter's lock silences this thread, too: then a timer of `faulthandler`, which
needs no lock, ends the process after twice `exit_after_s` (exit code 1). Time during which the whole
process stood still (SIGSTOP, a suspended machine) is held against nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import structlog

_log = structlog.get_logger(__name__)

EXIT_CODE = 70
KEPT_DUMPS = 5


class WatchdogLimits(msgspec.Struct, frozen=True, kw_only=True):
    """After how many seconds of silence the stacks are written, and the process is ended."""

    dump_after_s: float = 10.0
    exit_after_s: float = 30.0
    stop_within_s: float = 25.0

    @property
    def look_every_s(self) -> float:
        """How often the loop is asked."""
        return min(0.5, self.dump_after_s / 5)


class LoopWatchdog:
    """Watches one event loop from a thread, between `start` and `stop`.

    `folder` takes the dumps (`freeze-<UTC time>.txt`, the newest five stay). `end` ends the process.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        folder: Path,
        limits: WatchdogLimits,
        *,
        end: Callable[[int], None] = os._exit,
    ) -> None:
        self.dumps = 0
        self._loop = loop
        self._folder = folder
        self._limits = limits
        self._end = end
        self._answered = threading.Event()
        self._over = threading.Event()
        self._stop_asked_s: float | None = None
        self._thread = threading.Thread(target=self._watch, name="loop-watchdog", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """End watching; harmless when repeated."""
        self._over.set()
        self._thread.join(2.0)
        with contextlib.suppress(RuntimeError, ValueError):
            faulthandler.cancel_dump_traceback_later()

    def stop_begins(self) -> None:
        """From now on the process has `stop_within_s` seconds to end by itself."""
        if self._stop_asked_s is None:
            self._stop_asked_s = time.monotonic()

    def stop_ended(self) -> None:
        """The daemon has stopped; what comes after has its own limits."""
        self._stop_asked_s = None

    def _watch(self) -> None:
        limits = self._limits
        look_s = limits.look_every_s
        silent_s = 0.0
        self._ask()
        before_s = time.monotonic()
        while not self._over.wait(look_s):
            self._arm_timer()
            now_s = time.monotonic()
            passed_s, before_s = now_s - before_s, now_s
            if self._answered.is_set():
                if silent_s >= limits.dump_after_s:
                    _log.warning("event_loop_moves_again", stood_still_s=round(silent_s, 1))
                silent_s = 0.0
                self._ask()
            else:
                # A pause of the whole process is not the loop's: it gets the time of two looks at most.
                was_s, silent_s = silent_s, silent_s + min(passed_s, 2 * look_s)
                if was_s < limits.dump_after_s <= silent_s:
                    self._dump(f"the event loop has stood still for {silent_s:.0f} s")
                if silent_s >= limits.exit_after_s:
                    self._give_up(f"the event loop has stood still for {silent_s:.0f} s")
            asked_s = self._stop_asked_s
            if asked_s is not None and now_s - asked_s >= limits.stop_within_s:
                self._dump(f"the stop has taken {now_s - asked_s:.0f} s")
                self._give_up(f"the stop has taken {now_s - asked_s:.0f} s")

    def _ask(self) -> None:
        self._answered.clear()
        # A closed loop has nothing to answer with and nothing to watch.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._answered.set)

    def _arm_timer(self) -> None:
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            faulthandler.dump_traceback_later(2 * self._limits.exit_after_s, exit=True, file=2)

    def _dump(self, what: str) -> None:
        """Write every thread's stack (names and lines, no values) to a file, then to stderr."""
        self.dumps += 1
        path = self._folder / time.strftime("freeze-%Y%m%dT%H%M%SZ.txt", time.gmtime())
        try:
            with path.open("w", encoding="utf-8") as file:
                file.write(f"marketd: {what}; the stacks of all threads, the innermost call first\n")
                file.flush()
                faulthandler.dump_traceback(file)
            for old in sorted(self._folder.glob("freeze-*.txt"))[:-KEPT_DUMPS]:
                old.unlink(missing_ok=True)
        except OSError as error:
            what += f" (its stacks could not be written to {path}: {error.strerror})"
        # Whoever should read stderr may stand still as well: it must not hold up what comes next.
        threading.Thread(target=_say, args=(what,), name="freeze-report", daemon=True).start()

    def _give_up(self, what: str) -> None:
        report = threading.Thread(
            target=_write,
            args=(f"marketd: {what}; the process ends with exit code {EXIT_CODE}\n",),
            daemon=True,
        )
        report.start()
        report.join(0.5)
        self._end(EXIT_CODE)
        self._over.set()


def _say(what: str) -> None:
    _write(f"marketd: {what}; the stacks of all threads:\n")
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        faulthandler.dump_traceback(2)


def _write(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, text.encode())
