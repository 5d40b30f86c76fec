"""The compiled functions for runs of ticks do what the interpreted ones do, to the last bit of state."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services import data_broadcast
from services.compiled import load
from services.data_broadcast import DataBroadcast, Pending, Publication
from services.market_data import bar_builder
from services.market_data.bar_builder import BarBuilder
from services.market_data.bar_grid import BarGrid
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import ManualClock
from services.market_data.records import (
    FLAG_DELAYED,
    FLAG_LATE,
    FLAG_SNAPSHOT,
    FLAG_SUSPECT,
    PROBE_EXCHANGE,
    PROBE_INSTRUMENT,
    ControlRecord,
    DataIngestionFormat,
)
from services.pipeline import sequencer
from services.pipeline.bar_sink import BarSink
from services.pipeline.sequencer import Sequencer
from services.storage import latest_value_writer
from services.storage.latest_value_writer import LatestValueWriter

pytestmark = pytest.mark.skipif(
    load("runs") is None, reason="services.compiled.runs is not built (scripts/compile.py builds it)"
)

NOW_MS = 1_790_000_000_000
GRID = BarGrid(MarketCalendar(always_open=True))
INSTRUMENTS = ("NSE:A", "NSE:B", "BSE:A", "NSE:C", PROBE_INSTRUMENT)


class _Derived(DataIngestionFormat, gc=False):
    """A record of a class of its own, with a field more."""

    more: int = 0


def a_tick(
    instrument: str, price: Any, volume: Any, at_ms: int, code: str, flags: int, *, derived: bool = False
) -> DataIngestionFormat:
    exchange = PROBE_EXCHANGE if instrument == PROBE_INSTRUMENT else instrument.partition(":")[0]
    made = _Derived if derived else DataIngestionFormat
    # Texts made anew are equal, and not the same objects.
    return made(
        "".join([*instrument]),
        price,
        volume,
        at_ms,
        "".join([*code]),
        flags=flags,
        exchange="".join([*exchange]),
    )


ticks_of_a_run = st.lists(
    st.builds(
        a_tick,
        st.sampled_from(INSTRUMENTS),
        st.sampled_from([1.0, 1.5, 0.5, 2.25, float("nan"), float("inf"), -0.0, 3, 10**30]),
        st.sampled_from([None, 1, 7, 0, 1 << 70, 2**31]),
        st.integers(-200_000, 200_000).map(lambda ms: NOW_MS + ms)
        | st.integers(0, 3_000).map(lambda ms: NOW_MS + ms)
        | st.just(0),
        st.sampled_from(["DHAN", "YAHOO"]),
        st.sampled_from(
            [0, 0, 0, 0, FLAG_LATE, FLAG_SNAPSHOT, FLAG_SUSPECT, FLAG_DELAYED, FLAG_LATE | FLAG_DELAYED]
        ),
        derived=st.sampled_from([False, False, False, True]),
    ),
    max_size=25,
)
runs_of_ticks = st.lists(ticks_of_a_run, min_size=1, max_size=4)


def copies(runs: list[list[DataIngestionFormat]]) -> list[list[DataIngestionFormat]]:
    return [[msgspec.structs.replace(tick) for tick in run] for run in runs]


@contextmanager
def interpreted() -> Iterator[None]:
    """Let everything run as Python."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sequencer, "_stamp_run", None)
        patch.setattr(bar_builder, "_take_run", None)
        patch.setattr(data_broadcast, "_fan_out", None)
        patch.setattr(latest_value_writer, "_keep_newest", None)
        yield


def test_what_is_compared_is_compiled() -> None:
    assert sequencer._stamp_run is load("runs").stamp_run  # type: ignore[union-attr]
    assert bar_builder._take_run is load("runs").take_run  # type: ignore[union-attr]
    assert data_broadcast._fan_out is load("runs").fan_out  # type: ignore[union-attr]
    assert latest_value_writer._keep_newest is load("runs").keep_newest  # type: ignore[union-attr]


# ---- positions --------------------------------------------------------------------------------------


@given(runs_of_ticks, st.sampled_from([(NOW_MS - 5, 3), (NOW_MS + 5, 7), (NOW_MS, (1 << 64) - 2), (0, 0)]))
def test_positions_are_the_same(runs: list[list[DataIngestionFormat]], resumed: tuple[int, int]) -> None:
    def stamped(given_runs: list[list[DataIngestionFormat]]) -> Any:
        clock = ManualClock(NOW_MS)
        one = Sequencer(clock)
        one.resume_after("NSE", resumed)
        for run in given_runs:
            gap = ControlRecord("gap", "NSE:A", "NSE", NOW_MS, NOW_MS, "DHAN", {})
            one.stamp_run([*run, gap])
            clock.advance(0.001)
            one.stamp_run(tuple(run))
        return one._last, [(tick.position_ms, tick.position_seq) for run in given_runs for tick in run]

    with interpreted():
        expected = stamped(copies(runs))
    assert stamped(copies(runs)) == expected


# ---- bars -------------------------------------------------------------------------------------------


def state_of(builder: BarBuilder) -> Any:
    """Return all that a builder knows, as text: not even a NaN or a sign of zero may differ."""

    def slots(o: Any) -> dict[str, Any]:
        return {name: getattr(o, name) for name in type(o).__slots__ if name not in ("book", "newest")}

    def a_bar(bar: Any) -> str:
        return repr((bar.book.instrument, slots(bar)))

    return (
        {
            name: repr(
                (
                    {
                        **slots(book),
                        "minutes": [*map(a_bar, book.minutes)],
                        "longer": [*map(a_bar, book.longer)],
                    },
                    book.newest is not None and a_bar(book.newest),
                )
            )
            for name, book in builder._books.items()
        },
        {due: [*map(a_bar, bars)] for due, bars in builder._due.items()},
        builder._order,
        [*map(a_bar, builder._changed)],
        builder._gaps._of,
        builder.refused,
    )


@settings(max_examples=200)
@given(runs_of_ticks, st.integers(0, 400_000))
def test_bars_are_the_same(runs: list[list[DataIngestionFormat]], passing_ms: int) -> None:
    def built(given_runs: list[list[DataIngestionFormat]]) -> Any:
        seen: list[Any] = []
        builder = BarBuilder(GRID)
        sink = BarSink(lambda: builder, ManualClock(NOW_MS), lambda _record: None)
        now_ms = NOW_MS
        for number, run in enumerate(given_runs, 1):
            for place, tick in enumerate(run):
                tick.position_ms, tick.position_seq = now_ms, place
            sink.offer_ticks(run if number % 2 else tuple(run))
            now_ms += passing_ms
            bars, more = builder.close(now_ms)
            seen.append(
                (repr(bars), more, sink.probe_ms, msgspec.to_builtins(sink.counters), state_of(builder))
            )
        return seen

    with interpreted():
        expected = built(copies(runs))
    assert built(copies(runs)) == expected


# ---- newest values, and who watches them -----------------------------------------------------------------


class _Watcher:
    def __init__(self, broadcast: DataBroadcast, heard: list[Any]) -> None:
        self._broadcast = broadcast
        self._heard = heard

    def take(self, publication: Publication) -> None:
        record = publication.record
        newest = self._broadcast.latest(record.symbol)
        # What a watcher can see at that moment is the same as well.
        self._heard.append((id(self), repr(publication), self._broadcast.positions(), newest is record))

    def take_control(self, publication: Publication) -> None:
        raise NotImplementedError


@settings(max_examples=200)
@given(
    runs_of_ticks,
    st.lists(st.tuples(st.sampled_from(INSTRUMENTS), st.booleans(), st.integers(0, 2)), max_size=8),
    st.lists(st.tuples(st.sampled_from(["NSE", "BSE"]), st.integers(0, 2)), max_size=2),
)
def test_watchers_get_the_same(
    runs: list[list[DataIngestionFormat]],
    watches: list[tuple[str, bool, int]],
    exchanges: list[tuple[str, int]],
) -> None:
    def shown(given_runs: list[list[DataIngestionFormat]]) -> Any:
        broadcast = DataBroadcast(ManualClock(NOW_MS))
        heard: list[Any] = []
        watchers = [_Watcher(broadcast, heard) for _ in range(3)]
        pending: list[Pending] = [{}, {}, {}]
        for instrument, conflated, number in watches:
            broadcast.attach(watchers[number], [instrument], pending[number] if conflated else None)
        for exchange, number in exchanges:
            broadcast.attach_exchanges(watchers[number], [exchange])
        names = {id(watcher): number for number, watcher in enumerate(watchers)}
        for run in given_runs:
            for place, tick in enumerate(run):
                tick.position_ms, tick.position_seq = NOW_MS, place
            broadcast.offer_ticks(run)
        return (
            [(names[who], *rest) for who, *rest in heard],
            [[(symbol, repr(publication)) for symbol, publication in each.items()] for each in pending],
            [(symbol, repr(tick)) for symbol, tick in broadcast._newest.items()],
            [(exchange, repr(tick)) for exchange, tick in broadcast._tips.items()],
            broadcast.probe_ms,
            msgspec.to_builtins(broadcast.counters),
        )

    with interpreted():
        expected = shown(copies(runs))
    assert shown(copies(runs)) == expected


@pytest.mark.parametrize("times", [(1 << 70, NOW_MS), (NOW_MS, 1 << 70), (1 << 70, 1 << 70), (-5, 1 << 63)])
def test_times_beyond_all_machine_words_are_compared_as_well(times: tuple[int, int]) -> None:
    broadcast = DataBroadcast(ManualClock(NOW_MS))
    first, second = [a_tick("NSE:A", 1.0, 1, at_ms, "DHAN", 0) for at_ms in times]
    broadcast.offer_ticks((first, second))
    assert broadcast.latest("NSE:A") is (second if times[1] >= times[0] else first)


def test_one_publication_is_shared_by_all_who_watch() -> None:
    broadcast = DataBroadcast(ManualClock(NOW_MS))
    taken: list[Publication] = []

    class Taker:
        take_control = take = taken.append

    pending: Pending = {}
    broadcast.attach(Taker(), ["NSE:A"])
    broadcast.attach(_Watcher(broadcast, []), ["NSE:A"], pending)
    broadcast.attach_exchanges(Taker(), ["NSE"])
    tick = a_tick("NSE:A", 1.0, 1, NOW_MS, "DHAN", 0)
    broadcast.offer_ticks([tick])
    assert taken[0] is taken[1] is pending["NSE:A"]
    assert type(taken[0]) is Publication
    assert taken[0] == Publication(tick)
    assert taken[0].record is tick
    taken[0].frame = b"made once"
    assert pending["NSE:A"].frame == b"made once"


@given(runs_of_ticks, st.integers(1, 4))
def test_the_newest_value_that_waits_is_the_same(runs: list[list[DataIngestionFormat]], limit: int) -> None:
    def waiting(given_runs: list[list[DataIngestionFormat]]) -> Any:
        writer = LatestValueWriter("redis://127.0.0.1:1/0", queue_limit=limit)
        for run in given_runs:
            writer.offer_ticks(run)
        return [(symbol, repr(tick)) for symbol, tick in writer._pending.items()], repr(writer.counters)

    with interpreted():
        expected = waiting(copies(runs))
    assert waiting(copies(runs)) == expected


# ---- memory ---------------------------------------------------------------------------------------------


class _Forgetful:
    def take(self, publication: Publication) -> None:
        return

    def take_control(self, publication: Publication) -> None:
        return


def test_what_is_no_tick_is_refused_before_it_is_read() -> None:
    for sink in (
        BarSink(lambda: BarBuilder(GRID), ManualClock(NOW_MS), lambda _record: None),
        DataBroadcast(ManualClock(NOW_MS)),
        LatestValueWriter("redis://127.0.0.1:1/0"),
    ):
        with pytest.raises(TypeError, match="not a tick"):
            sink.offer_ticks([object()])  # type: ignore[list-item]


def test_nothing_is_kept_that_nobody_holds() -> None:
    builder, broadcast = BarBuilder(GRID), DataBroadcast(ManualClock(NOW_MS))
    writer, stamping = LatestValueWriter("redis://127.0.0.1:1/0"), Sequencer(ManualClock(NOW_MS))
    pending: Pending = {}
    broadcast.attach(_Forgetful(), ["NSE:A"], pending)
    broadcast.attach(_Forgetful(), ["NSE:A"])

    def one_run() -> None:
        run = [
            a_tick("NSE:A", 1_000.0 + number % 7, 1_000_000, NOW_MS + number, "DHAN", 0)
            for number in range(200)
        ]
        stamping.stamp_run(run)
        builder.take_run(run)
        broadcast.offer_ticks(run)
        writer.offer_ticks(run)

    held = [a_tick("NSE:A", 5_000.0, 1_000_000, NOW_MS, "DHAN", 0)]
    one_run()
    before = sys.getrefcount(held[0])
    for _ in range(5):
        stamping.stamp_run(held)
        builder.take_run(held)
        broadcast.offer_ticks(held)
        writer.offer_ticks(held)
    one_run()
    pending.clear()
    gc.collect()
    after = sys.getrefcount(held[0])
    assert after == before
    blocks = []
    for _ in range(6):
        for _ in range(20):
            one_run()
        gc.collect()
        blocks.append(sys.getallocatedblocks())
    assert blocks[-1] - blocks[1] < 2_000, blocks
