"""What `spool replay` and `spool drop` do, while no daemon holds the state directory.

A running daemon replays its spool by itself; these are for a host whose daemon is not to run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from services.errors import TemporaryError
from services.market_data.clock import SystemClock
from services.pipeline.sink import SinkCounters
from services.storage.client import check_server, make_client
from services.storage.spool import Spool
from services.storage.spooled_sink import SpooledSink
from services.storage.stream_writer import STREAM_MAX_ENTRIES, StreamWriter
from services.storage.time_series_writer import TICK_RETENTION_MS, TimeSeriesWriter

_STUCK_AFTER_S = 30.0
_LOOK_EVERY_S = 0.2


async def replay(
    folder: Path,
    redis_url: str,
    *,
    tick_retention_ms: int = TICK_RETENTION_MS,
    stream_max_entries: int = STREAM_MAX_ENTRIES,
    progress: Callable[[int], None],
) -> dict[str, SinkCounters]:
    """Write everything spooled under `folder` to Redis; return the account of each sink.

    `progress` hears now and then how many records are left. Raises `StorageError` when Redis cannot be
    used, `TemporaryError` when it stops taking records; what is left stays on disk.
    """
    client = make_client(redis_url)
    try:
        await check_server(client)
    finally:
        await client.aclose()
    spool = Spool(folder)
    await spool.open()
    sinks: tuple[SpooledSink, ...] = (
        TimeSeriesWriter(
            redis_url,
            clock=SystemClock(),
            retention_ms=tick_retention_ms,
            spool=spool.channels["time_series"],
        ),
        StreamWriter(redis_url, max_entries=stream_max_entries, spool=spool.channels["stream"]),
    )
    try:
        async with asyncio.TaskGroup() as group:
            running = [group.create_task(sink.run(), name=sink.name) for sink in sinks]
            try:
                await _until_empty(spool, sinks, progress)
            finally:
                for task in running:
                    task.cancel()
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    finally:
        await spool.close()
    return {sink.name: sink.counters for sink in sinks}


async def _until_empty(spool: Spool, sinks: tuple[SpooledSink, ...], progress: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    least, since_s = -1, loop.time()
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        left = sum(channel.pending for channel in spool.channels.values())
        waiting = sum(sink.counters.spooled + sink.queued for sink in sinks)
        progress(max(left, waiting))
        if not left and not waiting:
            return
        if left != least:
            least, since_s = left, loop.time()
        elif loop.time() - since_s > _STUCK_AFTER_S:
            reasons = "; ".join(sink.reason for sink in sinks if sink.reason) or "it does not answer"
            raise TemporaryError(
                f"Redis takes no records ({reasons}): {left} are still on disk, try again later"
            )


async def drop(folder: Path) -> int:
    """Throw away everything spooled under `folder`; return how many records that was."""
    spool = Spool(folder)
    await spool.open()
    try:
        return await spool.drop_all()
    finally:
        await spool.close()
