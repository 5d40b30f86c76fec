"""Taking turns: tests share the floor, one that runs alone has it for itself and is not kept waiting."""

from __future__ import annotations

import threading
from pathlib import Path

from tests.support.turns import Turns

WITHIN_S = 10.0


class Worker:
    """A worker of a test run, in a thread of its own."""

    def __init__(self, folder: Path, *, alone: bool) -> None:
        self._turns = Turns(folder)
        self._alone = alone
        self._may_leave = threading.Event()
        self.has_floor = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self._turns.take(alone=self._alone)
        self.has_floor.set()
        self._may_leave.wait(WITHIN_S)
        self._turns.leave()

    def got_it(self, within_s: float = WITHIN_S) -> bool:
        return self.has_floor.wait(within_s)

    def leave(self) -> None:
        self._may_leave.set()
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive()


def test_ordinary_tests_share_the_floor(tmp_path: Path) -> None:
    workers = [Worker(tmp_path, alone=False) for _ in range(3)]
    assert all(worker.got_it() for worker in workers)
    for worker in workers:
        worker.leave()


def test_one_that_runs_alone_waits_for_all_others_and_keeps_them_waiting(tmp_path: Path) -> None:
    first, second = Worker(tmp_path, alone=False), Worker(tmp_path, alone=False)
    assert first.got_it()
    assert second.got_it()
    alone = Worker(tmp_path, alone=True)
    first.leave()
    assert not alone.got_it(0.2)
    second.leave()
    assert alone.got_it()
    third, other = Worker(tmp_path, alone=False), Worker(tmp_path, alone=True)
    assert not third.got_it(0.2)
    assert not other.got_it(0.2)
    alone.leave()
    for worker in (third, other) if third.got_it(1.0) and not other.has_floor.is_set() else (other, third):
        assert worker.got_it()
        worker.leave()


def test_one_that_waits_for_the_floor_alone_is_not_overtaken(tmp_path: Path) -> None:
    first = Worker(tmp_path, alone=False)
    assert first.got_it()
    alone = Worker(tmp_path, alone=True)
    assert not alone.got_it(0.2)
    late = Worker(tmp_path, alone=False)
    assert not late.got_it(0.2), "or there would always be one more"
    first.leave()
    assert alone.got_it()
    assert not late.got_it(0.2)
    alone.leave()
    assert late.got_it()
    late.leave()


def test_several_alone_in_a_row_keep_the_floor_between_them(tmp_path: Path) -> None:
    turns = Turns(tmp_path)
    turns.take(alone=True)
    waiting = Worker(tmp_path, alone=False)
    turns.take(alone=True)
    assert not waiting.got_it(0.2)
    turns.leave()
    assert waiting.got_it()
    waiting.leave()
