"""Faults of a provider's connection: the manager and the real provider against the simulator."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from services.base_provider import ProviderState
from services.provider_lifecycle import RetryPolicy, Wait
from simulators import DhanSimulator
from simulators import faults as f
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.provider_fault_rig import EQUITY, FaultRig, fault_rig


def shorten_waits(monkeypatch: pytest.MonkeyPatch) -> list[Wait]:
    """Make waits of minutes last milliseconds; returns what they would have been."""
    asked: list[Wait] = []
    original = RetryPolicy.after

    def after(policy: RetryPolicy, error: Any, healthy_s: float) -> Wait:
        wait = original(policy, error, healthy_s)
        asked.append(wait)
        return wait if wait.seconds is None else Wait(0.05, wait.parked)

    monkeypatch.setattr(RetryPolicy, "after", after)
    return asked


async def no_attempt(sim: DhanSimulator) -> None:
    before = sim.handshakes
    for _ in range(30):
        await asyncio.sleep(0.01)
    assert sim.handshakes == before


async def parked(rig: FaultRig, word: str) -> None:
    await eventually(lambda: rig.provider.state is ProviderState.PARKED)
    assert word in rig.provider.reason


async def test_c1_a_refused_connection_is_tried_again_and_the_outage_is_a_gap() -> None:
    async with DhanSimulator(rate=0) as sim, fault_rig(sim) as rig:
        await sim.inject(f.Refuse())
        await sim.inject(f.Abort())
        await eventually(lambda: "refused" in rig.provider.last_error.lower())
        await sim.inject(f.Refuse(on=False))
        await rig.streaming()
        await rig.gap_of_each("closed_1006")


async def test_c2_a_half_open_connection_is_cut_and_the_silence_is_a_gap() -> None:
    async with (
        DhanSimulator(rate=0, ping_interval_s=60) as sim,
        FaultProxy("127.0.0.1", sim.port) as proxy,
        fault_rig(sim, url=f"ws://127.0.0.1:{proxy.port}") as rig,
    ):
        proxy.replies_flow.clear()
        await eventually(lambda: rig.provider.state is not ProviderState.STREAMING, within_s=4)
        proxy.replies_flow.set()
        await eventually(lambda: proxy.accepted >= 2)
        await rig.gap_of_each("silent")


async def test_c3_a_mute_connection_is_left_and_taken_up_again() -> None:
    async with DhanSimulator(rate=20) as sim, fault_rig(sim, mute_after_s=1.0) as rig:
        await sim.inject(f.Mute())
        await eventually(lambda: rig.provider.state is ProviderState.STALE)
        await sim.inject(f.Mute(on=False))
        await rig.gap_of_each("mute")
        assert sim.handshakes >= 2


@pytest.mark.parametrize("code", [1000, 1001])
async def test_c4_a_clean_close_is_followed_by_a_reconnect(code: int) -> None:
    async with DhanSimulator(rate=20) as sim, fault_rig(sim) as rig:
        assert await sim.inject(f.Close(code=code)) == 1
        await rig.gap_of_each(f"closed_{code}")
        await rig.streaming()
        assert sim.handshakes == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (f.Abort(), "closed_1006"),
        (f.Close(code=1011), "closed_1011"),
        (f.Close(code=1012), "closed_1012"),
        (f.Close(code=1013), "closed_1013"),
    ],
)
async def test_c5_an_abnormal_end_is_followed_by_a_reconnect(
    fault: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with DhanSimulator(rate=20) as sim, fault_rig(sim) as rig:
        shorten_waits(monkeypatch)
        assert await sim.inject(fault) == 1
        await rig.gap_of_each(reason)
        await rig.streaming()


async def test_c6_a_server_that_closes_at_once_is_tried_again_until_it_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # That such short connections do not start the back-off anew is shown in the tests of the retry policy.
    async with DhanSimulator(rate=0) as sim, fault_rig(sim) as rig:
        asked = shorten_waits(monkeypatch)
        await sim.inject(f.CloseOnConnect(how=1011))
        before = len(sim.journal.connections)
        await sim.inject(f.Abort())
        await eventually(lambda: len(asked) >= 6)
        assert len(sim.journal.connections) >= before + 6, "it really closed that often"
        await sim.inject(f.Clear())
        await rig.streaming()


async def test_c7_an_expired_token_parks_without_one_more_attempt_until_it_is_replaced() -> None:
    async with DhanSimulator(rate=0) as sim, fault_rig(sim) as rig:
        sim.expire_token()
        await parked(rig, "807")
        rig.manager.credentials_changed()
        await no_attempt(sim)
        rig.settings["DHAN_ACCESS_TOKEN"] = sim.tokens.issue()
        rig.manager.credentials_changed()
        await rig.streaming()
        await rig.gap_of_each("disconnect_807")
        assert sim.handshakes == 2


async def test_c8_too_many_connections_park_for_a_minute_and_then_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with DhanSimulator(rate=0) as sim, fault_rig(sim) as rig:
        asked = shorten_waits(monkeypatch)
        for strike in (1, 2):
            await sim.inject(f.Disconnect(reason=805))
            await eventually(lambda strike=strike: len(asked) == strike)
            assert rig.provider.state is ProviderState.PARKED
            await rig.streaming()
        assert [wait.parked for wait in asked] == [True, True]
        assert 60 <= (asked[0].seconds or 0) <= 66
        assert 120 <= (asked[1].seconds or 0) <= 132
        await rig.gap_of_each("disconnect_805")


@pytest.mark.parametrize("reason", [806, 808, 809])
async def test_c9_what_only_an_operator_can_mend_parks(reason: int) -> None:
    async with DhanSimulator(rate=0) as sim, fault_rig(sim) as rig:
        await sim.inject(f.Disconnect(reason=reason))
        await parked(rig, str(reason))
        await no_attempt(sim)


async def test_c9_an_unknown_reason_is_tried_again() -> None:
    async with DhanSimulator(rate=0) as sim, fault_rig(sim) as rig:
        await sim.inject(f.Disconnect(reason=899))
        await rig.gap_of_each("disconnect_899")
        assert sim.handshakes == 2


async def test_c10_a_rate_limit_is_waited_out_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    async with DhanSimulator(rate=0) as sim, fault_rig(sim) as rig:
        asked = shorten_waits(monkeypatch)
        await sim.inject(f.HandshakeStatus(status=429, retry_after_s=33))
        await sim.inject(f.Abort())
        await eventually(lambda: len(asked) >= 2)
        assert 33 <= (asked[1].seconds or 0) <= 36.3
        await sim.inject(f.HandshakeStatus(status=429))
        await eventually(lambda: 60 <= (asked[-1].seconds or 0) <= 330)
        await sim.inject(f.Clear())
        await rig.gap_of_each("closed_1006")


async def test_c11_a_handshake_that_hangs_is_given_up() -> None:
    async with DhanSimulator(rate=0) as sim, fault_rig(sim) as rig:
        await sim.inject(f.Hang())
        await sim.inject(f.Abort())
        await eventually(lambda: rig.provider.state is ProviderState.BACKING_OFF)
        await sim.inject(f.Clear())
        await rig.streaming()
        await rig.gap_of_each("closed_1006")


@pytest.mark.parametrize(("status", "state"), [(503, "backing_off"), (401, "parked"), (403, "parked")])
async def test_c12_an_http_answer_is_judged_and_never_shows_the_token(status: int, state: str) -> None:
    async with DhanSimulator(rate=0) as sim, fault_rig(sim) as rig:
        await sim.inject(f.HandshakeStatus(status=status))
        await sim.inject(f.Abort())
        await eventually(lambda: str(status) in rig.provider.reason)
        assert rig.provider.state.value in (state, "connecting")
        assert sim.access_token not in rig.provider.reason + rig.provider.last_error


async def test_c13_forgotten_subscriptions_are_asked_for_once_more() -> None:
    async with DhanSimulator(rate=0) as sim:
        await sim.inject(f.DropSubscriptions(probability=1.0))
        async with fault_rig(sim, wait=False) as rig:
            await eventually(lambda: rig.provider.state is ProviderState.STREAMING)
            assert rig.provider.status().unanswered == 2
            await sim.inject(f.DropSubscriptions(probability=0.0))
            await rig.streaming()
            await eventually(lambda: rig.provider.status().unanswered == 0)
            assert rig.provider.counters.resubscribed == 2
            sim.emit(EQUITY, price="1200.50")
            await eventually(lambda: any(tick.price == 1200.5 for tick in rig.ticks))
