"""The daemon's tap and the recorder over a real socket: who may record, what is recorded, what is dropped."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import pytest

from services.errors import ConfigurationError, TemporaryError
from services.market_data.clock import ManualClock
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry
from services.market_data.records import ControlRecord
from services.provider_frames import FrameIntake, ProviderCounters, RecordingTap
from services.recording import frame_tap
from services.recording.entries import Context, Entry, Kind, read_context, unpack
from services.recording.files import Reading, RecordingWriter, read_blocks, recording_files
from services.recording.frame_tap import FrameTap
from services.recording.recorder import Recorder
from services.recording.tap_address import SOCKET, socket_path
from tests.support.eventually import eventually

MIB = 1 << 20


class FakeProvider:
    """A provider with a real intake, whose handler takes anything."""

    def __init__(self, clock: ManualClock) -> None:
        self.counters = ProviderCounters()
        self.tap: RecordingTap | None = None
        self.handled: list[str | bytes] = []
        self.intake = FrameIntake(
            code="X",
            clock=clock,
            counters=self.counters,
            handler=self.handled.append,
            emit=lambda _: None,
            damaged=lambda: None,
            spawn=lambda *_: None,  # type: ignore[arg-type, return-value]
            secrets=tuple,
        )

    def record_to(self, tap: RecordingTap | None) -> None:
        self.tap = tap
        self.intake.record_to(tap.frame if tap else None)

    def memory(self) -> tuple[Iterable[str], Iterable[str], Iterable[str]]:
        return ("A", "B"), ("B",), ()


class Source:
    """What the daemon is to the tap."""

    def __init__(self, clock: ManualClock) -> None:
        self.clock = clock
        self.providers = {"DHAN": FakeProvider(clock), "YF": FakeProvider(clock)}
        self.version = 1
        self.served = {"NSE:A": "DHAN"}

    def streaming_providers(self) -> dict[str, FakeProvider]:
        return dict(self.providers)

    def mapping_snapshot(self) -> MappingSnapshot:
        row = InstrumentMapping(
            mapping_id=1,
            instrument="NSE:A",
            exchange="NSE",
            symbol="A",
            name="A",
            asset_class=AssetClass.EQUITY,
            currency="INR",
            provider_code="DHAN",
            search_code="A",
        )
        entries = tuple(ProviderEntry(code=code, name=code) for code in self.providers)
        return MappingSnapshot(version=self.version, loaded_ms=1, providers=entries, mappings=(row,))

    def serving(self) -> dict[str, str]:
        return dict(self.served)


class Rig:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clock = ManualClock()
        self.source = Source(self.clock)
        self.tap = FrameTap(folder, self.clock, self.source, daemon="one", demo=True)

    async def frame(self, code: str, raw: str | bytes) -> None:
        self.clock.advance(0.001)
        self.source.providers[code].intake.handle(raw)

    @contextlib.asynccontextmanager
    async def recording(self, folder: Path, **options: Any) -> AsyncIterator[Recorder]:
        file_bytes = options.pop("file_bytes", 4 * MIB)
        with RecordingWriter(folder, limit_bytes=64 * MIB, file_bytes=file_bytes) as writer:
            recorder = Recorder(self.folder, writer, **options)
            running = asyncio.create_task(recorder.run())
            await eventually(lambda: self.tap.recording or running.done())
            yield recorder
            recorder.stop()
            await running


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    folder = tmp_path / ("a state directory with a rather long name, as in tests " * 2)
    folder.mkdir()
    rig = Rig(folder)
    serving = asyncio.create_task(rig.tap.run())
    await eventually((folder / SOCKET).exists)
    yield rig
    serving.cancel()
    await asyncio.wait([serving])
    assert not (folder / SOCKET).exists()


def entries_of(folder: Path) -> list[Entry]:
    return [entry for block in read_blocks(folder, Reading()) for entry in unpack(block)]


async def test_frames_events_and_routes_are_recorded_in_their_order(rig: Rig, tmp_path: Path) -> None:
    assert (rig.folder / SOCKET).stat().st_mode & 0o777 == 0o600
    await rig.frame("DHAN", b"before")
    async with rig.recording(tmp_path / "out") as recorder:
        dhan = rig.source.providers["DHAN"]
        await rig.frame("DHAN", b"\x00one")
        await rig.frame("YF", "two \N{INDIAN RUPEE SIGN}")
        assert dhan.tap is not None
        dhan.tap.note("lost", ["A"])
        now_ms = rig.clock.now_ms()
        fields: dict[str, str | int] = {"from": 1, "to": 2, "reason": "x"}
        gap = ControlRecord("gap", "NSE:A", "NSE", now_ms, now_ms, "DHAN", fields)
        rig.tap.note_control(gap)
        rig.tap.note_control(ControlRecord("bar", "NSE:A", "NSE", now_ms, now_ms, "", {"i": "1m"}))
        rig.source.served = {"NSE:A": "YF"}
        await rig.frame("YF", "three")
        await eventually(lambda: recorder.figures.frames == 3)
        await eventually(lambda: rig.source.serving() == rig.tap._routes)
        await asyncio.sleep(0.3)
    await eventually(lambda: all(provider.tap is None for provider in rig.source.providers.values()))
    await rig.frame("DHAN", b"after")
    found = entries_of(tmp_path / "out")
    context = read_context(found[0].payload)
    assert (context.providers, context.routes, context.demo) == (["DHAN", "YF"], {"NSE:A": "DHAN"}, True)
    assert context.memory["YF"].wanted == ["A", "B"]
    assert context.memory["YF"].fresh == ["B"]
    kinds = [(Kind(entry.kind), entry.provider) for entry in found[1:]]
    assert kinds[:4] == [(Kind.BINARY, 0), (Kind.TEXT, 1), (Kind.LOST, 0), (Kind.CONTROL, 255)]
    assert sorted(kinds[4:]) == [(Kind.TEXT, 1), (Kind.ROUTES, 255)]
    assert [entry.payload for entry in found if entry.kind == Kind.BINARY] == [b"\x00one"]
    assert found[1].at_ms == 1_700_000_000_002
    assert [entry.payload.decode() for entry in found if entry.kind == Kind.TEXT] == ["two ₹", "three"]
    assert [json.loads(entry.payload) for entry in found if entry.kind == Kind.ROUTES] == [{"NSE:A": "YF"}]


async def test_without_a_recorder_the_handler_is_the_providers_own(rig: Rig, tmp_path: Path) -> None:
    intake = rig.source.providers["DHAN"].intake
    own = intake._handler
    async with rig.recording(tmp_path / "out"):
        assert intake._handler is not own
    await eventually(lambda: intake._handler is own)


async def test_a_changed_mapping_and_a_new_provider_are_in_the_recording(rig: Rig, tmp_path: Path) -> None:
    async with rig.recording(tmp_path / "out") as recorder:
        await rig.frame("DHAN", b"one")
        rig.source.providers["AB"] = FakeProvider(rig.clock)
        rig.source.version = 2
        await eventually(lambda: rig.source.providers["AB"].tap is not None)
        await rig.frame("AB", b"two")
        await rig.frame("DHAN", b"three")
        await eventually(lambda: recorder.figures.frames == 3)
    contexts: list[Context] = []
    frames = []
    for entry in entries_of(tmp_path / "out"):
        if entry.kind == Kind.CONTEXT:
            contexts.append(read_context(entry.payload))
        else:
            frames.append((contexts[-1].providers[entry.provider], entry.payload))
    assert [context.snapshot.version for context in contexts] == [1, 2]
    assert frames == [("DHAN", b"one"), ("AB", b"two"), ("DHAN", b"three")], "indices never change meaning"


async def test_each_file_begins_with_a_context(rig: Rig, tmp_path: Path) -> None:
    import os

    async with rig.recording(tmp_path / "out", file_bytes=200_000) as recorder:
        for number in range(60):
            await rig.frame("DHAN", os.urandom(20_000))
            await eventually(lambda sent=number: recorder.figures.frames == sent + 1)  # type: ignore[misc]
    files = recording_files(tmp_path / "out")
    assert len(files) >= 3
    assert sum(entry.kind == Kind.BINARY for entry in entries_of(tmp_path / "out")) == 60
    assert sum(entry.kind == Kind.CONTEXT for entry in entries_of(tmp_path / "out")) == len(files)


async def test_only_the_chosen_provider_is_tapped(rig: Rig, tmp_path: Path) -> None:
    async with rig.recording(tmp_path / "out", providers=["YF"]):
        assert rig.source.providers["DHAN"].tap is None
        assert rig.source.providers["YF"].tap is not None


async def test_who_may_not_record_is_told_why(rig: Rig, tmp_path: Path) -> None:
    with RecordingWriter(tmp_path / "x", limit_bytes=MIB) as writer:
        with pytest.raises(ConfigurationError, match="no provider IBKR here; there are DHAN, YF"):
            await Recorder(rig.folder, writer, providers=["IBKR"]).run()
        async with rig.recording(tmp_path / "out"):
            with pytest.raises(TemporaryError, match="another recording of this daemon is running"):
                await Recorder(rig.folder, writer).run()
        with pytest.raises(TemporaryError, match="no daemon to record is running"):
            await Recorder(tmp_path, writer).run()


async def test_a_recorder_that_does_not_read_loses_frames_and_is_told_how_many(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(frame_tap, "UNSENT_LIMIT_BYTES", 300_000)
    with socket_path(rig.folder) as path:
        reader, writer = await asyncio.open_unix_connection(path, limit=1_000)
    await reader.readline()
    writer.write(b'{"providers": []}\n')
    await eventually(lambda: rig.tap.recording)
    sent = 0

    async def has_dropped() -> bool:
        nonlocal sent
        for _ in range(20):
            await rig.frame("DHAN", bytes(20_000))
            sent += 1
        return rig.tap._buffer.dropped > 0

    await eventually(has_dropped, within_s=20)
    assert len(rig.tap._buffer.data) <= 300_000 + 21_000, "what waits is bounded"
    assert rig.source.providers["DHAN"].counters.decoded == sent, "and nothing else is lost"
    reading = asyncio.create_task(reader.read(1 << 20))
    while not rig.tap.dropped:
        await reading
        await rig.frame("DHAN", b"x")
        sent += 1
        reading = asyncio.create_task(reader.read(1 << 20))
    assert 0 < rig.tap.dropped < sent
    reading.cancel()
    writer.close()
    await eventually(lambda: not rig.tap.recording)


async def test_garbage_on_the_socket_harms_nobody(rig: Rig, tmp_path: Path) -> None:
    for said in (b"", b"\x00\xff\n", b"[]\n", b'{"providers": 7}\n', b"{" * 70_000):
        with socket_path(rig.folder) as path:
            _, writer = await asyncio.open_unix_connection(path)
        writer.write(said)
        with contextlib.suppress(OSError):
            await writer.drain()
        writer.close()
    async with rig.recording(tmp_path / "out") as recorder:
        await rig.frame("DHAN", b"one")
        await eventually(lambda: recorder.figures.frames == 1)
