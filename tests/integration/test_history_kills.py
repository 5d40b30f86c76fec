"""Thirty gaps, and a process that is killed again and again while it fills them: the ledger converges.

Real Redis and PostgreSQL, both vendors simulated, the process killed with SIGKILL at random moments. The
oracle is the vendor's past: every minute of every gap is stored once and as the vendor has it, and nothing is
missing.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

from services.history.coverage_store import CoverageStore
from services.market_data.coverage import HAVE, MINUTES, MISSING, spans_of
from services.market_data.spans import merged, widened, without
from services.storage.client import make_client
from simulators import past as simulated
from tests.support.daemon import ROOT
from tests.support.eventually import FACTOR, eventually
from tests.support.past import BOTH, NOON_MS, RELIANCE, PastRig, past_rig

MINUTE_MS = 60_000
OPEN_MS = int(datetime(2026, 11, 11, 3, 45, tzinfo=UTC).timestamp() * 1000)
KILLS = 6


@pytest.fixture
async def rig(migrated_database_url: str, redis_url: str, tmp_path: Path) -> AsyncIterator[PastRig]:
    async with past_rig(migrated_database_url, redis_url, tmp_path) as made:
        yield made


def thirty_gaps(seed: int) -> list[tuple[int, int]]:
    draw = random.Random(seed)
    starts = sorted(draw.sample(range(0, 370), 30))
    return [
        (
            OPEN_MS + at * MINUTE_MS + draw.randrange(60_000),
            OPEN_MS + (at + 1) * MINUTE_MS + draw.randrange(120_000),
        )
        for at in starts
    ]


async def start(rig: PastRig, gaps: list[tuple[int, int]]) -> asyncio.subprocess.Process:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.past_process",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    order = {
        "database_url": rig.database_url,
        "redis_url": rig.redis_url,
        "folder": str(rig.folder),
        "settings": rig.settings,
        "mappings": msgspec.to_builtins(BOTH),
        "now_ms": NOON_MS,
        "minute_days": 1,
        "per_second": 1_000.0,
        "gaps": gaps,
    }
    process.stdin.write(json.dumps(order).encode() + b"\n")
    await process.stdin.drain()
    return process


async def test_thirty_gaps_and_a_kill_at_any_moment_leave_nothing_missing_and_nothing_twice(
    rig: PastRig,
) -> None:
    gaps, draw = thirty_gaps(7), random.Random(8)
    left = list(gaps)
    for _ in range(KILLS):
        process = await start(rig, left)
        assert process.stdout is not None
        # Until some of the gaps were noted, and then any time after.
        for _ in range(min(len(left), 30 // KILLS)):
            await asyncio.wait_for(process.stdout.readline(), 30 * FACTOR)
            left.pop(0)
        await asyncio.sleep(draw.random() * 1.5)
        process.kill()
        await process.wait()
        # What was noted meanwhile is noted again: that must be harmless.
    assert left == []
    process = await start(rig, [])
    store = CoverageStore(rig.database_url)
    try:
        await eventually(lambda: _converged(store, gaps), within_s=30)
    finally:
        process.kill()
        await process.wait()
        await store.close()
    listing = rig.dhan.listing("NSE_EQ:2885")
    assert listing is not None
    bars = {
        bar.start_s * 1000: bar
        for bar in simulated.bars(
            listing.instrument, simulated.INDIA, 1, OPEN_MS // 1000, NOON_MS // 1000, NOON_MS // 1000
        )
    }
    client = make_client(rig.redis_url)
    for field in ("open", "high", "low", "close", "volume"):
        rows = await client.execute_command("TS.RANGE", f"md:ts:{{{RELIANCE}}}:1m:{field}", "-", "+")
        starts = [row[0] for row in rows]
        assert len(set(starts)) == len(starts)
        for begin, end in (widened(gap, MINUTE_MS) for gap in gaps):
            assert set(range(begin, end, MINUTE_MS)) & bars.keys() <= set(starts)
        assert all(float(value) == getattr(bars[at], field) for at, value in rows if at in bars)
    await client.aclose()


async def _converged(store: CoverageStore, gaps: list[tuple[int, int]]) -> bool:
    rows = [row for row in await store.of(RELIANCE) if row.type == MINUTES]
    wanted = merged(widened(gap, MINUTE_MS) for gap in gaps)
    if spans_of(rows, MISSING) or without(wanted, spans_of(rows, HAVE)):
        return False
    # The gaps are known of the ticks, too, which nobody sells.
    ticks = spans_of([row for row in await store.of(RELIANCE) if row.type == "ticks"], MISSING)
    return ticks == merged(gaps)
