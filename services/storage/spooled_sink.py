"""A Redis writer with a disk behind its queue: nothing is dropped for want of memory, or by a stop.

    pending --(Redis away, or too much)--> spool --(Redis is back)--> batch in flight

Records leave the queue oldest first, so all on disk are older than all in the queue. A writer whose
order matters to Redis (the stream) sends nothing from the queue before the disk is empty; the others
give the disk one place in flight and keep the rest for live data. Records go to disk in their final
form: what belongs to one millisecond is merged before, so replaying any of them again changes nothing.
What goes once more because a killed Redis may have forgotten it is on disk as well, ahead of all others,
while Redis is away: whoever starts next sends it.
Without a spool this is a plain `RedisSink`.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Iterable
from functools import partial
from itertools import takewhile
from typing import Any, ClassVar

import structlog

from services.errors import StorageError, StorageUnavailable
from services.market_data.records import PROBE_EXCHANGE, PROBE_INSTRUMENT, Record
from services.pipeline.sink import SinkState
from services.pipeline.supervisor import end_together
from services.storage.batch import Batch
from services.storage.led_times import LedTimes
from services.storage.losses import Losses
from services.storage.redis_sink import RedisSink
from services.storage.spool import SpoolChannel
from services.storage.spool_format import MERGED, TRIED
from services.storage.spool_log import Appended
from services.storage.spool_reader import ReadOut

_log = structlog.get_logger(__name__)

SPILL_ABOVE = 20_000
SPILL_AFTER_S = 1.0
_LOOK_EVERY_S = 0.1
_DOZE_S = 5.0
_CHUNK = 2_000
_READ_AHEAD = 1_000
_BEHIND_BACKLOG = 2_000
_HOLD_ABOVE = 20_000
_STOP_GRACE_S = 1.0
_SPILL_RESERVE_S = 2.0
_KEPT_AHEAD = -1
"""Marks a batch without an answer that is on disk in front of all others there."""


class SpooledSink(RedisSink):
    """The part of a writer that deals with the disk. A subclass puts records into their final form."""

    in_order: ClassVar[bool]
    """Whether Redis refuses a record after a newer one, so that the disk must be emptied first."""

    def __init__(
        self,
        name: str,
        redis_url: str,
        *,
        spool: SpoolChannel | None = None,
        spill_above: int = SPILL_ABOVE,
        spill_after_s: float = SPILL_AFTER_S,
        **options: Any,
    ) -> None:
        """Prepare a writer; `options` as for `RedisSink`.

        While Redis takes nothing, all goes to disk once that lasts `spill_after_s` seconds, and before
        that when more than `spill_above` records wait.
        """
        super().__init__(name, redis_url, **options)
        self._spool = spool
        self.has_disk = spool is not None
        self._spill_above = min(spill_above, self._queue_limit // 2)
        self._spill_after_s = spill_after_s
        self._final: deque[tuple[Record, int]] = deque()
        self._handed = 0
        self._handing = 0
        self._read: deque[tuple[Record, int]] = deque()
        self._read_numbers: deque[int] = deque()
        self._reading = False
        self._spooled_out = 0
        self._look = asyncio.Event()
        self._dozing = False
        self._spilling = asyncio.Lock()
        self._adopted = False
        self._again_kept = True
        self._kept_ahead = 0
        self.led_times: LedTimes | None = None
        """Knows which records on disk are another leader's to store; those are dropped, counted."""
        self.losses = Losses(name)
        """What is to be declared as a gap: see `losses`."""

    # ---- what a writer adds ---------------------------------------------------------------------

    @abstractmethod
    def _finish(self, count: int) -> list[tuple[Record, int]]:
        """Take the `count` oldest pending records and return them in final form, with `MERGED` or 0."""

    @abstractmethod
    def _encode_final(self, source: deque[tuple[Record, int]]) -> Batch | None:
        """Take records in final form from the front of `source` into a batch; None when none can be sent."""

    def _forget(self, batch: Batch) -> None:
        """Undo what the writer assumed when it made a batch that is given up for the disk."""

    # ---- the sink's contract --------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Records in memory that are not settled yet."""
        return super().queued + len(self._final) + self._handing

    @property
    def keeps_on_disk(self) -> bool:
        """Whether `drain` brings to disk what Redis does not take."""
        return self._spool is not None

    async def run(self) -> None:
        """Keep connected, write, spill and replay until cancelled. May follow a `drain`."""
        self._closing = False
        if self._spool is None:
            await super().run()
            return
        if not self._adopted:
            await self._adopt_ahead(self._spool)
            self._adopted = True
            self.counters.recovered = self._spool.pending
            self.counters.offered += self._spool.pending
            self.counters.spooled += self._spool.pending
        await end_together(
            (f"{self.name}:connection", super().run()), (f"{self.name}:spool", self._keep_spool(self._spool))
        )

    async def drain(self, deadline_s: float) -> int:
        """Write out what is in memory, and what Redis does not take within `deadline_s` seconds to disk.

        With 0 seconds all goes to disk at once. Returns how many records remain in memory: those that the
        disk did not take either.
        """
        if self._spool is None:
            return await super().drain(deadline_s)
        self.retry_now()
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        while self.queued or self._again_left:
            waited_s = loop.time() - started_s
            if deadline_s <= 0 or waited_s >= max(_STOP_GRACE_S, deadline_s - _SPILL_RESERVE_S):
                break
            if waited_s >= min(_STOP_GRACE_S, deadline_s) and (
                self.state is not SinkState.READY or (self.in_order and self._backlog)
            ):
                break
            self._settled.clear()
            try:
                async with asyncio.timeout(_LOOK_EVERY_S):
                    await self._settled.wait()
            except TimeoutError:
                continue
        if self.queued or self._again_left:
            await self._give_to_disk(self._spool, hurried=deadline_s <= 0)
        await self._spool.sync(now=True)
        return self.queued

    async def _give_to_disk(self, spool: SpoolChannel, *, hurried: bool) -> None:
        """Stop writing to Redis for good, and put all that is in memory on disk."""
        if self._connection is not None:
            self._connection.abort(StorageUnavailable("the writer is stopping"))
        self._take_back()
        if not hurried:
            # A Redis that takes nothing any more may also have forgotten what it took just before.
            self._take_back_confirmed()
        self._closing = True
        await self._spill(spool)
        await self._keep_overtaken(spool)
        _log.info("sink_spooled_rest", sink=self.name, spooled=self.counters.spooled, queued=self.queued)

    def _to_send_again(self, batches: list[Batch]) -> None:
        super()._to_send_again(batches)
        if batches:
            self._again_kept = False

    async def _adopt_ahead(self, spool: SpoolChannel) -> None:
        """Send what an earlier run left to be sent once more before all else."""
        rows = deque((record, TRIED) for record in spool.ahead)
        batches: list[Batch] = []
        while rows:
            batch = self._encode_final(rows)
            if batch is not None:
                batch.again = True
                batches.append(batch)
            await asyncio.sleep(0)
        super()._to_send_again(batches)

    async def _keep_ahead(self, spool: SpoolChannel) -> None:
        """Have on disk what goes once more, while that is so."""
        if not self._again_left and not self._kept_ahead:
            self._again_kept = True
            if spool.ahead:
                await spool.keep_ahead([])
        elif self._down and not self._again_kept and spool.usable:
            again = [batch for batch in self._replay if batch.again or batch.spool_mark == _KEPT_AHEAD]
            self._again_kept = True
            if not await spool.keep_ahead(_records_of(again)):
                self._again_kept = False

    async def _keep_overtaken(self, spool: SpoolChannel) -> None:
        """Bring to disk what has no answer and stands in front of newer records that are there already."""
        ahead = [batch for batch in self._replay if not batch.spooled_until]
        overtaken = [batch for batch in ahead if not batch.again and batch.spool_mark != _KEPT_AHEAD]
        if not overtaken or not await spool.keep_ahead(_records_of(ahead)):
            return
        for batch in overtaken:
            batch.spool_mark = _KEPT_AHEAD
            self._kept_ahead += 1
            self._batched -= len(batch.records)
            self.counters.spooled += len(batch.records)
        self._note_settled()

    def _lose(self, reason: str, record: Record) -> None:
        super()._lose(reason, record)
        self.losses.note(reason, record.exchange, record.position_ms, record.position_ms)

    # ---- from the queue to the disk ---------------------------------------------------------------

    @property
    def _backlog(self) -> bool:
        """Whether anything is on its way over the disk that was not taken into a batch yet."""
        return bool(
            self._handing or self._read or self._reading or (self._spool is not None and self._spool.unread)
        )

    @property
    def _has_work(self) -> bool:
        return super()._has_work or self.counters.spooled > 0

    @property
    def _down(self) -> bool:
        """Whether Redis has taken nothing for so long that no record should be in memory only."""
        if self._closing:
            return True
        if self.state is SinkState.READY or self._lost_s is None:
            return False
        return asyncio.get_running_loop().time() - self._lost_s >= self._spill_after_s

    def _most_pending(self) -> int:
        """Return how many records may wait in memory just now."""
        if self._down:
            return 0
        if self.state is not SinkState.READY:
            return self._spill_above
        if self.in_order and self._backlog:
            return _BEHIND_BACKLOG
        return self._queue_limit // 2

    async def _keep_spool(self, spool: SpoolChannel) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._look.clear()
            await self._spill(spool)
            await self._read_ahead(spool)
            await spool.sync()
            # Nothing can grow old or too much before a batch is made or Redis is lost, which wake this.
            self._dozing = self.state is SinkState.READY and not (
                self.queued
                or self.counters.spooled
                or spool.unsynced
                or self._read
                or self._reading
                or spool.ahead
                or self._again_left
            )
            handle = loop.call_later(_DOZE_S if self._dozing else _LOOK_EVERY_S, self._look.set)
            try:
                await self._look.wait()
            finally:
                handle.cancel()

    async def _spill(self, spool: SpoolChannel) -> None:
        """Bring to disk what should not wait in memory, in order, as far as the disk takes it."""
        async with self._spilling:
            await self._keep_ahead(spool)
            # Asked once: were it to change in between, newer records would overtake the batches.
            down = self._down
            if down:
                self._batches_to_final()
            # Only what is here now: what comes meanwhile is for the next look.
            most = 0 if down else self._most_pending()
            left = self._pending_count if self._pending_count > most else 0
            while (left or (self._final and (self._down or self._backlog))) and spool.usable:
                # Redis is not to be idle until all of it lies on disk.
                await self._read_ahead(spool)
                take = max(0, min(left, _CHUNK - len(self._final), self._pending_count))
                if take:
                    self._final += self._finish(take)
                # While the disk wrote, Redis may have come back and taken some, or all.
                left = min(left - take, self._pending_count)
                chunk = [self._final.popleft() for _ in range(min(_CHUNK, len(self._final)))]
                if not chunk:
                    self._note_settled()
                    continue
                self._handed += len(chunk)
                self._handing += len(chunk)
                await spool.append(chunk, partial(self._appended, chunk))

    def _appended(self, chunk: list[tuple[Record, int]], done: Appended) -> None:
        counters = self.counters
        self._handing -= len(chunk)
        counters.spooled += done.taken - done.dropped
        if done.dropped:
            counters.drop("spool_full", done.dropped)
            self.losses.note_spans("spool_full", done.lost)
        for record in done.too_large:
            self._lose("spool_record_too_large", record)
        self._final.extendleft(reversed(chunk[done.taken + len(done.too_large) :]))
        self._note_settled()
        self._wake()

    def _unavailable(self, loss: StorageError) -> None:
        super()._unavailable(loss)
        self._get_up()

    def _get_up(self) -> None:
        if self._dozing:
            self._dozing = False
            self._look.set()

    def _batches_to_final(self) -> None:
        """Take back the records of batches that were made but not settled, unless newer ones are on disk."""
        if self._connection is not None or self._in_flight or self._returned:
            return
        # What goes once more is accounted for, and older than all on disk: it waits in memory, in front.
        live = [batch for batch in self._replay if _is_live(batch)]
        if not live or any(batch.spool_mark != self._handed for batch in live):
            return
        self._replay = deque(batch for batch in self._replay if not _is_live(batch))
        rows: list[tuple[Record, int]] = []
        for batch in live:
            self._forget(batch)
            self._batched -= len(batch.records)
            for index, record in enumerate(batch.records):
                if record.symbol == PROBE_INSTRUMENT:
                    self.counters.collapsed += 1
                else:
                    rows.append((record, TRIED | (MERGED if index in batch.merged else 0)))
        self._final.extendleft(reversed(rows))

    # ---- from the disk to Redis ---------------------------------------------------------------------

    async def _read_ahead(self, spool: SpoolChannel) -> None:
        if self._connection is None or self._closing or len(self._read) >= _READ_AHEAD or not spool.unread:
            return
        self._reading = True
        await spool.read(_CHUNK, self._have_read)

    def _have_read(self, out: ReadOut) -> None:
        self._reading = False
        if out.damaged:
            self.counters.spooled -= out.damaged
            self.counters.drop("spool_damaged", out.damaged)
            self.losses.note_spans("spool_damaged", out.lost)
        self._read.extend((frame.record, frame.flags) for frame in out.frames)
        self._read_numbers.extend(frame.number for frame in out.frames)
        self._wake()

    def _next_batch(self) -> Batch | None:
        spool = self._spool
        if spool is None:
            return super()._next_batch()
        while self._read and not self._spooled_out:
            batch = self._next_spooled(spool)
            if batch is not None:
                return batch
        if len(self._read) < _READ_AHEAD and spool.unread:
            self._look.set()
        if not self._backlog:
            while self._final:
                batch = self._live(self._encode_final(self._final))
                if batch is not None:
                    return batch
        elif self.in_order:
            return None
        if self._final and (self.in_order or len(self._final) > _HOLD_ABOVE):
            return None
        return self._live(super()._next_batch(), counted=True)

    def _live(self, batch: Batch | None, *, counted: bool = False) -> Batch | None:
        if batch is not None:
            self._get_up()
            batch.spool_mark = self._handed
            if not counted:
                self._batched += len(batch.records)
        self._note_settled()
        return batch

    def _next_spooled(self, spool: SpoolChannel) -> Batch | None:
        led_times = self.led_times
        source = self._read
        if led_times is not None and led_times.any_lost:
            if self._skip_lost(led_times, spool):
                return None
            source = deque(takewhile(lambda row: not led_times.was_lost(row[0].position_ms), source))
        before = len(source)
        batch = self._encode_final(source)
        taken = before - len(source)
        until = 0
        if source is not self._read:
            for _ in range(taken):
                self._read.popleft()
        for _ in range(taken):
            until = self._read_numbers.popleft() + 1
        sent = 0 if batch is None else len(batch.records)
        self.counters.spooled -= taken - sent
        if batch is None:
            spool.ack(until)
        else:
            batch.spooled_until = until
            self._spooled_out += 1
        return batch

    def _skip_lost(self, led_times: LedTimes, spool: SpoolChannel) -> int:
        """Drop the oldest records read that another leader stored; return how many those were."""
        count = until = 0
        while self._read and led_times.was_lost(self._read[0][0].position_ms):
            self._read.popleft()
            until = self._read_numbers.popleft() + 1
            count += 1
        if count:
            self.counters.spooled -= count
            self.counters.drop("lease_lost", count)
            spool.ack(until)
        return count

    def give_up(self, reason: str) -> None:
        """Drop what is in memory and on no disk, counted under `reason`."""
        waiting = self.queued
        while self._pending_count:
            self._discard_oldest()
        self._final.clear()
        self._replay = deque(batch for batch in self._replay if not _is_live(batch))
        self._confirmed.clear()
        self._batched = 0
        if dropped := waiting - self.queued:
            self.counters.drop(reason, dropped)
        self._note_settled()

    def _release(self, batch: Batch) -> None:
        if batch.spooled_until and self._spool is not None:
            self.counters.spooled -= len(batch.records)
            self._spooled_out -= 1
            self._spool.ack(batch.spooled_until)
        elif batch.spool_mark == _KEPT_AHEAD:
            self.counters.spooled -= len(batch.records)
            self._kept_ahead -= 1
        else:
            super()._release(batch)


def _is_live(batch: Batch) -> bool:
    """Tell whether a batch is in memory only, with records that are not settled."""
    return not (batch.spooled_until or batch.again or batch.spool_mark == _KEPT_AHEAD)


def _records_of(batches: Iterable[Batch]) -> list[Record]:
    # A probe proves the present; it is of no use later.
    return [record for batch in batches for record in batch.records if record.exchange != PROBE_EXCHANGE]
