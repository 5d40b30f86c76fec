"""The folder of an embedded server: what is remembered of it, its log, and the lock for starting it.

Beneath the embedded servers; knows nothing of processes.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from services.errors import TemporaryError
from services.operations.server_lock import open_lock
from services.operations.state_dir import write_private

_LOCK_WITHIN_S = 60.0
_POLL_S = 0.02
_LOG_LIMIT_BYTES = 4 * 1024 * 1024
_LOG_TAIL_BYTES = 8192


class ServerFolder:
    """The private folder of one server, called `title` in messages."""

    def __init__(self, path: Path, title: str) -> None:
        self.path = path
        self.log_path = path / "server.log"
        self._title = title

    def create(self) -> None:
        """Make the folder, and the state directory around it, for its owner alone."""
        # The mode goes to the last folder of a path only, so the state directory is made by itself.
        for part in (self.path.parent, self.path):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)

    def remember(self, name: str, value: str) -> None:
        """Write a fact down, readable for its owner alone."""
        write_private(self.path / name, f"{value}\n")

    def recall(self, name: str) -> str:
        """Return a fact, empty when it is not known."""
        try:
            return (self.path / name).read_text(encoding="ascii", errors="replace").strip()
        except FileNotFoundError:
            return ""

    def cut_log(self) -> None:
        """Keep one old log beside the new one, so that neither grows for ever."""
        with contextlib.suppress(FileNotFoundError):
            if self.log_path.stat().st_size > _LOG_LIMIT_BYTES:
                self.log_path.replace(self.log_path.with_suffix(".log.1"))

    def telling_log_line(self, words: Collection[str]) -> str:
        """Return the newest log line with one of `words` in it, else the last one."""
        try:
            with self.log_path.open("rb") as log:
                log.seek(max(0, self.log_path.stat().st_size - _LOG_TAIL_BYTES))
                lines = log.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            return "it wrote no log"
        for line in reversed(lines):
            if any(word in line for word in words):
                return line
        return lines[-1] if lines else "its log is empty"

    @contextlib.asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Hold the lock under which servers of this folder are started and stopped.

        Raises `TemporaryError` when another process does not let go of it for a minute.
        """
        descriptor = open_lock(self.path / "start.lock")
        try:
            loop = asyncio.get_running_loop()
            deadline_s = loop.time() + _LOCK_WITHIN_S
            while not _locked(descriptor):
                if loop.time() > deadline_s:
                    raise TemporaryError(
                        f"another process has been starting or stopping the embedded {self._title} "
                        "for a minute; try again"
                    )
                await asyncio.sleep(_POLL_S)
            yield
        finally:
            os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
