"""Recordings on disk: numbered files of compressed blocks, each with a checksum, within a size bound.

    frames-000001.mdr    block | block | ...
    block                magic 4 | flags u8 | compressed u32 | plain u32 | crc32 u32 | zstd bytes

Each file begins with a context, so it can be read without those before it: beyond the bound the oldest
file goes. A tail that is cut off (the recorder was killed) ends the reading of that file; a damaged
block is skipped, and the next one is found by its magic. Both are counted, never hidden.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import zstandard

from services.errors import ConfigurationError

FILE_MIB = 64
BLOCK_BYTES = 256 << 10
"""A block is written when so much is waiting, or after a second."""
MOST_PLAIN_BYTES = 64 << 20
_MAGIC = b"mdR1"
_HEAD = struct.Struct("<4sBIII")
_NAME = re.compile(r"frames-(\d{6,})\.mdr")
_HAS_CONTEXT = 1


class Reading(msgspec.Struct):
    """What was met while reading: whole blocks, damaged ones, and bytes of tails that were cut off."""

    files: int = 0
    blocks: int = 0
    damaged_blocks: int = 0
    torn_bytes: int = 0
    read_bytes: int = 0


def recording_files(folder: Path) -> list[Path]:
    """Return the files of a recording, oldest first; none where there is no recording."""
    if not folder.is_dir():
        return []
    found = [(int(match[1]), path) for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


class RecordingWriter:
    """Writes the blocks of one recording.

    `file_bytes` is when a file is full, `limit_bytes` the bound of all files together.

    Raises `ConfigurationError` when the folder holds a recording already or cannot be used; later
    `OSError` when the disk takes no more.
    """

    def __init__(self, folder: Path, *, limit_bytes: int, file_bytes: int = FILE_MIB << 20) -> None:
        self.folder = folder
        self.limit_bytes = limit_bytes
        self.file_bytes = min(file_bytes, limit_bytes // 2)
        self.written_bytes = 0
        self.files_dropped = 0
        self._compressor = zstandard.ZstdCompressor(level=3)
        self._waiting: list[bytes] = []
        self.waiting_bytes = 0
        self._file: int | None = None
        self._number = 0
        self._in_file_bytes = 0
        self._kept: list[tuple[Path, int]] = []

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(f"{self.folder} cannot be made: {error.strerror}") from error
        if recording_files(self.folder):
            raise ConfigurationError(
                f"{self.folder} holds a recording already: choose another folder, or delete that one"
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            try:
                if kind is None:
                    self.sync()
            finally:
                os.close(self._file)
                self._file = None

    @property
    def file_is_full(self) -> bool:
        """Whether the next context should begin a file."""
        return self._in_file_bytes + self.waiting_bytes // 4 >= self.file_bytes

    def add(self, entries: bytes) -> None:
        """Take whole entries; they are on disk after `flush`, or when enough are waiting."""
        self._waiting.append(entries)
        self.waiting_bytes += len(entries)
        if self.waiting_bytes >= BLOCK_BYTES:
            self.flush()

    def add_context(self, entries: bytes) -> None:
        """Take entries of which the first is a context; they begin a file when one is due."""
        self.flush()
        if self._file is None or self.file_is_full:
            self._next_file()
        self._write(entries, _HAS_CONTEXT)

    def flush(self) -> None:
        """Write what is waiting as one block."""
        if self._waiting:
            entries = b"".join(self._waiting)
            self._waiting.clear()
            self.waiting_bytes = 0
            self._write(entries, 0)

    def sync(self) -> None:
        """Write what is waiting, and wait until the disk has it."""
        self.flush()
        if self._file is not None:
            os.fsync(self._file)

    def _write(self, entries: bytes, flags: int) -> None:
        if self._file is None:
            raise ValueError("a recording begins with a context")
        packed = self._compressor.compress(entries)
        head = _HEAD.pack(_MAGIC, flags, len(packed), len(entries), 0)
        checked = _HEAD.pack(_MAGIC, flags, len(packed), len(entries), zlib.crc32(packed, zlib.crc32(head)))
        block = memoryview(checked + packed)
        while block:
            block = block[os.write(self._file, block) :]
        size = _HEAD.size + len(packed)
        self.written_bytes += size
        self._in_file_bytes += size
        self._make_room()

    def _next_file(self) -> None:
        if self._file is not None:
            os.fsync(self._file)
            os.close(self._file)
            self._kept.append((self._path(), self._in_file_bytes))
        self._number += 1
        self._in_file_bytes = 0
        self._file = os.open(self._path(), os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def _path(self) -> Path:
        return self.folder / f"frames-{self._number:06d}.mdr"

    def _make_room(self) -> None:
        while self._kept and sum(size for _, size in self._kept) + self._in_file_bytes > self.limit_bytes:
            path, _ = self._kept.pop(0)
            path.unlink(missing_ok=True)
            self.files_dropped += 1


def read_blocks(folder: Path, reading: Reading) -> Iterator[bytes]:
    """Yield the entries of each block, in order; what cannot be read is counted in `reading`.

    A block that was not written whole, with everything behind it in its file missing, is a torn tail.
    Raises `ConfigurationError` when there is no recording, or a file is none of ours.
    """
    files = recording_files(folder)
    if not files:
        raise ConfigurationError(f"there is no recording in {folder}: make one with python main.py record")
    for path in files:
        reading.files += 1
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
        if data and not data.startswith(_MAGIC[: len(data)]) and data.find(_MAGIC) < 0:
            raise ConfigurationError(f"{path} is no recording of ours: take it out of the folder")
        yield from _blocks(data, reading)


def _blocks(data: bytes, reading: Reading) -> Iterator[bytes]:
    decompressor = zstandard.ZstdDecompressor()
    offset = 0
    while offset < len(data):
        entries = _block_at(data, offset, decompressor)
        if entries is not None:
            plain, size = entries
            reading.blocks += 1
            reading.read_bytes += size
            offset += size
            yield plain
            continue
        following = _next_whole_block(data, offset + 1, decompressor)
        if following < 0:
            reading.torn_bytes += len(data) - offset
            if _is_whole(data, offset):
                reading.damaged_blocks += 1
            return
        reading.damaged_blocks += 1
        offset = following


def _is_whole(data: bytes, offset: int) -> bool:
    """Tell whether the file is long enough for the block at `offset`, so that it is damaged, not torn."""
    if len(data) - offset < _HEAD.size:
        return False
    magic, _, packed, _, _ = _HEAD.unpack_from(data, offset)
    return bool(magic != _MAGIC or len(data) - offset - _HEAD.size >= packed)


def _next_whole_block(data: bytes, start: int, decompressor: zstandard.ZstdDecompressor) -> int:
    found = data.find(_MAGIC, start)
    while found >= 0 and _block_at(data, found, decompressor) is None:
        found = data.find(_MAGIC, found + 1)
    return found


def _block_at(data: bytes, offset: int, decompressor: zstandard.ZstdDecompressor) -> tuple[bytes, int] | None:
    """Return the entries of the block at `offset` and its size, None when it is not whole."""
    if len(data) - offset < _HEAD.size:
        return None
    magic, flags, packed_bytes, plain_bytes, checksum = _HEAD.unpack_from(data, offset)
    start = offset + _HEAD.size
    if magic != _MAGIC or packed_bytes > len(data) - start or plain_bytes > MOST_PLAIN_BYTES:
        return None
    packed = data[start : start + packed_bytes]
    head = _HEAD.pack(magic, flags, packed_bytes, plain_bytes, 0)
    if zlib.crc32(packed, zlib.crc32(head)) != checksum:
        return None
    try:
        return decompressor.decompress(packed, max_output_size=plain_bytes), _HEAD.size + packed_bytes
    except zstandard.ZstdError:
        return None
