"""What waits on disk and a starting daemon has to know: the newest tick of each instrument, recent records.

Redis does not know these yet. Without them the last trade that a provider repeats on subscribe would be
taken for a new one, and stored a second time behind its waiting twin; and bars would be built again without
the ticks that wait. Plain blocking file work; reads only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from services.market_data.records import DataIngestionFormat, Record
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


def waiting_records(folder: Path, keep: Callable[[Record], bool], most: int | None = None) -> list[Record]:
    """Return the waiting records of a channel's folder that `keep` says yes to, oldest first.

    With `most` the newest of them: older segments are not read once there are so many.
    Raises OSError when the disk refuses.
    """
    if not folder.is_dir():
        return []
    acked = read_acked(folder) or 1
    paths = sorted(path for path in folder.iterdir() if SEGMENT_NAME.match(path.name))
    parts: list[list[Record]] = []
    count = 0
    for path in reversed(paths):
        parts.append([record for record in _records_of(path, acked) if keep(record)])
        count += len(parts[-1])
        if most is not None and count >= most:
            break
    found = [record for part in reversed(parts) for record in part]
    return found if most is None else found[-most:]


def _newest_of_segment(path: Path, acked: int, wanted: set[str]) -> dict[str, DataIngestionFormat]:
    newest: dict[str, DataIngestionFormat] = {}
    for record in _records_of(path, acked):
        if isinstance(record, DataIngestionFormat) and record.symbol in wanted:
            newest[record.symbol] = record
    return newest


def _records_of(path: Path, acked: int) -> Iterator[Record]:
    """Yield the records of a segment from number `acked` on, as far as they are sound."""
    data = path.read_bytes()
    try:
        header = decode_header(data)
    except NewerFormat:
        header = None
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
            if at >= acked:
                yield record
