"""Builds the bars again that were forming when the daemon ended, from what is stored.

Runs once when a daemon takes up the work, before any writer; a gateway does so beside a running daemon. Of
every exchange it reads the end of the stream (`stream_end`): the ticks of the last minutes make their bars
anew, and the `bar` records among them tell which of these were said already, so that none is said twice
unless it changed. What a longer bar holds from before is read from the stored minutes (`longer_recall`).
What was fetched of the time since, while no daemon ran, counts for more than what was forming then.

Where the stream is whole only from within a minute that was not said yet, because it is too short or too busy
to be read further back, the series of single ticks stand in for the part before: of every instrument up to
the time of its first trade in the stream, so that no tick counts twice. They hold one tick for a millisecond,
with its last price and the volume of all, so the count of such a bar may be a little too low.

So it is for an instrument that is delivered with a delay: the minute that formed lies further back, and its
beginning may have been accepted long ago. When nothing of it is in the end of the stream, its newest tick
says which minute that is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.errors import StorageError
from services.market_data.bar_builder import DELAYED_MS, LAGS_MS, NO_TRADE, BarBuilder
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import MINUTE_MS, parse_bar
from services.market_data.calendar import Phase
from services.market_data.records import FLAG_LATE, ControlRecord, DataIngestionFormat
from services.pipeline.giving_way import slices
from services.pipeline.sequencer import Position
from services.storage.client import storage_error
from services.storage.longer_recall import LongerRecall, newest_minutes
from services.storage.series_ticks import read_series_ticks
from services.storage.spool import Spool
from services.storage.stream_end import MOST_ENTRIES, StreamEnd, read_stream_end

_log = structlog.get_logger(__name__)

LOOK_BACK_MS = 150_000
"""More than a bar is open and waited for: what ended before that was said."""
_AHEAD_MS = 5_000
"""A tick's time may be this far ahead of when it was accepted."""
_LAST_SAID_MS = 2_000
_NOT_IN_ORDER = NO_TRADE | FLAG_LATE


class Recalled(msgspec.Struct):
    """What was found: `said` are the `bar` records of the last minutes, whose samples may be missing."""

    said: list[ControlRecord] = []
    ticks: int = 0
    longer: int = 0


class _Plan:
    """From where what is taken, for the instruments of one exchange. Times are UTC epoch ms.

    Minutes are made anew from `minute_ms` on, of some instruments from another one; of those in `series` the
    ticks up to the end of that span come from their series, and only newer ones from the stream.
    """

    def __init__(self, minute_ms: int) -> None:
        self.minute_ms = minute_ms
        self.minute_of: dict[str, int] = {}
        self.series: dict[str, tuple[int, int]] = {}

    def takes(self, tick: DataIngestionFormat, minute_ms: int | None) -> bool:
        """Tell whether a tick of the stream, which lies in that minute, is to be taken."""
        if minute_ms is not None and minute_ms < self.minute_of.get(tick.symbol, self.minute_ms):
            return False
        span = self.series.get(tick.symbol)
        return span is None or tick.timestamp > span[1]


class BarRecall:
    """One recall into one builder. Without `spool`, as in a gateway, nothing of ours waits on disk.

    Of a stream the newest `most` entries are read, about as many at most.
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
        self._longer = LongerRecall(client, builder, grid, spool)
        self.found = Recalled(said=[])

    async def run(
        self,
        positions: Mapping[str, Position],
        instruments: Mapping[str, str],
        newest: Mapping[str, DataIngestionFormat],
    ) -> Recalled:
        """Recall all exchanges that `positions` (the newest of each) names, up to there.

        `instruments` maps instrument keys to their exchanges, `newest` to their newest ticks. Raises
        `StorageError` when Redis does not answer.
        """
        self._builder.recall_known({key: tick.timestamp for key, tick in newest.items()})
        for exchange, last in positions.items():
            if last[0]:
                of_it = [key for key, of in instruments.items() if of == exchange]
                try:
                    await self._recall_exchange(exchange, last, of_it, newest)
                except RedisError as error:
                    raise storage_error(error) from error
                except OSError as error:
                    raise StorageError(f"Redis cannot be reached: {error}") from error
        self.found.longer = self._longer.begun
        _log.info(
            "bars_recalled", ticks=self.found.ticks, said=len(self.found.said), longer=self.found.longer
        )
        return self.found

    async def _recall_exchange(
        self,
        exchange: str,
        last: Position,
        instruments: Sequence[str],
        newest: Mapping[str, DataIngestionFormat],
    ) -> None:
        last_ms = last[0]
        stored = await newest_minutes(self._client, instruments)
        # No live bar can begin after the last record: these were fetched.
        fetched = {key for key, start_ms in stored.items() if start_ms > last_ms}
        await self._longer.refill(exchange, {key: stored[key] for key in fetched})
        instruments = [key for key in instruments if key not in fetched]
        end = await read_stream_end(
            self._client, exchange, last, last_ms - LOOK_BACK_MS, spool=self._spool, most=self._most
        )
        first, lagging = await self._first_trades(end, set(instruments))
        whole_from_ms = -(-(end.whole_ms + _AHEAD_MS) // MINUTE_MS) * MINUTE_MS
        open_ms = (last_ms - _LAST_SAID_MS) // MINUTE_MS * MINUTE_MS
        plan = _Plan(min(whole_from_ms, open_ms))
        for key in lagging:
            await self._plan_from(plan, exchange, key, first[key], stored)
        for key in self._silent_and_delayed(instruments, first, newest):
            span = self._grid.minute_of(exchange, newest[key].timestamp)
            # After that it was finished without a newer trade.
            if span is not None and last_ms < span.end_ms + DELAYED_MS:
                await self._plan_from(plan, exchange, key, newest[key].timestamp, stored)
        in_time = [key for key in instruments if key not in plan.minute_of]
        if whole_from_ms > open_ms:
            # An instrument without a trade in the stream had its last one before that, or nearly so.
            silent_ms = min(end.whole_ms + _AHEAD_MS, max(end.whole_ms, last_ms - _LAST_SAID_MS))
            for key in in_time:
                if key in newest and newest[key].timestamp >= open_ms:
                    plan.series[key] = (open_ms, max(open_ms, first.get(key, silent_ms)))
            _log.warning(
                "bars_recalled_from_series", exchange=exchange, instruments=len(plan.series.keys() & in_time)
            )
        await self._begin_longer(exchange, plan, in_time, stored, last_ms)
        await self._take_series(exchange, plan)
        await self._take_stream(end, plan, fetched)

    # ---- what is taken from where -------------------------------------------------------------------

    async def _first_trades(
        self, end: StreamEnd, instruments: set[str]
    ) -> tuple[dict[str, int], dict[str, int]]:
        """Return the time of each instrument's first trade in the stream, and who lags by how much (ms).

        What came before that trade is older than it, or it would be flagged as late.
        """
        first: dict[str, int] = {}
        least: dict[str, int] = {}
        async for part in slices(end.records):
            for record in part:
                if isinstance(record, DataIngestionFormat) and not record.flags & _NOT_IN_ORDER:
                    lag_ms = record.position_ms - record.timestamp
                    least[record.symbol] = min(lag_ms, least.get(record.symbol, lag_ms))
                    first.setdefault(record.symbol, record.timestamp)
        lagging = {
            key: lag_ms
            for key, lag_ms in least.items()
            if lag_ms > MINUTE_MS + LAGS_MS and key in instruments
        }
        return first, lagging

    @staticmethod
    def _silent_and_delayed(
        instruments: Sequence[str], first: Mapping[str, int], newest: Mapping[str, DataIngestionFormat]
    ) -> list[str]:
        """Return those delivered with a delay of which there is no trade in the end of the stream."""
        found = []
        for key in instruments:
            tick = newest.get(key)
            if tick is None or key in first or tick.flags & _NOT_IN_ORDER:
                continue
            if tick.received_ms - tick.timestamp > MINUTE_MS + LAGS_MS:
                found.append(key)
        return found

    async def _plan_from(
        self, plan: _Plan, exchange: str, key: str, trade_ms: int, stored: Mapping[str, int]
    ) -> None:
        """Have all made anew of an instrument delivered with a delay from the minute of a trade on.

        What came of that minute before is in the series only. When it was said before, from the next one on.
        """
        span = self._grid.minute_of(exchange, trade_ms)
        minute_ms = trade_ms // MINUTE_MS * MINUTE_MS if span is None else span.start_ms
        waiting = (await self._longer.waiting(exchange)).get(key, {})
        was_said = stored.get(key, -1) >= minute_ms or minute_ms in waiting
        if span is None or span.phase is not Phase.REGULAR or was_said:
            minute_ms += MINUTE_MS
        else:
            plan.series[key] = (minute_ms, trade_ms)
        plan.minute_of[key] = minute_ms
        self._builder.recall_delayed(key, exchange)

    # ---- taking it ----------------------------------------------------------------------------------

    async def _begin_longer(
        self, exchange: str, plan: _Plan, in_time: Sequence[str], stored: Mapping[str, int], last_ms: int
    ) -> None:
        await self._longer.begin(exchange, in_time, plan.minute_ms, stored)
        behind: dict[int, list[str]] = {}
        for key, minute_ms in plan.minute_of.items():
            behind.setdefault(minute_ms, []).append(key)
        for before_ms in sorted(behind):
            await self._longer.begin(exchange, behind[before_ms], before_ms, stored, ended_ms=last_ms)

    async def _take_series(self, exchange: str, plan: _Plan) -> None:
        if not plan.series:
            return
        async for ticks in read_series_ticks(self._client, exchange, plan.series, spool=self._spool):
            for tick in ticks:
                self._builder.take(tick)
            self.found.ticks += len(ticks)

    async def _take_stream(self, end: StreamEnd, plan: _Plan, fetched: set[str]) -> None:
        async for part in slices(end.records):
            for record in part:
                is_gap = isinstance(record, ControlRecord) and record.type == "gap"
                if record.symbol in fetched and not is_gap:
                    continue
                if isinstance(record, DataIngestionFormat):
                    span = self._grid.minute_of(record.exchange, record.timestamp)
                    if plan.takes(record, None if span is None else span.start_ms):
                        self._builder.take(record)
                        self.found.ticks += 1
                elif record.type != "bar":
                    self._builder.note(record)
                elif (bar := parse_bar(record)) is not None:
                    self._builder.recall_said(bar)
                    self.found.said.append(record)
