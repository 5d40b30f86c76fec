"""Who serves a data folder: a lock file that the server process itself holds as long as it lives.

The open lock file is handed to the server when it is started. The kernel lets go of it when the last
process of the server has ended, however it ended, so there is no pid file that could be stale and no
pid that could belong to somebody else by now. Beneath the embedded servers; never starts or ends one.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

_SERVER_FD = 3
_OUR_LOWEST_FD = 10


class ServerLock:
    """The lock at `path`; `program` is the server's process name, `mark` an argument only it has."""

    def __init__(self, path: Path, *, program: str, mark: str) -> None:
        self._path = path
        self._program = program[:15]
        self._mark = mark.encode()

    def is_held(self) -> bool:
        """Tell whether a server of this folder runs."""
        try:
            descriptor = self.take()
        except FileNotFoundError:
            return False
        if descriptor is None:
            return True
        os.close(descriptor)
        return False

    def take(self) -> int | None:
        """Take the lock; return its descriptor, None when a server holds it. The caller closes it."""
        descriptor = open_lock(self._path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def holders(self) -> list[int]:
        """Return the pids of the server that runs, its main process first; empty when none does."""
        if not self.is_held():
            return []
        try:
            lock = self._path.stat()
        except FileNotFoundError:
            return []
        certain, likely = [], []
        for pid in self._processes():
            try:
                found = os.stat(f"/proc/{pid}/fd/{_SERVER_FD}")  # noqa: PTH116 - a magic link
            except PermissionError:
                # Root without the right to look into other accounts' processes, one of which is ours.
                if self._names_folder(pid) and _is_in_our_power(pid):
                    likely.append(pid)
            except OSError:
                continue
            else:
                if (found.st_dev, found.st_ino) == (lock.st_dev, lock.st_ino):
                    certain.append(pid)
        return _parents_first(certain or likely)

    def strays(self) -> list[int]:
        """Return servers that were started on this folder by name, but hold a lock file deleted since.

        Somebody removed the folder while they ran; nothing else can find them any more.
        """
        ours = _mount_namespace("self")
        return [
            pid
            for pid in self._processes()
            if self._names_folder(pid) and ours is not None and _mount_namespace(pid) == ours
        ]

    def _processes(self) -> Iterator[int]:
        for name in os.listdir("/proc"):  # noqa: PTH208 - the names are wanted, not paths
            if name.isdigit() and _read(name, "comm").strip().decode("utf-8", "replace") == self._program:
                yield int(name)

    def _names_folder(self, pid: int) -> bool:
        return self._mark in _read(pid, "cmdline").split(b"\0")


def open_lock(path: Path) -> int:
    """Open a lock file, private, never inherited, and away from the number servers get it as."""
    low = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        return fcntl.fcntl(low, fcntl.F_DUPFD_CLOEXEC, _OUR_LOWEST_FD)
    finally:
        os.close(low)


def spawn_holding(
    lock: int, command: Sequence[str], *, log_path: Path, environment: Mapping[str, str]
) -> int:
    """Start a server that holds `lock` from its first instruction on; return its pid.

    It gets a session of its own: a Ctrl-C must not reach it before the daemon has drained. It is
    nobody's ward: unlike asyncio's subprocesses it lives on when the process that started it ends.
    """
    log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawnp(
        command[0],
        list(command),
        environment,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(log_path), log, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            (os.POSIX_SPAWN_DUP2, lock, _SERVER_FD),
        ],
        setsid=True,
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGXFSZ],
    )


def _is_in_our_power(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def _parents_first(pids: list[int]) -> list[int]:
    return sorted(pids, key=lambda pid: (_parent(pid) in pids, pid))


def _parent(pid: int) -> int:
    # The name in brackets may hold anything; what follows the last one is numbers.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def _mount_namespace(pid: int | str) -> str | None:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")  # noqa: PTH115 - a magic link
    except OSError:
        return None


def _read(pid: int | str, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""
