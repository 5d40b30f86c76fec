"""The decision: who serves, and who is to, from what is known at one moment."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.routing.decision import Action, Decision, Health, Route, Trial, decide
from services.routing.history import RouteHistory
from services.routing.rules import RoutingRules

RULES = RoutingRules()
NOW_S = 10_000.0
PROVED = Trial(NOW_S - 20, fresh=5, clean_s=15.0, fresh_s=15.0)
FRESH = Trial(NOW_S - 2, fresh=2, fresh_s=1.0)
LISTENED = Trial(NOW_S - 2)


def decided(*candidates: Health, current: str | None = "A", **route: object) -> Decision:
    return decide(candidates, Route(current, **route), NOW_S, RULES)  # type: ignore[arg-type]


def test_at_first_the_first_that_is_well_serves() -> None:
    assert decided(Health("A"), Health("B"), current=None) == Decision(Action.START, "A", "first")
    assert decided(Health("A", usable=False), Health("B"), current=None).to == "B"
    assert decided(Health("A", usable=False), Health("B", usable=False), current=None).to == "A"
    assert decided(current=None) == Decision(Action.KEEP, reason="no_candidate")


def test_while_all_is_well_nothing_is_done() -> None:
    assert decided(Health("A"), Health("B")) == Decision(Action.KEEP)


def test_a_silent_source_has_the_next_one_warmed() -> None:
    found = decided(Health("A", trouble="mute"), Health("B"), Health("C"), trouble_since_s=NOW_S)
    assert found == Decision(Action.WARM_UP, reason="mute", warm=("B",))


def test_a_standby_that_does_not_prove_itself_has_the_next_one_warmed_beside_it() -> None:
    slow = Trial(NOW_S - RULES.warm_within_s)
    found = decided(Health("A", trouble="mute"), Health("B", trial=slow), Health("C"), trouble_since_s=NOW_S)
    assert found.warm == ("B", "C")


@pytest.mark.parametrize(
    ("trial", "usable", "switches"),
    [
        (FRESH, True, True),
        (LISTENED, True, False),
        (Trial(NOW_S - 2, fresh=1, fresh_s=0.5), True, False),
        (Trial(NOW_S - 2, fresh=1, fresh_s=1.0), True, True),
        (Trial(NOW_S - 2, fresh=1, fresh_s=0.0), False, True),
        (Trial(NOW_S - 2, fresh=9, fresh_s=9.0, agrees=False), True, False),
        (Trial(NOW_S - 2, fresh=9, fresh_s=9.0, agrees=False), False, False),
    ],
)
def test_a_standby_takes_over_when_it_has_proved_itself(trial: Trial, usable: bool, switches: bool) -> None:
    trouble = "mute" if usable else ""
    found = decided(Health("A", usable=usable, trouble=trouble), Health("B", trial=trial))
    assert (found.action is Action.SWITCH) is switches
    if switches:
        assert found == Decision(Action.SWITCH, "B", "mute" if usable else "provider_unavailable")


def test_nobody_delivers_is_said_after_a_moment_and_only_where_data_is_expected() -> None:
    silent, standby = Health("A", trouble="mute"), Health("B", trial=LISTENED)
    assert decided(silent, standby, trouble_since_s=NOW_S - 1).action is Action.WARM_UP
    later = NOW_S - RULES.stale_after_s
    assert decided(silent, standby, trouble_since_s=later) == Decision(Action.STALE, None, "mute", ("B",))
    assert decided(silent, standby, trouble_since_s=later, expected=False).action is Action.WARM_UP
    assert decided(silent, trouble_since_s=NOW_S).action is Action.STALE, "there is nobody to wait for"
    assert decided(silent, trouble_since_s=NOW_S, expected=False).action is Action.KEEP


def test_a_standby_without_room_is_passed_over() -> None:
    found = decided(Health("A", trouble="mute"), Health("B", room=False), Health("C"), trouble_since_s=NOW_S)
    assert found.warm == ("C",)


def test_delayed_data_stands_in_only_where_its_mapping_allows_it() -> None:
    silent = Health("A", trouble="mute")
    barred = Health("B", delivery="delayed", trial=FRESH)
    assert decided(silent, barred, trouble_since_s=NOW_S).action is Action.STALE
    permitted = Health("B", delivery="delayed", allow_delayed=True, trial=FRESH)
    assert decided(silent, permitted, trouble_since_s=NOW_S).to == "B"
    yesterday = Health("B", delivery="end_of_day", allow_delayed=True, trial=FRESH)
    assert decided(silent, yesterday, trouble_since_s=NOW_S).action is Action.STALE
    first = Health("A", delivery="delayed")
    assert decided(first, current=None).to == "A", "who puts a delayed source first means it"
    assert decided(Health("A", usable=False), barred, current=None).to == "A"


def test_the_first_choice_comes_back_only_after_a_clean_overlap() -> None:
    assert decided(Health("A"), Health("B"), current="B").warm == ("A",)
    assert decided(Health("A", trial=LISTENED), Health("B"), current="B").action is Action.WARM_UP
    assert decided(Health("A", trial=PROVED), Health("B"), current="B") == Decision(
        Action.FAIL_BACK, "A", "priority"
    )
    for flaw in (
        Trial(NOW_S - 20, fresh=2, clean_s=15.0),
        Trial(NOW_S - 20, fresh=9, clean_s=9.0),
        Trial(NOW_S - 20, fresh=9, clean_s=15.0, agrees=False),
        Trial(NOW_S - 20, fresh=9, clean_s=15.0, whole=False),
    ):
        assert decided(Health("A", trial=flaw), Health("B"), current="B").action is Action.WARM_UP
    assert decided(Health("A", trouble="mute", trial=PROVED), Health("B"), current="B").action is Action.KEEP


def test_who_failed_is_held_down_longer_each_time() -> None:
    once = RouteHistory(NOW_S - 100, (), (("A", NOW_S - 19),))
    assert decided(Health("A", trial=PROVED), Health("B"), current="B", history=once).action is Action.KEEP
    assert RouteHistory(failures_s=(("A", 100.0),)).held_until_s("A", RULES) == 100 + 20
    assert RouteHistory(failures_s=(("A", 100.0), ("A", 200.0))).held_until_s("A", RULES) == 200 + 40
    many = RouteHistory(failures_s=tuple(("A", 100.0 + at) for at in range(20)))
    assert many.held_until_s("A", RULES) == 119 + RULES.hold_down_cap_s
    assert many.held_until_s("B", RULES) == 0.0


def test_the_last_switch_of_the_bound_is_kept_for_a_rescue() -> None:
    almost = RouteHistory(NOW_S - 100, tuple(NOW_S - 100 - at for at in range(5)))
    back = decided(Health("A", trial=PROVED), Health("B"), current="B", history=almost)
    assert back == Decision(Action.KEEP, reason="too_many_switches")
    rescue = decided(Health("A", trial=FRESH), Health("B", trouble="mute"), current="B", history=almost)
    assert rescue.action is Action.SWITCH
    spent = RouteHistory(NOW_S - 100, tuple(NOW_S - 100 - at for at in range(6)))
    found = decided(
        Health("A", trial=FRESH),
        Health("B", trouble="mute"),
        current="B",
        history=spent,
        trouble_since_s=NOW_S,
    )
    assert (found.action, found.reason) == (Action.STALE, "too_many_switches")


def test_an_operators_choice_goes_before_the_order_and_waits_for_no_hold_down() -> None:
    failed = RouteHistory(NOW_S - 1, (NOW_S - 1,), (("B", NOW_S - 1),))
    found = decided(Health("A"), Health("B", trial=PROVED), history=failed, forced="B")
    assert found == Decision(Action.FAIL_BACK, "B", "manual")
    assert decided(Health("A"), Health("B"), forced="B").warm == ("B",)
    assert decided(Health("A", trial=PROVED), Health("B"), current="B", forced="B").action is Action.KEEP
    lost = decided(Health("A", trial=FRESH), Health("B", trouble="mute"), current="B", forced="B")
    assert lost == Decision(Action.SWITCH, "A", "mute"), "a choice that fails is left"


_TRIAL = st.none() | st.builds(
    Trial,
    st.floats(NOW_S - 100, NOW_S),
    st.integers(0, 5),
    st.booleans(),
    st.floats(0, 30),
    st.booleans(),
    st.floats(0, 5),
)
_HEALTH = st.tuples(
    st.booleans(),
    st.sampled_from(("", "", "mute", "refused")),
    st.sampled_from(("real_time", "delayed", "end_of_day")),
    st.booleans(),
    st.booleans(),
    _TRIAL,
)


@given(
    st.lists(_HEALTH, min_size=1, max_size=4),
    st.integers(0, 4),
    st.lists(st.floats(NOW_S - 900, NOW_S), max_size=8),
    st.booleans(),
)
def test_whatever_is_known_a_decision_is_lawful(
    healths: list[tuple], at: int, switches: list[float], expected: bool
) -> None:
    candidates = [Health(f"P{number}", *health) for number, health in enumerate(healths)]
    current = f"P{at}" if at < len(candidates) else None
    history = RouteHistory(NOW_S - 60, tuple(sorted(switches)))
    route = Route(current, history, NOW_S - 3, expected)
    found = decide(candidates, route, NOW_S, RULES)
    assert found == decide(candidates, route, NOW_S, RULES), "the same question, the same answer"
    known = {candidate.provider: candidate for candidate in candidates}
    if found.action in (Action.SWITCH, Action.FAIL_BACK):
        chosen = known[str(found.to)]
        assert chosen.provider != current
        assert found.reason
        assert chosen.usable
        assert chosen.trial is not None
        assert chosen.trial.agrees
        assert chosen.delivery == "real_time" or chosen.allow_delayed or found.to == "P0"
        assert history.recent(NOW_S, RULES) < RULES.switches_at_most
    assert current not in found.warm
    assert found.action is not Action.STALE or expected
