"""What is newest, who hears what, and what a slow Python consumer is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from services.data_broadcast import DataBroadcast, Publication, Skipped
from services.market_data.clock import ManualClock
from services.market_data.records import (
    FLAG_LATE,
    PROBE_EXCHANGE,
    PROBE_INSTRUMENT,
    ControlRecord,
    DataIngestionFormat,
    Record,
)
from services.pipeline.sink import SinkState
from tests.support.gateway import Market


class Outlet:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.taken: list[Record] = []
        self.controls: list[Record] = []

    def take(self, publication: Publication) -> None:
        self.taken.append(publication.record)

    def take_control(self, publication: Publication) -> None:
        self.controls.append(publication.record)


@pytest.fixture
def broadcast() -> DataBroadcast:
    return DataBroadcast(ManualClock())


@pytest.fixture
def market(broadcast: DataBroadcast) -> Market:
    return Market(broadcast)


@contextlib.asynccontextmanager
async def consuming(
    broadcast: DataBroadcast, *instruments: str, **options: Any
) -> AsyncIterator[AsyncIterator[Record | Skipped]]:
    """A subscription that has begun: what is offered from here on arrives."""
    stream = broadcast.subscribe(instruments, **options)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)

    async def items() -> AsyncIterator[Record | Skipped]:
        yield await first
        async for item in stream:
            yield item

    everything = items()
    try:
        yield everything
    finally:
        first.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await first
        await everything.aclose()
        await stream.aclose()


async def take(stream: AsyncIterator[Record | Skipped], count: int) -> list[Record | Skipped]:
    return [await asyncio.wait_for(anext(stream), 1) for _ in range(count)]


def test_the_newest_tick_and_position_are_remembered(broadcast: DataBroadcast, market: Market) -> None:
    assert broadcast.latest("NSE:A") is None
    market.tick("NSE:A", 1.0)
    newest = market.tick("NSE:A", 2.0)
    market.control("gap", "BSE:X")
    assert broadcast.latest("NSE:A") is newest
    assert broadcast.positions() == {"NSE": newest.position, "BSE": f"{market.position_ms}-3"}
    assert broadcast.position("NASDAQ") is None


@pytest.mark.parametrize("late", [{"timestamp": 5}, {"flags": FLAG_LATE}], ids=["older", "flagged"])
def test_a_late_tick_never_becomes_the_newest(
    broadcast: DataBroadcast, market: Market, late: dict[str, int]
) -> None:
    newest = market.tick("NSE:A", 1.0)
    outlet, pending = Outlet(), {}
    broadcast.attach(outlet, ["NSE:A"], pending)
    queued = Outlet()
    broadcast.attach(queued, ["NSE:A"])
    tick = market.tick("NSE:A", 2.0, **late)
    assert broadcast.latest("NSE:A") is newest
    assert not pending
    assert queued.taken == [tick]
    assert broadcast.position("NSE") == tick.position


def test_the_probe_is_noted_and_goes_nowhere(broadcast: DataBroadcast) -> None:
    outlet = Outlet()
    broadcast.attach(outlet, [PROBE_INSTRUMENT])
    broadcast.offer(
        DataIngestionFormat(PROBE_INSTRUMENT, 1.0, None, 5, "PROBE", exchange=PROBE_EXCHANGE, position_ms=77)
    )
    assert broadcast.probe_ms == 77
    assert broadcast.latest(PROBE_INSTRUMENT) is None
    assert broadcast.positions() == {}
    assert outlet.taken == []
    assert broadcast.counters.imbalance(broadcast.queued) == 0


def test_seeded_values_answer_until_something_newer_comes(broadcast: DataBroadcast, market: Market) -> None:
    old = DataIngestionFormat("NSE:A", 1.0, None, 100, "YF", exchange="NSE", position_ms=9, position_seq=1)
    older = DataIngestionFormat("NSE:A", 2.0, None, 50, "YF", exchange="NSE")
    broadcast.seed([old, older])
    assert broadcast.latest("NSE:A") is old
    assert broadcast.positions() == {}
    broadcast.seed_positions({"NSE": (9, 1), "BSE": (0, 0), PROBE_EXCHANGE: (5, 5)})
    assert broadcast.positions() == {"NSE": "9-1"}
    newer = market.tick("NSE:A", 3.0)
    assert broadcast.latest("NSE:A") is newer
    assert broadcast.positions() == {"NSE": newer.position}


def test_a_seed_is_shown_to_conflating_consumers_without_a_position(broadcast: DataBroadcast) -> None:
    conflating, pending, whole = Outlet(), {}, Outlet()
    broadcast.attach(conflating, ["NSE:A"], pending)
    broadcast.attach(whole, ["NSE:A"])
    broadcast.seed([DataIngestionFormat("NSE:A", 1.0, None, 100, "YF", exchange="NSE", position_ms=9)])
    assert pending["NSE:A"].record.price == 1.0
    assert pending["NSE:A"].record.position_ms == 0
    assert whole.taken == []


def test_an_outlet_hears_its_instruments_only_and_in_the_way_it_asked_last(
    broadcast: DataBroadcast, market: Market
) -> None:
    outlet, pending = Outlet(), {}
    broadcast.attach(outlet, ["NSE:A", "NSE:B"])
    broadcast.attach(outlet, ["NSE:B"], pending)
    first = market.tick("NSE:A", 1.0)
    second = market.tick("NSE:B", 2.0)
    market.tick("NSE:C", 3.0)
    assert outlet.taken == [first]
    assert {key: publication.record for key, publication in pending.items()} == {"NSE:B": second}
    broadcast.attach(outlet, ["NSE:B"])
    third = market.tick("NSE:B", 4.0)
    assert outlet.taken == [first, third]
    broadcast.detach(outlet, ["NSE:A", "NSE:B", "NSE:NEVER"])
    market.tick("NSE:A", 5.0)
    assert outlet.taken == [first, third]
    assert broadcast.watched() == frozenset()


def test_control_records_reach_those_they_concern_once(broadcast: DataBroadcast, market: Market) -> None:
    one, both, other = Outlet(), Outlet(), Outlet()
    broadcast.attach(one, ["NSE:A"])
    broadcast.attach(both, ["NSE:A", "NSE:B"], {})
    broadcast.attach(other, ["BSE:A"])
    gap = market.control("gap", "NSE:A")
    session = market.control("session", "NSE:*")
    bare = market.control("session", "NSE:")
    assert one.controls == [gap, session, bare]
    assert both.controls == [gap, session, bare]
    assert other.controls == []


def test_interest_is_told_when_the_first_comes_and_the_last_goes(broadcast: DataBroadcast) -> None:
    changes: list[tuple[set[str], set[str]]] = []
    broadcast.on_interest = lambda added, removed: changes.append((set(added), set(removed)))
    first, second = Outlet(), Outlet()
    broadcast.attach(first, ["NSE:A", "NSE:B"])
    broadcast.attach(second, ["NSE:B", "NSE:C"], {})
    broadcast.attach(first, ["NSE:A"], {})
    broadcast.detach(first, ["NSE:A", "NSE:B"])
    broadcast.detach(second, ["NSE:B", "NSE:C"])
    assert changes == [
        ({"NSE:A", "NSE:B"}, set()),
        ({"NSE:C"}, set()),
        (set(), {"NSE:A"}),
        (set(), {"NSE:B", "NSE:C"}),
    ]


async def test_a_consumer_of_all_gets_every_record_in_order(broadcast: DataBroadcast, market: Market) -> None:
    async with consuming(broadcast, "NSE:A") as stream:
        records: list[Any] = [market.tick("NSE:A", 1.0), market.tick("NSE:A", 2.0)]
        market.tick("NSE:B", 9.0)
        records.append(market.control("gap", "NSE:A"))
        records.append(market.tick("NSE:A", 3.0))
        assert await take(stream, 4) == records
    assert broadcast.watched() == frozenset()


async def test_a_wildcard_consumer_gets_each_record_of_the_exchange_once(
    broadcast: DataBroadcast, market: Market
) -> None:
    async with consuming(broadcast, "NSE:*", "NSE:A", "BSE:B") as stream:
        assert broadcast.watched() == {"NSE:*", "BSE:B"}
        records = [market.tick("NSE:A", 1.0), market.tick("NSE:NEW", 2.0), market.tick("BSE:B", 3.0)]
        market.tick("BSE:C", 4.0)
        records.append(market.tick("NSE:A", 5.0))
        assert await take(stream, 4) == records
    assert broadcast.watched() == frozenset()


async def test_a_slow_consumer_loses_its_oldest_records_and_is_told(
    broadcast: DataBroadcast, market: Market
) -> None:
    async with consuming(broadcast, "NSE:A", "NSE:B", limit=3) as stream:
        for sequence in range(4):
            market.tick("NSE:A", float(sequence))
        kept = [market.tick("NSE:B", 8.0), market.tick("NSE:B", 9.0)]
        skipped, *rest = await take(stream, 4)
        assert skipped == Skipped(3, {"NSE:A": 3})
        assert rest[1:] == kept


async def test_a_conflating_consumer_gets_the_newest_of_each(
    broadcast: DataBroadcast, market: Market
) -> None:
    async with consuming(broadcast, "NSE:A", "NSE:B", delivery="latest") as stream:
        market.tick("NSE:A", 1.0)
        market.tick("NSE:B", 2.0)
        newest = market.tick("NSE:A", 3.0)
        market.tick("NSE:A", 0.5, timestamp=5)
        gap = market.control("gap", "NSE:A")
        after = market.tick("NSE:A", 4.0)
        items = await take(stream, 4)
        assert items[:2] == [newest, gap]
        assert isinstance(items[2], DataIngestionFormat)
        assert items[2].symbol == "NSE:B"
        assert items[3] is after


async def test_the_sink_is_ready_while_it_runs(broadcast: DataBroadcast) -> None:
    assert broadcast.state is SinkState.STARTING
    running = asyncio.create_task(broadcast.run())
    await asyncio.sleep(0)
    assert broadcast.state is SinkState.READY
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert broadcast.state is SinkState.CLOSED
    assert await broadcast.drain(1.0) == 0


def test_everything_offered_is_accounted_for(broadcast: DataBroadcast, market: Market) -> None:
    market.tick("NSE:A", 1.0)
    market.control("gap", "NSE:A")
    assert broadcast.counters.offered == 2
    assert broadcast.counters.imbalance(broadcast.queued) == 0


def test_a_control_record_is_no_price(broadcast: DataBroadcast) -> None:
    broadcast.offer(ControlRecord("stale", "NSE:A", "NSE", 1, 1, "DHAN", {}, 1, 1))
    assert broadcast.latest("NSE:A") is None


def test_every_control_record_is_told_to_the_watcher_and_no_tick(
    broadcast: DataBroadcast, market: Market
) -> None:
    heard: list[ControlRecord] = []
    broadcast.on_control = heard.append
    market.tick("NSE:A", 1.0)
    gap = market.control("gap", "NSE:A")
    session = market.control("session", "NSE:*")
    assert heard == [gap, session]
