"""What routing does about single instruments, whole connections and thousands at once."""

from __future__ import annotations

import gc
import time
from collections.abc import AsyncIterator

import msgspec
import pytest

from services.base_provider import ProviderState
from services.errors import ConfigurationError
from services.market_data.records import FLAG_DELAYED, ControlRecord, DataIngestionFormat
from services.routing.book import GONE_FOR_GOOD_S
from services.silence.findings import Finding
from tests.support.routing_rig import CODES, RoutingRig

ONE, TWO = "NSE:ONE", "NSE:TWO"


@pytest.fixture
async def rig() -> AsyncIterator[RoutingRig]:
    subject = RoutingRig()
    await begun(subject)
    yield subject
    subject.check()
    await subject.supervisor.stop()


async def begun(rig: RoutingRig) -> None:
    """Let the first provider deliver every instrument for two seconds."""
    await rig.manager.reroute()
    for instrument in rig.instruments:
        rig.flows("AAA", instrument)
    await both(rig, 2, "AAA")


async def both(rig: RoutingRig, seconds: int, *codes: str, instruments: tuple[str, ...] = ()) -> None:
    """Let the providers named deliver for so many seconds; all of them count the same volume."""
    for _ in range(seconds):
        for code in codes:
            for instrument in instruments or rig.instruments:
                rig.clock.advance(0.01)
                volume = 1_000 + round(rig.clock.monotonic_s() * 100)
                rig.tick(code, instrument, 1_000.0, cumulative_volume=volume)
        await rig.pass_s(1)


def said(rig: RoutingRig, instrument: str) -> list[str]:
    """Return what the stream says of an instrument, in order; ticks by their source, once in a row."""
    words: list[str] = []
    for record in rig.published:
        if record.symbol == instrument:
            word = record.provider_code if isinstance(record, DataIngestionFormat) else record.type
            if not words or words[-1] != word:
                words.append(word)
    return words


async def test_one_mute_instrument_moves_one_instrument(rig: RoutingRig) -> None:
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(3)
    assert rig.made["BBB"].wanted == ("ONE.BBB",), "only it is warmed up"
    rig.flows("BBB", ONE)
    await both(rig, 2, "BBB", instruments=(ONE,))
    await both(rig, 2, "AAA", instruments=(TWO,))
    assert (rig.manager.active_provider(ONE), rig.manager.active_provider(TWO)) == ("BBB", "AAA")
    assert said(rig, ONE) == ["AAA", "gap", "switched", "BBB"]
    assert said(rig, TWO) == ["AAA"]
    (switch,) = rig.controls("switched")
    assert switch.fields == {"from_src": "AAA", "to_src": "BBB", "reason": "mute"}
    (gap,) = rig.controls("gap")
    ticks = rig.ticks(ONE)
    assert gap.fields["from"] == [tick for tick in ticks if tick.provider_code == "AAA"][-1].received_ms
    assert gap.fields["to"] == next(tick for tick in ticks if tick.provider_code == "BBB").received_ms


async def test_what_the_standby_said_while_it_was_on_trial_is_not_lost(rig: RoutingRig) -> None:
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(2)
    rig.flows("BBB", ONE)
    for price in (1_000.1, 1_000.2):
        rig.clock.advance(0.2)
        rig.tick("BBB", ONE, price)
    assert [tick.price for tick in rig.ticks(ONE) if tick.provider_code == "BBB"] == [1_000.1, 1_000.2]


async def test_one_tick_of_a_quiet_standby_is_let_through_after_a_moment(rig: RoutingRig) -> None:
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(1)
    rig.flows("BBB", ONE)
    rig.tick("BBB", ONE, 1_000.1)
    assert rig.manager.active_provider(ONE) == "AAA"
    await rig.pass_s(2)
    assert rig.manager.active_provider(ONE) == "BBB"
    assert rig.ticks(ONE)[-1].price == 1_000.1


async def test_a_standby_with_another_price_is_not_accepted(rig: RoutingRig) -> None:
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(1)
    rig.flows("BBB", ONE)
    for _ in range(20):
        rig.tick("BBB", ONE, 1_100.0)
        await rig.pass_s(1)
    assert rig.manager.active_provider(ONE) == "AAA"
    assert rig.made["CCC"].wanted == ("ONE.CCC",), "the next one is tried beside it"
    rig.flows("CCC", ONE)
    await both(rig, 2, "CCC", instruments=(ONE,))
    assert rig.manager.active_provider(ONE) == "CCC"
    assert said(rig, ONE) == ["AAA", "stale", "gap", "switched", "resumed", "CCC"]


async def test_old_ticks_prove_nothing(rig: RoutingRig) -> None:
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(1)
    rig.flows("BBB", ONE)
    for _ in range(10):
        rig.tick("BBB", ONE, 1_000.0, lag_ms=300_000)
        await rig.pass_s(1)
    assert rig.manager.active_provider(ONE) == "AAA"


async def test_nobody_delivers_is_said_once_and_so_is_its_end(rig: RoutingRig) -> None:
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(30)
    (stale,) = rig.controls("stale")
    assert (stale.symbol, stale.fields["reason"]) == (ONE, "mute")
    assert 5_000 <= int(stale.fields["age_ms"]) <= 9_000
    rig.tick("AAA", ONE, 1_000.2)
    (resumed,) = rig.controls("resumed")
    assert resumed.fields["reason"] == "mute"
    assert said(rig, ONE) == ["AAA", "stale", "gap", "resumed", "AAA"]
    assert rig.controls("switched") == []
    await rig.pass_s(40)
    assert rig.made["BBB"].wanted == (), "what was warmed in vain is let go"


async def test_what_was_given_up_while_it_was_stale_resumes_before_its_next_tick(rig: RoutingRig) -> None:
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(10)
    await rig.manager.set_interest(frozenset({TWO}))
    await rig.pass_s(10)
    await rig.manager.set_interest(frozenset({ONE, TWO}))
    rig.flows("AAA", ONE)
    await rig.pass_s(2)
    assert said(rig, ONE)[:2] == ["AAA", "stale"]
    await both(rig, 2, "AAA")
    assert said(rig, ONE) == ["AAA", "stale", "gap", "resumed", "AAA"]
    assert rig.router.passing[ONE] == "AAA"


async def test_a_source_that_ticks_again_keeps_its_instrument(rig: RoutingRig) -> None:
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(2)
    rig.judge.say("AAA", ONE, Finding.FLOWING)
    rig.tick("AAA", ONE, 1_000.2)
    rig.flows("BBB", ONE)
    await both(rig, 5, "BBB", "AAA", instruments=(ONE,))
    assert rig.manager.active_provider(ONE) == "AAA"
    assert said(rig, ONE) == ["AAA", "gap", "AAA"]


async def test_a_connection_that_is_down_moves_all_its_instruments_and_back_after_a_clean_overlap(
    rig: RoutingRig,
) -> None:
    for instrument in (ONE, TWO):
        rig.breaks("AAA", instrument)
    rig.made["AAA"].state = ProviderState.PARKED
    await rig.manager.reroute()
    for instrument in (ONE, TWO):
        rig.flows("BBB", instrument)
    await both(rig, 5, "BBB")
    assert [rig.manager.active_provider(key) for key in (ONE, TWO)] == ["BBB", "BBB"]
    rig.made["AAA"].state = ProviderState.STREAMING
    for instrument in (ONE, TWO):
        rig.flows("AAA", instrument)
    await rig.pass_s(30)
    await both(rig, 5, "BBB", "AAA")
    rig.breaks("AAA", ONE)
    rig.flows("AAA", ONE)
    await both(rig, 8, "BBB", "AAA")
    assert rig.manager.active_provider(TWO) == "AAA", "ten clean seconds"
    assert rig.manager.active_provider(ONE) == "BBB", "its overlap was broken, and begins anew"
    await both(rig, 5, "BBB", "AAA")
    assert rig.manager.active_provider(ONE) == "AAA"
    assert said(rig, TWO) == ["AAA", "gap", "switched", "BBB", "switched", "AAA"]
    await rig.pass_s(40)
    assert rig.made["BBB"].wanted == (), "the standby is let go"


async def test_across_a_switch_and_back_only_the_quantity_of_the_gap_is_unknown(rig: RoutingRig) -> None:
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(2)
    rig.flows("BBB", ONE)
    await both(rig, 30, "BBB", instruments=(ONE,))
    rig.judge.say("AAA", ONE, Finding.FLOWING)
    await both(rig, 40, "AAA", "BBB", instruments=(ONE,))
    assert [record.fields["to_src"] for record in rig.controls("switched")] == ["BBB", "AAA"]
    ticks = rig.ticks(ONE)
    unknown = [tick for tick in ticks if tick.volume is None]
    assert [tick.provider_code for tick in unknown] == ["AAA", "BBB"], "the first of all, and after the gap"
    before = ticks[ticks.index(unknown[1]) - 1]
    gap = (unknown[1].cumulative_volume or 0) - (before.cumulative_volume or 0)
    whole = (ticks[-1].cumulative_volume or 0) - (ticks[0].cumulative_volume or 0)
    assert sum(tick.volume or 0 for tick in ticks) == whole - gap
    assert gap > 0
    switch = next(e for e in rig.router.journal.newest(ONE) if e.action == "fail_back")
    assert switch.details["same_volume"] is True


async def test_counters_that_differ_leave_the_quantity_unknown(rig: RoutingRig) -> None:
    rig.made["AAA"].state = ProviderState.PARKED
    rig.breaks("AAA", ONE)
    await rig.manager.reroute()
    rig.flows("BBB", ONE)

    async def flow(seconds: int, *codes: str) -> None:
        for _ in range(seconds):
            for code in codes:
                rig.clock.advance(0.01)
                volume = round(rig.clock.monotonic_s() * 100) * (1 if code == "AAA" else 3)
                rig.tick(code, ONE, 1_000.0, cumulative_volume=volume)
            await rig.pass_s(1)

    await flow(3, "BBB")
    rig.made["AAA"].state = ProviderState.STREAMING
    rig.flows("AAA", ONE)
    await flow(50, "BBB", "AAA")
    assert rig.manager.active_provider(ONE) == "AAA"
    ticks = rig.ticks(ONE)
    first = next(t for t in ticks[2:] if t.provider_code == "AAA" and t.timestamp > ticks[3].timestamp)
    assert first.volume is None, "three times as much is another count"
    assert min(t.volume for t in ticks if t.volume is not None) >= 0


async def test_delayed_data_is_marked_and_stands_in_only_where_it_may() -> None:
    for allowed in (False, True):
        rig = RoutingRig(
            fields={
                "BBB": {"delivery": "delayed", "allow_delayed": allowed},
                "CCC": {"delivery": "end_of_day"},
            }
        )
        await begun(rig)
        rig.judge.say("AAA", ONE, Finding.MUTE)
        await rig.pass_s(10)
        rig.flows("BBB", ONE)
        await both(rig, 5, "BBB", instruments=(ONE,))
        assert rig.manager.active_provider(ONE) == ("BBB" if allowed else "AAA")
        assert len(rig.controls("stale")) == 1
        delayed = [tick for tick in rig.ticks(ONE) if tick.flags & FLAG_DELAYED]
        assert {tick.provider_code for tick in delayed} == ({"BBB"} if allowed else set())
        assert all(tick.flags & FLAG_DELAYED for tick in rig.ticks(ONE) if tick.provider_code == "BBB")
        assert rig.manager.route(ONE)["candidates"][1]["allowed"] is allowed
        rig.check()
        await rig.supervisor.stop()


async def test_what_the_old_source_delivered_is_not_delivered_again_by_a_delayed_one() -> None:
    rig = RoutingRig(fields={"BBB": {"delivery": "delayed", "allow_delayed": True}})
    await begun(rig)
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(10)
    rig.flows("BBB", ONE)
    newest_ms = rig.ticks(ONE)[-1].timestamp
    for second in range(960):
        rig.tick("BBB", ONE, 1_000.0, lag_ms=900_000, cumulative_volume=second * 10)
        await rig.pass_s(1)
    late = [tick for tick in rig.ticks(ONE) if tick.provider_code == "BBB"]
    assert late, "it takes over as soon as it has something new to say"
    assert min(tick.timestamp for tick in late) > newest_ms
    rig.check()
    await rig.supervisor.stop()


async def test_an_operators_choice_is_followed_kept_and_ends_by_itself(rig: RoutingRig) -> None:
    registry = rig.manager.registry
    assert registry.active(ONE) == "AAA"
    assert list(registry.backup(ONE)) == ["BBB", "CCC"]
    registry.switch(ONE, "CCC", for_s=120, by="ops", why="a test")
    await rig.pass_s(1)
    rig.flows("CCC", ONE)
    await both(rig, 15, "AAA", "CCC", instruments=(ONE,))
    assert registry.active(ONE) == "CCC"
    (switch,) = rig.controls("switched")
    assert switch.fields["reason"] == "manual"
    forced = next(e for e in rig.router.journal.newest(ONE) if e.action == "forced")
    assert (forced.details["by"], forced.details["why"]) == ("ops", "a test")
    await both(rig, 140, "AAA", "CCC", instruments=(ONE,))
    assert registry.active(ONE) == "AAA", "its time is over, and the order counts again"
    for wrong in (("NSE:NOPE", "AAA", 60), (ONE, "XXX", 60), (ONE, "BBB", 0)):
        with pytest.raises(ConfigurationError):
            registry.switch(wrong[0], wrong[1], for_s=wrong[2], by="ops", why="")


async def test_a_provider_is_registered_and_unregistered_while_running(rig: RoutingRig) -> None:
    registry = rig.manager.registry
    factory = registry.factories()["BBB"]
    assert await registry.unregister("BBB")
    assert not await registry.unregister("BBB")
    assert rig.manager.get_provider_status()["BBB"]["state"] == "closed"
    assert list(registry.backup(ONE)) == ["CCC"]
    assert await registry.unregister("AAA")
    await rig.pass_s(1)
    rig.flows("CCC", ONE)
    await both(rig, 2, "CCC", instruments=(ONE,))
    assert registry.active(ONE) == "CCC"
    await registry.register("BBB", factory)
    rig.made["BBB"].state = ProviderState.STREAMING
    found = {info.code: info for info in registry.list()}
    assert (found["BBB"].origin, found["BBB"].exchanges, found["CCC"].routed) == ("run_time", {"NSE": 2}, 1)
    assert found["AAA"].origin == "not_installed"
    with pytest.raises(ConfigurationError, match="no provider code"):
        await registry.register("b b", factory)


async def test_five_thousand_instruments_switch_without_holding_up_the_loop(
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = tuple(f"NSE:S{number}" for number in range(5_000))
    rig = RoutingRig(instruments=keys)
    await rig.manager.reroute()
    for code in ("AAA", "BBB"):
        symbols = [rig.symbol(code, key) for key in keys]
        await rig.made[code].want(symbols)
        rig.made[code].context.connection_restored(symbols, rig.clock.now_ms())
    await both(rig, 1, "AAA")
    rig.made["AAA"].state = ProviderState.PARKED
    worst_s = 0.0
    # As the daemon does after its start; the collector's walk over the test run's own objects is not ours.
    gc.collect()
    gc.freeze()
    rig.router.conditions.refresh()
    begun_s = time.thread_time()
    for _ in rig.router.look_at(keys):
        now_s = time.thread_time()
        worst_s, begun_s = max(worst_s, now_s - begun_s), now_s
    gc.unfreeze()
    assert worst_s < 0.1, f"one stretch took {worst_s * 1000:.0f} ms"
    await both(rig, 2, "BBB")
    assert len(rig.controls("switched")) == 5_000
    lines = [line for line in capsys.readouterr().out.splitlines() if "routes_switched" in line]
    assert 1 <= len(lines) <= 2, "one line, not five thousand"
    assert "count=5000" in lines[0]
    rig.check()
    await rig.supervisor.stop()
    print(f"the longest stretch: {worst_s * 1000:.1f} ms")


async def test_everything_is_told_of_a_route(rig: RoutingRig) -> None:
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(8)
    route = rig.manager.route(ONE)
    assert (route["active"], route["pending"], route["trouble"]) == ("AAA", "BBB", "mute")
    assert route["stale_since_ms"] is not None
    assert [row["provider"] for row in route["candidates"]] == list(CODES)
    assert route["candidates"][0]["silence"] == "mute: told"
    assert [event["action"] for event in route["decisions"]] == ["warm_up", "stale"]
    assert rig.router.summary()["stale_instruments"] == [ONE]
    assert isinstance(rig.controls("stale")[0], ControlRecord)


async def test_nothing_is_said_to_be_delivered_while_a_gap_is_open(rig: RoutingRig) -> None:
    assert rig.manager.delivers(ONE)
    rig.breaks("AAA", ONE)
    assert rig.manager.active_provider(ONE) == "AAA"
    assert not rig.manager.delivers(ONE)
    rig.flows("AAA", ONE)
    assert rig.manager.delivers(ONE)
    rig.judge.say("AAA", ONE, Finding.MUTE)
    await rig.pass_s(2)
    assert not rig.manager.delivers(ONE), "its connection stands and brings nothing"
    assert not rig.manager.delivers("NSE:NOPE")


async def test_a_symbol_that_stands_for_another_instrument_is_judged_as_that_one(rig: RoutingRig) -> None:
    snapshot = rig.snapshot()
    renamed = tuple(
        msgspec.structs.replace(row, instrument="NSE:NEW", symbol="NEW") if row.instrument == ONE else row
        for row in snapshot.mappings
    )
    await rig.manager.apply(msgspec.structs.replace(snapshot, version=2, mappings=renamed))
    assert rig.manager.active_provider("NSE:NEW") == "AAA"
    assert ("AAA", "NSE:NEW") in rig.judge.armed, "its data flows on, and is missed when it does not"
    assert ("AAA", ONE) not in rig.judge.armed
    rig.judge.say("AAA", "NSE:NEW", Finding.MUTE)
    await rig.pass_s(2)
    assert "ONE.BBB" in rig.made["BBB"].wanted


async def remap(rig: RoutingRig, *instruments: str) -> None:
    """Map these instruments and no others."""
    snapshot = rig.snapshot()
    rows = tuple(row for row in snapshot.mappings if row.instrument in instruments)
    await rig.manager.apply(msgspec.structs.replace(snapshot, mappings=rows))


async def test_a_removed_instrument_that_comes_back_within_a_day_declares_its_gap(rig: RoutingRig) -> None:
    await remap(rig, TWO)
    rig.clock.advance(3_600)
    await remap(rig, TWO)
    await remap(rig, ONE, TWO)
    rig.flows("AAA", ONE)
    (gap,) = [record for record in rig.controls("gap") if record.symbol == ONE]
    assert gap.fields["reason"] == "mapping_removed"
    assert int(gap.fields["to"]) - int(gap.fields["from"]) >= 3_600_000
    assert not rig.router.book._gone_s


async def test_a_removed_instrument_is_forgotten_after_a_day(rig: RoutingRig) -> None:
    book = rig.router.book
    book.left[ONE], book.left_stale[ONE] = ("BBB", "provider_deactivated"), 1
    await remap(rig, TWO)
    assert ONE in book.gaps
    assert not book.left
    assert not book.left_stale
    rig.clock.advance(GONE_FOR_GOOD_S)
    await remap(rig, TWO)
    assert ONE not in book.gaps
    assert not book._gone_s
    await remap(rig, ONE, TWO)
