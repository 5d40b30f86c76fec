"""Writes the bars of regular sessions into their series.

Stands behind the bus; `md:ts:{instrument}:1m:open|high|low|close|volume` (and `5m 15m 1h 1d`) hold one
sample per bar at the bar's start. It takes the `bar` records and nothing else, with queue, replay and disk
as the other writers have them, so an outage of Redis over the end of a minute costs no bar. A revision is
written over what it revises; writing any of it again changes nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from services.market_data.bars import Bar, parse_bar
from services.market_data.calendar import Phase
from services.market_data.clock import Clock
from services.market_data.records import ControlRecord, DataIngestionFormat, Record
from services.storage.bar_series import BarSeries
from services.storage.batch import Batch
from services.storage.failures import Reason
from services.storage.keys import BAR_FIELDS
from services.storage.resp import FLOAT_BULKS, INTEGER_BULKS
from services.storage.retention import Retention
from services.storage.series_sink import BATCH_SAMPLES, Series, SeriesSink, Target

BAR_RETENTION_MS = 365 * 86_400_000
_ALL = BAR_FIELDS
_PRICES = BAR_FIELDS[:-1]
_EVERY = (1 << len(BAR_FIELDS)) - 1
_VOLUME = 1 << BAR_FIELDS.index("volume")


class BarSeriesWriter(SeriesSink):
    """The sink behind `md:ts:{instrument}:1m:…`; makes the series it writes to."""

    # A bar that waits on disk must not be written over its own revision.
    in_order = True

    def __init__(
        self,
        redis_url: str,
        *,
        clock: Clock,
        retention_ms: int = BAR_RETENTION_MS,
        retention_by_exchange: Mapping[str, int] = {},
        **options: Any,
    ) -> None:
        """Prepare a writer whose series keep `retention_ms`, those of some exchanges something else.

        `options` as for `SpooledSink`.
        """
        retention = Retention(retention_ms, retention_by_exchange)
        super().__init__("bar_series", redis_url, clock=clock, retention=retention, **options)
        self._pending: deque[ControlRecord] = deque()
        self._series: dict[tuple[str, str], BarSeries] = {}

    def offer(self, record: Record) -> None:
        """Queue one `bar` record. Nothing else is taken or counted, nor bars outside regular sessions."""
        if type(record) is not ControlRecord or record.type != "bar" or "ph" in record.fields:
            return
        self.counters.offered += 1
        if len(self._pending) >= self._queue_limit:
            self._overflow()
        self._pending.append(record)
        if self._waiter is not None:
            self._wake()

    def offer_ticks(self, ticks: Sequence[DataIngestionFormat]) -> None:
        """Take none of them: a tick is no bar."""

    @property
    def _pending_count(self) -> int:
        return len(self._pending)

    def _discard_oldest(self) -> Record:
        return self._pending.popleft()

    def _encode(self) -> Batch | None:
        return self._take(self._pending.popleft() for _ in range(len(self._pending)))

    def _finish(self, count: int) -> list[tuple[Record, int]]:
        return [(self._pending.popleft(), 0) for _ in range(count)]

    def _encode_final(self, source: deque[tuple[Record, int]]) -> Batch | None:
        return self._take(source.popleft()[0] for _ in range(len(source)))

    def _take(self, source: Iterable[Record]) -> Batch | None:
        """Put the first records of `source` into words as one batch, as many as fit."""
        records: list[Record] = []
        pieces: list[str] = []
        stamps: list[str] = []
        samples = 0
        making: list[Target] = []
        for record in source:
            bar = _bar_of(record)
            if bar is None:
                self._reject(Reason.BAD_VALUE, record.symbol)
                continue
            series = self._series_of(bar)
            mask = _EVERY if bar.volume is not None else _EVERY & ~_VOLUME
            try:
                pieces.append(_samples(series, bar))
            except ValueError:
                self._reject(Reason.NOT_FINITE, record.symbol)
                continue
            if mask & ~series.made:
                making += [
                    (series, field)
                    for bit, field in enumerate(BAR_FIELDS)
                    if mask >> bit & 1 and not series.made >> bit & 1
                ]
                series.made |= mask
            records.append(record)
            width = mask.bit_count()
            stamps.append(f":{bar.start_ms}\r\n" * width)
            samples += width
            if samples > BATCH_SAMPLES - len(BAR_FIELDS):
                break
        return self._batch(records, pieces, stamps, samples, making)

    def _samples_of(self, record: Record) -> tuple[Series, Iterable[str], int]:
        bar = _bar_of(record)
        assert bar is not None  # noqa: S101 - it was read when the batch was made
        return self._series_of(bar), _ALL if bar.volume is not None else _PRICES, bar.start_ms

    def _series_of(self, bar: Bar) -> BarSeries:
        name = (bar.instrument, bar.interval)
        series = self._series.get(name)
        if series is None:
            series = self._series[name] = BarSeries(bar.instrument, bar.exchange, bar.interval)
        return series


def _bar_of(record: Record) -> Bar | None:
    bar = parse_bar(record) if isinstance(record, ControlRecord) else None
    return bar if bar is not None and bar.phase is Phase.REGULAR else None


def _samples(series: BarSeries, bar: Bar) -> str:
    at = INTEGER_BULKS[bar.start_ms]
    open_, high, low, close, volume = series.heads
    text = (
        f"{open_}{at}{FLOAT_BULKS[bar.open]}{high}{at}{FLOAT_BULKS[bar.high]}"
        f"{low}{at}{FLOAT_BULKS[bar.low]}{close}{at}{FLOAT_BULKS[bar.close]}"
    )
    return text if bar.volume is None else f"{text}{volume}{at}{INTEGER_BULKS[bar.volume]}"
