"""The depth desk and its feeds against the Dhan simulator: joined books, limits, tokens, loss and return."""

from __future__ import annotations

import pytest

from services.base_provider import ProviderState
from services.connection.muteness import MuteRules
from services.errors import RequestRefused
from services.market_data.updates import (
    DEPTH_CROSSED,
    DEPTH_GAP,
    DEPTH_ONE_SIDED,
    DEPTH_PARTIAL,
    DEPTH_RECEIVED,
    DEPTH_STALE,
)
from services.wire.dhan import parse_request
from simulators import DhanSimulator
from simulators import faults as f
from simulators.dhan_depth import DEPTH_20, DEPTH_200
from tests.support.depth import DepthRig, mapping
from tests.support.eventually import eventually

RELIANCE, HDFC, TCS = "NSE:RELIANCE", "NSE:HDFCBANK", "NSE:TCS"
EQUITY = "NSE_EQ:2885"


def held(sim: DhanSimulator, feed: str) -> set[str]:
    return {symbol for symbol, variant in sim.watched() if variant == feed}


@pytest.mark.parametrize(("levels", "feed"), [(20, DEPTH_20), (200, DEPTH_200)])
async def test_bid_and_ask_packets_become_one_book_with_every_level_as_it_was_sent(
    levels: int, feed: str
) -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        async with rig.running():
            rig.desk.want(RELIANCE, levels)
            await eventually(lambda: held(sim, feed) == {EQUITY})
            await eventually(lambda: rig.heard)
            before = len(rig.heard)
            sim.emit(EQUITY, price="2456.70", quantity=10)
            await eventually(lambda: len(rig.heard) > before)
            assert len(rig.heard) == before + 1, "a book is told once, not once a side"
            update = rig.heard[-1]
            assert rig.desk.latest(RELIANCE) is update
        listing = sim.listing(EQUITY)
        assert listing is not None
        sent = [listing.instrument.book(level) for level in range(levels)]
        assert update.bids == tuple((px, qty, n) for qty, _, n, _, px, _ in sent if qty)
        assert update.asks == tuple((px, qty, n) for _, qty, _, n, _, px in sent)
        assert (update.levels, update.provider_code, update.flags) == (levels, "DHAN", DEPTH_RECEIVED)


async def test_five_levels_come_with_the_full_packets_of_those_that_are_wanted_only() -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        await rig.live.want([EQUITY, "NSE_EQ:1333", "IDX_I:13"])
        async with rig.running(live=True):
            await eventually(lambda: len({symbol for symbol, _ in sim.watched()}) == 3)
            await eventually(lambda: rig.live.state is ProviderState.STREAMING)
            assert rig.live.depth_tap is None, "nothing is paid while nobody wants depth"
            with pytest.raises(RequestRefused) as refused:
                rig.desk.want("NSE:NIFTY")
            assert refused.value.reason == "no_depth"
            rig.desk.want(RELIANCE)
            await eventually(lambda: rig.live.depth_tap is not None)
            sim.emit("NSE_EQ:1333", price="1650.55")
            sim.emit(EQUITY, price="2456.70", quantity=10)
            await eventually(lambda: rig.heard)
            listing = sim.listing(EQUITY)
            assert listing is not None
            (update,) = rig.heard
            sent = [listing.instrument.book(level) for level in range(5)]
            assert update.bids == tuple((px, qty, n) for qty, _, n, _, px, _ in sent), "on the tick grid"
            assert update.asks == tuple((px, qty, n) for _, qty, _, n, _, px in sent)
            assert (update.symbol, update.levels) == (RELIANCE, 5)
            rig.desk.unwant(RELIANCE)
            await eventually(lambda: rig.live.depth_tap is None)


async def test_the_feed_without_full_packets_says_that_it_brings_no_books() -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        rig.settings["DHAN_FEED_MODE"] = "quote"
        await rig.live.want([EQUITY])
        async with rig.running(live=True):
            await eventually(lambda: rig.live.state is ProviderState.STREAMING)
            with pytest.raises(RequestRefused) as refused:
                rig.desk.want(RELIANCE)
            assert refused.value.reason == "no_depth"


@pytest.mark.parametrize(
    ("instrument", "levels"),
    [("BSE:RELIANCE", 20), ("NASDAQ:AAPL", 20), ("NSE:NIFTY", 200), ("NASDAQ:AAPL", 5)],
)
async def test_what_no_feed_has_is_refused_before_anything_is_asked(instrument: str, levels: int) -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        async with rig.running():
            with pytest.raises(RequestRefused) as refused:
                rig.desk.want(instrument, levels)
            assert refused.value.reason == "no_depth"
            assert sim.handshakes == 0


async def test_two_hundred_and_fifty_instruments_go_over_five_sockets_and_one_more_is_refused() -> None:
    async with DhanSimulator(rate=0, any_symbol=True) as sim:
        rig = DepthRig(sim)
        rig.mappings = [mapping(f"NSE:S{number}", f"NSE_EQ:{number}") for number in range(1, 252)]
        rig.load()
        async with rig.running():
            for number in range(1, 251):
                rig.desk.want(f"NSE:S{number}", 20)
            with pytest.raises(RequestRefused) as refused:
                rig.desk.want("NSE:S251", 20)
            assert refused.value.reason == "depth_full"
            await eventually(lambda: len(held(sim, DEPTH_20)) == 250, within_s=20)
            assert len(sim.connections) == 5
            assert {len(sim.watched(it)) for it in sim.connections.values()} == {50}
            asked = [parse_request(it.content) for it in sim.requests if it.kind == "text"]
            assert {request.code for request in asked} == {23}
            assert max(len(request.instruments) for request in asked) <= 50
            await eventually(lambda: len({update.symbol for update in rig.heard}) == 250)


async def test_each_instrument_of_two_hundred_levels_has_a_socket_and_gives_it_up() -> None:
    async with DhanSimulator(rate=0, any_symbol=True) as sim:
        rig = DepthRig(sim)
        rig.mappings = [mapping(f"NSE:S{number}", f"NSE_EQ:{number}") for number in range(1, 7)]
        rig.load()
        async with rig.running():
            for number in range(1, 6):
                rig.desk.want(f"NSE:S{number}", 200)
            with pytest.raises(RequestRefused):
                rig.desk.want("NSE:S6", 200)
            await eventually(lambda: len(held(sim, DEPTH_200)) == 5, within_s=20)
            assert [len(sim.watched(it)) for it in sim.connections.values()] == [1] * 5
            rig.desk.unwant("NSE:S2", 200)
            rig.desk.want("NSE:S6", 200)
            await eventually(
                lambda: held(sim, DEPTH_200) == {f"NSE_EQ:{it}" for it in (1, 3, 4, 5, 6)}, within_s=20
            )
            for number in (1, 3, 4, 5, 6):
                rig.desk.unwant(f"NSE:S{number}", 200)
            await eventually(lambda: not sim.connections, within_s=20)
            await eventually(lambda: rig.most.feed.state is ProviderState.IDLE)
            rig.desk.want("NSE:S2", 200)
            await eventually(lambda: held(sim, DEPTH_200) == {"NSE_EQ:2"}, within_s=20)


async def test_an_unsubscription_has_the_code_that_works() -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        async with rig.running():
            rig.desk.want(RELIANCE, 20)
            rig.desk.want(HDFC, 20)
            await eventually(lambda: len(held(sim, DEPTH_20)) == 2)
            rig.desk.unwant(HDFC, 20)
            await eventually(lambda: held(sim, DEPTH_20) == {EQUITY})
            last = [parse_request(it.content) for it in sim.requests if it.kind == "text"][-1]
            assert (last.code, last.instruments, last.flat) == (25, (("NSE_EQ", "1333"),), False)


async def test_what_goes_on_after_it_was_unsubscribed_reaches_nobody_and_ends_with_a_new_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.depth.dhan_feed.GHOST_AFTER_S", 0.3)
    async with DhanSimulator(rate=20.0) as sim:
        rig = DepthRig(sim)
        async with rig.running():
            rig.desk.want(RELIANCE, 20)
            rig.desk.want(HDFC, 20)
            await eventually(lambda: rig.of(HDFC) and rig.of(RELIANCE))
            await sim.inject(f.Depth(how="lingering"))
            rig.desk.unwant(HDFC, 20)
            await eventually(lambda: sim.fault_counts["depth"])
            await eventually(lambda: rig.desk.latest(HDFC) is None)
            told = len(rig.of(HDFC))
            await eventually(lambda: sim.handshakes == 2)
            await eventually(lambda: held(sim, DEPTH_20) == {EQUITY})
            assert len(rig.of(HDFC)) == told
            assert rig.twenty.feed.counters.ignored["unsubscribed"] > 0
            await eventually(lambda: rig.of(RELIANCE)[-1].flags == DEPTH_RECEIVED)


async def test_a_socket_of_two_hundred_levels_that_goes_on_with_the_old_instrument_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.depth.dhan_feed.GHOST_AFTER_S", 0.3)
    async with DhanSimulator(rate=20.0) as sim:
        rig = DepthRig(sim)
        async with rig.running():
            for instrument in (RELIANCE, HDFC, TCS):
                rig.desk.want(instrument, 200)
            await eventually(lambda: len({it.symbol for it in rig.heard}) == 3)
            await sim.inject(f.Depth(how="lingering"))
            # The first connection stays open without an instrument, and is given the next one.
            rig.desk.unwant(RELIANCE, 200)
            await eventually(lambda: held(sim, DEPTH_200) == {"NSE_EQ:1333", "NSE_EQ:11536"})
            assert rig.most.feed.counters.ignored["unsubscribed"] > 0
            told = len(rig.of(RELIANCE))
            rig.desk.want(RELIANCE, 200)
            await eventually(lambda: len(rig.of(RELIANCE)) > told)
            assert [len(sim.watched(it)) for it in sim.connections.values()] == [1] * 3


async def test_a_lost_connection_marks_its_books_and_the_first_one_after_it_stands_behind_a_gap() -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        async with rig.running():
            rig.desk.want(RELIANCE, 20)
            await eventually(lambda: rig.heard)
            known = rig.heard[-1]
            await sim.inject(f.Abort())
            await eventually(lambda: sim.handshakes == 2 and len(rig.heard) >= 3)
            lost, back = rig.heard[-2:]
        assert lost.flags == DEPTH_RECEIVED | DEPTH_STALE | DEPTH_GAP
        assert (lost.bids, lost.asks, lost.timestamp) == (known.bids, known.asks, known.timestamp)
        assert back.flags == DEPTH_RECEIVED | DEPTH_GAP
        positions = [(it.position_ms, it.position_seq) for it in rig.heard]
        assert positions == sorted(set(positions))


async def test_nothing_of_the_old_connection_is_in_the_books_of_the_new_one() -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        async with rig.running():
            rig.desk.want(RELIANCE, 20)
            await eventually(lambda: rig.heard)
            await sim.inject(f.Depth(how="ask"))
            await sim.inject(f.Abort())
            await eventually(lambda: sim.handshakes == 2 and rig.heard[-1].flags & DEPTH_PARTIAL)
            update = rig.heard[-1]
        assert update.bids == (), "the bids of before are not those of now"
        assert update.asks
        assert update.flags == DEPTH_RECEIVED | DEPTH_PARTIAL | DEPTH_ONE_SIDED | DEPTH_GAP


@pytest.mark.parametrize(
    ("how", "flags"),
    [("crossed", DEPTH_CROSSED), ("empty_bid", DEPTH_ONE_SIDED), ("unordered", 0)],
)
async def test_odd_books_are_marked_and_never_mended(how: str, flags: int) -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        await sim.inject(f.Depth(how=how))  # type: ignore[arg-type]
        async with rig.running():
            rig.desk.want(RELIANCE, 20)
            await eventually(lambda: rig.heard)
            update = rig.heard[-1]
        assert update.flags == flags | DEPTH_RECEIVED
        assert [row[0] for row in update.bids] == sorted((row[0] for row in update.bids), reverse=True)
        assert [row[0] for row in update.asks] == sorted(row[0] for row in update.asks)
        assert len(update.asks) == 20
        assert len(update.bids) == (0 if how == "empty_bid" else 20)


async def test_sides_in_messages_of_their_own_are_joined_with_what_is_known() -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        await sim.inject(f.Depth(how="apart"))
        async with rig.running():
            rig.desk.want(RELIANCE, 20)
            await eventually(lambda: len(rig.heard) == 2)
            first, second = rig.heard
        assert first.flags & DEPTH_PARTIAL
        assert not first.asks
        assert not second.flags & DEPTH_PARTIAL
        assert second.bids == first.bids
        assert len(second.asks) == 20


async def test_damaged_frames_cost_only_themselves() -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        async with rig.running():
            rig.desk.want(RELIANCE, 20)
            await eventually(lambda: rig.heard)
            await sim.inject(f.Garbage(data="0a0029", count=3))
            before = len(rig.heard)
            sim.emit(EQUITY, price="2456.70", quantity=10)
            await eventually(lambda: len(rig.heard) > before)
            assert sim.handshakes == 1
            assert rig.twenty.feed.counters.wire_errors == {"truncated": 3}


async def test_a_token_that_the_live_feed_knows_to_be_dead_is_never_tried() -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        rig.settings["DHAN_ACCESS_TOKEN"] = "no-such-token"
        await rig.live.want([EQUITY])
        async with rig.running(live=True):
            await eventually(lambda: rig.live.state is ProviderState.PARKED)
            tried = sim.handshakes
            with pytest.raises(RequestRefused) as refused:
                rig.desk.want(RELIANCE, 20)
            assert refused.value.reason == "depth_credentials"
            # A pinned one stays wanted; it is not tried either, until there is another token.
            rig.desk.plan.pinned = ((RELIANCE, 20),)
            rig.desk.look_soon()
            await eventually(lambda: rig.twenty.feed.state is ProviderState.PARKED)
            assert sim.handshakes == tried
            assert rig.twenty.trouble() == "", "the live feed tells of it"
            rig.settings["DHAN_ACCESS_TOKEN"] = sim.access_token
            rig.live.credentials_changed()
            rig.twenty.feed.credentials_changed()
            await eventually(lambda: rig.heard and rig.heard[-1].levels == 20, within_s=15)


async def test_a_token_made_by_an_app_is_good_for_twenty_levels_and_not_tried_for_two_hundred() -> None:
    async with DhanSimulator(rate=0) as sim:
        sim.tokens.issue(consumer="APP")
        rig = DepthRig(sim)
        async with rig.running():
            with pytest.raises(RequestRefused) as refused:
                rig.desk.want(RELIANCE, 200)
            assert refused.value.reason == "depth_credentials"
            assert "web.dhan.co" in str(refused.value)
            rig.desk.want(RELIANCE, 20)
            await eventually(lambda: rig.heard)
            assert sim.handshakes == 1


async def test_a_token_the_depth_feed_refuses_is_tried_once() -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        rig.settings["DHAN_ACCESS_TOKEN"] = "no-such-token"
        async with rig.running():
            rig.desk.want(RELIANCE, 20)
            await eventually(lambda: rig.twenty.feed.state is ProviderState.PARKED)
            with pytest.raises(RequestRefused) as refused:
                rig.desk.want(HDFC, 20)
            assert refused.value.reason == "depth_credentials"
            await eventually(lambda: "DHAN_ACCESS_TOKEN" in rig.twenty.feed.reason)
            assert sim.handshakes == 1


async def test_too_many_connections_park_the_depth_feed_and_leave_the_live_feed_alone() -> None:
    async with DhanSimulator(rate=0, max_connections=5) as sim:
        rig = DepthRig(sim)
        await rig.live.want([EQUITY])
        async with rig.running(live=True):
            rig.desk.want(RELIANCE, 20)
            await eventually(lambda: rig.heard)
            (number,) = [it for it, feed in sim.feed_of.items() if feed == DEPTH_20]
            await sim.inject(f.Disconnect(reason=805, connection=number))
            await eventually(lambda: rig.twenty.feed.state is ProviderState.PARKED)
            await eventually(lambda: rig.live.state is ProviderState.STREAMING)
            assert rig.live.counters.reconnects == 0
            assert rig.heard[-1].flags & DEPTH_STALE
            assert "connections" in rig.desk.status()["sources"][1]["reason"]
            assert "20 levels is parked" in rig.twenty.trouble()
            assert rig.most.trouble() == ""
            explained = rig.desk.explain(RELIANCE)
            assert explained is not None
            assert (explained["wanted"], explained["levels"], explained["flags"]) == (
                [20],
                None,
                "received,stale,gap",
            )


async def test_a_feed_that_falls_silent_while_its_market_is_open_is_opened_anew() -> None:
    async with DhanSimulator(rate=50.0) as sim:
        rig = DepthRig(sim)
        rig.twenty.feed.mute_rules = MuteRules(after_s=0.5, windows=0)
        async with rig.running():
            rig.desk.want(RELIANCE, 20)
            await eventually(lambda: len(rig.heard) > 5)
            await sim.inject(f.Mute())
            await eventually(lambda: rig.twenty.feed.state is ProviderState.STALE)
            assert rig.heard[-1].flags & (DEPTH_STALE | DEPTH_GAP) == DEPTH_STALE | DEPTH_GAP
            await sim.inject(f.Mute(on=False))
            await eventually(lambda: rig.twenty.feed.state is ProviderState.STREAMING)
            await eventually(lambda: not rig.heard[-1].flags & DEPTH_STALE)
            assert sim.handshakes >= 2


async def test_a_server_that_takes_fewer_instruments_than_documented_gets_fewer() -> None:
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        async with rig.running():
            for instrument in (RELIANCE, HDFC, TCS):
                rig.desk.want(instrument, 20)
            await eventually(lambda: len(held(sim, DEPTH_20)) == 3)
            (number,) = sim.connections
            await sim.inject(f.Disconnect(reason=804, connection=number))
            await eventually(lambda: len(held(sim, DEPTH_20)) == 3 and len(sim.connections) > 1, within_s=15)
            assert rig.twenty.capacity == 1 + 4 * 50
            await eventually(lambda: len({it.symbol for it in rig.heard}) == 3)


async def test_while_the_deeper_feed_is_away_the_full_packets_stand_in() -> None:
    async with DhanSimulator(rate=20.0) as sim:
        rig = DepthRig(sim)
        await rig.live.want([EQUITY])
        async with rig.running(live=True):
            rig.desk.want(RELIANCE, 20)
            await eventually(lambda: rig.heard and rig.heard[-1].levels == 20)
            (number,) = [it for it, feed in sim.feed_of.items() if feed == DEPTH_20]
            await sim.inject(f.Disconnect(reason=805, connection=number))
            await eventually(lambda: rig.heard[-1].levels == 5)
            levels = [update.levels for update in rig.heard]
            first = rig.heard[len(levels) - levels[::-1].index(20)]
            assert first.flags == DEPTH_RECEIVED | DEPTH_GAP
            assert len(first.bids) == 5


async def test_a_lost_live_connection_marks_the_books_that_came_with_its_ticks() -> None:
    async with DhanSimulator(rate=20.0) as sim:
        rig = DepthRig(sim)
        await rig.live.want([EQUITY])
        async with rig.running(live=True):
            rig.desk.want(RELIANCE)
            await eventually(lambda: rig.heard)
            await sim.inject(f.Abort())
            await eventually(lambda: any(it.flags & DEPTH_STALE for it in rig.heard))
            await eventually(lambda: not rig.heard[-1].flags & DEPTH_STALE, within_s=10)
            at = next(index for index, it in enumerate(rig.heard) if it.flags & DEPTH_STALE)
            assert rig.heard[at + 1].flags == DEPTH_RECEIVED | DEPTH_GAP
