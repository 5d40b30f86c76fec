"""Looks into the spool's files without touching them, also while a daemon writes there.

Used by the command line. Reads only: cuts nothing, renames nothing, moves no progress.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from services.storage.spool_ahead import AHEAD_NAME, AHEAD_NAMES, decode_ahead
from services.storage.spool_format import (
    NewerFormat,
    decode_header,
    decode_records,
    frame_at,
    next_sound_frame,
)
from services.storage.spool_segment import ACKED_NAME, SEGMENT_NAME, read_acked


class ChannelContents(msgspec.Struct, kw_only=True):
    """What one channel's files hold; times are UTC epoch ms of the oldest and newest waiting record.

    `records` wait for Redis, `done` are written already and not yet removed, `damaged` are lost; `again` were
    confirmed by a Redis that may have forgotten them, and go once more. `corrupt_files` and `foreign_files`
    are left for the operator to look at.
    """

    name: str
    records: int = 0
    again: int = 0
    done: int = 0
    damaged: int = 0
    size_bytes: int = 0
    oldest_ms: int | None = None
    newest_ms: int | None = None
    segments: list[str] = []
    corrupt_files: list[str] = []
    foreign_files: list[str] = []


def inspect_spool(folder: Path) -> list[ChannelContents]:
    """Return the contents of every channel under `folder`, by name; empty where there is no spool."""
    if not folder.is_dir():
        return []
    return [inspect_channel(path) for path in sorted(folder.iterdir()) if path.is_dir()]


def inspect_channel(folder: Path) -> ChannelContents:
    """Return what the files of one channel hold."""
    found = ChannelContents(name=folder.name)
    acked = read_acked(folder) or 1
    expected = acked
    for path in sorted(folder.iterdir()):
        if path.suffix == ".corrupt":
            found.corrupt_files.append(path.name)
        elif SEGMENT_NAME.match(path.name):
            expected = _inspect_segment(path, acked, expected, found)
        elif path.name == AHEAD_NAME:
            _inspect_ahead(path, found)
        elif path.name != ACKED_NAME and path.name not in AHEAD_NAMES:
            found.foreign_files.append(path.name)
    return found


def _inspect_ahead(path: Path, found: ChannelContents) -> None:
    records = decode_ahead(path)
    if records is None:
        found.foreign_files.append(path.name)
    else:
        found.again = len(records)


def _inspect_segment(path: Path, acked: int, expected: int, found: ChannelContents) -> int:
    try:
        data = path.read_bytes()
        header = decode_header(data)
    except FileNotFoundError:
        # A running daemon is done with it.
        return expected
    except NewerFormat:
        header = None
    if header is None:
        found.foreign_files.append(path.name)
        return expected
    found.segments.append(path.name)
    found.size_bytes += len(data)
    offset: int | None = header.size_bytes
    while offset is not None and offset < len(data):
        frame = frame_at(data, offset)
        if frame is None:
            offset = next_sound_frame(data, offset + 1)
            continue
        number, count, payload, offset = frame
        records = [record for at, _, record in decode_records(number, payload) if at >= acked]
        waiting = max(0, min(count, number + count - acked))
        found.done += count - waiting
        if not waiting:
            continue
        found.damaged += (max(0, number - expected) if expected > 1 else 0) + waiting - len(records)
        expected = number + count
        if not records:
            continue
        found.records += len(records)
        found.newest_ms = records[-1].position_ms
        if found.oldest_ms is None:
            found.oldest_ms = records[0].position_ms
    return expected
