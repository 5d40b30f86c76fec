"""Quiet, dead and mute told apart, on a clock of the test's own."""

from __future__ import annotations

from services.connection.liveness import Liveness, Pulse


def pulse_of() -> Liveness:
    return Liveness(0.0, ping_after_s=10.0, pong_within_s=10.0)


def test_a_peer_that_sends_is_never_pinged() -> None:
    liveness = pulse_of()
    assert [liveness.look(float(at), signs=at, data=0) for at in range(1, 60)] == [Pulse.FINE] * 59


def test_a_silent_peer_is_pinged_once_and_dead_when_the_answer_does_not_come() -> None:
    liveness = pulse_of()
    verdicts = {at: liveness.look(float(at), signs=0, data=0) for at in range(1, 21)}
    assert [at for at, verdict in verdicts.items() if verdict is Pulse.PING] == [10]
    assert [at for at, verdict in verdicts.items() if verdict is Pulse.DEAD] == [20]


def test_an_answer_starts_the_silence_anew() -> None:
    liveness = pulse_of()
    for at in range(1, 11):
        verdict = liveness.look(float(at), signs=0, data=0)
    assert verdict is Pulse.PING
    assert [liveness.look(float(at), signs=1, data=0) for at in range(11, 21)] == [Pulse.FINE] * 10
    assert liveness.look(21.0, signs=1, data=0) is Pulse.PING


def test_data_missing_for_too_long_is_mute_however_lively_the_peer() -> None:
    liveness = pulse_of()
    verdicts = [liveness.look(float(at), signs=at, data=0, mute_after_s=30.0) for at in range(1, 31)]
    assert verdicts[:-1] == [Pulse.FINE] * 29
    assert verdicts[-1] is Pulse.MUTE


def test_data_starts_the_muteness_anew_and_a_closed_market_has_none() -> None:
    liveness = pulse_of()
    assert liveness.look(29.0, signs=1, data=1, mute_after_s=30.0) is Pulse.FINE
    assert liveness.look(58.0, signs=2, data=1, mute_after_s=30.0) is Pulse.FINE
    assert liveness.look(59.0, signs=3, data=1, mute_after_s=None) is Pulse.FINE
    assert liveness.look(88.0, signs=4, data=1, mute_after_s=30.0) is Pulse.FINE
    assert liveness.look(89.0, signs=5, data=1, mute_after_s=30.0) is Pulse.MUTE


def test_a_pause_of_our_own_is_not_held_against_the_peer() -> None:
    liveness = pulse_of()
    for at in range(1, 11):
        liveness.look(float(at), signs=0, data=0, mute_after_s=30.0)
    assert liveness.look(100.0, signs=0, data=0, mute_after_s=30.0, overslept=True) is Pulse.FINE
    assert liveness.look(109.0, signs=0, data=0, mute_after_s=30.0) is Pulse.FINE
    assert liveness.look(110.0, signs=0, data=0, mute_after_s=30.0) is Pulse.PING


def test_looking_is_frequent_enough_for_short_times() -> None:
    assert pulse_of().look_every_s == 1.0
    assert Liveness(0.0, ping_after_s=0.4, pong_within_s=0.2).look_every_s == 0.05
