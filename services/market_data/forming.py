"""One bar in the making, and the bars of one instrument that can still change. Used by `bar_builder` only."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from services.market_data.bar_grid import Span
from services.market_data.bars import MINUTE_MS, Interval
from services.market_data.records import DataIngestionFormat

NOT_EMITTED = -1
_ALONE: dict[str, tuple[str]] = {}
_NONE_RETIRED: Mapping[Interval, int] = MappingProxyType({})


class FormingBar:
    """The figures of a bar, by the event times of its trades (UTC epoch ms).

    `first_ms` and `last_ms` are the times of the trades that are open and close. `revision` is
    `NOT_EMITTED` until the bar was said to be final. `merged`: a minute that its longer bars contain.
    `changed`: it is on the list of those to be revised. `quiet`: it holds nothing but what was fetched.
    """

    __slots__ = (
        "book",
        "changed",
        "close",
        "end_ms",
        "first_ms",
        "high",
        "interval",
        "last_ms",
        "low",
        "merged",
        "open",
        "quiet",
        "revision",
        "source",
        "sources",
        "span",
        "start_ms",
        "ticks",
        "volume",
    )

    def __init__(self, book: InstrumentBook, interval: Interval, span: Span) -> None:
        self.book = book
        self.interval: Interval = interval
        self.span = span
        self.start_ms = span.start_ms
        self.end_ms = span.end_ms
        self.open = self.close = 0.0
        self.high, self.low = float("-inf"), float("inf")
        self.first_ms, self.last_ms = 1 << 62, -1
        self.volume: int | None = None
        self.ticks = 0
        self.source = ""
        self.sources: tuple[str, ...] = ()
        self.revision = NOT_EMITTED
        self.merged = self.changed = self.quiet = False

    def add(self, tick: DataIngestionFormat) -> None:
        """Add one trade, wherever in the bar its time lies; of two at one moment the later is the close."""
        self._widen(tick.timestamp, tick.timestamp, tick.price, tick.price, tick.price, tick.price)
        self._count(tick.volume, 1)
        if tick.provider_code != self.source:
            self.add_source(tick.provider_code)

    def merge(self, other: FormingBar) -> None:
        """Add all of a shorter bar."""
        self._widen(other.first_ms, other.last_ms, other.open, other.high, other.low, other.close)
        self._count(other.volume, other.ticks)
        for source in other.sources:
            if source != self.source:
                self.add_source(source)

    def restore(
        self,
        prices: tuple[float, float, float, float],
        volume: int | None,
        ticks: int,
        *,
        from_ms: int,
        upto_ms: int | None = None,
    ) -> None:
        """Add what is stored of the time from `from_ms` on, before `upto_ms` (a minute when not given)."""
        self._widen(from_ms, (upto_ms or from_ms + MINUTE_MS) - 1, *prices)
        self._count(volume, ticks)

    def become(self, other: FormingBar) -> bool:
        """Take over the figures of another; tell whether anything that is stored of the bar changed."""
        before = (self.open, self.high, self.low, self.close, self.volume)
        self.open, self.high, self.low, self.close = other.open, other.high, other.low, other.close
        self.first_ms, self.last_ms = other.first_ms, other.last_ms
        self.volume, self.ticks = other.volume, max(self.ticks, other.ticks)
        return before != (self.open, self.high, self.low, self.close, self.volume)

    def replace(
        self, prices: tuple[float, float, float, float], volume: int | None, ticks: int, revision: int
    ) -> None:
        """Become what somebody else said the bar is."""
        self.open, self.high, self.low, self.close = prices
        self.volume, self.ticks, self.revision = volume, ticks, revision
        self.first_ms = min(self.first_ms, self.end_ms - 1)
        self.last_ms = max(self.last_ms, self.start_ms)

    def add_source(self, code: str) -> None:
        """Note whose trade came last."""
        self.source = code
        if not self.sources:
            # Nearly always the only one, and the same in as many bars as there are instruments.
            self.sources = _ALONE.get(code) or _ALONE.setdefault(code, (code,))
        elif code not in self.sources:
            self.sources = (*self.sources, code)

    def _widen(
        self, first_ms: int, last_ms: int, open_: float, high: float, low: float, close: float
    ) -> None:
        if first_ms < self.first_ms:
            self.first_ms, self.open = first_ms, open_
        if last_ms >= self.last_ms:
            self.last_ms, self.close = last_ms, close
        self.high = max(self.high, high)
        self.low = min(self.low, low)

    def _count(self, volume: int | None, ticks: int) -> None:
        self.ticks += ticks
        if volume is not None:
            self.volume = volume if self.volume is None else self.volume + volume


class InstrumentBook:
    """The bars of one instrument: minutes and longer ones, oldest first by arrival; `newest` is forming.

    `heard`: a tick of it has come, now or before a restart. `latest_ms` is the start of the latest minute
    there ever was, `delayed` whether ticks come late as a rule, `retired_ms` the start of the latest longer
    bar of each interval that cannot change any more. Before `begun_ms`, its first tick ever, nothing flowed.
    """

    __slots__ = (
        "begun_ms",
        "delayed",
        "exchange",
        "heard",
        "instrument",
        "latest_ms",
        "longer",
        "minutes",
        "newest",
        "retired_ms",
    )

    def __init__(self, instrument: str, exchange: str) -> None:
        self.instrument = instrument
        self.exchange = exchange
        self.newest: FormingBar | None = None
        self.minutes: list[FormingBar] = []
        self.longer: list[FormingBar] = []
        self.heard = True
        self.begun_ms = 0
        self.latest_ms = -1
        self.delayed = False
        self.retired_ms: Mapping[Interval, int] = _NONE_RETIRED

    def find(self, interval: Interval, start_ms: int) -> FormingBar | None:
        """Return the bar of an interval that begins at `start_ms`, None when it is not here."""
        for bar in self.minutes if interval == "1m" else self.longer:
            if bar.start_ms == start_ms and bar.interval == interval:
                return bar
        return None

    def around(self, start_ms: int) -> list[FormingBar]:
        """Return the longer bars that contain the minute beginning at `start_ms`."""
        return [bar for bar in self.longer if bar.start_ms <= start_ms < bar.end_ms]

    def retire(self, bar: FormingBar) -> None:
        """Let go of a bar that cannot change any more."""
        if bar.interval == "1m":
            self.minutes.remove(bar)
        else:
            self.longer.remove(bar)
            latest_ms = max(bar.start_ms, self.retired_ms.get(bar.interval, -1))
            self.retired_ms = {**self.retired_ms, bar.interval: latest_ms}

    def newest_time_ms(self) -> int:
        """Return the time of the newest trade of the minutes here, -1 without any."""
        return max((bar.last_ms for bar in self.minutes), default=-1)
