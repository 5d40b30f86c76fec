"""Depth asked for in Redis: leases become interest at the desk and end in time; odd ones are named."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from services.depth.leases import DepthLeases
from services.market_data.clock import ManualClock
from services.storage.client import make_client
from services.storage.keys import DEPTH_INTEREST
from simulators import DhanSimulator
from tests.support.depth import DepthRig


@pytest.fixture
async def client(redis_url: str):  # type: ignore[no-untyped-def]
    client = make_client(redis_url)
    yield client
    await client.aclose()


async def test_leases_are_wanted_until_they_end_and_refusals_are_told(redis_url: str, client: Redis) -> None:
    clock = ManualClock()
    ends_ms = clock.now_ms() + 10_000
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim, linger_s=0.0)
        leases = DepthLeases(rig.desk, redis_url, clock)
        await client.zadd(
            DEPTH_INTEREST,
            {
                "NSE:RELIANCE": ends_ms,
                "NSE:RELIANCE 20": ends_ms + 60_000,
                "NSE:TCS 20": ends_ms,
                "NSE:NIFTY 20": ends_ms,
                "NSE:TCS twenty": ends_ms,
                "NSE:TCS 7": ends_ms,
                "": ends_ms,
                "NSE:GONE 5": ends_ms,
                "NSE:HDFCBANK 20": clock.now_ms() - 1,
            },
        )
        await leases.look(client)
        await leases.look(client)
        await rig.desk.plan.follow()
        assert rig.desk.needs_ticks_of == {"NSE:RELIANCE"}
        assert set(rig.twenty.feed.wanted) == {"NSE_EQ:2885", "NSE_EQ:11536"}
        status = leases.status()
        assert status["held"] == 3
        assert status["refused"] == {
            "NSE:NIFTY 20": "no_depth",
            "NSE:TCS twenty": "depth_levels",
            "NSE:TCS 7": "depth_levels",
            "": "unknown_instrument",
            "NSE:GONE 5": "unknown_instrument",
        }
        clock.advance(11)
        await leases.look(client)
        await rig.desk.plan.follow()
        assert set(rig.twenty.feed.wanted) == {"NSE_EQ:2885"}
        assert rig.desk.needs_ticks_of == frozenset()
        assert leases.status() == {"held": 1, "refused": {}}


async def test_what_was_refused_is_tried_again_while_it_is_leased(redis_url: str, client: Redis) -> None:
    clock = ManualClock()
    async with DhanSimulator(rate=0) as sim:
        rig = DepthRig(sim)
        account, rig.account = rig.account, None
        leases = DepthLeases(rig.desk, redis_url, clock)
        await client.zadd(DEPTH_INTEREST, {"NSE:TCS 20": clock.now_ms() + 10_000})
        await leases.look(client)
        assert leases.status()["refused"] == {"NSE:TCS 20": "depth_unavailable"}
        rig.account = account
        await leases.look(client)
        assert leases.status() == {"held": 1, "refused": {}}
