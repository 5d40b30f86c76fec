"""Faults of a provider's connection: the manager and the real providers against their simulators."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.base_provider import ProviderState
from services.connection import resolver
from services.errors import ProviderUnavailable
from services.market_data.clock import ManualClock
from services.pipeline.backoff import Backoff
from services.provider_lifecycle import RetryPolicy, Wait
from simulators import DhanSimulator, YahooSimulator
from simulators import faults as f
from tests.support.certificates import Certificates
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.provider_fault_rig import (
    AMERICAN,
    EQUITY,
    INDIAN,
    QUICK_MUTE,
    FaultRig,
    Simulator,
    dhan,
    fault_rig,
    yahoo,
)
from tests.support.row_report import report_row

Vendor = Callable[..., Simulator]
OUTAGE = "the outage, as declared gaps"


@pytest.fixture(params=[dhan, yahoo])
def vendor(request: pytest.FixtureRequest) -> Vendor:
    """How to make the simulator of each vendor."""
    made: Vendor = request.param
    return made


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


def attempts_with(sim: Simulator, token: str) -> int:
    """How often a client came to the simulator with this token."""
    return sum(request.kind == "handshake" and token in request.content for request in sim.requests)


async def no_attempt(sim: Simulator) -> None:
    before = sim.handshakes
    for _ in range(30):
        await asyncio.sleep(0.01)
    assert sim.handshakes == before


async def parked(rig: FaultRig, word: str) -> None:
    await eventually(lambda: rig.provider.state is ProviderState.PARKED)
    assert word in rig.provider.reason


async def judged(rig: FaultRig, row: str, allowed: str = OUTAGE) -> None:
    """Everything that was sent is accounted for; say what that cost."""
    verdict = await rig.settled()
    assert verdict.published > 0
    report_row(row, lost=f"{verdict.in_words}; {rig.gap_text()}", allowed=allowed)


# ---- C1: no way to connect --------------------------------------------------------------------------


@pytest.mark.parametrize("hurt", ["DHAN", "YF"])
async def test_c1_a_refused_connection_is_tried_again_and_touches_no_other_provider(hurt: str) -> None:
    async with dhan() as indian, yahoo() as american:
        sims: list[Simulator] = [indian, american]
        sims.sort(key=lambda sim: (sim is indian) is not (hurt == "DHAN"))
        async with fault_rig(*sims) as rig:
            feed = rig.first
            (other,) = [it for it in rig.feeds.values() if it is not feed]
            await feed.sim.inject(f.Refuse())
            await feed.sim.inject(f.Abort())
            await eventually(lambda: "refused" in feed.provider.last_error.lower())
            before = len(rig.ticks_of(next(iter(other.symbols.values()))))
            await eventually(lambda: len(rig.ticks_of(next(iter(other.symbols.values())))) > before + 20)
            assert other.provider.state is ProviderState.STREAMING
            await feed.sim.inject(f.Refuse(on=False))
            await feed.streaming()
            await rig.gap_of_each("closed_1006")
            assert (other.sim.handshakes, other.provider.counters.reconnects) == (1, 0)
            await judged(rig, "C1")


async def test_c1_a_name_that_does_not_resolve_is_tried_again(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = resolver._look_up

    def look_up(host: str, port: int, flags: int = 0) -> Any:
        if not flags & socket.AI_NUMERICHOST:
            asked.append(host)
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return real(host, port, flags)

    monkeypatch.setattr(resolver, "_look_up", look_up)
    async with vendor() as sim, fault_rig(sim) as rig:
        good = rig.settings[rig.first.url_name]
        rig.settings[rig.first.url_name] = good.replace("127.0.0.1", "feed.example.invalid")
        await sim.inject(f.Abort())
        await eventually(lambda: len(asked) >= 3)
        assert rig.provider.state in (ProviderState.BACKING_OFF, ProviderState.CONNECTING)
        assert "not known" in rig.provider.last_error
        rig.settings[rig.first.url_name] = good
        await rig.streaming()
        await rig.gap_of_each("closed_1006")
        await judged(rig, "C1")


def test_c1_attempts_stay_within_bounds_for_ever() -> None:
    error = ProviderUnavailable("refused", reason="refused")
    in_first_minute = []
    for seed in range(2_000):
        policy, clock = RetryPolicy(Backoff(rng=Random(seed)), Random(seed)), ManualClock()
        began_s, attempts = clock.monotonic_s(), 1
        waits = []
        while clock.monotonic_s() - began_s < 1_800:
            wait = policy.after(error, 0.0)
            assert not wait.parked
            assert wait.seconds is not None
            assert 0 <= wait.seconds <= 60
            waits.append(wait.seconds)
            clock.advance(wait.seconds)
            attempts += clock.monotonic_s() - began_s < 60
        in_first_minute.append(attempts)
        assert max(waits) > 30, "it really grows"
    assert max(in_first_minute) <= 12
    report_row("C1", lost=f"at most {max(in_first_minute)} attempts in the first minute", allowed="12")


async def test_c1_a_second_provider_takes_over_and_the_gap_ends_there() -> None:
    both = {EQUITY: "NSE:RELIANCE"}
    async with dhan() as first, yahoo() as second, fault_rig(first, second, symbols=both) as rig:
        rig.feeds["YF"].symbols = {"RELIANCE.NS": "NSE:RELIANCE"}
        await rig.manager.apply(rig.snapshot_of_feeds())
        await eventually(lambda: rig.ticks)
        await first.inject(f.Refuse())
        await first.inject(f.Abort())
        await eventually(lambda: rig.provider.state is ProviderState.BACKING_OFF)
        rig.leave_alone_for("DHAN", 31.0)
        await rig.manager.reroute()
        await eventually(lambda: rig.controls("switched"))
        assert rig.controls("switched")[0].fields == {
            "from_src": "DHAN",
            "to_src": "YF",
            "reason": "provider_unavailable",
        }
        await eventually(lambda: rig.ticks_of("NSE:RELIANCE")[-1].provider_code == "YF")
        (gap,) = rig.gaps
        assert (gap.symbol, gap.fields["reason"]) == ("NSE:RELIANCE", "closed_1006")
        report_row("C1", lost=rig.gap_text(), allowed="until the second provider delivers")


# ---- C2, C3: silence --------------------------------------------------------------------------------


async def test_c2_a_half_open_connection_is_cut_and_the_silence_is_a_gap(vendor: Vendor) -> None:
    async with (
        vendor(ping_interval_s=60) as sim,
        FaultProxy("127.0.0.1", sim.port) as proxy,
        fault_rig(sim, url=sim.url.replace(str(sim.port), str(proxy.port))) as rig,
    ):
        await eventually(lambda: rig.ticks)
        proxy.black_hole = True
        await eventually(lambda: rig.provider.state is not ProviderState.STREAMING, within_s=6)
        assert proxy.swallowed_bytes > 0
        proxy.black_hole = False
        await eventually(lambda: proxy.accepted >= 2)
        await rig.gap_of_each("silent")
        await rig.streaming()
        await judged(rig, "C2", "20 s (here 1 s) and the reconnect")


async def test_c3_a_busy_connection_that_falls_mute_is_left_and_taken_up_again(vendor: Vendor) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        learned = len(rig.ticks) + 80
        await eventually(lambda: len(rig.ticks) > learned, within_s=10)
        await sim.inject(f.Mute())
        await eventually(lambda: rig.provider.state is ProviderState.STALE, within_s=10)
        assert "no data for 1 s" in rig.provider.reason
        await sim.inject(f.Mute(on=False))
        await rig.gap_of_each("mute")
        await eventually(lambda: rig.provider.state is ProviderState.STREAMING)
        assert sim.handshakes >= 2
        await judged(rig, "C3", "30 s (here 1 s) and the reconnect")


@pytest.mark.slow
async def test_c3_after_three_futile_attempts_a_mute_provider_is_left_open_and_shown_as_stale() -> None:
    async with dhan() as sim, fault_rig(sim) as rig:
        learned = len(rig.ticks) + 80
        await eventually(lambda: len(rig.ticks) > learned, within_s=10)
        await sim.inject(f.Mute())
        await eventually(lambda: "3 connections in a row" in rig.provider.reason, within_s=15)
        await eventually(lambda: rig.provider.connections == 1)
        handshakes = sim.handshakes
        assert handshakes == 1 + QUICK_MUTE.tries
        for _ in range(150):
            await asyncio.sleep(0.01)
        assert (sim.handshakes, rig.provider.state) == (handshakes, ProviderState.STALE)
        rig.leave_alone_for("DHAN", 31.0)
        assert not rig.manager._runtimes["DHAN"].usable, "another provider would serve now"
        await sim.inject(f.Mute(on=False))
        await eventually(lambda: rig.provider.state is ProviderState.STREAMING)
        await judged(rig, "C3", "30 s (here 1 s) and the reconnect")


@pytest.mark.parametrize(
    ("rate", "always_open"),
    [(0.7, True), (60.0, False)],
    ids=["sparse instruments", "no market open"],
)
async def test_c3_ordinary_silence_is_no_fault(vendor: Vendor, rate: float, always_open: bool) -> None:
    async with vendor(rate) as sim, fault_rig(sim, always_open=always_open) as rig:
        rig.manager._open_markets = lambda runtime: runtime.exchanges if always_open else frozenset()  # type: ignore[method-assign]
        await eventually(lambda: len(rig.ticks) > (2 if rate < 1 else 80), within_s=20)
        await sim.inject(f.Mute())
        silent_for_s = 2.5 * QUICK_MUTE.after_s
        for _ in range(int(silent_for_s / 0.02)):
            await asyncio.sleep(0.02)
        await sim.inject(f.Mute(on=False))
        assert (sim.handshakes, rig.provider.state) == (1, ProviderState.STREAMING)
        assert rig.gaps == []
        verdict = await rig.settled()
        report_row("C3", lost=f"{verdict.in_gaps} ticks, no reconnect", allowed="no reconnect of quiet feeds")


# ---- C4 to C6: the server closes ----------------------------------------------------------------------


@pytest.mark.parametrize("code", [1000, 1001])
async def test_c4_a_clean_close_is_followed_by_a_reconnect(vendor: Vendor, code: int) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        assert await sim.inject(f.Close(code=code)) == 1
        await rig.gap_of_each(f"closed_{code}")
        await rig.streaming()
        assert sim.handshakes == 2
        await judged(rig, "C4", "the reconnect")


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
    vendor: Vendor, fault: Any, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        asked = shorten_waits(monkeypatch)
        assert await sim.inject(fault) == 1
        await rig.gap_of_each(reason)
        await rig.streaming()
        if reason == "closed_1013":
            assert (asked[0].seconds or 0) >= 10, "the server asked for a pause"
        await judged(rig, "C5", "the reconnect")


async def test_c5_a_reset_in_the_middle_of_a_frame_tears_only_that_frame(vendor: Vendor) -> None:
    async with (
        vendor() as sim,
        FaultProxy("127.0.0.1", sim.port) as proxy,
        fault_rig(sim, url=sim.url.replace(str(sim.port), str(proxy.port))) as rig,
    ):
        for size in (1, 200, 777):
            cuts = proxy.cuts
            proxy.cut_reply_after = proxy.passed_bytes + size
            proxy.reset_all()
            proxy.cut_reply_after = 700 + size
            await eventually(lambda cuts=cuts: proxy.cuts > cuts)
        proxy.cut_reply_after = None
        await rig.streaming()
        await rig.gap_of_each("closed_1006")
        await judged(rig, "C5", "the reconnects")


async def test_c6_a_server_that_closes_at_once_is_tried_ever_more_seldom(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        ceilings: list[int] = []
        original = Backoff.next_wait_s

        def next_wait_s(backoff: Backoff, minimum_s: float = 0.0) -> float:
            ceilings.append(backoff.attempts)
            return original(backoff, minimum_s)

        monkeypatch.setattr(Backoff, "next_wait_s", next_wait_s)
        before = len(sim.journal.connections)
        with capture_logs() as logs:
            await sim.inject(f.CloseOnConnect(how=1011))
            await sim.inject(f.Abort())
            await eventually(lambda: len(ceilings) >= 6, within_s=10)
        assert sim.fault_counts["close_on_connect"] >= 5, "it really closed that often"
        assert len(sim.journal.connections) >= before + 6
        assert ceilings[:6] == list(range(6)), "no attempt starts the waits anew"
        alarms = [entry for entry in logs if entry["event"] == "connection_keeps_failing"]
        assert [alarm["failures"] for alarm in alarms] == [5], "one alarm, at the fifth"
        await sim.inject(f.Clear())
        await rig.streaming()
        await rig.gap_of_each("closed_1006")
        await judged(rig, "C6", "all of that provider, as declared gaps")


# ---- C7 to C9: the vendor refuses -----------------------------------------------------------------------


@pytest.mark.parametrize("how", ["disconnect packet", "http status"])
async def test_c7_an_expired_token_parks_without_one_more_attempt_until_it_is_replaced(how: str) -> None:
    async with dhan() as indian, yahoo() as american, fault_rig(indian, american) as rig:
        dead = indian.access_token
        if how == "http status":
            await indian.inject(f.HandshakeStatus(status=401))
            await indian.inject(f.Abort())
        else:
            indian.expire_token()
        with capture_logs() as logs:
            await parked(rig, "401" if how == "http status" else "807")
            attempts = attempts_with(indian, dead)
            for _ in range(5):
                rig.manager.credentials_changed()
                await no_attempt(indian)
        assert attempts_with(indian, dead) == attempts, "not one attempt with a token known dead"
        assert rig.feeds["YF"].provider.state is ProviderState.STREAMING
        assert dead not in str(logs)
        await indian.inject(f.HandshakeStatus(status=None))
        rig.settings["DHAN_ACCESS_TOKEN"] = indian.tokens.issue()
        rig.manager.credentials_changed()
        await rig.streaming()
        await rig.gap_of_each("closed_1006" if how == "http status" else "disconnect_807")
        assert american.handshakes == 1
        await judged(rig, "C7", "from the expiry to the new token")


async def test_c7_a_new_token_is_found_without_being_told() -> None:
    async with dhan() as sim, fault_rig(sim) as rig:
        sim.expire_token()
        await parked(rig, "807")
        rig.settings["DHAN_ACCESS_TOKEN"] = sim.tokens.issue()
        await rig.streaming()
        assert sim.handshakes == 2
        await judged(rig, "C7", "from the expiry to the new token")


async def test_c8_too_many_connections_park_for_a_minute_and_then_two(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with dhan() as sim, fault_rig(sim) as rig:
        asked = shorten_waits(monkeypatch)
        for strike in (1, 2):
            await sim.inject(f.Disconnect(reason=805))
            await eventually(lambda strike=strike: len(asked) == strike)
            assert rig.provider.state is ProviderState.PARKED
            await rig.streaming()
        assert [wait.parked for wait in asked] == [True, True]
        assert 60 <= (asked[0].seconds or 0) <= 66
        assert 120 <= (asked[1].seconds or 0) <= 132
        assert sim.handshakes == 3, "one attempt after each wait"
        await rig.gap_of_each("disconnect_805")
        await judged(rig, "C8", "60 s and more (here shortened)")


@pytest.mark.parametrize("reason", [806, 808, 809, 810])
async def test_c9_what_only_an_operator_can_mend_parks(reason: int) -> None:
    async with dhan() as sim, fault_rig(sim) as rig:
        await sim.inject(f.Disconnect(reason=reason))
        await parked(rig, str(reason))
        await no_attempt(sim)
        rig.settings["DHAN_ACCESS_TOKEN"] = sim.tokens.issue()
        await rig.streaming()
        await rig.gap_of_each(f"disconnect_{reason}")
        await judged(rig, "C9", "until it is mended")


@pytest.mark.parametrize("reason", [800, 899])
async def test_c9_a_trouble_of_the_servers_or_an_unknown_one_is_tried_again_with_an_alarm(
    reason: int,
) -> None:
    async with dhan() as sim, fault_rig(sim) as rig:
        with capture_logs() as logs:
            await sim.inject(f.Disconnect(reason=reason))
            await rig.gap_of_each(f"disconnect_{reason}")
        assert sim.handshakes == 2
        alarms = [
            entry for entry in logs if entry["log_level"] == "error" and entry["event"] == "connection_ended"
        ]
        assert [alarm["reason"] for alarm in alarms] == [f"disconnect_{reason}"]
        await judged(rig, "C9", "the reconnect")


# ---- C10 to C12: the handshake --------------------------------------------------------------------------


async def test_c10_a_rate_limit_is_waited_out_as_asked(
    vendor: Vendor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        asked = shorten_waits(monkeypatch)
        await sim.inject(f.HandshakeStatus(status=429, retry_after_s=33))
        await sim.inject(f.Abort())
        await eventually(lambda: len(asked) >= 2)
        assert 33 <= (asked[1].seconds or 0) <= 36.3
        await sim.inject(f.HandshakeStatus(status=429))
        await eventually(lambda: 60 <= (asked[-1].seconds or 0) <= 330)
        assert sim.fault_counts["handshake_status"] >= 2
        attempts = sim.handshakes
        assert attempts <= len(asked) + 2, "one attempt for each wait, never two at once"
        await sim.inject(f.Clear())
        await rig.gap_of_each("closed_1006")
        await rig.streaming()
        await judged(rig, "C10", "the wait that was asked for (here shortened)")


async def test_c11_a_handshake_that_hangs_is_given_up(vendor: Vendor) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        await sim.inject(f.Hang())
        await sim.inject(f.Abort())
        await eventually(lambda: "no WebSocket within 0.5 s" in rig.provider.last_error)
        assert sim.fault_counts["hang"] >= 1
        await sim.inject(f.Clear())
        await rig.streaming()
        await rig.gap_of_each("closed_1006")
        await judged(rig, "C11", "10 s (here 0.5 s) and the reconnect")


@pytest.mark.parametrize(
    ("status", "dhan_state", "yahoo_state"),
    [
        (503, "backing_off", "backing_off"),
        (200, "backing_off", "backing_off"),
        (302, "backing_off", "backing_off"),
        (401, "parked", "backing_off"),
        (403, "parked", "backing_off"),
    ],
)
async def test_c12_an_http_answer_is_judged_and_never_shows_the_token(
    vendor: Vendor, status: int, dhan_state: str, yahoo_state: str
) -> None:
    async with vendor() as sim, fault_rig(sim) as rig:
        portal = (
            f"<html>sign in to the hotel's network; you asked for {getattr(sim, 'access_token', '')}</html>"
        )
        state = dhan_state if isinstance(sim, DhanSimulator) else yahoo_state
        with capture_logs() as logs:
            await sim.inject(f.HandshakeStatus(status=status, body=portal))
            await sim.inject(f.Abort())
            await eventually(lambda: str(status) in rig.provider.reason)
            shown = [rig.provider.reason, rig.provider.last_error, str(rig.manager.get_provider_status())]
            await eventually(lambda: rig.provider.state.value == state)
        assert sim.fault_counts["handshake_status"] >= 1
        if status < 400:
            assert any(entry["log_level"] == "error" for entry in logs), "nobody expects that: an alarm"
        if isinstance(sim, DhanSimulator):
            for secret in (sim.access_token, "hotel"):
                assert secret not in "".join(shown) + str(logs)
        await sim.inject(f.HandshakeStatus(status=None))
        if state == "parked":
            assert isinstance(sim, DhanSimulator)
            rig.settings["DHAN_ACCESS_TOKEN"] = sim.tokens.issue()
        elif isinstance(sim, YahooSimulator) and status in (401, 403):
            rig.settings["YAHOO_STREAM_URL"] += "&"
            rig.manager.credentials_changed()
        await rig.streaming()
        await rig.gap_of_each("closed_1006")
        await judged(rig, "C12")


async def test_c12_a_certificate_nobody_vouches_for_is_tried_again_and_never_shows_the_token(
    vendor: Vendor, tmp_path: Path
) -> None:
    context, _ = Certificates(tmp_path).server_context("localhost", expired=True)
    async with (
        vendor() as sim,
        FaultProxy("127.0.0.1", sim.port, tls=context) as proxy,
        fault_rig(sim) as rig,
    ):
        good = rig.settings[rig.first.url_name]
        rig.settings[rig.first.url_name] = good.replace(
            f"ws://127.0.0.1:{sim.port}", f"wss://localhost:{proxy.port}"
        )
        with capture_logs() as logs:
            await sim.inject(f.Abort())
            await eventually(lambda: "certificate" in rig.provider.last_error.lower())
        assert sim.handshakes == 1, "nothing is said before the certificate is trusted"
        if isinstance(sim, DhanSimulator):
            assert sim.access_token not in rig.provider.last_error + str(logs)
        rig.settings[rig.first.url_name] = good
        await rig.streaming()
        await rig.gap_of_each("closed_1006")
        await judged(rig, "C12")


# ---- C13: the server forgets ----------------------------------------------------------------------------


async def test_c13_forgotten_subscriptions_are_asked_for_once_more(vendor: Vendor) -> None:
    async with vendor(0) as sim:
        names = {**INDIAN} if isinstance(sim, DhanSimulator) else {**AMERICAN}
        await sim.inject(f.DropSubscriptions(probability=1.0))
        async with fault_rig(sim, wait=False) as rig:
            await eventually(lambda: rig.provider.state is ProviderState.STREAMING)
            assert rig.provider.status().unanswered == 2
            assert sim.fault_counts["drop_subscriptions"] >= 2, "the server really forgot"
            await sim.inject(f.DropSubscriptions(probability=0.0))
            await rig.streaming()
            await eventually(lambda: rig.provider.status().unanswered == 0)
            if isinstance(sim, DhanSimulator):
                assert rig.provider.counters.resubscribed == 2
            assert sim.handshakes == 1
            await rig.gap_of_each("subscription_forgotten")
            for symbol in names:
                sim.emit(symbol)
            await judged(rig, "C13", "15 s (here 0.5 s) of the forgotten instruments")
