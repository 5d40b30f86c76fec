"""Whole weeks at high speed: markets with holidays, early closes and a change of clocks raise no alarm."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
from silence_stage import utc

from benchmarks.generated_market import STEP_S, day
from services.market_data.calendar import MarketCalendar
from services.silence.judge import Change, Pulse, SilenceJudge

STEP = 10
"""Seconds between two looks."""
RATES = (3.0, 1.0, 0.2, 1 / 120, 1 / 1_200)
IN_SESSION = {"NSE": "stock", "NASDAQ": "stock", "CRYPTO": "round_the_clock"}


def play(
    begin: str, end: str, exchanges: tuple[str, ...], seed: int
) -> tuple[list[Change], dict[str, str], int]:
    """Play that time; returns the faults, the alarms that ever stood, and how many ticks came."""
    rng, calendar = np.random.default_rng(seed), MarketCalendar()
    judge = SilenceJudge(calendar)
    keys = {exchange: [f"{exchange}:S{row}" for row in range(len(RATES))] for exchange in exchanges}
    pulses = {key: Pulse() for row in keys.values() for key in row}
    now_ms = utc(begin)
    for exchange, row in keys.items():
        for key in row:
            judge.arm("DHAN", key, exchange, pulses[key], now_ms)
    ticks: dict[tuple[str, int], np.ndarray] = {}
    found: list[Change] = []
    alarms: dict[str, str] = {}
    total = 0
    while now_ms < utc(end):
        now_ms += STEP * 1_000
        any_open = False
        for exchange, row in keys.items():
            session = calendar.session_at(exchange, now_ms - 1)
            if session is None or not calendar.in_session(exchange, now_ms - 1):
                continue
            any_open = True
            counts = ticks.get((exchange, session.open_ms))
            if counts is None:
                seconds = (session.close_ms - session.open_ms) // 1_000
                made = day(rng, np.array(RATES), seconds, kind=IN_SESSION[exchange])
                fold = STEP // STEP_S
                steps = made.shape[1] // fold
                counts = made[:, : steps * fold].reshape(len(RATES), steps, fold).sum(axis=2)
                ticks[exchange, session.open_ms] = counts
            step = (now_ms - 1 - session.open_ms) // (STEP * 1_000)
            for key, count in zip(row, counts[:, step] if step < counts.shape[1] else (), strict=False):
                if count:
                    pulse = pulses[key]
                    pulse.ticks += int(count)
                    pulse.received_ms, pulse.event_ms = now_ms - 300, now_ms - 1_000
                    total += int(count)
        found += [change for change in judge.look(now_ms, now_ms / 1_000) if change.now.finding.is_fault]
        if any_open and now_ms % 600_000 == 0:
            alarms.update(judge.alarms())
    return found, alarms, total


@pytest.mark.parametrize(
    ("begin", "end", "exchanges", "least_ticks"),
    [
        pytest.param(
            # NSE rests on the 3rd (Holi); New York's clocks go forward on the 8th.
            "2026-03-02T00:00", "2026-03-09T21:00", ("NSE", "NASDAQ", "CRYPTO"), 2_000_000, id="clock-change"
        ),
        pytest.param(
            # NSE rests on the 24th, New York on the 26th (Thanksgiving), and closes early on the 27th.
            "2026-11-23T00:00", "2026-11-28T00:00", ("NSE", "NASDAQ"), 500_000, id="thanksgiving"
        ),
    ],
)  # fmt: skip
def test_a_week_of_three_exchanges_raises_no_false_alarm(
    begin: str, end: str, exchanges: tuple[str, ...], least_ticks: int
) -> None:
    found, alarms, total = play(begin, end, exchanges, seed=11)
    assert total >= least_ticks, "the markets were alive"
    assert [(change.instrument, change.now) for change in found] == []
    assert alarms == {}


def test_the_same_week_with_a_feed_that_dies_on_thursday_is_found() -> None:
    """The week would be worth nothing if it could not fail."""
    rng, calendar = np.random.default_rng(3), MarketCalendar()
    judge = SilenceJudge(calendar)
    pulses = [Pulse() for _ in RATES]
    thursday = calendar.regular("NASDAQ", date(2026, 3, 5))[0]
    for row, pulse in enumerate(pulses):
        judge.arm("DHAN", f"NASDAQ:S{row}", "NASDAQ", pulse, thursday.open_ms)
    counts = day(rng, np.array(RATES), (thursday.close_ms - thursday.open_ms) // 1_000)
    dies = counts.shape[1] // 2
    found: list[Change] = []
    for step in range(counts.shape[1]):
        now_ms = thursday.open_ms + step * STEP_S * 1_000
        for pulse, count in zip(pulses, counts[:, step], strict=True):
            if count and step < dies:
                pulse.ticks += int(count)
                pulse.received_ms, pulse.event_ms = now_ms - 300, now_ms - 1_000
        changes = judge.look(now_ms, now_ms / 1_000)
        found += [change for change in changes if change.now.finding.is_fault and not change.instrument]
        if found:
            assert step - dies <= 20, "within forty seconds"
            break
    assert found
