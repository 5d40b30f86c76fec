"""Whatever happens, in whatever order: one source at a time, bounded switching, records in their place."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.base_provider import ProviderState
from services.silence.findings import Finding
from tests.support.routing_rig import CODES, INSTRUMENTS, RoutingRig

_CODE, _INSTRUMENT = st.sampled_from(CODES), st.sampled_from(INSTRUMENTS)
_FAULTS = (Finding.MUTE, Finding.MUTE, Finding.NEVER_STARTED, Finding.BROWN_OUT, Finding.REPLAYED)
_STATES = (ProviderState.STREAMING, ProviderState.PARKED, ProviderState.BACKING_OFF)
_RUN = st.tuples(st.just("run"), st.integers(1, 40), st.sets(_CODE))
_EVENT = st.one_of(
    # What leads anywhere stands here more often than what disturbs.
    _RUN,
    _RUN,
    _RUN,
    st.tuples(st.just("fails"), _CODE, st.sampled_from(_FAULTS), st.integers(1, 40)),
    st.tuples(st.just("fails"), _CODE, st.sampled_from(_FAULTS), st.integers(1, 40)),
    st.tuples(st.just("recovers"), _CODE, st.integers(5, 60)),
    st.tuples(st.just("tick"), _CODE, _INSTRUMENT, st.sampled_from((0, 0, 0, 0, 1, 80, 400))),
    st.tuples(st.just("late_tick"), _CODE, _INSTRUMENT, st.integers(0, 120_000)),
    st.tuples(st.just("flows"), _CODE, _INSTRUMENT),
    st.tuples(st.just("breaks"), _CODE, _INSTRUMENT),
    st.tuples(st.just("state"), _CODE, st.sampled_from(_STATES)),
    st.tuples(st.just("found"), _CODE, _INSTRUMENT, st.sampled_from(tuple(Finding))),
    st.tuples(st.just("pass"), st.integers(1, 120)),
    st.tuples(st.just("reroute")),
    st.tuples(st.just("by_hand"), _CODE, _INSTRUMENT, st.integers(1, 300)),
    st.tuples(st.just("interest"), st.sets(_INSTRUMENT)),
    st.tuples(st.just("mappings")),
)


class _Market:
    """Price and volume move on with every second; all providers see the same."""

    def __init__(self) -> None:
        self.volume = 1_000
        self.ticks = 0

    def next(self, off_bps: int) -> tuple[float, int]:
        self.ticks += 1
        self.volume += 10
        return round(1_000.0 * (1 + off_bps / 1e4), 2) + self.ticks % 7 / 100, self.volume


async def _play(events: list[tuple], rig: RoutingRig) -> None:
    market = _Market()
    await rig.manager.reroute()

    async def run(seconds: int, codes: set[str]) -> None:
        for _ in range(seconds):
            for code in sorted(codes):
                for instrument in INSTRUMENTS:
                    rig.clock.advance(0.001)
                    price, volume = market.next(0)
                    rig.tick(code, instrument, price, cumulative_volume=volume)
            await rig.pass_s(1)

    try:
        for code in CODES:
            for instrument in INSTRUMENTS:
                rig.flows(code, instrument)
        await run(2, {"AAA"})
        for event in events:
            match event:
                case ("fails", code, finding, seconds):
                    for instrument in INSTRUMENTS:
                        rig.judge.say(code, instrument, finding)
                    await run(seconds, set(CODES) - {code})
                case ("recovers", code, seconds):
                    rig.made[code].state = ProviderState.STREAMING
                    for instrument in INSTRUMENTS:
                        rig.flows(code, instrument)
                        rig.judge.say(code, instrument, Finding.FLOWING)
                    await run(seconds, set(CODES))
                case ("tick", code, instrument, off_bps):
                    rig.clock.advance(0.01)
                    price, volume = market.next(off_bps)
                    rig.tick(code, instrument, price, cumulative_volume=volume)
                case ("late_tick", code, instrument, lag_ms):
                    price, _ = market.next(0)
                    rig.tick(code, instrument, price, lag_ms=lag_ms)
                case ("run", seconds, codes):
                    await run(seconds, codes)
                case ("flows", code, instrument):
                    rig.flows(code, instrument)
                case ("breaks", code, instrument):
                    rig.breaks(code, instrument)
                case ("state", code, state):
                    rig.made[code].state = state
                case ("found", code, instrument, finding):
                    rig.judge.say(code, instrument, finding)
                case ("pass", seconds):
                    await rig.pass_s(seconds)
                case ("by_hand", code, instrument, for_s):
                    rig.manager.registry.switch(instrument, code, for_s=for_s, by="test", why="")
                case ("interest", instruments):
                    await rig.manager.set_interest(frozenset(instruments))
                case ("mappings",):
                    await rig.manager.apply(rig.snapshot())
                case _:
                    await rig.manager.reroute()
            rig.check()
    finally:
        await rig.supervisor.stop()


@pytest.mark.timeout(300)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(_EVENT, min_size=5, max_size=60))
def test_any_schedule_of_faults_keeps_what_is_promised(events: list[tuple]) -> None:
    rig = RoutingRig()
    asyncio.run(_play(events, rig))
    said = [(r.fields["from_src"], r.fields["to_src"], r.timestamp) for r in rig.controls("switched")]
    kept = [
        (event.from_provider, event.to_provider, event.at_ms)
        for event in rig.router.journal.batch(1_000_000)
        if event.action in ("switch", "fail_back")
    ]
    assert said == kept, "every switch is kept with its reason"
    assert all(event.reason for event in rig.router.journal.batch(1_000_000))
