"""The minute's look at every provider: what is counted, and what must not be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date

import pytest

from services.base_provider import ProviderState
from services.market_data.calendar import MarketCalendar
from services.quality.collector import QualityCollector
from services.quality.figures import DayFigures
from services.quality.histogram import Histogram
from tests.support.routing_rig import NOW_MS, RoutingRig

ONE, TWO = "NSE:ONE", "NSE:TWO"


class Scene:
    """Two providers that serve the same instruments, and a collector that looks at them."""

    def __init__(self, *, calendar: MarketCalendar | None = None) -> None:
        self.rig = RoutingRig()
        self.faulty: dict[tuple[str, str], int] = {}
        self.collector = QualityCollector(
            self.rig.manager.runtimes,
            clock=self.rig.clock,
            calendar=calendar or MarketCalendar(always_open=True),
            faulty=lambda code, exchange: self.faulty.get((code, exchange), 0),
        )

    async def subscribe(self, *codes: str) -> None:
        for code in codes:
            symbols = [self.rig.symbol(code, key) for key in (ONE, TWO)]
            await self.rig.made[code].want(symbols)
            for key in (ONE, TWO):
                self.rig.flows(code, key)

    def minute(self) -> None:
        self.rig.clock.advance(60.0)
        self.collector.look()

    def of(self, code: str) -> DayFigures:
        return next(found for found in self.collector.figures() if found.provider == code)


@pytest.fixture
async def scene() -> AsyncIterator[Scene]:
    made = Scene()
    await made.subscribe("AAA", "BBB")
    made.minute()
    yield made
    await made.rig.supervisor.stop()


async def test_a_minute_counts_instruments_ticks_doubles_and_late_ones(scene: Scene) -> None:
    rig = scene.rig
    rig.clock.advance(50.0)
    rig.tick("AAA", ONE, 100.0, lag_ms=300)
    rig.tick("AAA", ONE, 100.0, lag_ms=300)
    rig.tick("AAA", ONE, 101.0, lag_ms=2_000)
    rig.tick("AAA", TWO, 50.0, lag_ms=300)
    scene.faulty["AAA", "NSE"] = 1
    scene.collector.look()
    found = scene.of("AAA")
    assert (found.minutes, found.expected, found.missing, found.faulty) == (2, 4, 0, 1)
    assert (found.ticks, found.duplicates, found.late) == (3, 1, 1)
    assert Histogram(found.latency).total == 2
    assert scene.of("BBB").ticks == 0
    assert {it.provider for it in scene.collector.figures()} == {"AAA", "BBB"}, "nobody asked CCC"


async def test_a_broken_connection_is_missing_and_not_faulty(scene: Scene) -> None:
    scene.rig.breaks("AAA", ONE)
    scene.rig.breaks("AAA", TWO)
    scene.faulty["AAA", "NSE"] = 2
    scene.minute()
    found = scene.of("AAA")
    assert (found.expected, found.missing, found.faulty) == (4, 2, 0)


async def test_a_closed_market_does_not_count_but_its_ticks_are_not_counted_later() -> None:
    scene = Scene(calendar=MarketCalendar())
    await scene.subscribe("AAA")
    # NOW_MS is a Wednesday at 06:16 UTC, a quarter to twelve in India: go on to the night.
    scene.minute()
    assert scene.of("AAA").minutes == 1
    scene.rig.clock.advance(8 * 3_600.0)
    scene.rig.tick("AAA", ONE, 100.0)
    scene.minute()
    assert scene.of("AAA").minutes == 1
    scene.rig.clock.advance(15 * 3_600.0)
    scene.minute()
    days = [date(2026, 9, 30), date(2026, 10, 1)]
    assert [(found.day, found.minutes, found.ticks) for found in scene.collector.figures()] == [
        (days[0], 1, 0),
        (days[1], 1, 0),
    ]
    scene.collector.let_go(scene.collector.figures())
    assert [found.day for found in scene.collector.figures()] == days[1:]


async def test_a_provider_that_never_got_its_credentials_is_no_bad_one(scene: Scene) -> None:
    for code in ("AAA", "BBB"):
        scene.rig.made[code].state = ProviderState.PARKED
    scene.rig.tick("BBB", ONE, 1.0)
    scene.minute()
    assert scene.of("AAA").minutes == 1, "only the minute before"
    assert scene.of("BBB").minutes == 2, "it worked before, so now it is missed"


async def test_prices_are_compared_and_a_wrong_mapping_becomes_a_dispute(scene: Scene) -> None:
    rig = scene.rig
    for number in range(13):
        rig.clock.advance(59.0)
        rig.tick("AAA", ONE, 100.0 + number / 100, lag_ms=200)
        rig.tick("BBB", ONE, 170.0 + number / 100, lag_ms=200)
        rig.tick("AAA", TWO, 50.0 + number / 100, lag_ms=200)
        rig.tick("BBB", TWO, 50.005 + number / 100, lag_ms=200)
        rig.clock.advance(1.0)
        scene.collector.look()
    assert Histogram(scene.of("AAA").disagreement).total == 26
    assert Histogram(scene.of("BBB").disagreement).total == 26
    assert set(scene.collector.disputes()) == {ONE}
    assert "AAA (ONE.AAA)" in scene.collector.disputes()[ONE].text()


async def test_a_mapping_that_is_taken_away_in_the_middle_of_a_look_does_no_harm(scene: Scene) -> None:
    steps = scene.collector.steps()
    next(steps)
    snapshot = scene.rig.snapshot()
    scene.rig.manager.load(
        type(snapshot)(version=2, loaded_ms=NOW_MS, providers=snapshot.providers, mappings=())
    )
    for _ in steps:
        pass
    assert scene.of("AAA").minutes == 1
