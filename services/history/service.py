"""The history service: answers what the past was, from Redis first, and fetches what is missing of it.

Stands beside the gateway. Depends on Redis, on PostgreSQL for the ledger, and on sources where there are any:
without the ledger it answers what is stored and calls nothing complete that it cannot prove; without sources
it fetches nothing. Reading what is all there takes one round trip to Redis.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta

import msgspec
from redis.asyncio import Redis

from services.errors import MarketdError, ProviderUnavailable, StorageError
from services.history.coverage_ledger import CoverageLedger
from services.history.filler import SETTLE_MS, Filler
from services.history.planner import Window, runs_of, windows_of
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import MINUTE_MS, Bar, Interval
from services.market_data.candles import (
    DEFAULT_COUNT,
    MAX_COUNT,
    Candle,
    CoverageSpan,
    HistoryAnswer,
    HistoryRequest,
    Missing,
    Resolution,
    fold_days,
    joined,
    parse_resolution,
)
from services.market_data.clock import Clock
from services.market_data.coverage import HAVE, MINUTES, MISSING, UNAVAILABLE, spans_of
from services.market_data.spans import Span, common, without
from services.market_data.trading_time import TradingTime, midnight_ms, minutes_of
from services.pipeline.failover import first_that_answers
from services.storage.bar_store import Fold, read_bars, read_starts

CLOSES_AFTER_MS = 5_000
"""A minute may be stored so long after its end; before, nobody misses it."""
DAY_SETTLES_MS = 30 * MINUTE_MS
FETCH_WITHIN_S = 6.0
_PATIENCE_S = 3.0
_ROUNDS = 3
"""Quiet instruments need a look further back than was fetched; so often at most."""
_FETCHED_WINDOWS = 4
_MOST_REFUSED = 10_000
_MOST_MISSING = 100
_MOST_SESSIONS = 3_000
_MOST_WIDENED = 64
DAY_MS = 86_400_000

HandOver = Callable[[Sequence[Window], float], Awaitable[tuple[tuple[str, ...], bool]]]
"""`(windows, within_s)` to the codes of those who answered, and whether all was settled in time."""
Forming = Callable[[str, Interval], Bar | None]


class TooManyCandles(MarketdError):
    """The span holds more candles than one answer may; the message says how many are allowed."""


class HistoryService:
    """Answers requests. `forming` returns the bar that is being made now, None where none is."""

    def __init__(
        self,
        redis: Redis,
        ledger: CoverageLedger | None,
        trading: TradingTime,
        grid: BarGrid,
        clock: Clock,
        *,
        filler: Filler | None = None,
        forming: Forming = lambda _instrument, _interval: None,
        retention_ms: Callable[[str], int] = lambda _: 365 * DAY_MS,
    ) -> None:
        self._redis = redis
        self._ledger = ledger
        self._trading = trading
        self._clock = clock
        self._filler = filler
        self._retention_ms = retention_ms
        self._grid = grid
        self.forming = forming
        self.hand_over: HandOver | None = None
        """Fetches in the background; without it a reader fetches while it waits."""
        self.may_fill: Callable[[], bool] = lambda: True
        self._refused_until_s: dict[tuple[str, str], float] = {}
        self.figures = {"requests": 0, "fetched": 0, "incomplete": 0}

    async def get_hist_candles(self, symbol: str, interval: str, count: int = DEFAULT_COUNT) -> list[Candle]:
        """Return the newest `count` finished candles of an instrument key, oldest first.

        `interval` is any of `parse_resolution`. Raises ValueError for one that is none, `StorageError`
        when Redis does not answer.
        """
        request = HistoryRequest(instrument=symbol, resolution=parse_resolution(interval), count=count)
        return (await self.read(request)).candles

    async def read(self, request: HistoryRequest) -> HistoryAnswer:
        """Answer a request; what is missing is fetched within a few seconds, or named.

        Raises `StorageError` when Redis does not answer, `TooManyCandles`, and for adjusted prices the
        `ProviderError` of the source.
        """
        self.figures["requests"] += 1
        if request.adjusted:
            return await self._adjusted(request)
        today = await self._today(request)
        answer = await self._filled(request)
        if today is not None and answer.forming:
            # The day that forms is whole only where its minutes are.
            answer = msgspec.structs.replace(
                answer,
                complete=answer.complete and today.complete,
                missing=(*answer.missing, *today.missing)[-_MOST_MISSING:],
                sources=tuple(dict.fromkeys((*answer.sources, *today.sources))),
            )
        if not answer.complete:
            self.figures["incomplete"] += 1
        return answer

    async def _today(self, request: HistoryRequest) -> HistoryAnswer | None:
        """Return the minutes of which the day that forms is made; None where that is not asked for."""
        now_ms = self._clock.now_ms()
        ends_before = request.to_ms is not None and request.to_ms < now_ms
        if request.resolution.minutes or not request.forming or ends_before:
            return None
        exchange = request.instrument.partition(":")[0]
        begin_ms = self._trading.day_start_ms(exchange, self._trading.day_of(exchange, now_ms))
        if begin_ms is None or begin_ms >= now_ms:
            return None
        minutes = HistoryRequest(
            instrument=request.instrument, resolution=parse_resolution("1m"), from_ms=begin_ms, forming=True
        )
        return await self._filled(minutes)

    async def _filled(self, request: HistoryRequest) -> HistoryAnswer:
        """Answer from what is stored and can be fetched within a few seconds."""
        answer, holes = await self._stored(request)
        sources: tuple[str, ...] = ()
        for _ in range(_ROUNDS):
            fetched = await self._fetch(request, holes) if holes else ()
            if not fetched:
                break
            self.figures["fetched"] += 1
            sources += tuple(code for code in fetched if code not in sources)
            answer, holes = await self._stored(request)
        return msgspec.structs.replace(answer, sources=sources) if sources else answer

    async def coverage(self, instrument: str) -> list[CoverageSpan]:
        """Return what is known of an instrument's past. Raises `TemporaryError` while PostgreSQL is away."""
        return await self._ledger.of(instrument) if self._ledger is not None else []

    # ---- what is stored -------------------------------------------------------------------------

    async def _stored(self, request: HistoryRequest) -> tuple[HistoryAnswer, list[Span]]:
        """Return what Redis holds of a request, and what of it is neither stored nor known to be empty."""
        now_ms = self._clock.now_ms()
        to_ms = min(now_ms if request.to_ms is None else request.to_ms, now_ms)
        read = self._minutes if request.resolution.minutes else self._days
        widened = 1
        while True:
            candles, asked, enough = await read(request, to_ms, now_ms, widened)
            holes = await self._unknown(request.instrument, request.resolution.base, asked, candles, request)
            # Quiet instruments have fewer bars than minutes: look further back while nothing is missing.
            if enough or holes or widened >= _MOST_WIDENED:
                break
            widened *= 4
        if request.count is None and len(candles) > MAX_COUNT:
            raise TooManyCandles(
                f"there are more than {MAX_COUNT} candles in this span: ask for less of it, or for a "
                "longer interval"
            )
        forming = None
        if request.forming and to_ms >= now_ms:
            forming = await self._forming_candle(request, now_ms)
        if forming is not None:
            candles = [*(candle for candle in candles if candle[0] < forming[0]), forming]
        short = request.count is not None and request.from_ms is None and len(candles) < request.count
        if request.count is not None:
            candles = candles[-request.count :]
        answer = HistoryAnswer(
            candles=candles,
            complete=not holes and not short,
            missing=await self._missing(request, holes),
            forming=forming is not None,
        )
        return answer, holes

    async def _minutes(
        self, request: HistoryRequest, to_ms: int, now_ms: int, widened: int
    ) -> tuple[list[Candle], list[Span], bool]:
        """Return candles made of minutes, the sessions they were asked from, and whether that is all."""
        exchange = request.instrument.partition(":")[0]
        bucket_ms = request.resolution.minutes * MINUTE_MS
        until_ms = min(to_ms, now_ms - CLOSES_AFTER_MS)
        until_ms -= until_ms % MINUTE_MS
        if request.from_ms is not None:
            sessions, all_of_it = self._trading.between(exchange, request.from_ms, until_ms), True
        else:
            count = (request.count or DEFAULT_COUNT) * widened
            sessions, all_of_it = self._sessions_for(exchange, until_ms, bucket_ms, count)
        asked = sessions
        finished = [self._finished(exchange, span, bucket_ms, now_ms) for span in sessions]
        sessions = [span for span in finished if span[0] < span[1]]
        if not request.forming:
            # What is not shown cannot be missing.
            asked = sessions
        limit = MAX_COUNT + 1 if request.count is None else request.count
        folds = self._folds(exchange, sessions, bucket_ms)
        candles = await read_bars(self._redis, request.instrument, "1m", folds, most=limit)
        enough = all_of_it or len(candles) >= limit
        if len(candles) >= limit:
            # Only what lies within the answer can be missing from it.
            first_ms = candles[0][0] * 1000
            asked = [(max(begin, first_ms), end) for begin, end in asked if end > first_ms]
        return candles, asked, enough

    def _sessions_for(
        self, exchange: str, until_ms: int, bucket_ms: int, count: int
    ) -> tuple[list[Span], bool]:
        """Return the newest sessions that hold `count` candles, ascending; and whether there are no older."""
        found: list[Span] = []
        now_ms = self._clock.now_ms()
        oldest_ms = now_ms - self._retention_ms(exchange)
        for opens, closes in self._trading.back_from(exchange, until_ms):
            if closes <= oldest_ms or len(found) >= _MOST_SESSIONS:
                return found[::-1], True
            found.append((opens, closes))
            begin, end = self._finished(exchange, (opens, closes), bucket_ms, now_ms)
            count -= -(-(end - begin) // bucket_ms)
            if count <= 0:
                break
        return found[::-1], False

    def _finished(self, exchange: str, span: Span, bucket_ms: int, now_ms: int) -> Span:
        """Return a session without the candle at its end that is not finished."""
        begin, end = span
        if bucket_ms == MINUTE_MS or end < now_ms - CLOSES_AFTER_MS - MINUTE_MS:
            return span
        anchor = self._anchor(exchange, begin)
        closes = self._closes(exchange, begin)
        if closes <= end:
            return span
        return begin, max(begin, end - (end - anchor) % bucket_ms)

    def _anchor(self, exchange: str, at_ms: int) -> int:
        """Return from where the candles of a moment's session are counted, as its stored bars are."""
        first_ms = self._grid.first_cut_ms(exchange, at_ms)
        return at_ms if first_ms is None else first_ms

    def _closes(self, exchange: str, at_ms: int) -> int:
        for day in (self._trading.day_of(exchange, at_ms), self._trading.day_of(exchange, at_ms - DAY_MS)):
            for opens, closes in self._trading.on(exchange, day):
                if opens <= at_ms < closes:
                    return closes
        return at_ms

    def _folds(self, exchange: str, sessions: Sequence[Span], bucket_ms: int) -> list[Fold]:
        """Return the sessions as few reads: those whose candles are counted alike are read together."""
        folds: list[Fold] = []
        for begin, end in sessions:
            anchor = 0 if bucket_ms == MINUTE_MS else self._anchor(exchange, begin) % bucket_ms
            # A candle never reaches over the edge of two sessions, not even where one follows on the other.
            apart = (begin - anchor) % bucket_ms and folds and folds[-1].to_ms == begin
            if folds and folds[-1].align_ms == anchor and not apart:
                folds[-1] = Fold(folds[-1].from_ms, end, bucket_ms, anchor)
            else:
                folds.append(Fold(begin, end, bucket_ms, anchor))
        return folds

    async def _days(
        self, request: HistoryRequest, to_ms: int, now_ms: int, widened: int
    ) -> tuple[list[Candle], list[Span], bool]:
        """Return candles made of days, the days they were asked from, and whether that is all."""
        exchange = request.instrument.partition(":")[0]
        resolution = request.resolution
        until_ms = min(to_ms, now_ms)
        all_of_it = request.from_ms is not None
        if request.from_ms is not None:
            from_ms = request.from_ms
        else:
            days = (request.count or DEFAULT_COUNT) * (resolution.span_ms // DAY_MS) * 1.5 * widened + 10
            from_ms = max(0, until_ms - int(days) * DAY_MS)
            all_of_it = from_ms == 0 or now_ms - from_ms > self._retention_ms(exchange)
        sessions = [
            span
            for _, span in self._trading.days_between(exchange, from_ms, until_ms)
            if span[1] + DAY_SETTLES_MS <= now_ms
        ]
        if not sessions:
            return [], [], True
        whole = Fold(sessions[0][0], sessions[-1][0] + 1, 0)
        days_read = await read_bars(self._redis, request.instrument, "1d", [whole], most=None)
        candles = fold_days(days_read, lambda at_ms: self._trading.day_of(exchange, at_ms), resolution)
        limit = request.count
        if limit is not None and len(candles) > limit:
            # One more than asked for is there, so the oldest that is shown is a whole one.
            candles = candles[-limit:]
            first_ms = candles[0][0] * 1000
            sessions = [span for span in sessions if span[0] >= first_ms]
        return candles, sessions, all_of_it or (limit is not None and len(candles) >= limit)

    async def _unknown(
        self,
        instrument: str,
        interval: Interval,
        asked: Sequence[Span],
        candles: Sequence[Candle],
        request: HistoryRequest,
    ) -> list[Span]:
        """Return what of `asked` is neither stored nor known to have no bars."""
        if not asked:
            return []
        rows: list[CoverageSpan] | None = None
        if self._ledger is not None:
            try:
                rows = await self._ledger.of(instrument)
            except MarketdError:
                rows = None
        had = spans_of((row for row in rows or () if row.type == interval), HAVE)
        kept_ms = self._clock.now_ms() - self._retention_ms(instrument.partition(":")[0])
        had = [(max(begin, kept_ms), end) for begin, end in had if end > kept_ms]
        unknown = without(asked, had)
        if not unknown:
            return []
        if interval == "1d":
            present = {candle[0] * 1000 for candle in candles}
            if not request.resolution.days:
                whole = [(asked[0][0], asked[-1][0] + 1)]
                present = set(await read_starts(self._redis, instrument, "1d", whole))
            if rows is not None:
                present -= _in_part(asked, rows)
            return [span for span in asked if span[0] not in present and common([span], unknown)]
        if request.resolution.minutes == 1:
            present = {candle[0] * 1000 for candle in candles}
        else:
            present = set(await read_starts(self._redis, instrument, "1m", unknown))
        # A gap leaves parts of minutes behind, which stand for the whole until they are fetched.
        broken = spans_of((row for row in rows or () if row.type == interval), MISSING)
        present.difference_update(minutes_of(common(unknown, broken)))
        return runs_of([minute for minute in minutes_of(unknown) if minute not in present], MINUTE_MS)

    async def _missing(self, request: HistoryRequest, holes: Sequence[Span]) -> tuple[Missing, ...]:
        """Return the holes with what the ledger says of them."""
        if not holes:
            return ()
        rows: list[CoverageSpan] = []
        if self._ledger is not None:
            try:
                rows = await self._ledger.of(request.instrument)
            except MarketdError:
                rows = []
        base = request.resolution.base
        told: list[tuple[Span, str]] = []
        left: list[Span] = list(holes)
        for row in rows:
            if row.type == base and row.state in (MISSING, UNAVAILABLE):
                for span in common(left, [(row.from_ms, row.to_ms)]):
                    word = row.reason or "not stored"
                    told.append((span, word if row.state == MISSING else f"unavailable: {word}"))
                left = without(left, [(row.from_ms, row.to_ms)])
        told += [(span, "not stored") for span in left]
        told.sort()
        return tuple(
            Missing(begin // 1000, end // 1000, reason) for (begin, end), reason in told[-_MOST_MISSING:]
        )

    async def _forming_candle(self, request: HistoryRequest, now_ms: int) -> Candle | None:
        """Return the candle that is not finished: its stored minutes and the one that is being made."""
        exchange = request.instrument.partition(":")[0]
        bar = self.forming(request.instrument, "1m")
        live = None
        if bar is not None and bar.start_ms > now_ms - 2 * MINUTE_MS:
            live = (bar.start_ms // 1000, bar.open, bar.high, bar.low, bar.close, bar.volume)
        if request.resolution.minutes == 1:
            return live
        begin_ms = self._begins(exchange, request.resolution, now_ms)
        if begin_ms is None:
            return None
        fold = Fold(begin_ms, now_ms, MINUTE_MS)
        parts = await read_bars(self._redis, request.instrument, "1m", [fold], most=None)
        if not request.resolution.minutes:
            today_ms = self._trading.day_start_ms(exchange, self._trading.day_of(exchange, now_ms))
            if today_ms is None:
                return None
            parts = [part for part in parts if part[0] * 1000 >= today_ms]
            earlier = await read_bars(
                self._redis, request.instrument, "1d", [Fold(begin_ms, today_ms, 0)], most=None
            )
            parts = earlier + parts
            begin_ms = earlier[0][0] * 1000 if earlier else today_ms
        if live is not None:
            parts = [*(part for part in parts if part[0] < live[0]), live]
        if not parts:
            return None
        whole = parts[0]
        for part in parts[1:]:
            whole = joined(whole, part)
        return (begin_ms // 1000, *whole[1:])

    def _begins(self, exchange: str, resolution: Resolution, now_ms: int) -> int | None:
        """Return where the candle of this moment begins; None while the exchange is closed."""
        if resolution.minutes:
            bucket_ms = resolution.minutes * MINUTE_MS
            running = self._trading.between(exchange, now_ms - 1, now_ms)
            if not running:
                return None
            anchor = self._anchor(exchange, now_ms - 1)
            opens = next(
                (
                    opens
                    for day in (0, DAY_MS)
                    for opens, closes in self._trading.on(
                        exchange, self._trading.day_of(exchange, now_ms - day)
                    )
                    if opens <= now_ms - 1 < closes
                ),
                now_ms,
            )
            return max(opens, now_ms - (now_ms - anchor) % bucket_ms)
        day = self._trading.day_of(exchange, now_ms)
        first = day
        if resolution.weeks:
            first = day - timedelta(days=day.weekday())
        elif resolution.months:
            first = day.replace(day=1)
        return midnight_ms(exchange, first) if self._trading.day_start_ms(exchange, day) else None

    # ---- what is fetched ------------------------------------------------------------------------

    async def _fetch(self, request: HistoryRequest, holes: Sequence[Span]) -> tuple[str, ...]:
        """Fetch the newest holes, as far as that is quick; return who answered."""
        filler = self._filler
        if filler is None or not filler.sources or not self.may_fill():
            return ()
        instrument, interval = request.instrument, request.resolution.base
        now_ms, now_s = self._clock.now_ms(), self._clock.monotonic_s()
        if self._refused_until_s.get((instrument, interval), 0.0) > now_s:
            return ()
        offers = filler.offers(instrument, interval).values()
        if not offers:
            return ()
        # What is younger is not asked for yet, so nobody waits for it.
        settled_ms = (now_ms - SETTLE_MS[interval]) // MINUTE_MS * MINUTE_MS
        wanted = [(begin, min(end, settled_ms)) for begin, end in holes if begin < settled_ms]
        if self._ledger is not None:
            try:
                known = [row for row in await self._ledger.of(instrument) if row.type == interval]
            except MarketdError:
                known = []
            wanted = without(wanted, spans_of(known, UNAVAILABLE))
        if not wanted:
            return ()
        windows = windows_of(
            instrument,
            interval,
            wanted,
            max(offer.window_ms for offer in offers),
            [now_ms - offer.depth_ms for offer in offers if offer.depth_ms],
        )
        if self.hand_over is not None:
            # The backfill goes on with it when we wait no longer.
            answered, settled = await self.hand_over(windows[:_FETCHED_WINDOWS], FETCH_WITHIN_S)
            if not settled:
                self._refuse(instrument, interval, now_s)
            return answered
        return await self._fetch_here(filler, windows[:_FETCHED_WINDOWS], now_s)

    async def _fetch_here(self, filler: Filler, windows: Sequence[Window], now_s: float) -> tuple[str, ...]:
        answered: list[str] = []
        try:
            async with asyncio.timeout(FETCH_WITHIN_S):
                for window in windows:
                    outcome = await filler.fill(window, patience_s=_PATIENCE_S)
                    answered += [code for code in outcome.sources if code not in answered]
                    if outcome.later_s is not None:
                        self._refuse(window.instrument, window.interval, now_s + outcome.later_s)
                        break
        except (TimeoutError, StorageError):
            self._refuse(windows[0].instrument, windows[0].interval, now_s)
        return tuple(answered)

    def _refuse(self, instrument: str, interval: str, until_s: float) -> None:
        """Fetch nothing of an instrument on behalf of readers for a while."""
        if len(self._refused_until_s) > _MOST_REFUSED:
            self._refused_until_s.clear()
        now_s = self._clock.monotonic_s()
        self._refused_until_s[instrument, interval] = min(max(until_s, now_s + 10.0), now_s + 60.0)

    async def _adjusted(self, request: HistoryRequest) -> HistoryAnswer:
        """Return prices adjusted for dividends, as a source has them; nothing of it is stored."""
        if request.resolution.minutes:
            raise ValueError("only daily, weekly and monthly candles can be adjusted")
        filler = self._filler
        if filler is None:
            raise ProviderUnavailable("no provider of adjusted prices is configured", reason="none")
        exchange = request.instrument.partition(":")[0]
        now_ms = self._clock.now_ms()
        to_ms = min(now_ms if request.to_ms is None else request.to_ms, now_ms)
        days = (request.count or DEFAULT_COUNT) * (request.resolution.span_ms // DAY_MS) * 1.5 + 10
        from_ms = to_ms - int(days) * DAY_MS if request.from_ms is None else request.from_ms
        rows, code, _ = await first_that_answers(
            filler.adjusted_candidates(request.instrument),
            lambda one: one[0].fetch(
                one[1], "1d", max(0, from_ms), to_ms, patience_s=_PATIENCE_S, adjusted=True
            ),
        )
        placed: list[Candle] = []
        for row in rows:
            opens = self._trading.day_start_ms(exchange, self._trading.day_of(exchange, row[0] * 1000))
            if opens is not None:
                placed.append((opens // 1000, *row[1:]))
        expected = self._trading.days_between(exchange, max(0, from_ms), to_ms)
        found = {candle[0] * 1000 for candle in placed}
        candles = fold_days(placed, lambda at_ms: self._trading.day_of(exchange, at_ms), request.resolution)
        short = request.count is not None and request.from_ms is None and len(candles) < request.count
        if request.count is not None:
            candles = candles[-request.count :]
        first_ms = candles[0][0] * 1000 if candles else from_ms
        holes = [
            Missing(opens // 1000, closes // 1000, f"not in the answer of {code}")
            for _, (opens, closes) in expected
            if opens >= first_ms and opens not in found and closes + DAY_SETTLES_MS <= now_ms
        ]
        return HistoryAnswer(
            candles=candles,
            complete=not holes and not short,
            missing=tuple(holes[-_MOST_MISSING:]),
            sources=(code,),
        )


def _in_part(days: Sequence[Span], rows: Sequence[CoverageSpan]) -> set[int]:
    """Return the starts of those ascending days of which not all minutes are had.

    The bar that the stream made of such a day holds a part of it only.
    """
    starts = [begin for begin, _ in days]
    found: set[int] = set()
    for begin, end in without(days, spans_of((row for row in rows if row.type == MINUTES), HAVE)):
        found.update(starts[max(0, bisect_right(starts, begin) - 1) : bisect_left(starts, end)])
    return found
