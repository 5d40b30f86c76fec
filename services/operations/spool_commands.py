"""What `spool replay` and `spool drop` do, while no daemon holds the state directory.

A running daemon replays its spool by itself; these are for a host whose daemon is not to run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from services.errors import StorageUnavailable, TemporaryError
from services.market_data.clock import SystemClock
from services.operations.state_dir import StateDirectory
from services.pipeline.sink import SinkCounters
from services.storage.bar_series_writer import BAR_RETENTION_MS, BarSeriesWriter
from services.storage.leadership import Leadership, LeaseTimes
from services.storage.led_times import LED_TIMES_NAME, LedTimes
from services.storage.redis_lease import RedisLease
from services.storage.retention import Retention
from services.storage.spool import Spool
from services.storage.spooled_sink import SpooledSink
from services.storage.stream_writer import STREAM_MAX_ENTRIES, StreamWriter
from services.storage.time_series_writer import TICK_RETENTION_MS, TimeSeriesWriter

_STUCK_AFTER_S = 30.0
_LOOK_EVERY_S = 0.2
_TICKS = Retention(TICK_RETENTION_MS)
_BARS = Retention(BAR_RETENTION_MS)


async def replay(
    folder: Path,
    redis_url: str,
    *,
    tick_retention: Retention = _TICKS,
    bar_retention: Retention = _BARS,
    stream_max_entries: int = STREAM_MAX_ENTRIES,
    progress: Callable[[int], None],
) -> dict[str, SinkCounters]:
    """Write everything spooled under `folder` to Redis; return the account of each sink.

    `progress` hears now and then how many records are left. Raises `StorageError` when Redis cannot be
    used, `TemporaryError` when a daemon leads on it or it stops taking records; what is left stays on disk.
    """
    state_dir = folder.parent
    times = LeaseTimes()
    leadership = Leadership(
        RedisLease(redis_url, state_dir=lambda: StateDirectory.instance_id(state_dir), ttl_s=times.ttl_s),
        SystemClock(),
        policy="exit",
        times=times,
    )
    try:
        await leadership.begin()
        lease = leadership.lease
        if lease is None:
            raise StorageUnavailable(leadership.reason)
        led_times = LedTimes(state_dir / LED_TIMES_NAME)
        overtaken = led_times.lead(lease.epoch)
        return await _replay(
            folder,
            redis_url,
            leadership,
            led_times,
            overtaken=overtaken,
            tick_retention=tick_retention,
            bar_retention=bar_retention,
            stream_max_entries=stream_max_entries,
            progress=progress,
        )
    finally:
        await leadership.release()


async def _replay(
    folder: Path,
    redis_url: str,
    leadership: Leadership,
    led_times: LedTimes,
    *,
    overtaken: bool,
    tick_retention: Retention,
    bar_retention: Retention,
    stream_max_entries: int,
    progress: Callable[[int], None],
) -> dict[str, SinkCounters]:
    spool = Spool(folder)
    await spool.open()
    time_series = TimeSeriesWriter(
        redis_url,
        clock=SystemClock(),
        retention_ms=tick_retention.usual_ms,
        retention_by_exchange=tick_retention.by_exchange,
        spool=spool.channels["time_series"],
        connect=leadership.connect,
    )
    stream = StreamWriter(
        redis_url,
        max_entries=stream_max_entries,
        spool=spool.channels["stream"],
        connect=leadership.connect,
    )
    bar_series = BarSeriesWriter(
        redis_url,
        clock=SystemClock(),
        retention_ms=bar_retention.usual_ms,
        retention_by_exchange=bar_retention.by_exchange,
        spool=spool.channels["bar_series"],
        connect=leadership.connect,
    )
    if overtaken:
        stream.overtaken_until_ms = SystemClock().now_ms()
    sinks: tuple[SpooledSink, ...] = (time_series, stream, bar_series)
    for sink in sinks:
        sink.led_times = led_times
    try:
        async with asyncio.TaskGroup() as group:
            lease = group.create_task(leadership.run(), name="lease")
            running = [group.create_task(sink.run(), name=sink.name) for sink in sinks]
            try:
                await _until_empty(spool, sinks, progress)
            finally:
                for task in (*running, lease):
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
        left = sum(channel.pending + len(channel.ahead) for channel in spool.channels.values())
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
