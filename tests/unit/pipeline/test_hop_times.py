"""Hop times are pure; no clock, no I/O."""

from __future__ import annotations

from services.pipeline.hop_times import BOUNDS_S, HopTimes


def test_every_sample_is_in_its_bucket_and_the_counts_add_up_from_the_left() -> None:
    hop = HopTimes()
    for seconds in (0.00005, 0.0001, 0.00011, 0.003, 60.0):
        hop.note(seconds)
    figures = hop.figures()
    counts = figures["counts"]
    assert isinstance(counts, list)
    by_end = dict(zip([*BOUNDS_S, float("inf")], counts, strict=True))
    assert by_end[0.0001] == 2
    assert by_end[0.0002] == 3
    assert by_end[0.002] == 3
    assert by_end[0.005] == 4
    assert by_end[10.0] == 4
    assert by_end[float("inf")] == 5
    assert figures["le"] == list(BOUNDS_S)


def test_a_clock_that_was_set_back_counts_as_no_time() -> None:
    hop = HopTimes()
    hop.note(-3.0)
    assert hop.figures()["sum_s"] == 0.0
    assert hop.counts[0] == 1
