"""What a starting daemon makes of the segments it finds: takes them in, cuts a torn tail, sets damage aside.

Used by `spool_log` when it is opened. What is no segment of ours is left alone and named; a segment whose
header is damaged is renamed to `.corrupt`; one of a later version is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import structlog

from services.errors import ConfigurationError
from services.pipeline.sequencer import START, Position
from services.storage.spool_ahead import AHEAD_NAMES
from services.storage.spool_format import (
    MAGIC,
    NewerFormat,
    SegmentHeader,
    decode_header,
    decode_records,
    frame_at,
    next_sound_frame,
)
from services.storage.spool_segment import (
    ACKED_NAME,
    SEGMENT_NAME,
    Segment,
    SegmentFile,
    Spans,
    widen_by,
)

_log = structlog.get_logger(__name__)

_HEADER_BYTES = 1 << 17


@dataclass
class Recovered:
    """What was found. `lowest` is the number of the first record there ever was, `last` can be written to."""

    segments: list[Segment] = field(default_factory=list)
    positions: dict[str, Position] = field(default_factory=dict)
    next_number: int = 1
    lowest: int = 1
    last: SegmentFile | None = None
    corrupt: int = 0
    foreign: list[str] = field(default_factory=list)


def recover(folder: Path) -> Recovered:
    """Take in every segment of a folder.

    Raises OSError for a folder that cannot be used, `ConfigurationError` for a segment of a later version.
    """
    return _Recovery(folder).found


def spans_of(segment: Segment) -> Spans:
    """Return of when the records of a segment are, reading it when that is not known."""
    if segment.spans is None:
        spans: Spans = {}
        try:
            data = segment.path.read_bytes()
        except OSError as error:
            _log.error("spool_segment_unreadable", file=segment.path.name, error=str(error))
            return spans
        offset: int | None = segment.frames_at
        while offset is not None and offset < len(data):
            frame = frame_at(data, offset)
            if frame is None:
                offset = next_sound_frame(data, offset + 1)
                continue
            number, _, payload, offset = frame
            widen_by(spans, (found.record for found in decode_records(number, payload)))
        segment.spans = spans
        segment.scanned = True
    return segment.spans


class _Recovery:
    def __init__(self, folder: Path) -> None:
        self.found = found = Recovered()
        named: list[tuple[int, Path]] = []
        for path in sorted(folder.iterdir()):
            match = SEGMENT_NAME.match(path.name)
            if match and path.is_file() and not path.is_symlink():
                named.append((int(match[1]), path))
            elif path.name not in (ACKED_NAME, *AHEAD_NAMES) and path.suffix != ".corrupt":
                found.foreign.append(path.name)
        if found.foreign:
            _log.warning("spool_foreign_files", folder=str(folder), files=found.foreign[:10])
        for number, path in named:
            with path.open("rb") as file:
                data = file.read(_HEADER_BYTES)
            header = self._header(path, number, data)
            if header is None:
                continue
            found.segments.append(Segment(path, number, path.stat().st_size, header.size_bytes, None))
            for exchange, position in header.positions.items():
                self._note(exchange, position)
        if found.segments:
            newest = found.segments[-1]
            if named[-1][1] == newest.path:
                self._open_last(newest)
            else:
                self._scan(newest.path.read_bytes(), newest.frames_at)
        found.lowest = min(
            (number for number, path in named if path.name not in found.foreign), default=found.next_number
        )

    def _header(self, path: Path, number: int, data: bytes) -> SegmentHeader | None:
        try:
            header = decode_header(data)
        except NewerFormat as error:
            raise ConfigurationError(
                f"{path} was written by a later version ({error}): replay it with that version, "
                "or move it away"
            ) from error
        if header is not None and header.first_number == number:
            return header
        if header is None and data and not _was_ours(data):
            self.found.foreign.append(path.name)
            _log.warning("spool_foreign_files", folder=str(path.parent), files=[path.name])
            return None
        # Its numbers must not be given out again.
        self._scan(path.read_bytes(), 0)
        self.found.next_number = max(self.found.next_number, number)
        path.rename(path.with_suffix(".corrupt"))
        self.found.corrupt += 1
        _log.error("spool_segment_corrupt", file=path.name, bytes=len(data))
        return None

    def _open_last(self, segment: Segment) -> None:
        data = segment.path.read_bytes()
        end = self._scan(data, segment.frames_at)
        self.found.next_number = max(self.found.next_number, segment.first)
        self.found.last = SegmentFile.open(segment)
        if end < len(data):
            self.found.last.cut(end)
            _log.warning("spool_tail_cut", file=segment.path.name, bytes=len(data) - end)
        segment.size = end
        # It goes on growing, so its spans have to be known from the start.
        spans_of(segment)

    def _scan(self, data: bytes, offset: int) -> int:
        """Take note of every sound frame from `offset` on; return where the last of them ends."""
        found = self.found
        end = offset
        at: int | None = offset
        while at is not None:
            frame = frame_at(data, at)
            if frame is None:
                at = next_sound_frame(data, at + 1)
                continue
            number, count, payload, at = frame
            end = at
            found.next_number = max(found.next_number, number + count)
            for _, _, record in decode_records(number, payload):
                self._note(record.exchange, (record.position_ms, record.position_seq))
            if at >= len(data):
                break
        return end

    def _note(self, exchange: str, position: Position) -> None:
        positions = self.found.positions
        positions[exchange] = max(position, positions.get(exchange, START))


def _was_ours(data: bytes) -> bool:
    """Tell a damaged segment (most of the magic is there, or sound frames are) from another's file."""
    alike = sum(a == b for a, b in zip(data, MAGIC, strict=False))
    return alike >= min(len(data), len(MAGIC)) - 2 or next_sound_frame(data, 0) is not None
