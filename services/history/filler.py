"""Fills one window of one instrument: asks, checks, stores, notes, announces. In that order, and repeatable.

Used by the backfill and by a reader who needs what is missing now. Killed between any two steps it has
harmed nothing: the ledger still says missing, and storing the same bars again changes nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import msgspec
import structlog
from redis.asyncio import Redis

from services.errors import MarketdError
from services.history.coverage_ledger import CoverageLedger
from services.history.planner import Window, runs_of
from services.history.source import FOUND_LEAVES, PATIENCE_S, HistorySource, Offer
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import MINUTE_MS, Bar, Interval
from services.market_data.candles import Candle
from services.market_data.clock import Clock
from services.market_data.coverage import HAVE, UNAVAILABLE, Note, spans_of
from services.market_data.instruments import InstrumentMapping
from services.market_data.spans import Span, common, without
from services.market_data.trading_time import TradingTime, minutes_of
from services.pipeline.failover import NobodyAnswered, Refusal, first_that_answers
from services.pipeline.giving_way import slices
from services.storage.bar_series import read_bars
from services.storage.past_bars import write_candles
from services.storage.retention import Retention

_log = structlog.get_logger(__name__)

CLOSED = "CALENDAR"
"""The source of what is had because the exchange was closed: nothing."""
SETTLE_MS = {"1m": 120_000, "1d": 30 * MINUTE_MS}
"""How long after its end a bar is asked for; vendors have been seen to be two minutes late."""
QUIET_RUN_MS = 30 * MINUTE_MS
"""Minutes without a bar in a source's answer were without a trade, unless there are more in a row."""
_SECOND_OPINION_SHARE = 0.02
"""Where more than this part of the expected bars is absent, a second source is asked, if there is one."""
_COMPARED_EVERY = 20
_MOST_DAYS_MS = 30 * 86_400_000
_MOST_BARS_MS = 7 * 86_400_000
"""Minutes of so much time at once, of markets that close and that never do: about ten thousand bars."""
_ROWS_AT_ONCE = 1_000
_LONGEST_UNFINISHED_MS = 4 * 86_400_000
"""In a longer time something has ended."""
_DISAGREES_BY = 0.005

Announce = Callable[[str, str, str, Interval, int, int], None]
"""`(instrument, exchange, provider code, interval, from_ms, to_ms)`: bars were stored that were not there."""


class FillOutcome(msgspec.Struct, kw_only=True):
    """What became of a window. `later_s` is the wait after which it is worth another try, None when done."""

    window: Window
    written: int = 0
    expected: int = 0
    outside: int = 0
    sources: tuple[str, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    later_s: float | None = None


class FillCounters(msgspec.Struct):
    """What was done since the start. `refused` counts by `PROVIDER reason`."""

    windows: int = 0
    bars: int = 0
    outside: int = 0
    unavailable: int = 0
    compared: int = 0
    disagreed: int = 0
    refused: dict[str, int] = {}


class Filler:
    """Fetches what is missing. `candidates(instrument)` are its mappings, the best provider's first."""

    def __init__(
        self,
        *,
        redis: Redis,
        ledger: CoverageLedger,
        sources: Mapping[str, HistorySource],
        trading: TradingTime,
        clock: Clock,
        candidates: Callable[[str], Sequence[InstrumentMapping]],
        announce: Announce,
        retention: Retention,
        grid: BarGrid,
        refill: Callable[[Mapping[str, list[Bar]]], None] = lambda _: None,
    ) -> None:
        self.sources = sources
        self.counters = FillCounters()
        self._redis = redis
        self._ledger = ledger
        self._trading = trading
        self._clock = clock
        self._candidates = candidates
        self._announce = announce
        self._retention = retention
        self._grid = grid
        self._refill = refill
        self._locks: dict[tuple[str, str], asyncio.Lock] = {}

    def offers(self, instrument: str, interval: str) -> dict[str, Offer]:
        """Return what the sources of an instrument have of an interval, the best first."""
        found = {}
        for mapping in self._candidates(instrument):
            source = self.sources.get(mapping.provider_code)
            offer = source.offer(mapping, interval) if source is not None else None
            if offer is not None:
                if interval == "1m":
                    most_ms = _MOST_BARS_MS if self._trading.never_closes(mapping.exchange) else _MOST_DAYS_MS
                    offer = msgspec.structs.replace(offer, window_ms=min(offer.window_ms, most_ms))
                found[mapping.provider_code] = offer
        return found

    def adjusted_candidates(
        self, instrument: str
    ) -> list[tuple[str, tuple[HistorySource, InstrumentMapping]]]:
        """Return the sources of an instrument that have prices adjusted for dividends, the best first."""
        return [
            (mapping.provider_code, (source, mapping))
            for mapping in self._candidates(instrument)
            if (source := self.sources.get(mapping.provider_code)) is not None and source.has_adjusted
        ]

    async def fill(
        self, window: Window, *, patience_s: float = PATIENCE_S, leave: float = 0.0
    ) -> FillOutcome:
        """Fetch and store what is missing in a window. Raises `StorageError` when Redis does not take it.

        `leave` is the part of a vendor's requests of the day that is left to others.
        """
        key = (window.instrument, window.interval)
        lock = self._locks.setdefault(key, asyncio.Lock())
        try:
            async with lock:
                outcome = await self._fill(window, patience_s, leave)
        finally:
            if not lock.locked():
                self._locks.pop(key, None)
        self._count(outcome)
        return outcome

    # ---- inner ----------------------------------------------------------------------------------

    async def _fill(self, window: Window, patience_s: float, leave: float) -> FillOutcome:
        now_ms = self._clock.now_ms()
        exchange = window.instrument.partition(":")[0]
        expected = self.expected(window, now_ms)
        outcome = FillOutcome(window=window, expected=len(expected))
        if not expected:
            self._nothing_expected(window, now_ms)
            return outcome
        span = (expected[0], self._end_of(window, expected[-1]))
        candidates = self._reaching(window, span[0], now_ms)
        if not candidates:
            self._unavailable(window, list(window.spans), "", "no source has it")
            return outcome
        try:
            rows, code, refusals = await first_that_answers(
                candidates, lambda one: self._ask(one, window, span, patience_s, leave)
            )
        except NobodyAnswered as error:
            outcome.refusals = error.refusals
            if all(refusal.final for refusal in error.refusals):
                reasons = ", ".join(f"{r.provider_code} {r.reason}" for r in error.refusals)
                self._unavailable(window, list(window.spans), "", reasons)
            else:
                waits = [r.retry_after_s or 5.0 for r in error.refusals if not r.final]
                outcome.later_s = min(waits)
            return outcome
        bars, outside = await self._placed(exchange, window, rows, expected)
        outcome.sources, outcome.refusals, outcome.outside = (code,), refusals, outside
        absent = [start for start in expected if start not in bars]
        others = [candidate for candidate in candidates if candidate[0] != code]
        if others and len(absent) > _SECOND_OPINION_SHARE * len(expected):
            await self._second_opinion(others, window, span, expected, bars, outcome, leave)
        elif others and self.counters.windows % _COMPARED_EVERY == 0:
            await self._compare(others[0], window, span, bars)
        oldest_ms = now_ms - self._retention.of(exchange)
        kept = [bars[start] for start in sorted(bars) if start >= oldest_ms]
        await self._store(window, exchange, kept, now_ms)
        outcome.written = len(kept)
        self._note(window, expected, bars, outcome.sources)
        if kept:
            last_ms = self._end_of(window, kept[-1][0] * 1000)
            self._announce(window.instrument, exchange, code, window.interval, kept[0][0] * 1000, last_ms)
        return outcome

    async def _store(self, window: Window, exchange: str, candles: Sequence[Candle], now_ms: int) -> None:
        if not candles:
            return
        # Minutes make the day's bar anew; where a source gave that bar itself, its word counts.
        given = await self._given_days(window, exchange) if window.interval == "1m" else ()
        unfinished = await write_candles(
            self._redis,
            window.instrument,
            exchange,
            window.interval,
            candles,
            retention=self._retention,
            grid=self._grid,
            now_ms=now_ms,
            days_kept=given,
        )
        if unfinished:
            self._refill({window.instrument: unfinished})

    async def _given_days(self, window: Window, exchange: str) -> frozenset[int]:
        """Return the starts of the stored days within a window that a source gave."""
        try:
            rows = [row for row in await self._ledger.of(window.instrument) if row.type == "1d"]
        except MarketdError:
            return frozenset()
        had = [span for span in spans_of(rows, HAVE) if span[1] > window.from_ms and span[0] < window.to_ms]
        if not had:
            return frozenset()
        days = await read_bars(
            self._redis,
            window.instrument,
            exchange,
            "1d",
            window.from_ms - 86_400_000,
            window.to_ms,
        )
        starts = (day.start_ms for day in days)
        return frozenset(start for start in starts if any(begin <= start < end for begin, end in had))

    def due(self, window: Window, now_ms: int) -> bool:
        """Tell whether anything can be known of a window yet: not while all its days are still to come."""
        if window.interval != "1d" or window.to_ms - window.from_ms > _LONGEST_UNFINISHED_MS:
            return True
        return bool(self.expected(window, now_ms) or self._closed(window, now_ms))

    def expected(self, window: Window, now_ms: int) -> list[int]:
        """Return the starts of the bars there should be in the missing parts of a window, ascending."""
        exchange = window.instrument.partition(":")[0]
        settled_ms = now_ms - SETTLE_MS[window.interval]
        if window.interval == "1d":
            return [
                opens
                for begin, end in window.spans
                for _, (opens, closes) in self._trading.days_between(exchange, begin, end)
                if closes <= settled_ms
            ]
        return [
            start
            for begin, end in window.spans
            for start in minutes_of(self._trading.between(exchange, begin, min(end, settled_ms)))
            if start + MINUTE_MS <= settled_ms
        ]

    def _end_of(self, window: Window, start_ms: int) -> int:
        if window.interval == "1m":
            return start_ms + MINUTE_MS
        exchange = window.instrument.partition(":")[0]
        return self._trading.on(exchange, self._trading.day_of(exchange, start_ms))[-1][1]

    def _reaching(
        self, window: Window, from_ms: int, now_ms: int
    ) -> list[tuple[str, tuple[HistorySource, InstrumentMapping]]]:
        found = []
        for mapping in self._candidates(window.instrument):
            source = self.sources.get(mapping.provider_code)
            offer = source.offer(mapping, window.interval) if source is not None else None
            if source is None or offer is None:
                continue
            # A minute of grace: the window was cut a moment ago.
            if not offer.depth_ms or from_ms >= now_ms - offer.depth_ms - MINUTE_MS:
                found.append((mapping.provider_code, (source, mapping)))
        return found

    async def _ask(
        self,
        one: tuple[HistorySource, InstrumentMapping],
        window: Window,
        span: Span,
        patience_s: float,
        leave: float,
    ) -> list[Candle]:
        source, mapping = one
        return await source.fetch(mapping, window.interval, *span, patience_s=patience_s, leave=leave)

    async def _placed(
        self, exchange: str, window: Window, rows: Sequence[Candle], expected: Sequence[int]
    ) -> tuple[dict[int, Candle], int]:
        """Return the bars that belong to the window by their start, and how many belong to no session."""
        wanted = set(expected)
        inside: set[int] | None = None
        bars: dict[int, Candle] = {}
        outside = 0
        async for part in slices(rows, _ROWS_AT_ONCE):
            if window.interval == "1m":
                found = {row[0] * 1000: row for row in part if row[0] * 1000 in wanted}
                bars |= found
                if len(found) == len(part):
                    continue
                if inside is None:
                    whole = self._trading.between(exchange, window.from_ms, window.to_ms)
                    inside = set(minutes_of(whole))
                outside += sum(row[0] * 1000 not in inside and row[0] * 1000 not in wanted for row in part)
                continue
            for row in part:
                opens = self._trading.day_start_ms(exchange, self._trading.day_of(exchange, row[0] * 1000))
                if opens is None:
                    outside += 1
                elif opens in wanted:
                    bars[opens] = (opens // 1000, *row[1:])
        return bars, outside

    async def _second_opinion(
        self,
        others: Sequence[tuple[str, tuple[HistorySource, InstrumentMapping]]],
        window: Window,
        span: Span,
        expected: Sequence[int],
        bars: dict[int, Candle],
        outcome: FillOutcome,
        leave: float,
    ) -> None:
        """Let the next source fill in what the first one lacks."""
        try:
            rows, code, refusals = await first_that_answers(
                others, lambda one: self._ask(one, window, span, 5.0, leave)
            )
        except NobodyAnswered as error:
            outcome.refusals += error.refusals
            return
        more, _ = await self._placed(window.instrument.partition(":")[0], window, rows, expected)
        outcome.refusals += refusals
        self._judge(window, bars, more, code)
        fresh = {start: row for start, row in more.items() if start not in bars}
        if fresh:
            outcome.sources += (code,)
            bars.update(fresh)

    async def _compare(
        self,
        other: tuple[str, tuple[HistorySource, InstrumentMapping]],
        window: Window,
        span: Span,
        bars: dict[int, Candle],
    ) -> None:
        """Hold a sample of the bars against another source; what differs is counted and said."""
        try:
            rows, code, _ = await first_that_answers(
                [other], lambda one: self._ask(one, window, span, 5.0, FOUND_LEAVES)
            )
        except NobodyAnswered:
            return
        more, _ = await self._placed(window.instrument.partition(":")[0], window, rows, list(bars))
        self._judge(window, bars, more, code)

    def _judge(
        self, window: Window, bars: Mapping[int, Candle], others: Mapping[int, Candle], code: str
    ) -> None:
        both = bars.keys() & others.keys()
        apart = [
            start for start in both if abs(bars[start][4] - others[start][4]) > _DISAGREES_BY * bars[start][4]
        ]
        self.counters.compared += len(both)
        self.counters.disagreed += len(apart)
        if apart:
            first = min(apart)
            _log.warning(
                "history_sources_disagree",
                instrument=window.instrument,
                interval=window.interval,
                other=code,
                bars=len(apart),
                of=len(both),
                first_ms=first,
                closes=(bars[first][4], others[first][4]),
            )

    def _note(
        self,
        window: Window,
        expected: Sequence[int],
        bars: Mapping[int, Candle],
        sources: tuple[str, ...],
    ) -> None:
        """Note what is had now; a long run without bars is had from nobody."""
        step_ms = MINUTE_MS if window.interval == "1m" else 1
        absent = runs_of([start for start in expected if start not in bars], step_ms)
        lacking: list[Span] = []
        for begin, end in absent:
            if window.interval == "1d":
                lacking.append((begin, self._end_of(window, begin)))
            elif end - begin > QUIET_RUN_MS:
                lacking.append((begin, end))
        end_ms = self._end_of(window, expected[-1])
        known = [(begin, min(end, end_ms)) for begin, end in window.spans]
        had = without(known, lacking)
        code = sources[0]
        self._ledger.note(
            *(
                Note(
                    instrument=window.instrument,
                    type=window.interval,
                    state=HAVE,
                    source=code,
                    from_ms=begin,
                    to_ms=end,
                )
                for begin, end in had
            )
        )
        if lacking:
            self._unavailable(window, lacking, code, f"not in the answer of {', '.join(sources)}")

    def _unavailable(self, window: Window, spans: Sequence[Span], source: str, reason: str) -> None:
        self.counters.unavailable += len(spans)
        self._ledger.note(
            *(
                Note(
                    instrument=window.instrument,
                    type=window.interval,
                    state=UNAVAILABLE,
                    source=source,
                    reason=reason,
                    from_ms=begin,
                    to_ms=end,
                )
                for begin, end in spans
            )
        )

    def _nothing_expected(self, window: Window, now_ms: int) -> None:
        self._ledger.note(
            *(
                Note(
                    instrument=window.instrument,
                    type=window.interval,
                    state=HAVE,
                    source=CLOSED,
                    from_ms=begin,
                    to_ms=end,
                )
                for begin, end in self._closed(window, now_ms)
            )
        )

    def _closed(self, window: Window, now_ms: int) -> list[Span]:
        """Return the parts of a window that are known to hold nothing that is still to come."""
        settled_ms = (now_ms - SETTLE_MS[window.interval]) // MINUTE_MS * MINUTE_MS
        exchange = window.instrument.partition(":")[0]
        to_come: list[Span] = []
        if window.interval == "1d":
            days = self._trading.days_between(exchange, window.from_ms, window.to_ms)
            to_come = [session for _, session in days if session[1] > settled_ms]
        elif window.to_ms > settled_ms:
            # Some of it is only too young; the parts in which the exchange is closed are known all the same.
            to_come = self._trading.between(exchange, window.from_ms, window.to_ms)
        return without(common(window.spans, [(window.from_ms, settled_ms)]), to_come)

    def _count(self, outcome: FillOutcome) -> None:
        counters = self.counters
        counters.windows += 1
        counters.bars += outcome.written
        counters.outside += outcome.outside
        for refusal in outcome.refusals:
            name = f"{refusal.provider_code} {refusal.reason}"
            counters.refused[name] = counters.refused.get(name, 0) + 1
