"""What goes to Redis ahead of all that waits in a channel: records it confirmed and may have forgotten since.

Beside the segments of a channel, in a file of its own that is always written as a whole: an append could
only put these records behind newer ones, where a stream refuses them. So it is with what had no answer yet
when the writer ended and newer records were on disk. Whoever starts next counts none of them as waiting: they
were accounted for. Plain blocking file work, done by the spool's thread; decides nothing about when.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import structlog

from services.market_data.records import Record
from services.storage.spool_format import (
    TRIED,
    NewerFormat,
    decode_header,
    decode_records,
    encode_frames,
    encode_header,
    frame_at,
    next_sound_frame,
)
from services.storage.spool_segment import sync_folder

_log = structlog.get_logger(__name__)

AHEAD_NAME = "ahead.seg"
_FRESH_NAME = "ahead.new"
AHEAD_NAMES = (AHEAD_NAME, _FRESH_NAME)
"""The files that may lie beside a channel's segments for this; the second one only after a kill."""


def write_ahead(folder: Path, records: Sequence[Record]) -> None:
    """Replace what goes ahead, at once and on the disk for good. Raises OSError; then the former stays."""
    fresh = folder / _FRESH_NAME
    rows = [(record, TRIED) for record in records]
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(encode_header(1, {}))
        for frame, _, _ in encode_frames(rows, 1):
            file.write(frame)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(folder / AHEAD_NAME)
    sync_folder(folder)


def read_ahead(folder: Path) -> list[Record]:
    """Return what goes ahead, oldest first, as far as it is sound; sets aside a file that is not ours.

    Raises OSError when the disk refuses.
    """
    path = folder / AHEAD_NAME
    records = decode_ahead(path)
    if records is None:
        path.rename(path.with_suffix(".corrupt"))
        _log.error("spool_segment_corrupt", file=path.name)
    return records or []


def decode_ahead(path: Path) -> list[Record] | None:
    """Return the sound records of such a file, none where there is no file, None for one that is not ours."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    try:
        header = decode_header(data)
    except NewerFormat:
        header = None
    if header is None:
        return None
    records: list[Record] = []
    offset: int | None = header.size_bytes
    while offset is not None and offset < len(data):
        frame = frame_at(data, offset)
        if frame is None:
            offset = next_sound_frame(data, offset + 1)
            continue
        number, _, payload, offset = frame
        records += [row.record for row in decode_records(number, payload)]
    return records


def remove_ahead(folder: Path) -> None:
    """Remove what goes ahead: it is done with. Harmless where there is none."""
    (folder / AHEAD_NAME).unlink(missing_ok=True)
