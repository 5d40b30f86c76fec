"""The router: lets through one source per instrument, and has carried out what `decide` says.

Stands between the providers' normalisers and the sequencer. Every tick passes `passing`, one dictionary
look-up; only an instrument that something is the matter with takes the longer way (`beside`). It decides
nothing itself, opens no connection, collects what is to be subscribed instead of subscribing it, never waits.

    book        the routes as they are          conditions  how the candidates are
    decision    what to do, pure                switching   does it
    flows       what connections report         wishes      what is to be subscribed
    announcer   what is said of it              shown       what people see
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from services.market_data.calendar import MarketCalendar
from services.market_data.clock import Clock
from services.market_data.gaps import GapBook
from services.market_data.instruments import AssetClass, InstrumentMapping
from services.market_data.records import DataIngestionFormat, Record
from services.provider_runtime import ProviderRuntime
from services.routing import shown
from services.routing.announcer import Announcer
from services.routing.book import ENDS_WITH_A_TICK, Forced, RouteBook, Watch
from services.routing.conditions import Conditions
from services.routing.decision import BY_HAND, HALF_MINUTE_AWAY, REAL_TIME, Health, Route, decide
from services.routing.events import RouteJournal
from services.routing.flows import Flows
from services.routing.rules import RoutingRules, agree_bps, rescue_bps
from services.routing.switching import Switching
from services.routing.trial import Passed, StandbyTrial
from services.routing.wishes import Wishes
from services.silence.judge import SilenceJudge

_CHUNK = 100
"""So many instruments are looked at in one stretch of the event loop: some milliseconds."""


class Router:
    """Routes every instrument of the mapping snapshot to one of its sources.

    `runtimes` are the manager's, by code.
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
        self._clock = clock
        self._judge = judge
        self.rules = rules or RoutingRules()
        self.journal = journal or RouteJournal()
        self.book = RouteBook(runtimes, clock=clock, rules=self.rules)
        self.passing = self.book.passing
        self.wishes = Wishes(self.book)
        self.conditions = Conditions(self.book, calendar, judge)
        self._announcer = Announcer(clock, publish, self.journal)
        self.flows = Flows(self.book, self._announcer, judge)
        self._switching = Switching(self.book, self.wishes, self.conditions, self._announcer)

    # ---- looking at the routes ------------------------------------------------------------------

    def look(self) -> Iterator[None]:
        """Look at everything that something may be the matter with; once a second, in pieces."""
        now_s, now_ms = self._clock.monotonic_s(), self._clock.now_ms()
        self.conditions.refresh()
        found: set[str] = set()
        if self._judge is not None:
            for change in self._judge.look(now_ms, now_s):
                concerned = self._concerned(change.provider, change.exchange, change.instrument)
                if change.before.is_fault or change.now.finding.is_fault:
                    found.update(concerned)
                else:
                    # Found to be well, as after a start: nothing follows for what goes its usual way.
                    found.update(name for name in concerned if not self._goes_well(name, change.provider))
        found.update(self._forced_that_wait(now_s))
        found.update(name for name, watch in self.book.watches.items() if watch.due_s <= now_s)
        found.update(name for name, due_s in self.book.away.items() if due_s <= now_s)
        yield from self.look_at(found)
        self.wishes.end_lingering(now_s)
        self._announcer.say_switched()

    def look_at(self, instruments: Iterable[str]) -> Iterator[None]:
        """Decide about each of `instruments`; yields now and then, so that the event loop can breathe."""
        for count, instrument in enumerate(list(instruments), start=1):
            self.consider(instrument)
            if count % _CHUNK == 0:
                yield

    def say_switched(self) -> None:
        """Log what was switched since the last look."""
        self._announcer.say_switched()

    def consider(self, instrument: str) -> None:
        """Decide about one instrument, and have that carried out."""
        book = self.book
        rows = book.candidates.get(instrument)
        if not rows or not book.wanted(instrument):
            return
        now_s, watch = self._clock.monotonic_s(), book.watches.get(instrument)
        candidates = [self.conditions.health(row, watch, now_s) for row in rows]
        current = book.active.get(instrument)
        present = next((found for found in candidates if found.provider == current), None)
        if present is not None:
            watch = self._follow_trouble(instrument, present, watch, now_s)
        forced = book.forced.get(instrument)
        route = Route(
            current,
            book.history(instrument),
            watch.trouble_since_s if watch is not None else None,
            self.conditions.expected(instrument),
            forced.to if forced is not None else None,
        )
        self._switching.carry_out(instrument, decide(candidates, route, now_s, self.rules), now_s)

    def _goes_well(self, instrument: str, provider: str) -> bool:
        """Tell whether nothing is the matter with an instrument that its first provider serves."""
        book = self.book
        return (
            book.passing.get(instrument) == provider
            and instrument not in book.away
            and instrument not in book.forced
        )

    def _concerned(self, provider: str, exchange: str, instrument: str) -> Iterable[str]:
        """Return the instruments that a finding speaks of."""
        if instrument:
            return (instrument,)
        prefix = f"{exchange}:"
        return [
            name
            for name, code in self.book.active.items()
            if name.startswith(prefix) and (code == provider or name in self.book.away)
        ]

    def _follow_trouble(
        self, instrument: str, present: Health, watch: Watch | None, now_s: float
    ) -> Watch | None:
        """Begin or end the trouble of the present source, as it is now."""
        book = self.book
        if present.well:
            if watch is None or not watch.trouble:
                return watch
            flows = book.flows(instrument, present.provider)
            if watch.trouble not in ENDS_WITH_A_TICK or (flows and watch.stale_since_ms is None):
                self._switching.end_trouble(instrument, watch, self._clock.now_ms())
            return book.watches.get(instrument)
        watch = book.watch(instrument)
        if not watch.trouble:
            reason = present.trouble or HALF_MINUTE_AWAY
            watch.begin(reason, now_s)
            since_ms = self._silent_since_ms(instrument, present, reason)
            if since_ms is not None:
                book.gaps.lost(instrument, since_ms, reason)
        return watch

    def _silent_since_ms(self, instrument: str, present: Health, reason: str) -> int | None:
        """Return from when on the ticks of a source in trouble are missing; None where none are."""
        row = self.book.present_row(instrument)
        pulse = self.book.runtimes[present.provider].pulses.get(row.provider_symbol)
        if (
            present.trouble
            and pulse is not None
            and pulse.received_ms
            and self.conditions.expected(instrument)
        ):
            judgement = self.conditions.judgement(row)
            if judgement is not None and reason not in ENDS_WITH_A_TICK:
                return judgement.since_ms
            return pulse.received_ms
        if self.book.flows(instrument, present.provider):
            return None
        return self._clock.now_ms() if self.book.passed(instrument, present.provider) else None

    # ---- the longer way of a tick ---------------------------------------------------------------

    def beside(self, runtime: ProviderRuntime, record: DataIngestionFormat) -> bool:
        """Tell whether to let a tick through whose instrument is not `passing` to its provider.

        What this tick decides is carried out before it is let through.
        """
        instrument, code = record.symbol, runtime.entry.code
        watch = self.book.watches.get(instrument)
        if self.book.active.get(instrument) == code:
            passes = self._of_present(instrument, record, watch)
        else:
            trial = watch.trials.get(code) if watch is not None else None
            passes = (
                watch is not None and trial is not None and self._of_standby(runtime, record, watch, trial)
            )
        if not passes:
            runtime.standby += 1
        return passes

    def _of_present(self, instrument: str, record: DataIngestionFormat, watch: Watch | None) -> bool:
        if not self._switching.says_something_new(instrument, record):
            return False
        if watch is None:
            self.book.let_pass(instrument)
            return True
        if watch.trouble in ENDS_WITH_A_TICK:
            self._switching.end_trouble(instrument, watch, record.received_ms)
        volume = record.cumulative_volume
        if volume is not None:
            for trial in watch.trials.values():
                trial.counters.present(record.timestamp, volume)
        return True

    def _of_standby(
        self, runtime: ProviderRuntime, record: DataIngestionFormat, watch: Watch, trial: StandbyTrial
    ) -> bool:
        """Listen to a standby; true where it has taken over by this tick, which is then let through."""
        instrument, code, rules = record.symbol, runtime.entry.code, self.rules
        current = self.book.active.get(instrument, "")
        now_s = self._clock.monotonic_s()
        passed = self.book.passed(instrument, current)
        delayed = self.book.delivery(instrument, code) != REAL_TIME
        unlike = delayed or self.book.delivery(instrument, current) != REAL_TIME
        rescue = bool(watch.trouble)
        kind = runtime.instrument_of[record.provider_symbol].asset_class
        speaks = trial.listen(
            record,
            now_s,
            passed,
            tolerance_bps=self._tolerance_bps(kind, passed, rescue=rescue, delayed=unlike),
            within_ms=round(1000 * (rules.delayed_within_s if delayed else rules.fresh_within_s)),
            behind_ms=round(1000 * (rules.delayed_within_s if unlike else rules.behind_at_most_s)),
            rescue=rescue,
            delayed=unlike,
        )
        if not speaks or not (rescue or trial.view(now_s).follows(rules)):
            return False
        if rescue:
            # Counted as a standby's while it was held; what is let through of it is counted over.
            runtime.standby += 1
            self.consider(instrument)
            runtime.standby -= 1
            return False
        self.consider(instrument)
        taken_over = self.book.active.get(instrument) == code
        return taken_over and self._of_present(instrument, record, self.book.watches.get(instrument))

    def _tolerance_bps(
        self, kind: AssetClass, passed: Passed | None, *, rescue: bool, delayed: bool
    ) -> float:
        if not rescue or passed is None:
            return agree_bps(self.rules, kind, delayed=delayed)
        age_s = (self._clock.now_ms() - passed.received_ms) / 1000
        return rescue_bps(self.rules, kind, age_s, delayed=delayed)

    # ---- an operator's choice -------------------------------------------------------------------

    def force(self, instrument: str, forced: Forced) -> None:
        """Prefer a source until the time given; it still has to prove itself."""
        self.book.forced[instrument] = forced
        self._announcer.event(
            instrument,
            "forced",
            self.book.active.get(instrument, ""),
            forced.to,
            BY_HAND,
            by=forced.by,
            why=forced.why,
            until_ms=forced.until_ms,
        )
        self.consider(instrument)

    def release(self, instrument: str, by: str, reason: str = BY_HAND) -> bool:
        """Go back to the order of the mappings; returns whether there was a choice to end."""
        forced = self.book.forced.pop(instrument, None)
        if forced is None:
            return False
        self._announcer.event(instrument, "released", forced.to, "", reason, by=by)
        self.book.set_away(instrument)
        self.consider(instrument)
        return True

    def _forced_that_wait(self, now_s: float) -> list[str]:
        """End the choices whose time is over; return those that are not followed yet."""
        for instrument, forced in list(self.book.forced.items()):
            if forced.until_s <= now_s:
                self.release(instrument, forced.by, "expired")
        return [name for name, forced in self.book.forced.items() if self.book.active.get(name) != forced.to]

    # ---- what is shown --------------------------------------------------------------------------

    def forget(self) -> None:
        """Forget what is not delivered now: another daemon delivers, and tells of its own gaps."""
        self.book.gaps = GapBook()
        for instrument in list(self.book.watches):
            self._switching.unwatch(instrument)

    def describe(self, instrument: str) -> dict[str, Any]:
        """Return the route of an instrument, its candidates' standing left out."""
        return shown.describe(self.book, instrument)

    def standing(self, row: InstrumentMapping) -> dict[str, Any]:
        """Return how a candidate stands to be routed to."""
        return shown.standing(self.book, self.conditions, row)

    def summary(self) -> dict[str, Any]:
        """Return how many instruments each provider serves, and what is not as it should be."""
        return shown.summary(self.book) | {"events": self.journal.status()}
