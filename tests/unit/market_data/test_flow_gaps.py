"""Declared gaps are known for a day, of instruments and exchanges, and then forgotten with their names."""

from __future__ import annotations

from services.market_data.flow_gaps import FlowGaps

DAY_MS = 86_400_000
HOUR_MS = 3_600_000


def test_the_gaps_of_the_last_day_lower_the_coverage() -> None:
    gaps = FlowGaps()
    gaps.add("NSE:ONE", 1_000, 2_000)
    gaps.add("NSE:", 1_500, 3_000)
    assert gaps.covered_ms("NSE:ONE", "NSE", 0, 10_000) == 8_000
    assert gaps.covered_ms("NSE:TWO", "NSE", 0, 10_000) == 8_500
    assert gaps.covered_ms("BSE:ONE", "BSE", 0, 10_000) == 10_000


def test_names_of_which_nothing_was_declared_for_long_are_forgotten() -> None:
    gaps = FlowGaps()
    for number in range(1_000):
        # Contracts that expire: each has a gap once and never again.
        gaps.add(f"NFO:{number}", number * HOUR_MS, number * HOUR_MS + 1_000)
        gaps.add("NSE:ONE", number * HOUR_MS, number * HOUR_MS + 500)
    assert len(gaps._of) < 40
    last_ms = 999 * HOUR_MS
    assert gaps.covered_ms("NSE:ONE", "NSE", last_ms, last_ms + 1_000) == 500
    for number in range(980, 1_000):
        start_ms = number * HOUR_MS
        assert gaps.covered_ms(f"NFO:{number}", "NFO", start_ms, start_ms + 1_000) == 0
