"""One instrument at one provider under watch: what is usual, and how much speaks for a fault. Pure.

`examine` runs for every armed instrument once in two seconds and must stay cheap. Durations are monotonic
seconds; the wall clock serves only to compare with the times of ticks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from services.silence.findings import Finding
from services.silence.pulse import Pulse
from services.silence.rules import (
    ARMED_S,
    BURST_FACTOR,
    CAP,
    FAULTY_LEARNING,
    GAIN,
    GAP_DECAY,
    GAP_FACTOR,
    INSTRUMENT_NATS_PER_S,
    LEARNED_SPAN_S,
    LEAST_OVERNIGHT_S,
    LEAST_SILENCE_S,
    LONGEST_HALF_LIFE_S,
    LONGEST_STEP_S,
    LOSS,
    MEMORY_TICKS,
    MOST_OVERNIGHT_S,
    NEEDED,
    OLD_BY_MS,
    REPLAY_NATS,
    SHORTEST_HALF_LIFE_S,
    STUCK_BY_MS,
    SURE_GAP_FACTOR,
    SURE_SHARE,
    SURE_SPAN_S,
    SURE_TICKS,
    WITNESS_LEAST,
    WITNESS_RATIO,
    WITNESS_SEEN,
    WITNESS_SHARE,
)

TICK_DECAY = math.log(2) / MEMORY_TICKS
FASTEST_DECAY = math.log(2) / SHORTEST_HALF_LIFE_S
SLOWEST_DECAY = math.log(2) / LONGEST_HALF_LIFE_S
_DOUBT = 1.5
"""Standard deviations by which a rate may be overestimated."""
_MOST_DISPERSION = 8.0
UNKNOWN_LAG = -1.0
NEVER_LOOKED = -1


class Watch:
    """What is known of one instrument at one provider.

    `seen` ticks in `span_s` seconds of usual business make its rate; `dispersion` is the variance of its
    counts over their mean, 1.0 where ticks are independent. `evidence` and `replay` are nats. `place` is its
    own in the list of its feed.
    """

    __slots__ = (
        "armed_ms",
        "armed_s",
        "arrivals",
        "day_seen",
        "day_span_s",
        "dispersion",
        "event_ms",
        "event_share",
        "evidence",
        "evidence_since_s",
        "evidence_ticks",
        "exchange",
        "finding",
        "first_ticks",
        "instrument",
        "longest_s",
        "looked_s",
        "others",
        "patience",
        "place",
        "provider",
        "pulse",
        "quiet_since_s",
        "replay",
        "seen",
        "session_ms",
        "since_ms",
        "span_s",
        "ticks",
        "usual_lag_ms",
        "witness_mark",
    )

    def __init__(self, provider: str, instrument: str, exchange: str, pulse: Pulse) -> None:
        self.provider = provider
        self.instrument = instrument
        self.exchange = exchange
        self.others: tuple[Watch, ...] = ()
        self.place = 0
        self.seen = 0.0
        self.span_s = 0.0
        self.day_seen = self.day_span_s = 0.0
        self.dispersion = 2.0
        self.longest_s = 0.0
        self.patience = 1.0
        self.event_share = 0.1
        self.arrivals = 10
        self.usual_lag_ms = UNKNOWN_LAG
        self.rearm(pulse, 0)

    # ---- events ---------------------------------------------------------------------------------

    def rearm(self, pulse: Pulse, now_ms: int) -> None:
        """Expect data from now on; evidence starts afresh, what was learned stays."""
        self.pulse = pulse
        self.armed_ms, self.armed_s = now_ms, 0.0
        self.finding, self.since_ms = Finding.PROVING, now_ms
        self.session_ms = NEVER_LOOKED
        self.event_ms = pulse.event_ms
        self.replay = 0.0
        self.ticks = self.first_ticks = pulse.ticks
        self.rest(0.0)

    def begin(self, session_ms: int, now_s: float) -> None:
        """Take the first look after it was armed, in a session that is open."""
        self.session_ms = session_ms
        self.armed_s = now_s
        self.rest(now_s)

    def rest(self, now_s: float) -> None:
        """Let silence begin at this moment: what came before, or did not, proves nothing."""
        self.looked_s = self.quiet_since_s = self.evidence_since_s = now_s
        self.ticks = self.pulse.ticks
        self.evidence = 0.0
        self.evidence_ticks = 0
        self.witness_mark = self.others_ticks() if self.others else 0

    def wait(self, now_s: float) -> None:
        """Expect nothing: the market is closed."""
        self.rest(now_s)
        self.armed_s = now_s
        self.first_ticks = self.ticks
        if self.session_ms == NEVER_LOOKED:
            self.session_ms = 0

    def open(self, session_ms: int, now_s: float) -> None:
        """Begin a session: what was learned before it weighs less than what will be."""
        self.wait(now_s)
        self.session_ms = session_ms
        self.replay = 0.0
        if self.day_span_s >= MOST_OVERNIGHT_S:
            # The end of a day may have been wild; its mean says more of the next one.
            self.seen = min(self.seen, self.day_seen / self.day_span_s * self.span_s)
        self.day_seen = self.day_span_s = 0.0
        self._weigh_less()

    def others_ticks(self) -> int:
        """Return how many ticks the other providers have brought of this instrument in all."""
        return sum(other.pulse.ticks for other in self.others)

    def clock_set(self, step_ms: float) -> None:
        """Hear that the wall clock was set by so much: delays look longer or shorter by it from now on."""
        if self.usual_lag_ms >= 0.0:
            self.usual_lag_ms = max(0.0, self.usual_lag_ms + step_ms)

    # ---- what is usual --------------------------------------------------------------------------

    @property
    def rate(self) -> float:
        """Ticks a second at an ordinary time of the day; 0.0 while nothing is known."""
        return self.seen / self.span_s if self.span_s >= LEARNED_SPAN_S else 0.0

    @property
    def score(self) -> float:
        """The evidence over what is needed; from 1.0 on it is a fault."""
        return max(self.evidence / self.patience, self.replay) / NEEDED

    def silence_s(self, now_s: float) -> float:
        """Return for how many seconds of open session no tick has come."""
        return now_s - self.quiet_since_s

    def beyond_usual_silence(self, now_s: float) -> bool:
        """Tell whether the silence is longer than any ordinary one."""
        silence_s = now_s - self.quiet_since_s
        return silence_s > LEAST_SILENCE_S and silence_s > GAP_FACTOR * self.longest_s

    @property
    def started(self) -> bool:
        """Whether a tick has come since it was armed and, today, since the open."""
        return self.pulse.ticks != self.first_ticks

    def missed_by_witnesses(self) -> float:
        """Return how many nats the ticks that other providers brought meanwhile speak for muteness."""
        nats = 0.0
        if self.seen < WITNESS_SEEN or not self.rate:
            return nats
        came = self.others_ticks() - self.witness_mark
        rate = sum(other.rate for other in self.others if other.seen >= WITNESS_SEEN)
        if came >= WITNESS_LEAST and rate > 0.0:
            nats = WITNESS_SHARE * came * min(WITNESS_RATIO, self.rate / rate) / self.dispersion
        return nats

    # ---- the look -------------------------------------------------------------------------------

    def examine(self, now_ms: int, now_s: float, weight: float, activity: float, learns: float) -> int:
        """Weigh what came since the last look and return how many ticks that was.

        `weight` is how busy this time of the day usually is, `activity` how busy the feed's other
        instruments are compared with that, `learns` how fast to learn (0.0 not at all).
        """
        pulse = self.pulse
        step_s = now_s - self.looked_s
        if step_s <= 0.0:
            return 0
        count = pulse.ticks - self.ticks
        if step_s > LONGEST_STEP_S:
            self.rest(now_s)
            return count
        if count:
            self._note_arrival(pulse, now_ms, now_s, count)
        self.looked_s = now_s
        exposure_s = step_s * weight
        span_s = self.span_s
        known = span_s >= LEARNED_SPAN_S
        usual = self.seen / span_s * exposure_s if known else 0.0
        if known and now_s - self.armed_s >= ARMED_S:
            seen = self.seen
            sure = seen - _DOUBT * math.sqrt(seen * self.dispersion)
            step = -GAIN * count
            if sure > 0.0:
                step += LOSS * sure / span_s * exposure_s * activity
            step /= self.dispersion
            if step > INSTRUMENT_NATS_PER_S * step_s:
                step = INSTRUMENT_NATS_PER_S * step_s
            evidence = self.evidence + step
            if evidence <= 0.0:
                self.evidence = 0.0
                self.evidence_since_s = now_s
                self.evidence_ticks = 0
            else:
                most = CAP * self.patience
                self.evidence = evidence if evidence < most else most
                self.evidence_ticks += count
                if not count and span_s >= SURE_SPAN_S:
                    silence_s = now_s - self.quiet_since_s
                    if silence_s > LEAST_SILENCE_S and silence_s > SURE_GAP_FACTOR * self.longest_s:
                        missing = SURE_SHARE * sure / span_s * weight * activity * silence_s
                        if missing >= SURE_TICKS * self.patience:
                            self.evidence = NEEDED * self.patience
        # What has not begun today must not wear away what is known of it.
        if learns and (not known or pulse.ticks != self.first_ticks):
            if self.finding.is_fault:
                learns *= FAULTY_LEARNING
            elif self.evidence > NEEDED / 3:
                return count
            self._learn(count, exposure_s, usual, usual * activity, learns, known)
        return count

    def _note_arrival(self, pulse: Pulse, now_ms: int, now_s: float, count: int) -> None:
        age_s = (now_ms - pulse.received_ms) / 1000.0
        arrived_s = now_s - age_s if 0.0 < age_s < now_s - self.looked_s else now_s
        if not self.finding.is_fault and self.started:
            gap_s = max((arrived_s - self.quiet_since_s) / count, self.looked_s - self.quiet_since_s)
            if gap_s > self.longest_s:
                self.longest_s = gap_s
        self.quiet_since_s = arrived_s
        self.ticks = pulse.ticks
        if self.others:
            self.witness_mark = self.others_ticks()
        self._compare_times(pulse, now_ms)

    def _compare_times(self, pulse: Pulse, now_ms: int) -> None:
        """Weigh whether the ticks that came are live or a snapshot replayed."""
        usual_ms = self.usual_lag_ms
        if pulse.event_ms > self.event_ms:
            self.event_ms = pulse.event_ms
            lag_ms = max(0, pulse.received_ms - pulse.event_ms)
            if usual_ms < 0.0:
                self.usual_lag_ms = float(lag_ms)
            elif lag_ms > usual_ms + OLD_BY_MS:
                self.replay = min(CAP, self.replay + REPLAY_NATS)
                return
            else:
                self.usual_lag_ms = usual_ms + (0.5 if lag_ms < usual_ms else 0.02) * (lag_ms - usual_ms)
            self.replay = 0.0
            advanced = 1.0
        else:
            advanced = 0.0
            if usual_ms >= 0.0 and now_ms - self.event_ms > usual_ms + STUCK_BY_MS:
                # Where many ticks of one time are usual (a book that moves without trades) they prove little.
                share = self.event_share
                nats = -math.log(1.0 - 0.95 * share) / (1.0 + (self.dispersion - 1.0) * (1.0 - share))
                self.replay = min(CAP, self.replay + min(REPLAY_NATS, nats))
        if self.replay < NEEDED / 3:
            self.arrivals = min(100, self.arrivals + 1)
            self.event_share += (advanced - self.event_share) / self.arrivals

    def _learn(
        self, count: int, exposure_s: float, usual: float, expected: float, speed: float, known: bool
    ) -> None:
        if known:
            most = BURST_FACTOR * usual + 3.0
            counted = count if count < most else most
        else:
            counted = count
        decay = FASTEST_DECAY
        if known:
            decay = self.seen / self.span_s * TICK_DECAY
            if decay > FASTEST_DECAY:
                decay = FASTEST_DECAY
            elif decay < SLOWEST_DECAY:
                decay = SLOWEST_DECAY
        keep = 1.0 - decay * exposure_s * speed
        self.seen = self.seen * keep + counted * speed
        self.span_s = self.span_s * keep + exposure_s * speed
        self.day_seen += counted * speed
        self.day_span_s += exposure_s * speed
        fade = GAP_DECAY * exposure_s
        self.longest_s *= 1.0 - fade
        self.patience += fade * (1.0 - self.patience)
        if expected > 0.0:
            share = expected / 100.0
            share = 0.01 if share > 0.01 else share
            excess = (count - expected) ** 2 / expected
            dispersion = self.dispersion + share * (excess - self.dispersion)
            self.dispersion = min(_MOST_DISPERSION, max(1.0, dispersion))

    # ---- memory ---------------------------------------------------------------------------------

    def state(self) -> list[float]:
        """Return what was learned, fit for JSON. Nothing is rounded: there may be many of these."""
        return [
            self.seen,
            self.span_s,
            self.dispersion,
            self.longest_s,
            self.event_share,
            self.arrivals,
            self.usual_lag_ms,
            self.patience,
            self.day_seen,
            self.day_span_s,
        ]

    def restore(self, learned: Sequence[float]) -> None:
        """Take over what an earlier run or an earlier subscription learned."""
        seen, span_s, self.dispersion, self.longest_s, self.event_share = learned[:5]
        arrivals, self.usual_lag_ms, self.patience, self.day_seen, self.day_span_s = learned[5:]
        self.arrivals = int(arrivals)
        self.seen, self.span_s = max(0.0, seen), max(0.0, span_s)
        self._weigh_less()

    def _weigh_less(self) -> None:
        enough_s = MEMORY_TICKS * self.span_s / self.seen if self.seen > 0.0 else MOST_OVERNIGHT_S
        span_s = min(MOST_OVERNIGHT_S, max(LEAST_OVERNIGHT_S, enough_s))
        if self.span_s > span_s:
            self.seen *= span_s / self.span_s
            self.span_s = span_s
