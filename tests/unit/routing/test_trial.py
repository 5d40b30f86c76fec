"""What a standby proves, and when two sources count the same volume."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.market_data.records import FLAG_LATE, FLAG_SNAPSHOT, FLAG_SUSPECT, DataIngestionFormat
from services.routing.trial import (
    BRACKETS_NEEDED,
    HELD_AT_MOST,
    CounterCheck,
    Passed,
    StandbyTrial,
    first_quantity,
)

NOW_MS = 1_790_748_960_000


def tick(at_ms: int, price: float = 100.0, volume: int | None = None, flags: int = 0) -> DataIngestionFormat:
    return DataIngestionFormat(
        "NSE:A", price, None, at_ms, "B", "A", at_ms + 10, cumulative_volume=volume, flags=flags
    )


def heard(trial: StandbyTrial, record: DataIngestionFormat, passed: Passed | None, *, rescue: bool) -> bool:
    return trial.listen(
        record,
        record.received_ms / 1000,
        passed,
        tolerance_bps=50.0,
        within_ms=60_000,
        behind_ms=10_000,
        rescue=rescue,
        delayed=False,
    )


def test_in_a_rescue_only_what_is_newer_and_plausible_counts_and_is_held() -> None:
    trial, passed = StandbyTrial(0.0), Passed(100.0, NOW_MS, 500, NOW_MS)
    for flags in (FLAG_SNAPSHOT, FLAG_LATE, FLAG_SUSPECT):
        assert not heard(trial, tick(NOW_MS + 1_000, flags=flags), passed, rescue=True)
    assert not heard(trial, tick(NOW_MS), passed, rescue=True), "that time was delivered"
    assert heard(trial, tick(NOW_MS + 1_000), passed, rescue=True)
    assert heard(trial, tick(NOW_MS + 2_000, 100.5), passed, rescue=True)
    assert [held.timestamp for held in trial.held] == [NOW_MS + 1_000, NOW_MS + 2_000]
    assert not heard(trial, tick(NOW_MS + 3_000, 100.6), passed, rescue=True)
    view = trial.view(NOW_MS / 1000 + 4)
    assert (view.fresh, view.agrees, len(trial.held)) == (0, False, 0), "one implausible price begins anew"
    assert trial.off_bps == pytest.approx(60.0)


def test_what_is_held_is_bounded_and_what_is_dropped_is_counted() -> None:
    trial = StandbyTrial(0.0)
    for number in range(HELD_AT_MOST + 5):
        assert heard(trial, tick(NOW_MS + number), None, rescue=True)
    assert (len(trial.held), trial.overflowed) == (HELD_AT_MOST, 5)
    assert trial.held[-1].timestamp == NOW_MS + HELD_AT_MOST + 4


def test_beside_a_source_that_flows_a_break_begins_the_overlap_anew() -> None:
    trial, passed = StandbyTrial(0.0), Passed(100.0, NOW_MS, None, NOW_MS)
    assert heard(trial, tick(NOW_MS + 100), passed, rescue=False)
    assert trial.view((NOW_MS + 5_110) / 1000).clean_s == pytest.approx(5.0)
    trial.broken()
    assert trial.view((NOW_MS + 6_000) / 1000).clean_s == 0.0
    assert heard(trial, tick(NOW_MS - 200), passed, rescue=False), "a little behind is no fault"
    assert not trial.view((NOW_MS + 6_000) / 1000).whole, "but it cannot follow before it has caught up"
    assert not heard(trial, tick(NOW_MS - 10_001), passed, rescue=False)


@given(st.lists(st.tuples(st.integers(100, 3_000), st.integers(0, 500)), min_size=60, max_size=120))
def test_two_views_of_one_counter_are_found_to_be_the_same(steps: list[tuple[int, int]]) -> None:
    check, at_ms, volume = CounterCheck(), NOW_MS, 1_000
    for number, (step_ms, quantity) in enumerate(steps):
        at_ms += step_ms
        volume += quantity
        (check.present if number % 2 else check.standby)(at_ms, volume)
    assert not check.violated
    span_ms = at_ms - NOW_MS
    assert check.same or span_ms < 60_000 or check.brackets < BRACKETS_NEEDED


def test_a_counter_that_differs_is_found_out() -> None:
    check = CounterCheck()
    for second in range(20):
        check.present(NOW_MS + second * 1_000, 1_000 + second * 10)
        check.standby(NOW_MS + second * 1_000 + 500, 3_000 + second * 30)
    assert check.violated
    assert not check.same


@pytest.mark.parametrize(
    ("later_ms", "same", "without_gap", "quantity"),
    [
        (5_000, True, True, 70),
        (5_000, True, False, 70),
        (65_000, True, True, 70),
        (65_000, True, False, None),
        (5_000, False, True, None),
    ],
)
def test_the_first_quantity_is_told_only_where_it_is_known(
    later_ms: int, same: bool, without_gap: bool, quantity: int | None
) -> None:
    passed = Passed(100.0, NOW_MS, 500, NOW_MS)
    record = tick(NOW_MS + later_ms, volume=570)
    assert first_quantity(record, passed, same_counter=same, without_gap=without_gap) == quantity


def test_a_quantity_is_never_negative_nor_guessed() -> None:
    passed = Passed(100.0, NOW_MS, 500, NOW_MS)
    assert first_quantity(tick(NOW_MS, volume=499), passed, same_counter=True, without_gap=True) is None
    assert first_quantity(tick(NOW_MS), passed, same_counter=True, without_gap=True) is None
    assert first_quantity(tick(NOW_MS, volume=5), None, same_counter=True, without_gap=True) is None
