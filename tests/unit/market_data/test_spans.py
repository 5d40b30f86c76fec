"""Spans and their algebra, against sets of whole milliseconds. No I/O."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from services.market_data.spans import common, merged, total_ms, widened, without

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=8)


def moments(of: list[tuple[int, int]]) -> set[int]:
    return {moment for begin, end in of for moment in range(begin, end)}


@given(spans, spans)
def test_the_algebra_is_that_of_sets(left: list[tuple[int, int]], right: list[tuple[int, int]]) -> None:
    assert moments(merged(left)) == moments(left)
    assert moments(without(left, right)) == moments(left) - moments(right)
    assert moments(common(left, right)) == moments(left) & moments(right)
    assert total_ms(left) == len(moments(left))


@given(spans, spans)
def test_results_are_ascending_and_do_not_touch(
    left: list[tuple[int, int]], right: list[tuple[int, int]]
) -> None:
    for result in (merged(left), without(left, right)):
        assert all(begin < end for begin, end in result)
        assert all(one[1] <= two[0] for one, two in pairwise(result))
    assert all(one[1] < two[0] for one, two in pairwise(merged(left)))


def test_a_span_widens_to_whole_steps() -> None:
    assert widened((61, 119), 60) == (60, 120)
    assert widened((60, 120), 60) == (60, 120)
