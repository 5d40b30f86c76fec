"""DhanProvider against the Dhan simulator: limits, modes, tokens, verdicts, and every quote accounted for."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest

from services.base_provider import ProviderState
from services.connection.muteness import MuteRules
from services.connection.rules import ConnectionRules
from services.dhan_provider import DhanProvider
from services.market_data.records import FLAG_SNAPSHOT
from services.provider_lifecycle import Wait
from services.wire.dhan import parse_request
from simulators import DhanSimulator, Market, SentTick
from simulators import faults as f
from tests.support.eventually import eventually
from tests.support.providers import Recorder, running

QUICK = msgspec.structs.replace(
    DhanProvider.default_rules, stagger_s=0.0, pace_s=0.001, settle_s=0.02, close_within_s=0.4
)
EQUITY, SECOND, INDEX = "NSE_EQ:2885", "NSE_EQ:1333", "IDX_I:13"


def settings_of(sim: DhanSimulator, **more: str) -> dict[str, str]:
    return {
        "DHAN_FEED_URL": sim.url,
        "DHAN_CLIENT_ID": sim.client_id,
        "DHAN_ACCESS_TOKEN": sim.access_token,
        **more,
    }


def provider_on(
    sim: DhanSimulator, rules: ConnectionRules = QUICK, **more: str
) -> tuple[DhanProvider, Recorder]:
    recorder = Recorder(settings_of(sim, **more))
    return DhanProvider(recorder.context, rules=rules), recorder


async def streaming(provider: DhanProvider, sim: DhanSimulator, symbols: int) -> None:
    await eventually(lambda: len({symbol for symbol, _ in sim.watched()}) == symbols, within_s=20)
    await eventually(lambda: provider.state is ProviderState.STREAMING, within_s=20)


def shorten_waits(provider: DhanProvider, monkeypatch: pytest.MonkeyPatch) -> list[Wait]:
    """Make waits of minutes last milliseconds; returns what they would have been."""
    asked: list[Wait] = []
    original = type(provider._policy).after

    def after(policy: Any, error: Any, healthy_s: float) -> Wait:
        wait = original(policy, error, healthy_s)
        asked.append(wait)
        return wait if wait.seconds is None else Wait(0.05, wait.parked)

    monkeypatch.setattr(type(provider._policy), "after", after)
    return asked


async def test_twelve_thousand_instruments_go_over_three_connections_in_messages_of_a_hundred() -> None:
    async with DhanSimulator(rate=0, any_symbol=True) as sim:
        provider, _ = provider_on(sim)
        symbols = [f"NSE_EQ:{number}" for number in range(1, 12_001)]
        await provider.want(symbols)
        async with running(provider):
            await streaming(provider, sim, 12_000)
            await eventually(lambda: provider.subscribed == 12_000, within_s=20)
            assert provider.connections == 3
            shares = [len(sim.watched(connection)) for connection in sim.connections.values()]
            assert sorted(shares) == [4_000, 4_000, 4_000]
            sizes = [
                len(parse_request(request.content).instruments)
                for request in sim.requests
                if request.kind == "text"
            ]
            assert max(sizes) == 100
            assert sum(sizes) == 12_000


async def test_more_than_the_account_allows_is_reported_and_the_rest_streams() -> None:
    async with DhanSimulator(rate=0, any_symbol=True, max_per_connection=100) as sim:
        provider, _ = provider_on(sim, msgspec.structs.replace(QUICK, symbols_per_connection=100))
        await provider.want([f"NSE_EQ:{number}" for number in range(1, 511)])
        async with running(provider):
            await streaming(provider, sim, 500)
            assert len(sim.connections) == 5
            assert "10 symbols beyond the 500" in provider.reason


@pytest.mark.parametrize("mode", ["full", "quote", "ticker"])
async def test_each_mode_brings_what_it_promises(mode: str) -> None:
    async with DhanSimulator(rate=0) as sim:
        provider, recorder = provider_on(sim, DHAN_FEED_MODE=mode)
        await provider.want([EQUITY, INDEX])
        async with running(provider):
            await streaming(provider, sim, 2)
            (equity,) = sim.emit(EQUITY, price="2456.70", quantity=10)
            (index,) = sim.emit(INDEX, price="24500.50")
            await eventually(lambda: any(tick.price == index.float32 for tick, _ in recorder.ticks))
            ticks = {tick.provider_symbol: tick for tick, _ in recorder.ticks}
            tick = ticks[EQUITY]
            assert tick.price == equity.float32
            assert tick.event_ms == equity.event_ms
            assert tick.cumulative_volume == (None if mode == "ticker" else equity.volume)
            assert (tick.bid, tick.ask) == (
                (pytest.approx(equity.bid), pytest.approx(equity.ask)) if mode == "full" else (None, None)
            )
            assert ticks[INDEX].cumulative_volume is None
            assert any(
                tick.price is None and tick.previous_close and tick.provider_symbol == INDEX
                for tick, _ in recorder.ticks
            )
            variants = dict(sim.watched())
            assert variants[EQUITY] == mode
            assert variants[INDEX] == ("ticker" if mode == "ticker" else "quote")


async def test_the_snapshot_is_flagged_and_what_follows_is_not() -> None:
    async with DhanSimulator(rate=0) as sim:
        await sim.inject(f.SnapshotAge(seconds=3_600))
        provider, recorder = provider_on(sim)
        await provider.want([EQUITY])
        async with running(provider):
            await streaming(provider, sim, 1)
            sim.emit(EQUITY, price="2456.70", quantity=1)
            await eventually(lambda: len(recorder.ticks) == 2)
        flags = [tick.flags & FLAG_SNAPSHOT for tick, _ in recorder.ticks]
        assert flags == [FLAG_SNAPSHOT, 0]


async def test_stacked_unknown_and_torn_packets_cost_nothing_but_themselves() -> None:
    async with DhanSimulator(rate=0) as sim:
        provider, recorder = provider_on(sim)
        await provider.want([EQUITY, SECOND])
        async with running(provider):
            await streaming(provider, sim, 2)
            await eventually(lambda: len(recorder.ticks) == 2)
            await sim.inject(f.Heartbeat())
            await sim.inject(f.MarketStatusPacket())
            await sim.inject(f.UnknownPacket(code=77, length=20))
            await sim.inject(f.Truncated(symbol=EQUITY))
            sim.emit(EQUITY)
            await sim.inject(f.Stacked(packets=4))
            sent = [*sim.emit(EQUITY), *sim.emit(SECOND)]
            await eventually(lambda: len(recorder.ticks) == 4)
            assert [tick.price for tick, _ in recorder.ticks[2:]] == [entry.float32 for entry in sent]
            assert provider.counters.ignored == {"heartbeat": 1, "market_status": 1, "code_77": 1}
            assert sum(provider.counters.wire_errors.values()) == 1
            assert provider.counters.connects == 1


async def test_an_expired_token_parks_every_connection_and_a_new_one_wakes_them() -> None:
    async with DhanSimulator(rate=0, any_symbol=True) as sim:
        provider, recorder = provider_on(sim, msgspec.structs.replace(QUICK, symbols_per_connection=2))
        await provider.want([f"NSE_EQ:{number}" for number in range(1, 5)])
        async with running(provider):
            await streaming(provider, sim, 4)
            handshakes = sim.handshakes
            sim.expire_token()
            await eventually(lambda: provider.state is ProviderState.PARKED)
            assert "807" in provider.reason
            provider.credentials_changed()
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert sim.handshakes == handshakes
            recorder.settings["DHAN_ACCESS_TOKEN"] = sim.tokens.issue()
            provider.credentials_changed()
            await streaming(provider, sim, 4)
            assert sim.handshakes == handshakes + 2
            lost = sorted(symbol for group, _, _ in recorder.lost for symbol in group)
            assert lost == sorted(provider.wanted)


@pytest.mark.parametrize(
    ("reaction", "expected"),
    [("808", "808"), ("809", "809"), ("810", "810"), ("http_401", "HTTP 401")],
)
async def test_a_bad_token_parks_after_one_attempt_however_it_is_answered(
    reaction: Any, expected: str
) -> None:
    async with DhanSimulator(rate=0) as sim:
        await sim.inject(f.RejectTokens(reaction=reaction))
        provider, recorder = provider_on(sim, DHAN_ACCESS_TOKEN="not-a-good-token")
        await provider.want([EQUITY])
        async with running(provider):
            await eventually(lambda: provider.state is ProviderState.PARKED)
            assert expected in provider.reason
            for _ in range(20):
                await asyncio.sleep(0.01)
            assert sim.handshakes == 1
            recorder.settings["DHAN_ACCESS_TOKEN"] = sim.access_token
            await streaming(provider, sim, 1)


async def test_bare_drops_are_retried_and_soon_blamed_on_the_token(monkeypatch: pytest.MonkeyPatch) -> None:
    async with DhanSimulator(rate=0) as sim:
        await sim.inject(f.RejectTokens(reaction="abort"))
        provider, recorder = provider_on(sim, DHAN_ACCESS_TOKEN="not-a-good-token")
        asked = shorten_waits(provider, monkeypatch)
        await provider.want([EQUITY])
        async with running(provider):
            await eventually(lambda: "check DHAN_ACCESS_TOKEN" in provider.reason)
            assert provider.state is ProviderState.BACKING_OFF
            assert any((wait.seconds or 0) >= 60 and not wait.parked for wait in asked)
            recorder.settings["DHAN_ACCESS_TOKEN"] = sim.access_token
            await streaming(provider, sim, 1)


async def test_no_data_plan_parks_and_says_so() -> None:
    async with DhanSimulator(rate=0) as sim:
        await sim.inject(f.DataPlan(active=False))
        provider, _ = provider_on(sim)
        await provider.want([EQUITY])
        async with running(provider):
            await eventually(lambda: provider.state is ProviderState.PARKED)
            assert "not subscribed" in provider.reason
            assert sim.handshakes == 1


async def test_an_expired_token_is_recognised_without_asking_the_server() -> None:
    async with DhanSimulator(rate=0) as sim:
        expired = sim.tokens.issue(life_s=-60)
        provider, _ = provider_on(sim, DHAN_ACCESS_TOKEN=expired)
        await provider.want([EQUITY])
        async with running(provider):
            await eventually(lambda: provider.state is ProviderState.PARKED)
            assert "expired" in provider.reason
            assert sim.handshakes == 0


async def test_too_many_connections_park_and_are_tried_once_after_a_growing_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with DhanSimulator(rate=0, max_connections=1) as sim:
        provider, _ = provider_on(sim)
        asked = shorten_waits(provider, monkeypatch)
        await provider.want([EQUITY])
        async with running(provider):
            await streaming(provider, sim, 1)
            states = set()
            for strike in (1, 2):
                await sim.inject(f.Disconnect(reason=805))
                await eventually(lambda strike=strike: len(asked) == strike)
                states.add(provider.state)
                await streaming(provider, sim, 1)
        assert states == {ProviderState.PARKED}
        assert [wait.parked for wait in asked] == [True, True]
        assert 60 <= (asked[0].seconds or 0) <= 66
        assert 120 <= (asked[1].seconds or 0) <= 132


@pytest.mark.parametrize("reason", [800, 899])
async def test_other_reasons_are_retried(reason: int) -> None:
    async with DhanSimulator(rate=0) as sim:
        provider, _ = provider_on(sim)
        await provider.want([EQUITY])
        async with running(provider):
            await streaming(provider, sim, 1)
            await sim.inject(f.Disconnect(reason=reason))
            await eventually(lambda: sim.handshakes == 2)
            await streaming(provider, sim, 1)
            assert str(reason) in provider.last_error


async def test_a_rate_limit_is_respected_with_its_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    async with DhanSimulator(rate=0) as sim:
        await sim.inject(f.HandshakeStatus(status=429, retry_after_s=33))
        provider, _ = provider_on(sim)
        asked = shorten_waits(provider, monkeypatch)
        await provider.want([EQUITY])
        async with running(provider):
            await eventually(lambda: asked)
            assert 33 <= (asked[0].seconds or 0) <= 36.3
            await sim.inject(f.HandshakeStatus(status=429))
            await eventually(lambda: len(asked) >= 3)
            assert 60 <= (asked[-1].seconds or 0) <= 330
            assert provider.state is ProviderState.BACKING_OFF
            await sim.inject(f.Clear())
            await streaming(provider, sim, 1)


async def test_a_smaller_limit_than_promised_makes_the_plan_smaller() -> None:
    async with DhanSimulator(rate=0, any_symbol=True, max_per_connection=150) as sim:
        provider, _ = provider_on(sim, msgspec.structs.replace(QUICK, symbols_per_connection=200))
        await provider.want([f"NSE_EQ:{number}" for number in range(1, 201)])
        async with running(provider):
            await streaming(provider, sim, 200)
            assert sorted(len(sim.watched(it)) for it in sim.connections.values()) == [100, 100]
            assert sim.connections_opened > 2


async def test_forgotten_requests_are_repeated() -> None:
    async with DhanSimulator(rate=0, any_symbol=True) as sim:
        await sim.inject(f.DropSubscriptions(probability=0.3))
        provider, _ = provider_on(sim, msgspec.structs.replace(QUICK, resubscribe_missing_after_s=0.3))
        await provider.want([f"NSE_EQ:{number}" for number in range(1, 301)])
        async with running(provider):
            await eventually(lambda: provider.state is ProviderState.STREAMING)
            missing = 300 - len(sim.watched())
            assert missing > 30
            await sim.inject(f.DropSubscriptions(probability=0.0))
            await streaming(provider, sim, 300)
            await eventually(lambda: provider.status().unanswered == 0)
            assert provider.counters.resubscribed == missing


async def test_a_mute_server_is_left_and_taken_up_again() -> None:
    async with DhanSimulator(rate=50) as sim:
        provider, recorder = provider_on(sim)
        provider.mute_rules = MuteRules(after_s=0.5, windows=0)
        recorder.context.open_markets = lambda: frozenset({"NSE"})
        await provider.want([EQUITY])
        async with running(provider):
            await eventually(lambda: len(recorder.ticks) > 5)
            await sim.inject(f.Mute())
            await eventually(lambda: provider.state is ProviderState.STALE)
            assert recorder.lost[0][2] == "mute"
            await sim.inject(f.Mute(on=False))
            await eventually(lambda: provider.state is ProviderState.STREAMING)
            assert sim.handshakes >= 2


async def test_every_quote_sent_is_delivered_once_or_lies_in_a_declared_gap() -> None:
    market = Market(identity=True)
    symbols = [EQUITY, SECOND, "NSE_EQ:11536", INDEX]
    async with DhanSimulator(rate=100, market=market) as sim:
        provider, recorder = provider_on(sim, msgspec.structs.replace(QUICK, symbols_per_connection=2))
        await provider.want(symbols)
        async with running(provider):
            await streaming(provider, sim, 4)
            for fault in (f.Close(code=1001), f.Abort(), f.Stacked(packets=3), f.Close(code=1011)):
                seen = len(recorder.ticks)
                connects = provider.counters.connects
                await sim.inject(fault)
                await eventually(lambda seen=seen: len(recorder.ticks) > seen + 100)
                if not isinstance(fault, f.Stacked):
                    assert provider.counters.connects > connects
            await sim.inject(f.Pause())
            sent = [entry for entry in sim.journal.ticks if not entry.snapshot]
            last = {entry.symbol: entry.float32 for entry in sent}
            for symbol, price in last.items():
                await eventually(lambda symbol=symbol, price=price: price in recorder.prices(symbol))
        gaps = _gaps(recorder)
        delivered = {
            (tick.provider_symbol, tick.price)
            for tick, _ in recorder.ticks
            if tick.price is not None and not tick.flags & FLAG_SNAPSHOT
        }
        emitted = {(entry.symbol, entry.float32): entry for entry in sent}
        assert len(emitted) == len(sent) > 300
        assert len(gaps) >= 6
        foreign = delivered - set(emitted)
        assert not foreign
        lost = [entry for key, entry in emitted.items() if key not in delivered]
        assert [entry for entry in lost if not _inside(entry, gaps)] == []
        prices = [recorder.prices(symbol) for symbol in symbols]
        for series in prices:
            values = [price for price in series if price is not None]
            assert values == sorted(values)


def _gaps(recorder: Recorder) -> list[tuple[str, int, int]]:
    opened: dict[str, int] = {}
    gaps: list[tuple[str, int, int]] = []
    lost, restored = iter(recorder.lost), iter(recorder.restored)
    events = sorted(
        [(since_ms, 0, symbol) for symbols, since_ms, _ in lost for symbol in symbols]
        + [(at_ms, 1, symbol) for symbols, at_ms in restored for symbol in symbols]
    )
    for at_ms, kind, symbol in events:
        if kind == 0:
            opened.setdefault(symbol, at_ms)
        elif symbol in opened:
            gaps.append((symbol, opened.pop(symbol), at_ms))
    now_ms = time.time_ns() // 1_000_000
    return [*gaps, *((symbol, since_ms, now_ms) for symbol, since_ms in opened.items())]


def _inside(entry: SentTick, gaps: list[tuple[str, int, int]]) -> bool:
    return any(symbol == entry.symbol and since <= entry.sent_ms <= until for symbol, since, until in gaps)
