"""Reads the spool's segments in order, once; skips what is damaged and says how much, and of when, that was.

Used by `spool_log`, which owns the list of segments and changes it meanwhile. Plain blocking file work.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field

import structlog

from services.storage.spool_format import Frame, decode_records, frame_at, next_sound_frame
from services.storage.spool_recovery import spans_of
from services.storage.spool_segment import Segment, Spans, widen

_log = structlog.get_logger(__name__)

_READ_BYTES = 1 << 20
_UNSURE_MS = 60_000
"""By so much more a loss is declared where no sound record shows when it began or ended."""


@dataclass
class ReadOut:
    """Records read, in order; how many between them were damaged and are lost, and of when those were."""

    frames: list[Frame] = field(default_factory=list)
    damaged: int = 0
    lost: Spans = field(default_factory=dict)


class SpoolReader:
    """A place in a list of segments; `next_number` is the number of the next record to hand out."""

    def __init__(self, segments: list[Segment]) -> None:
        self.next_number = 1
        self._segments = segments
        self._segment: Segment | None = None
        self._offset = 0
        self._read_ms: dict[str, int] = {}

    def read(self, count: int, end: int) -> ReadOut:
        """Return the next records, about `count` at most and all before the number `end`, and move on."""
        out = ReadOut()
        while len(out.frames) < count and self.next_number < end:
            segment = self._segment_to_read()
            if segment is None:
                out.damaged += end - self.next_number
                self.next_number = end
                break
            self._read_from(segment, count, end, out)
        return out

    def spans_ahead(self, segment: Segment) -> Spans:
        """Return of when the records of `segment` are that were not handed out yet."""
        spans = spans_of(segment)
        if segment.first >= self.next_number:
            return spans
        # What was handed out is the older part.
        return {
            exchange: (max(first_ms, self._read_ms.get(exchange, first_ms)), last_ms)
            for exchange, (first_ms, last_ms) in spans.items()
            if last_ms >= self._read_ms.get(exchange, first_ms)
        }

    def gone(self, segment: Segment, end: int) -> None:
        """Take note that a segment, which held the records before `end`, is no more."""
        if self._segment is segment:
            self._segment = None
        self.next_number = max(self.next_number, end)

    def _segment_to_read(self) -> Segment | None:
        index = bisect_right([segment.first for segment in self._segments], self.next_number) - 1
        if index < 0:
            # What lay before the oldest segment is gone.
            return self._segments[0] if self._segments else None
        return self._segments[index]

    def _read_from(self, segment: Segment, count: int, end: int, out: ReadOut) -> None:
        if segment is not self._segment:
            self._segment, self._offset = segment, segment.frames_at
        try:
            with segment.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read(min(_READ_BYTES, segment.size - self._offset))
        except OSError as error:
            _log.error("spool_segment_unreadable", file=segment.path.name, error=str(error))
            data = b""
        offset = 0
        complete = self._offset + len(data) >= segment.size
        while len(out.frames) < count:
            frame = frame_at(data, offset)
            if frame is None:
                following = next_sound_frame(data, offset + 1)
                if following is None:
                    break
                offset = following
                continue
            number, held, payload, offset = frame
            if number + held <= self.next_number:
                continue
            records = [found for found in decode_records(number, payload) if found.number >= self.next_number]
            self._note_damage(number + held - self.next_number - len(records), segment, out, records)
            self.next_number = number + held
            out.frames += records
            for found in records:
                self._read_ms[found.record.exchange] = found.record.position_ms
        else:
            self._offset += offset
            return
        if complete or not data:
            self._end_of(segment, end, out)
        else:
            # Keep what may be the beginning of a frame; a stretch without any is skipped.
            self._offset += offset if offset else len(data)

    def _end_of(self, segment: Segment, end: int, out: ReadOut) -> None:
        """Nothing sound is left in the segment: what is missing up to its end is damaged."""
        index = self._segments.index(segment)
        if index + 1 < len(self._segments):
            end = self._segments[index + 1].first
        self._note_damage(end - self.next_number, segment, out, [])
        self.next_number = max(self.next_number, end)
        self._segment, self._offset = segment, segment.size

    def _note_damage(self, count: int, segment: Segment, out: ReadOut, behind: list[Frame]) -> None:
        """Count records that cannot be read; they are older than those `behind` them."""
        if count <= 0:
            return
        out.damaged += count
        ahead = self.spans_ahead(segment)
        if not ahead:
            ahead = {exchange: (at_ms, at_ms) for exchange, at_ms in self._read_ms.items()}
        for exchange, (first_ms, last_ms) in ahead.items():
            if segment.scanned and exchange not in self._read_ms:
                first_ms -= _UNSURE_MS
            until_ms = next(
                (found.record.position_ms for found in behind if found.record.exchange == exchange),
                last_ms + _UNSURE_MS if segment.scanned else last_ms,
            )
            widen(out.lost, exchange, first_ms, max(first_ms, until_ms))
