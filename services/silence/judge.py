"""SilenceJudge: tells a broken feed from a quiet market.

Stands beside the router: reads the pulses that the providers' runtimes write, says what it finds, and never
touches a route, a connection or a record. Pure.

Bounds, with everything learned, up to 5 000 armed instruments and no witness (`benchmarks/silence.py`
measures how often they hold):

    a whole feed mute, or at 2 % of its rate           30 s
    an instrument with 5 ticks a second                mute 60 s, at 2 % 90 s, replayed 45 s
    one with a tick every two seconds                  mute 5 min, at 2 % 15 min, replayed 4 min
    one with a tick a minute                           replayed 45 min; mute only by a witness or its feed
    one with a tick every twenty minutes               only with its feed

With 25 000 instruments each is looked at every ten seconds, which is added. Nothing is found in the first
30 s of a session and 15 s of a subscription; until a quarter of an hour after the open, and on days with
special hours, it takes about three times as long.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from services.market_data.calendar import MarketCalendar
from services.silence import wording
from services.silence.feed import Feed
from services.silence.findings import FAULTS, Change, Finding, Judgement
from services.silence.memory import Memory
from services.silence.pulse import Pulse
from services.silence.rules import (
    BUDGET,
    CLEARED,
    FEED_LEAST,
    FEED_REPLAYED_SHARE,
    FEED_UNSTARTED_EXPOSURE_S,
    FEED_UNSTARTED_S,
    FEED_WITNESS_S,
    GAP_FACTOR,
    HALT_TICKS,
    LEAST_BROWN_OUT_S,
    LEAST_SILENCE_S,
    MOST_PATIENCE,
    NEEDED,
    PATIENCE,
    PERIOD_S,
    UNSTARTED_CHANCE,
    UNSTARTED_S,
    WITNESS_NATS,
    WITNESS_S,
    WITNESS_TICKS,
)
from services.silence.watch import Watch

__all__ = ["FAULTS", "Change", "Finding", "Judgement", "Pulse", "SilenceJudge"]

_CLOCK_SET_MS = 2_000
_CHANCE_S = 60.0


class SilenceJudge:
    """Judges every armed instrument of every provider, and the feed of each provider's exchange.

    Call `arm` whenever an instrument is subscribed (again: after a reconnect evidence starts afresh, what was
    learned stays), `look` once a second.
    """

    def __init__(self, calendar: MarketCalendar) -> None:
        self._calendar = calendar
        self._feeds: dict[tuple[str, str], Feed] = {}
        self._watches: dict[str, dict[str, Watch]] = {}
        """By provider and instrument."""
        self._memory = Memory()
        self._changes: list[Change] = []
        self._looked_s: float | None = None
        self._offset_ms = 0.0
        self._now_ms = 0
        self._now_s = 0.0
        self._chances: dict[tuple[str, str], tuple[float, float]] = {}

    # ---- what is expected -----------------------------------------------------------------------

    def arm(self, provider: str, instrument: str, exchange: str, pulse: Pulse, now_ms: int) -> None:
        """Expect data of an instrument from now on; again: forget evidence, keep what was learned."""
        watches = self._watches.setdefault(provider, {})
        watch = watches.get(instrument)
        if watch is not None and watch.exchange == exchange:
            self._feeds[provider, exchange].faulty.pop(instrument, None)
            watch.rearm(pulse, now_ms)
            return
        if watch is not None:
            self.disarm(provider, instrument)
        self._memory.forget_if_old(now_ms)
        watch = self._memory.recall(provider, instrument, exchange, pulse)
        watch.rearm(pulse, now_ms)
        watches[instrument] = watch
        self._join(instrument)
        feed = self._feeds.get((provider, exchange))
        if feed is None:
            feed = self._feeds[provider, exchange] = Feed(provider, exchange, self._calendar)
            self._memory.recall_feed(feed)
        feed.add(watch)

    def disarm(self, provider: str, instrument: str) -> None:
        """Expect nothing more; what was learned is remembered."""
        watch = self._watches.get(provider, {}).pop(instrument, None)
        if watch is None:
            return
        self._feeds[provider, watch.exchange].remove(watch)
        self._memory.keep(watch)
        self._join(instrument)

    def _join(self, instrument: str) -> None:
        """Let the providers of one instrument be witnesses for each other."""
        if len(self._watches) == 1:
            return
        watches = [watch for of in self._watches.values() if (watch := of.get(instrument)) is not None]
        for watch in watches:
            watch.others = tuple(other for other in watches if other is not watch)
            watch.witness_mark = watch.others_ticks()

    def _all_watches(self) -> list[Watch]:
        return [watch for of in self._watches.values() for watch in of.values()]

    # ---- looking --------------------------------------------------------------------------------

    def look(self, now_ms: int, now_s: float) -> list[Change]:
        """Look at the pulses that are due (wall clock UTC epoch ms, monotonic s); call once a second.

        Returns the faults that began or ended, of feeds before those of their instruments, and first ticks.
        """
        step_s = 1.0 if self._looked_s is None else now_s - self._looked_s
        self._looked_s = now_s
        self._follow_clock(now_ms, now_s)
        self._now_ms, self._now_s = now_ms, now_s
        share = min(1.0, step_s / PERIOD_S)
        due = sum(len(feed.watches) for feed in self._feeds.values()) * share
        if due > BUDGET:
            share *= BUDGET / due
        changes: list[Change] = []
        for feed in self._feeds.values():
            if not feed.watches:
                continue
            feed.follow_market(now_ms, now_s)
            self._changes = []
            feed.look(now_ms, now_s, math.ceil(len(feed.watches) * share), self._judge)
            self._judge_feed(feed, changes)
            changes += self._changes
        return changes

    def _follow_clock(self, now_ms: int, now_s: float) -> None:
        """When the wall clock was set, ticks are neither old nor young for that."""
        offset_ms = now_ms - now_s * 1000.0
        step_ms = offset_ms - self._offset_ms
        first = not self._now_ms
        if first or abs(step_ms) > _CLOCK_SET_MS:
            self._offset_ms = offset_ms
        if not first and abs(step_ms) > _CLOCK_SET_MS:
            for watch in self._all_watches():
                watch.clock_set(step_ms)

    # ---- an instrument --------------------------------------------------------------------------

    def _judge(self, watch: Watch, now_ms: int, now_s: float) -> None:
        before = watch.finding
        feed = self._feeds[watch.provider, watch.exchange]
        now = Finding.QUIET if feed.session is None else self._found(watch, feed, now_s)
        if now is before:
            return
        watch.finding = now
        if now.is_fault:
            watch.since_ms = self._fault_since_ms(watch, feed, now, now_ms, now_s)
            feed.faulty[watch.instrument] = watch
        else:
            watch.since_ms = now_ms
            feed.faulty.pop(watch.instrument, None)
            if before is Finding.BROWN_OUT and feed.session is not None:
                watch.patience = min(MOST_PATIENCE, watch.patience * PATIENCE)
        if now.is_fault or before.is_fault or before is Finding.PROVING:
            judgement = self._own_judgement(watch, feed)
            self._changes.append(Change(watch.provider, watch.exchange, watch.instrument, before, judgement))

    def _found(self, watch: Watch, feed: Feed, now_s: float) -> Finding:
        before = watch.finding
        if watch.replay >= NEEDED or (before is Finding.REPLAYED and watch.replay > 0.0):
            return Finding.REPLAYED
        silent = watch.beyond_usual_silence(now_s)
        if (watch.evidence >= NEEDED * watch.patience or (silent and self._is_missed(watch))) and (
            before.is_fault or not self._is_halted(watch)
        ):
            if not watch.started:
                return Finding.NEVER_STARTED
            if before is not Finding.BROWN_OUT and silent:
                return Finding.MUTE
            if watch.evidence_ticks and now_s - watch.evidence_since_s >= LEAST_BROWN_OUT_S:
                return Finding.BROWN_OUT
        if before.is_fault and (watch.evidence > CLEARED or (silent and before is Finding.MUTE)):
            return before
        if watch.started:
            return Finding.FLOWING
        if before is Finding.NEVER_STARTED or self._never_starts(watch, feed, now_s):
            return Finding.NEVER_STARTED
        return Finding.QUIET if before.is_fault else before

    def _is_missed(self, watch: Watch) -> bool:
        """Tell whether other providers bring so much of a silent instrument that it must be mute."""
        if not watch.others or watch.missed_by_witnesses() < WITNESS_NATS:
            return False
        return all(self._is_witness(other) for other in watch.others)

    def _is_halted(self, watch: Watch) -> bool:
        """Tell whether the other providers are silent too, though they should tick."""
        missing = sum(
            other.rate * silence_s
            for other in watch.others
            # What came since it was looked at counts: its own turn may come later in this call.
            if other.pulse.ticks == other.ticks
            and (silence_s := other.silence_s(self._now_s)) >= LEAST_SILENCE_S
            and self._is_witness(other)
        )
        return missing >= HALT_TICKS

    def _is_witness(self, other: Watch) -> bool:
        feed = self._feeds[other.provider, other.exchange]
        return not other.finding.is_fault and not feed.finding.is_fault

    def _never_starts(self, watch: Watch, feed: Feed, now_s: float) -> bool:
        """Tell whether an instrument that never ticked, and of which nothing is known, ought to have."""
        silence_s = now_s - watch.quiet_since_s
        if silence_s >= WITNESS_S and watch.others:
            came = watch.others_ticks() - watch.witness_mark
            begun_ms = self._now_ms - silence_s * 1000.0
            if came >= WITNESS_TICKS and any(
                other.pulse.event_ms > begun_ms and self._is_witness(other) for other in watch.others
            ):
                return True
        if silence_s < UNSTARTED_S or watch.seen > 0.0 or feed.special:
            return False
        return self._chance_of_silence(feed, now_s) < UNSTARTED_CHANCE

    def _chance_of_silence(self, feed: Feed, now_s: float) -> float:
        """Return how likely an instrument like the feed's others is silent for `UNSTARTED_S`."""
        key = (feed.provider, feed.exchange)
        known_s, chance = self._chances.get(key, (-math.inf, 1.0))
        if now_s - known_s >= _CHANCE_S:
            silent = sum(math.exp(-watch.rate * UNSTARTED_S) for watch in feed.watches)
            # Itself, which is silent, stands for the next one to come.
            chance = silent / len(feed.watches)
            self._chances[key] = (now_s, chance)
        return chance

    def _fault_since_ms(self, watch: Watch, feed: Feed, now: Finding, now_ms: int, now_s: float) -> int:
        if now is Finding.MUTE:
            return watch.pulse.received_ms
        if now is Finding.NEVER_STARTED:
            return max(watch.armed_ms, feed.session.open_ms if feed.session else 0)
        begun_s = watch.evidence_since_s if now is Finding.BROWN_OUT else now_s
        return now_ms - round((now_s - begun_s) * 1000)

    # ---- a feed ---------------------------------------------------------------------------------

    def _judge_feed(self, feed: Feed, changes: list[Change]) -> None:
        before = feed.finding
        now = Finding.QUIET if feed.session is None else self._feed_found(feed)
        if now is before:
            return
        feed.finding = now
        if now in (Finding.MUTE, Finding.BROWN_OUT):
            begun_s = feed.quiet_since_s if now is Finding.MUTE else feed.evidence_since_s
            feed.since_ms = self._now_ms - round((self._now_s - begun_s) * 1000)
        elif now is not Finding.NEVER_STARTED or feed.session is None:
            feed.since_ms = self._now_ms
        else:
            feed.since_ms = self._now_ms - round((self._now_s - feed.quiet_since_s) * 1000)
        if now.is_fault or before.is_fault or before is Finding.PROVING:
            judgement = self.provider_judgement(feed.provider, feed.exchange)
            changes.append(Change(feed.provider, feed.exchange, "", before, judgement))

    def _feed_found(self, feed: Feed) -> Finding:
        before, now_s = feed.finding, self._now_s
        silence_s = now_s - feed.quiet_since_s
        if feed.evidence >= NEEDED:
            if not feed.started:
                return Finding.NEVER_STARTED
            least_s = max(LEAST_SILENCE_S + feed.period_s, GAP_FACTOR * feed.longest_s)
            if before is not Finding.BROWN_OUT and silence_s > least_s:
                return Finding.MUTE
            if feed.evidence_ticks and now_s - feed.evidence_since_s >= LEAST_BROWN_OUT_S:
                return Finding.BROWN_OUT
        if before.is_fault and before is not Finding.REPLAYED and feed.evidence > CLEARED:
            return before
        if feed.started:
            return Finding.REPLAYED if self._is_replayed(feed) else Finding.FLOWING
        if before is Finding.NEVER_STARTED or self._feed_never_starts(feed, silence_s):
            return Finding.NEVER_STARTED
        return Finding.QUIET if before.is_fault else before

    def _is_replayed(self, feed: Feed) -> bool:
        replayed = sum(1 for watch in feed.faulty.values() if watch.finding is Finding.REPLAYED)
        if replayed < FEED_LEAST:
            return False
        ticking = sum(1 for watch in feed.watches if self._now_s - watch.quiet_since_s < 2 * FEED_WITNESS_S)
        return replayed >= FEED_REPLAYED_SHARE * ticking

    def _feed_never_starts(self, feed: Feed, silence_s: float) -> bool:
        armed = len(feed.watches)
        if armed < FEED_LEAST or feed.special:
            return False
        if silence_s >= FEED_WITNESS_S and any(
            other.exchange == feed.exchange and other is not feed and other.finding is Finding.FLOWING
            for other in self._feeds.values()
        ):
            return True
        return silence_s >= FEED_UNSTARTED_S and armed * silence_s >= FEED_UNSTARTED_EXPOSURE_S

    # ---- answers --------------------------------------------------------------------------------

    def judgement(self, provider: str, instrument: str) -> Judgement:
        """Return what is found of one instrument; of a feed's fault where its own pulse says nothing."""
        watch = self._watches.get(provider, {}).get(instrument)
        if watch is None:
            return Judgement(Finding.PROVING, 0, "it is not subscribed", 0.0)
        feed = self._feeds[provider, watch.exchange]
        own = self._own_judgement(watch, feed)
        if own.finding.is_fault or not feed.finding.is_fault:
            return own
        shared = self.provider_judgement(provider, watch.exchange)
        came_since = watch.started and watch.pulse.received_ms > feed.since_ms
        if came_since and watch.evidence < 1.0 and watch.replay < 1.0:
            return own
        return Judgement(shared.finding, shared.since_ms, f"the whole feed: {shared.reason}", shared.score)

    def _own_judgement(self, watch: Watch, feed: Feed) -> Judgement:
        finding = wording.shown_finding(watch, feed, self._now_s)
        reason = wording.reason(watch, feed, finding, self._now_ms, self._now_s, self._calendar)
        return Judgement(finding, watch.since_ms, reason, round(watch.score, 3))

    def provider_judgement(self, provider: str, exchange: str) -> Judgement:
        """Return what is found of the whole feed of an exchange."""
        feed = self._feeds.get((provider, exchange))
        if feed is None or not feed.watches:
            return Judgement(Finding.PROVING, 0, "nothing of it is subscribed", 0.0)
        reason = wording.feed_reason(feed, self._now_ms, self._now_s, self._calendar)
        return Judgement(feed.finding, feed.since_ms, reason, round(feed.evidence / NEEDED, 3))

    def alarms(self) -> dict[str, str]:
        """Return the faults of feeds, of instruments and of calendars, by a stable key, in words."""
        feeds = [feed for feed in self._feeds.values() if feed.watches]
        return wording.alarms(feeds, self._now_ms, self._now_s, self._calendar)

    def faulty(self, provider: str, exchange: str) -> int:
        """Return how many armed instruments of a feed do not bring what they should."""
        feed = self._feeds.get((provider, exchange))
        if feed is None or not feed.watches:
            return 0
        return len(feed.watches) if feed.finding.is_fault else len(feed.faulty)

    # ---- memory ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what was learned, fit for JSON."""
        return self._memory.state(self._now_ms, self._all_watches(), self._feeds.values())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what an earlier run learned, before anything is armed.

        What cannot be understood, or is older than two weeks, is ignored.
        """
        self._memory.restore(state)
