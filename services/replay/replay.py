"""Replays a recording: the same frames through the same decode path, into keys of their own.

    recording -> message_handler -> normaliser -> route as recorded -> sequencer -> bus
        -> time series, stream, latest value of `md:replay:NAME:`

Stands beside `live_data_ingestion` and takes its place. The only clock is the recorded receive time, so
the same recording gives the same records, positions and entries at any speed. Needs no PostgreSQL: the
mappings are in the recording. Never opens a socket to a provider, never writes a live key.

What a recording does not hold is what the daemon knew before it began: the first tick of an instrument
has no `v`, as after a start.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from services.errors import TemporaryError
from services.market_data.records import ControlRecord, DataIngestionFormat, Record
from services.pipeline.bus import Bus
from services.pipeline.sink import SinkState
from services.pipeline.supervisor import Supervisor
from services.provider_registry import ProviderFactory, ProviderRegistry
from services.recording.entries import EntriesDamaged, unpack
from services.recording.files import read_blocks
from services.replay.decoding import Decoding, RecordedClock, ReplayReport
from services.storage.entry import EntryEncoder, control_fields
from services.storage.keys import KeySpace
from services.storage.latest_value_writer import LatestValueWriter
from services.storage.redis_sink import RedisSink
from services.storage.replay_space import ReplaySpace, open_guarded, replay_keys
from services.storage.stream_writer import StreamWriter
from services.storage.time_series_writer import TimeSeriesWriter

_MOST_QUEUED = 20_000
_LOOK_EVERY = 256
_NOT_ACCEPTED_S = 15.0
_DRAIN_S = 30.0
_LEAST_SLEEP_S = 0.005


class Replay:
    """One replay of the recording in `folder` into the keys of `name`.

    `redis_url` None: decode and count only, nothing is written. `speed` 1 is as recorded, 10 ten times as
    fast, 0 as fast as Redis takes it. `progress(read, total)` is called with bytes of the files.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        redis_url: str | None,
        *,
        speed: float = 0.0,
        keep_hours: int = 24,
        factories: Mapping[str, ProviderFactory] | None = None,
        progress: Callable[[int, ReplayReport], None] = lambda *_: None,
    ) -> None:
        self._folder = folder
        self._keys = replay_keys(name)
        self._redis_url = redis_url
        self._speed = speed
        self._keep_s = keep_hours * 3600
        self._factories = factories
        self._progress = progress
        self.report = ReplayReport(name=name, prefix=self._keys.prefix)

    async def run(self) -> ReplayReport:
        """Replay all of it; return what was done.

        Raises `ConfigurationError` when the recording cannot be read, `StorageError` or `TemporaryError` when
        Redis does not take it.
        """
        supervisor = Supervisor()
        encoder = EntryEncoder()
        sinks = _sinks(self._redis_url, self._keys, encoder) if self._redis_url is not None else ()
        space = ReplaySpace(self._redis_url, self._keys) if self._redis_url is not None else None
        try:
            if space is not None:
                await space.empty()
            for sink in sinks:
                supervisor.keep(f"sink:{sink.name}", sink.run)
            await self._play(sinks, supervisor, encoder)
            await _written(sinks)
            if space is not None and self._keep_s:
                await space.expire(self._keep_s)
        finally:
            await supervisor.stop()
            if space is not None:
                await space.close()
        for sink in sinks:
            refused = sum(sink.counters.rejected.values()) + sum(sink.counters.dropped.values())
            self.report.stored[sink.name] = sink.counters.written + sink.counters.collapsed
            self.report.refused[sink.name] = refused
        return self.report

    async def _play(
        self, sinks: tuple[RedisSink, ...], supervisor: Supervisor, encoder: EntryEncoder
    ) -> None:
        report, bus, digest = self.report, Bus(sinks), hashlib.sha256()

        def publish(record: Record) -> None:
            if type(record) is DataIngestionFormat:
                text = encoder.tick(record).text
            elif isinstance(record, ControlRecord):
                text = control_fields(record)[1]
            digest.update(f"{record.exchange} {record.position}\n{text}".encode())
            bus.publish(record)

        factories = self._factories if self._factories is not None else ProviderRegistry().factories()
        decoding = Decoding(publish, supervisor, report, factories)
        pace = _Pace(self._speed)
        count = 0
        for block in read_blocks(self._folder, report.unread):
            try:
                for entry in unpack(block):
                    report.from_ms = report.from_ms or entry.at_ms
                    report.to_ms = entry.at_ms
                    await pace.wait_for(entry.at_ms)
                    await decoding.feed(entry)
                    count += 1
                    if count % _LOOK_EVERY == 0:
                        await _room(sinks)
                        self._progress(report.unread.read_bytes, report)
            except (EntriesDamaged, msgspec.MsgspecError):
                report.unread.damaged_blocks += 1
            self._progress(report.unread.read_bytes, report)
        decoding.settle()
        report.digest = digest.hexdigest()


class _Pace:
    """Waits so that entries follow each other as they were recorded, or faster."""

    def __init__(self, speed: float) -> None:
        self._speed = speed
        self._loop = asyncio.get_running_loop()
        self._began: tuple[float, int] | None = None

    async def wait_for(self, at_ms: int) -> None:
        """Return when it is the time of `at_ms`."""
        if self._speed <= 0:
            return
        if self._began is None:
            self._began = self._loop.time(), at_ms
        began_s, first_ms = self._began
        left_s = began_s + (at_ms - first_ms) / 1000 / self._speed - self._loop.time()
        if left_s > _LEAST_SLEEP_S:
            await asyncio.sleep(left_s)


def _sinks(redis_url: str, keys: KeySpace, encoder: EntryEncoder) -> tuple[RedisSink, ...]:
    connect = partial(open_guarded, keys=keys)
    clock = RecordedClock()
    # Samples are as old as the recording: nothing is too far in the future for a replay.
    clock.at_ms = 1 << 52
    return (
        TimeSeriesWriter(redis_url, clock=clock, retention_ms=0, keys=keys, connect=connect),
        StreamWriter(redis_url, max_entries=1 << 31, encoder=encoder, keys=keys, connect=connect),
        LatestValueWriter(redis_url, encoder=encoder, keys=keys, connect=connect),
    )


async def _room(sinks: tuple[RedisSink, ...]) -> None:
    """Wait until every sink has room. Raises `TemporaryError` when one is not rid of anything."""
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    for sink in sinks:
        began_s = loop.time()
        before = sink.counters.batches
        while sink.queued > _MOST_QUEUED or (sink.queued and sink.state is SinkState.PARKED):
            if sink.state is SinkState.PARKED or loop.time() - began_s > _NOT_ACCEPTED_S:
                raise TemporaryError(
                    f"Redis does not take the replay ({sink.name}): {sink.reason or 'no answer'}"
                )
            if sink.counters.batches != before:
                began_s, before = loop.time(), sink.counters.batches
            await asyncio.sleep(_LEAST_SLEEP_S)


async def _written(sinks: tuple[RedisSink, ...]) -> None:
    for sink in sinks:
        left = await sink.drain(_DRAIN_S)
        if left:
            raise TemporaryError(
                f"Redis does not take the replay ({sink.name}): {sink.reason or 'no answer'}; "
                f"{left} records left"
            )
