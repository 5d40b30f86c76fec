"""Writes the samples of every tick into its instrument's time series.

Stands behind the bus; `md:ts:{instrument}:price|volume|bid|ask|oi` hold one sample per millisecond.
Ticks of one instrument in one millisecond become one: the last price, the summed volume, the newest
bid, ask and open interest; all but one of them are counted as collapsed. A late tick is written at its
own time. Writing the same batch again changes nothing, because the last value of a millisecond wins and
batches keep their order. Control records are not offered to this sink and appear in none of its counts.
"""

from __future__ import annotations

from collections import deque
from math import isfinite
from typing import Any

from services.market_data.clock import Clock
from services.market_data.records import (
    PROBE_EXCHANGE,
    PROBE_INSTRUMENT,
    DataIngestionFormat,
    Record,
)
from services.storage.batch import Batch
from services.storage.connection import Reply, ReplyError
from services.storage.entry import without_bad_numbers
from services.storage.failures import Reason, item_reason, server_refusal
from services.storage.keys import LIVE, TICK_FIELDS, KeySpace, TickField
from services.storage.resp import FLOAT_BULKS, INTEGER_BULKS, bulk
from services.storage.series import ASK, BID, OI, PRICE, VOLUME, InstrumentSeries, fields_of, mask_of
from services.storage.series_repair import MENDABLE, SeriesRepair
from services.storage.spool_format import MERGED
from services.storage.spooled_sink import SpooledSink

TICK_RETENTION_MS = 48 * 3_600_000
_BATCH_SAMPLES = 500
_BUSY_IN_FLIGHT = 16
_MOST_SAMPLES_A_TICK = 5
_REPAIRS_A_BATCH = 2
_MADD = bulk("TS.MADD")
_WIDTH = tuple(mask.bit_count() for mask in range(1 << _MOST_SAMPLES_A_TICK))


class SeriesBatch(Batch):
    """A batch of samples; `making` names the series that each command of its prelude makes or corrects.

    `stamps` are the times of its samples, which is what Redis answers when all of them are stored.
    """

    __slots__ = ("making", "stamps")

    making: list[tuple[InstrumentSeries, TickField]]
    stamps: list[int]


class TimeSeriesWriter(SpooledSink):
    """The sink behind `md:ts:{instrument}:…`; makes the series it writes to."""

    in_order = False

    def __init__(
        self,
        redis_url: str,
        *,
        clock: Clock,
        retention_ms: int = TICK_RETENTION_MS,
        keys: KeySpace = LIVE,
        **options: Any,
    ) -> None:
        """Prepare a writer whose series keep `retention_ms`; `options` as for `SpooledSink`."""
        super().__init__("time_series", redis_url, busy_in_flight=_BUSY_IN_FLIGHT, **options)
        self._clock = clock
        self._retention_ms = retention_ms
        self._keys = keys
        self._pending: deque[DataIngestionFormat] = deque()
        self._series: dict[str, InstrumentSeries] = {}
        self._slots_used = 0
        self._to_correct: dict[tuple[InstrumentSeries, TickField], None] = {}
        self._repairs = SeriesRepair(clock, retention_ms)

    def offer(self, record: Record) -> None:
        """Queue one tick. Control records are neither taken nor counted."""
        if type(record) is not DataIngestionFormat:
            return
        self.counters.offered += 1
        pending = self._pending
        if len(pending) >= self._queue_limit:
            self._overflow()
        pending.append(record)
        if self._waiter is not None:
            self._wake()

    @property
    def _pending_count(self) -> int:
        return len(self._pending)

    def _discard_oldest(self) -> Record:
        return self._pending.popleft()

    # ---- encoding -------------------------------------------------------------------------------

    def _encode(self) -> Batch | None:
        pending = self._pending
        known = self._series
        first_slot = next_slot = self._slots_used
        records: list[DataIngestionFormat] = []
        pieces = [""]
        stamps: list[int] = []
        making: list[tuple[InstrumentSeries, TickField]] = []
        merged: list[int] = []
        probe_ms = 0
        # What may share a millisecond with a record on its way over the disk has to follow it.
        final = self._final
        diverting = bool(final) or self._backlog
        while pending and len(stamps) <= _BATCH_SAMPLES - _MOST_SAMPLES_A_TICK:
            record = pending.popleft()
            series = known.get(record.symbol)
            if series is None:
                series = known[record.symbol] = InstrumentSeries(record.symbol, record.exchange, self._keys)
            try:
                mask, text = _samples(series, record)
            except ValueError:
                finite = without_bad_numbers(record)
                if finite is None:
                    self._reject(Reason.NOT_FINITE, record.symbol)
                    continue
                record = finite
                mask, text = _samples(series, record)
            newest = series.newest
            if newest is None or record.timestamp > newest.timestamp:
                series.newest = record
                series.slot = next_slot
            else:
                record, slot, replaces = series.behind_newest(record, first_slot, next_slot)
                if diverting and slot == next_slot:
                    series.left_the_batch(record)
                    final.append((record, MERGED if replaces else 0))
                    continue
                if replaces:
                    mask, text = _samples(series, record)
                if slot < next_slot:
                    records[slot - first_slot] = record
                    pieces[slot - first_slot + 1] = text
                    self.counters.collapsed += 1
                    continue
                if replaces:
                    merged.append(len(records))
            if mask & ~series.made:
                making += [(series, field) for field in fields_of(mask & ~series.made)]
                series.made |= mask
            records.append(record)
            pieces.append(text)
            stamps += (record.timestamp,) * _WIDTH[mask]
            next_slot += 1
            if record.symbol == PROBE_INSTRUMENT:
                probe_ms = record.position_ms
        self._slots_used = next_slot
        return self._batch(records, pieces, stamps, making, frozenset(merged), probe_ms)

    def _finish(self, count: int) -> list[tuple[Record, int]]:
        final: list[tuple[Record, int]] = []
        slot = self._slots_used
        for _ in range(count):
            record = self._pending.popleft()
            if record.exchange == PROBE_EXCHANGE:
                # A probe proves the present; it is of no use later.
                self.counters.collapsed += 1
                continue
            if not isfinite(record.price + (record.bid or 0.0) + (record.ask or 0.0)):
                finite = without_bad_numbers(record)
                if finite is None:
                    self._reject(Reason.NOT_FINITE, record.symbol)
                    continue
                record = finite
            series = self._series_of(record)
            replaces = False
            newest = series.newest
            if newest is None or record.timestamp > newest.timestamp:
                series.newest = record
            else:
                record, _, replaces = series.behind_newest(record, slot, slot)
            series.left_the_batch(record)
            final.append((record, MERGED if replaces else 0))
        return final

    def _encode_final(self, source: deque[tuple[Record, int]]) -> Batch | None:
        records: list[DataIngestionFormat] = []
        pieces = [""]
        stamps: list[int] = []
        making: list[tuple[InstrumentSeries, TickField]] = []
        merged: list[int] = []
        while source and len(stamps) <= _BATCH_SAMPLES - _MOST_SAMPLES_A_TICK:
            record, flags = source.popleft()
            assert isinstance(record, DataIngestionFormat)  # noqa: S101 - only ticks are queued
            series = self._series_of(record)
            mask, text = _samples(series, record)
            if mask & ~series.made:
                making += [(series, field) for field in fields_of(mask & ~series.made)]
                series.made |= mask
            if flags & MERGED:
                merged.append(len(records))
            records.append(record)
            pieces.append(text)
            stamps += (record.timestamp,) * _WIDTH[mask]
        return self._batch(records, pieces, stamps, making, frozenset(merged), 0)

    def _forget(self, batch: Batch) -> None:
        assert isinstance(batch, SeriesBatch)  # noqa: S101 - this sink makes no other
        for series, field in batch.making:
            series.made &= ~(1 << TICK_FIELDS.index(field))

    def _series_of(self, record: DataIngestionFormat) -> InstrumentSeries:
        series = self._series.get(record.symbol)
        if series is None:
            series = self._series[record.symbol] = InstrumentSeries(
                record.symbol, record.exchange, self._keys
            )
        return series

    def _batch(
        self,
        records: list[DataIngestionFormat],
        pieces: list[str],
        stamps: list[int],
        making: list[tuple[InstrumentSeries, TickField]],
        merged: frozenset[int],
        probe_ms: int,
    ) -> Batch | None:
        """Return records put into words as one command, behind those that make their series."""
        if not records:
            return None
        pieces[0] = f"*{1 + 3 * len(stamps)}\r\n{_MADD}"
        batch = SeriesBatch(
            records,
            pieces,
            body_replies=1,
            merged=merged,
            probe_ms=probe_ms,
        )
        batch.stamps = stamps
        corrections, self._to_correct = list(self._to_correct), {}
        batch.making = corrections + making
        batch.prelude = [
            *(series.correct(field, self._retention_ms) for series, field in corrections),
            *(series.create(field, self._retention_ms) for series, field in making),
        ]
        return batch

    # ---- settling -------------------------------------------------------------------------------

    def _settle(self, batch: Batch, replies: list[Reply]) -> bool:
        assert isinstance(batch, SeriesBatch)  # noqa: S101 - this sink makes no other
        if batch.prelude:
            self._check_making(batch, replies)
        answer = replies[-1]
        if answer == batch.stamps:
            self._all_written(batch)
            return True
        if not isinstance(answer, list):
            refusal = server_refusal(str(answer))
            if refusal is not None:
                raise refusal
            self._unknown_refusal(batch, str(answer))
            return True
        return self._settle_samples(batch, answer)

    def _check_making(self, batch: SeriesBatch, replies: list[Reply]) -> None:
        """Look at the answers to the prelude; raises `StorageError` when Redis takes nothing."""
        for (series, field), reply in zip(batch.making, replies, strict=False):
            if not isinstance(reply, ReplyError):
                continue
            message = str(reply)
            refusal = server_refusal(message)
            if refusal is not None:
                raise refusal
            reason = item_reason(message)
            if reason is Reason.WRONG_TYPE:
                self._repairs.give_up_on(series, field, reason)
            elif reason is Reason.SERIES_EXISTS and not batch.repairs:
                # Made by an earlier run, or by somebody else with other ideas: the next batch corrects it.
                self._to_correct[series, field] = None

    def _settle_samples(self, batch: SeriesBatch, answer: list[Reply]) -> bool:
        """Account for each tick by its samples: stored when all are, else refused with the first reason.

        False when series had to be made anew: then nothing is settled yet and the batch goes again.
        """
        outcomes: list[Reason | None] = []
        repairs: dict[tuple[InstrumentSeries, TickField], Reason] = {}
        replies = iter(answer)
        for record in batch.records:
            assert isinstance(record, DataIngestionFormat)  # noqa: S101 - only ticks are queued
            series = self._series[record.symbol]
            outcome: Reason | None = None
            for field in fields_of(mask_of(record)):
                reply = next(replies)
                if reply == record.timestamp:
                    continue
                reason = _judge(reply)
                if reason is Reason.OLDER_THAN_RETENTION:
                    if (series, field) in repairs or self._is_poisoned(series, field, record):
                        repairs[series, field] = reason
                elif reason in MENDABLE:
                    given_up = self._repairs.given_up(series, field)
                    if given_up is not None:
                        reason = given_up
                    elif batch.repairs < _REPAIRS_A_BATCH:
                        repairs[series, field] = reason
                    else:
                        self._repairs.give_up_on(series, field, reason)
                outcome = outcome or reason
            outcomes.append(outcome)
        if repairs:
            batch.repairs += 1
            self.counters.errors += 1
            commands = [
                (target, text)
                for target, reason in repairs.items()
                for text in self._repairs.mend(*target, reason)
            ]
            batch.making = [target for target, _ in commands]
            batch.prelude = [text for _, text in commands]
            return False
        self._settle_by_record(batch, outcomes)
        return True

    def _is_poisoned(self, series: InstrumentSeries, field: TickField, record: DataIngestionFormat) -> bool:
        """Tell whether a sample in the future stands in the way of this tick; count a series so found."""
        found = self._repairs.is_poisoned(series, field, record)
        self.counters.repaired += found
        return found


def _judge(reply: Reply) -> Reason:
    """Return why a sample was not stored at its time."""
    if not isinstance(reply, ReplyError):
        return Reason.IGNORED
    message = str(reply)
    refusal = server_refusal(message)
    if refusal is not None:
        raise refusal
    return item_reason(message)


def _samples(series: InstrumentSeries, record: DataIngestionFormat) -> tuple[int, str]:
    """Return the set of fields that a tick has and their samples in words. ValueError for a NaN."""
    at = INTEGER_BULKS[record.timestamp]
    mask = PRICE
    text = f"{series.price}{at}{FLOAT_BULKS[record.price]}"
    if (volume := record.volume) is not None:
        mask = PRICE | VOLUME
        text += f"{series.volume}{at}{INTEGER_BULKS[volume]}"
    if (bid := record.bid) is not None:
        mask |= BID
        text += f"{series.bid}{at}{FLOAT_BULKS[bid]}"
    if (ask := record.ask) is not None:
        mask |= ASK
        text += f"{series.ask}{at}{FLOAT_BULKS[ask]}"
    if (oi := record.oi) is not None:
        mask |= OI
        text += f"{series.oi}{at}{INTEGER_BULKS[oi]}"
    return mask, text
