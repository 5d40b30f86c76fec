"""Ticks go on by runs: positions, order and what sinks make of them are as if they went one by one."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.daemon.flow import LONGEST_RUN, Flow
from services.data_broadcast import DataBroadcast, Pending, Publication
from services.market_data.bar_builder import BarBuilder
from services.market_data.bar_grid import BarGrid
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import ManualClock
from services.market_data.records import (
    FLAG_LATE,
    FLAG_SNAPSHOT,
    PROBE_EXCHANGE,
    PROBE_INSTRUMENT,
    ControlRecord,
    DataIngestionFormat,
    Record,
)
from services.pipeline.bar_sink import BarSink
from services.pipeline.sequencer import Sequencer
from services.pipeline.sink import Sink
from services.storage.latest_value_writer import LatestValueWriter

NOW_MS = 1_790_000_000_000
INSTRUMENTS = ("NSE:A", "NSE:B", "BSE:A", PROBE_INSTRUMENT)


class _Seen(Sink):
    """Keeps what it is given; `runs` are the lengths of the runs."""

    def __init__(self) -> None:
        super().__init__("seen")
        self.records: list[Record] = []
        self.runs: list[int] = []

    @property
    def queued(self) -> int:
        return 0

    def offer(self, record: Record) -> None:
        self.records.append(record)

    def offer_ticks(self, ticks: Any) -> None:
        self.runs.append(len(ticks))
        super().offer_ticks(ticks)

    async def run(self) -> None:
        raise NotImplementedError

    async def drain(self, deadline_s: float) -> int:
        raise NotImplementedError


def tick(
    instrument: str = "NSE:A", price: float = 1.0, at_ms: int = NOW_MS, **fields: Any
) -> DataIngestionFormat:
    exchange = PROBE_EXCHANGE if instrument == PROBE_INSTRUMENT else instrument.partition(":")[0]
    return DataIngestionFormat(instrument, price, 1, at_ms, "DHAN", exchange=exchange, **fields)


def gap(instrument: str = "NSE:A") -> ControlRecord:
    return ControlRecord("gap", instrument, "NSE", NOW_MS, NOW_MS, "DHAN", {"reason": "r"})


some_ticks = st.lists(
    st.builds(
        tick,
        st.sampled_from(INSTRUMENTS),
        st.sampled_from([1.0, 1.5, 0.5]),
        st.integers(-90_000, 90_000).map(lambda ms: NOW_MS + ms),
        flags=st.sampled_from([0, 0, 0, FLAG_LATE, FLAG_SNAPSHOT]),
    ),
    max_size=30,
)


async def test_ticks_wait_for_the_end_of_the_turn_and_a_control_record_takes_those_before_it_along() -> None:
    flow, seen = Flow(ManualClock(NOW_MS)), _Seen()
    flow.connect((seen,), ())
    first, second, third = tick(), tick("NSE:B"), tick()
    between = gap()
    for record in (first, second):
        flow.publish(record)
    assert seen.records == []
    flow.publish(between)
    assert seen.records == [first, second, between]
    flow.publish(third)
    await asyncio.sleep(0)
    assert seen.records == [first, second, between, third]
    assert seen.runs == [2, 1]
    assert [record.position for record in seen.records] == [f"{NOW_MS}-{seq}" for seq in range(4)]
    assert flow.bus.published == 4


async def test_a_flood_within_one_turn_goes_on_before_the_turn_ends() -> None:
    flow, seen = Flow(ManualClock(NOW_MS)), _Seen()
    flow.connect((seen,), ())
    for _ in range(LONGEST_RUN + 1):
        flow.publish(tick())
    assert seen.runs == [LONGEST_RUN]
    await asyncio.sleep(0)
    assert seen.runs == [LONGEST_RUN, 1]


@given(some_ticks, st.integers(-5, 5))
def test_a_run_gets_the_positions_its_ticks_would_get_one_by_one(
    ticks: list[DataIngestionFormat], ahead_ms: int
) -> None:
    one_by_one, at_once = Sequencer(ManualClock(NOW_MS)), Sequencer(ManualClock(NOW_MS))
    for sequencer in (one_by_one, at_once):
        sequencer.resume_after("NSE", (NOW_MS + ahead_ms, 7))
    positions = []
    for item in ticks:
        one_by_one.stamp(item)
        positions.append(item.position)
    at_once.stamp_run(ticks)
    assert [item.position for item in ticks] == positions
    assert at_once.positions() == one_by_one.positions()


class _Watcher:
    def __init__(self) -> None:
        self.taken: list[Record] = []

    def take(self, publication: Publication) -> None:
        self.taken.append(publication.record)

    def take_control(self, publication: Publication) -> None:
        raise NotImplementedError


def offered(sink: Sink, ticks: list[DataIngestionFormat], *, by_run: bool) -> None:
    if by_run:
        sink.offer_ticks(ticks)
    else:
        for item in ticks:
            sink.offer(item)


@given(some_ticks)
def test_a_broadcast_shows_a_run_as_it_shows_its_ticks(ticks: list[DataIngestionFormat]) -> None:
    Sequencer(ManualClock(NOW_MS)).stamp_run(ticks)
    shown = []
    for by_run in (False, True):
        broadcast, every, pending = DataBroadcast(ManualClock(NOW_MS)), _Watcher(), Pending()
        broadcast.attach(every, ["NSE:A"])
        broadcast.attach(_Watcher(), ["NSE:A", "BSE:A"], pending)
        whole: dict[Any, Any] = broadcast._exchange_audiences.setdefault("NSE", {})
        wide = _Watcher()
        whole[wide] = wide.take
        offered(broadcast, ticks, by_run=by_run)
        newest = {name: broadcast.latest(name) for name in INSTRUMENTS}
        conflated = [(name, publication.record) for name, publication in pending.items()]
        shown.append(
            (
                newest,
                every.taken,
                wide.taken,
                conflated,
                broadcast.positions(),
                broadcast.probe_ms,
                broadcast.counters,
            )
        )
    assert shown[0] == shown[1]


@given(some_ticks)
def test_bars_of_a_run_are_those_of_its_ticks(ticks: list[DataIngestionFormat]) -> None:
    Sequencer(ManualClock(NOW_MS)).stamp_run(ticks)
    made = []
    for by_run in (False, True):
        published: list[Record] = []
        clock = ManualClock(NOW_MS)
        grid = BarGrid(MarketCalendar(always_open=True))
        sink = BarSink(lambda grid=grid: BarBuilder(grid), clock, published.append)  # type: ignore[misc]
        offered(sink, ticks, by_run=by_run)
        forming = [sink.forming(name, "1m") for name in INSTRUMENTS]
        clock.advance(600)
        while sink.publish_finished():
            pass
        made.append((forming, published, sink.status(), sink.probe_ms, sink.counters))
    assert made[0] == made[1]


@given(some_ticks, st.sampled_from([1, 2, 100]))
def test_the_newest_values_of_a_run_are_those_of_its_ticks(
    ticks: list[DataIngestionFormat], limit: int
) -> None:
    left = []
    for by_run in (False, True):
        sink = LatestValueWriter("redis://127.0.0.1:1/0", queue_limit=limit)
        offered(sink, ticks, by_run=by_run)
        assert sink.counters.imbalance(sink.queued) == 0
        if limit == 100:
            left.append((list(sink._pending.items()), sink.counters))
    assert left[:1] == left[1:]


@pytest.mark.parametrize("by_run", [False, True])
def test_a_probe_is_seen_by_the_bars_and_makes_none(by_run: bool) -> None:
    sink = BarSink(
        lambda: BarBuilder(BarGrid(MarketCalendar(always_open=True))),
        ManualClock(NOW_MS),
        lambda record: None,
    )
    offered(sink, [tick(PROBE_INSTRUMENT, position_ms=77)], by_run=by_run)
    assert sink.probe_ms == 77
    assert sink.forming(PROBE_INSTRUMENT, "1m") is None


def test_a_bar_is_not_closed_before_the_ticks_of_the_turn_are_in_it() -> None:
    begin_ms = 1_780_000_020_000
    clock = ManualClock(begin_ms + 300_000)
    published: list[Record] = []
    waiting: list[DataIngestionFormat] = []
    sink = BarSink(
        lambda: BarBuilder(BarGrid(MarketCalendar(always_open=True))),
        clock,
        published.append,
        lambda: sink.offer_ticks([waiting.pop()] if waiting else []),
    )
    ticks = [
        DataIngestionFormat(
            "NSE:RELIANCE", price, 1, begin_ms + at_ms, "DHAN", exchange="NSE", position_ms=begin_ms
        )
        for at_ms, price in ((1_000, 100.0), (2_000, 101.0))
    ]
    sink.offer(ticks[0])
    waiting.append(ticks[1])
    sink.publish_finished()
    bars = [record for record in published if isinstance(record, ControlRecord)]
    minute = next(bar for bar in bars if bar.fields["i"] == "1m")
    assert (minute.fields["c"], minute.fields["n"]) == ("101.0", 2)
