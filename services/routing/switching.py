"""Carries out what was decided about an instrument: begins, warms up, switches, says what is stale and back.

Stands between the decision and the stream. Whatever it does is said in the order in which it holds: the gap
that ends, the switch, that data is back, and then the ticks.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from services.market_data.calendar import trading_day
from services.market_data.instruments import InstrumentMapping
from services.market_data.records import DataIngestionFormat
from services.routing.announcer import Announcer
from services.routing.book import ENDS_WITH_A_TICK, RESUBSCRIBED, Floor, RouteBook, Watch
from services.routing.conditions import Conditions
from services.routing.decision import Action, Decision
from services.routing.trial import StandbyTrial, first_quantity
from services.routing.wishes import Wishes

_LOOK_SOON_S = 0.5
_LOOK_AGAIN_S = 5.0
_MOST_COUNTERS = 30_000


class Switching:
    """Changes the routes of one book."""

    def __init__(self, book: RouteBook, wishes: Wishes, conditions: Conditions, announcer: Announcer) -> None:
        self._book = book
        self._wishes = wishes
        self._conditions = conditions
        self._announcer = announcer
        self._same_counters: dict[str, tuple[frozenset[str], date]] = {}

    def carry_out(self, instrument: str, decision: Decision, now_s: float) -> None:
        """Do what was decided."""
        action, to = decision.action, decision.to
        if action is Action.START and to is not None:
            self._start(instrument, to, decision.reason)
        elif action in (Action.SWITCH, Action.FAIL_BACK) and to is not None:
            self._switch(instrument, to, decision, self._book.watch(instrument), now_s)
        elif action in (Action.WARM_UP, Action.STALE):
            watch = self._book.watch(instrument)
            if action is Action.STALE and watch.stale_since_ms is None:
                self._declare_stale(instrument, decision, watch)
            self._warm_up(instrument, decision, watch, now_s)
            in_vain = action is Action.STALE and not decision.warm
            watch.due_s = now_s + (_LOOK_AGAIN_S if in_vain else _LOOK_SOON_S)
        else:
            self._keep(instrument, decision, now_s)

    def end_trouble(self, instrument: str, watch: Watch, at_ms: int) -> None:
        """The present source delivers again, since `at_ms`."""
        row = self._book.present_row(instrument)
        self._announcer.close_gap(self._book.gaps, row, at_ms)
        self._resume(row, watch)
        watch.trouble, watch.trouble_since_s = "", None
        self.unwatch(instrument)

    def unwatch(self, instrument: str) -> None:
        """Nothing is the matter any more; standbys are let go after a while."""
        watch = self._book.watches.pop(instrument, None)
        if watch is not None:
            self._wishes.let_linger(instrument, *watch.trials)
            self._book.let_pass(instrument)

    def says_something_new(self, instrument: str, record: DataIngestionFormat) -> bool:
        """Tell whether a tick is newer than what the old source said; the first such gets its quantity."""
        floor = self._book.floors.get(instrument)
        if floor is None:
            return True
        if record.timestamp < floor.passed.event_ms:
            self._book.covered += 1
            return False
        del self._book.floors[instrument]
        record.volume = first_quantity(
            record, floor.passed, same_counter=floor.same_counter, without_gap=floor.without_gap
        )
        return True

    # ---- inner ----------------------------------------------------------------------------------

    def _start(self, instrument: str, code: str, reason: str) -> None:
        """Take a first source; after a mapping was removed that is a switch."""
        book = self._book
        previous, left_reason = book.left.pop(instrument, (None, reason))
        first, row = book.candidates[instrument][0], book.row(instrument, code)
        if row is None:
            return
        book.take(instrument, code)
        stale_since_ms = book.left_stale.pop(instrument, None)
        if stale_since_ms is not None:
            watch = book.watch(instrument)
            watch.begin(RESUBSCRIBED, book.clock.monotonic_s())
            watch.stale_since_ms = stale_since_ms
        self._wishes.want(first)
        self._wishes.want(row)
        now_ms = book.clock.now_ms()
        if book.flows(instrument, code):
            self._announcer.close_gap(book.gaps, row, now_ms)
        elif previous is not None and left_reason != RESUBSCRIBED:
            book.gaps.lost(instrument, now_ms, left_reason)
        if previous is not None and previous != code:
            passed = book.passed(instrument, previous)
            if passed is not None:
                book.floors[instrument] = Floor(passed, same_counter=False, without_gap=False)
            self._announcer.switched(row, previous, left_reason)
            self._announcer.event(instrument, Action.SWITCH.value, previous, code, left_reason)
            self._wishes.let_go(instrument, previous)
        elif row is not first:
            self._announcer.event(instrument, Action.START.value, "", code, reason)
        book.let_pass(instrument)

    def _warm_up(self, instrument: str, decision: Decision, watch: Watch, now_s: float) -> None:
        for code in decision.warm:
            row = self._book.row(instrument, code)
            if code not in watch.trials and row is not None:
                watch.trials[code] = StandbyTrial(now_s)
                self._conditions.take_room(code)
                self._wishes.want(row)
        if watch.stale_since_ms is None or decision.action is not Action.STALE:
            self._keep_in_mind(instrument, decision, watch)

    def _keep(self, instrument: str, decision: Decision, now_s: float) -> None:
        if instrument in self._book.away:
            self._book.away[instrument] = now_s + _LOOK_AGAIN_S
        watch = self._book.watches.get(instrument)
        if watch is None:
            return
        if watch.trouble:
            watch.due_s = now_s + _LOOK_SOON_S
            self._keep_in_mind(instrument, decision, watch)
        else:
            self.unwatch(instrument)

    def _keep_in_mind(self, instrument: str, decision: Decision, watch: Watch) -> None:
        """Keep a decision, if it is another than the last one about this instrument."""
        said = (decision.action, decision.reason, decision.warm)
        if said == watch.said or not decision.reason:
            return
        watch.said = said
        self._announcer.event(
            instrument,
            decision.action.value,
            self._book.active.get(instrument, ""),
            decision.warm[-1] if decision.warm else "",
            decision.reason,
            **({"standbys": list(decision.warm)} if decision.warm else {}),
        )

    def _declare_stale(self, instrument: str, decision: Decision, watch: Watch) -> None:
        code = self._book.active[instrument]
        passed = self._book.passed(instrument, code)
        if passed is None or watch.trouble not in ENDS_WITH_A_TICK:
            # Nothing has ever come that could be out of date, or something still comes.
            return
        now_ms = self._book.clock.now_ms()
        watch.stale_since_ms = now_ms
        age_ms = max(0, now_ms - (passed.received_ms or passed.event_ms))
        row = self._book.present_row(instrument)
        self._announcer.record("stale", row, code, {"reason": decision.reason, "age_ms": age_ms})
        self._announcer.event(
            instrument,
            Action.STALE.value,
            code,
            "",
            decision.reason,
            age_ms=age_ms,
            standbys=list(watch.trials),
        )

    def _resume(self, row: InstrumentMapping, watch: Watch) -> None:
        """Say that what was stale is back."""
        if watch.stale_since_ms is None:
            return
        stale_ms = max(0, self._book.clock.now_ms() - watch.stale_since_ms)
        watch.stale_since_ms = None
        reason, code = watch.trouble or "flows", row.provider_code
        self._announcer.record("resumed", row, code, {"reason": reason, "stale_ms": stale_ms})
        self._announcer.event(row.instrument, "resumed", code, code, reason, stale_ms=stale_ms)

    def _switch(self, instrument: str, to: str, decision: Decision, watch: Watch, now_s: float) -> None:
        """Go over to a source that has proved itself; what it said meanwhile follows at once."""
        book, previous = self._book, self._book.active[instrument]
        row, trial = book.row(instrument, to), watch.trials.pop(to, None)
        if row is None or trial is None:
            return
        passed, held = book.passed(instrument, previous), list(trial.held)
        begins_ms = held[0].received_ms if held else book.clock.now_ms()
        gap = book.gaps.open_gap(instrument)
        self._announcer.close_gap(book.gaps, row, begins_ms)
        self._announcer.switched(row, previous, decision.reason)
        self._resume(row, watch)
        book.switched(instrument, previous, now_s, failed=decision.action is Action.SWITCH)
        book.take(instrument, to)
        same = self._count_the_same(instrument, frozenset((previous, to)), trial)
        details: dict[str, Any] = {"warmed_s": round(now_s - trial.since_s, 3), "fresh_ticks": trial.fresh}
        if trial.off_bps is not None:
            details["off_bps"] = round(trial.off_bps, 2)
        if gap is not None:
            details["gap_ms"] = max(0, begins_ms - gap[0])
        details["same_volume"] = same
        self._announcer.event(instrument, decision.action.value, previous, to, decision.reason, **details)
        self._wishes.let_linger(instrument, previous, *watch.trials)
        del book.watches[instrument]
        book.floors.pop(instrument, None)
        if passed is not None:
            book.floors[instrument] = Floor(passed, same, gap is None)
        for record in held:
            if self.says_something_new(instrument, record):
                book.runtimes[to].let_through(record)
                self._announcer.publish(record)
        book.let_pass(instrument)

    def _count_the_same(self, instrument: str, pair: frozenset[str], trial: StandbyTrial) -> bool:
        """Tell whether two sources count the same day's volume, as seen now or earlier on this day."""
        day = trading_day(instrument.partition(":")[0], self._book.clock.now_ms())
        if trial.counters.violated:
            self._same_counters.pop(instrument, None)
            return False
        if trial.counters.same:
            if len(self._same_counters) > _MOST_COUNTERS:
                # Those of other days say nothing any more.
                self._same_counters = {
                    key: known for key, known in self._same_counters.items() if known[1] == day
                }
            self._same_counters[instrument] = (pair, day)
            return True
        return self._same_counters.get(instrument) == (pair, day)
