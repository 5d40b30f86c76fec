"""The chart channel over real sockets: what forms, is finished, is revised, and after coming back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from services.market_data.bar_builder import BarBuilder
from services.market_data.bar_grid import BarGrid
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import ManualClock
from services.market_data.records import FLAG_LATE, Record
from services.pipeline.bar_sink import BarSink
from tests.support.eventually import FACTOR
from tests.support.gateway import GatewayRig, ask, running_gateway

START_S = 1_700_000_040
START_MS = START_S * 1000
KEYS = ("NSE:RELIANCE", "NSE:TCS", "NASDAQ:AAPL")


class ChartRig:
    """A gateway whose bars are built of the rig's ticks, by a clock of the test's own."""

    def __init__(self, rig: GatewayRig, bars: BarSink, clock: ManualClock) -> None:
        self.rig, self.bars, self.clock = rig, bars, clock
        rig.market.position_ms = START_MS

    def trade(
        self, price: float, after_s: float, volume: int = 10, key: str = "NSE:TCS", flags: int = 0
    ) -> Any:
        at_ms = START_MS + round(after_s * 1000)
        return self.rig.market.tick(key, price, timestamp=at_ms, volume=volume, flags=flags)

    def at(self, after_s: float) -> None:
        """Let the clock show so many seconds after the start, and finish what is due."""
        self.clock.step_wall(START_MS + round(after_s * 1000) - self.clock.now_ms())
        while self.bars.publish_finished():
            pass


@asynccontextmanager
async def charts(*, follows: bool = False, **options: Any) -> AsyncIterator[ChartRig]:
    """A gateway in the daemon's process; with `follows` one that knows the records of the streams only."""
    clock = ManualClock(START_MS)
    rigs: list[GatewayRig] = []

    def publish(record: Record) -> None:
        market = rigs[0].market
        market.sequence += 1
        record.position_ms, record.position_seq = market.position_ms, market.sequence
        market.offer(record)

    grid = BarGrid(MarketCalendar(always_open=True))
    bars = BarSink(lambda: BarBuilder(grid), clock, publish)
    follower = BarSink(lambda: BarBuilder(grid, follow=True), clock, lambda record: None)
    async with running_gateway(KEYS, bars=follower if follows else bars, **options) as rig:
        rigs.append(rig)
        if follows:
            rig.market.sinks = (bars, *rig.market.sinks)
        yield ChartRig(rig, bars, clock)


async def updates(socket: aiohttp.ClientWebSocketResponse, until: Any) -> list[tuple[str, list[Any]]]:
    """Status and candle of every `chart_update` up to the candle `until`."""
    found: list[tuple[str, list[Any]]] = []
    while not found or found[-1] != until:
        message = await socket.receive_json(timeout=10 * FACTOR)
        if message["type"] == "chart_update":
            assert set(message) == {"type", "instrumentKey", "interval", "ohlcv", "status"}
            (candle,) = message["ohlcv"]
            found.append((message["status"], candle))
    return found


@pytest.mark.parametrize("follows", [False, True])
async def test_a_chart_begins_with_what_was_finished_and_what_forms_and_goes_on(follows: bool) -> None:
    async with charts(follows=follows) as rig:
        rig.trade(100.0, 1)
        rig.trade(102.5, 70)
        rig.at(75)
        socket, answer = await rig.rig.subscriber("NSE:TCS", channels=["chart"], interval="1", every_ms=20)
        assert answer["snapshot"] == {}
        first = ["final", [START_S, 100.0, 100.0, 100.0, 100.0, 10]]
        forming = ("forming", [START_S + 60, 102.5, 102.5, 102.5, 102.5, 10])
        assert await updates(socket, forming) == [tuple(first), forming]
        rig.trade(101.0, 80, volume=5)
        await updates(socket, ("forming", [START_S + 60, 102.5, 102.5, 101.0, 101.0, 15]))
        rig.trade(99.0, 119, volume=1)
        rig.at(121)
        await updates(socket, ("final", [START_S + 60, 102.5, 102.5, 99.0, 99.0, 16]))
        rig.trade(150.0, 100, volume=4, flags=FLAG_LATE)
        rig.at(123)
        await updates(socket, ("revised", [START_S + 60, 102.5, 150.0, 99.0, 99.0, 20]))


@pytest.mark.parametrize(
    ("interval", "start_s"),
    [
        ("1", 1_700_000_220),
        ("5", 1_700_000_100),
        ("15", 1_700_000_100),
        ("60", 1_699_998_300),
        ("1D", 1_699_986_600),
    ],
)
async def test_every_interval_forms_from_the_ticks_alone(interval: str, start_s: int) -> None:
    async with charts() as rig:
        socket, _ = await rig.rig.subscriber("NSE:TCS", channels=["chart"], interval=interval, every_ms=20)
        rig.trade(100.0, 185, volume=3)
        await updates(socket, ("forming", [start_s, 100.0, 100.0, 100.0, 100.0, 3]))
        rig.at(241)
        rig.trade(90.0, 239, volume=3, flags=FLAG_LATE)
        rig.at(242)
        last = ("revised" if interval == "1" else "forming", [start_s, 100.0, 100.0, 90.0, 90.0, 6])
        if interval != "1":
            rig.trade(90.0, 245, volume=0)
        await updates(socket, last)


async def test_ticks_and_chart_come_side_by_side_and_other_instruments_do_not() -> None:
    async with charts() as rig:
        socket, answer = await rig.rig.subscriber("NSE:TCS", channels=["tick", "chart"], delivery="all")
        assert answer["accepted"] == ["NSE:TCS"]
        rig.trade(50.0, 1, key="NSE:RELIANCE")
        prices = [100.0, 101.0, 102.0]
        for number, price in enumerate(prices):
            rig.trade(price, 2 + number)
        rig.at(62)
        heard: list[float] = []
        final: list[Any] = []
        while not final or len(heard) < 3:
            message = await socket.receive_json(timeout=10 * FACTOR)
            assert "NSE:RELIANCE" not in json.dumps(message)
            heard += [data["last_price"] for data in message.get("data", {}).values()]
            if message["type"] == "chart_update" and message["status"] == "final":
                final = message["ohlcv"]
        assert heard == prices
        assert final == [[START_S, 100.0, 102.0, 100.0, 102.0, 30]]


async def test_a_client_of_charts_alone_hears_of_gaps_and_gets_no_ticks() -> None:
    async with charts() as rig:
        socket, _ = await rig.rig.subscriber("NSE:TCS", channels=["chart"], every_ms=20)
        rig.rig.market.control("gap", "NSE:TCS", **{"from": 1, "to": 2, "reason": "mute"})
        rig.rig.market.control("session", "NSE:*", state="close")
        rig.trade(100.0, 5)
        kinds = []
        while not kinds or kinds[-1] != "chart_update":
            kinds.append((await socket.receive_json(timeout=10 * FACTOR))["type"])
        assert kinds == ["gap", "session", "chart_update"]
        await ask(socket, action="unsubscribe", instruments=["NSE:TCS"])
        assert rig.rig.backend.interest == set()
        rig.trade(101.0, 6)
        assert (await ask(socket, action="ping"))["type"] == "pong"


async def test_extended_hours_and_other_intervals_are_not_on_the_chart() -> None:
    async with charts() as rig:
        socket, _ = await rig.rig.subscriber("NSE:TCS", channels=["chart"], interval="5", every_ms=20)
        rig.trade(7.0, 1, volume=1)
        await updates(socket, ("forming", [1_699_999_800, 7.0, 7.0, 7.0, 7.0, 1]))
        figures = {"s": START_MS, "o": "1", "h": "1", "l": "1", "c": "1", "n": 1, "st": "final", "rev": 0}
        rig.rig.market.control("bar", "NSE:TCS", i="1m", **figures)
        rig.rig.market.control("bar", "NSE:TCS", i="5m", ph="pre", **figures)
        rig.rig.market.control("bar", "NSE:TCS", i="5m", **figures)
        message = await socket.receive_json(timeout=10 * FACTOR)
        assert message["ohlcv"] == [[START_S, 1.0, 1.0, 1.0, 1.0, None]], "an unknown volume is null"


@pytest.mark.parametrize("channels", [["chart"], ["tick", "chart"]])
async def test_a_chart_that_comes_back_gets_the_bars_it_missed(channels: list[str], redis_url: str) -> None:
    async with charts(redis_url=redis_url) as rig:
        seen = rig.trade(100.0, 1)
        rig.trade(101.0, 2)
        rig.at(62)
        rig.trade(102.0, 63)
        rig.at(122)
        rig.at(1_000)
        resume = {"epoch": rig.rig.backend.epoch, "position": {"NSE": seen.position}}
        socket, answer = await rig.rig.subscriber(
            "NSE:TCS", channels=channels, delivery="all", interval="1", resume=resume
        )
        assert answer["recovered"] is True
        rig.trade(105.0, 1_010)
        expected = [
            ("final", [START_S, 100.0, 101.0, 100.0, 101.0, 20]),
            ("final", [START_S + 60, 102.0, 102.0, 102.0, 102.0, 10]),
            ("forming", [START_S + 960, 105.0, 105.0, 105.0, 105.0, 10]),
        ]
        assert await updates(socket, expected[-1]) == expected


async def test_charts_come_as_server_sent_events_too() -> None:
    async with charts() as rig:
        rig.trade(100.0, 1)
        query = "instruments=NSE:TCS&channels=chart&interval=60&every_ms=20"
        async with rig.rig.http.get(f"{rig.rig.url}/api/stream?{query}") as response:
            assert response.status == 200
            async with asyncio.timeout(10 * FACTOR):
                async for line in response.content:
                    if b"chart_update" in line:
                        break
            assert json.loads(line.removeprefix(b"data: "))["ohlcv"][0][1:] == [
                100.0,
                100.0,
                100.0,
                100.0,
                10,
            ]
