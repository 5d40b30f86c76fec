"""What the daemon costs while nothing happens: two providers connected, no ticks, and the past of their
instruments fetched once, as after every first start.

Alone for as long as wanted: `python -m benchmarks.idle --minutes 60`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import ROOT
from benchmarks.report import result, row
from benchmarks.rig import SERVERS, DaemonProcess, usage
from data_migration.populate_instrument_mappings import Sources, populate_from
from data_migration.setup_providers import setup
from data_migration.sources.dhan_scrip_master import ScripMaster
from services.operations.demo import DemoSimulators
from services.operations.embedded_redis import EmbeddedRedis

ORDER = 30


async def measure(quick: bool) -> dict[str, Any]:
    """Measure CPU over some seconds, with the demo's instruments and both simulators silent."""
    return await _measured(6.0 if quick else 20.0)


async def _measured(seconds: float) -> dict[str, Any]:
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="marketd-bench-")))
        database_url = await SERVERS.empty("idle")
        await setup(database_url)
        master = (ROOT / "simulators" / "data" / "dhan-scrip-master.csv").read_text(encoding="utf-8")
        await populate_from(
            database_url, Sources(scrip_master=ScripMaster.read(master.splitlines(keepends=True)))
        )
        redis_url = await (await stack.enter_async_context(EmbeddedRedis(folder / "redis"))).start()
        urls = await stack.enter_async_context(DemoSimulators(ROOT, rate=0))
        daemon = await stack.enter_async_context(
            DaemonProcess(
                folder / "state",
                DATABASE_URL=database_url,
                REDIS_URL=redis_url,
                DHAN_FEED_URL=urls.dhan_feed_url,
                DHAN_REST_URL=urls.dhan_rest_url,
                DHAN_CLIENT_ID=urls.dhan_client_id,
                DHAN_ACCESS_TOKEN=urls.dhan_access_token,
                YAHOO_STREAM_URL=urls.yahoo_stream_url,
                YAHOO_REST_URL=urls.yahoo_rest_url,
            )
        )
        async with asyncio.timeout(60):
            while True:
                states = [each["state"] for each in (await daemon.get("/api/providers/status"))["providers"]]
                if states.count("streaming") == 2:
                    break
                await asyncio.sleep(0.1)
        await asyncio.sleep(2.0)
        before = usage(daemon.pid)
        most = before.rss_bytes
        began = time.monotonic()
        looks: list[tuple[float, float, float]] = []
        while (left := began + seconds - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 10.0))
            now = usage(daemon.pid)
            most = max(most, now.rss_bytes)
            looks.append((time.monotonic() - began, round(now.cpu_s - before.cpu_s, 2), now.rss_bytes / 1e6))
        after = usage(daemon.pid)
        filled = (await daemon.get("/api/backfill"))["counters"]
    part = (after.cpu_s - before.cpu_s) / seconds * 100
    rows = [
        row("CPU with two providers and no ticks", part, "%", at_most=1),
        row("resident memory at the end", after.rss_bytes / 1e6, "MB"),
        row("most resident memory, looked at every ten seconds", most / 1e6, "MB", at_most=120),
        row("open files", after.files, ""),
    ]
    backfilled = {name: filled[name] for name in ("windows", "bars", "outside", "refused")}
    return result(rows, seconds=seconds, looks=looks, backfilled=backfilled)


def main() -> None:
    """Print the rows of one long look as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    seconds = parser.parse_args().minutes * 60
    print(json.dumps(asyncio.run(_alone(seconds)), indent=1, default=str))


async def _alone(seconds: float) -> dict[str, Any]:
    try:
        return await _measured(seconds)
    finally:
        await SERVERS.stop()


if __name__ == "__main__":
    main()
