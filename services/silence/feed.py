"""The feed of one exchange at one provider: its market's hours, its instruments, and their sum. Pure.

A feed looks at its instruments in turn, so that each call costs little, and judges their sum at every call.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from services.market_data.calendar import HOURS, MarketCalendar, Phase, Session
from services.silence.findings import Finding
from services.silence.profile import IntradayProfile
from services.silence.rules import (
    CAP,
    FAULTY_LEARNING,
    FEED_NATS_PER_S,
    GAIN,
    GAP_DECAY,
    LEARNED_SPAN_S,
    LEAST_SILENCE_S,
    LONGEST_STEP_S,
    LOSS,
    NEEDED,
    OPENING_S,
    SPECIAL_WEIGHT,
    SUSPICIOUS,
    WARM_S,
    WARMING_S,
    WARMING_WEIGHT,
)
from services.silence.watch import NEVER_LOOKED, Watch

_DAY_MS = 86_400_000
_ACTIVITY_S = 60.0
_LEAST_ACTIVITY, _MOST_ACTIVITY = 0.3, 1.2
_LEVEL_S = 1_200.0
_MOST_DISPERSION = 50.0
_AFTER_CLOSE_MS = 600_000
_CLOSED_WINDOW_S = 300.0
_LEARNING = {
    Finding.MUTE: 0.0,
    Finding.NEVER_STARTED: 0.0,
    Finding.BROWN_OUT: FAULTY_LEARNING,
    Finding.REPLAYED: FAULTY_LEARNING,
}


class Feed:
    """All armed instruments of one exchange at one provider.

    `faulty` are those with a fault of their own, by key; `period_s` is how often each is looked at.
    """

    def __init__(self, provider: str, exchange: str, calendar: MarketCalendar) -> None:
        self.provider = provider
        self.exchange = exchange
        self.profile = IntradayProfile()
        self.finding, self.since_ms = Finding.PROVING, 0
        self.session: Session | None = None
        self.special = ""
        self.evidence = 0.0
        self.evidence_since_s = self.quiet_since_s = self.opened_s = 0.0
        self.evidence_ticks = 0
        self.evidence_expected = 0.0
        self.last_tick_ms = 0
        self.longest_s = 0.0
        self.dispersion = 4.0
        self.started = False
        self.faulty: dict[str, Watch] = {}
        self.period_s = 0.0
        self.usual_rate = 0.0
        self.closed_ticks = 0.0
        self.watches: list[Watch] = []
        self._calendar = calendar
        self._valid_from_ms = self._valid_until_ms = 0
        self._closed_since_ms = 0
        self._cursor = 0
        self._looked_s: float | None = None
        self._recent_ticks = self._recent_expected = 0.0
        self._level_ticks = self._level_expected = 0.0

    # ---- its instruments ------------------------------------------------------------------------

    def add(self, watch: Watch) -> None:
        """Take an armed instrument under watch."""
        if not self.watches:
            self.finding, self.since_ms, self.started = Finding.PROVING, watch.armed_ms, False
            self._looked_s = None
        watch.place = len(self.watches)
        self.watches.append(watch)

    def remove(self, watch: Watch) -> None:
        """Let an instrument go."""
        self.faulty.pop(watch.instrument, None)
        last = self.watches.pop()
        if last is not watch:
            self.watches[watch.place] = last
            last.place = watch.place

    # ---- the market -----------------------------------------------------------------------------

    def follow_market(self, now_ms: int, now_s: float) -> None:
        """Find out whether the market is open; cheap while that does not change."""
        if self._valid_from_ms <= now_ms < self._valid_until_ms:
            return
        before = self.session
        session = self._session(now_ms)
        if session != before:
            if before is not None:
                self.profile.end_of_session()
                self._closed_since_ms = now_ms
            if session is not None:
                self.opened_s = now_s - max(0.0, (now_ms - session.open_ms) / 1000.0)
            self._begin_evidence(now_s)
            self.started = False
            self.closed_ticks = 0.0
        self.session = session

    def _session(self, now_ms: int) -> Session | None:
        calendar, exchange = self._calendar, self.exchange
        day = calendar.trading_day(exchange, now_ms)
        self.special = calendar.exception(exchange, day) or ""
        if calendar.always_open:
            begin_ms = now_ms - now_ms % _DAY_MS
            self._valid_from_ms, self._valid_until_ms, self.special = begin_ms, begin_ms + _DAY_MS, ""
            return Session(begin_ms, begin_ms + _DAY_MS)
        session = calendar.session_at(exchange, now_ms)
        if session is not None and session.phase is Phase.REGULAR:
            self._valid_from_ms, self._valid_until_ms = session.open_ms, session.close_ms
            return session
        following = calendar.next_session(exchange, now_ms)
        midnight_ms = now_ms - now_ms % 3_600_000 + 3_600_000
        self._valid_from_ms = now_ms
        self._valid_until_ms = min(midnight_ms, following.open_ms) if following else midnight_ms
        return None

    # ---- the look -------------------------------------------------------------------------------

    def look(self, now_ms: int, now_s: float, quota: int, judge: Callable[[Watch, int, float], None]) -> None:
        """Examine the next `quota` instruments, handing each to `judge`, then weigh their sum."""
        looked_s, self._looked_s = self._looked_s, now_s
        step_s = now_s - looked_s if looked_s is not None else 0.0
        session = self.session
        turn = self._turn(quota)
        self.period_s = step_s * len(self.watches) / max(1, quota)
        if session is None:
            self._look_at_closed(turn, now_ms, now_s, step_s, judge)
            return
        weight = self.profile.weight(session, now_ms) * (SPECIAL_WEIGHT if self.special else 1.0)
        judged = now_s - self.opened_s >= OPENING_S
        activity = self.activity * warmth(now_s - self.opened_s)
        learns = _LEARNING.get(self.finding, 1.0) if judged and not self.special else 0.0
        opened_ms, flowing = session.open_ms, Finding.FLOWING
        ticks = known_ticks = 0
        expected = exposure_s = 0.0
        for watch in turn:
            if watch.session_ms != opened_ms:
                if watch.session_ms == NEVER_LOOKED:
                    ticks += watch.pulse.ticks - watch.first_ticks
                    watch.begin(opened_ms, now_s)
                else:
                    watch.open(opened_ms, now_s)
                judge(watch, now_ms, now_s)
                continue
            if not judged:
                # The ticks of the opening count as a start, and no more.
                ticks += watch.pulse.ticks - watch.ticks
                watch.rest(now_s)
                judge(watch, now_ms, now_s)
                continue
            before_s = watch.looked_s
            known = watch.span_s >= LEARNED_SPAN_S
            if known:
                expected += watch.seen / watch.span_s * (now_s - before_s) * weight
            count = watch.examine(now_ms, now_s, weight, activity, learns)
            if count:
                ticks += count
                if known:
                    known_ticks += count
            exposure_s += now_s - before_s
            if (
                watch.finding is not flowing
                or watch.evidence >= SUSPICIOUS
                or watch.replay >= NEEDED
                or (watch.others and now_s - watch.quiet_since_s > LEAST_SILENCE_S)
            ):
                judge(watch, now_ms, now_s)
        if ticks:
            self._note_arrival(now_ms, now_s)
        if not judged or not 0.0 < step_s <= LONGEST_STEP_S:
            self._begin_evidence(now_s)
            self.quiet_since_s = now_s
            return
        self._weigh(known_ticks, expected, step_s, now_s)
        if learns == 1.0 and exposure_s and self.evidence < NEEDED / 3:
            self.profile.observe(session, now_ms, ticks, exposure_s, len(self.watches))

    @property
    def activity(self) -> float:
        """How busy the feed has been in the last minute, compared with what is usual at this time."""
        if self._recent_expected < 5.0:
            return 1.0
        share = self._recent_ticks / self._recent_expected
        return min(_MOST_ACTIVITY, max(_LEAST_ACTIVITY, share))

    @property
    def level(self) -> float:
        """How busy today is, compared with what is usual; follows within half an hour."""
        if self._level_expected < 50.0:
            return 1.0
        return min(_MOST_ACTIVITY, max(_LEAST_ACTIVITY, self._level_ticks / self._level_expected))

    def _weigh(self, ticks: int, expected: float, step_s: float, now_s: float) -> None:
        """Add what came of all instruments, and what should have, to the evidence against the feed."""
        keep = math.exp(-step_s / _ACTIVITY_S)
        self._recent_ticks = self._recent_ticks * keep + ticks
        self._recent_expected = self._recent_expected * keep + expected
        self.usual_rate = expected / step_s
        usual = expected * self.level * warmth(now_s - self.opened_s)
        step = (LOSS * usual - GAIN * ticks) / self.dispersion
        evidence = self.evidence + min(step, FEED_NATS_PER_S * step_s)
        if evidence <= 0.0:
            self._begin_evidence(now_s)
        else:
            self.evidence = min(CAP, evidence)
            self.evidence_ticks += ticks
            self.evidence_expected += usual
        if self.finding.is_fault or self.evidence > NEEDED / 3:
            return
        keep = math.exp(-step_s / _LEVEL_S)
        self._level_ticks = self._level_ticks * keep + ticks
        self._level_expected = self._level_expected * keep + expected
        self.longest_s *= 1.0 - GAP_DECAY * step_s
        if usual > 0.0:
            share = min(0.05, usual / 20.0)
            dispersion = self.dispersion + share * ((ticks - usual) ** 2 / usual - self.dispersion)
            self.dispersion = min(_MOST_DISPERSION, max(1.0, dispersion))

    def _note_arrival(self, now_ms: int, now_s: float) -> None:
        if self.started and not self.finding.is_fault:
            self.longest_s = max(self.longest_s, now_s - self.quiet_since_s)
        self.quiet_since_s = now_s
        self.last_tick_ms = now_ms
        self.started = True

    def _look_at_closed(
        self,
        turn: list[Watch],
        now_ms: int,
        now_s: float,
        step_s: float,
        judge: Callable[[Watch, int, float], None],
    ) -> None:
        """Keep in step while the market is closed, and count what comes all the same."""
        ticks = 0
        for watch in turn:
            if watch.pulse.ticks != watch.ticks:
                if watch.pulse.event_ms > watch.event_ms and now_ms - watch.pulse.event_ms < _AFTER_CLOSE_MS:
                    ticks += watch.pulse.ticks - watch.ticks
                watch.event_ms = max(watch.event_ms, watch.pulse.event_ms)
            watch.wait(now_s)
            judge(watch, now_ms, now_s)
        self.quiet_since_s = now_s
        extended = self._calendar.session_at(self.exchange, now_ms) is not None
        if extended or self.exchange not in HOURS or now_ms - self._closed_since_ms < _AFTER_CLOSE_MS:
            ticks = 0
        self.closed_ticks = self.closed_ticks * math.exp(-step_s / _CLOSED_WINDOW_S) + ticks

    def _turn(self, quota: int) -> list[Watch]:
        watches = self.watches
        if quota >= len(watches):
            self._cursor = 0
            return watches
        begin = self._cursor if self._cursor < len(watches) else 0
        turn = watches[begin : begin + quota]
        if len(turn) < quota:
            turn += watches[: quota - len(turn)]
        self._cursor = (begin + quota) % len(watches)
        return turn

    def _begin_evidence(self, now_s: float) -> None:
        self.evidence = 0.0
        self.evidence_since_s = now_s
        self.evidence_ticks = 0
        self.evidence_expected = 0.0


def warmth(open_s: float) -> float:
    """Return which share of the usual rate to count on, so many seconds after the open."""
    if open_s >= WARM_S:
        return 1.0
    if open_s <= WARMING_S:
        return WARMING_WEIGHT
    return WARMING_WEIGHT + (1.0 - WARMING_WEIGHT) * (open_s - WARMING_S) / (WARM_S - WARMING_S)
