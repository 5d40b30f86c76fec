"""A feed that sends without limit, while Redis stands still for a moment: all is stored, counts are exact.

Against the daemon as a process with its own Redis and the load of the benchmarks; judged by what lies in
Redis."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from benchmarks.flood import flood, stored
from benchmarks.rig import SERVERS, Helper, Rig
from tests.support.eventually import eventually

INSTRUMENTS, CLIENTS, WATCHED = 100, 5, 20
SETTINGS = {
    "STREAM_MAX_ENTRIES": 10_000_000,
    "BACKFILL_MINUTE_DAYS": 0,
    "BACKFILL_DAILY_DAYS": 0,
    "NEWS_EVERY_S": 0,
}


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(240)
async def test_a_flood_is_stored_complete_while_redis_stands_still_and_no_client_suffers(
    postgres_server: str,
) -> None:
    SERVERS.use(postgres_server)
    async with Rig(instruments=INSTRUMENTS, **SETTINGS) as rig:
        url = f"{rig.daemon.api_url.replace('http', 'ws', 1)}/ws"
        sizes = (str(CLIENTS), str(WATCHED), str(INSTRUMENTS))
        async with Helper("watchers", url, "0", *sizes, "latest", "250") as watchers:
            await watchers.hear()
            before = (await stored(rig)).entries
            await watchers.ask(do="begin")
            standing = asyncio.create_task(_stand_still(rig))
            flooded = await flood(rig, 0, 5.0)
            most_queued = await standing
            seen = await watchers.ask(do="end")
        assert flooded["wrong"] == []
        assert flooded["lost"] == 0, flooded["why"]
        # The flood was one: while Redis stood still more came than is ever in flight.
        assert flooded["sent"] >= 5_000
        assert most_queued >= 1_000
        assert (await stored(rig)).entries - before >= flooded["sent"]
        assert flooded["pongs"] >= 1
        assert seen["cut"] == 0
        assert 0 < seen["seen"] <= CLIENTS * WATCHED * (flooded["took_s"] / 0.25 + 2)
        status = await rig.status()
        assert status["pipeline"]["ledger"]["DHAN"]["wire_errors"] == {}
        assert not any(account["fault"] for account in status["pipeline"]["accounts"])


async def _stand_still(rig: Rig) -> int:
    """Stop Redis for a second and a half in the middle of the flood; return how many records waited then."""
    pid = rig.redis.live_pid()
    assert pid is not None
    await eventually(lambda: _flooding(rig))
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(1.5)
        sinks = (await rig.status())["sinks"]
    finally:
        os.kill(pid, signal.SIGCONT)
    return max(sink["queued"] + sink["spooled"] for sink in sinks.values())


async def _flooding(rig: Rig) -> bool:
    sinks = (await rig.status())["sinks"]
    return bool(sinks["stream"]["offered"] > 10 * INSTRUMENTS)
