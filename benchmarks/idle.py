"""What the daemon costs while nothing happens: two providers connected, no ticks."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
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
    seconds = 6.0 if quick else 20.0
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
        await asyncio.sleep(seconds)
        after = usage(daemon.pid)
    part = (after.cpu_s - before.cpu_s) / seconds * 100
    rows = [
        row("CPU with two providers and no ticks", part, "%", at_most=1),
        row("resident memory", after.rss_bytes / 1e6, "MB"),
        row("open files", after.files, ""),
    ]
    return result(rows, seconds=seconds)
