"""Who serves a folder is told by the lock it holds. Real processes; a shell of that name for the server."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.operations.server_lock import ServerLock, spawn_holding

Start = Callable[[bool], int]


@pytest.fixture
def lock(tmp_path: Path) -> ServerLock:
    return ServerLock(tmp_path / "server.lock", program="pretended-server", mark=str(tmp_path / "its.conf"))


@pytest.fixture
def start(tmp_path: Path, lock: ServerLock) -> Iterator[Start]:
    """Start a process by the server's name on the folder, with or without its lock; return its pid."""
    program = tmp_path / "pretended-server"
    program.symlink_to(shutil.which("sh") or "/bin/sh")
    # Two processes, as a server and its helper.
    command = [str(program), "-c", "(while :; do sleep 60; done) & wait", str(tmp_path / "its.conf")]
    pids: list[int] = []

    def start_one(holding: bool) -> int:
        handed = lock.take() if holding else os.open(os.devnull, os.O_RDONLY)
        assert handed is not None
        pid = spawn_holding(handed, command, log_path=tmp_path / "log", environment=dict(os.environ))
        os.close(handed)
        pids.append(pid)
        # For an instant after its start a process has no command line yet.
        deadline_s = time.monotonic() + 5
        while command[-1].encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        return pid

    yield start_one
    for pid in pids:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_process_that_was_handed_the_lock_holds_it_and_is_named_before_its_helpers(
    lock: ServerLock, start: Start
) -> None:
    assert not lock.is_held()
    pid = start(True)
    assert lock.is_held()
    assert lock.take() is None
    assert lock.holders()[0] == pid


def test_a_process_of_the_same_name_and_folder_without_the_lock_is_not_taken_for_the_server(
    lock: ServerLock, start: Start
) -> None:
    other = start(False)
    assert lock.holders() == []
    pid = start(True)
    assert lock.holders()[0] == pid
    assert other not in lock.holders()


def test_what_cannot_be_looked_into_counts_only_when_we_could_end_it(
    lock: ServerLock, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = start(True)
    real_stat = os.stat

    def closed(path: object, *args: object, **options: object) -> os.stat_result:
        if str(path).startswith("/proc/"):
            raise PermissionError(path)
        return real_stat(path, *args, **options)

    monkeypatch.setattr(os, "stat", closed)
    assert lock.holders()[0] == pid
    with monkeypatch.context() as powerless:
        powerless.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError()))
        assert lock.holders() == []


def test_a_server_whose_lock_file_was_deleted_is_a_stray(
    lock: ServerLock, start: Start, tmp_path: Path
) -> None:
    pid = start(True)
    (tmp_path / "server.lock").unlink()
    assert lock.holders() == []
    assert pid in lock.strays()


def test_a_folder_that_does_not_exist_has_no_server(tmp_path: Path) -> None:
    lock = ServerLock(tmp_path / "nowhere" / "server.lock", program="redis-server", mark="x")
    assert not lock.is_held()
    assert lock.holders() == []
