"""The chart channel: the bars of one interval per instrument, as `chart_update` messages.

What forms is read from the builder (`BarSource`) when a client's pace is due, so a client costs nothing per
tick; what is finished or revised comes as `bar` records through the broadcast like everything else, and none
of these is passed over. A frame is made once and shared by all clients of an instrument and interval.
Only bars of regular sessions are shown. Pure but for its queues: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from services.data_broadcast import Pending, Publication
from services.gateway.encoding import chart_message, single_frame, text_frame, to_json
from services.market_data.bars import Bar, Interval
from services.market_data.calendar import Phase
from services.market_data.records import ControlRecord


class BarSource(Protocol):
    """Who builds bars in this process."""

    def forming(self, instrument: str, interval: Interval) -> Bar | None:
        """Return the bar that is forming now, None when there is none."""
        ...

    def finished(self, instrument: str, interval: Interval) -> list[Bar]:
        """Return the bars finished in the last minutes, oldest first."""
        ...


class ChartFrames:
    """Makes the frames of bars; clients served one after the other get the same bytes."""

    def __init__(self, source: BarSource) -> None:
        self._source = source
        self._made: dict[tuple[str, Interval], tuple[Publication, bytes | None]] = {}

    def forming(self, instrument: str, interval: Interval, tick: Publication) -> bytes | None:
        """Return the frame of what forms since `tick` came, None when that is nothing."""
        known = self._made.get((instrument, interval))
        if known is not None and known[0] is tick:
            return known[1]
        frame = self._frame_of(self._source.forming(instrument, interval))
        self._made[instrument, interval] = (tick, frame)
        return frame

    def opening(self, instrument: str, interval: Interval) -> list[bytes]:
        """Return the frames a new watcher begins with: what was finished just now, then what forms."""
        bars = [*self._source.finished(instrument, interval), self._source.forming(instrument, interval)]
        return [frame for bar in bars if (frame := self._frame_of(bar)) is not None]

    @staticmethod
    def _frame_of(bar: Bar | None) -> bytes | None:
        if bar is None or bar.phase is not Phase.REGULAR:
            return None
        return text_frame(to_json(chart_message(bar)))


class ChartPending:
    """What one client's pace has to show of charts.

    `intervals` are the instruments watched and their interval, `opening` those not shown yet. `ticks` are
    the newest ticks of instruments whose forming bar has changed, `bars` what was finished or revised.
    """

    __slots__ = ("bars", "intervals", "opening", "ticks")

    def __init__(self) -> None:
        self.intervals: dict[str, Interval] = {}
        self.opening: dict[str, None] = {}
        self.ticks: Pending = {}
        self.bars: dict[str, list[Publication]] = {}

    @property
    def waiting(self) -> bool:
        """Whether there is anything to show."""
        return bool(self.ticks or self.bars or self.opening)

    def forget(self, instrument: str) -> None:
        """Show nothing more of an instrument."""
        for kept in (self.intervals, self.opening, self.ticks, self.bars):
            kept.pop(instrument, None)

    def drop(self) -> None:
        """Forget what waits: where nobody builds bars there is nothing to show."""
        for kept in (self.opening, self.ticks, self.bars):
            kept.clear()

    def pop(self, frames: ChartFrames, budget_bytes: int) -> list[bytes]:
        """Take frames up to about `budget_bytes`: openings, then finished bars, then forming ones."""
        taken: list[bytes] = []
        size = 0
        while self.waiting and size < budget_bytes:
            if self.opening:
                instrument = next(iter(self.opening))
                del self.opening[instrument]
                self.ticks.pop(instrument, None)
                self.bars.pop(instrument, None)
                made = frames.opening(instrument, self.intervals[instrument])
            elif self.bars:
                instrument = next(iter(self.bars))
                made = [single_frame(bar) for bar in self.bars.pop(instrument)]
            else:
                instrument, tick = self.ticks.popitem()
                frame = frames.forming(instrument, self.intervals[instrument], tick)
                made = [] if frame is None else [frame]
            taken += made
            size += sum(map(len, made))
        return taken


class ChartFeed:
    """The outlet behind one client's charts. `control` takes what else concerns those watched here alone."""

    def __init__(self, control: Callable[[Publication], None]) -> None:
        self._control = control
        self._pending: dict[str, ChartPending] = {}
        self._alone: set[str] = set()

    def watch(self, instruments: Iterable[str], pending: ChartPending, *, alone: bool) -> None:
        """Note where the bars of `instruments` wait; `alone`: the client watches no ticks of them."""
        for instrument in instruments:
            self._pending[instrument] = pending
            if alone:
                self._alone.add(instrument)
            else:
                self._alone.discard(instrument)

    def unwatch(self, instruments: Iterable[str]) -> None:
        """Forget `instruments`."""
        for instrument in instruments:
            self._pending.pop(instrument, None)
            self._alone.discard(instrument)

    def take(self, publication: Publication) -> None:
        """Note that a forming bar has changed."""
        symbol = publication.record.symbol
        pending = self._pending.get(symbol)
        if pending is not None:
            pending.ticks[symbol] = publication

    def take_control(self, publication: Publication) -> None:
        """Queue a bar of the watched interval; hand on other records of instruments watched here alone."""
        record = publication.record
        pending = self._pending.get(record.symbol)
        if not isinstance(record, ControlRecord):
            return
        if record.type != "bar":
            if record.symbol in self._alone or (pending is None and self._alone):
                self._control(publication)
        elif pending is not None and shows(record, pending.intervals.get(record.symbol)):
            pending.bars.setdefault(record.symbol, []).append(publication)


def shows(record: ControlRecord, interval: Interval | None) -> bool:
    """Tell whether a `bar` record belongs on a chart of `interval`."""
    return interval is not None and record.fields.get("i") == interval and "ph" not in record.fields
