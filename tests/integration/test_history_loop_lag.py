"""Filling a quarter of a year of minutes keeps the event loop from nothing else: no turn of it is long.

Real Redis and PostgreSQL; both vendors are simulated in a process of their own, so that what is measured on
this loop is the filling alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from services.history.backfill import BackfillDepth
from services.history.past import Past, PastConfig
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import SystemClock
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot
from services.market_data.records import ControlRecord
from services.operations.demo import SimulatorUrls
from tests.support.daemon import ROOT
from tests.support.eventually import eventually
from tests.support.loop_turns import measured_turns
from tests.support.past import BOTH, RELIANCE, mapping

DAY_MS = 86_400_000
LONGEST_TURN_MS = 10.0
"""A tenth of what may block the loop: ten windows are never worked through in one turn."""
BITCOIN = "CRYPTO:BTC-USD"
AROUND_THE_CLOCK = (mapping(BITCOIN, "YF", "BTC-USD", primary=True, kind=AssetClass.CRYPTO),)


@pytest.fixture
async def vendors() -> AsyncIterator[SimulatorUrls]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "simulators", "--exit-with-parent", "--history-rate", "1000"),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        yield msgspec.json.decode(await process.stdout.readline(), type=SimulatorUrls)
    finally:
        process.terminate()
        await process.wait()


@pytest.mark.parametrize(
    ("instrument", "mappings", "days", "least"),
    [(RELIANCE, BOTH, 90, 20_000), (BITCOIN, AROUND_THE_CLOCK, 21, 30_000)],
)
async def test_the_loop_is_free_while_months_of_minutes_are_filled(
    vendors: SimulatorUrls,
    migrated_database_url: str,
    redis_url: str,
    tmp_path: Path,
    instrument: str,
    mappings: tuple[InstrumentMapping, ...],
    days: int,
    least: int,
) -> None:
    published: list[ControlRecord] = []
    past = Past(
        PastConfig(
            database_url=migrated_database_url,
            redis_url=redis_url,
            folder=tmp_path,
            depth=BackfillDepth(),
        ),
        clock=SystemClock(),
        calendar=MarketCalendar(),
        settings=lambda: {
            "DHAN_CLIENT_ID": vendors.dhan_client_id,
            "DHAN_ACCESS_TOKEN": vendors.dhan_access_token,
            "DHAN_REST_URL": vendors.dhan_rest_url,
            "YAHOO_REST_URL": vendors.yahoo_rest_url,
        },
        publish=published.append,
    )
    past.load(MappingSnapshot(version=1, loaded_ms=0, providers=(), mappings=mappings))
    for source in past.sources.values():
        source.quota.limits = msgspec.structs.replace(source.quota.limits, per_second=1_000.0, per_day=0)
    await past.open()
    await past.lead("epoch-1")
    work = asyncio.ensure_future(past.run())
    try:
        now_ms = time.time_ns() // 1_000_000
        # What is loaded at the first request of a process is no part of the filling.
        job = await past.ask([instrument], "1m", now_ms - (days + 3) * DAY_MS, now_ms - days * DAY_MS)
        await eventually(lambda: past.backfill.jobs[job["id"]].finished_ms, within_s=60)
        with measured_turns() as turns:
            job = await past.ask([instrument], "1m", now_ms - days * DAY_MS, now_ms)
            await eventually(lambda: past.backfill.jobs[job["id"]].finished_ms, within_s=60)
        assert past.backfill.jobs[job["id"]].bars > least
        assert past.backfill.jobs[job["id"]].failed == 0
    finally:
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        await past.close()
    assert turns.worst_ms < LONGEST_TURN_MS, turns.report()
    assert all(int(record.fields["from"]) < int(record.fields["to"]) for record in published)
