"""What is told of a book by looking at it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.depth.book import best_first, real_levels
from services.market_data.updates import Level

levels = st.lists(
    st.tuples(
        st.floats(allow_nan=False, min_value=0.05, max_value=1e6), st.integers(1, 9), st.integers(0, 9)
    ),
    max_size=20,
).map(tuple)


def test_padding_and_nonsense_are_no_levels() -> None:
    rows: tuple[Level, ...] = (
        (100.0, 10, 1),
        (0.0, 0, 0),
        (0.0, 5, 1),
        (99.0, 0, 1),
        (-1.0, 5, 1),
        (float("nan"), 5, 1),
        (float("inf"), 5, 1),
        (98.0, 1, 0),
    )
    assert real_levels(rows) == ((100.0, 10, 1), (98.0, 1, 0))


@given(levels)
def test_the_best_comes_first_and_none_is_lost(rows: tuple[Level, ...]) -> None:
    bids, asks = best_first(rows, bids=True), best_first(rows, bids=False)
    assert sorted(bids) == sorted(asks) == sorted(rows)
    assert [row[0] for row in bids] == sorted((row[0] for row in rows), reverse=True)
    assert [row[0] for row in asks] == sorted(row[0] for row in rows)


def test_what_is_in_order_is_handed_on_as_it_is() -> None:
    rows: tuple[Level, ...] = ((100.0, 1, 1), (99.0, 1, 1))
    assert best_first(rows, bids=True) is rows
