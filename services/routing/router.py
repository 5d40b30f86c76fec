"""The router: lets through one source per instrument, and carries out what `decide` says.

Stands between the providers' normalisers and the sequencer. Every tick passes `passing`, one dictionary
look-up; only an instrument that something is the matter with takes the longer way (`beside`). It decides
nothing itself, opens no connection, and says what is to be subscribed instead of subscribing it
(`take_wishes`); it never waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec
import structlog

from services.market_data.calendar import MarketCalendar, trading_day
from services.market_data.clock import Clock
from services.market_data.gaps import GapBook
from services.market_data.instruments import AssetClass, InstrumentMapping
from services.market_data.records import ControlRecord, ControlType, DataIngestionFormat, Record
from services.provider_runtime import ProviderRuntime
from services.routing.decision import (
    BY_HAND,
    HALF_MINUTE_AWAY,
    REAL_TIME,
    Action,
    Decision,
    Health,
    Route,
    allowed,
    decide,
)
from services.routing.events import RouteEvent, RouteJournal
from services.routing.history import RouteHistory
from services.routing.rules import RoutingRules, agree_bps, rescue_bps
from services.routing.trial import Passed, StandbyTrial, first_quantity
from services.silence.judge import Finding, SilenceJudge

_log = structlog.get_logger(__name__)

_ENDS_WITH_A_TICK = frozenset({HALF_MINUTE_AWAY, "refused", Finding.MUTE.value, Finding.NEVER_STARTED.value})
"""Troubles that are over with the first tick; of the others the judge must say that they are."""
_SILENT = frozenset({Finding.MUTE.value, Finding.NEVER_STARTED.value})
_GIVEN_UP_AS_SILENT = frozenset({"mute", "silent"})
"""Why connections end that answered and brought nothing, or did not even answer."""
_JUST_NOW_MS = 1_500
"""A finding of silence that is older than the newest tick by less than this has been overtaken by it."""
_LOOK_AGAIN_S = 5.0
_CHUNK = 100
"""So many instruments are looked at in one stretch of the event loop: some milliseconds."""
_NAMED_IN_LOG = 10


class Forced(msgspec.Struct, frozen=True):
    """An operator's choice: which source, until when (UTC epoch ms and monotonic s), who asked and why."""

    to: str
    until_ms: int
    until_s: float
    by: str
    why: str


class _Watch:
    """What is the matter with one instrument."""

    __slots__ = ("due_s", "said", "stale_since_ms", "trials", "trouble", "trouble_since_s")

    def __init__(self) -> None:
        self.trouble = ""
        self.trouble_since_s: float | None = None
        self.stale_since_ms: int | None = None
        self.trials: dict[str, StandbyTrial] = {}
        self.due_s = 0.0
        self.said: tuple[Action, str, tuple[str, ...]] | None = None


class Condition(msgspec.Struct):
    """What is the same for all instruments of a provider at one look; `room` is what is left of it."""

    usable: bool
    room: float
    refused: Mapping[str, str]
    delivery: str


class Router:
    """Routes every instrument of the mapping snapshot to one of its sources.

    `runtimes` are the manager's, by code. `interest` None means that every instrument is wanted.
    """

    def __init__(
        self,
        runtimes: Mapping[str, ProviderRuntime],
        *,
        clock: Clock,
        publish: Callable[[Record], None],
        calendar: MarketCalendar,
        judge: SilenceJudge | None = None,
        rules: RoutingRules | None = None,
        journal: RouteJournal | None = None,
    ) -> None:
        self._runtimes = runtimes
        self._clock = clock
        self._publish = publish
        self._calendar = calendar
        self._judge = judge
        self.rules = rules or RoutingRules()
        self.journal = journal or RouteJournal()
        self.candidates: dict[str, tuple[InstrumentMapping, ...]] = {}
        self.active: dict[str, str] = {}
        self.passing: dict[str, str] = {}
        """The routes of those instruments that nothing is the matter with; read on the hot path."""
        self.interest: frozenset[str] | None = None
        self.gaps = GapBook()
        self._left: dict[str, tuple[str, str]] = {}
        self._watches: dict[str, _Watch] = {}
        self._histories: dict[str, RouteHistory] = {}
        self._away: dict[str, float] = {}
        self._forced: dict[str, Forced] = {}
        self._floors: dict[str, int] = {}
        self._rebase: dict[str, tuple[Passed, bool, bool]] = {}
        self._same_counters: dict[str, tuple[frozenset[str], Any]] = {}
        self._lingering: dict[tuple[str, str, str], float] = {}
        self._conditions: dict[str, Condition] = {}
        self._wishes: dict[str, dict[str, bool]] = {}
        self._switched: Counter[tuple[str, str, str]] = Counter()
        self._switched_first: list[str] = []
        self.covered = 0
        """Ticks of a new source that were not let through, because the old one had delivered that time."""

    # ---- the mappings and the interest ----------------------------------------------------------

    def load(self, mappings: Iterable[InstrumentMapping]) -> None:
        """Take over the mappings of a snapshot; routes stay as they are until they are looked at."""
        candidates: dict[str, list[InstrumentMapping]] = {}
        for mapping in mappings:
            candidates.setdefault(mapping.instrument, []).append(mapping)
        self.candidates = {
            key: tuple(sorted(rows, key=lambda row: (not row.is_primary, row.priority, row.provider_code)))
            for key, rows in candidates.items()
        }
        for gone in self._histories.keys() - self.candidates.keys():
            del self._histories[gone]
            self._forced.pop(gone, None)
            self._same_counters.pop(gone, None)

    def flowed(self) -> dict[str, str]:
        """Return the provider symbol behind every route over which data flows; for `leave_gone`."""
        found = {}
        for instrument, code in self.active.items():
            runtime = self._runtimes[code]
            symbol = runtime.symbol_of.get(instrument)
            if symbol is not None and symbol in runtime.flowing:
                found[instrument] = symbol
        return found

    def leave_gone(self, flowed: Mapping[str, str], codes: set[str]) -> None:
        """Give up the routes whose mapping is gone, and open the gaps of what flowed over them."""
        now_ms = self._clock.now_ms()
        for instrument, code in list(self.active.items()):
            rows = self.candidates.get(instrument, ())
            row = next((row for row in rows if row.provider_code == code), None)
            if row is None:
                reason = "mapping_removed" if code in codes else "provider_deactivated"
                self._leave(instrument)
                if rows:
                    self._left[instrument] = (code, reason)
                if instrument in flowed:
                    self.gaps.lost(instrument, now_ms, reason)
            elif instrument in flowed and row.provider_symbol not in self._runtimes[code].flowing:
                self.gaps.lost(instrument, now_ms, "remapped")

    def uninterested(self, instruments: Iterable[str]) -> None:
        """Give up the routes of what nobody wants any more."""
        now_ms = self._clock.now_ms()
        for instrument in instruments:
            code = self.active.get(instrument, "")
            self._leave(instrument)
            runtime = self._runtimes.get(code)
            if runtime is not None and runtime.symbol_of.get(instrument) in runtime.flowing:
                # What is traded until somebody wants it again is not seen.
                self.gaps.lost(instrument, now_ms, "not_subscribed")

    def _leave(self, instrument: str) -> None:
        self.active.pop(instrument, None)
        self.passing.pop(instrument, None)
        self._watches.pop(instrument, None)
        self._away.pop(instrument, None)
        self._floors.pop(instrument, None)

    def wanted(self, instrument: str) -> bool:
        """Tell whether somebody wants the instrument."""
        return self.interest is None or instrument in self.interest

    def forget(self) -> None:
        """Forget what is not delivered now: another daemon delivers, and tells of its own gaps."""
        self.gaps = GapBook()
        for instrument in list(self._watches):
            self._unwatch(instrument)

    # ---- what is subscribed ---------------------------------------------------------------------

    def needed(self) -> dict[str, set[str]]:
        """Return the symbols to be subscribed, by provider code."""
        needed: dict[str, set[str]] = {code: set() for code in self._runtimes}
        for instrument, rows in self.candidates.items():
            if self.wanted(instrument):
                for row in self.serving(instrument, rows):
                    needed[row.provider_code].add(row.provider_symbol)
        return needed

    def serving(self, instrument: str, rows: tuple[InstrumentMapping, ...]) -> list[InstrumentMapping]:
        """Return the mappings to be subscribed: the first in the order, who serves, and who may have to."""
        watch = self._watches.get(instrument)
        serving = {rows[0].provider_code, self.active.get(instrument)}
        if watch is not None:
            serving.update(watch.trials)
        return [
            row
            for row in rows
            if row.provider_code in serving
            or (instrument, row.provider_code, row.provider_symbol) in self._lingering
        ]

    def subscribe(self, instrument: str) -> None:
        """Wish for all that an instrument needs; what is subscribed already costs nothing."""
        rows = self.candidates.get(instrument)
        if rows and self.wanted(instrument):
            for row in self.serving(instrument, rows):
                self._wish(row.provider_code, row.provider_symbol, want=True)

    def take_wishes(self) -> dict[str, dict[str, bool]]:
        """Return what is to be subscribed (True) or let go (False) since the last time, by provider."""
        wishes, self._wishes = self._wishes, {}
        return wishes

    def _wish(self, code: str, symbol: str, *, want: bool) -> None:
        self._wishes.setdefault(code, {})[symbol] = want

    def _let_linger(self, instrument: str, code: str, now_s: float) -> None:
        rows = self.candidates.get(instrument, ())
        row = next((row for row in rows if row.provider_code == code), None)
        if row is not None and row is not rows[0]:
            self._lingering[(instrument, code, row.provider_symbol)] = now_s + self.rules.linger_s

    def _let_go_of_lingering(self, now_s: float) -> None:
        for key in [key for key, until_s in self._lingering.items() if until_s <= now_s]:
            del self._lingering[key]
            instrument, code, symbol = key
            watch = self._watches.get(instrument)
            runtime = self._runtimes.get(code)
            row = runtime.instrument_of.get(symbol) if runtime is not None else None
            if row is not None and row.instrument != instrument:
                continue
            if self.active.get(instrument) == code or (watch is not None and code in watch.trials):
                continue
            self._wish(code, symbol, want=False)

    def places(self, instrument: str) -> list[str]:
        """Return at which providers an instrument would take a subscription just now."""
        rows = self.candidates.get(instrument, ())
        if not rows:
            return []
        best = self.active.get(instrument) or next(
            (
                row.provider_code
                for at, row in enumerate(rows)
                if self._may_serve(row, at) and self._conditions[row.provider_code].usable
            ),
            rows[0].provider_code,
        )
        return list(dict.fromkeys((rows[0].provider_code, best)))

    def _may_serve(self, row: InstrumentMapping, position: int) -> bool:
        return allowed(
            Health(
                row.provider_code,
                delivery=self._delivery(row.instrument, row.provider_code),
                allow_delayed=row.allow_delayed,
            ),
            position,
        )

    # ---- looking at the routes ------------------------------------------------------------------

    def refresh_conditions(self) -> None:
        """Take the providers' conditions, which hold for all their instruments until the next look."""
        conditions = {}
        for code, runtime in self._runtimes.items():
            provider = runtime.provider
            capacity = None if provider is None else provider.capacity
            conditions[code] = Condition(
                usable=runtime.usable,
                room=float("inf")
                if provider is None or capacity is None
                else capacity - len(provider.wanted),
                refused={} if provider is None else provider.refused,
                delivery=runtime.delivery,
            )
        self._conditions = conditions

    def look_at(self, instruments: Iterable[str]) -> Iterator[None]:
        """Decide about each of `instruments`; yields now and then, so that the event loop can breathe."""
        for count, instrument in enumerate(list(instruments), start=1):
            self.consider(instrument)
            if count % _CHUNK == 0:
                yield

    def look(self) -> Iterator[None]:
        """Look at everything that something may be the matter with; once a second, in pieces."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.now_ms()
        self.refresh_conditions()
        found: set[str] = set()
        if self._judge is not None:
            for change in self._judge.look(now_ms, now_s):
                found.update(self._concerned(change.provider, change.exchange, change.instrument))
        self._end_forced(now_s, found)
        found.update(name for name, watch in self._watches.items() if watch.due_s <= now_s)
        found.update(name for name, due_s in self._away.items() if due_s <= now_s)
        yield from self.look_at(found)
        self._let_go_of_lingering(now_s)
        self.say_switched()

    def _concerned(self, provider: str, exchange: str, instrument: str) -> Iterable[str]:
        if instrument:
            return (instrument,)
        prefix = f"{exchange}:"
        return [
            name
            for name, code in self.active.items()
            if name.startswith(prefix) and (code == provider or name in self._away)
        ]

    def consider(self, instrument: str) -> None:
        """Decide about one instrument, and carry that out."""
        rows = self.candidates.get(instrument)
        if not rows or not self.wanted(instrument):
            return
        now_s = self._clock.monotonic_s()
        watch = self._watches.get(instrument)
        candidates = [self._health(row, watch, now_s) for row in rows]
        current = self.active.get(instrument)
        present = next((found for found in candidates if found.provider == current), None)
        if present is not None:
            watch = self._note_trouble(instrument, present, watch, now_s)
        history = self._histories.get(instrument, RouteHistory())
        forced = self._forced.get(instrument)
        decision = decide(
            candidates,
            Route(
                current,
                history,
                watch.trouble_since_s if watch is not None else None,
                self._expected(rows[0]),
                forced.to if forced is not None else None,
            ),
            now_s,
            self.rules,
        )
        self._carry_out(instrument, decision, watch, now_s)

    def _health(self, row: InstrumentMapping, watch: _Watch | None, now_s: float) -> Health:
        code = row.provider_code
        condition = self._conditions.get(code)
        if condition is None:
            return Health(code, usable=False)
        trial = watch.trials.get(code) if watch is not None else None
        return Health(
            code,
            condition.usable,
            self._trouble(row, condition, watch),
            row.delivery or condition.delivery,
            row.allow_delayed,
            condition.room >= 1,
            trial.view(now_s) if trial is not None else None,
        )

    def _trouble(self, row: InstrumentMapping, condition: Condition, watch: _Watch | None) -> str:
        """Return why a source does not deliver an instrument although its provider works; else nothing."""
        if row.provider_symbol in condition.refused:
            return "refused"
        runtime = self._runtimes[row.provider_code]
        present = watch is not None and self.active.get(row.instrument) == row.provider_code
        before = watch.trouble if watch is not None and present else ""
        if before in _ENDS_WITH_A_TICK and row.provider_symbol not in runtime.flowing:
            # It tries again, but what it lost is not back.
            return before
        if self._judge is None or not runtime.is_armed(row.provider_symbol):
            return ""
        finding = self._judge.judgement(row.provider_code, row.instrument).finding
        if not finding.is_fault:
            # Connected anew, and nothing has come yet: it is as silent as before.
            return before if before in _SILENT and finding is Finding.PROVING else ""
        pulse = runtime.pulses.get(row.provider_symbol)
        if finding.value in _SILENT and pulse is not None:
            age_ms = self._clock.now_ms() - pulse.received_ms
            if age_ms < _JUST_NOW_MS:
                return ""
        return finding.value

    def _expected(self, row: InstrumentMapping) -> bool:
        return self._calendar.in_session(row.exchange, self._clock.now_ms())

    def _note_trouble(
        self, instrument: str, present: Health, watch: _Watch | None, now_s: float
    ) -> _Watch | None:
        """Begin or end the trouble of the present source, as it is now."""
        if present.well:
            if watch is None or not watch.trouble:
                return watch
            runtime = self._runtimes[present.provider]
            flows = runtime.symbol_of.get(instrument) in runtime.flowing
            if watch.trouble not in _ENDS_WITH_A_TICK or (flows and watch.stale_since_ms is None):
                self._end_trouble(instrument, watch, self._clock.now_ms())
            return self._watches.get(instrument)
        reason = present.trouble or HALF_MINUTE_AWAY
        if watch is None:
            watch = self._watch(instrument)
        if not watch.trouble:
            watch.trouble, watch.trouble_since_s = reason, now_s
            for trial in watch.trials.values():
                trial.broken()
            runtime = self._runtimes[present.provider]
            symbol = runtime.symbol_of.get(instrument, "")
            pulse = runtime.pulses.get(symbol)
            if present.trouble and pulse is not None and pulse.received_ms and self._expected_of(instrument):
                since_ms = pulse.received_ms
                if self._judge is not None and reason not in _ENDS_WITH_A_TICK:
                    since_ms = self._judge.judgement(present.provider, instrument).since_ms
                self.gaps.lost(instrument, since_ms, reason)
            elif symbol not in runtime.flowing and self._passed(instrument, present.provider) is not None:
                self.gaps.lost(instrument, self._clock.now_ms(), reason)
        return watch

    def _expected_of(self, instrument: str) -> bool:
        rows = self.candidates.get(instrument)
        return bool(rows) and self._expected(rows[0]) if rows else False

    # ---- carrying out ---------------------------------------------------------------------------

    def _carry_out(self, instrument: str, decision: Decision, watch: _Watch | None, now_s: float) -> None:
        action = decision.action
        if action is Action.START and decision.to is not None:
            self._start(instrument, decision.to, decision.reason)
        elif action in (Action.SWITCH, Action.FAIL_BACK) and decision.to is not None and watch is not None:
            self._switch(instrument, decision, watch, now_s)
        elif action in (Action.WARM_UP, Action.STALE):
            watch = watch or self._watch(instrument)
            self._warm_up(instrument, decision, watch, now_s)
            if action is Action.STALE and watch.stale_since_ms is None:
                self._declare_stale(instrument, decision, watch)
            watch.due_s = now_s + (_LOOK_AGAIN_S if action is Action.STALE and not decision.warm else 0.5)
        else:
            self._keep(instrument, decision, watch, now_s)

    def _keep(self, instrument: str, decision: Decision, watch: _Watch | None, now_s: float) -> None:
        if instrument in self._away:
            self._away[instrument] = now_s + _LOOK_AGAIN_S
        if watch is None:
            return
        if watch.trouble or watch.stale_since_ms is not None:
            watch.due_s = now_s + 1.0
            self._note(instrument, decision, watch)
            return
        self._unwatch(instrument)

    def _start(self, instrument: str, code: str, reason: str) -> None:
        """Take a first source; after a mapping was removed that is a switch."""
        previous, left_reason = self._left.pop(instrument, (None, reason))
        rows = self.candidates[instrument]
        row = next(row for row in rows if row.provider_code == code)
        self.active[instrument] = code
        self._set_away(instrument, code)
        now_ms = self._clock.now_ms()
        runtime = self._runtimes[code]
        for served in {rows[0].provider_code: rows[0], code: row}.values():
            self._wish(served.provider_code, served.provider_symbol, want=True)
        if row.provider_symbol in runtime.flowing:
            self._close_gap(row, now_ms)
        elif previous is not None:
            self.gaps.lost(instrument, now_ms, left_reason)
        if instrument not in self._watches:
            self.passing[instrument] = code
        if previous is None or previous == code:
            if code != rows[0].provider_code:
                self._add_event(instrument, Action.START.value, "", code, reason)
            return
        self._control("switched", row, code, {"from_src": previous, "to_src": code, "reason": left_reason})
        self._tally(instrument, previous, code, left_reason)
        self._add_event(instrument, Action.SWITCH.value, previous, code, left_reason)
        self._release_old(instrument, previous)

    def _release_old(self, instrument: str, code: str) -> None:
        runtime = self._runtimes.get(code)
        symbol = runtime.symbol_of.get(instrument) if runtime is not None else None
        if symbol is not None and code != self.candidates[instrument][0].provider_code:
            self._wish(code, symbol, want=False)

    def _warm_up(self, instrument: str, decision: Decision, watch: _Watch, now_s: float) -> None:
        for code in decision.warm:
            if code in watch.trials:
                continue
            row = next((row for row in self.candidates[instrument] if row.provider_code == code), None)
            if row is None:
                continue
            watch.trials[code] = StandbyTrial(now_s)
            self._conditions[code].room -= 1
            self._lingering.pop((instrument, code, row.provider_symbol), None)
            self._wish(code, row.provider_symbol, want=True)
        self._note(instrument, decision, watch)

    def _note(self, instrument: str, decision: Decision, watch: _Watch) -> None:
        said = (decision.action, decision.reason, decision.warm)
        if said == watch.said or decision.action is Action.STALE:
            return
        watch.said = said
        details = {"standbys": list(decision.warm)} if decision.warm else {}
        current = self.active.get(instrument, "")
        to = decision.warm[-1] if decision.warm else ""
        self._add_event(instrument, decision.action.value, current, to, decision.reason, **details)

    def _declare_stale(self, instrument: str, decision: Decision, watch: _Watch) -> None:
        now_ms = self._clock.now_ms()
        code = self.active[instrument]
        row = self.candidates[instrument][0]
        passed = self._passed(instrument, code)
        if passed is None or watch.trouble not in _ENDS_WITH_A_TICK:
            # Nothing has ever come that could be out of date, or something still comes.
            return
        watch.stale_since_ms = now_ms
        fields: dict[str, str | int] = {
            "reason": decision.reason,
            "age_ms": max(0, now_ms - (passed.received_ms or passed.event_ms)),
        }
        self._control("stale", row, code, fields)
        self._add_event(instrument, Action.STALE.value, code, "", decision.reason, **self._why(watch, fields))

    def _switch(self, instrument: str, decision: Decision, watch: _Watch, now_s: float) -> None:
        """Go over to a source that has proved itself; what it said meanwhile follows at once."""
        to, previous = decision.to, self.active[instrument]
        assert to is not None  # noqa: S101 - both callers looked
        trial = watch.trials.pop(to)
        row = next(row for row in self.candidates[instrument] if row.provider_code == to)
        passed = self._passed(instrument, previous)
        rescue = decision.action is Action.SWITCH
        held = list(trial.held)
        now_ms = self._clock.now_ms()
        begins_ms = held[0].received_ms if held else now_ms
        gap = self.gaps.open_gap(instrument)
        if not self._close_gap(row, begins_ms):
            gap = None
        self._control("switched", row, to, {"from_src": previous, "to_src": to, "reason": decision.reason})
        if watch.stale_since_ms is not None:
            self._resume(row, to, watch)
        history = self._histories.get(instrument, RouteHistory())
        failed = rescue and previous != to
        self._histories[instrument] = history.switched(previous, now_s, self.rules, failed=failed)
        self.active[instrument] = to
        self._set_away(instrument, to)
        details: dict[str, Any] = {"warmed_s": round(now_s - trial.since_s, 3), "fresh_ticks": trial.fresh}
        if trial.off_bps is not None:
            details["off_bps"] = round(trial.off_bps, 2)
        if gap is not None:
            details["gap_ms"] = max(0, begins_ms - gap[0])
        same = self._counters_are_same(instrument, previous, to, trial, now_ms)
        details["volume"] = (
            "known" if same and passed is not None and passed.volume is not None else "unknown"
        )
        self._add_event(instrument, decision.action.value, previous, to, decision.reason, **details)
        self._tally(instrument, previous, to, decision.reason)
        for standby in watch.trials:
            self._let_linger(instrument, standby, now_s)
        self._let_linger(instrument, previous, now_s)
        del self._watches[instrument]
        self._floors.pop(instrument, None)
        if passed is not None:
            self._floors[instrument] = passed.event_ms
            self._rebase[instrument] = (passed, same, gap is None)
        for record in held:
            if self._first_after_switch(instrument, record):
                self._runtimes[to].let_through(record)
                self._publish(record)
        if instrument not in self._floors:
            self.passing[instrument] = to

    # ---- the longer way of a tick ---------------------------------------------------------------

    def beside(self, runtime: ProviderRuntime, record: DataIngestionFormat) -> bool:
        """Tell whether to let a tick through whose instrument is not `passing` to its provider.

        What this tick decides is carried out before it is let through.
        """
        instrument, code = record.symbol, runtime.entry.code
        watch = self._watches.get(instrument)
        if self.active.get(instrument) == code:
            if self._of_present(instrument, code, record, watch):
                return True
            runtime.standby += 1
            return False
        trial = watch.trials.get(code) if watch is not None else None
        if watch is None or trial is None:
            runtime.standby += 1
            return False
        return self._of_standby(runtime, record, watch, trial)

    def _of_present(
        self, instrument: str, code: str, record: DataIngestionFormat, watch: _Watch | None
    ) -> bool:
        if instrument in self._floors and not self._first_after_switch(instrument, record):
            return False
        if watch is None:
            self.passing[instrument] = code
            return True
        if watch.trouble in _ENDS_WITH_A_TICK:
            self._end_trouble(instrument, watch, record.received_ms)
        volume = record.cumulative_volume
        if volume is not None:
            for trial in watch.trials.values():
                trial.counters.present(record.timestamp, volume)
        return True

    def _of_standby(
        self, runtime: ProviderRuntime, record: DataIngestionFormat, watch: _Watch, trial: StandbyTrial
    ) -> bool:
        instrument, code, rules = record.symbol, runtime.entry.code, self.rules
        current = self.active.get(instrument, "")
        now_s = self._clock.monotonic_s()
        row = runtime.instrument_of[record.provider_symbol]
        passed = self._passed(instrument, current)
        delayed = self._delivery(instrument, code) != REAL_TIME
        unlike = delayed or self._delivery(instrument, current) != REAL_TIME
        rescue = bool(watch.trouble)
        runtime.standby += 1
        speaks = trial.listen(
            record,
            now_s,
            passed,
            tolerance_bps=self._tolerance_bps(row.asset_class, passed, rescue=rescue, delayed=unlike),
            within_ms=round(1000 * (rules.delayed_within_s if delayed else rules.fresh_within_s)),
            behind_ms=round(1000 * (rules.delayed_within_s if unlike else rules.behind_at_most_s)),
            rescue=rescue,
            delayed=unlike,
        )
        if not speaks:
            return False
        view = trial.view(now_s)
        if not rescue and not view.follows(rules):
            return False
        self.consider(instrument)
        if self.active.get(instrument) != code:
            return False
        # In a rescue this tick was held with those before it, and has been let through with them.
        if rescue or not self._of_present(instrument, code, record, self._watches.get(instrument)):
            return False
        runtime.standby -= 1
        return True

    def _tolerance_bps(
        self, kind: AssetClass, passed: Passed | None, *, rescue: bool, delayed: bool
    ) -> float:
        if not rescue or passed is None:
            return agree_bps(self.rules, kind, delayed=delayed)
        age_s = (self._clock.now_ms() - passed.received_ms) / 1000
        return rescue_bps(self.rules, kind, age_s, delayed=delayed)

    def _first_after_switch(self, instrument: str, record: DataIngestionFormat) -> bool:
        """Tell whether a tick of a new source says something new; the first that does gets its quantity."""
        floor_ms = self._floors.get(instrument)
        if floor_ms is None:
            return True
        if record.timestamp < floor_ms:
            self.covered += 1
            return False
        del self._floors[instrument]
        passed, same, without_gap = self._rebase.pop(instrument)
        record.volume = first_quantity(record, passed, same_counter=same, without_gap=without_gap)
        return True

    # ---- what flows -----------------------------------------------------------------------------

    def lost(self, runtime: ProviderRuntime, symbols: Iterable[str], since_ms: int, reason: str) -> None:
        """Take note that a connection that carried `symbols` has ended."""
        code = runtime.entry.code
        for symbol in symbols:
            runtime.flowing.discard(symbol)
            mapping = runtime.instrument_of.get(symbol)
            if mapping is None:
                continue
            instrument = mapping.instrument
            if self._judge is not None and runtime.disarm(symbol):
                self._judge.disarm(code, instrument)
            watch = self._watches.get(instrument)
            if self.active.get(instrument) == code:
                self.gaps.lost(instrument, since_ms, reason)
                if reason in _GIVEN_UP_AS_SILENT:
                    # A connection that was left because it brought nothing is not waited for half a minute.
                    watch = watch or self._watch(instrument)
                    if not watch.trouble:
                        watch.trouble, watch.trouble_since_s = Finding.MUTE.value, self._clock.monotonic_s()
            if watch is not None and (self.active.get(instrument) == code or code in watch.trials):
                for trial in watch.trials.values():
                    trial.broken()

    def restored(self, runtime: ProviderRuntime, symbols: Iterable[str], at_ms: int) -> None:
        """Take note that the data of `symbols` begins, or begins again."""
        symbols = list(symbols)
        code, now_ms = runtime.entry.code, self._clock.now_ms()
        runtime.normaliser.rebase(symbols)
        runtime.flowing.update(symbols)
        for symbol in symbols:
            mapping = runtime.instrument_of.get(symbol)
            if mapping is None:
                continue
            if self._judge is not None:
                pulse = runtime.arm(symbol)
                self._judge.arm(code, mapping.instrument, mapping.exchange, pulse, now_ms)
            watch = self._watches.get(mapping.instrument)
            silent = watch is not None and watch.trouble in _SILENT
            if self.active.get(mapping.instrument) == code and not silent:
                self._close_gap(mapping, at_ms)

    def gone(self, runtime: ProviderRuntime) -> None:
        """Take note that a provider is no more: nothing flows from it, and nothing is expected of it."""
        flowing = list(runtime.flowing)
        self.lost(runtime, flowing, self._clock.now_ms(), "provider_removed")
        self.let_go(runtime, list(runtime.armed))

    def disarm_gone(self, runtime: ProviderRuntime, rows: Iterable[InstrumentMapping]) -> None:
        """Expect nothing more of symbols that are not among `rows`, which the runtime is about to load."""
        kept = {row.provider_symbol: row.instrument for row in rows}
        for symbol, mapping in runtime.instrument_of.items():
            gone = kept.get(symbol) != mapping.instrument
            if gone and self._judge is not None and runtime.disarm(symbol):
                self._judge.disarm(runtime.entry.code, mapping.instrument)

    def let_go(self, runtime: ProviderRuntime, symbols: Iterable[str]) -> None:
        """Take note that nothing more is expected of `symbols`."""
        for symbol in symbols:
            mapping = runtime.instrument_of.get(symbol)
            if self._judge is not None and runtime.disarm(symbol) and mapping is not None:
                self._judge.disarm(runtime.entry.code, mapping.instrument)

    # ---- an operator's choice -------------------------------------------------------------------

    def force(self, instrument: str, forced: Forced) -> None:
        """Prefer a source until the time given; it still has to prove itself."""
        self._forced[instrument] = forced
        self._add_event(
            instrument,
            "forced",
            self.active.get(instrument, ""),
            forced.to,
            BY_HAND,
            by=forced.by,
            why=forced.why,
            until_ms=forced.until_ms,
        )
        self.consider(instrument)

    def release(self, instrument: str, by: str) -> bool:
        """Go back to the order of the mappings; returns whether there was a choice to end."""
        forced = self._forced.pop(instrument, None)
        if forced is None:
            return False
        self._add_event(instrument, "released", forced.to, "", BY_HAND, by=by)
        self._set_away(instrument, self.active.get(instrument, ""))
        self.consider(instrument)
        return True

    def _end_forced(self, now_s: float, found: set[str]) -> None:
        for instrument, forced in list(self._forced.items()):
            if forced.until_s <= now_s:
                del self._forced[instrument]
                self._add_event(instrument, "released", forced.to, "", "expired", by=forced.by)
                found.add(instrument)
            elif self.active.get(instrument) != forced.to:
                found.add(instrument)

    # ---- what is shown --------------------------------------------------------------------------

    def describe(self, instrument: str) -> dict[str, Any]:
        """Return the route of an instrument as it is; times in UTC epoch ms, None where unknown."""
        watch, now_s, now_ms = self._watches.get(instrument), self._clock.monotonic_s(), self._clock.now_ms()
        history = self._histories.get(instrument, RouteHistory())
        forced, gap = self._forced.get(instrument), self.gaps.open_gap(instrument)
        trials = {} if watch is None else watch.trials

        def wall_ms(at_s: float | None) -> int | None:
            return None if at_s is None else now_ms - round((now_s - at_s) * 1000)

        return {
            "active": self.active.get(instrument),
            "pending": next(iter(trials), None),
            "wanted": self.wanted(instrument),
            "open_gap": None if gap is None else {"from": gap[0], "reason": gap[1]},
            "since_ms": wall_ms(history.since_s),
            "trouble": (watch.trouble if watch is not None else "") or None,
            "stale_since_ms": watch.stale_since_ms if watch is not None else None,
            "delivery": self._delivery(instrument, self.active.get(instrument, "")),
            "switches_in_window": history.recent(now_s, self.rules),
            "switches_at_most": self.rules.switches_at_most,
            "window_s": self.rules.window_s,
            "forced": None
            if forced is None
            else {"to": forced.to, "until_ms": forced.until_ms, "by": forced.by, "why": forced.why},
            "standbys": [
                {
                    "provider": code,
                    "listening_ms": round((now_s - trial.since_s) * 1000),
                    "fresh_ticks": trial.fresh,
                    "agrees": trial.agrees,
                    "off_bps": None if trial.off_bps is None else round(trial.off_bps, 2),
                    "clean_ms": round(trial.view(now_s).clean_s * 1000),
                }
                for code, trial in trials.items()
            ],
        }

    def standing(self, row: InstrumentMapping, position: int) -> dict[str, Any]:
        """Return how a candidate stands to be routed to."""
        condition = self._conditions.get(row.provider_code)
        delivery = row.delivery or (condition.delivery if condition is not None else REAL_TIME)
        history = self._histories.get(row.instrument, RouteHistory())
        held_s = history.held_until_s(row.provider_code, self.rules) - self._clock.monotonic_s()
        runtime = self._runtimes[row.provider_code]
        found = ""
        if self._judge is not None and runtime.is_armed(row.provider_symbol):
            judgement = self._judge.judgement(row.provider_code, row.instrument)
            found = (
                f"{judgement.finding.value}: {judgement.reason}"
                if judgement.reason
                else judgement.finding.value
            )
        return {
            "delivery": delivery,
            "allowed": self._may_serve(row, position),
            "silence": found or None,
            "trouble": self._trouble(row, condition, self._watches.get(row.instrument)) or None
            if condition is not None
            else None,
            "held_down_ms": round(held_s * 1000) if held_s > 0 else None,
        }

    def summary(self) -> dict[str, Any]:
        """Return how many instruments each provider serves, and what is not as it should be."""
        stale = [name for name, watch in self._watches.items() if watch.stale_since_ms is not None]
        return {
            "routed": dict(Counter(self.active.values())),
            "away_from_first": len(self._away),
            "in_trouble": sum(bool(watch.trouble) for watch in self._watches.values()),
            "stale": len(stale),
            "stale_instruments": sorted(stale)[:_NAMED_IN_LOG],
            "forced": {name: forced.to for name, forced in sorted(self._forced.items())},
            "covered": self.covered,
            "events": self.journal.status(),
        }

    # ---- inner ----------------------------------------------------------------------------------

    def _watch(self, instrument: str) -> _Watch:
        watch = self._watches[instrument] = _Watch()
        self.passing.pop(instrument, None)
        return watch

    def _unwatch(self, instrument: str) -> None:
        watch = self._watches.pop(instrument, None)
        if watch is None:
            return
        now_s = self._clock.monotonic_s()
        for code in watch.trials:
            self._let_linger(instrument, code, now_s)
        active = self.active.get(instrument)
        if active is not None and instrument not in self._floors:
            self.passing[instrument] = active

    def _clear_trouble(self, instrument: str, watch: _Watch) -> None:
        watch.trouble, watch.trouble_since_s = "", None
        now_s = self._clock.monotonic_s()
        for code in watch.trials:
            self._let_linger(instrument, code, now_s)
        watch.trials.clear()

    def _end_trouble(self, instrument: str, watch: _Watch, at_ms: int) -> None:
        """The present source delivers again."""
        code = self.active[instrument]
        row = next(row for row in self.candidates[instrument] if row.provider_code == code)
        self._close_gap(row, at_ms)
        if watch.stale_since_ms is not None:
            self._resume(row, code, watch)
        self._clear_trouble(instrument, watch)
        self._unwatch(instrument)

    def _resume(self, row: InstrumentMapping, code: str, watch: _Watch) -> None:
        since_ms = watch.stale_since_ms or 0
        now_ms = self._clock.now_ms()
        fields: dict[str, str | int] = {
            "reason": watch.trouble or "flows",
            "stale_ms": max(0, now_ms - since_ms),
        }
        watch.stale_since_ms = None
        self._control("resumed", row, code, fields)
        self._add_event(
            row.instrument, "resumed", code, code, str(fields["reason"]), **self._why(watch, fields)
        )

    def _why(self, watch: _Watch, fields: Mapping[str, str | int]) -> dict[str, Any]:
        return {
            **{name: value for name, value in fields.items() if name != "reason"},
            "standbys": list(watch.trials),
        }

    def _set_away(self, instrument: str, code: str) -> None:
        rows = self.candidates.get(instrument)
        if rows and code and code != rows[0].provider_code:
            self._away[instrument] = self._clock.monotonic_s() + self.rules.dwell_s
        else:
            self._away.pop(instrument, None)

    def _passed(self, instrument: str, code: str) -> Passed | None:
        runtime = self._runtimes.get(code)
        symbol = runtime.symbol_of.get(instrument) if runtime is not None else None
        if runtime is None or symbol is None:
            return None
        newest = runtime.normaliser.newest(symbol)
        if newest is None:
            return None
        pulse = runtime.pulses.get(symbol)
        return Passed(*newest, pulse.received_ms if pulse is not None else 0)

    def _delivery(self, instrument: str, code: str) -> str:
        for row in self.candidates.get(instrument, ()):
            if row.provider_code == code:
                runtime = self._runtimes.get(code)
                return row.delivery or (runtime.delivery if runtime is not None else REAL_TIME)
        return REAL_TIME

    def _counters_are_same(
        self, instrument: str, previous: str, to: str, trial: StandbyTrial, now_ms: int
    ) -> bool:
        """Tell whether two sources count the same day's volume, as seen now or earlier on this day."""
        pair = frozenset((previous, to))
        day = trading_day(instrument.partition(":")[0], now_ms)
        if trial.counters.violated:
            self._same_counters.pop(instrument, None)
            return False
        if trial.counters.same:
            self._same_counters[instrument] = (pair, day)
            return True
        return self._same_counters.get(instrument) == (pair, day)

    def _close_gap(self, mapping: InstrumentMapping, at_ms: int) -> bool:
        record = self.gaps.restored(mapping, at_ms, self._clock.now_ms())
        if record is None:
            return False
        self._publish(record)
        return True

    def _control(
        self, kind: ControlType, mapping: InstrumentMapping, code: str, fields: dict[str, str | int]
    ) -> None:
        now_ms = self._clock.now_ms()
        self._publish(ControlRecord(kind, mapping.instrument, mapping.exchange, now_ms, now_ms, code, fields))

    def _add_event(
        self, instrument: str, action: str, left: str, to: str, reason: str, **details: Any
    ) -> None:
        self.journal.add(RouteEvent(instrument, action, left, to, reason, self._clock.now_ms(), details))

    def _tally(self, instrument: str, left: str, to: str, reason: str) -> None:
        self._switched[(left, to, reason)] += 1
        if len(self._switched_first) < _NAMED_IN_LOG:
            self._switched_first.append(instrument)

    def say_switched(self) -> None:
        """Log one line for each kind of switch since the last look, however many instruments there were."""
        for (left, to, reason), count in self._switched.items():
            _log.warning(
                "routes_switched",
                left=left,
                to=to,
                reason=reason,
                count=count,
                instruments=self._switched_first,
            )
        self._switched.clear()
        self._switched_first = []
