"""One segment of the spool: what is known of it, and the file while it is written to.

Used by `spool_log` and what belongs to it. Plain blocking file work. A write that the disk cut short is
taken back to the last whole frame, so a segment never has half a record in its middle.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import structlog

from services.market_data.records import ControlRecord, Record
from services.pipeline.sequencer import Position
from services.storage.spool_format import encode_header

_log = structlog.get_logger(__name__)

SEGMENT_NAME = re.compile(r"^(\d{20})\.seg$")
ACKED_NAME = "acked"

Spans = dict[str, tuple[int, int]]
"""Per exchange, the time of the oldest and of the newest record meant, in UTC epoch ms."""


@dataclass
class Segment:
    """One file: the number of its first record, its size in bytes, where its frames begin.

    `spans` says of when its records are; None until somebody needs to know, for one of an earlier run, and
    then `scanned`: what of it is damaged is not in them.
    """

    path: Path
    first: int
    size: int
    frames_at: int
    spans: Spans | None = field(default_factory=dict)
    scanned: bool = False


def widen(spans: Spans, exchange: str, first_ms: int, last_ms: int) -> None:
    """Make the span of `exchange` include the time from `first_ms` to `last_ms`."""
    known = spans.get(exchange)
    if known is not None:
        first_ms, last_ms = min(known[0], first_ms), max(known[1], last_ms)
    spans[exchange] = first_ms, last_ms


def widen_by(spans: Spans, records: Iterable[Record]) -> None:
    """Make spans include when these records were accepted, and what the gaps among them declare."""
    for record in records:
        first_ms = last_ms = record.position_ms
        if isinstance(record, ControlRecord) and record.type == "gap":
            since_ms = record.fields.get("from", first_ms)
            first_ms = min(first_ms, since_ms) if isinstance(since_ms, int) else first_ms
        widen(spans, record.exchange, first_ms, last_ms)


class SegmentFile:
    """The segment that is written to, open. Every method raises OSError when the disk refuses."""

    def __init__(self, segment: Segment, file: int) -> None:
        self.segment = segment
        self._file = file

    @classmethod
    def create(cls, folder: Path, first_number: int, positions: Mapping[str, Position]) -> SegmentFile:
        """Make the file of a new segment, with its header."""
        path = folder / f"{first_number:020d}.seg"
        header = encode_header(first_number, positions)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.pwrite(file, header, 0) != len(header):
                raise OSError(errno.ENOSPC, "no space for a segment's header")
        except OSError:
            os.close(file)
            path.unlink()
            raise
        sync_folder(folder)
        return cls(Segment(path, first_number, len(header), len(header)), file)

    @classmethod
    def open(cls, segment: Segment) -> SegmentFile:
        """Open an existing segment to go on writing."""
        return cls(segment, os.open(segment.path, os.O_RDWR | os.O_CLOEXEC))

    def write(self, data: bytes) -> tuple[int, OSError | None]:
        """Write `data` behind the frames there are; return how much the disk took, and why no more."""
        done = 0
        view = memoryview(data)
        try:
            while done < len(data):
                count = os.pwrite(self._file, view[done:], self.segment.size + done)
                if count == 0:
                    return done, OSError(errno.ENOSPC, "short write")
                done += count
        except OSError as error:
            return done, error
        return done, None

    def cut(self, size: int) -> None:
        """End the segment at `size` bytes."""
        # Whether or not the rest can be cut off: the next frame is written over it.
        self.segment.size = size
        os.ftruncate(self._file, size)

    def sync(self) -> None:
        """Bring everything written to the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def read_acked(folder: Path) -> int | None:
    """Return the number of the first record not done with, None where nothing sound says so."""
    try:
        data = (folder / ACKED_NAME).read_bytes()
    except FileNotFoundError:
        return None
    if len(data) == 12 and crc32(data[:8]) == int.from_bytes(data[8:], "little"):
        return int.from_bytes(data[:8], "little")
    _log.warning("spool_progress_damaged", folder=str(folder))
    return None


def write_acked(folder: Path, acked: int) -> None:
    """Note on the disk that every record before `acked` is done with. Raises OSError."""
    number = acked.to_bytes(8, "little")
    file = os.open(folder / ACKED_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        os.pwrite(file, number + crc32(number).to_bytes(4, "little"), 0)
        os.fsync(file)
    finally:
        os.close(file)


def sync_folder(folder: Path) -> None:
    """Bring the names of new files to the disk."""
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
