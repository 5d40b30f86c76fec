"""The newest tick of each instrument among those that wait on disk, for a daemon that starts.

Redis does not know these yet. Without them the last trade that a provider repeats on subscribe would be
taken for a new one, and stored a second time behind its waiting twin. Plain blocking file work; reads only.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from services.market_data.records import DataIngestionFormat
from services.storage.spool_format import (
    NewerFormat,
    decode_header,
    decode_records,
    frame_at,
    next_sound_frame,
)
from services.storage.spool_segment import SEGMENT_NAME, read_acked


def newest_ticks(folder: Path, instruments: Iterable[str]) -> dict[str, DataIngestionFormat]:
    """Return the newest waiting tick of each of `instruments` that has one in this channel's folder.

    Reads from the newest segment backwards until all are found. Raises OSError when the disk refuses.
    """
    missing = set(instruments)
    found: dict[str, DataIngestionFormat] = {}
    if not folder.is_dir():
        return found
    acked = read_acked(folder) or 1
    paths = [path for path in folder.iterdir() if SEGMENT_NAME.match(path.name)]
    for path in sorted(paths, reverse=True):
        if not missing:
            break
        newest = _newest_of_segment(path, acked, missing)
        missing.difference_update(newest)
        found.update(newest)
    return found


def _newest_of_segment(path: Path, acked: int, wanted: set[str]) -> dict[str, DataIngestionFormat]:
    data = path.read_bytes()
    try:
        header = decode_header(data)
    except NewerFormat:
        header = None
    newest: dict[str, DataIngestionFormat] = {}
    offset: int | None = header.size_bytes if header is not None else None
    while offset is not None and offset < len(data):
        frame = frame_at(data, offset)
        if frame is None:
            offset = next_sound_frame(data, offset + 1)
            continue
        number, count, payload, offset = frame
        if number + count <= acked:
            continue
        for at, _, record in decode_records(number, payload):
            if at >= acked and isinstance(record, DataIngestionFormat) and record.symbol in wanted:
                newest[record.symbol] = record
    return newest
