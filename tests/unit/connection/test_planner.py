"""The pure distribution of symbols over connections."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from services.connection.planner import Change, SharePlan


def shares(plan: SharePlan) -> list[list[str]]:
    return [list(share) for share in plan.shares]


def test_no_more_connections_are_used_than_needed_and_they_are_filled_evenly() -> None:
    plan = SharePlan([5_000] * 5, 5_000)
    plan.add(f"S{n}" for n in range(10))
    assert [len(share) for share in plan.shares] == [10, 0, 0, 0, 0]
    plan = SharePlan([4] * 5, 4)
    plan.add(f"S{n}" for n in range(7))
    assert [len(share) for share in plan.shares] == [4, 3, 0, 0, 0]


def test_symbols_stay_where_they_are_and_new_ones_go_to_the_emptiest() -> None:
    plan = SharePlan([4, 4], 4)
    plan.add("ABCDE")
    assert shares(plan) == [["A", "C", "E"], ["B", "D"]]
    assert plan.remove("AE") == {0: Change(removed=["A", "E"])}
    assert plan.add("FGFB") == {0: Change(added=["F", "G"])}
    assert shares(plan) == [["C", "F", "G"], ["B", "D"]]


def test_what_does_not_fit_is_named_and_takes_the_next_free_place() -> None:
    plan = SharePlan([2, 2], 2)
    plan.add("ABCDEF")
    assert list(plan.unplaced) == ["E", "F"]
    assert "E" in plan
    (index,) = (number for number, share in enumerate(plan.shares) if "B" in share)
    assert plan.remove("B") == {index: Change(added=["E"], removed=["B"])}
    assert list(plan.unplaced) == ["F"]
    assert plan.remove("F") == {}
    assert not plan.unplaced


def test_a_connection_that_may_carry_less_gives_symbols_to_another() -> None:
    plan = SharePlan([4, 4], 4)
    plan.add("ABCD")
    changes = plan.shrink(0, 2)
    assert shares(plan) == [["A", "B"], ["C", "D"]]
    assert changes == {0: Change(removed=["C", "D"]), 1: Change(added=["C", "D"])}
    plan.clear()
    plan.add("ABCDEFG")
    assert [len(share) for share in plan.shares] == [2, 4]
    assert list(plan.unplaced) == ["G"]


def test_a_small_change_of_a_large_plan_is_cheap() -> None:
    plan = SharePlan([5_000] * 5, 5_000)
    began = time.thread_time()
    plan.add(f"NSE_EQ:{n}" for n in range(24_999))
    assert time.thread_time() - began < 0.5
    began = time.thread_time()
    for n in range(1_000):
        plan.remove([f"NSE_EQ:{n}"])
        plan.add([f"NSE_FNO:{n}"])
    assert time.thread_time() - began < 0.1


symbols = st.lists(st.integers(0, 40).map(lambda n: f"S{n}"), max_size=25)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), symbols),
        st.tuples(st.just("remove"), symbols),
        st.tuples(st.just("shrink"), st.tuples(st.integers(0, 3), st.integers(0, 12))),
    ),
    max_size=12,
)


@given(st.lists(st.integers(0, 12), min_size=4, max_size=4), st.integers(1, 12), steps)
def test_nothing_is_lost_doubled_moved_without_need_or_overfilled(
    capacities: list[int], typical: int, actions: list[tuple[str, object]]
) -> None:
    plan = SharePlan(capacities, typical)
    mirror: list[dict[str, None]] = [{} for _ in capacities]
    wanted: set[str] = set()
    for name, argument in actions:
        before = {symbol: index for index, share in enumerate(plan.shares) for symbol in share}
        if name == "shrink":
            index, capacity = argument  # type: ignore[misc]
            changes = plan.shrink(index, min(capacity, plan.capacities[index]))
        elif name == "add":
            wanted.update(argument)  # type: ignore[arg-type]
            changes = plan.add(argument)  # type: ignore[arg-type]
        else:
            wanted.difference_update(argument)  # type: ignore[arg-type]
            changes = plan.remove(argument)  # type: ignore[arg-type]
        for number, change in changes.items():
            for symbol in change.removed:
                del mirror[number][symbol]
            for symbol in change.added:
                assert symbol not in mirror[number]
                mirror[number][symbol] = None
        assert [set(share) for share in mirror] == [set(share) for share in plan.shares]
        placed = [symbol for share in plan.shares for symbol in share]
        assert sorted([*placed, *plan.unplaced]) == sorted(wanted)
        assert all(len(share) <= limit for share, limit in zip(plan.shares, plan.capacities, strict=True))
        if plan.unplaced:
            assert len(placed) == sum(plan.capacities)
        if name != "shrink":
            after = {symbol: number for number, share in enumerate(plan.shares) for symbol in share}
            assert all(after[symbol] == number for symbol, number in before.items() if symbol in wanted)
