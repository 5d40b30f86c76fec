"""Windows of requests from missing spans. No I/O."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.history.planner import plan, runs_of, windows_of
from services.history.source import Offer
from services.market_data.candles import CoverageSpan
from services.market_data.spans import merged


def missing(instrument: str, begin: int, end: int, kind: str = "1m") -> CoverageSpan:
    return CoverageSpan(
        instrument=instrument, type=kind, source="", from_ms=begin, to_ms=end, state="missing"
    )


def test_many_gaps_that_fit_one_request_are_one_request() -> None:
    gaps = [(at * 10, at * 10 + 3) for at in range(30)]
    windows = windows_of("NSE:A", "1m", gaps, 1_000)
    assert len(windows) == 1
    assert windows[0].spans == tuple(gaps)


def test_no_window_reaches_over_the_depth_of_a_source() -> None:
    windows = windows_of("NSE:A", "1m", [(0, 100)], 1_000, cuts=[40])
    assert [(window.from_ms, window.to_ms) for window in windows] == [(40, 100), (0, 40)]


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 200)), max_size=10),
    st.integers(1, 120),
    st.lists(st.integers(0, 600), max_size=3),
)
def test_windows_cover_what_is_missing_and_nothing_else(
    gaps: list[tuple[int, int]], window_ms: int, cuts: list[int]
) -> None:
    spans = [(begin, begin + length) for begin, length in gaps]
    windows = windows_of("NSE:A", "1m", spans, window_ms, cuts)
    assert merged(span for window in windows for span in window.spans) == merged(spans)
    assert sum(window.missing_ms for window in windows) == sum(end - begin for begin, end in merged(spans))
    for window in windows:
        assert window.to_ms - window.from_ms <= window_ms
        assert not any(window.from_ms < cut < window.to_ms for cut in cuts)
    assert [window.to_ms for window in windows] == sorted((w.to_ms for w in windows), reverse=True)


def test_the_plan_is_newest_first_over_all_instruments() -> None:
    rows = [missing("NSE:A", 0, 10), missing("NSE:B", 50, 60), missing("NSE:A", 80, 90, "1d")]
    windows = plan(rows, lambda _instrument, _interval: {"DHAN": Offer(window_ms=20)}, 100)
    assert [(w.instrument, w.interval, w.to_ms) for w in windows] == [
        ("NSE:A", "1d", 90),
        ("NSE:B", "1m", 60),
        ("NSE:A", "1m", 10),
    ]


def test_what_nobody_offers_is_one_window() -> None:
    rows = [missing("NSE:A", 0, 10), missing("NSE:A", 500, 510)]
    assert len(plan(rows, lambda _instrument, _interval: {}, 1_000)) == 1


def test_starts_that_follow_each_other_are_one_run() -> None:
    assert runs_of([0, 60, 120, 240], 60) == [(0, 180), (240, 300)]
