"""Writes the samples of every tick into its instrument's time series.

Stands behind the bus; `md:ts:{instrument}:price|volume|bid|ask|oi` hold one sample per millisecond.
Ticks of one instrument in one millisecond become one: the last price, the summed volume, the newest
bid, ask and open interest; all but one of them are counted as collapsed. A late tick is written at its
own time. Writing the same batch again changes nothing, because the last value of a millisecond wins and
batches keep their order. Control records are not offered to this sink and appear in none of its counts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from services.compiled import load
from services.market_data.clock import Clock
from services.market_data.records import (
    PROBE_EXCHANGE,
    PROBE_INSTRUMENT,
    DataIngestionFormat,
    Record,
)
from services.storage.batch import Batch
from services.storage.entry import without_bad_numbers
from services.storage.failures import Reason
from services.storage.keys import LIVE, KeySpace
from services.storage.resp import FLOAT_BULKS, INTEGER_BULKS
from services.storage.retention import Retention
from services.storage.series import ASK, BID, OI, PRICE, VOLUME, InstrumentSeries, fields_of, mask_of
from services.storage.series_sink import BATCH_SAMPLES, Series, SeriesSink, Target
from services.storage.spool_format import MERGED

_words = load("words")
TICK_RETENTION_MS = 48 * 3_600_000
_MOST_SAMPLES_A_TICK = 5
_FULL_FROM = BATCH_SAMPLES - _MOST_SAMPLES_A_TICK + 1
_TRADED = PRICE | VOLUME
_WIDTH = tuple(mask.bit_count() for mask in range(1 << _MOST_SAMPLES_A_TICK))


class TimeSeriesWriter(SeriesSink):
    """The sink behind `md:ts:{instrument}:price|volume|bid|ask|oi`; makes the series it writes to."""

    def __init__(
        self,
        redis_url: str,
        *,
        clock: Clock,
        retention_ms: int = TICK_RETENTION_MS,
        retention_by_exchange: Mapping[str, int] = {},
        keys: KeySpace = LIVE,
        **options: Any,
    ) -> None:
        """Prepare a writer whose series keep `retention_ms`, those of some exchanges something else.

        `options` as for `SpooledSink`.
        """
        retention = Retention(retention_ms, retention_by_exchange)
        super().__init__("time_series", redis_url, clock=clock, retention=retention, **options)
        self._keys = keys
        self._pending: deque[DataIngestionFormat] = deque()
        self._series: dict[str, InstrumentSeries] = {}
        self._slots_used = 0

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

    def offer_ticks(self, ticks: Sequence[DataIngestionFormat]) -> None:
        """Queue a run of ticks."""
        self.counters.offered += len(ticks)
        pending = self._pending
        pending.extend(ticks)
        while len(pending) > self._queue_limit:
            self._overflow()
        if self._waiter is not None:
            self._wake()

    @property
    def _pending_count(self) -> int:
        return len(self._pending)

    def _discard_oldest(self) -> Record:
        return self._pending.popleft()

    # ---- encoding -------------------------------------------------------------------------------

    def _encode(self) -> Batch | None:
        # What may share a millisecond with a record on its way over the disk has to follow it.
        diverting = bool(self._final) or self._backlog
        words: Sequence[str] | bytes
        stamps: Sequence[str] | bytes
        if _words is None:
            records, words, stamps, samples, making, merged, probe_ms, slots = self._samples_waiting(
                diverting
            )
        else:
            records, words, stamps, samples, making, merged, probe_ms, slots = _words.samples(
                self, self._pending, self._series, self._final, diverting, self._slots_used, _FULL_FROM
            )
        self._slots_used = slots
        return self._batch(records, words, stamps, samples, making, merged, probe_ms)

    def _samples_waiting(
        self, diverting: bool
    ) -> tuple[list[DataIngestionFormat], list[str], list[str], int, list[Target], list[int], int, int]:
        """Take pending ticks, as many as one command may have.

        Returns those to send, their samples in words, the samples' times as replies and their number, the
        series to be made, the places of merged ticks, the probe's position, and the next slot. While
        `diverting`, what follows a record of another batch is put with those on their way over the disk.
        """
        pending = self._pending
        known = self._series
        first_slot = next_slot = self._slots_used
        records: list[DataIngestionFormat] = []
        pieces: list[str] = []
        stamps: list[str] = []
        samples = 0
        making: list[Target] = []
        merged: list[int] = []
        probe_ms = 0
        at_ms, at, stamp = -1, "", ""
        while pending and samples < _FULL_FROM:
            record = pending.popleft()
            series = known.get(record.symbol) or self._series_of(record)
            if record.timestamp != at_ms:
                # Many ticks of a busy moment share their millisecond.
                at_ms = record.timestamp
                at, stamp = INTEGER_BULKS[at_ms], f":{at_ms}\r\n"
            volume = record.volume
            try:
                if record.price != series.last_price:
                    series.price_text = FLOAT_BULKS[record.price]
                    series.last_price = record.price
                price = series.price_text
                if volume is not None and record.bid is None and record.ask is None and record.oi is None:
                    # What `_samples` says of a tick without sides, as most are.
                    mask = _TRADED
                    text = f"{series.price}{at}{price}{series.volume}{at}{INTEGER_BULKS[volume]}"
                else:
                    mask, text = _samples(series, record, at, price)
            except ValueError:
                finite = self._finite(record)
                if finite is None:
                    continue
                record = finite
                mask, text = _samples(series, record, at, price)
            newest = series.newest
            if newest is None or at_ms > newest.timestamp:
                series.newest = record
                series.slot = next_slot
            else:
                record, slot, replaces = series.behind_newest(record, first_slot, next_slot)
                if diverting and slot == next_slot:
                    series.left_the_batch(record)
                    self._final.append((record, MERGED if replaces else 0))
                    continue
                if replaces:
                    mask, text = _samples(series, record, at, price)
                if slot < next_slot:
                    records[slot - first_slot] = record
                    pieces[slot - first_slot] = text
                    self.counters.collapsed += 1
                    continue
                if replaces:
                    merged.append(len(records))
            if mask & ~series.made:
                making += [(series, field) for field in fields_of(mask & ~series.made)]
                series.made |= mask
            records.append(record)
            pieces.append(text)
            width = _WIDTH[mask]
            stamps.append(stamp * width)
            samples += width
            next_slot += 1
            if record.symbol == PROBE_INSTRUMENT:
                probe_ms = record.position_ms
        return records, pieces, stamps, samples, making, merged, probe_ms, next_slot

    def _finite(self, record: DataIngestionFormat) -> DataIngestionFormat | None:
        """Return a tick without what is no number; None, counted, where that is its price."""
        finite = without_bad_numbers(record)
        if finite is None:
            self._reject(Reason.NOT_FINITE, record.symbol)
        return finite

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
                finite = self._finite(record)
                if finite is None:
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
        pieces: list[str] = []
        stamps: list[str] = []
        samples = 0
        making: list[Target] = []
        merged: list[int] = []
        while source and samples < _FULL_FROM:
            record, flags = source.popleft()
            assert isinstance(record, DataIngestionFormat)  # noqa: S101 - only ticks are queued
            series = self._series_of(record)
            mask, text = _samples(series, record, INTEGER_BULKS[record.timestamp], FLOAT_BULKS[record.price])
            if mask & ~series.made:
                making += [(series, field) for field in fields_of(mask & ~series.made)]
                series.made |= mask
            if flags & MERGED:
                merged.append(len(records))
            records.append(record)
            pieces.append(text)
            width = _WIDTH[mask]
            stamps.append(f":{record.timestamp}\r\n" * width)
            samples += width
        return self._batch(records, pieces, stamps, samples, making, merged)

    def _series_of(self, record: DataIngestionFormat) -> InstrumentSeries:
        series = self._series.get(record.symbol)
        if series is None:
            series = self._series[record.symbol] = InstrumentSeries(
                record.symbol, record.exchange, self._keys
            )
        return series

    def _samples_of(self, record: Record) -> tuple[Series, Iterable[str], int]:
        assert isinstance(record, DataIngestionFormat)  # noqa: S101 - only ticks are queued
        return self._series[record.symbol], fields_of(mask_of(record)), record.timestamp


def _samples(series: InstrumentSeries, record: DataIngestionFormat, at: str, price: str) -> tuple[int, str]:
    """Return the set of fields that a tick has and their samples in words. ValueError for a NaN.

    `at` and `price` are its time and price in words.
    """
    volume, bid, ask = record.volume, record.bid, record.ask
    if volume is None:
        mask = PRICE
        text = f"{series.price}{at}{price}"
    else:
        mask = PRICE | VOLUME
        text = f"{series.price}{at}{price}{series.volume}{at}{INTEGER_BULKS[volume]}"
    if bid is not None:
        if ask is not None:
            mask |= BID | ASK
            text = f"{text}{series.bid}{at}{FLOAT_BULKS[bid]}{series.ask}{at}{FLOAT_BULKS[ask]}"
        else:
            mask |= BID
            text = f"{text}{series.bid}{at}{FLOAT_BULKS[bid]}"
    elif ask is not None:
        mask |= ASK
        text = f"{text}{series.ask}{at}{FLOAT_BULKS[ask]}"
    if (oi := record.oi) is not None:
        mask |= OI
        text = f"{text}{series.oi}{at}{INTEGER_BULKS[oi]}"
    return mask, text
