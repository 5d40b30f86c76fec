"""The account of a Redis writer: what became of every record, and what is still to be settled.

Beneath `redis_sink`, which sends and replays; here is counted, and timed now and then. A record is settled
once: as written, collapsed, rejected for good or given up on.
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from time import monotonic

import structlog

from services.errors import StorageUnavailable
from services.market_data.records import PROBE_INSTRUMENT, Record
from services.pipeline.hop_times import HopTimes
from services.pipeline.sink import Sink
from services.storage.batch import Batch
from services.storage.failures import Reason, server_refusal

_log = structlog.get_logger(__name__)

_UNKNOWN_REFUSALS = 5
_LOG_REJECTIONS_EVERY_S = 60.0


class AccountedSink(Sink):
    """The part of a writer that counts."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._batched = 0
        self._settled = asyncio.Event()
        self._again_left = 0
        self._sent_again = 0
        self._rejection_logged_s: dict[str, float] = {}
        self.written_within = HopTimes()
        """From a record's acceptance until Redis has said that it is stored."""
        self._timed_offer = 0
        self._timed_since_s = 0.0

    @property
    @abstractmethod
    def _pending_count(self) -> int:
        """Records that are queued and in no batch yet."""

    @property
    def queued(self) -> int:
        """Records that were offered and are not settled yet."""
        return self._pending_count + self._batched

    @property
    def sends_again(self) -> bool:
        """Whether anything that was confirmed before has still to go once more."""
        return self._again_left > 0

    def _note_again(self, batch: Batch) -> None:
        """Count a batch that went once more; say so when that was the last of them."""
        self._again_left -= 1
        self._sent_again += len(batch.records)
        self.counters.resent += len(batch.records)
        if not self._again_left:
            _log.info("confirmed_sent_again", sink=self.name, records=self._sent_again)
            self._sent_again = 0
            self._settled.set()

    def time_newest(self) -> None:
        """Time the record offered last until it is written, unless another one is being timed."""
        if not self._timed_offer and not self.counters.spooled:
            self._timed_offer = self.counters.offered
            self._timed_since_s = monotonic()

    def _note_time(self) -> None:
        """Take the time when all that was offered up to the timed record has been settled."""
        if self.counters.spooled:
            # Records go round by the disk now, and no longer in the order they were offered.
            self._timed_offer = 0
        elif self.counters.offered - self.queued >= self._timed_offer:
            self._timed_offer = 0
            self.written_within.note(monotonic() - self._timed_since_s)

    def _overflow(self) -> None:
        """Give up the oldest pending record: the queue is full."""
        self._lose("queue_full", self._discard_oldest())

    @abstractmethod
    def _discard_oldest(self) -> Record:
        """Remove the oldest pending record and return it."""

    def _lose(self, reason: str, record: Record) -> None:  # noqa: ARG002 - for those who declare it
        """Account for one record that is given up on."""
        self.counters.drop(reason)

    def _all_written(self, batch: Batch) -> None:
        """Account for a batch in which nothing was refused."""
        if batch.again:
            return
        counters = self.counters
        counters.written += len(batch.records) - len(batch.merged)
        counters.collapsed += len(batch.merged)
        if batch.probe_ms:
            self.probe_ms = batch.probe_ms
        self._release(batch)

    def _release(self, batch: Batch) -> None:
        """Let go of a batch whose records are all accounted for."""
        self._batched -= len(batch.records)

    def _settle_by_record(self, batch: Batch, outcomes: list[Reason | None]) -> None:
        """Account for a batch of which some records (those with a reason) were refused for good."""
        if batch.again:
            return
        counters = self.counters
        for index, (record, reason) in enumerate(zip(batch.records, outcomes, strict=True)):
            if reason is not None:
                self._reject(reason, record.symbol)
            elif index in batch.merged:
                counters.collapsed += 1
            else:
                counters.written += 1
            if reason is None and record.symbol == PROBE_INSTRUMENT:
                self.probe_ms = record.position_ms
        self._release(batch)

    def _unknown_refusal(self, batch: Batch, message: str) -> None:
        """Deal with a command refused as a whole for a reason we do not know.

        Raises `StorageUnavailable` a few times, so that the batch is tried again; then its records
        are rejected, lest one batch stops the writer for ever.
        """
        batch.refusals += 1
        if batch.refusals < _UNKNOWN_REFUSALS:
            raise server_refusal(message) or StorageUnavailable(f"Redis refuses a batch: {message[:120]}")
        self._settle_by_record(batch, [Reason.REFUSED] * len(batch.records))

    def _reject(self, reason: Reason, what: str, detail: str = "") -> None:
        """Count one record that will never be stored; say so once a minute and reason."""
        self.counters.errors += 1
        self.counters.reject(reason.value)
        now_s = asyncio.get_running_loop().time()
        logged_s = self._rejection_logged_s.get(reason.value)
        if logged_s is None or now_s - logged_s >= _LOG_REJECTIONS_EVERY_S:
            self._rejection_logged_s[reason.value] = now_s
            count = self.counters.rejected[reason.value]
            _log.warning(
                "record_rejected", sink=self.name, reason=reason.value, of=what, detail=detail, count=count
            )

    def _note_settled(self) -> None:
        if not self.queued:
            self._settled.set()
