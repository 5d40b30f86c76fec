"""The state directory: one per daemon, private, marked as live or demo, locked while in use.

Holds the embedded servers' data, caches, the daemon's lock and `runtime.json`, by which other
commands find what runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from services.errors import ConfigurationError, TemporaryError

_KIND_FILE = "kind"
_LOCK_FILE = "daemon.lock"
_RUNTIME_FILE = "runtime.json"
_INSTANCE_FILE = "instance_id"
_LOOKED_AT_S = 0.1


class StateDirectory:
    """A state directory in use. Entering creates and marks it; leaving lets go of the lock."""

    def __init__(self, path: Path, *, demo: bool) -> None:
        self.path = path
        self.demo = demo
        self._lock_file: int | None = None

    def __enter__(self) -> StateDirectory:
        """Create the directory (mode 0700) and check its kind.

        Raises `ConfigurationError` when it cannot be written or belongs to the other kind of data.
        """
        kind = "demo" if self.demo else "live"
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            marker = self.path / _KIND_FILE
            if not marker.exists():
                write_private(marker, kind + "\n")
            found = marker.read_text(encoding="ascii", errors="replace").strip()
        except OSError as error:
            raise ConfigurationError(
                f"STATE_DIR {self.path} cannot be used: {error.strerror}. "
                "Choose another or mend its permissions."
            ) from error
        if found != kind:
            raise ConfigurationError(
                f"STATE_DIR {self.path} holds {found} data and must not be mixed with {kind} data: "
                "choose another STATE_DIR"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the daemon's lock."""
        if self._lock_file is not None:
            os.close(self._lock_file)
            self._lock_file = None

    def lock_daemon(self) -> None:
        """Become the one daemon of this directory. Raises `TemporaryError` naming the one that is.

        What a killed daemon left in `runtime.json` is removed.
        """
        path = self.path / _LOCK_FILE
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not _lock_within(descriptor, _LOOKED_AT_S):
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(descriptor)
            raise TemporaryError(
                f"another daemon (pid {holder}) uses {self.path}: stop it, or set another STATE_DIR"
            )
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._lock_file = descriptor
        self.clear_runtime()

    def write_runtime(self, facts: Mapping[str, Any]) -> None:
        """Write `runtime.json` (mode 0600) at once or not at all."""
        write_private(self.path / _RUNTIME_FILE, json.dumps(dict(facts), indent=2) + "\n")

    def clear_runtime(self) -> None:
        """Remove `runtime.json`; harmless when there is none."""
        (self.path / _RUNTIME_FILE).unlink(missing_ok=True)

    @staticmethod
    def instance_id(path: Path) -> str:
        """Return the id of the state directory `path`, made at the first call and kept in it.

        It holds the directory's inode, so a copy of a state directory has an id of its own. Raises
        `ConfigurationError` when it cannot be kept.
        """
        file = path / _INSTANCE_FILE
        try:
            kept = file.read_text(encoding="ascii", errors="replace").strip() if file.exists() else ""
            if not kept.isalnum():
                kept = secrets.token_hex(8)
                write_private(file, kept + "\n")
            return f"{kept}.{path.stat().st_ino}"
        except OSError as error:
            raise ConfigurationError(
                f"STATE_DIR {path} cannot be used: {error.strerror}. Choose another or mend its permissions."
            ) from error

    @staticmethod
    def read_runtime(path: Path) -> dict[str, Any] | None:
        """Return what runs on the state directory `path`, None when nothing does (a dead pid is nothing)."""
        try:
            facts = json.loads((path / _RUNTIME_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        if not isinstance(facts, dict) or not _is_locked(path / _LOCK_FILE):
            return None
        return facts


def _lock_within(descriptor: int, within_s: float) -> bool:
    """Lock for ourselves; a reader that only looks whether it is locked holds it for an instant."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                return False
            time.sleep(0.005)
        else:
            return True


def _is_locked(path: Path) -> bool:
    """Tell whether a daemon holds the lock; a pid alone could be anybody's by now."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read, at once or not at all."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
