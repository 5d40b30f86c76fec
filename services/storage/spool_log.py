"""One writer's log on disk: numbered segments, appended at the end, read and acknowledged in order.

    append --> segments, oldest first --> read --> ack --> the segment is removed

Used by `spool.py` from its one thread, and by the command line. Plain blocking file work; knows nothing
of the event loop or of Redis. Records keep their order and their positions. Beyond the limit the oldest
segment is dropped; of what is lost, by that or by damage, it says how much and of when it was.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.errors import ConfigurationError
from services.market_data.records import Record
from services.pipeline.sequencer import START, Position
from services.storage.spool_format import encode_frames
from services.storage.spool_reader import ReadOut, SpoolReader
from services.storage.spool_recovery import recover
from services.storage.spool_segment import (
    Segment,
    SegmentFile,
    Spans,
    read_acked,
    widen,
    widen_by,
    write_acked,
)

SEGMENT_BYTES = 8 << 20
SEGMENT_RECORDS = 1 << 16
"""A segment has no more, so that the last one is scanned in a moment at the next start."""
SYNC_EVERY_S = 0.5


@dataclass
class Appended:
    """What an append did: records taken, too large to take, and unread ones dropped to make room.

    `lost` says of when the dropped ones were.
    """

    taken: int = 0
    too_large: list[Record] = field(default_factory=list)
    dropped: int = 0
    error: OSError | None = None
    lost: Spans = field(default_factory=dict)


class SpoolLog:
    """A log in a folder of its own. Not to be used by two threads at once.

    Numbers: records before `acked` are done with, `next_number` is the next to be written, those before
    `leftover_until` are of an earlier run. `positions` are the newest of each exchange.
    """

    def __init__(self, folder: Path, *, limit_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        self._segment_bytes = max(1, min(segment_bytes, limit_bytes // 16))
        self._segments: list[Segment] = []
        self._reader = SpoolReader(self._segments)
        self._file: SegmentFile | None = None
        self._synced_s = 0.0
        self._dirty = False
        self._acked_on_disk = 0
        self.positions: dict[str, Position] = {}
        self.acked = self.next_number = self.leftover_until = 1
        self.corrupt_segments = 0
        self.foreign: list[str] = []
        self.is_open = False

    def open(self) -> None:
        """Find the segments, cut a torn tail, and stand before the first record not acknowledged.

        Raises `ConfigurationError` for a folder that cannot be used or segments of a later version.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            acked = read_acked(self.folder)
            found = recover(self.folder)
        except OSError as error:
            raise ConfigurationError(
                f"the spool {self.folder} cannot be used: {error.strerror}. Mend its permissions."
            ) from error
        self._segments[:] = found.segments
        self._file = found.last
        self.positions = found.positions
        self.corrupt_segments = found.corrupt
        self.foreign = found.foreign
        self.next_number = max(found.next_number, acked or 1)
        # Without a note of the progress all there is counts as not done: sending it again is harmless.
        self.acked = acked if acked is not None else min(found.lowest, self.next_number)
        self._acked_on_disk = acked or 0
        self._reader.next_number = self.acked
        self.leftover_until = self.next_number
        self.is_open = True
        self._remove_acked()

    # ---- writing --------------------------------------------------------------------------------

    def append(self, records: Sequence[tuple[Record, int]], *, free_bytes: int = 0) -> Appended:
        """Write `(record, flags)` pairs at the end, as many as the disk takes; raises for no disk.

        Takes none while the disk has less than `free_bytes` to spare.
        """
        done = Appended()
        try:
            if free_bytes:
                self._check_free(free_bytes)
            index = 0
            while index < len(records):
                file = self._room(done)
                index += self._append_to(file, records, index, done)
        except OSError as error:
            done.error = error
        self._dirty = True
        return done

    def _check_free(self, wanted_bytes: int) -> None:
        disk = os.statvfs(self.folder)
        free_bytes = disk.f_bavail * disk.f_frsize
        # A small disk need not have more than a tenth to spare.
        if free_bytes < min(wanted_bytes, disk.f_blocks * disk.f_frsize // 10):
            raise OSError(errno.ENOSPC, f"only {free_bytes >> 10} KiB are free")

    def _append_to(
        self, file: SegmentFile, records: Sequence[tuple[Record, int]], start: int, done: Appended
    ) -> int:
        """Write frames from `start` on until the segment is full; return how many records were dealt with."""
        segment = file.segment
        room = max(1, self._segment_bytes - segment.size)
        chunk: list[tuple[bytes, list[Record], list[Record]]] = []
        size = 0
        for entry in encode_frames(records[start:], self.next_number):
            chunk.append(entry)
            size += len(entry[0])
            if size >= room:
                break
        written, error = file.write(b"".join(frame for frame, _, _ in chunk))
        kept_bytes = dealt = 0
        for frame, kept, too_large in chunk:
            if kept_bytes + len(frame) > written:
                file.cut(segment.size + kept_bytes)
                raise error or OSError("short write")
            kept_bytes += len(frame)
            self._note_written(segment, kept)
            done.taken += len(kept)
            done.too_large += too_large
            dealt += len(kept) + len(too_large)
        segment.size += kept_bytes
        return dealt

    def _note_written(self, segment: Segment, records: list[Record]) -> None:
        self.next_number += len(records)
        if segment.spans is not None:
            widen_by(segment.spans, records)
        for record in records:
            position = (record.position_ms, record.position_seq)
            if position > self.positions.get(record.exchange, START):
                self.positions[record.exchange] = position

    def _room(self, done: Appended) -> SegmentFile:
        """Return a segment to write to, making one and dropping the oldest where needed."""
        if self._file is not None:
            last = self._file.segment
            if last.size < self._segment_bytes and self.next_number - last.first < SEGMENT_RECORDS:
                return self._file
            self._file.sync()
            self._file.close()
            self._file = None
        while self._segments and self.size_bytes + self._segment_bytes > self._limit_bytes:
            self._drop_oldest(done)
        self._file = SegmentFile.create(self.folder, self.next_number, self.positions)
        self._segments.append(self._file.segment)
        return self._file

    def _drop_oldest(self, done: Appended) -> None:
        """Remove the oldest segment; note its records that nobody had read as dropped."""
        segment = self._segments[0]
        end = self._segments[1].first if len(self._segments) > 1 else self.next_number
        dropped = max(0, end - max(self._reader.next_number, segment.first))
        if dropped:
            done.dropped += dropped
            for exchange, (first_ms, last_ms) in self._reader.spans_ahead(segment).items():
                widen(done.lost, exchange, first_ms, last_ms)
        del self._segments[0]
        segment.path.unlink(missing_ok=True)
        self._reader.gone(segment, end)
        self.acked = max(self.acked, min(end, self._reader.next_number))

    # ---- reading --------------------------------------------------------------------------------

    def read(self, count: int) -> ReadOut:
        """Return the next records, about `count` at most, and move on behind them."""
        out = self._reader.read(count, self.next_number)
        if out.damaged and not out.lost:
            # Nothing near them can be read: some time up to the newest there was.
            out.lost = {exchange: (at_ms, at_ms) for exchange, (at_ms, _) in self.positions.items()}
        return out

    # ---- progress -------------------------------------------------------------------------------

    def ack(self, number: int) -> None:
        """Note that every record before `number` is done with; on disk at the next `sync`."""
        self.acked = max(self.acked, min(number, self._reader.next_number))

    def sync(self, *, now: bool = False) -> None:
        """Bring appended records and progress to the disk, at most every half second unless `now`.

        Raises OSError when the disk refuses.
        """
        if not now and time.monotonic() - self._synced_s < SYNC_EVERY_S:
            return
        if self._dirty and self._file is not None:
            self._file.sync()
        self._dirty = False
        self._synced_s = time.monotonic()
        self._sync_acked()

    @property
    def unsynced(self) -> bool:
        """Whether `sync` has anything to do; true as well where a damaged end was passed by."""
        return self._dirty or self.acked != self._acked_on_disk

    def _sync_acked(self) -> None:
        if self.acked != self._acked_on_disk:
            write_acked(self.folder, self.acked)
            self._acked_on_disk = self.acked
            self._remove_acked()

    def _remove_acked(self) -> None:
        while self._segments:
            is_last = len(self._segments) == 1
            end = self.next_number if is_last else self._segments[1].first
            if end > self._acked_on_disk or (is_last and self._acked_on_disk < self.next_number):
                return
            segment = self._segments.pop(0)
            if is_last:
                self.close()
            self._reader.gone(segment, 0)
            segment.path.unlink(missing_ok=True)

    def drop_all(self) -> int:
        """Remove every record; return how many were not done with."""
        count = self.pending
        self.acked = self._reader.next_number = self.next_number
        self._sync_acked()
        return count

    def close(self) -> None:
        """Let go of the files; what is to be on the disk is brought there by `sync` before."""
        self.is_open = False
        if self._file is not None:
            self._file.close()
            self._file = None

    # ---- what there is --------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Records that are not done with."""
        return self.next_number - self.acked

    @property
    def unread(self) -> int:
        """Records that were not handed out yet."""
        return self.next_number - self._reader.next_number

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self._segments)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments, oldest first."""
        return tuple(self._segments)
