"""The last good mapping snapshot on disk, so that the daemon can start while PostgreSQL is down.

One line of header (schema revision, database, time, checksum), then the snapshot as JSON. A copy that
is damaged, of another schema or database, too old or from the future is refused, never repaired.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import msgspec

from services.market_data.instruments import MappingSnapshot

MAX_AGE_MS = 7 * 24 * 3_600_000
MAX_AHEAD_MS = 24 * 3_600_000
_FORMAT = 2


class LastGoodUnusable(Exception):
    """The copy on disk cannot be used; the text says why, as part of a sentence."""


class _Header(msgspec.Struct, frozen=True):
    format: int
    schema_revision: str
    source: str
    saved_ms: int
    sha256: str


def write_last_good(
    path: Path, snapshot: MappingSnapshot, *, schema_revision: str, source: str, now_ms: int
) -> None:
    """Write the snapshot to `path`, readable by its owner only, at once or not at all. Raises `OSError`.

    `source` names the database it was read from, without its password.
    """
    body = msgspec.json.encode(snapshot)
    header = _Header(_FORMAT, schema_revision, source, now_ms, hashlib.sha256(body).hexdigest())
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(msgspec.json.encode(header) + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise


def read_last_good(path: Path, *, schema_revision: str, source: str, now_ms: int) -> MappingSnapshot:
    """Return the snapshot at `path`, marked as from the cache. Raises `LastGoodUnusable`."""
    try:
        first, _, body = path.read_bytes().partition(b"\n")
    except FileNotFoundError:
        raise LastGoodUnusable("there is none yet") from None
    except OSError as error:
        raise LastGoodUnusable(f"{path} cannot be read ({error.strerror})") from error
    try:
        _check_format(path, first)
        header = msgspec.json.decode(first, type=_Header)
        if hashlib.sha256(body).hexdigest() != header.sha256:
            raise LastGoodUnusable(f"{path} is damaged")
        snapshot = msgspec.json.decode(body, type=MappingSnapshot)
    except msgspec.MsgspecError as error:
        raise LastGoodUnusable(f"{path} is damaged") from error
    if header.schema_revision != schema_revision:
        raise LastGoodUnusable(
            f"it is of schema revision {header.schema_revision}, this program reads {schema_revision}"
        )
    if header.source != source:
        raise LastGoodUnusable(f"it is of {header.source}, not of this database")
    age_ms = now_ms - header.saved_ms
    if age_ms > MAX_AGE_MS:
        raise LastGoodUnusable(f"it is {age_ms // 86_400_000} days old, more than 7")
    if age_ms < -MAX_AHEAD_MS:
        raise LastGoodUnusable("it is dated in the future: check the clock")
    return msgspec.structs.replace(snapshot, from_cache=True)


def _check_format(path: Path, first_line: bytes) -> None:
    found = msgspec.json.decode(first_line)
    if not isinstance(found, dict) or "format" not in found:
        raise LastGoodUnusable(f"{path} is damaged, or none of our files")
    if found["format"] != _FORMAT:
        raise LastGoodUnusable(f"{path} was written by another version of this program")
