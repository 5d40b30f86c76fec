"""Dynamic mode, the daemon as a process: leases, clients and pins decide what is subscribed upstream."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.stack import NAMES, Stack

pytestmark = pytest.mark.timeout(180)

_LINGER_S = 2


def upstream(stack: Stack) -> set[str]:
    """What the simulators have as subscribed just now, as instrument keys."""
    return {NAMES[symbol] for feed in (stack.dhan, stack.yahoo) for symbol, _ in feed.subscriptions.all()}


async def subscriptions(daemon: Daemon) -> dict[str, Any]:
    return dict((await daemon.status())["pipeline"]["subscriptions"])


async def test_only_what_somebody_wants_is_subscribed_and_a_restart_remembers_it(
    stack: Stack, tmp_path: Path
) -> None:
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    dynamic = {"SUBSCRIPTION_MODE": "dynamic", "PINNED_INSTRUMENTS": "NSE:TCS"}
    async with stack.daemon(tmp_path / "state", **dynamic) as daemon:
        await eventually(lambda: upstream(stack) == {"NSE:TCS"}, within_s=20)
        in_a_minute = int(time.time() * 1000) + 60_000
        await client.zadd("md:interest", {"NASDAQ:AAPL": in_a_minute, "NSE:NOPE": in_a_minute})
        await eventually(lambda: upstream(stack) == {"NSE:TCS", "NASDAQ:AAPL"}, within_s=10)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{daemon.runtime['api_url']}/ws") as socket,
        ):
            await socket.send_json({"action": "subscribe", "id": 1, "instruments": ["NSE:M&M"]})
            await eventually(lambda: upstream(stack) == {"NSE:TCS", "NASDAQ:AAPL", "NSE:M&M"}, within_s=10)

            async def proven() -> bool:
                return bool((await subscriptions(daemon))["by_state"]["proven"] == 3)

            await eventually(proven, within_s=20)
            status = await subscriptions(daemon)
            assert status["by_claim"] == {"pinned": 1, "watched": 1, "leased": 1}
            assert await daemon.stop() == 0
    await client.delete("md:interest")
    async with stack.daemon(tmp_path / "state", **dynamic) as daemon:
        await eventually(lambda: upstream(stack) >= {"NSE:TCS", "NSE:M&M"}, within_s=20)
        assert (await subscriptions(daemon))["by_claim"]["watched"] == 1
    await client.aclose()


async def test_ten_thousand_lease_changes_cause_bounded_traffic_and_leave_nothing_behind(
    stack: Stack, tmp_path: Path
) -> None:
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    chance = random.Random(11)
    names = sorted(NAMES.values())
    dynamic = {"SUBSCRIPTION_MODE": "dynamic", "SUBSCRIPTION_LINGER_S": _LINGER_S}
    async with stack.daemon(tmp_path / "state", **dynamic) as daemon:
        await client.zadd("md:interest", {"NSE:TCS": int(time.time() * 1000) + 600_000})
        await eventually(lambda: upstream(stack) == {"NSE:TCS"}, within_s=20)
        asked_before = len(stack.dhan.requests) + len(stack.yahoo.requests)
        began_s = time.monotonic()
        for _ in range(100):
            pipe = client.pipeline(transaction=False)
            now_ms = int(time.time() * 1000)
            for _ in range(100):
                name = chance.choice(names)
                if chance.random() < 0.5 or name == "NSE:TCS":
                    pipe.zadd("md:interest", {name: now_ms + 1_500})
                else:
                    pipe.zrem("md:interest", name)
            await pipe.execute()
            await asyncio.sleep(0.01)
        took_s = time.monotonic() - began_s
        await client.delete("md:interest")
        await client.zadd("md:interest", {"NSE:TCS": int(time.time() * 1000) + 600_000})
        await eventually(lambda: upstream(stack) == {"NSE:TCS"}, within_s=_LINGER_S + 20, every_s=0.2)
        asked = len(stack.dhan.requests) + len(stack.yahoo.requests) - asked_before
        # Leases are looked at once a second; each look costs a provider a subscribe and an unsubscribe.
        assert 2 <= asked <= (took_s + _LINGER_S) * 4
        status = await subscriptions(daemon)
        assert (status["wanted"], status["subscribed"]) == (1, 1)
        row = (await daemon.status())["by_code"]
        assert (row["DHAN"]["subscribed"], row["YF"]["subscribed"]) == (1, 0)
    await client.aclose()
