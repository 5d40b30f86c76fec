"""The daemon's side of a recording: shows every provider's frames to one recorder that has asked.

Off by default, and then nothing on the path of a frame knows of it. While a recorder is connected, each
frame is copied once into a buffer, which leaves ten times a second. A recorder that does not keep up
loses frames, counted in its recording; it never holds up the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from services.market_data.clock import Clock
from services.market_data.instruments import MappingSnapshot
from services.market_data.records import ControlRecord
from services.provider_frames import RecordingTap
from services.recording.entries import (
    FORMAT,
    HEAD,
    NO_PROVIDER,
    Context,
    Kind,
    ProviderMemory,
    pack_json,
)
from services.recording.tap_address import ASK_CONTEXT, CHUNK, ENTRIES, SOCKET, WITH_CONTEXT, socket_path

_log = structlog.get_logger(__name__)

EVERY_S = 0.1
UNSENT_LIMIT_BYTES = 32 << 20
"""So much may wait for a recorder that reads slowly; beyond it frames are dropped, counted."""
_HELLO_WITHIN_S = 5.0
# Whole numbers, because this runs per frame.
_BINARY, _TEXT = int(Kind.BINARY), int(Kind.TEXT)
_pack_head = HEAD.pack
_RECORDED_CONTROLS = frozenset({"gap", "stale", "resumed", "switched", "session"})
"""The others are made from ticks, or tell of another store."""


class TappedProvider(Protocol):
    """What the tap asks of a provider."""

    def record_to(self, tap: RecordingTap | None) -> None:
        """Show every message and change of subscription to `tap` from now on; None ends that."""

    def memory(self) -> tuple[Iterable[str], Iterable[str], Iterable[str]]:
        """Return the symbols that are wanted, that wait for their first tick, and that bring no data."""
        ...


class TapSource(Protocol):
    """What the tap asks of the daemon."""

    def streaming_providers(self) -> Mapping[str, TappedProvider]:
        """Return the providers by code."""
        ...

    def mapping_snapshot(self) -> MappingSnapshot | None:
        """Return the mappings in force, None before there are any."""
        ...

    def serving(self) -> dict[str, str]:
        """Return which provider (code) serves each instrument."""
        ...


class _Hello(msgspec.Struct, frozen=True):
    """What a recorder asks for: provider codes, none for all."""

    providers: list[str]


class _Buffer:
    """The entries that leave at the next turn."""

    __slots__ = ("data", "dropped", "frames")

    def __init__(self) -> None:
        self.data = bytearray()
        self.frames = 0
        self.dropped = 0


class ProviderTap:
    """Takes the frames and events of one provider."""

    __slots__ = ("_buffer", "_clock", "_index")

    def __init__(self, index: int, buffer: _Buffer, clock: Clock) -> None:
        self._index = index
        self._buffer = buffer
        self._clock = clock

    def frame(self, received_ms: int, raw: str | bytes) -> None:
        """Take one message as it came, with its receive time in UTC epoch ms."""
        buffer = self._buffer
        data = buffer.data
        if len(data) > UNSENT_LIMIT_BYTES:
            buffer.dropped += 1
            return
        kind = _BINARY
        if isinstance(raw, str):
            raw, kind = raw.encode("utf-8", "surrogatepass"), _TEXT
        data += _pack_head(kind, self._index, received_ms, len(raw))
        data += raw
        buffer.frames += 1

    def note(self, kind: str, symbols: Iterable[str]) -> None:
        """Take note that `symbols` are being asked for (`asking`), were (`asked`), or were `lost`."""
        now_ms = self._clock.now_ms()
        self._buffer.data += pack_json(Kind[kind.upper()], self._index, now_ms, list(symbols))


class FrameTap:
    """Serves one recorder at a time on the socket in `folder`. `daemon` names this run of the daemon."""

    def __init__(self, folder: Path, clock: Clock, source: TapSource, *, daemon: str, demo: bool) -> None:
        self.recording = False
        self.dropped = 0
        self._folder = folder
        self._clock = clock
        self._source = source
        self._daemon = daemon
        self._demo = demo
        self._buffer = _Buffer()
        self._tapped: dict[str, TappedProvider] = {}
        self._codes: list[str] = []
        self._chosen: list[str] = []
        self._serving = False
        self._routes: dict[str, str] = {}
        self._version = -1
        self._callers: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue(1)

    async def run(self) -> None:
        """Wait for recorders and serve them, until cancelled."""
        with contextlib.suppress(FileNotFoundError):
            (self._folder / SOCKET).unlink()
        with socket_path(self._folder) as path:
            server = await asyncio.start_unix_server(self._called, path)
            (self._folder / SOCKET).chmod(stat.S_IRUSR | stat.S_IWUSR)
            try:
                while True:
                    reader, writer = await self._callers.get()
                    await self._serve(reader, writer)
            finally:
                server.close()
                with contextlib.suppress(FileNotFoundError):
                    (self._folder / SOCKET).unlink()

    def note_control(self, record: ControlRecord) -> None:
        """Take note of what consumers were told; called for control records only."""
        if not self.recording or record.type not in _RECORDED_CONTROLS:
            return
        if record.fields.get("reason") == "history_lost":
            # It tells of the live store, which a replay has nothing to do with.
            return
        self._buffer.data += pack_json(Kind.CONTROL, NO_PROVIDER, record.received_ms, record)
        if record.type == "switched":
            self._note_routes()

    # ---- one recorder -------------------------------------------------------------------------------

    def _called(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Said before the other side has sent anything: closing with something unread would take it away.
        if self._serving or self._callers.full():
            _answer(writer, "another recording of this daemon is running: end that one first")
            writer.close()
        else:
            _answer(writer, "")
            self._callers.put_nowait((reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._serving = True
        try:
            if await self._greet(reader, writer):
                _log.info("recording_started", providers=self._chosen or "all")
                await self._show(reader, writer)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            _log.warning("recording_broken", error=str(error) or type(error).__name__)
        finally:
            if self.recording:
                _log.info("recording_ended", dropped=self.dropped)
            self._let_go()
            writer.close()
            self._serving = False

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        try:
            async with asyncio.timeout(_HELLO_WITHIN_S):
                asked = msgspec.json.decode(await reader.readline(), type=_Hello)
        except (TimeoutError, ValueError, msgspec.MsgspecError):
            return False
        known = self._source.streaming_providers()
        unknown = [code for code in asked.providers if code not in known]
        if unknown:
            _answer(writer, f"no provider {', '.join(unknown)} here; there are {', '.join(sorted(known))}")
            return False
        if self._source.mapping_snapshot() is None:
            _answer(writer, "the daemon has no mappings yet: try again in a moment")
            return False
        _answer(writer, "")
        self._chosen = asked.providers
        return True

    async def _show(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.recording, self.dropped = True, 0
        self._send_context(writer)
        while True:
            try:
                async with asyncio.timeout(EVERY_S):
                    asked = await reader.readline()
            except TimeoutError:
                asked = None
            if asked == b"" or writer.transport.is_closing():
                return
            snapshot = self._source.mapping_snapshot()
            if snapshot is not None and snapshot.version != self._version:
                self._flush(writer)
                self._send_context(writer)
            else:
                self._note_routes()
                self._flush(writer)
                if asked == ASK_CONTEXT:
                    self._send_context(writer)

    def _send_context(self, writer: asyncio.StreamWriter) -> None:
        """Send what is needed to read what follows, and tap what is not tapped yet."""
        providers = {
            code: provider
            for code, provider in self._source.streaming_providers().items()
            if not self._chosen or code in self._chosen
        }
        self._codes += sorted(providers.keys() - set(self._codes))
        snapshot = self._source.mapping_snapshot()
        if snapshot is None:
            return
        self._version, self._routes = snapshot.version, self._source.serving()
        now_ms = self._clock.now_ms()
        context = Context(
            format=FORMAT,
            daemon=self._daemon,
            demo=self._demo,
            at_ms=now_ms,
            providers=self._codes,
            partial=self._chosen,
            snapshot=snapshot,
            routes=self._routes,
            memory={
                code: ProviderMemory(*map(list, provider.memory())) for code, provider in providers.items()
            },
        )
        entries = pack_json(Kind.CONTEXT, NO_PROVIDER, now_ms, context)
        writer.write(CHUNK.pack(WITH_CONTEXT, 0, len(entries)) + entries)
        for code, provider in providers.items():
            if self._tapped.get(code) is not provider:
                self._tapped[code] = provider
                provider.record_to(ProviderTap(self._codes.index(code), self._buffer, self._clock))

    def _note_routes(self) -> None:
        now = self._source.serving()
        if now == self._routes:
            return
        keys = now.keys() | self._routes.keys()
        changed = {key: now.get(key) for key in keys if now.get(key) != self._routes.get(key)}
        self._routes = now
        self._buffer.data += pack_json(Kind.ROUTES, NO_PROVIDER, self._clock.now_ms(), changed)

    def _flush(self, writer: asyncio.StreamWriter) -> None:
        buffer = self._buffer
        if writer.transport.get_write_buffer_size() + len(buffer.data) > UNSENT_LIMIT_BYTES:
            # What is in the buffer is given up as a whole: half an entry cannot be read.
            buffer.dropped += buffer.frames
            buffer.data.clear()
            buffer.frames = 0
            self._routes = {}
            return
        if buffer.dropped:
            buffer.data[:0] = pack_json(Kind.DROPPED, NO_PROVIDER, self._clock.now_ms(), buffer.dropped)
            self.dropped += buffer.dropped
            buffer.dropped = 0
        if buffer.data:
            writer.write(CHUNK.pack(ENTRIES, buffer.frames, len(buffer.data)) + buffer.data)
            buffer.data.clear()
            buffer.frames = 0

    def _let_go(self) -> None:
        for provider in self._tapped.values():
            provider.record_to(None)
        self._tapped.clear()
        self._codes, self._chosen, self._routes, self._version = [], [], {}, -1
        self._buffer.data.clear()
        self._buffer.frames = self._buffer.dropped = 0
        self.recording = False


def _answer(writer: asyncio.StreamWriter, error: str) -> None:
    writer.write(msgspec.json.encode({"format": FORMAT, "error": error, "pid": os.getpid()}) + b"\n")
