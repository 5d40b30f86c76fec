"""Builds bars of one minute out of ticks, and longer ones out of those. Pure: it is told the time.

Beneath the bar sink, which feeds it every tick and asks it several times a second what is finished; a
gateway that only reads the streams has one as well. What it does with a tick:

* Trades are placed by their event time, not by their arrival; the first and last by time are open and close.
* A bar is finished by the clock, `GRACE_MS` after its end, whether or not another tick comes. A minute
  without a trade makes no bar.
* A tick for a bar that was finished up to `LATE_MS` ago makes a revision of it and of the longer bars it
  lies in; an older one is refused as `too_late`.
* `snapshot` (the last known value, not a trade) and `suspect` ticks make no bar. Duplicates never get here:
  the normaliser refuses them.
* An instrument delivered with a delay (flagged `delayed`, or seen to lag) has its bars finished by its own
  ticks, at the latest `DELAYED_MS` after their end. So has one whose ticks piled up while the process stood.
* Pre- and post-market make bars of one minute with their phase; longer bars are of regular sessions only.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from services.compiled import load
from services.market_data.bar_grid import CLOSING_SECOND_MS, LONGER, BarGrid, Span
from services.market_data.bars import INTERVALS, MINUTE_MS, Bar, BarStatus, Interval, parse_bar
from services.market_data.calendar import Phase
from services.market_data.flow_gaps import FlowGaps
from services.market_data.forming import NOT_EMITTED, FormingBar, InstrumentBook
from services.market_data.records import (
    FLAG_DELAYED,
    FLAG_SNAPSHOT,
    FLAG_SUSPECT,
    PROBE_EXCHANGE,
    ControlRecord,
    DataIngestionFormat,
)

GRACE_MS = 1_000
"""How long after its end a bar waits for ticks that are on their way."""
LATE_MS = 300_000
"""How long after its end a bar can still be revised."""
REVISE_EVERY_MS = 1_000
"""Late ticks that come within this time make one revision of a bar."""
DELAYED_MS = 30 * 60_000
LAGS_MS = 20_000
"""Who begins a minute so long after it should be final is delivered with a delay, whatever the flags say."""
_AGAIN_MS = 1_000
_JUST_ENDED_MS = 20_000
"""Who makes a bar of stored minutes so soon after its end may miss the last ones."""
NO_TRADE = FLAG_SNAPSHOT | FLAG_SUSPECT
"""Ticks with one of these make no bar."""
_RANK = {interval: rank for rank, interval in enumerate(INTERVALS)}
_RETIRE = len(INTERVALS)
_take_run: Callable[[BarBuilder, Mapping[str, InstrumentBook], Sequence[DataIngestionFormat]], int] | None = (
    getattr(load("runs"), "take_run", None)
)


class _Said(NamedTuple):
    """What was said of a bar before a restart."""

    revision: int
    prices: tuple[float, float, float, float]
    volume: int | None


class BarBuilder:
    """The bars of all instruments. With `follow` it finishes bars, but leaves it to others to say so."""

    def __init__(self, grid: BarGrid, *, follow: bool = False) -> None:
        self._grid = grid
        self._follow = follow
        self._books: dict[str, InstrumentBook] = {}
        self._due: dict[tuple[int, int], list[FormingBar]] = {}
        self._order: list[tuple[int, int]] = []
        self._changed: list[FormingBar] = []
        self._said: dict[tuple[str, Interval, int], _Said] = {}
        self._gaps = FlowGaps()
        self._heard: Mapping[str, int] | None = None
        self._now_ms = self._revise_ms = 0
        self.refused: dict[str, int] = {}
        """Ticks that made no bar, by reason: `snapshot suspect outside_session too_late`."""

    # ---- filling --------------------------------------------------------------------------------

    def take(self, tick: DataIngestionFormat) -> None:
        """Add one tick to its minute."""
        self.take_run((tick,))

    def take_run(self, ticks: Sequence[DataIngestionFormat]) -> int:
        """Add ticks to their minutes; return the position (ms) of a health probe among them, else 0."""
        # The hottest path of the module: a tick in order, in the minute that is forming.
        books = self._books
        probe_ms = 0
        if _take_run is not None:
            return _take_run(self, books, ticks)
        for tick in ticks:
            book = books.get(tick.symbol)
            if book is None:
                if tick.exchange == PROBE_EXCHANGE:
                    probe_ms = tick.position_ms
                    continue
                book = self._new_book(tick.symbol, tick.exchange)
            bar = book.newest
            at_ms = tick.timestamp
            if bar is None or tick.flags or not bar.last_ms <= at_ms < bar.end_ms:
                self._place(book, tick)
                continue
            price = tick.price
            bar.close = price
            bar.last_ms = at_ms
            if price > bar.high:
                bar.high = price
            elif price < bar.low:
                bar.low = price
            bar.ticks += 1
            if (volume := tick.volume) is not None:
                bar.volume = volume if bar.volume is None else bar.volume + volume
            if tick.provider_code != bar.source:
                bar.add_source(tick.provider_code)
        return probe_ms

    def note(self, record: ControlRecord) -> None:
        """Take in a control record: a gap lowers coverage, a `bar` is followed where that is asked."""
        if record.type == "gap":
            self._gaps.note(record)
        elif record.type == "bar" and self._follow:
            bar = parse_bar(record)
            if bar is not None:
                self._follow_bar(bar)

    def _new_book(self, instrument: str, exchange: str) -> InstrumentBook:
        book = self._books[instrument] = InstrumentBook(instrument, exchange)
        heard_ms = self._heard.get(instrument) if self._heard is not None else None
        book.heard = self._heard is None or heard_ms is not None
        if heard_ms is not None:
            # That minute was said before a restart: what repeats its last trade does not begin it anew.
            span = self._grid.minute_of(exchange, heard_ms)
            book.latest_ms = heard_ms - heard_ms % MINUTE_MS if span is None else span.start_ms
        return book

    def _place(self, book: InstrumentBook, tick: DataIngestionFormat) -> None:
        """Add a tick that is not simply the next one of the minute that forms."""
        flags = tick.flags
        if not book.heard:
            # The first tick there ever was of it: nothing flowed before.
            book.heard = True
            book.begun_ms = tick.timestamp
        span = self._grid.minute_of(book.exchange, tick.timestamp)
        if flags & NO_TRADE:
            self._refuse("snapshot" if flags & FLAG_SNAPSHOT else "suspect")
            if flags & FLAG_SNAPSHOT and span is not None and span.end_ms + LATE_MS <= self._now_ms:
                # Nobody looked when that was traded, and it can be repeated with every change of the book.
                book.latest_ms = max(book.latest_ms, span.start_ms)
            return
        if span is None:
            self._refuse("outside_session")
            return
        bar = book.find("1m", span.start_ms)
        if bar is None:
            due_ms = self._due_ms(span)
            if span.start_ms > book.latest_ms:
                # A minute nobody has heard of yet: it is never too late for that.
                book.latest_ms = span.start_ms
                book.delayed = bool(flags & FLAG_DELAYED) or self._now_ms - due_ms > LAGS_MS
            elif span.end_ms + LATE_MS <= self._now_ms:
                self._refuse("too_late")
                return
            bar = FormingBar(book, "1m", span)
            book.minutes.append(bar)
            self._schedule(bar, due_ms)
            if book.newest is None or bar.start_ms > book.newest.start_ms:
                book.newest = bar
        bar.add(tick)
        if bar.merged:
            for longer in book.around(bar.start_ms):
                longer.add(tick)
                self._mark(longer)
            self._mark(bar)

    def _refuse(self, reason: str) -> None:
        self.refused[reason] = self.refused.get(reason, 0) + 1

    # ---- finishing ------------------------------------------------------------------------------

    def close(self, now_ms: int, most: int = 1_000_000) -> tuple[list[Bar], bool]:
        """Finish what is due at `now_ms` (UTC epoch ms); return the bars that are new or revised.

        At most `most` are looked at; the second value tells whether more are due.
        """
        self._now_ms = now_ms
        found: list[Bar] = []
        while self._order and self._order[0][0] <= now_ms:
            if most <= 0:
                return found, True
            most -= 1
            key = self._order[0]
            waiting = self._due[key]
            bar = waiting.pop()
            if not waiting:
                # Before anything else: what is finished may put others before it.
                del self._due[key]
                heapq.heappop(self._order)
            if key[1] == _RETIRE:
                bar.book.retire(bar)
            else:
                self._finish(bar, found)
        if not self._changed or 0 < self._revise_ms - now_ms <= REVISE_EVERY_MS:
            return found, False
        while self._changed:
            if most <= 0:
                return found, True
            most -= 1
            bar = self._changed.pop()
            bar.changed = False
            bar.revision += 1
            self._say(bar, found)
        self._revise_ms = now_ms + REVISE_EVERY_MS
        return found, False

    def _finish(self, bar: FormingBar, found: list[Bar]) -> None:
        book = bar.book
        if book.delayed and not self._settled(bar):
            self._schedule(bar, self._now_ms + _AGAIN_MS)
            return
        self._minute_is_over(bar)
        self._schedule(bar, max(bar.end_ms, self._now_ms if book.delayed else 0) + LATE_MS, _RETIRE)
        if bar.revision != NOT_EMITTED or bar.quiet:
            return
        said = self._said.pop((book.instrument, bar.interval, bar.start_ms), None)
        bar.revision = 0
        if said is not None:
            bar.revision = said.revision
            if said.prices == (bar.open, bar.high, bar.low, bar.close) and said.volume == bar.volume:
                return
            bar.revision += 1
        self._say(bar, found)

    def _settled(self, bar: FormingBar) -> bool:
        """Tell whether a bar of an instrument that is delivered with a delay has all its ticks."""
        if self._now_ms >= bar.end_ms + DELAYED_MS:
            return True
        if bar.book.newest_time_ms() < self._due_ms(bar.span):
            return False
        return bar.interval == "1m" or all(
            minute.merged for minute in bar.book.minutes if bar.start_ms <= minute.start_ms < bar.end_ms
        )

    def _minute_is_over(self, minute: FormingBar) -> None:
        """Make a finished minute a part of its longer bars, once."""
        book = minute.book
        if minute.interval != "1m" or minute.merged:
            return
        minute.merged = True
        if book.newest is minute:
            book.newest = None
        if minute.span.phase is not Phase.REGULAR:
            return
        for interval in LONGER:
            span = self._grid.span_of(book.exchange, interval, minute.start_ms)
            if span is None:
                continue
            longer = book.find(interval, span.start_ms)
            if longer is None:
                if span.start_ms <= book.retired_ms.get(interval, -1):
                    # It was said with other minutes than this one, and they are not here any more.
                    continue
                longer = FormingBar(book, interval, span)
                book.longer.append(longer)
                self._schedule(longer, self._due_ms(span))
            longer.merge(minute)
            longer.quiet = False
            self._mark(longer)

    def _mark(self, bar: FormingBar) -> None:
        """Have a bar revised that was said to be final, once for all that has come until then."""
        if bar.revision != NOT_EMITTED and not bar.changed:
            bar.changed = True
            self._changed.append(bar)

    def _say(self, bar: FormingBar, found: list[Bar]) -> None:
        if not self._follow:
            found.append(self._shown(bar, BarStatus.REVISED if bar.revision else BarStatus.FINAL))

    @staticmethod
    def _due_ms(span: Span) -> int:
        return span.end_ms + GRACE_MS + (CLOSING_SECOND_MS if span.closes else 0)

    def _schedule(self, bar: FormingBar, due_ms: int, rank: int | None = None) -> None:
        key = (due_ms, _RANK[bar.interval] if rank is None else rank)
        waiting = self._due.get(key)
        if waiting is None:
            self._due[key] = [bar]
            heapq.heappush(self._order, key)
        else:
            waiting.append(bar)

    # ---- what is known --------------------------------------------------------------------------

    def forming(self, instrument: str, interval: Interval) -> Bar | None:
        """Return the bar that is forming now, None when there is none (no trade in it yet)."""
        book = self._books.get(instrument)
        if book is None:
            return None
        if interval == "1m":
            return None if book.newest is None else self._shown(book.newest, BarStatus.FORMING)
        open_minutes = [bar for bar in book.minutes if not bar.merged and bar.span.phase is Phase.REGULAR]
        unfinished = [bar for bar in book.longer if bar.interval == interval and bar.revision == NOT_EMITTED]
        latest = max((*open_minutes, *unfinished), key=lambda bar: bar.start_ms, default=None)
        if latest is None:
            return None
        span = self._grid.span_of(book.exchange, interval, latest.start_ms)
        if span is None:
            return None
        shown = FormingBar(book, interval, span)
        for part in (book.find(interval, span.start_ms), *open_minutes):
            if part is not None and span.start_ms <= part.start_ms < span.end_ms:
                shown.merge(part)
        return self._shown(shown, BarStatus.FORMING)

    def finished(self, instrument: str, interval: Interval) -> list[Bar]:
        """Return the finished bars still in memory, those of the last minutes, oldest first."""
        book = self._books.get(instrument)
        if book is None:
            return []
        bars = book.minutes if interval == "1m" else book.longer
        return [
            self._shown(bar, BarStatus.REVISED if bar.revision else BarStatus.FINAL)
            for bar in sorted(bars, key=lambda bar: bar.start_ms)
            if bar.interval == interval and bar.revision != NOT_EMITTED
        ]

    def _shown(self, bar: FormingBar, status: BarStatus) -> Bar:
        book = bar.book
        return Bar(
            instrument=book.instrument,
            exchange=book.exchange,
            interval=bar.interval,
            start_ms=bar.start_ms,
            open=bar.open,
            high=bar.high,
            low=bar.low,
            close=bar.close,
            volume=bar.volume,
            ticks=bar.ticks,
            status=status,
            revision=max(0, bar.revision),
            covered_ms=self._gaps.covered_ms(
                book.instrument,
                book.exchange,
                max(bar.start_ms, min(book.begun_ms, bar.end_ms)),
                bar.end_ms,
            ),
            sources=bar.sources,
            phase=bar.span.phase,
        )

    # ---- after a restart, and behind another builder -----------------------------------------------

    def recall_known(self, newest_ms: Mapping[str, int]) -> None:
        """Say of which instruments ticks are stored, and the time of the newest (UTC epoch ms).

        Of all others nothing flowed before their first tick.
        """
        self._heard = dict(newest_ms)

    def recall_delayed(self, instrument: str, exchange: str) -> None:
        """Say that an instrument was delivered with a delay: its own ticks finish what is recalled of it."""
        book = self._books.get(instrument)
        if book is None:
            book = self._new_book(instrument, exchange)
        book.delayed = True

    def recall_said(self, bar: Bar) -> None:
        """Remember a bar that was said before a restart: it is said again only when it differs."""
        key = (bar.instrument, bar.interval, bar.start_ms)
        known = self._said.get(key)
        if known is None or bar.revision >= known.revision:
            prices = (bar.open, bar.high, bar.low, bar.close)
            self._said[key] = _Said(bar.revision, prices, bar.volume)

    def recall_longer(self, bar: Bar, upto_ms: int, *, quiet: bool = False) -> None:
        """Begin a longer bar with what is stored of it before `upto_ms` (UTC epoch ms).

        When `quiet` it is said only if a minute of ours becomes a part of it: it may have been said long ago.
        """
        span = self._grid.span_of(bar.exchange, bar.interval, bar.start_ms)
        if span is None:
            return
        book = self._books.get(bar.instrument)
        if book is None:
            book = self._new_book(bar.instrument, bar.exchange)
        longer = FormingBar(book, bar.interval, span)
        prices = (bar.open, bar.high, bar.low, bar.close)
        longer.restore(prices, bar.volume, bar.ticks, from_ms=span.start_ms, upto_ms=upto_ms)
        longer.quiet = quiet
        book.longer.append(longer)
        self._schedule(longer, self._due_ms(span))

    def refill(self, instrument: str, minutes: Iterable[Bar]) -> None:
        """Make the longer bars of an instrument anew: of the stored minutes given, and those still here.

        `minutes` are all that are stored of the days these bars lie in. What was final before and changes is
        revised.
        """
        minutes = list(minutes)
        book = self._books.get(instrument)
        if book is None:
            if not minutes:
                return
            book = self._new_book(instrument, minutes[0].exchange)
        here = {bar.start_ms: bar for bar in book.minutes}
        stored = [bar for bar in minutes if bar.interval == "1m" and bar.start_ms not in here]
        self._begin_longer(book, stored)
        for longer in book.longer:
            whole = FormingBar(book, longer.interval, longer.span)
            for bar in stored:
                if longer.start_ms <= bar.start_ms < longer.end_ms:
                    prices = (bar.open, bar.high, bar.low, bar.close)
                    whole.restore(prices, bar.volume, bar.ticks, from_ms=bar.start_ms)
            for minute in here.values():
                if minute.merged and longer.start_ms <= minute.start_ms < longer.end_ms:
                    whole.merge(minute)
            if whole.last_ms < 0:
                continue
            if longer.become(whole) or longer.end_ms <= self._now_ms < longer.end_ms + _JUST_ENDED_MS:
                self._mark(longer)

    def _begin_longer(self, book: InstrumentBook, stored: Iterable[Bar]) -> None:
        """Begin the longer bars that form now and have no finished minute of ours yet, to be refilled."""
        now_ms, latest = self._now_ms, max(stored, key=lambda bar: bar.start_ms, default=None)
        if latest is None:
            return
        for interval in LONGER:
            span = self._grid.span_of(book.exchange, interval, latest.start_ms)
            if span is not None and span.end_ms > now_ms and book.find(interval, span.start_ms) is None:
                longer = FormingBar(book, interval, span)
                # It is said when a minute of ours becomes a part of it.
                longer.quiet = True
                book.longer.append(longer)
                self._schedule(longer, self._due_ms(span))

    def _follow_bar(self, said: Bar) -> None:
        span = self._grid.span_of(said.exchange, said.interval, said.start_ms)
        if span is None or span.start_ms != said.start_ms or span.end_ms + LATE_MS <= self._now_ms:
            return
        book = self._books.get(said.instrument)
        if book is None:
            book = self._new_book(said.instrument, said.exchange)
        bar = book.find(said.interval, said.start_ms)
        if bar is None:
            bar = FormingBar(book, said.interval, span)
            (book.minutes if said.interval == "1m" else book.longer).append(bar)
            self._schedule(bar, self._due_ms(span))
        bar.replace((said.open, said.high, said.low, said.close), said.volume, said.ticks, said.revision)
        for source in said.sources:
            bar.add_source(source)
        self._minute_is_over(bar)
