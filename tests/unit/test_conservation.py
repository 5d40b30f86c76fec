"""The judge of the fault tests: everything that may go wrong with a tick is seen, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from simulators.journal import SentTick
from tests.support.conservation import InstrumentStore, StoredGap, StoredTick, Verdict, judge_all

KEY = "NSE:TCS"
NAMES = {"NSE_EQ:11536": KEY}
BASE_MS = 1_700_000_000_000


def sent(seq: int, *, connection: int = 1, fault: str | None = None) -> SentTick:
    return SentTick(
        provider="dhan",
        symbol="NSE_EQ:11536",
        seq=seq,
        price=100.0 + seq,
        decimals=2,
        event_ms=BASE_MS + 100 * seq,
        quantity=10,
        volume=1_000 + 10 * seq,
        bid=None,
        ask=None,
        sent_ms=BASE_MS + 100 * seq,
        connection=connection,
        packet="full",
        fault=fault,
    )


def stored(seq: int, *, volume: int | None = 10, price: float | None = None) -> StoredTick:
    at_ms = BASE_MS + 100 * seq
    return StoredTick(at_ms, at_ms, 100.0 + seq if price is None else price, volume)


def store(entries: Sequence[StoredTick | StoredGap]) -> dict[str, InstrumentStore]:
    ticks = [entry for entry in entries if isinstance(entry, StoredTick)]
    return {
        KEY: InstrumentStore(
            list(entries),
            {tick.time_ms: tick.price for tick in ticks},
            {tick.time_ms: float(tick.volume) for tick in ticks if tick.volume is not None},
        )
    }


def verdict(ticks: Sequence[SentTick], entries: Sequence[StoredTick | StoredGap]) -> Verdict:
    return judge_all(ticks, store(entries), NAMES)


FIVE = [sent(seq) for seq in range(1, 6)]
FIVE_STORED = [stored(1, volume=None), *(stored(seq) for seq in range(2, 6))]
GAP = StoredGap(BASE_MS, BASE_MS + 1_000, "daemon_down")


def test_all_stored_is_clean() -> None:
    found = verdict(FIVE, FIVE_STORED)
    assert found.clean, found.lines()
    assert (found.sent, found.stored) == (5, 5)


def test_a_repeat_must_be_stored_once() -> None:
    assert verdict([*FIVE, FIVE[-1]], FIVE_STORED).clean


def test_a_missing_tick_is_lost() -> None:
    found = verdict(FIVE, [*FIVE_STORED[:2], *FIVE_STORED[3:]])
    assert [(run.first.seq, run.last.seq, run.count) for run in found.lost] == [(3, 3, 1)]


def test_missing_ticks_with_a_gap_between_their_neighbours_are_declared() -> None:
    found = verdict(FIVE, [*FIVE_STORED[:2], GAP, *FIVE_STORED[4:]])
    assert found.clean, found.lines()
    assert found.declared == {"daemon_down": 2}


def test_a_gap_elsewhere_declares_nothing() -> None:
    assert verdict(FIVE, [GAP, *FIVE_STORED[:2], *FIVE_STORED[3:]]).lost_count == 1
    assert verdict(FIVE, [*FIVE_STORED[:2], *FIVE_STORED[3:], GAP]).lost_count == 1


def test_ticks_missing_at_the_end_are_lost_unless_a_gap_follows() -> None:
    assert verdict(FIVE, FIVE_STORED[:3]).lost_count == 2
    assert verdict(FIVE, [*FIVE_STORED[:3], GAP]).clean


def test_an_entry_twice_is_a_duplicate() -> None:
    assert len(verdict(FIVE, [*FIVE_STORED, FIVE_STORED[2]]).doubled) == 1


def test_entries_out_of_order_are_seen() -> None:
    swapped = [*FIVE_STORED[:2], FIVE_STORED[3], FIVE_STORED[2], FIVE_STORED[4]]
    assert len(verdict(FIVE, swapped).disordered) == 1


def test_a_price_nobody_sent_is_foreign() -> None:
    assert len(verdict(FIVE, [*FIVE_STORED, stored(9, price=55.5)]).foreign) == 1


def test_what_was_damaged_on_purpose_must_not_be_stored() -> None:
    ticks = [*FIVE[:4], sent(5, fault="price_zero")]
    assert verdict(ticks, FIVE_STORED[:4]).clean
    assert len(verdict(ticks, FIVE_STORED).foreign) == 1


def test_a_wrong_quantity_or_second_is_a_change() -> None:
    wrong = FIVE_STORED[3]._replace(volume=11)
    assert len(verdict(FIVE, [*FIVE_STORED[:3], wrong, FIVE_STORED[4]]).changed) == 1
    late = FIVE_STORED[3]._replace(time_ms=FIVE_STORED[3].time_ms + 1_000)
    assert len(verdict(FIVE, [*FIVE_STORED[:3], late, FIVE_STORED[4]]).changed) == 1


def test_a_quantity_may_be_unknown_after_a_gap_and_nowhere_else() -> None:
    unknown = FIVE_STORED[3]._replace(volume=None)
    assert verdict(FIVE, [*FIVE_STORED[:3], GAP, unknown, FIVE_STORED[4]]).clean
    assert len(verdict(FIVE, [*FIVE_STORED[:3], unknown, FIVE_STORED[4]]).changed) == 1


def test_the_series_must_hold_what_the_stream_holds() -> None:
    found = store(FIVE_STORED)
    del found[KEY].prices[FIVE_STORED[2].time_ms]
    assert len(judge_all(FIVE, found, NAMES).changed) == 1
    found = store(FIVE_STORED)
    found[KEY].volumes[FIVE_STORED[2].time_ms] = 11.0
    assert len(judge_all(FIVE, found, NAMES).changed) == 1
    found = store(FIVE_STORED)
    found[KEY].prices[BASE_MS] = 1.0
    assert len(judge_all(FIVE, found, NAMES).foreign) == 1


def test_ticks_of_one_millisecond_share_the_last_price_and_the_summed_quantity() -> None:
    entries = [*FIVE_STORED[:3], FIVE_STORED[3]._replace(time_ms=FIVE_STORED[2].time_ms), FIVE_STORED[4]]
    found = store(entries)
    found[KEY].volumes[FIVE_STORED[2].time_ms] = 20.0
    result = judge_all(FIVE, found, NAMES)
    assert result.clean, result.lines()
    assert result.collapsed == 1


def test_a_kill_excuses_only_what_was_sent_shortly_before_it() -> None:
    ticks = [*FIVE, *(sent(seq, connection=2) for seq in range(20, 23))]
    after = [stored(20, volume=None), stored(21), stored(22)]
    kill_ms = BASE_MS + 550
    missing_two = [*FIVE_STORED[:3], *after]
    found = judge_all(ticks, store(missing_two), NAMES, kills_ms=[kill_ms], kill_bound_ms=200)
    assert found.clean, found.lines()
    assert (found.killed, found.killed_oldest_ms) == (2, 150)
    found = judge_all(ticks, store(missing_two), NAMES, kills_ms=[kill_ms], kill_bound_ms=100)
    assert found.lost_count == 1
    declared = [*FIVE_STORED[:3], GAP, *after]
    found = judge_all(ticks, store(declared), NAMES, kills_ms=[kill_ms])
    assert found.clean
    assert (found.killed, found.killed_oldest_ms) == (2, 150)


def test_dropped_ticks_are_declared_by_the_times_of_a_gap_told_later_where_its_reason_counts() -> None:
    told = StoredGap(BASE_MS + 300, BASE_MS + 399, "spool_full")
    entries = [*FIVE_STORED[:2], *FIVE_STORED[3:], told]
    found = store(entries)
    # The series missed the fourth, too, which the gap does not speak of.
    del found[KEY].prices[FIVE_STORED[3].time_ms]
    assert verdict(FIVE, entries).lost_count == 1
    by_time = judge_all(FIVE, store(entries), NAMES, by_time=frozenset({"spool_full"}))
    assert by_time.declared == {"spool_full": 1}
    assert by_time.lost == []
    assert len(judge_all(FIVE, found, NAMES, by_time=frozenset({"spool_full"})).changed) == 1
    assert judge_all(FIVE, store(entries), NAMES, by_time=frozenset({"other"})).lost_count == 1
