"""Where renewed credentials are kept, so that the next start finds them.

Used by `main.py` and `doctor`. A secret that stands in a file of its own (`DHAN_ACCESS_TOKEN_FILE`) is
written there again, when it is a file that we may write. Any other is kept in `STATE_DIR/credentials.json`,
readable by its owner only, and stands in for the one of the settings that it replaced, for that one alone:
as soon as an operator puts in another, that one counts.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import structlog

from config.secret_files import exposure, read_secret
from services.operations.state_dir import write_private
from services.redaction import make_known

_log = structlog.get_logger(__name__)

FILE = "credentials.json"


class _Kept(msgspec.Struct, frozen=True):
    """A renewed value; `replaces` is the SHA-256 of the value of the settings that it stands in for."""

    value: str
    replaces: str


class CredentialStore:
    """Lays renewed credentials over `settings()`, and keeps new ones.

    `file_of(name)` is the file of its own that a secret stands in, None where it stands elsewhere.
    """

    def __init__(
        self,
        state_dir: Path,
        settings: Callable[[], Mapping[str, str]],
        file_of: Callable[[str], Path | None],
    ) -> None:
        self._path = state_dir / FILE
        self._settings = settings
        self._file_of = file_of
        self._signature: tuple[int, int, int] | None = None
        self._kept: dict[str, _Kept] = {}

    def settings(self) -> Mapping[str, str]:
        """Return the settings, with renewed credentials in place of those that they replaced."""
        values = self._settings()
        renewed = {
            name: it.value for name, it in self._read().items() if it.replaces == _hash(values.get(name, ""))
        }
        return {**values, **renewed} if renewed else values

    def save(self, values: Mapping[str, str]) -> None:
        """Keep new values of settings. Raises `OSError` when they cannot be written."""
        make_known(values.values())
        given = self._settings()
        kept = dict(self._read())
        for name, value in values.items():
            file = self._file_of(name)
            if file is not None and _rewrite(file, value):
                kept.pop(name, None)
            else:
                kept[name] = _Kept(value, _hash(given.get(name, "")))
        if kept or self._path.exists():
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, msgspec.json.encode(kept).decode())

    def _read(self) -> dict[str, _Kept]:
        try:
            status = self._path.stat()
        except OSError:
            self._signature, self._kept = None, {}
            return self._kept
        signature = (status.st_mtime_ns, status.st_size, status.st_ino)
        if signature != self._signature:
            self._signature, self._kept = signature, self._load(status)
            make_known(it.value for it in self._kept.values())
        return self._kept

    def _load(self, status: os.stat_result) -> dict[str, _Kept]:
        problem = exposure(self._path, status)
        if problem is None:
            try:
                return msgspec.json.decode(self._path.read_bytes(), type=dict[str, _Kept])
            except (OSError, msgspec.DecodeError):
                problem = f"{self._path} is damaged: delete it, and put new credentials in the settings"
        _log.error("renewed_credentials_not_used", reason=problem)
        return {}


def _rewrite(path: Path, value: str) -> bool:
    """Write a secret file anew with its rights; False when it is not ours to write, as a mounted one."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            return False
        if not os.access(path.parent, os.W_OK) or status.st_mode & 0o200 == 0:
            return False
        write_private(path, value + "\n")
        return read_secret(path) == value
    except OSError as error:
        _log.warning("secret_file_not_rewritten", reason=error.strerror)
        return False


def _hash(value: str) -> str:
    return hashlib.sha256(value.strip().encode()).hexdigest()
