"""The judge of silence: what it finds, how soon, and what it leaves alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from silence_stage import Stage, faults, utc

from services.market_data.calendar import SHIPPED, MarketCalendar
from services.silence.findings import Finding
from services.silence.judge import SilenceJudge
from services.silence.pulse import Pulse

MIDDAY = "2026-03-04T06:00"
"""NSE is open, and the opening is long past."""
PEERS = {f"NSE:PEER{number}": 1.0 for number in range(20)}
LIQUID, MEDIUM, ILLIQUID = "NSE:LIQUID", "NSE:MEDIUM", "NSE:ILLIQUID"
RATES = {LIQUID: 5.0, MEDIUM: 0.5, ILLIQUID: 1 / 1_200, **PEERS}


@pytest.fixture(scope="module")
def watched() -> Stage:
    stage = Stage(MIDDAY)
    stage.arm("DHAN", RATES)
    assert faults(stage.live(1_800)) == []
    return stage


@pytest.fixture
def learned(watched: Stage) -> Stage:
    """A feed that has been watched for half an hour."""
    return copy.deepcopy(watched)


def break_(stage: Stage, fault: str, *instruments: str, provider: str = "DHAN") -> None:
    for instrument in instruments or stage.rates:
        key = (provider, instrument) if isinstance(instrument, str) else instrument
        stage.faults[key] = fault


@pytest.mark.parametrize(("instrument", "bound_s"), [(LIQUID, 30), (MEDIUM, 150)])
@pytest.mark.parametrize(("fault", "finding"), [("mute", Finding.MUTE), ("brown_out", Finding.BROWN_OUT)])
def test_one_instrument_that_fails_is_found_alone(
    learned: Stage, instrument: str, bound_s: int, fault: str, finding: Finding
) -> None:
    break_(learned, fault, instrument)
    learned.until("DHAN", instrument, finding, bound_s * 2 if fault == "brown_out" else bound_s)
    found = learned.of("DHAN", instrument)
    assert found.score >= 1.0
    assert "usual are" in found.reason
    assert learned.judge.provider_judgement("DHAN", "NSE").finding is Finding.FLOWING
    assert {name for _, name, _ in faults([change for _, change in learned.changes])} == {instrument}
    learned.faults.clear()
    learned.until("DHAN", instrument, Finding.FLOWING, 240)


@pytest.mark.parametrize(("fault", "finding"), [("mute", Finding.MUTE), ("brown_out", Finding.BROWN_OUT)])
def test_a_feed_that_fails_is_found_as_a_whole_and_takes_its_illiquid_instruments_along(
    learned: Stage, fault: str, finding: Finding
) -> None:
    began_ms = learned.now_ms
    break_(learned, fault)
    learned.until("DHAN", ILLIQUID, finding, 30)
    whole = learned.judge.provider_judgement("DHAN", "NSE")
    assert whole.finding is finding
    assert abs(whole.since_ms - began_ms) <= 5_000
    assert learned.of("DHAN", ILLIQUID).reason.startswith("the whole feed: ")
    assert "silence:DHAN:NSE" in learned.judge.alarms()
    learned.faults.clear()
    learned.live(60)
    assert learned.judge.provider_judgement("DHAN", "NSE").finding is Finding.FLOWING
    assert learned.of("DHAN", LIQUID).finding is Finding.FLOWING
    assert learned.judge.alarms() == {}


def test_half_a_feed_that_goes_mute_is_found_instrument_by_instrument(learned: Stage) -> None:
    gone = [LIQUID, *[f"NSE:PEER{number}" for number in range(10)]]
    break_(learned, "mute", *gone)
    learned.live(60)
    found = {name for _, name, _ in faults([change for _, change in learned.changes])}
    assert found == set(gone)
    text = learned.judge.alarms()["silence:DHAN:NSE:instruments"]
    assert "NSE:LIQUID (mute)" in text
    assert "and 1 more" in text


@pytest.mark.parametrize("fault", ["frozen", "old"])
def test_a_snapshot_replayed_as_live_is_found_by_its_time(learned: Stage, fault: str) -> None:
    break_(learned, fault, LIQUID)
    learned.until("DHAN", LIQUID, Finding.REPLAYED, 45)
    assert "old where less than a second is usual" in learned.of("DHAN", LIQUID).reason
    learned.faults.clear()
    learned.until("DHAN", LIQUID, Finding.FLOWING, 5)


def test_a_feed_that_is_replayed_as_a_whole_is_found(learned: Stage) -> None:
    break_(learned, "frozen")
    learned.live(120)
    assert learned.judge.provider_judgement("DHAN", "NSE").finding is Finding.REPLAYED
    assert learned.of("DHAN", ILLIQUID).finding is Finding.REPLAYED


def test_a_delayed_feed_is_not_a_replayed_one() -> None:
    stage = Stage(MIDDAY)
    stage.arm("YF", {LIQUID: 5.0, **PEERS})
    for key in stage.rates:
        stage.faults[key] = "old"
    assert faults(stage.live(1_200)) == []


def test_a_book_that_moves_without_trades_is_not_replayed() -> None:
    stage = Stage(MIDDAY)
    stage.arm("DHAN", {LIQUID: 5.0, **PEERS})
    for second in range(2_400):
        stage.faults["DHAN", LIQUID] = "" if second % 240 == 0 else "frozen"
        assert faults(stage.live(1)) == []


def test_ticks_that_come_late_by_our_clock_being_set_are_not_replayed(learned: Stage) -> None:
    # An hour forward, within the session: sources go on with the right time, our clock does not.
    learned.now_ms += 3_600_000
    for _ in range(60):
        for key in learned.rates:
            learned.faults[key] = "mute"
            pulse = learned.pulses[key]
            pulse.ticks += 1
            pulse.received_ms, pulse.event_ms = learned.now_ms, learned.now_ms - 3_600_000
        learned.live(1)
    assert faults([change for _, change in learned.changes]) == []


# ---- what never starts ------------------------------------------------------------------------------


def test_an_instrument_that_ticked_yesterday_and_not_today_is_found_after_the_open(learned: Stage) -> None:
    judge = SilenceJudge(MarketCalendar())
    judge.restore(json.loads(json.dumps(learned.judge.state())))
    stage = Stage("2026-03-05T03:44", judge=judge)
    stage.arm("DHAN", RATES)
    break_(stage, "mute", LIQUID)
    stage.until("DHAN", LIQUID, Finding.NEVER_STARTED, 180)
    assert "not one tick since the open" in stage.of("DHAN", LIQUID).reason
    assert {name for _, name, _ in faults([change for _, change in stage.changes])} == {LIQUID}


def test_an_instrument_nobody_knows_is_found_when_the_other_provider_brings_it() -> None:
    stage = Stage(MIDDAY)
    stage.arm("DHAN", {LIQUID: 1.0, **PEERS})
    stage.arm("YF", {LIQUID: 1.0})
    break_(stage, "mute", LIQUID)
    seconds = stage.until("DHAN", LIQUID, Finding.NEVER_STARTED, 80)
    assert seconds >= 60
    assert "YF brought" in stage.of("DHAN", LIQUID).reason


def test_an_instrument_nobody_knows_is_found_in_a_feed_where_all_others_tick() -> None:
    stage = Stage(MIDDAY)
    stage.arm("DHAN", {**{f"NSE:P{number}": 0.5 for number in range(60)}, LIQUID: 1.0})
    break_(stage, "mute", LIQUID)
    assert stage.until("DHAN", LIQUID, Finding.NEVER_STARTED, 1_200) >= 900


def test_an_illiquid_instrument_among_its_like_is_never_said_not_to_start() -> None:
    stage = Stage("2026-03-04T03:40")
    stage.arm("DHAN", {f"NSE:P{number}": 1 / 1_200 if number % 4 == 0 else 1.0 for number in range(40)})
    assert faults(stage.live(6_000)) == []
    assert stage.of("DHAN", "NSE:P0").finding is Finding.QUIET


@pytest.mark.parametrize(("others", "bound_s"), [(False, 620), (True, 70)])
def test_a_feed_that_says_nothing_from_the_start_is_found(others: bool, bound_s: int) -> None:
    stage = Stage(MIDDAY)
    stage.arm("DHAN", PEERS)
    for key in stage.rates:
        stage.faults[key] = "mute"
    if others:
        stage.arm("YF", PEERS)
    stage.until("DHAN", "NSE:PEER0", Finding.NEVER_STARTED, bound_s)
    assert stage.judge.provider_judgement("DHAN", "NSE").finding is Finding.NEVER_STARTED


# ---- witnesses --------------------------------------------------------------------------------------


def test_trading_that_is_halted_at_both_providers_is_no_fault_of_either() -> None:
    stage = Stage(MIDDAY)
    stage.arm("DHAN", {LIQUID: 5.0, **PEERS})
    stage.arm("YF", {LIQUID: 1.0, **PEERS})
    stage.live(1_200)
    break_(stage, "mute", LIQUID)
    break_(stage, "mute", LIQUID, provider="YF")
    # The one that stops first may be suspected until the other has been silent for long enough.
    stage.live(600)
    assert faults([change for _, change in stage.changes]) == []
    assert stage.of("DHAN", LIQUID).finding is Finding.QUIET


@pytest.mark.parametrize(("fault", "finding"), [("mute", Finding.MUTE), ("brown_out", Finding.BROWN_OUT)])
def test_a_lively_witness_is_never_taken_for_a_halt(fault: str, finding: Finding) -> None:
    stage = Stage(MIDDAY)
    for provider in ("DHAN", "YF"):
        stage.arm(provider, {LIQUID: 5.0, **PEERS})
    stage.live(900)
    break_(stage, fault, LIQUID)
    stage.until("DHAN", LIQUID, finding, 60)


def test_a_thin_instrument_is_found_by_what_the_other_provider_brings() -> None:
    stage = Stage(MIDDAY)
    thin = {"NSE:THIN": 1 / 40}
    stage.arm("DHAN", {**thin, **PEERS})
    stage.arm("YF", {**thin, **PEERS})
    stage.live(3_600)
    assert faults([change for _, change in stage.changes]) == []
    break_(stage, "mute", "NSE:THIN")
    stage.until("DHAN", "NSE:THIN", Finding.MUTE, 1_800)
    assert stage.of("YF", "NSE:THIN").finding in (Finding.FLOWING, Finding.QUIET)


# ---- markets ----------------------------------------------------------------------------------------


def test_the_close_and_the_night_and_the_opening_are_no_faults(learned: Stage) -> None:
    learned.live(utc("2026-03-04T11:00") // 1000 - learned.now_ms // 1000)
    assert learned.of("DHAN", LIQUID).finding is Finding.QUIET
    assert learned.of("DHAN", LIQUID).reason == "NSE is closed until 2026-03-05 03:45 UTC"
    skip_to(learned, "2026-03-05T03:30")
    learned.live(3_600)
    assert faults([change for _, change in learned.changes]) == []
    assert learned.of("DHAN", LIQUID).finding is Finding.FLOWING


def test_a_holiday_is_quiet_and_named(learned: Stage) -> None:
    judge = SilenceJudge(MarketCalendar())
    judge.restore(learned.judge.state())
    holi = Stage("2026-03-03T03:40", judge=judge)
    holi.arm("DHAN", RATES)
    holi.live(1_800)
    assert holi.of("DHAN", LIQUID).reason == "NSE is closed until 2026-03-04 03:45 UTC (holiday)"
    assert faults([change for _, change in holi.changes]) == []


def test_a_fault_ends_with_the_session(learned: Stage) -> None:
    skip_to(learned, "2026-03-04T09:50")
    learned.live(120)
    break_(learned, "mute", LIQUID)
    learned.until("DHAN", LIQUID, Finding.MUTE, 120)
    changes = learned.live(600)
    assert [change.now.finding for change in changes if change.instrument == LIQUID] == [Finding.QUIET]


def test_the_evening_session_of_diwali_is_thin_and_no_fault(learned: Stage) -> None:
    judge = SilenceJudge(MarketCalendar())
    evening = Stage("2025-10-21T08:10", judge=judge)
    judge.restore({**learned.judge.state(), "saved_ms": evening.now_ms})
    evening.arm("DHAN", {key: rate * 0.2 for key, rate in RATES.items()})
    evening.live(4_200)
    assert faults([change for _, change in evening.changes]) == []
    assert evening.of("DHAN", LIQUID).finding is Finding.QUIET


def test_after_a_restart_that_knows_nothing_nothing_is_found() -> None:
    stage = Stage(MIDDAY)
    stage.arm("DHAN", RATES)
    assert stage.of("DHAN", LIQUID).finding is Finding.PROVING
    assert faults(stage.live(600)) == []
    assert stage.of("DHAN", LIQUID).finding is Finding.FLOWING


def test_a_market_that_trades_though_closed_is_an_alarm_and_no_fault(learned: Stage) -> None:
    skip_to(learned, "2026-03-07T06:00")
    learned.trades_when_closed = True
    learned.live(400)
    assert faults([change for _, change in learned.changes]) == []
    assert "closed by the calendar, yet DHAN brought" in learned.judge.alarms()["calendar:NSE"]
    learned.trades_when_closed = False
    learned.live(3_000)
    assert learned.judge.alarms() == {}


def test_an_open_market_where_every_provider_is_silent_is_an_alarm() -> None:
    stage = Stage(MIDDAY)
    stage.arm("DHAN", PEERS)
    stage.arm("YF", PEERS)
    stage.live(1_200)
    for key in stage.rates:
        stage.faults[key] = "mute"
    stage.live(60)
    assert "DHAN, YF brought nothing since 2026-03-04 06:20 UTC" in stage.judge.alarms()["calendar:NSE"]


def test_a_market_whose_hours_nobody_knows_is_never_judged() -> None:
    stage = Stage(MIDDAY)
    stage.trades_when_closed = True
    stage.arm("DHAN", {f"INDEX:{number}": 1.0 for number in range(20)})
    stage.live(900)
    stage.trades_when_closed = False
    stage.live(900)
    assert faults([change for _, change in stage.changes]) == []
    assert stage.judge.alarms() == {}
    assert "hours of INDEX are not known" in stage.of("DHAN", "INDEX:3").reason


def test_a_lunch_break_is_quiet_and_the_afternoon_begins_like_a_morning(
    learned: Stage, tmp_path: Path
) -> None:
    file = tmp_path / "lunch.csv"
    file.write_text("exchanges,date,hours,name\nNSE,2026-03-05,09:15-12:00 13:00-15:30,with a lunch break\n")
    calendar = MarketCalendar((SHIPPED, file))
    stage = Stage("2026-03-05T06:20", judge=SilenceJudge(calendar))
    stage.judge.restore(learned.judge.state())
    stage.calendar = calendar
    stage.arm("DHAN", RATES)
    stage.live(900)
    assert stage.of("DHAN", LIQUID).reason == "NSE is closed until 2026-03-05 07:30 UTC (with a lunch break)"
    stage.live(5_000)
    assert faults([change for _, change in stage.changes]) == []
    assert stage.of("DHAN", LIQUID).finding is Finding.FLOWING
    assert stage.judge.alarms() == {}
    break_(stage, "mute")
    stage.until("DHAN", ILLIQUID, Finding.MUTE, 90)


# ---- life -------------------------------------------------------------------------------------------


def test_a_machine_that_slept_finds_nothing_on_waking(learned: Stage) -> None:
    learned.now_ms += 1_200_000
    learned.now_s += 1_200.0
    assert faults(learned.live(10)) == []


def test_what_is_disarmed_is_neither_judged_nor_forgotten(learned: Stage) -> None:
    break_(learned, "mute", LIQUID)
    learned.judge.disarm("DHAN", LIQUID)
    assert faults(learned.live(120)) == []
    assert learned.of("DHAN", LIQUID).reason == "it is not subscribed"
    learned.arm("DHAN", {LIQUID: 5.0})
    learned.until("DHAN", LIQUID, Finding.NEVER_STARTED, 60)


def test_arming_again_begins_anew(learned: Stage) -> None:
    break_(learned, "mute", LIQUID)
    learned.until("DHAN", LIQUID, Finding.MUTE, 60)
    learned.judge.arm("DHAN", LIQUID, "NSE", learned.pulses["DHAN", LIQUID], learned.now_ms)
    assert learned.of("DHAN", LIQUID).finding is Finding.PROVING
    learned.faults.clear()
    changes = learned.live(5)
    assert [(change.before, change.now.finding) for change in changes] == [(Finding.PROVING, Finding.FLOWING)]


@pytest.mark.parametrize("state", [{}, {"version": 2}, {"version": 1, "saved_ms": 0, "rates": {"DHAN": 3}}])
def test_a_memory_that_cannot_be_read_is_ignored(state: dict[str, object]) -> None:
    judge = SilenceJudge(MarketCalendar())
    judge.restore(state)
    judge.arm("DHAN", LIQUID, "NSE", Pulse(), utc(MIDDAY))
    assert judge.look(utc(MIDDAY), 1.0) == []


def test_a_memory_of_long_ago_says_nothing(learned: Stage) -> None:
    judge = SilenceJudge(MarketCalendar())
    judge.restore(learned.judge.state())
    stage = Stage("2026-03-25T06:00", judge=judge)
    stage.arm("DHAN", {LIQUID: 5.0})
    break_(stage, "mute", LIQUID)
    assert faults(stage.live(600)) == []


def test_many_instruments_are_looked_at_in_turn() -> None:
    judge = SilenceJudge(MarketCalendar())
    now_ms = utc(MIDDAY)
    pulses = [Pulse() for _ in range(12_000)]
    for number, pulse in enumerate(pulses):
        judge.arm("DHAN", f"NSE:{number}", "NSE", pulse, now_ms)
    judge.look(now_ms, 1.0)
    for pulse in pulses:
        pulse.ticks, pulse.received_ms, pulse.event_ms = 1, now_ms, now_ms
    started = 0
    for second in range(1, 6):
        found = judge.look(now_ms + 1_000 * second, 1.0 + second)
        begun = [change for change in found if change.instrument and change.now.finding is Finding.FLOWING]
        assert len(begun) <= 2_500
        started += len(begun)
    assert started >= 9_500, "the first round had begun before the ticks came"


def skip_to(stage: Stage, at: str) -> None:
    """Let time pass while the market is closed, with a look every half minute."""
    while stage.now_ms < utc(at):
        step_s = min(30, (utc(at) - stage.now_ms) // 1000)
        stage.now_ms += step_s * 1000
        stage.now_s += step_s
        for key, pulse in stage.pulses.items():
            if stage.calendar.in_session(key[1].partition(":")[0], stage.now_ms):
                pulse.ticks += round(stage.rates[key] * step_s)
                pulse.received_ms = pulse.event_ms = stage.now_ms
        found = stage.judge.look(stage.now_ms, stage.now_s)
        stage.changes += [(stage.now_s, change) for change in found]
