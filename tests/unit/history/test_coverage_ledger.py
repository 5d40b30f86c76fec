"""The ledger while PostgreSQL is away, and when Redis lost what it held: a store that a test switches off."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from services.errors import TemporaryError
from services.history import coverage_ledger
from services.history.coverage_ledger import CoverageLedger
from services.history.coverage_store import CoverageStore
from services.market_data.candles import CoverageSpan
from services.market_data.clock import ManualClock
from services.market_data.coverage import HAVE, MINUTES, MISSING, TICKS, Note
from services.market_data.records import ControlRecord
from tests.support.eventually import eventually
from tests.support.loop_turns import measured_turns

NOW_MS = 1_796_100_000_000
MINUTE_MS = 60_000


class Store(CoverageStore):
    """Takes notes in memory; away while `away`."""

    def __init__(self) -> None:
        super().__init__("postgresql://nobody@127.0.0.1:1/none")
        self.away = False
        self.taken: list[Note] = []
        self.asked = 0
        self.slow: asyncio.Event | None = None

    async def note(self, notes: Sequence[Note]) -> None:
        self.asked += 1
        if self.slow is not None:
            await self.slow.wait()
        if self.away:
            raise TemporaryError("away")
        self.taken += notes

    async def forget(self) -> None:
        self.taken = [note for note in self.taken if note.state != HAVE]


def bar(instrument: str, start_ms: int) -> ControlRecord:
    fields: dict[str, str | int] = {"i": "1m", "s": start_ms}
    return ControlRecord("bar", instrument, "NSE", start_ms, start_ms, "DHAN", fields)


def gap(instrument: str, from_ms: int, to_ms: int) -> ControlRecord:
    return ControlRecord(
        "gap", instrument, "NSE", to_ms, to_ms, "DHAN", {"from": from_ms, "to": to_ms, "reason": "stale"}
    )


async def test_a_long_outage_of_postgresql_crowds_no_gap_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage_ledger, "MOST_PENDING", 500)
    monkeypatch.setattr(coverage_ledger, "FLUSH_EVERY_S", 0.01)
    monkeypatch.setattr(coverage_ledger, "_WAIT_S", (0.01,))
    clock, store = ManualClock(NOW_MS), Store()
    ledger = CoverageLedger(store, clock)
    ledger.flowing = lambda _: True
    store.away = True
    names = [f"NSE:{number}" for number in range(50)]
    for name in names:
        ledger.note_record(bar(name, NOW_MS - NOW_MS % MINUTE_MS))
    ledger.note_record(gap("NSE:OTHER", NOW_MS - 5 * MINUTE_MS, NOW_MS - 4 * MINUTE_MS))
    task = asyncio.ensure_future(ledger.run())
    await eventually(lambda: bool(ledger.reason))
    for _ in range(30):
        clock.advance(61.0)
        asked = store.asked
        await eventually(lambda asked=asked: store.asked > asked + 1)  # type: ignore[misc]
    ledger.note_record(gap("NSE:1", NOW_MS, NOW_MS + MINUTE_MS))
    assert ledger.dropped == 0
    store.away = False
    await eventually(lambda: not ledger.reason and not ledger.pending)
    clock.advance(61.0)
    await eventually(lambda: any(note.state == HAVE and note.instrument == "NSE:7" for note in store.taken))
    task.cancel()
    await asyncio.wait([task])
    assert {note.instrument for note in store.taken if note.state == MISSING} == {"NSE:OTHER", "NSE:1"}
    (had,) = [note for note in store.taken if note.instrument == "NSE:7" and note.type == "1m"]
    assert had.to_ms >= NOW_MS + 30 * MINUTE_MS


@pytest.mark.parametrize("under_way", [False, True])
async def test_what_was_noted_before_redis_lost_it_is_not_written_after(under_way: bool) -> None:
    store = Store()
    ledger = CoverageLedger(store, ManualClock(NOW_MS))
    before = Note(instrument="NSE:1", type="1m", state=HAVE, source="DHAN", from_ms=0, to_ms=MINUTE_MS)
    missing = Note(instrument="NSE:1", type="1m", state=MISSING, from_ms=MINUTE_MS, to_ms=2 * MINUTE_MS)
    after = Note(instrument="NSE:2", type="1m", state=HAVE, source="DHAN", from_ms=0, to_ms=MINUTE_MS)
    ledger.note(before, missing)
    if under_way:
        store.slow = asyncio.Event()
        flushing = asyncio.ensure_future(ledger.flush())
        await eventually(lambda: store.asked == 1)
        ledger.forget()
        ledger.note(after)
        store.slow.set()
        await flushing
    else:
        ledger.forget()
        ledger.note(after)
        await ledger.flush()
    assert not ledger.pending
    assert before not in store.taken
    assert missing in store.taken
    assert after in store.taken


def wide_gap(from_ms: int, to_ms: int, **more: str) -> ControlRecord:
    fields: dict[str, str | int] = {"from": from_ms, "to": to_ms, "reason": "spool_full", **more}
    return ControlRecord("gap", "", "NSE", to_ms, to_ms, "", fields)


def spans(store: Store, instrument: str, kind: str = MINUTES) -> list[tuple[str, int, int]]:
    """What was noted of an instrument, in order, in minutes from NOW."""
    return [
        (note.state, (note.from_ms - START) // MINUTE_MS, (note.to_ms - START) // MINUTE_MS)
        for note in store.taken
        if note.instrument == instrument and note.type == kind
    ]


START = NOW_MS - NOW_MS % MINUTE_MS


@pytest.mark.alone
async def test_a_gap_of_a_whole_exchange_is_noted_in_slices(tmp_path: Path) -> None:
    names = [f"NSE:SYM{number}" for number in range(20_000)]
    store = Store()
    ledger = CoverageLedger(store, ManualClock(NOW_MS), tmp_path / "pending.jsonl")
    await ledger.open()
    ledger.instruments_of = lambda _: names
    with measured_turns() as turns:
        ledger.note_record(wide_gap(START, START + MINUTE_MS))
        task = asyncio.ensure_future(ledger.run())
        await eventually(lambda: not ledger.pending and store.taken, within_s=30)
    task.cancel()
    await asyncio.wait([task])
    assert turns.turns > 100
    assert turns.worst_ms < 5, turns.report()
    assert spans(store, names[0]) == spans(store, names[-1]) == [("missing", 0, 1)]
    assert len({note.instrument for note in store.taken}) == len(names)
    await ledger.close()


async def test_what_is_told_behind_the_gap_of_an_exchange_counts_after_it() -> None:
    names = [f"NSE:{number}" for number in range(3)]
    store = Store()
    ledger = CoverageLedger(store, ManualClock(NOW_MS))
    ledger.instruments_of = lambda _: names
    ledger.note_record(bar(names[0], START))
    ledger.note_record(wide_gap(START + MINUTE_MS, START + 2 * MINUTE_MS))
    ledger.note_record(bar(names[0], START + 2 * MINUTE_MS))
    ledger.note_record(gap(names[0], START + 4 * MINUTE_MS, START + 5 * MINUTE_MS))
    ledger.note_record(wide_gap(START + 6 * MINUTE_MS, START + 7 * MINUTE_MS, store="bar_series"))
    assert ledger.pending == 4
    await ledger.flush()
    assert spans(store, names[0]) == [
        ("have", 0, 1),
        ("missing", 1, 2),
        ("have", 2, 3),
        ("missing", 4, 5),
        ("missing", 6, 7),
    ]
    assert spans(store, names[2]) == [("missing", 1, 2), ("missing", 6, 7)]
    assert spans(store, names[2], TICKS) == [("missing", 1, 2)]


async def test_a_reader_sees_the_gap_of_an_exchange_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    ledger = CoverageLedger(store, ManualClock(NOW_MS))
    ledger.instruments_of = lambda _: ["NSE:1", "NSE:2"]

    async def nothing(_: str) -> list[CoverageSpan]:
        return []

    monkeypatch.setattr(store, "of", nothing)
    ledger.note_record(wide_gap(START, START + MINUTE_MS))
    found = await ledger.of("NSE:2")
    assert [(row.type, row.state) for row in found] == [(TICKS, MISSING), (MINUTES, MISSING)]


async def test_a_kill_before_it_was_worked_through_loses_no_gap_of_an_exchange(tmp_path: Path) -> None:
    killed = CoverageLedger(Store(), ManualClock(NOW_MS), tmp_path / "pending.jsonl")
    await killed.open()
    killed.note_record(wide_gap(START, START + MINUTE_MS))
    killed.note_record(gap("NSE:1", START + 2 * MINUTE_MS, START + 3 * MINUTE_MS))
    assert killed._journal is not None
    killed._journal.close()
    store = Store()
    ledger = CoverageLedger(store, ManualClock(NOW_MS), tmp_path / "pending.jsonl")
    await ledger.open()
    ledger.instruments_of = lambda _: ["NSE:1", "NSE:2"]
    await ledger.flush()
    assert spans(store, "NSE:1") == [("missing", 0, 1), ("missing", 2, 3)]
    assert spans(store, "NSE:2") == [("missing", 0, 1)]
    assert (tmp_path / "pending.jsonl").read_bytes() == b""
    await ledger.close()


async def test_forgetting_what_was_had_keeps_the_gaps_that_wait() -> None:
    store = Store()
    ledger = CoverageLedger(store, ManualClock(NOW_MS))
    ledger.instruments_of = lambda _: ["NSE:1"]
    ledger.note_record(wide_gap(START, START + MINUTE_MS))
    ledger.note_record(bar("NSE:1", START + MINUTE_MS))
    ledger.forget()
    await ledger.close()
    assert spans(store, "NSE:1") == [("missing", 0, 1)]
