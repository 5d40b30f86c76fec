"""Begins the longer bars again with the minutes that are stored of them.

Beneath `bar_recall`, which builds the last minutes anew. Of a day that was long under way the hours before
the one that forms are aggregated by Redis: some instruments in one round trip, in small slices of work.
Minutes that wait on disk stand in front of those in Redis. Never touches a minute itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.market_data.bar_builder import BarBuilder
from services.market_data.bar_grid import LONGER, BarGrid
from services.market_data.bars import Bar, parse_bar
from services.market_data.records import ControlRecord
from services.storage.ask_many import ask_many
from services.storage.bar_series import bars_of, combine, read_bars
from services.storage.keys import BAR_FIELDS, bar_series
from services.storage.resp import command
from services.storage.spool import Spool

_CHUNK = 500
_TOGETHER = 10
"""Instruments whose minutes are read in one round trip; five to ten milliseconds of work."""
_HOW = ("first", "max", "min", "last", "sum")
"""How the fields of minutes become those of a longer bar, in the order of the fields."""


async def newest_minutes(client: Redis, instruments: Sequence[str]) -> dict[str, int]:
    """Return the start of the newest stored minute of those instruments that have any."""
    found: dict[str, int] = {}
    for first in range(0, len(instruments), _CHUNK):
        chunk = instruments[first : first + _CHUNK]
        asked = [command("TS.GET", bar_series(key, "1m", "close")) for key in chunk]
        for key, reply in zip(chunk, await ask_many(client, asked), strict=True):
            if not isinstance(reply, ResponseError) and reply:
                found[key] = int(reply[0])
    return found


class LongerRecall:
    """Begins longer bars in one builder; `begun` counts them. Raises redis-py's errors."""

    def __init__(self, client: Redis, builder: BarBuilder, grid: BarGrid, spool: Spool | None) -> None:
        self._client = client
        self._builder = builder
        self._grid = grid
        self._spool = spool
        self.begun = 0
        self._waiting: dict[str, dict[str, dict[int, Bar]]] = {}

    async def refill(self, exchange: str, newest_minutes: Mapping[str, int]) -> None:
        """Begin the longer bars of what was fetched with the stored minutes of the newest day."""
        for key, newest_ms in newest_minutes.items():
            day = self._grid.span_of(exchange, "1d", newest_ms)
            if day is not None:
                stored = await read_bars(self._client, key, exchange, "1m", day.start_ms, day.end_ms - 1)
                self._builder.refill(key, stored)

    async def begin(
        self,
        exchange: str,
        instruments: Sequence[str],
        before_ms: int,
        newest_minutes: Mapping[str, int],
        *,
        ended_ms: int = 0,
    ) -> None:
        """Begin the longer bars that were open at `before_ms`.

        Those that had ended by `ended_ms` may have been said long ago.
        """
        spans = [self._grid.span_of(exchange, interval, before_ms) for interval in LONGER]
        open_spans = [span for span in spans if span is not None and span.start_ms < before_ms < span.end_ms]
        if not open_spans:
            return
        day_ms = min(span.start_ms for span in open_spans)
        hour = self._grid.span_of(exchange, "1h", before_ms)
        hour_ms = day_ms if hour is None else max(day_ms, min(hour.start_ms, before_ms))
        waiting = {}
        for key, bars in (await self.waiting(exchange)).items():
            minutes = {start: bar for start, bar in bars.items() if day_ms <= start < before_ms}
            if minutes:
                waiting[key] = minutes
        active = [key for key in instruments if newest_minutes.get(key, -1) >= day_ms]
        for key in waiting.keys() & set(instruments):
            minutes = waiting[key]
            stored = await read_bars(self._client, key, exchange, "1m", day_ms, before_ms - 1)
            self._recall_of({bar.start_ms: bar for bar in stored} | minutes, before_ms, ended_ms=ended_ms)
        rest = [key for key in active if key not in waiting]
        for first in range(0, len(rest), _TOGETHER):
            together = rest[first : first + _TOGETHER]
            for minutes in await self._read_day(exchange, together, day_ms, hour_ms, before_ms):
                self._recall_of(minutes, before_ms, ended_ms=ended_ms)
                await asyncio.sleep(0)

    def _recall_of(self, minutes: Mapping[int, Bar], before_ms: int, *, ended_ms: int) -> None:
        for bar in combine(self._grid, minutes.values()):
            span = self._grid.span_of(bar.exchange, bar.interval, bar.start_ms)
            if span is not None and span.end_ms > before_ms:
                self._builder.recall_longer(bar, before_ms, quiet=span.end_ms <= ended_ms)
                self.begun += 1

    async def _read_day(
        self, exchange: str, instruments: Sequence[str], day_ms: int, hour_ms: int, before_ms: int
    ) -> list[dict[int, Bar]]:
        """Return the minutes since `hour_ms`, and the day before that as if it were one of them."""
        pipeline: Any = self._client.pipeline(transaction=False)
        for key in instruments:
            for field, how in zip(BAR_FIELDS, _HOW, strict=True):
                series = bar_series(key, "1m", field)
                if hour_ms > day_ms:
                    whole = (how, hour_ms - day_ms)
                    pipeline.execute_command(
                        "TS.RANGE", series, day_ms, hour_ms - 1, "ALIGN", "start", "AGGREGATION", *whole
                    )
                pipeline.execute_command("TS.RANGE", series, hour_ms, before_ms - 1)
        replies = await pipeline.execute(raise_on_error=False)
        for reply in replies:
            if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                raise reply
        each = len(BAR_FIELDS) * (2 if hour_ms > day_ms else 1)
        days = []
        for number, key in enumerate(instruments):
            answers = replies[number * each : (number + 1) * each]
            if hour_ms > day_ms:
                answers = [_both(*pair) for pair in zip(answers[::2], answers[1::2], strict=True)]
            days.append({bar.start_ms: bar for bar in bars_of(key, exchange, "1m", answers)})
        return days

    async def waiting(self, exchange: str) -> Mapping[str, Mapping[int, Bar]]:
        """Return the minutes of an exchange that wait on disk, by instrument and start."""
        found = self._waiting.get(exchange)
        if found is None:
            found = self._waiting[exchange] = {}
            records = []
            if self._spool is not None:
                records = await self._spool.waiting("bar_series", lambda record: record.exchange == exchange)
            for record in records:
                bar = parse_bar(record) if isinstance(record, ControlRecord) else None
                if bar is not None and bar.interval == "1m":
                    found.setdefault(bar.instrument, {})[bar.start_ms] = bar
        return found


def _both(whole: Any, minutes: Any) -> Any:
    """Return two answers of one series as one."""
    if isinstance(whole, Exception) or isinstance(minutes, Exception):
        return whole if isinstance(whole, Exception) else minutes
    return [*whole, *minutes]
