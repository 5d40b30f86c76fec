"""Batches, windows and replays against a model of Redis: what goes when, and again in which order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from services.errors import StorageMisconfigured, StorageUnavailable
from services.market_data.clock import ManualClock
from services.market_data.records import PROBE_EXCHANGE, PROBE_INSTRUMENT, DataIngestionFormat
from services.pipeline.backoff import Backoff
from services.pipeline.sink import SinkState
from services.storage.latest_value_writer import LatestValueWriter, pause_s
from services.storage.redis_sink import RedisSink
from services.storage.stream_writer import StreamWriter
from services.storage.time_series_writer import TimeSeriesWriter
from tests.support.eventually import eventually
from tests.support.redis_model import ModelConnection, RedisModel

LOST = StorageUnavailable("lost")


async def turns(count: int = 6) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class Stage:
    """One running writer on a model of Redis."""

    def __init__(self) -> None:
        self.model = RedisModel()
        self.connections: list[ModelConnection] = []
        self.refusal: Exception | None = None
        self.made = 0

    @property
    def connection(self) -> ModelConnection:
        return self.connections[-1]

    async def connect(self, *_: Any) -> Any:
        if self.refusal is not None:
            raise self.refusal
        self.connections.append(ModelConnection(self.model))
        return self.connection

    def tick(self, instrument: str = "NSE:A", at_ms: int | None = None, **fields: Any) -> DataIngestionFormat:
        self.made += 1
        values = {"price": float(self.made), "volume": 1} | fields
        return DataIngestionFormat(
            instrument,
            timestamp=1_700_000_000_000 + (self.made if at_ms is None else at_ms),
            provider_code="DHAN",
            exchange="NSE",
            position_ms=self.made,
            **values,
        )


@asynccontextmanager
async def staged(kind: type[RedisSink], **options: Any) -> AsyncIterator[tuple[Stage, Any]]:
    stage = Stage()
    options = {
        "connect": stage.connect,
        "backoff": Backoff(base_s=0.0, cap_s=0.0),
        "parked_retry_s": 0.01,
    } | options
    if kind is TimeSeriesWriter:
        options |= {"clock": ManualClock(), "retention_ms": 1}
    sink = kind("redis://", **options)  # type: ignore[call-arg]
    task = asyncio.create_task(sink.run())
    await turns()
    try:
        yield stage, sink
        assert sink.counters.imbalance(sink.queued) == 0
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_what_is_offered_in_one_turn_leaves_as_one_batch_at_its_end() -> None:
    async with staged(TimeSeriesWriter) as (stage, sink):
        for _ in range(5):
            sink.offer(stage.tick())
        assert not stage.connection.sent
        await turns()
        assert len(stage.connection.sent) == 1
        assert sink.queued == 5


async def test_four_batches_are_on_their_way_and_the_fifth_waits_for_an_answer() -> None:
    async with staged(TimeSeriesWriter) as (stage, sink):
        for expected in (1, 2, 3, 4, 4, 4):
            sink.offer(stage.tick())
            await turns()
            assert len(stage.connection.sent) == expected
        stage.connection.answer_next()
        # The two that waited leave together.
        assert len(stage.connection.sent) == 4
        while stage.connection.sent:
            stage.connection.answer_next()
        assert (sink.counters.written, sink.counters.batches, sink.queued) == (6, 5, 0)


async def test_a_long_queue_widens_the_window_so_that_a_far_server_keeps_up() -> None:
    async with staged(TimeSeriesWriter) as (stage, sink):
        for _ in range(20_000):
            sink.offer(stage.tick())
        await turns()
        assert len(stage.connection.sent) == 16
        while stage.connection.sent:
            stage.connection.answer_next()
        assert sink.counters.written == 20_000


@pytest.mark.parametrize("kind", [StreamWriter, LatestValueWriter])
async def test_the_other_writers_have_one_batch_on_its_way(kind: type[RedisSink]) -> None:
    async with staged(kind) as (stage, sink):
        for number in range(5_000):
            sink.offer(stage.tick(f"NSE:{number}"))
        await turns()
        assert len(stage.connection.sent) == 1
        while stage.connection.sent:
            stage.connection.answer_next()
        assert sink.counters.written == 5_000


async def test_newest_values_of_many_instruments_leave_at_a_pace_so_that_ticks_collapse() -> None:
    async with staged(LatestValueWriter) as (stage, sink):
        for number in range(60):
            sink.offer(stage.tick(f"NSE:{number}"))
        await turns()
        stage.connection.answer_next()
        for _ in range(3):
            for number in range(60):
                sink.offer(stage.tick(f"NSE:{number}"))
            await turns()
        assert len(stage.connection.sent) == 0
        await eventually(lambda: len(stage.connection.sent) == 1)
        stage.connection.answer_next()
        assert (sink.counters.written, sink.counters.collapsed, sink.queued) == (120, 120, 0)


@pytest.mark.parametrize(
    ("hashes", "expected_s"),
    [(0, 0), (1, 0), (49, 0), (50, 0.02), (200, 0.02), (500, 0.05), (1_000, 0.1), (25_000, 0.1)],
)
def test_the_pause_grows_with_the_hashes_and_stays_short(hashes: int, expected_s: float) -> None:
    assert pause_s(hashes) == pytest.approx(expected_s)


async def test_the_pause_is_that_of_all_hashes_written_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    paused_for: list[int] = []

    def pause(hashes: int) -> float:
        paused_for.append(hashes)
        return 0.0

    monkeypatch.setattr("services.storage.latest_value_writer.pause_s", pause)
    async with staged(LatestValueWriter) as (stage, sink):
        for count in (2_610, 7, 60):
            for number in range(count):
                sink.offer(stage.tick(f"NSE:{number}"))
            await turns()
            while stage.connection.sent:
                stage.connection.answer_next()
    assert paused_for == [2_610, 7, 60]


async def test_the_last_entry_of_each_exchange_in_a_batch_trims_its_stream() -> None:
    async with staged(StreamWriter) as (stage, sink):
        for turn in range(2):
            for number in range(30):
                exchange = "BSE" if number % 3 == 1 else "NSE"
                sink.offer(msgspec.structs.replace(stage.tick(f"{exchange}:A"), exchange=exchange))
                if number in (7, 29):
                    probe = stage.tick(PROBE_INSTRUMENT)
                    sink.offer(msgspec.structs.replace(probe, exchange=PROBE_EXCHANGE))
            # No entry, so none that could trim.
            sink.offer(stage.tick("NSE:B", price=float("nan")))
            await turns()
            stage.connection.answer_next()
            assert sink.counters.written == 32 * (turn + 1)
    streams = stage.model.streams
    for exchange in ("NSE", "BSE"):
        trims = [position for key, position in stage.model.trims if key == f"md:ticks:{exchange}"]
        positions = [position for position, _ in streams[f"md:ticks:{exchange}"]]
        assert trims == [positions[len(positions) // 2 - 1], positions[-1]]
    probes = [("md:ticks:_PROBE", position) for position, _ in streams["md:ticks:_PROBE"]]
    assert len(probes) == 4
    assert [trim for trim in stage.model.trims if trim[0] == "md:ticks:_PROBE"] == probes


async def test_a_quiet_market_s_newest_value_leaves_at_once() -> None:
    async with staged(LatestValueWriter) as (stage, sink):
        for number in range(10):
            sink.offer(stage.tick(f"NSE:{number}"))
            await turns()
            assert len(stage.connection.sent) == 1
            stage.connection.answer_next()
        assert sink.counters.written == 10


async def test_no_batch_leaves_while_the_socket_takes_nothing() -> None:
    async with staged(TimeSeriesWriter) as (stage, sink):
        sink.offer(stage.tick())
        await turns()
        stage.connection.writable = False
        sink.offer(stage.tick())
        await turns()
        assert len(stage.connection.sent) == 1
        stage.connection.writable = True
        stage.connection.answer_next()
        assert len(stage.connection.sent) == 1


async def test_lost_batches_go_again_in_their_order_however_often_that_happens() -> None:
    async with staged(TimeSeriesWriter) as (stage, sink):
        sink.offer(stage.tick(at_ms=6))
        await turns()
        stage.connection.answer_next()
        for volume in (10, 20, 30):
            sink.offer(stage.tick(at_ms=7, volume=volume))
            await turns()
        assert len(stage.connection.sent) == 3
        for _ in range(3):
            stage.connection.abort(LOST)
            await turns()
            assert len(stage.connection.sent) == 1, "after a loss one batch goes alone"
        while stage.connection.sent:
            stage.connection.answer_next()
            await turns()
        assert stage.model.series["md:ts:{NSE:A}:price"][1_700_000_000_007] == 4.0
        assert stage.model.series["md:ts:{NSE:A}:volume"][1_700_000_000_007] == 60.0
        assert (sink.counters.written, sink.counters.collapsed) == (2, 2)


async def test_what_was_sent_behind_a_batch_that_goes_again_goes_again_too() -> None:
    async with staged(TimeSeriesWriter) as (stage, sink):
        for instrument in ("NSE:GONE", "NSE:A"):
            sink.offer(stage.tick(instrument))
        await turns()
        stage.connection.answer_next()
        stage.model.hidden.add("md:ts:{NSE:GONE}:price")
        sink.offer(stage.tick("NSE:GONE"))
        sink.offer(stage.tick("NSE:A", at_ms=99, volume=10))
        await turns()
        sink.offer(stage.tick("NSE:A", at_ms=99, volume=5))
        await turns()
        assert len(stage.connection.sent) == 2
        while stage.connection.sent:
            stage.connection.answer_next()
        assert stage.model.series["md:ts:{NSE:A}:volume"][1_700_000_000_099] == 15
        assert stage.model.series["md:ts:{NSE:A}:price"][1_700_000_000_099] == 5.0
        assert len(stage.model.series["md:ts:{NSE:GONE}:price"]) == 2
        assert (sink.counters.written, sink.counters.collapsed, sink.queued) == (4, 1, 0)
        assert len(stage.connections) == 1


async def test_a_series_is_made_once_and_one_that_exists_is_corrected_by_the_next_batch() -> None:
    async with staged(TimeSeriesWriter) as (stage, sink):
        stage.model.series["md:ts:{NSE:A}:volume"] = {}
        commands = []
        for _ in range(3):
            sink.offer(stage.tick())
            await turns()
            commands.append([words[:2] for words in stage.connection.waiting()])
            stage.connection.answer_next()
        assert commands == [
            [
                ["TS.CREATE", "md:ts:{NSE:A}:price"],
                ["TS.CREATE", "md:ts:{NSE:A}:volume"],
                ["TS.MADD", "md:ts:{NSE:A}:price"],
            ],
            [["TS.ALTER", "md:ts:{NSE:A}:volume"], ["TS.MADD", "md:ts:{NSE:A}:price"]],
            [["TS.MADD", "md:ts:{NSE:A}:price"]],
        ]


async def test_a_refused_batch_goes_again_alone_and_the_window_opens_when_it_is_taken() -> None:
    async with staged(TimeSeriesWriter) as (stage, sink):
        for _ in range(4):
            sink.offer(stage.tick())
            await turns()
        stage.model.full = True
        stage.connection.answer_next()
        await turns()
        assert sink.state is SinkState.UNAVAILABLE
        assert "out of memory" in sink.reason
        assert len(stage.connection.sent) == 1
        stage.model.full = False
        stage.connection.answer_next()
        assert sink.state is SinkState.READY
        assert sink.reason == ""
        assert len(stage.connection.sent) == 3
        while stage.connection.sent:
            stage.connection.answer_next()
        assert sink.counters.written == 4


async def test_a_state_is_told_once_when_lost_and_once_when_back(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []

    class Log:
        def __getattr__(self, level: str) -> Any:
            return lambda event, **_: told.append((level, event))

    monkeypatch.setattr("services.storage.redis_sink._log", Log())
    async with staged(StreamWriter) as (stage, sink):
        stage.refusal = LOST
        stage.connection.abort(LOST)
        await turns(100)
        assert told == [("warning", "sink_unavailable")]
        stage.refusal = StorageMisconfigured("wrong password")
        await turns(100)
        assert sink.state is SinkState.PARKED
        assert told[1:] == [("warning", "sink_parked")]
        stage.refusal = None
        sink.retry_now()
        await turns(20)
        assert sink.state is SinkState.READY
        assert told[2:] == [("info", "sink_recovered")]


async def test_a_parked_writer_tries_at_once_when_it_is_told_to() -> None:
    async with staged(StreamWriter, parked_retry_s=3600.0) as (stage, sink):
        stage.refusal = StorageMisconfigured("wrong password")
        stage.connection.abort(LOST)
        await turns(20)
        assert sink.state is SinkState.PARKED
        stage.refusal = None
        await turns(20)
        assert sink.state is SinkState.PARKED
        sink.retry_now()
        await turns(20)
        assert sink.state is SinkState.READY


async def test_a_mistake_in_the_writer_ends_its_task_where_the_supervisor_sees_it() -> None:
    stage = Stage()
    sink = StreamWriter("redis://", connect=stage.connect)
    task = asyncio.create_task(sink.run())
    await turns()
    stage.connection.abort(LookupError("a bug"))
    with pytest.raises(LookupError, match="a bug"):
        await asyncio.wait_for(task, 1)
    assert sink.state is SinkState.CLOSED


async def test_offering_to_a_writer_that_does_not_run_only_queues() -> None:
    stage = Stage()
    for sink in (StreamWriter("redis://"), LatestValueWriter("redis://")):
        sink.offer(stage.tick())
        assert sink.queued == 1
        assert sink.state is SinkState.STARTING
        assert await sink.drain(0.01) == 1


@pytest.mark.parametrize("kind", [TimeSeriesWriter, StreamWriter, LatestValueWriter])
async def test_a_timed_record_is_noted_once_when_redis_has_said_that_it_is_stored(
    kind: type[RedisSink],
) -> None:
    async with staged(kind) as (stage, sink):
        sink.offer(stage.tick())
        sink.time_newest()
        sink.offer(stage.tick())
        sink.time_newest()
        await turns()
        assert sum(sink.written_within.counts) == 0
        while stage.connection.sent:
            stage.connection.answer_next()
        assert sum(sink.written_within.counts) == 1
        sink.offer(stage.tick())
        await turns()
        stage.connection.answer_next()
        assert sum(sink.written_within.counts) == 1
