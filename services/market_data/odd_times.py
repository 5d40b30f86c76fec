"""What to think of an event time that is missing, or far from our own clock's.

Beneath the normaliser, for the few ticks with such a time; every other one passes it by. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import structlog

from services.market_data.instrument_state import SECOND_MS, InstrumentState
from services.market_data.normaliser_counters import NormaliserCounters
from services.market_data.quality import FAR_FUTURE_MS, FUTURE_TOLERANCE_MS, STALE_AFTER_MS
from services.market_data.records import FLAG_SKEWED, FLAG_SNAPSHOT, ProviderTick

_log = structlog.get_logger(__name__)

IST_OFFSET_MS = 19_800_000
"""How far India's clocks are ahead of UTC."""
_ZONE_TOLERANCE_MS = 60_000
ZONE_ALARM_AFTER = 100
"""So many ticks in a row that are ahead by that much are no coincidence."""
_CLAMPED_MS = 5_000
"""Where our clock is the only one, times stand still for at most so long after it was set back."""


class Timing(NamedTuple):
    """The time of a tick as it is to be taken: `raw_ms` to compare it by, `event_ms` to store it by."""

    raw_ms: int
    event_ms: int
    resolution_ms: int
    flags: int
    stale: bool


class OddTimes:
    """Judges the odd times of one provider, and raises one alarm when its time zone seems wrong.

    `suspects` counts the ticks in a row that are off by India's offset from UTC; while there are any, every
    time is to be judged here. `wall_step_ms()` is how far our clock was set since the start: times are
    believed that are right by the clock before or after.
    """

    __slots__ = ("__dict__", "__weakref__", "suspects")

    def __init__(
        self, provider_code: str, counters: NormaliserCounters, wall_step_ms: Callable[[], int]
    ) -> None:
        self.suspects = 0
        self._provider_code = provider_code
        self._counters = counters
        self._wall_step_ms = wall_step_ms
        self._behind_utc = False

    def judge(
        self, state: InstrumentState, tick: ProviderTick, received_ms: int, flags: int
    ) -> Timing | None:
        """Return the time to take for a tick received at `received_ms`; None when it is refused, counted."""
        counters = self._counters
        event_ms = received_ms if tick.event_ms is None else tick.event_ms
        raw_ms, resolution_ms = event_ms, tick.event_resolution_ms
        excused = False
        if tick.event_ms is None:
            last_ms = state.last.timestamp
            if event_ms < last_ms:
                # Only our own clock can have gone back, and nothing is late for that: a little is waited
                # for, more is followed.
                flags |= FLAG_SKEWED
                counters.note("skewed")
                if last_ms - event_ms <= _CLAMPED_MS:
                    event_ms = raw_ms = last_ms + 1
                else:
                    state.last_raw_event_ms = event_ms - 1
        elif not received_ms - STALE_AFTER_MS <= event_ms <= received_ms + FUTURE_TOLERANCE_MS:
            excused = self._was_right_before(event_ms, received_ms)
        if excused:
            counters.note("clock_stepped")
        elif event_ms > received_ms + FUTURE_TOLERANCE_MS:
            if event_ms > received_ms + FAR_FUTURE_MS:
                counters.reject("far_future")
                return None
            flags |= FLAG_SKEWED
            counters.note("skewed")
            self._watch_zone(event_ms - received_ms)
            event_ms, resolution_ms = received_ms, 1
        elif event_ms < received_ms - STALE_AFTER_MS and not flags & FLAG_SNAPSHOT:
            self._watch_zone(event_ms - received_ms)
            if self._behind_utc:
                flags |= FLAG_SKEWED
                counters.note("skewed")
                event_ms, resolution_ms = received_ms, 1
        elif self.suspects and not flags & FLAG_SNAPSHOT:
            self.suspects, self._behind_utc = 0, False
        stale = not excused and event_ms < received_ms - STALE_AFTER_MS
        return Timing(raw_ms, event_ms, resolution_ms, flags, stale)

    def _was_right_before(self, event_ms: int, received_ms: int) -> bool:
        """Tell whether a time that looks wrong now is right by our clock as it ran before it was set."""
        step_ms = self._wall_step_ms()
        before_ms = received_ms - step_ms
        return step_ms != 0 and before_ms - STALE_AFTER_MS <= event_ms <= before_ms + FUTURE_TOLERANCE_MS

    def _watch_zone(self, ahead_ms: int) -> None:
        """Raise one alarm when times are off by India's offset from UTC, tick after tick.

        Times that are behind would be refused as stale, all of them: from the alarm on the receive time
        stands in for those too.
        """
        if abs(abs(ahead_ms) - IST_OFFSET_MS) > _ZONE_TOLERANCE_MS:
            self.suspects, self._behind_utc = 0, False
            return
        self.suspects += 1
        if self.suspects == ZONE_ALARM_AFTER:
            self._behind_utc = ahead_ms < 0
            _log.error(
                "provider_time_zone_wrong",
                provider=self._provider_code,
                ahead_ms=ahead_ms,
                ticks=ZONE_ALARM_AFTER,
                remedy="Indian time taken for UTC, or shifted twice? the receive time is used instead",
            )


def time_in_order(last_ms: int, event_ms: int, resolution_ms: int, received_ms: int, *, skewed: bool) -> int:
    """Return the event time to store for a tick that is not late; `last_ms` is that of the tick before.

    A whole-second source gets the receive time when that lies in the same second, else the next free
    millisecond after the last tick, never leaving the second (there the ticks collapse).
    """
    if skewed:
        return event_ms if event_ms > last_ms or last_ms - event_ms > SECOND_MS else last_ms + 1
    if resolution_ms < SECOND_MS:
        return event_ms
    second = event_ms - event_ms % SECOND_MS
    stored = received_ms if second <= received_ms < second + SECOND_MS else second
    if stored > last_ms:
        return stored
    return min(last_ms + 1, second + SECOND_MS - 1)
