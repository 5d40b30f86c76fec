"""The recorder's side: takes the frames a running daemon shows and writes them to a folder.

Runs in the process of the command, so what it writes, compresses and may fill is none of the daemon's
business. A daemon that ends is waited for: its next run goes on in the same recording.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from services.errors import ConfigurationError, TemporaryError
from services.recording.entries import Kind, unpack
from services.recording.files import RecordingWriter
from services.recording.tap_address import ASK_CONTEXT, CHUNK, WITH_CONTEXT, socket_path

_ANSWER_WITHIN_S = 5.0
_FLUSH_EVERY_S = 1.0
_SYNC_EVERY_S = 5.0
_AGAIN_S = 1.0
_LARGEST_CHUNK_BYTES = 256 << 20


class RecordingFigures(msgspec.Struct):
    """How a recording is doing. Times in seconds of the event loop."""

    frames: int = 0
    plain_bytes: int = 0
    dropped: int = 0
    connects: int = 0
    waiting_for: str = ""
    """Why nothing is recorded just now; empty while all is well."""


class Recorder:
    """Records the daemon of a state directory into `writer`, until it is cancelled or `stop` is called.

    `providers` are codes, empty for all. `changed(figures)` is called a few times a second.
    """

    def __init__(
        self,
        state_dir: Path,
        writer: RecordingWriter,
        *,
        providers: Sequence[str] = (),
        changed: Callable[[RecordingFigures], None] = lambda _: None,
    ) -> None:
        self.figures = RecordingFigures()
        self._state_dir = state_dir
        self._writer = writer
        self._providers = list(providers)
        self._changed = changed
        self._stop = asyncio.Event()

    def stop(self) -> None:
        """End the recording at the next turn; what was received is written."""
        self._stop.set()

    async def run(self) -> None:
        """Record until told to stop.

        Raises `TemporaryError` when no daemon can be recorded at the beginning, or the disk takes no more;
        `ConfigurationError` when what is asked for does not exist.
        """
        try:
            while not self._stop.is_set():
                try:
                    await self._record()
                except TemporaryError as error:
                    if not self.figures.connects:
                        raise
                    self.figures.waiting_for = str(error)
                    self._changed(self.figures)
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), _AGAIN_S)
        except OSError as error:
            raise TemporaryError(
                f"the recording ended: {self._writer.folder}: {error.strerror or error}; "
                "what was written before can be replayed"
            ) from error
        finally:
            with contextlib.suppress(OSError, ValueError):
                self._writer.sync()

    async def _record(self) -> None:
        """Record over one connection until it ends, or until told to stop."""
        reader, connection = await self._connect()
        stopped = asyncio.ensure_future(self._stop.wait())
        reading: asyncio.Future[bytes] | None = None
        loop = asyncio.get_running_loop()
        flushed_s = synced_s = loop.time()
        asked = False
        try:
            while not stopped.done():
                if reading is None:
                    reading = asyncio.ensure_future(_chunk(reader))
                either: list[asyncio.Future[Any]] = [reading, stopped]
                await asyncio.wait(either, timeout=_FLUSH_EVERY_S, return_when=asyncio.FIRST_COMPLETED)
                if reading.done():
                    kind = self._take(reading.result())
                    reading = None
                    asked = asked and kind != WITH_CONTEXT
                if self._writer.file_is_full and not asked:
                    connection.write(ASK_CONTEXT)
                    asked = True
                if loop.time() - flushed_s >= _FLUSH_EVERY_S:
                    self._writer.flush()
                    flushed_s = loop.time()
                if loop.time() - synced_s >= _SYNC_EVERY_S:
                    await asyncio.to_thread(self._writer.sync)
                    synced_s = loop.time()
                self._changed(self.figures)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise TemporaryError("the daemon ended; waiting for the next one") from error
        finally:
            stopped.cancel()
            if reading is not None:
                reading.cancel()
                await asyncio.wait([reading])
            connection.close()

    def _take(self, chunk: bytes) -> int:
        kind, frames, _ = CHUNK.unpack_from(chunk)
        entries = chunk[CHUNK.size :]
        self.figures.frames += frames
        self.figures.plain_bytes += len(entries)
        if kind == WITH_CONTEXT:
            self._writer.add_context(entries)
        else:
            first = next(unpack(entries), None)
            if first is not None and first.kind == Kind.DROPPED:
                self.figures.dropped += int(first.payload)
            self._writer.add(entries)
        return int(kind)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            with socket_path(self._state_dir) as path:
                reader, connection = await asyncio.open_unix_connection(path, limit=1 << 20)
        except OSError as error:
            raise TemporaryError(f"no daemon to record is running on {self._state_dir}") from error
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                answer = json.loads(await reader.readline())
                if not answer.get("error"):
                    connection.write(json.dumps({"providers": self._providers}).encode() + b"\n")
                    answer = json.loads(await reader.readline())
        except (OSError, TimeoutError, ValueError) as error:
            connection.close()
            raise TemporaryError(f"the daemon on {self._state_dir} does not answer") from error
        if answer.get("error"):
            connection.close()
            refused = str(answer["error"])
            raise (
                ConfigurationError(refused) if refused.startswith("no provider") else TemporaryError(refused)
            )
        self.figures.connects += 1
        self.figures.waiting_for = ""
        return reader, connection


async def _chunk(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(CHUNK.size)
    length = CHUNK.unpack(head)[2]
    if length > _LARGEST_CHUNK_BYTES:
        raise TemporaryError("the daemon sends what this program does not read: use the same version")
    return head + await reader.readexactly(length)
