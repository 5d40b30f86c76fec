"""The write path under faults: a feed, the three writers with their spool, and a judge of what is stored.

    async with WritePath(url, folder) as path:
        async with path.feed.flowing(): ... the fault ...
        await path.settled()
        await assert_all_stored(client, path.ticks, path.feed.instruments)

As in the daemon, losses are declared in the stream, and a history that got lost is noticed. On leaving,
the account of every writer must balance and the loop must never have stood still.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import TracebackType
from typing import Any

from services.market_data.clock import SystemClock
from services.market_data.records import ControlRecord, Record
from services.pipeline.sink import SinkState
from services.storage.entry import EntryEncoder
from services.storage.history_watch import HistoryWatch
from services.storage.latest_value_writer import LatestValueWriter
from services.storage.losses import LossDeclaration
from services.storage.redis_sink import RedisSink
from services.storage.spool import Spool
from services.storage.stream_writer import StreamWriter
from services.storage.time_series_writer import TimeSeriesWriter
from tests.support.eventually import eventually
from tests.support.loop_lag import LoopLag
from tests.support.storage import RETENTION_MS, Feed, Ticks, offer, quick


class WritePath:
    """The Redis writers of the daemon over one spool folder, running; and a feed in front of them."""

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        ticks: Ticks | None = None,
        limit_bytes: int = 64 << 20,
        **options: Any,
    ) -> None:
        self.ticks = ticks or Ticks()
        self.spool = Spool(folder, limit_bytes=limit_bytes)
        options = quick() | {"spill_after_s": 0.2} | options
        channels = self.spool.channels
        encoder = EntryEncoder()
        clock = SystemClock()
        self.time_series = TimeSeriesWriter(
            url, clock=clock, retention_ms=RETENTION_MS, spool=channels["time_series"], **options
        )
        self.stream = StreamWriter(
            url, max_entries=1_000_000, encoder=encoder, spool=channels["stream"], **options
        )
        options.pop("spill_after_s")
        options.pop("spill_above", None)
        self.latest = LatestValueWriter(url, encoder=encoder, **options)
        self.sinks: tuple[RedisSink, ...] = (self.time_series, self.stream, self.latest)
        self.spooled = (self.time_series, self.stream)
        self.feed = Feed(self.ticks, self.sinks, on_flow=self._measure)
        self.losses = LossDeclaration(
            {sink.name: sink.losses for sink in self.spooled},
            folder=folder,
            clock=clock,
            publish=self.publish,
            possible=lambda: self.stream.state is SinkState.READY,
        )
        self.history = HistoryWatch(url, self._history_lost, look_every_s=0.1)
        self.epochs: list[str] = []
        self.lag = LoopLag()
        self._tasks: list[asyncio.Task[None]] = []

    def _measure(self) -> None:
        self.lag.resting = False

    async def __aenter__(self) -> WritePath:
        await self.spool.open()
        self._tasks = [asyncio.create_task(sink.run(), name=sink.name) for sink in self.sinks]
        for name, run in (
            ("losses", self.losses.run),
            ("history", self.history.run),
            ("lag", self.lag.run),
        ):
            self._tasks.append(asyncio.create_task(run(), name=name))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        failed = [task for task in self._tasks if task.done()]
        if error is None and not failed:
            await eventually(lambda: self.lag.samples > 0)
        await self.abandon()
        if error is None:
            assert not failed, failed
            self.assert_balanced()
            self.lag.check()

    async def abandon(self) -> None:
        """End the tasks without draining anything."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        await self.spool.close()

    def publish(self, record: Record) -> None:
        """Hand a record to every writer, as the pipeline does."""
        offer([self.ticks.remember(record)], *self.sinks)

    def _history_lost(self, epoch: str) -> None:
        self.epochs.append(epoch)
        self.latest.write_again()

    def gaps(self, store: str) -> list[ControlRecord]:
        """Return what was declared lost of one store, in order."""
        return [
            record
            for record in self.ticks.made
            if isinstance(record, ControlRecord) and record.fields.get("store") == store
        ]

    def assert_balanced(self) -> None:
        for sink in self.sinks:
            assert sink.counters.imbalance(sink.queued) == 0, (sink.name, sink.queued, sink.counters)

    def assert_nothing_lost(self) -> None:
        """Nothing was dropped or refused by the writers that keep everything."""
        for sink in self.spooled:
            assert (sink.counters.dropped, sink.counters.rejected) == ({}, {}), (sink.name, sink.counters)

    async def settled(self, within_s: float = 20.0) -> None:
        """Wait until everything offered is in Redis."""

        def all_written() -> bool:
            return all(sink.queued == 0 and sink.counters.spooled == 0 for sink in self.sinks)

        try:
            await eventually(all_written, within_s)
        except AssertionError as error:
            states = [(sink.name, sink.state, sink.reason, sink.queued, sink.counters) for sink in self.sinks]
            raise AssertionError(f"not settled: {states}") from error
        self.assert_balanced()
        # What follows is the judge, who reads everything back on this very loop.
        self.lag.resting = True

    async def spilled(self, within_s: float = 10.0) -> None:
        """Wait until all that was offered by now to the writers with a disk is on it, or settled."""
        offered = {sink.name: sink.counters.offered for sink in self.spooled}

        def on_disk() -> bool:
            return all(
                sink.counters.spooled > 0 and sink.counters.offered - sink.queued >= offered[sink.name]
                for sink in self.spooled
            )

        await eventually(on_disk, within_s)
        await eventually(
            lambda: all(
                all(batch.again for batch in sink._replay) or sink._spooled_out for sink in self.spooled
            ),
            within_s,
        )


def spool_files(folder: Path) -> list[str]:
    """Return the segments under a spool folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.seg"))
