"""How notes change what is known of the past. No I/O."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.market_data.coverage import HAVE, LIVE, MISSING, UNAVAILABLE, Note, apply, spans_of


def note(state: str, begin: int, end: int, **more: object) -> Note:
    return Note(instrument="NSE:A", type="1m", state=state, from_ms=begin, to_ms=end, **more)  # type: ignore[arg-type]


def told(*notes: Note) -> list[tuple[str, str, int, int]]:
    return [(row.state, row.source, row.from_ms, row.to_ms) for row in apply([], notes)]


def test_a_gap_takes_back_what_the_stream_gave() -> None:
    assert told(note(HAVE, 0, 100, source=LIVE), note(MISSING, 40, 60, source="DHAN", broken=True)) == [
        (HAVE, LIVE, 0, 40),
        (MISSING, "DHAN", 40, 60),
        (HAVE, LIVE, 60, 100),
    ]


def test_a_gap_takes_nothing_back_that_a_source_of_past_bars_gave() -> None:
    assert told(note(HAVE, 0, 100, source="YF"), note(MISSING, 40, 60, broken=True)) == [(HAVE, "YF", 0, 100)]


def test_filling_ends_what_was_missing() -> None:
    assert told(
        note(MISSING, 0, 100, source="DHAN", reason="stale", broken=True), note(HAVE, 20, 100, source="DHAN")
    ) == [(MISSING, "DHAN", 0, 20), (HAVE, "DHAN", 20, 100)]


def test_a_wish_concerns_only_what_is_not_known() -> None:
    assert told(note(HAVE, 0, 10, source="YF"), note(UNAVAILABLE, 10, 20), note(MISSING, 0, 30)) == [
        (HAVE, "YF", 0, 10),
        (UNAVAILABLE, "", 10, 20),
        (MISSING, "", 20, 30),
    ]


def test_a_wish_for_it_again_asks_for_the_unavailable_too() -> None:
    assert told(note(UNAVAILABLE, 10, 20), note(MISSING, 0, 30, again=True)) == [(MISSING, "", 0, 30)]


notes = st.lists(
    st.builds(
        note,
        st.sampled_from([HAVE, MISSING, UNAVAILABLE]),
        st.integers(0, 30),
        st.integers(1, 40),
        source=st.sampled_from(["", LIVE, "DHAN"]),
        broken=st.booleans(),
        again=st.booleans(),
    ).filter(lambda one: one.from_ms < one.to_ms),
    max_size=8,
)


@given(notes)
def test_no_moment_has_two_states_and_the_same_note_again_changes_nothing(given: list[Note]) -> None:
    rows = apply([], given)
    states = [spans_of(rows, state) for state in (HAVE, MISSING, UNAVAILABLE)]
    for moment in range(50):
        assert sum(any(b <= moment < e for b, e in spans) for spans in states) <= 1
    if given:
        assert apply(rows, given[-1:]) == rows
