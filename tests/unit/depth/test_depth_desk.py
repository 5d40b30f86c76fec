"""The desk alone: what may be wanted, who has the book, how it grows old, what listeners are told."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import pytest

from services.depth.desk import DepthDesk
from services.depth.source import DepthSource
from services.errors import RequestRefused
from services.market_data.clock import ManualClock
from services.market_data.updates import (
    DEPTH_CROSSED,
    DEPTH_GAP,
    DEPTH_ONE_SIDED,
    DEPTH_RECEIVED,
    DEPTH_STALE,
    Level,
    Level2Update,
)
from services.pipeline.sequencer import Sequencer

BIDS: tuple[Level, ...] = ((100.0, 10, 1), (99.5, 20, 2))
ASKS: tuple[Level, ...] = ((100.5, 5, 1), (101.0, 7, 3))
KNOWN = {"NSE:A": None, "NSE:B": None, "NSE:C": None, "BSE:X": None, "NSE:NIFTY": None}


class Source:
    """A source that carries what it is told, and refuses what the test says."""

    def __init__(self, levels: int, capacity: int | None = None) -> None:
        self.levels = levels
        self.capacity = capacity
        self.carried: list[str] = []
        self.calls = 0
        self.refuses: dict[str, str] = {"NSE:NIFTY": "no_depth"}

    def stand(self) -> Hashable:
        return tuple(self.refuses.items())

    def refusal(self, instrument: str) -> RequestRefused | None:
        reason = self.refuses.get(instrument)
        return None if reason is None else RequestRefused("not to be had", reason=reason)

    async def carry(self, instruments: Sequence[str]) -> None:
        self.carried = list(instruments)
        self.calls += 1

    async def change(self, added: Sequence[str], removed: Sequence[str]) -> None:
        assert not set(added) & set(self.carried)
        assert set(removed) <= set(self.carried)
        self.carried = [it for it in self.carried if it not in removed] + list(added)
        self.calls += 1

    def status(self) -> dict[str, Any]:
        return {"carried": len(self.carried)}


class Rig:
    """A desk with three sources, a clock to move, and all that a listener heard."""

    def __init__(self, **options: Any) -> None:
        self.clock = ManualClock()
        self.desk = DepthDesk(self.clock, Sequencer(self.clock).stamp, known=lambda: KNOWN, **options)
        self.five, self.twenty, self.most = Source(5), Source(20, 2), Source(200, 1)
        sources: list[DepthSource] = [self.most, self.five, self.twenty]
        for source in sources:
            self.desk.add_source(source)
        self.heard: list[Level2Update] = []
        self.desk.listen(self.heard.append)

    def book(
        self,
        instrument: str = "NSE:A",
        levels: int = 5,
        bids: tuple[Level, ...] = BIDS,
        asks: tuple[Level, ...] = ASKS,
    ) -> None:
        self.desk.take(
            instrument,
            bids,
            asks,
            levels=levels,
            provider_code="DHAN",
            received_ms=self.clock.now_ms(),
            flags=DEPTH_RECEIVED,
        )


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_a_book_is_told_to_every_listener_once_and_is_the_latest(rig: Rig) -> None:
    other: list[Level2Update] = []
    stop = rig.desk.listen(other.append)
    rig.desk.want("NSE:A")
    await rig.desk.plan.follow()
    assert rig.desk.latest("NSE:A") is None
    rig.book()
    (update,) = rig.heard
    assert other == [update]
    assert rig.desk.latest("NSE:A") is update
    assert (update.symbol, update.exchange, update.provider_code) == ("NSE:A", "NSE", "DHAN")
    assert (update.bids, update.asks, update.levels) == (BIDS, ASKS, 5)
    assert update.timestamp == update.received_ms * 1000 == rig.clock.now_ms() * 1000
    assert update.flags == DEPTH_RECEIVED
    stop()
    stop()
    rig.book()
    assert len(rig.heard) == 2
    assert len(other) == 1


async def test_the_same_callback_may_listen_twice_and_stop_once(rig: Rig) -> None:
    heard: list[Level2Update] = []
    stop = rig.desk.listen(heard.append)
    rig.desk.listen(heard.append)
    stop()
    rig.desk.want("NSE:A")
    await rig.desk.plan.follow()
    rig.book()
    assert len(heard) == 1


async def test_positions_rise_with_every_update_of_an_exchange(rig: Rig) -> None:
    rig.desk.want("NSE:A")
    rig.desk.want("NSE:B")
    await rig.desk.plan.follow()
    for instrument in ("NSE:A", "NSE:B", "NSE:A"):
        rig.book(instrument)
    positions = [(update.position_ms, update.position_seq) for update in rig.heard]
    assert positions == sorted(set(positions))
    assert rig.heard[0].position == f"{rig.clock.now_ms()}-0"


async def test_what_nobody_wants_is_counted_and_told_to_nobody(rig: Rig) -> None:
    await rig.desk.plan.follow()
    rig.book()
    assert not rig.heard
    assert rig.desk.unwanted == 1
    assert rig.desk.latest("NSE:A") is None


@pytest.mark.parametrize(
    ("instrument", "levels", "reason"),
    [
        ("NSE:NOPE", 5, "unknown_instrument"),
        ("NSE:A", 7, "depth_levels"),
        ("NSE:A", 0, "depth_levels"),
        ("NSE:NIFTY", 20, "no_depth"),
    ],
)
async def test_what_cannot_be_had_is_refused_with_its_reason_and_changes_nothing(
    rig: Rig, instrument: str, levels: int, reason: str
) -> None:
    with pytest.raises(RequestRefused) as refused:
        rig.desk.want(instrument, levels)
    assert refused.value.reason == reason
    await rig.desk.plan.follow()
    assert not rig.five.carried + rig.twenty.carried + rig.most.carried


async def test_a_full_feed_refuses_one_more_and_takes_it_when_one_is_given_up(rig: Rig) -> None:
    rig.desk.want("NSE:A", 20)
    rig.desk.want("NSE:B", 20)
    rig.desk.want("NSE:B", 20)
    with pytest.raises(RequestRefused) as refused:
        rig.desk.want("NSE:C", 20)
    assert refused.value.reason == "depth_full"
    assert "2 instruments" in str(refused.value)
    rig.desk.unwant("NSE:A", 20)
    # What only lingers makes room.
    rig.desk.want("NSE:C", 20)
    await rig.desk.plan.follow()
    assert rig.twenty.carried == ["NSE:B", "NSE:C"]


async def test_the_last_one_to_go_lets_it_linger(rig: Rig) -> None:
    rig.desk.want("NSE:A")
    rig.desk.want("NSE:A")
    await rig.desk.plan.follow()
    rig.desk.unwant("NSE:A")
    rig.clock.advance(100)
    await rig.desk.plan.follow()
    assert rig.five.carried == ["NSE:A"]
    rig.desk.unwant("NSE:A")
    rig.desk.unwant("NSE:A")
    rig.clock.advance(29)
    await rig.desk.plan.follow()
    assert rig.five.carried == ["NSE:A"]
    rig.clock.advance(2)
    await rig.desk.plan.follow()
    assert rig.five.carried == []
    assert rig.desk.latest("NSE:A") is None


async def test_nothing_is_asked_of_the_sources_while_nothing_changes(rig: Rig) -> None:
    rig.desk.want("NSE:A", 20)
    await rig.desk.plan.follow()
    calls = rig.five.calls
    for _ in range(5):
        await rig.desk.plan.follow()
    assert rig.five.calls == calls


async def test_pinned_instruments_are_wanted_as_far_as_they_can_be_had() -> None:
    rig = Rig(pinned=(("NSE:*", 5), ("NSE:A", 20), ("NSE:B", 20), ("NSE:C", 20), ("NSE:GONE", 200)))
    rig.twenty.refuses["NSE:A"] = "depth_credentials"
    await rig.desk.plan.follow()
    assert rig.five.carried == ["NSE:A", "NSE:B", "NSE:C"]
    assert rig.twenty.carried == ["NSE:A", "NSE:B"], "what waits for credentials stays wanted"
    refused = {(row["instrument"], row["levels"]): row["reason"] for row in rig.desk.status()["refused"]}
    assert refused == {("NSE:C", 20): "depth_full", ("NSE:GONE", 200): "unknown_instrument"}
    assert rig.desk.needs_ticks_of == {"NSE:A", "NSE:B", "NSE:C"}
    with pytest.raises(RequestRefused):
        rig.desk.want("NSE:C", 20)


async def test_everything_takes_the_books_that_come_anyway_and_asks_for_no_ticks() -> None:
    rig = Rig(everything=True)
    await rig.desk.plan.follow()
    assert rig.five.carried == ["NSE:A", "NSE:B", "NSE:C", "BSE:X"]
    assert rig.desk.needs_ticks_of == frozenset()
    rig.book("BSE:X")
    assert rig.heard[0].exchange == "BSE"


async def test_a_desk_without_sources_says_that_depth_is_off() -> None:
    clock = ManualClock()
    desk = DepthDesk(clock, Sequencer(clock).stamp, known=lambda: KNOWN)
    with pytest.raises(RequestRefused) as refused:
        desk.want("NSE:A")
    assert refused.value.reason == "depth_off"
    assert desk.needs_ticks_of == frozenset()


async def test_the_deeper_source_has_the_book_and_the_shallower_stands_in_while_it_is_away(rig: Rig) -> None:
    rig.desk.want("NSE:A", 20)
    await rig.desk.plan.follow()
    assert rig.five.carried == ["NSE:A"]
    rig.book(levels=5)
    rig.book(levels=20)
    rig.book(levels=5)
    assert [update.levels for update in rig.heard] == [5, 20]
    assert rig.desk.outdone == 1
    rig.desk.lost(["NSE:A"], 5)
    assert len(rig.heard) == 2, "the five levels were not the book"
    rig.desk.lost(["NSE:A"], 20)
    rig.book(levels=5)
    rig.book(levels=20)
    lost, stands_in, back = rig.heard[2:]
    assert (lost.levels, lost.bids) == (20, BIDS)
    assert lost.flags & (DEPTH_STALE | DEPTH_GAP) == DEPTH_STALE | DEPTH_GAP
    assert (stands_in.levels, stands_in.flags & (DEPTH_STALE | DEPTH_GAP)) == (5, DEPTH_GAP)
    assert (back.levels, back.flags) == (20, DEPTH_RECEIVED)


async def test_when_the_deeper_book_is_given_up_the_shallower_takes_over_at_once() -> None:
    rig = Rig(linger_s=0.0)
    rig.desk.want("NSE:A", 20)
    rig.desk.want("NSE:A", 5)
    await rig.desk.plan.follow()
    rig.book(levels=20)
    rig.book(levels=5)
    rig.desk.unwant("NSE:A", 20)
    await rig.desk.plan.follow()
    assert rig.five.carried == ["NSE:A"]
    assert rig.twenty.carried == []
    rig.book(levels=5)
    assert [(update.levels, update.flags) for update in rig.heard] == [
        (20, DEPTH_RECEIVED),
        (5, DEPTH_RECEIVED),
    ]


async def test_a_pinned_book_stays_when_those_who_want_it_deeper_go() -> None:
    rig = Rig(linger_s=0.0, pinned=(("NSE:A", 5),))
    rig.desk.want("NSE:A", 20)
    rig.desk.want("NSE:B", 20)
    await rig.desk.plan.follow()
    assert rig.five.carried == ["NSE:A", "NSE:B"]
    rig.book(levels=20)
    rig.desk.unwant("NSE:A", 20)
    rig.desk.unwant("NSE:B", 20)
    await rig.desk.plan.follow()
    assert rig.five.carried == ["NSE:A"]
    rig.book(levels=5)
    assert [update.levels for update in rig.heard] == [20, 5]


async def test_a_book_of_which_nothing_comes_is_stale_once_and_fresh_with_the_next(rig: Rig) -> None:
    rig.desk.want("NSE:A")
    await rig.desk.plan.follow()
    rig.book()
    rig.clock.advance(29.9)
    rig.desk.look()
    assert len(rig.heard) == 1
    rig.clock.advance(0.1)
    rig.desk.look()
    rig.desk.look()
    stale = rig.heard[1]
    assert len(rig.heard) == 2
    assert stale.stale
    assert (stale.bids, stale.timestamp) == (BIDS, rig.heard[0].timestamp)
    assert (stale.position_ms, stale.position_seq) > (rig.heard[0].position_ms, 0)
    assert rig.desk.latest("NSE:A") is stale
    rig.book()
    assert rig.heard[2].flags == DEPTH_RECEIVED, "the connection stood, so nothing was missed"


async def test_a_lost_connection_before_the_first_book_says_nothing(rig: Rig) -> None:
    rig.desk.want("NSE:A", 20)
    await rig.desk.plan.follow()
    rig.desk.lost(["NSE:A", "NSE:B"], 20)
    rig.book(levels=20)
    assert [update.flags for update in rig.heard] == [DEPTH_RECEIVED]


@pytest.mark.parametrize(
    ("bids", "asks", "flags"),
    [
        (((101.0, 1, 1),), ((100.0, 1, 1),), DEPTH_CROSSED),
        (((100.0, 1, 1),), ((100.0, 1, 1),), DEPTH_CROSSED),
        (((100.0, 1, 1),), (), DEPTH_ONE_SIDED),
        ((), ((100.0, 1, 1),), DEPTH_ONE_SIDED),
        ((), (), 0),
    ],
)
async def test_what_can_be_seen_of_a_book_is_marked_and_left_as_it_is(
    rig: Rig, bids: tuple[Level, ...], asks: tuple[Level, ...], flags: int
) -> None:
    rig.desk.want("NSE:A")
    await rig.desk.plan.follow()
    rig.book(bids=bids, asks=asks)
    (update,) = rig.heard
    assert (update.bids, update.asks) == (bids, asks)
    assert update.flags == flags | DEPTH_RECEIVED


async def test_a_daemon_that_leads_no_longer_brings_nothing_and_forgets(rig: Rig) -> None:
    rig.desk.want("NSE:A", 20)
    await rig.desk.plan.follow()
    rig.book(levels=20)
    await rig.desk.rest()
    assert rig.twenty.carried == []
    assert rig.desk.latest("NSE:A") is None
    await rig.desk.plan.follow()
    assert rig.twenty.carried == ["NSE:A"], "who wanted it still does"


async def test_the_status_tells_what_is_awaited_and_how_old_the_rest_is(rig: Rig) -> None:
    rig.desk.want("NSE:A")
    rig.desk.want("NSE:B")
    await rig.desk.plan.follow()
    rig.book()
    rig.clock.advance(3)
    status = rig.desk.status()
    assert (status["books"], status["awaited"], status["oldest_s"], status["stale"]) == (1, 1, 3.0, 0)
    assert [(row["levels"], row["wanted"]) for row in status["sources"]] == [(5, 2), (20, 0), (200, 0)]
