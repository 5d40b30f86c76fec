"""The writers against a model of Redis, under any sequence of ticks, answers, refusals and lost connections.

Whatever happens, every record is accounted for at every moment; and once everything is settled, the
model holds exactly what the ticks say, each once and in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.errors import StorageUnavailable
from services.market_data.clock import ManualClock
from services.market_data.records import FLAG_LATE, ControlRecord, DataIngestionFormat
from services.pipeline.backoff import Backoff
from services.storage.latest_value_writer import LatestValueWriter
from services.storage.redis_sink import RedisSink
from services.storage.stream_writer import StreamWriter
from services.storage.time_series_writer import TimeSeriesWriter
from tests.support.redis_model import ModelConnection, RedisModel

INSTRUMENTS = ("NSE:A", "NSE:M&M", "BSE:C")


class WriterMachine(RuleBasedStateMachine):
    """Drives one writer; subclasses say which, and what the model must hold at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.model = RedisModel()
        self.connection: ModelConnection | None = None
        self.offered: list[Any] = []
        self.now_ms = 1_700_000_000_000
        self.sink: Any = None
        self.exact = True
        # Thousands of lost connections are a lot of log lines.
        self.quiet = pytest.MonkeyPatch()
        self.quiet.setattr("services.storage.redis_sink._log", Mock())
        self.quiet.setattr("services.storage.accounted_sink._log", Mock())

    def make(self, **options: Any) -> RedisSink:
        raise NotImplementedError

    def judge(self) -> None:
        raise NotImplementedError

    @initialize(queue_limit=st.sampled_from([5, 100_000]))
    def start(self, queue_limit: int) -> None:
        async def connect(*_: Any) -> Any:
            self.connection = ModelConnection(self.model)
            return self.connection

        self.exact = queue_limit > 5
        self.sink = self.make(
            queue_limit=queue_limit,
            connect=connect,
            backoff=Backoff(base_s=0.0, cap_s=0.0),
            parked_retry_s=0.0,
        )
        self.task = self.loop.create_task(self.sink.run())
        self.turn()

    def on_the_loop(self, act: Callable[[], None]) -> None:
        """Call something the way the event loop does."""

        async def calling() -> None:
            act()

        self.loop.run_until_complete(calling())

    def turn(self) -> None:
        """Let the event loop do what is due."""

        async def some_turns() -> None:
            for _ in range(6):
                await asyncio.sleep(0)

        self.loop.run_until_complete(some_turns())

    def teardown(self) -> None:
        try:
            if self.sink is not None:
                self.settle_all()
                if self.exact:
                    self.judge()
        finally:
            if self.sink is not None:
                self.task.cancel()
                self.loop.run_until_complete(asyncio.gather(self.task, return_exceptions=True))
            self.loop.close()
            self.quiet.undo()

    def settle_all(self) -> None:
        self.model.full = False
        for _ in range(200):
            self.turn()
            # What was confirmed just before a loss goes once more, although it is accounted for.
            if not self.sink._has_work and not self.sink._in_flight:
                return
            if self.connection is not None and self.connection.sent:
                self.on_the_loop(self.connection.answer_next)
        raise AssertionError(f"{self.sink.queued} records are never settled")

    def offer(self, record: Any) -> None:
        self.offered.append(record)

        # By both ways in: a run of ticks, and one by one.
        if isinstance(record, DataIngestionFormat) and len(self.offered) % 2:
            self.on_the_loop(lambda: self.sink.offer_ticks((record,)))
        else:
            self.on_the_loop(lambda: self.sink.offer(record))

    @rule(
        instrument=st.sampled_from(INSTRUMENTS),
        step_ms=st.sampled_from([0, 0, 0, 1]),
        volume=st.none() | st.integers(0, 50),
        bid=st.none() | st.sampled_from([1.25, 2.5, float("nan")]),
        oi=st.none() | st.just(12),
        price=st.sampled_from([1.0, 2.5, 2456.75, float("nan"), float("inf")]),
        turn=st.booleans(),
    )
    def tick(self, instrument: str, step_ms: int, turn: bool, **fields: Any) -> None:
        self.now_ms += step_ms
        self.offer(self._record(instrument, self.now_ms, **fields))
        if turn:
            self.turn()

    @rule(instrument=st.sampled_from(INSTRUMENTS), age_ms=st.integers(1, 20))
    def late_tick(self, instrument: str, age_ms: int) -> None:
        # As the normaliser makes them: a late tick has no volume of its own.
        self.offer(
            self._record(instrument, self.now_ms - age_ms, price=9.5, volume=None, bid=None, flags=FLAG_LATE)
        )

    @rule(instrument=st.sampled_from(INSTRUMENTS))
    def control(self, instrument: str) -> None:
        exchange = instrument.partition(":")[0]
        position = len(self.offered) + 1
        self.offer(
            ControlRecord("gap", instrument, exchange, self.now_ms, 1, "X", {"reason": "r"}, position, 0)
        )

    def _record(self, instrument: str, at_ms: int, **fields: Any) -> DataIngestionFormat:
        return DataIngestionFormat(
            instrument,
            timestamp=at_ms,
            provider_code="DHAN",
            exchange=instrument.partition(":")[0],
            position_ms=len(self.offered) + 1,
            **fields,
        )

    @rule(count=st.integers(1, 4))
    def answers(self, count: int) -> None:
        for _ in range(count):
            if self.connection is not None and self.connection.sent:
                self.on_the_loop(self.connection.answer_next)
        self.turn()

    @rule(carried_out=st.lists(st.integers(0, 40), min_size=1, max_size=3))
    def connection_is_lost(self, carried_out: list[int]) -> None:
        """Some commands were carried out, nobody knows which; and again on the next connection."""
        for commands in carried_out:
            connection = self.connection
            if connection is not None and connection.closed_by is None:
                connection.carry_out(commands)
                self.on_the_loop(lambda lost=connection: lost.abort(StorageUnavailable("lost")))
            self.turn()

    @precondition(lambda self: not self.model.full)
    @rule()
    def memory_runs_out(self) -> None:
        self.model.full = True

    @precondition(lambda self: self.model.full)
    @rule()
    def memory_is_there_again(self) -> None:
        self.model.full = False

    @rule()
    def the_task_fails_and_is_started_again(self) -> None:
        self.task.cancel()
        self.loop.run_until_complete(asyncio.gather(self.task, return_exceptions=True))
        self.task = self.loop.create_task(self.sink.run())
        self.turn()

    @invariant()
    def every_record_is_accounted_for(self) -> None:
        if self.sink is not None:
            assert self.sink.counters.imbalance(self.sink.queued) == 0, self.sink.counters

    @invariant()
    def the_task_lives(self) -> None:
        if self.sink is not None:
            assert not self.task.done(), self.task.exception()

    def good_ticks(self) -> list[DataIngestionFormat]:
        return [
            record
            for record in self.offered
            if isinstance(record, DataIngestionFormat) and record.price in (1.0, 2.5, 9.5, 2456.75)
        ]


class TimeSeriesMachine(WriterMachine):
    def make(self, **options: Any) -> RedisSink:
        return TimeSeriesWriter("redis://", clock=ManualClock(), retention_ms=1, **options)

    @rule(instrument=st.sampled_from(INSTRUMENTS))
    def a_series_nobody_has_written_to_appears(self, instrument: str) -> None:
        self.model.series.setdefault(f"md:ts:{{{instrument}}}:oi", {})

    @rule(instrument=st.sampled_from(INSTRUMENTS), name=st.sampled_from(["price", "volume"]))
    def a_series_has_to_be_made_again(self, instrument: str, name: str) -> None:
        if (key := f"md:ts:{{{instrument}}}:{name}") in self.model.series:
            self.model.hidden.add(key)

    def judge(self) -> None:
        expected: dict[str, dict[int, float]] = {}

        def series(tick: DataIngestionFormat, name: str) -> dict[int, float]:
            return expected.setdefault(f"md:ts:{{{tick.symbol}}}:{name}", {})

        for tick in self.good_ticks():
            series(tick, "price")[tick.timestamp] = tick.price
            if tick.volume is not None:
                volumes = series(tick, "volume")
                volumes[tick.timestamp] = volumes.get(tick.timestamp, 0) + tick.volume
            if tick.bid is not None and tick.bid == tick.bid:
                series(tick, "bid")[tick.timestamp] = tick.bid
            if tick.oi is not None:
                series(tick, "oi")[tick.timestamp] = tick.oi
        assert {key: samples for key, samples in self.model.series.items() if samples} == expected
        counters = self.sink.counters
        assert counters.rejected.keys() <= {"not_finite"}
        assert counters.written + counters.collapsed == len(self.good_ticks())
        if not any(tick.flags & FLAG_LATE for tick in self.good_ticks()):
            assert counters.written == sum(
                len(samples) for key, samples in expected.items() if key.endswith(":price")
            )


class StreamMachine(WriterMachine):
    def make(self, **options: Any) -> RedisSink:
        return StreamWriter("redis://", max_entries=1_000, **options)

    def judge(self) -> None:
        kept = [r for r in self.offered if isinstance(r, ControlRecord)] + self.good_ticks()
        for exchange in ("NSE", "BSE"):
            stored = [position for position, _ in self.model.streams.get(f"md:ticks:{exchange}", [])]
            assert stored == sorted((r.position_ms, 0) for r in kept if r.exchange == exchange)
        assert self.sink.counters.written == len(kept)
        assert self.sink.counters.rejected.keys() <= {"not_finite"}


class LatestValueMachine(WriterMachine):
    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, int] = {}
        self.kept: dict[str, dict[str, str]] = {}

    def make(self, **options: Any) -> RedisSink:
        return LatestValueWriter("redis://", **options)

    @rule()
    def the_log_reaches_the_disk(self) -> None:
        self.kept = {key: dict(fields) for key, fields in self.model.hashes.items()}

    @rule()
    def the_server_is_killed(self) -> None:
        """It forgets what is not on its disk, and what it answered about that."""
        self.model.hashes = {key: dict(fields) for key, fields in self.kept.items()}
        self.shown = self._times_shown()
        self.connection_is_lost([0])

    def _times_shown(self) -> dict[str, int]:
        return {key: int(fields["t"]) for key, fields in self.model.hashes.items() if "t" in fields}

    @invariant()
    def nobody_sees_an_older_price_than_before(self) -> None:
        now = self._times_shown()
        assert {key: now[key] for key in self.shown if now[key] < self.shown[key]} == {}
        self.shown = now

    def judge(self) -> None:
        for instrument in INSTRUMENTS:
            offered = [
                r
                for r in self.offered
                if isinstance(r, DataIngestionFormat) and r.symbol == instrument and not r.flags & FLAG_LATE
            ]
            # A tick with a bad price that replaced a good one in the queue takes it along.
            if not offered or offered[-1] not in self.good_ticks():
                continue
            stored = self.model.hashes[f"md:last:{{{instrument}}}"]
            newest = offered[-1]
            assert (int(stored["t"]), float(stored["p"])) == (newest.timestamp, newest.price)
            known = {"type", "k", "src", "t", "r", "p"}
            known |= {"v"} if newest.volume is not None else set()
            known |= {"oi"} if newest.oi is not None else set()
            known |= {"b"} if newest.bid is not None and newest.bid == newest.bid else set()
            assert stored.keys() == known


_settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
TestTimeSeriesAccounts = TimeSeriesMachine.TestCase
TestTimeSeriesAccounts.settings = _settings
TestStreamAccounts = StreamMachine.TestCase
TestStreamAccounts.settings = _settings
TestLatestValueAccounts = LatestValueMachine.TestCase
TestLatestValueAccounts.settings = _settings
