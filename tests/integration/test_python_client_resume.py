"""A client that is cut off and replaced again and again holds exactly the sequence of the stream.

On a machine too busy to answer a client in time the daemon may refuse to recover, or skip; the client is told
then, and holds the sequence less what it was told of: in order, nothing doubled.
"""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest
import redis.asyncio

from marketd_client import Backoff, Client, Disconnected, ResumePoint, Skipped, Subscribed, Tick
from services.gateway.limits import ClientLimits
from tests.support.eventually import FACTOR
from tests.support.gateway import GatewayRig, running_gateway

BREAKS = int(os.environ.get("CLIENT_BREAKS", "30"))
"""How often the client is broken; CLIENT_BREAKS=500 is the long run."""
TICKS_PER_S = 5_000
INSTRUMENTS = ("NSE:RELIANCE", "NSE:TCS", "NASDAQ:AAPL")
pytestmark = pytest.mark.timeout(120 + 2 * BREAKS)


async def make_market(rig: GatewayRig, made: dict[str, list[float]], stop: asyncio.Event) -> None:
    """Offer ticks at the rate wanted, or as fast as this machine can serve all of it, until told to stop."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    count = 0
    while not stop.is_set():
        due = int((loop.time() - began_s) * TICKS_PER_S)
        # All sides share one event loop here: on a busy machine the market must not starve the others.
        until = min(due, count + 20)
        while count < until:
            count += 1
            instrument = INSTRUMENTS[count % 3]
            rig.market.tick(instrument, float(count))
            made[instrument].append(float(count))
        await asyncio.sleep(0.002)


class Reader:
    """What a program of somebody's does: it handles records and keeps the resume point with its results."""

    def __init__(self) -> None:
        self.held: dict[str, list[float]] = {key: [] for key in INSTRUMENTS}
        self.frame: list[Tick] = []
        self.point: ResumePoint | None = None
        self.answers: list[Subscribed] = []
        self.lost_connections = 0
        self.told_of_losses = 0

    async def run(self, url: str) -> None:
        """Read until cancelled; what was read but not kept with its point is forgotten, as in a crash."""
        self.frame = []
        backoff = Backoff(first_s=0.002, longest_s=0.02)
        async with Client(url, INSTRUMENTS, delivery="all", resume=self.point, backoff=backoff) as client:
            async for record in client:
                if isinstance(record, Tick):
                    self.frame.append(record)
                elif isinstance(record, Subscribed):
                    self.answers.append(record)
                    self.told_of_losses += record.recovered is False
                elif isinstance(record, Skipped):
                    self.told_of_losses += 1
                elif isinstance(record, Disconnected):
                    self.lost_connections += 1
                if client.resume_point is not None and client.resume_point != self.point:
                    for tick in self.frame:
                        self.held[tick.instrument].append(tick.price)
                    self.frame, self.point = [], client.resume_point


async def test_a_client_broken_at_random_under_load_holds_exactly_the_stream(redis_url: str) -> None:
    chance = random.Random(7)
    limits = ClientLimits(messages_per_s=1_000, message_burst=1_000)
    async with running_gateway(INSTRUMENTS, redis_url=redis_url, limits=limits) as rig:
        for instrument in INSTRUMENTS:
            rig.market.tick(instrument, 0.0)
        reader = Reader()
        reading = asyncio.create_task(reader.run(rig.url))
        await wait_for(lambda: reader.point is not None)
        made: dict[str, list[float]] = {key: [] for key in INSTRUMENTS}
        stop = asyncio.Event()
        market = asyncio.create_task(make_market(rig, made, stop))
        cuts = restarts = answered = 0
        while cuts + restarts < BREAKS:
            if chance.random() < 0.9:
                # Mostly it breaks once it was answered, while what it missed or what is new comes in.
                await wait_for(lambda: len(reader.answers) > answered)  # noqa: B023
            await asyncio.sleep(chance.uniform(0.0, 0.04))
            answered = len(reader.answers)
            if chance.random() < 0.3:
                reading.cancel()
                await asyncio.wait({reading})
                reading = asyncio.create_task(reader.run(rig.url))
                restarts += 1
            elif rig.gateway._sockets.sessions:
                for session in list(rig.gateway._sockets.sessions):
                    session.abort(1006, "cut by the test")
                cuts += 1
        stop.set()
        await market
        await wait_for(lambda: reader.point.position == rig.broadcast.positions())
        reading.cancel()
        await asyncio.wait({reading})

    if reader.told_of_losses == 0:
        assert reader.held == made
    for instrument, prices in reader.held.items():
        assert prices == sorted(set(prices)), f"{instrument}: in order, nothing doubled"
        assert set(prices) <= set(made[instrument])
    recovered = sum(answer.recovered is True for answer in reader.answers)
    assert recovered > len(reader.answers) / 2
    print(f"{cuts} cuts, {restarts} restarts, {recovered} recoveries, {sum(map(len, made.values()))} ticks")
    # The breaks really happened, under load.
    assert reader.lost_connections > cuts / 3
    assert restarts > 0
    assert len(reader.answers) > BREAKS / 2
    async with redis.asyncio.from_url(redis_url) as client:
        stored: Any = await client.xlen("md:ticks:NSE") + await client.xlen("md:ticks:NASDAQ")
    assert stored == sum(map(len, made.values())) + len(INSTRUMENTS)


async def wait_for(condition: Any) -> None:
    async with asyncio.timeout(30 * FACTOR):
        while not condition():
            await asyncio.sleep(0.01)
