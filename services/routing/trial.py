"""A standby that is listened to: has it proved itself, and what of its volume is known. Pure.

While the present source is silent the standby's ticks are held, so that nothing it said is lost when it is
accepted. While the present source flows the two are compared: prices, and the day's cumulative volumes.
"""

from __future__ import annotations

from collections import deque

import msgspec

from services.market_data.records import FLAG_LATE, FLAG_SNAPSHOT, FLAG_SUSPECT, DataIngestionFormat
from services.routing.decision import Trial

HELD_AT_MOST = 32
"""So many ticks of a standby are kept until it is accepted; older ones are dropped and counted."""
BRACKETS_NEEDED = 3
"""So often a standby's counter must lie between two of the other's before both are taken for the same."""
_REMEMBERED = 64
_APART_MS = 1_000
"""Sources count whole seconds: only points further apart than that are known to be in order."""
_NO_NEWS = FLAG_SNAPSHOT | FLAG_LATE | FLAG_SUSPECT


class Passed(msgspec.Struct, frozen=True, gc=False):
    """The newest tick of the present source: price, event time and the day's cumulative volume at it."""

    price: float
    event_ms: int
    volume: int | None
    received_ms: int


class CounterCheck:
    """Whether two sources count the same day's volume: each one's figures must lie between the other's.

    Works on event times, so a source that is behind is compared with what the other said at that time.
    """

    def __init__(self) -> None:
        self.brackets = 0
        self.violated = False
        self._present: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)
        self._waiting: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)

    @property
    def same(self) -> bool:
        """Whether both are known to count the same."""
        return not self.violated and self.brackets >= BRACKETS_NEEDED

    def present(self, event_ms: int, volume: int) -> None:
        """Take a figure of the present source."""
        self._present.append((event_ms, volume))
        while self._waiting and self._waiting[0][0] <= event_ms - _APART_MS:
            at_ms, said = self._waiting.popleft()
            before = [figure for ms, figure in self._present if ms <= at_ms - _APART_MS]
            if said > volume or (before and said < before[-1]):
                self.violated = True
            elif before:
                self.brackets += 1

    def standby(self, event_ms: int, volume: int) -> None:
        """Take a figure of the standby."""
        self._waiting.append((event_ms, volume))


class StandbyTrial:
    """One standby of one instrument, from the moment it is listened to."""

    def __init__(self, since_s: float) -> None:
        self.since_s = since_s
        self.fresh = 0
        self.agrees = True
        self.off_bps: float | None = None
        self.counters = CounterCheck()
        self.held: deque[DataIngestionFormat] = deque(maxlen=HELD_AT_MOST)
        self.overflowed = 0
        self.refused = 0
        self._first_fresh_s: float | None = None
        self._clean_since_s: float | None = None
        self._behind = False

    def view(self, now_s: float) -> Trial:
        """Return how it does now, for the decision."""
        clean_s = 0.0 if self._clean_since_s is None else now_s - self._clean_since_s
        fresh_s = 0.0 if self._first_fresh_s is None else now_s - self._first_fresh_s
        return Trial(self.since_s, self.fresh, self.agrees, clean_s, not self._behind, fresh_s)

    def broken(self) -> None:
        """Take note that its flow, or that of the present source, was interrupted: begin anew."""
        self.fresh = 0
        self._first_fresh_s = self._clean_since_s = None
        self.held.clear()

    def listen(
        self,
        record: DataIngestionFormat,
        now_s: float,
        passed: Passed | None,
        *,
        tolerance_bps: float,
        within_ms: int,
        behind_ms: int,
        rescue: bool,
        delayed: bool,
    ) -> bool:
        """Take one tick of the standby; returns whether it speaks for it.

        `within_ms` is how old a tick may be on arrival, `behind_ms` how far behind the present source's
        newest one. In a `rescue` only what is newer than all that was let through counts, and it is held.
        A source that is not `delayed` must have caught up with the present one before it can follow it.
        """
        if record.flags & _NO_NEWS or record.received_ms - record.timestamp > within_ms:
            return False
        if passed is not None:
            if record.timestamp <= passed.event_ms - (0 if rescue else behind_ms):
                return False
            self.off_bps = abs(record.price / passed.price - 1.0) * 1e4 if passed.price else 0.0
            self.agrees = self.off_bps <= tolerance_bps
            if not self.agrees:
                self.refused += 1
                self.broken()
                return False
        self.fresh += 1
        if self._first_fresh_s is None:
            self._first_fresh_s = now_s
        if rescue:
            self.overflowed += len(self.held) == HELD_AT_MOST
            self.held.append(record)
            return True
        if self._clean_since_s is None:
            self._clean_since_s = now_s
        volume = record.cumulative_volume
        if volume is not None:
            self.counters.standby(record.timestamp, volume)
        self._behind = (
            passed is not None
            and volume is not None
            and passed.volume is not None
            and self.counters.same
            and volume < passed.volume
        ) or (passed is not None and not delayed and record.timestamp < passed.event_ms)
        return True


def first_quantity(
    record: DataIngestionFormat, passed: Passed | None, *, same_counter: bool, without_gap: bool
) -> int | None:
    """Return what was traded between the old source's last tick and the new one's first; None for unknown.

    Known only where both count the same day's volume. After a gap it is told only when both ticks lie in
    one minute: a quantity of several minutes in the bar of the last one would be wrong in each of them.
    """
    if passed is None or not same_counter or passed.volume is None or record.cumulative_volume is None:
        return None
    if not without_gap and passed.event_ms // 60_000 != record.timestamp // 60_000:
        return None
    traded = record.cumulative_volume - passed.volume
    return traded if traded >= 0 else None
