"""Builds the bars again that were forming when the daemon ended, from what is stored.

Runs once when a daemon takes up the work, before any writer. Of every exchange it reads the end of the
stream, and what waits on disk behind it: the ticks of the last minutes make their bars anew, and the `bar`
records among them tell which of these were said already, so that none is said twice unless it changed. What
a longer bar holds from before is read from the stored minutes. Where a stream is too short to hold the last
minute, or too busy to be read as far back, the series of single ticks stand in for it. What was fetched of
the time since, while no daemon ran, counts for more than what was forming then.

Of an instrument that is delivered with a delay these ticks lie further back. Its minutes are made anew
from the second on that is found there: that one is whole for certain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Container, Mapping, Sequence
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.errors import StorageError
from services.market_data.bar_builder import LAGS_MS, NO_TRADE, BarBuilder
from services.market_data.bar_grid import LONGER, BarGrid
from services.market_data.bars import MINUTE_MS, Bar, parse_bar
from services.market_data.records import FLAG_LATE, ControlRecord, DataIngestionFormat, Record
from services.pipeline.giving_way import slices
from services.pipeline.sequencer import Position, parse_position
from services.storage.bar_series import bars_of, combine, read_bars
from services.storage.client import storage_error
from services.storage.entry_reader import record_of
from services.storage.keys import BAR_FIELDS, bar_series, tick_series, tick_stream
from services.storage.spool import Spool

_log = structlog.get_logger(__name__)

LOOK_BACK_MS = 150_000
"""More than a bar is open and waited for: what ended before that was said."""
_AHEAD_MS = 5_000
"""A tick's time may be this far ahead of when it was accepted."""
_LAST_SAID_MS = 2_000
MOST_ENTRIES = 150_000
"""So many entries of a stream are read at most: a start does not take longer the busier the market is."""
_PAGE = 500
_SAMPLE = 1_000
_CHUNK = 500
_TOGETHER = 10
"""Instruments whose minutes are read in one round trip; five to ten milliseconds of work."""
_HOW = ("first", "max", "min", "last", "sum")
"""How the fields of minutes become those of a longer bar, in the order of the fields."""


class Recalled(msgspec.Struct):
    """What was found: `said` are the `bar` records of the last minutes, whose samples may be missing."""

    said: list[ControlRecord] = []
    ticks: int = 0
    longer: int = 0


class BarRecall:
    """One recall into one builder. Without `spool`, as in a gateway, nothing of ours waits on disk.

    Of a stream about `most` entries are read, unless ticks of it wait on disk: those are in no series.
    """

    def __init__(
        self,
        client: Redis,
        builder: BarBuilder,
        grid: BarGrid,
        spool: Spool | None = None,
        *,
        most: int = MOST_ENTRIES,
    ) -> None:
        self._client = client
        self._builder = builder
        self._grid = grid
        self._spool = spool
        self._most = most
        self.found = Recalled(said=[])

    async def run(
        self,
        positions: Mapping[str, Position],
        instruments: Mapping[str, str],
        newest_ms: Mapping[str, int],
    ) -> Recalled:
        """Recall all exchanges that `positions` (the newest of each) names, up to there.

        `instruments` maps instrument keys to their exchanges, `newest_ms` to the time of their newest tick.
        Raises `StorageError` when Redis does not answer.
        """
        self._builder.recall_known(newest_ms)
        for exchange, last in positions.items():
            if last[0]:
                await self._recall_exchange(
                    exchange,
                    last,
                    [key for key, of in instruments.items() if of == exchange],
                    newest_ms,
                )
        _log.info(
            "bars_recalled", ticks=self.found.ticks, said=len(self.found.said), longer=self.found.longer
        )
        return self.found

    async def _recall_exchange(
        self, exchange: str, last: Position, instruments: Sequence[str], newest_ms: Mapping[str, int]
    ) -> None:
        last_ms = last[0]
        try:
            newest_minutes = await self._newest_minutes(instruments)
            # No live bar can begin after the last record: these were fetched.
            fetched = {key for key, start_ms in newest_minutes.items() if start_ms > last_ms}
            await self._refill(exchange, {key: newest_minutes[key] for key in fetched})
            instruments = [key for key in instruments if key not in fetched]
            window_ms, records = await self._window(exchange, last)
            records += await self._waiting(exchange, window_ms, records)
            whole_from_ms = -(-(window_ms + _AHEAD_MS) // MINUTE_MS) * MINUTE_MS
            open_ms = (last_ms - _LAST_SAID_MS) // MINUTE_MS * MINUTE_MS
            if whole_from_ms > open_ms:
                fresh = [key for key in instruments if newest_ms.get(key, 0) >= open_ms]
                await self._from_series(exchange, fresh, open_ms, whole_from_ms)
            from_ms = min(whole_from_ms, open_ms)
            lagging = await self._lagging(records, fetched)
            for key in lagging:
                self._builder.recall_delayed(key, exchange)
            in_time = [key for key in instruments if key not in lagging]
            await self._recall_longer(exchange, in_time, from_ms, newest_minutes)
            for before_ms in sorted(set(lagging.values())):
                behind = [key for key, whole_ms in lagging.items() if whole_ms == before_ms]
                await self._recall_longer(exchange, behind, before_ms, newest_minutes, ended_ms=last_ms)
        except RedisError as error:
            raise storage_error(error) from error
        except OSError as error:
            raise StorageError(f"Redis cannot be reached: {error}") from error
        async for part in slices(records):
            for record in part:
                is_gap = isinstance(record, ControlRecord) and record.type == "gap"
                if is_gap or record.symbol not in fetched:
                    self._take(record, lagging.get(record.symbol, whole_from_ms))

    # ---- the last minutes -------------------------------------------------------------------------

    async def _lagging(self, records: Sequence[Record], but: Container[str]) -> dict[str, int]:
        """Return the instruments that are delivered with a delay, and from when on their ticks are whole.

        That is the minute after the one of the first trade found: what came before that trade is older than
        it, or it would be flagged as late.
        """
        least_ms: dict[str, int] = {}
        first_ms: dict[str, int] = {}
        async for part in slices(records):
            for record in part:
                if isinstance(record, DataIngestionFormat) and not record.flags & (NO_TRADE | FLAG_LATE):
                    lag_ms = record.position_ms - record.timestamp
                    least_ms[record.symbol] = min(lag_ms, least_ms.get(record.symbol, lag_ms))
                    first_ms.setdefault(record.symbol, record.timestamp)
        found = {}
        for key, lag_ms in least_ms.items():
            if lag_ms > MINUTE_MS + LAGS_MS and key not in but:
                found[key] = (first_ms[key] // MINUTE_MS + 1) * MINUTE_MS
        return found

    async def _window(self, exchange: str, last: Position) -> tuple[int, list[Record]]:
        """Return the end of a stream, and from when on (of acceptance) it is whole."""
        key = tick_stream(exchange)
        last_ms, upto = last[0], f"{last[0]}-{last[1]}"
        window_ms = last_ms - LOOK_BACK_MS
        oldest: Any = await self._client.xrange(key, "-", "+", 1)
        if not oldest:
            return last_ms, []
        facts: Any = await self._client.xinfo_stream(key)
        oldest_ms = parse_position(oldest[0][0])[0]
        if oldest_ms > window_ms and facts.get("entries-added") != facts["length"]:
            window_ms = oldest_ms
        if self._spool is None or exchange not in self._spool.positions():
            window_ms = max(window_ms, last_ms - await self._readable_ms(key, upto))
        records: list[Record] = []
        after = f"{window_ms}-0"
        while True:
            page: Any = await self._client.xrange(key, after, upto, _PAGE)
            for entry_id, fields in page:
                record = record_of(exchange, parse_position(entry_id), fields)
                if record is not None:
                    records.append(record)
            if len(page) < _PAGE:
                return window_ms, records
            after = f"({page[-1][0]}"

    async def _readable_ms(self, key: str, upto: str) -> int:
        """Return how far back so many entries reach as may be read, going by the newest of them."""
        newest: Any = await self._client.xrevrange(key, upto, "-", _SAMPLE)
        if len(newest) < _SAMPLE:
            return LOOK_BACK_MS
        took_ms = parse_position(newest[0][0])[0] - parse_position(newest[-1][0])[0]
        return took_ms * self._most // _SAMPLE

    async def _waiting(self, exchange: str, window_ms: int, stored: Sequence[Record]) -> list[Record]:
        """Return what waits on disk for the stream and is not in it."""
        top = max(((record.position_ms, record.position_seq) for record in stored), default=(0, 0))
        if self._spool is None:
            return []
        return await self._spool.waiting(
            "stream",
            lambda record: (
                record.exchange == exchange
                and record.position_ms >= window_ms
                and (record.position_ms, record.position_seq) > top
            ),
        )

    def _take(self, record: Record, whole_from_ms: int) -> None:
        if isinstance(record, DataIngestionFormat):
            span = self._grid.minute_of(record.exchange, record.timestamp)
            if span is None or span.start_ms >= whole_from_ms:
                self._builder.take(record)
                self.found.ticks += 1
        elif record.type == "bar":
            bar = parse_bar(record)
            if bar is not None:
                self._builder.recall_said(bar)
                self.found.said.append(record)
        else:
            self._builder.note(record)

    async def _from_series(self, exchange: str, instruments: Sequence[str], from_ms: int, to_ms: int) -> None:
        """Take the ticks of a time of which the stream has lost the beginning from the series of ticks."""
        for first in range(0, len(instruments), _CHUNK):
            keys = instruments[first : first + _CHUNK]
            pipeline: Any = self._client.pipeline(transaction=False)
            for key in keys:
                pipeline.execute_command("TS.RANGE", tick_series(key, "price"), from_ms, to_ms - 1)
                pipeline.execute_command("TS.RANGE", tick_series(key, "volume"), from_ms, to_ms - 1)
            replies = await pipeline.execute(raise_on_error=False)
            for key, prices, volumes in zip(keys, replies[::2], replies[1::2], strict=True):
                if isinstance(prices, Exception):
                    continue
                known = (
                    {} if isinstance(volumes, Exception) else {int(at): int(float(v)) for at, v in volumes}
                )
                for at, price in prices:
                    at_ms = int(at)
                    tick = DataIngestionFormat(
                        key, float(price), known.get(at_ms), at_ms, "", exchange=exchange
                    )
                    self._builder.take(tick)
                    self.found.ticks += 1
        _log.warning("bars_recalled_from_series", exchange=exchange, instruments=len(instruments))

    # ---- what longer bars hold from before ----------------------------------------------------------

    async def _refill(self, exchange: str, newest_minutes: Mapping[str, int]) -> None:
        """Begin the longer bars of what was fetched with the stored minutes of the newest day."""
        for key, newest_ms in newest_minutes.items():
            day = self._grid.span_of(exchange, "1d", newest_ms)
            if day is not None:
                stored = await read_bars(self._client, key, exchange, "1m", day.start_ms, day.end_ms - 1)
                self._builder.refill(key, stored)

    async def _recall_longer(
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
        waiting = await self._waiting_minutes(exchange, day_ms, before_ms)
        active = [key for key in instruments if newest_minutes.get(key, -1) >= day_ms]
        for key, minutes in waiting.items():
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
                self.found.longer += 1

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

    async def _waiting_minutes(self, exchange: str, from_ms: int, to_ms: int) -> dict[str, dict[int, Bar]]:
        found: dict[str, dict[int, Bar]] = {}
        if self._spool is None:
            return found
        for record in await self._spool.waiting("bar_series", lambda record: record.exchange == exchange):
            bar = parse_bar(record) if isinstance(record, ControlRecord) else None
            if bar is not None and bar.interval == "1m" and from_ms <= bar.start_ms < to_ms:
                found.setdefault(bar.instrument, {})[bar.start_ms] = bar
        return found

    async def _newest_minutes(self, instruments: Sequence[str]) -> dict[str, int]:
        """Return the start of the newest stored minute of those instruments that have any."""
        found: dict[str, int] = {}
        for first in range(0, len(instruments), _CHUNK):
            chunk = instruments[first : first + _CHUNK]
            pipeline: Any = self._client.pipeline(transaction=False)
            for key in chunk:
                pipeline.execute_command("TS.GET", bar_series(key, "1m", "close"))
            for key, reply in zip(chunk, await pipeline.execute(raise_on_error=False), strict=True):
                if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
                    raise reply
                if not isinstance(reply, Exception) and reply:
                    found[key] = int(reply[0])
        return found


def _both(whole: Any, minutes: Any) -> Any:
    """Return two answers of one series as one."""
    if isinstance(whole, Exception) or isinstance(minutes, Exception):
        return whole if isinstance(whole, Exception) else minutes
    return [*whole, *minutes]
