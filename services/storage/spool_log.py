"""One writer's log on disk: numbered segments, appended at the end, read and acknowledged in order.

Used by `spool.py` from its one thread, and by the command line. Plain blocking file work; knows nothing
of the event loop or of Redis. Records keep their order and their positions. A torn tail is cut when the
log is opened, damage is skipped and counted, what is no segment of ours is left alone.
"""

from __future__ import annotations

import os
import re
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import structlog

from services.errors import ConfigurationError
from services.market_data.records import Record
from services.pipeline.sequencer import START, Position
from services.storage.spool_format import (
    MAGIC,
    Frame,
    NewerFormat,
    SegmentHeader,
    decode_header,
    decode_records,
    encode_frames,
    encode_header,
    frame_at,
    next_sound_frame,
)

_log = structlog.get_logger(__name__)

SEGMENT_BYTES = 8 << 20
SEGMENT_RECORDS = 1 << 16
"""A segment has no more, so that the last one is scanned in a moment at the next start."""
SYNC_EVERY_S = 0.5
SEGMENT_NAME = re.compile(r"^(\d{20})\.seg$")
ACKED_NAME = "acked"
_READ_BYTES = 1 << 20
_HEADER_BYTES = 1 << 17


@dataclass
class Segment:
    """One file: the number of its first record, its size in bytes, where its frames begin."""

    path: Path
    first: int
    size: int
    frames_at: int


@dataclass
class Appended:
    """What an append did: records taken, too large to take, and unread ones dropped to make room."""

    taken: int = 0
    too_large: int = 0
    dropped: int = 0
    error: OSError | None = None


@dataclass
class ReadOut:
    """Records read, in order, and how many between them were damaged and are lost."""

    frames: list[Frame] = field(default_factory=list)
    damaged: int = 0


class SpoolLog:
    """A log in a folder of its own. Not to be used by two threads at once.

    Numbers: records before `acked` are done with; `next_read` is the next to be handed out,
    `next_number` the next to be written. `positions` are the newest of each exchange.
    """

    def __init__(self, folder: Path, *, limit_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.folder = folder
        self._limit_bytes = limit_bytes
        self._segment_bytes = max(1, min(segment_bytes, limit_bytes // 16))
        self._segments: list[Segment] = []
        self._file: int | None = None
        self._read_offset = 0
        self._read_segment: Segment | None = None
        self._synced_s = 0.0
        self._dirty = False
        self._acked_on_disk = 0
        self.positions: dict[str, Position] = {}
        self.acked = self.next_read = self.next_number = 1
        self.leftover_until = 1
        self.corrupt_segments = 0
        self.foreign: list[str] = []

    # ---- opening --------------------------------------------------------------------------------

    def open(self) -> None:
        """Find the segments, cut a torn tail, and stand before the first record not acknowledged.

        Raises `ConfigurationError` for a folder that cannot be used or segments of a later version.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            acked = self._read_acked()
            lowest = self._find_segments()
        except OSError as error:
            raise ConfigurationError(
                f"the spool {self.folder} cannot be used: {error.strerror}. Mend its permissions."
            ) from error
        self.next_number = max(self.next_number, acked or 1)
        # Without a note of the progress all there is counts as not done: sending it again is harmless.
        self.acked = acked if acked is not None else min(lowest, self.next_number)
        self._acked_on_disk = acked or 0
        self.next_read = self.acked
        self.leftover_until = self.next_number
        self._remove_acked()

    def _read_acked(self) -> int | None:
        try:
            data = (self.folder / ACKED_NAME).read_bytes()
        except FileNotFoundError:
            return None
        if len(data) == 12 and crc32(data[:8]) == int.from_bytes(data[8:], "little"):
            return int.from_bytes(data[:8], "little")
        _log.warning("spool_progress_damaged", folder=str(self.folder))
        return None

    def _find_segments(self) -> int:
        """Take in every segment there is; return the number of the first record there ever was."""
        found: list[tuple[int, Path]] = []
        for path in sorted(self.folder.iterdir()):
            match = SEGMENT_NAME.match(path.name)
            if match and path.is_file() and not path.is_symlink():
                found.append((int(match[1]), path))
            elif path.name != ACKED_NAME and path.suffix != ".corrupt":
                self.foreign.append(path.name)
        if self.foreign:
            _log.warning("spool_foreign_files", folder=str(self.folder), files=self.foreign[:10])
        for number, path in found:
            with path.open("rb") as file:
                data = file.read(_HEADER_BYTES)
            header = self._header(path, number, data)
            if header is None:
                continue
            self._segments.append(Segment(path, number, path.stat().st_size, header.size_bytes))
            self._note_positions(header.positions)
        if self._segments and found[-1][1] == self._segments[-1].path:
            self._open_last(self._segments[-1])
        elif self._segments:
            self._scan(self._segments[-1].path.read_bytes(), self._segments[-1].frames_at)
        ours = [number for number, path in found if path.name not in self.foreign]
        return min(ours, default=self.next_number)

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
        if header is None and data and not self._was_ours(data):
            self.foreign.append(path.name)
            _log.warning("spool_foreign_files", folder=str(self.folder), files=[path.name])
            return None
        # Its numbers must not be given out again.
        self._scan(path.read_bytes(), 0)
        self.next_number = max(self.next_number, number)
        path.rename(path.with_suffix(".corrupt"))
        self.corrupt_segments += 1
        _log.error("spool_segment_corrupt", file=path.name, bytes=len(data))
        return None

    @staticmethod
    def _was_ours(data: bytes) -> bool:
        """Tell a damaged segment (most of the magic is there, or sound frames are) from another's file."""
        alike = sum(a == b for a, b in zip(data, MAGIC, strict=False))
        return alike >= min(len(data), len(MAGIC)) - 2 or next_sound_frame(data, 0) is not None

    def _open_last(self, segment: Segment) -> None:
        data = segment.path.read_bytes()
        end = self._scan(data, segment.frames_at)
        self.next_number = max(self.next_number, segment.first)
        self._file = os.open(segment.path, os.O_RDWR | os.O_CLOEXEC)
        if end < len(data):
            os.ftruncate(self._file, end)
            _log.warning("spool_tail_cut", file=segment.path.name, bytes=len(data) - end)
        segment.size = end

    def _scan(self, data: bytes, offset: int) -> int:
        """Take note of every sound frame from `offset` on; return where the last of them ends."""
        end = offset
        at: int | None = offset
        while at is not None:
            frame = frame_at(data, at)
            if frame is None:
                at = next_sound_frame(data, at + 1)
                continue
            number, count, payload, at = frame
            end = at
            self.next_number = max(self.next_number, number + count)
            for _, _, record in decode_records(number, payload):
                self._note_position(record)
            if at >= len(data):
                break
        return end

    # ---- writing --------------------------------------------------------------------------------

    def append(self, records: Sequence[tuple[Record, int]]) -> Appended:
        """Write `(record, flags)` pairs at the end, as many as the disk takes; raises for no disk."""
        done = Appended()
        try:
            index = 0
            while index < len(records):
                segment = self._room(done)
                room = max(1, self._segment_bytes - segment.size)
                index += self._append_to(segment, records, index, room, done)
        except OSError as error:
            done.error = error
        self._dirty = True
        return done

    def _append_to(
        self,
        segment: Segment,
        records: Sequence[tuple[Record, int]],
        start: int,
        room: int,
        done: Appended,
    ) -> int:
        """Write frames from `start` on until the segment is full; return how many records were dealt with."""
        chunk: list[tuple[bytes, list[Record], int]] = []
        size = 0
        for entry in encode_frames(records[start:], self.next_number):
            chunk.append(entry)
            size += len(entry[0])
            if size >= room:
                break
        written = self._write(segment, b"".join(frame for frame, _, _ in chunk))
        kept_bytes = dealt = 0
        for frame, kept, too_large in chunk:
            if kept_bytes + len(frame) > written:
                self._truncate(segment, segment.size + kept_bytes)
                raise self._write_error or OSError("short write")
            kept_bytes += len(frame)
            for record in kept:
                self._note_position(record)
            self.next_number += len(kept)
            done.taken += len(kept)
            done.too_large += too_large
            dealt += len(kept) + too_large
        segment.size += kept_bytes
        return dealt

    _write_error: OSError | None = None

    def _write(self, segment: Segment, data: bytes) -> int:
        """Write all of `data` at the end of the segment; return how much the disk took."""
        assert self._file is not None  # noqa: S101 - a segment to write to is open
        self._write_error = None
        done = 0
        view = memoryview(data)
        try:
            while done < len(data):
                count = os.pwrite(self._file, view[done:], segment.size + done)
                if count == 0:
                    break
                done += count
        except OSError as error:
            self._write_error = error
        return done

    def _truncate(self, segment: Segment, size: int) -> None:
        assert self._file is not None  # noqa: S101 - called for the segment just written to
        # Whether or not the rest can be cut off: the next frame is written over it.
        segment.size = size
        os.ftruncate(self._file, size)

    def _room(self, done: Appended) -> Segment:
        """Return a segment to write to, making one and dropping the oldest where needed."""
        if self._file is not None:
            last = self._segments[-1]
            if last.size < self._segment_bytes and self.next_number - last.first < SEGMENT_RECORDS:
                return last
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._file = None
        while self._segments and self.size_bytes + self._segment_bytes > self._limit_bytes:
            done.dropped += self._drop_oldest()
        path = self.folder / f"{self.next_number:020d}.seg"
        header = encode_header(self.next_number, self.positions)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.pwrite(file, header, 0) != len(header):
                raise OSError(28, "no space for a segment's header")
        except OSError:
            os.close(file)
            path.unlink()
            raise
        self._file = file
        segment = Segment(path, self.next_number, len(header), len(header))
        self._segments.append(segment)
        self._sync_folder()
        return segment

    def _drop_oldest(self) -> int:
        """Remove the oldest segment; return how many of its records nobody had read."""
        segment = self._segments.pop(0)
        end = self._segments[0].first if self._segments else self.next_number
        lost = max(0, end - max(self.next_read, segment.first))
        if self._read_segment is segment:
            self._read_segment = None
        segment.path.unlink(missing_ok=True)
        self.next_read = max(self.next_read, end)
        self.acked = max(self.acked, min(end, self.next_read))
        return lost

    # ---- reading --------------------------------------------------------------------------------

    def read(self, count: int) -> ReadOut:
        """Return the next records, about `count` at most, and move on behind them."""
        out = ReadOut()
        while len(out.frames) < count and self.next_read < self.next_number:
            segment = self._segment_to_read()
            if segment is None:
                out.damaged += self.next_number - self.next_read
                self.next_read = self.next_number
                break
            self._read_from(segment, count, out)
        return out

    def _segment_to_read(self) -> Segment | None:
        index = bisect_right([segment.first for segment in self._segments], self.next_read) - 1
        if index < 0:
            # What lay before the oldest segment is gone.
            return self._segments[0] if self._segments else None
        return self._segments[index]

    def _read_from(self, segment: Segment, count: int, out: ReadOut) -> None:
        if segment is not self._read_segment:
            self._read_segment, self._read_offset = segment, segment.frames_at
        try:
            with segment.path.open("rb") as file:
                file.seek(self._read_offset)
                data = file.read(min(_READ_BYTES, segment.size - self._read_offset))
        except OSError as error:
            _log.error("spool_segment_unreadable", file=segment.path.name, error=str(error))
            data = b""
        offset = 0
        complete = self._read_offset + len(data) >= segment.size
        while len(out.frames) < count:
            frame = frame_at(data, offset)
            if frame is None:
                following = next_sound_frame(data, offset + 1)
                if following is None:
                    break
                offset = following
                continue
            number, held, payload, offset = frame
            if number + held <= self.next_read:
                continue
            records = [frame for frame in decode_records(number, payload) if frame.number >= self.next_read]
            out.damaged += number + held - self.next_read - len(records)
            self.next_read = number + held
            out.frames += records
        else:
            self._read_offset += offset
            return
        if complete or not data:
            self._end_of(segment, out)
        else:
            # Keep what may be the beginning of a frame; a stretch without any is skipped.
            self._read_offset += offset if offset else len(data)

    def _end_of(self, segment: Segment, out: ReadOut) -> None:
        """Nothing sound is left in the segment: what is missing up to its end is damaged."""
        index = self._segments.index(segment)
        is_last = index + 1 == len(self._segments)
        end = self.next_number if is_last else self._segments[index + 1].first
        out.damaged += max(0, end - self.next_read)
        self.next_read = max(self.next_read, end)
        self._read_segment, self._read_offset = segment, segment.size

    # ---- progress -------------------------------------------------------------------------------

    def ack(self, number: int) -> None:
        """Note that every record before `number` is done with; on disk at the next `sync`."""
        self.acked = max(self.acked, min(number, self.next_read))

    def sync(self, *, now: bool = False) -> None:
        """Bring appended records and progress to the disk, at most every half second unless `now`.

        Raises OSError when the disk refuses.
        """
        if not now and time.monotonic() - self._synced_s < SYNC_EVERY_S:
            return
        if self._dirty and self._file is not None:
            os.fsync(self._file)
        self._dirty = False
        self._synced_s = time.monotonic()
        if self.acked != self._acked_on_disk:
            self._write_acked()
            self._remove_acked()

    def _write_acked(self) -> None:
        number = self.acked.to_bytes(8, "little")
        file = os.open(self.folder / ACKED_NAME, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(file, number + crc32(number).to_bytes(4, "little"), 0)
            os.fsync(file)
        finally:
            os.close(file)
        self._acked_on_disk = self.acked

    def _remove_acked(self) -> None:
        while self._segments:
            is_last = len(self._segments) == 1
            end = self.next_number if is_last else self._segments[1].first
            if end > self._acked_on_disk or (is_last and self._acked_on_disk < self.next_number):
                return
            segment = self._segments.pop(0)
            if is_last and self._file is not None:
                os.close(self._file)
                self._file = None
            if self._read_segment is segment:
                self._read_segment = None
            segment.path.unlink(missing_ok=True)

    def _sync_folder(self) -> None:
        folder = os.open(self.folder, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def drop_all(self) -> int:
        """Remove every record; return how many were not done with."""
        count = self.pending
        self.next_read = self.acked = self.next_number
        if self.acked != self._acked_on_disk:
            self._write_acked()
        self._remove_acked()
        return count

    def close(self) -> None:
        """Let go of the files; what is to be on the disk is brought there by `sync` before."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    # ---- what there is --------------------------------------------------------------------------

    @property
    def pending(self) -> int:
        """Records that are not done with."""
        return self.next_number - self.acked

    @property
    def unread(self) -> int:
        """Records that were not handed out yet."""
        return self.next_number - self.next_read

    @property
    def size_bytes(self) -> int:
        """Bytes of all segments."""
        return sum(segment.size for segment in self._segments)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The segments, oldest first."""
        return tuple(self._segments)

    def _note_position(self, record: Record) -> None:
        position = (record.position_ms, record.position_seq)
        if position > self.positions.get(record.exchange, START):
            self.positions[record.exchange] = position

    def _note_positions(self, positions: dict[str, Position]) -> None:
        for exchange, position in positions.items():
            self.positions[exchange] = max(position, self.positions.get(exchange, START))
