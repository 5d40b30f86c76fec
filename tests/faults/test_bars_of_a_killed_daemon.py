"""SIGKILL in the middle of a minute, on the whole stack: one bar, and it is what its stored ticks make."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio

from tests.support.bar_rig import resampled, said_bars, stored_series, stored_ticks
from tests.support.eventually import eventually
from tests.support.stack import Stack

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
MINUTE_MS = 60_000
KEYS = ("NSE:RELIANCE", "NSE:NIFTY", "CRYPTO:BTC-USD")


def now_ms() -> int:
    return time.time_ns() // 1_000_000


async def test_a_kill_in_the_middle_of_a_minute_leaves_one_true_bar(stack: Stack, tmp_path: Path) -> None:
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    daemon = stack.daemon(tmp_path / "state")
    await daemon.start()
    # Past the first seconds of a minute, and with enough of it left.
    await eventually(lambda: 5_000 < now_ms() % MINUTE_MS < 35_000, within_s=60)
    started_ms = now_ms()
    minute_ms = started_ms - started_ms % MINUTE_MS + MINUTE_MS
    await eventually(lambda: now_ms() > minute_ms + 10_000, within_s=90)
    assert await daemon.stop(signal.SIGKILL) == -signal.SIGKILL
    await daemon.start()
    await eventually(lambda: now_ms() > minute_ms + MINUTE_MS + 4_000, within_s=90)
    await stack.quiet()
    await asyncio.sleep(1)
    status = await daemon.status()
    assert all(sink["imbalance"] == 0 for sink in status["pipeline"]["sinks"])
    assert status["pipeline"]["bars"]["published"] > 0
    assert await daemon.stop() == 0
    for key in KEYS:
        ticks = await stored_ticks(client, key)
        expected: dict[int, Any] = resampled(
            ticks, "1m", [("2020-01-01T00:00+00:00", "2100-01-01T00:00+00:00")]
        )
        said = [bar for bar in await said_bars(client, key) if bar.interval == "1m"]
        assert [bar.start_ms for bar in said if bar.start_ms == minute_ms] == [minute_ms], "said once"
        assert expected[minute_ms][5] > 10, "the minute has ticks"
        stored = await stored_series(client, key, "1m")
        assert stored[minute_ms] == expected[minute_ms][:5]
        (bar,) = [bar for bar in said if bar.start_ms == minute_ms]
        assert (bar.open, bar.high, bar.low, bar.close, bar.volume, bar.ticks) == expected[minute_ms]
        assert bar.covered_ms < MINUTE_MS, "the time without a daemon is a gap"
    await client.aclose()
