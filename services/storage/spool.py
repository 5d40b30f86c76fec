"""The disk spool: where records wait that Redis cannot take, so that they survive a long outage and us.

Stands beside the Redis sinks; each of them has a channel of its own (a log in a folder under
`STATE_DIR/spool/`) and an equal share of the limit. All file work is done by one thread, one piece after
the other, so the event loop never waits for a disk. A full disk disables a channel; once there is space
to spare, a tenth of the limit or of the disk, a write that succeeds enables it again. Beyond the limit
the oldest segment is dropped. What Redis confirmed and may have forgotten lies in a file beside them
(`spool_ahead`). Never decides what is spooled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from services.errors import ConfigurationError
from services.market_data.records import DataIngestionFormat, Record
from services.pipeline.sequencer import START, Position
from services.storage.spool_ahead import read_ahead, remove_ahead, write_ahead
from services.storage.spool_format import TRIED
from services.storage.spool_log import SEGMENT_BYTES, SYNC_EVERY_S, Appended, SpoolLog
from services.storage.spool_newest import newest_ticks, waiting_records
from services.storage.spool_reader import ReadOut

_log = structlog.get_logger(__name__)
T = TypeVar("T")

LIMIT_BYTES = 512 << 20
FOLDER = "spool"
SINKS = ("time_series", "stream", "bar_series")
"""The sinks that have a channel."""
_LEFT_BELOW = {50: 40, 80: 70, 100: 70}
"""Alarm levels in percent of the limit, each with the level below which it is over."""
_RETRY_DISABLED_S = 1.0


class SpoolState(str, Enum):
    """Whether a channel takes records: `disabled` while its disk does not."""

    READY = "ready"
    DISABLED = "disabled"


class ChannelStatus(msgspec.Struct, kw_only=True):
    """What one channel holds; times are UTC epoch ms of the records' positions, None when empty."""

    name: str
    state: SpoolState
    reason: str
    records: int
    size_bytes: int
    limit_bytes: int
    segments: int
    damaged: int
    dropped: int
    again: int = 0
    """Records beside those that Redis confirmed and may have forgotten."""


class SpoolChannel:
    """One sink's part of the spool. Its methods belong to the event loop; made by `Spool`."""

    def __init__(self, name: str, log: SpoolLog, limit_bytes: int, executor: ThreadPoolExecutor) -> None:
        self.name = name
        self.state = SpoolState.READY
        self.reason = ""
        self.damaged = 0
        self.dropped = 0
        self.ahead: list[Record] = []
        """What goes before all that is pending, oldest first; in no count. The same as on the disk."""
        self._log = log
        self._limit_bytes = limit_bytes
        self._executor = executor
        self._alarm_percent = 0
        self._retry_s = self._synced_s = 0.0
        self._acked = 0
        self._sync_error: OSError | None = None

    @property
    def pending(self) -> int:
        """Records on disk that are not done with."""
        return self._log.pending

    @property
    def unread(self) -> int:
        """Records on disk that were not read yet."""
        return self._log.unread

    @property
    def usable(self) -> bool:
        """Whether an append is worth trying now: always, but once a second on a disk that refuses."""
        return self.state is SpoolState.READY or time.monotonic() >= self._retry_s

    @property
    def unsynced(self) -> bool:
        """Whether records or progress wait to be brought to the disk."""
        return self._log.unsynced or self._acked > self._log.acked or self._sync_error is not None

    async def append(self, records: Sequence[tuple[Record, int]], settle: Callable[[Appended], None]) -> None:
        """Write `(record, flags)` pairs behind all others; `settle` hears how far that came.

        What was not taken is the caller's still. `settle` is called even when the caller is cancelled.
        """

        def finished(done: Appended) -> None:
            if done.error is not None:
                self._disabled(done.error)
            elif self.state is SpoolState.DISABLED and done.taken:
                self._enabled()
            self.dropped += done.dropped
            settle(done)
            self._watch_level(done.dropped)

        work = self._log.append
        if self.state is SpoolState.DISABLED:
            # Not to be full again with the next record.
            work = partial(work, free_bytes=self._limit_bytes // 10)
        await self._run(work, (records,), finished)

    async def read(self, count: int, settle: Callable[[ReadOut], None]) -> None:
        """Hand the oldest records not read yet, about `count`, to `settle`.

        Those of an earlier run are `TRIED`. `settle` is called even when the caller is cancelled.
        """

        def finished(out: ReadOut) -> None:
            if out.damaged:
                self.damaged += out.damaged
                _log.error("spool_records_damaged", channel=self.name, count=out.damaged, total=self.damaged)
            leftover_until = self._log.leftover_until
            out.frames = [
                frame._replace(flags=frame.flags | TRIED) if frame.number < leftover_until else frame
                for frame in out.frames
            ]
            settle(out)

        await self._run(self._log.read, (count,), finished)

    def ack(self, number: int) -> None:
        """Note that all records before `number` are done with; reaches the disk with the next `sync`."""
        self._acked = number

    async def keep_ahead(self, records: list[Record]) -> bool:
        """Replace what goes before all that is pending, by nothing when it is done with.

        False when the disk refuses: then the former stays.
        """
        kept = False

        def finished(error: OSError | None) -> None:
            nonlocal kept
            if error is None:
                self.ahead = records
                kept = True
            else:
                self._disabled(error)

        await self._run(self._write_ahead, (records,), finished)
        return kept

    def open(self) -> None:
        """Find what an earlier run left; in the spool's thread. Raises `ConfigurationError`."""
        self._log.open()
        try:
            self.ahead = read_ahead(self._log.folder)
        except OSError as error:
            raise ConfigurationError(
                f"the spool {self._log.folder} cannot be used: {error.strerror}. Mend its permissions."
            ) from error

    async def sync(self, *, now: bool = False) -> None:
        """Bring records and progress to the disk, at most twice a second unless `now`.

        Where a start ended before the spool was opened there is nothing to bring.
        """
        if not self._log.is_open:
            return
        if not now and (not self.unsynced or time.monotonic() - self._synced_s < SYNC_EVERY_S):
            return
        self._synced_s = time.monotonic()
        await self._run(self._sync, (), self._synced)

    def status(self) -> ChannelStatus:
        """Return what the channel holds."""
        return ChannelStatus(
            name=self.name,
            state=self.state,
            reason=self.reason,
            records=self._log.pending,
            size_bytes=self._log.size_bytes,
            limit_bytes=self._limit_bytes,
            segments=len(self._log.segments),
            damaged=self.damaged,
            dropped=self.dropped,
            again=len(self.ahead),
        )

    async def _run(
        self, work: Callable[..., T], arguments: tuple[Any, ...], settle: Callable[[T], None]
    ) -> None:
        """Do `work` in the spool's thread, then `settle` on the loop: also when cancelled meanwhile."""
        future = asyncio.get_running_loop().run_in_executor(self._executor, work, *arguments)

        def finished(done: asyncio.Future[T]) -> None:
            if not done.cancelled() and done.exception() is None:
                settle(done.result())

        future.add_done_callback(finished)
        await asyncio.shield(future)

    def _write_ahead(self, records: list[Record]) -> OSError | None:
        try:
            if records:
                write_ahead(self._log.folder, records)
            else:
                remove_ahead(self._log.folder)
        except OSError as error:
            return error
        return None

    def _sync(self) -> None:
        self._log.ack(self._acked)
        try:
            self._log.sync(now=True)
        except OSError as error:
            self._sync_error = error
        else:
            self._sync_error = None

    def _synced(self, _: None) -> None:
        if self._sync_error is not None:
            self._disabled(self._sync_error)
        self._watch_level(0)

    def _disabled(self, error: OSError) -> None:
        self._retry_s = time.monotonic() + _RETRY_DISABLED_S
        self.reason = f"the spool's disk refuses: {error.strerror or error}"
        if self.state is SpoolState.READY:
            self.state = SpoolState.DISABLED
            _log.error("spool_disabled", channel=self.name, reason=self.reason)

    def _enabled(self) -> None:
        self.state = SpoolState.READY
        self.reason = ""
        _log.info("spool_enabled", channel=self.name)

    def _watch_level(self, dropped: int) -> None:
        """Say once when a level is reached (100 %: records are dropped), and once when it is left again."""
        percent = 100 * self._log.size_bytes // self._limit_bytes
        reached = (
            100 if dropped else max((level for level in _LEFT_BELOW if percent >= level < 100), default=0)
        )
        if reached > self._alarm_percent:
            self._alarm_percent = reached
            _log.error("spool_filling", channel=self.name, percent=reached, records=self.pending)
        elif percent < _LEFT_BELOW.get(self._alarm_percent, 0):
            self._alarm_percent = reached
            _log.info("spool_emptying", channel=self.name, percent=percent, records=self.pending)


class Spool:
    """All channels under `STATE_DIR/spool/`. `open` before the sinks run, `close` after they ended."""

    def __init__(
        self,
        folder: Path,
        *,
        limit_bytes: int = LIMIT_BYTES,
        segment_bytes: int = SEGMENT_BYTES,
        names: Iterable[str] = SINKS,
    ) -> None:
        """Prepare channels that share `limit_bytes` equally; does no I/O."""
        names = tuple(names)
        self._opened = False
        share = limit_bytes // max(1, len(names))
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")
        self._logs = {
            name: SpoolLog(folder / name, limit_bytes=share, segment_bytes=segment_bytes) for name in names
        }
        self.channels = {
            name: SpoolChannel(name, log, share, self._executor) for name, log in self._logs.items()
        }

    async def open(self) -> None:
        """Find what an earlier run left. Raises `ConfigurationError` for a folder that cannot be used."""
        loop = asyncio.get_running_loop()
        self._opened = True
        for name, channel in self.channels.items():
            await loop.run_in_executor(self._executor, channel.open)
            if channel.pending or channel.ahead:
                found = channel.status()
                _log.info(
                    "spool_found",
                    channel=name,
                    records=found.records,
                    bytes=found.size_bytes,
                    again=found.again,
                )

    async def close(self) -> None:
        """Bring everything to the disk and let go of the files. Harmless when closed or never opened."""
        if not self._opened:
            return
        self._opened = False
        for channel in self.channels.values():
            await channel.sync(now=True)
        for log in self._logs.values():
            await asyncio.get_running_loop().run_in_executor(self._executor, log.close)
        self._executor.shutdown(wait=False)

    async def drop_all(self) -> int:
        """Remove every record of every channel; return how many that was. Only while no sink runs."""
        loop = asyncio.get_running_loop()
        ahead = sum(len(channel.ahead) for channel in self.channels.values())
        for channel in self.channels.values():
            await channel.keep_ahead([])
        return ahead + sum(
            [await loop.run_in_executor(self._executor, log.drop_all) for log in self._logs.values()]
        )

    def positions(self) -> dict[str, Position]:
        """Return the newest position of each exchange that was ever spooled and is still known of."""
        newest: dict[str, Position] = {}
        for log in self._logs.values():
            for exchange, position in log.positions.items():
                newest[exchange] = max(position, newest.get(exchange, START))
        for channel in self.channels.values():
            for record in channel.ahead:
                position = (record.position_ms, record.position_seq)
                newest[record.exchange] = max(position, newest.get(record.exchange, START))
        return newest

    async def newest_ticks(self, instruments: Iterable[str]) -> dict[str, DataIngestionFormat]:
        """Return the newest waiting tick of each instrument that has one; before the sinks run."""
        loop = asyncio.get_running_loop()
        wanted = set(instruments)
        found: dict[str, DataIngestionFormat] = {}

        def note(ticks: Iterable[DataIngestionFormat]) -> None:
            for tick in ticks:
                known = found.get(tick.symbol)
                if known is None or tick.timestamp >= known.timestamp:
                    found[tick.symbol] = tick

        for name, log in self._logs.items():
            ahead = self.channels[name].ahead
            note(tick for tick in ahead if isinstance(tick, DataIngestionFormat) and tick.symbol in wanted)
            if log.pending:
                ticks = await loop.run_in_executor(self._executor, newest_ticks, log.folder, wanted)
                note(ticks.values())
        return found

    async def waiting(
        self, channel: str, keep: Callable[[Record], bool], *, most: int | None = None
    ) -> list[Record]:
        """Return the records of a channel that `keep` says yes to; before the sinks run.

        With `most` the newest of them. Those that go ahead of the others Redis may have as well.
        """
        log = self._logs[channel]
        found = [record for record in self.channels[channel].ahead if keep(record)]
        if log.pending:
            loop = asyncio.get_running_loop()
            found += await loop.run_in_executor(self._executor, waiting_records, log.folder, keep, most)
        return found if most is None else found[-most:]

    def status(self) -> list[ChannelStatus]:
        """Return what every channel holds."""
        return [channel.status() for channel in self.channels.values()]
