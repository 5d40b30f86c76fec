"""Ingestion and gateways as processes of their own: a client goes from one gateway to another without a hole.

Real processes against the simulators' wire; judged by the stream in Redis, entry by entry.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from marketd_client import Backoff, Client, Control, Disconnected, Skipped, Subscribed, Tick
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.stack import Stack

KILLS = int(os.environ.get("GATEWAY_KILLS", "8"))
"""How often a gateway is killed under the client."""
TICKS_PER_S = 5_000
pytestmark = pytest.mark.timeout(240 + 10 * KILLS)


class Watcher:
    """A program that reads every tick of an exchange from whichever gateway there is."""

    def __init__(self, urls: list[str], exchange: str = "NSE") -> None:
        self.exchange = exchange
        self.client = Client(
            urls, [f"{exchange}:*"], delivery="all", backoff=Backoff(first_s=0.05, longest_s=0.5)
        )
        self.ticks: list[tuple[str, float, int]] = []
        self.answers: list[Subscribed] = []
        self.ends: list[Disconnected] = []
        self.other: list[Any] = []

    async def run(self) -> None:
        """Read until cancelled."""
        async with self.client as records:
            async for record in records:
                match record:
                    case Tick():
                        self.ticks.append((record.instrument, record.price, record.ts_ms))
                    case Subscribed():
                        self.answers.append(record)
                    case Disconnected():
                        self.ends.append(record)
                    case _:
                        self.other.append(record)


async def stored(redis_url: str, exchange: str, after: str, upto: str) -> list[tuple[str, float, int]]:
    """Every tick of the stream between two positions."""
    client = redis.asyncio.from_url(redis_url, decode_responses=True)
    found = []
    while page := await client.xrange(f"md:ticks:{exchange}", f"({after}", upto, count=1_000):
        after = page[-1][0]
        found += [fields for _, fields in page if fields["type"] == "tick"]
    await client.aclose()
    return [(fields["k"], float(fields["p"]), int(fields["t"])) for fields in found]


@contextlib.asynccontextmanager
async def two_gateways(stack: Stack, tmp_path: Path) -> Any:
    """An ingest daemon and two gateways on one Redis."""
    async with (
        # All of the run stays in the stream, however long a busy machine makes it.
        stack.ingest(tmp_path / "ingest", STREAM_MAX_ENTRIES=3_000_000) as ingest,
        stack.gateway(tmp_path / "a") as one,
        stack.gateway(tmp_path / "b") as two,
    ):
        yield ingest, one, two


async def test_a_client_of_gateways_that_are_killed_at_random_holds_the_sequence_of_the_stream(
    stack: Stack, tmp_path: Path
) -> None:
    chance = random.Random(KILLS)
    async with two_gateways(stack, tmp_path) as (ingest, one, two):
        stack.dhan.schedule.set_rate(TICKS_PER_S / 6)
        gateways: list[Daemon] = [one, two]
        # A port that stays the same over the restarts, as behind a service manager.
        for gateway in gateways:
            gateway._settings["API_PORT"] = gateway.port
        watcher = Watcher([gateway.runtime["api_url"] for gateway in gateways])
        reading = asyncio.create_task(watcher.run())
        await eventually(lambda: len(watcher.ticks) > 1_000, within_s=30)
        for number in range(KILLS):
            await asyncio.sleep(chance.uniform(0.1, 1.0))
            serving = gateways[0] if watcher.client.url.startswith(f"ws://127.0.0.1:{one.port}/") else two
            assert serving.process is not None
            serving.process.send_signal(signal.SIGKILL)
            await serving.process.wait()
            answered = number + 2
            await eventually(lambda wanted=answered: len(watcher.answers) >= wanted, within_s=30)
            await serving.start()
        stack.dhan.schedule.set_rate(20)
        client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)

        async def caught_up() -> bool:
            point = watcher.client.resume_point
            newest = (await client.xinfo_stream("md:ticks:NSE"))["last-generated-id"]
            behind_ms = int(newest.partition("-")[0]) - int(point.position["NSE"].partition("-")[0])
            return behind_ms < 2_000

        await eventually(caught_up, within_s=60)
        await client.aclose()
        assert reading.done() is False, "the client gave up"
        reading.cancel()
        await asyncio.wait([reading])
        answers = [(answer.recovered, answer.reason) for answer in watcher.answers]
        assert answers == [(None, "")] + [(True, "")] * KILLS
        # On a busy machine an exchange may seem silent for a moment; nothing may be skipped or missing here.
        assert [record for record in watcher.other if isinstance(record, Skipped)] == []
        notices = [record for record in watcher.other if isinstance(record, Control) and not record.position]
        assert {notice.type for notice in notices} <= {"stale", "resumed"}
        begin = watcher.answers[0].position["NSE"]
        point = watcher.client.resume_point
        assert point is not None
        expected = await stored(stack.redis_url, "NSE", begin, point.position["NSE"])
        assert len(expected) > 1_000 * KILLS / 2
        assert watcher.ticks[: len(expected)] == expected
        assert len(watcher.ticks) == len(expected)
        status = await ingest.status()
        assert all(sink["imbalance"] == 0 for sink in status["pipeline"]["sinks"])
