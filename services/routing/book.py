"""The routes as they are: who serves what, what is the matter with which instrument, and what came before.

What the parts of the router share. Keeps and looks up; decides nothing, publishes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from services.market_data.clock import Clock
from services.market_data.gaps import GapBook
from services.market_data.instruments import Candidates, InstrumentMapping
from services.provider_runtime import ProviderRuntime
from services.routing.decision import HALF_MINUTE_AWAY, REAL_TIME, Action
from services.routing.history import RouteHistory
from services.routing.rules import RoutingRules
from services.routing.trial import Passed, StandbyTrial
from services.silence.findings import Finding

REFUSED = "refused"
RESUBSCRIBED = "resubscribed"
"""Somebody wants an instrument again, and another source serves it by now."""
SILENT = frozenset({Finding.MUTE.value, Finding.NEVER_STARTED.value})
GONE_FOR_GOOD_S = 86_400.0
"""An instrument without any mapping for so long is forgotten; before that its return declares a gap."""
LASTS_UNTIL_DATA = SILENT | {HALF_MINUTE_AWAY, REFUSED}
"""Troubles that a new connection does not end as long as it brings nothing."""
ENDS_WITH_A_TICK = LASTS_UNTIL_DATA | {RESUBSCRIBED}
"""Troubles that are over with the first tick; of the others the judge must say that they are."""


class Forced(msgspec.Struct, frozen=True):
    """An operator's choice: which source, until when (UTC epoch ms and monotonic s), who asked and why."""

    to: str
    until_ms: int
    until_s: float
    by: str
    why: str


class Floor(msgspec.Struct, frozen=True):
    """What the old source said last, until the new one says something newer.

    `same_counter`: both count the same day's volume; `without_gap`: nothing was missed in between.
    """

    passed: Passed
    same_counter: bool
    without_gap: bool


class Watch:
    """What is the matter with one instrument: a trouble of its source, standbys on trial, or both."""

    __slots__ = ("due_s", "said", "stale_since_ms", "trials", "trouble", "trouble_since_s")

    def __init__(self) -> None:
        self.trouble = ""
        self.trouble_since_s: float | None = None
        self.stale_since_ms: int | None = None
        self.trials: dict[str, StandbyTrial] = {}
        self.due_s = 0.0
        self.said: tuple[Action, str, tuple[str, ...]] | None = None

    def begin(self, trouble: str, now_s: float) -> None:
        """Take note of a trouble; what standbys have proved beside a source that flowed counts no more."""
        self.trouble, self.trouble_since_s = trouble, now_s
        for trial in self.trials.values():
            trial.broken()


def changed_between(before: Candidates, after: Candidates) -> list[str]:
    """Return the instruments of which any mapping is new, gone or different."""
    gone = [key for key in before if key not in after]
    return gone + [key for key, rows in after.items() if before.get(key) != rows]


class RouteBook:
    """All routes. `runtimes` are the manager's, by code; `interest` None: every instrument is wanted."""

    def __init__(self, runtimes: Mapping[str, ProviderRuntime], *, clock: Clock, rules: RoutingRules) -> None:
        self.runtimes = runtimes
        self.clock = clock
        self.rules = rules
        self.candidates: Candidates = {}
        self.active: dict[str, str] = {}
        self.passing: dict[str, str] = {}
        """The routes of those instruments that nothing is the matter with; read on the hot path."""
        self.interest: frozenset[str] | None = None
        self.gaps = GapBook()
        self.left: dict[str, tuple[str, str]] = {}
        self.left_stale: dict[str, int] = {}
        """What was given up while it was stale, and since when; `resumed` comes before its next tick."""
        self.watches: dict[str, Watch] = {}
        self.away: dict[str, float] = {}
        """What is not served by its first provider, and when to look for the way back; monotonic s."""
        self.forced: dict[str, Forced] = {}
        self.floors: dict[str, Floor] = {}
        self.covered = 0
        """Ticks of a new source that were not let through, because the old one had delivered that time."""
        self._histories: dict[str, RouteHistory] = {}
        self._gone_s: dict[str, float] = {}

    def load(self, candidates: Candidates) -> None:
        """Take over the candidates of a snapshot; routes stay as they are.

        What has no mapping any more is forgotten but for its open gap, which is kept for a day.
        """
        now_s = self.clock.monotonic_s()
        for gone in self.candidates.keys() - candidates.keys():
            self._gone_s[gone] = now_s
        self.candidates = candidates
        known: tuple[dict[str, Any], ...] = (self._histories, self.forced, self.left, self.left_stale)
        for kept in known:
            for gone in kept.keys() - candidates.keys():
                del kept[gone]
        for gone, since_s in list(self._gone_s.items()):
            if gone in candidates:
                del self._gone_s[gone]
            elif now_s - since_s >= GONE_FOR_GOOD_S:
                del self._gone_s[gone]
                self.gaps.forget(gone)

    def wanted(self, instrument: str) -> bool:
        """Tell whether somebody wants the instrument."""
        return self.interest is None or instrument in self.interest

    def row(self, instrument: str, code: str) -> InstrumentMapping | None:
        """Return the mapping of an instrument to a provider, None where there is none."""
        rows = self.candidates.get(instrument, ())
        return next((row for row in rows if row.provider_code == code), None)

    def present_row(self, instrument: str) -> InstrumentMapping:
        """Return the mapping over which an instrument is served, which there must be."""
        row = self.row(instrument, self.active[instrument])
        assert row is not None, instrument  # noqa: S101 - a route without its mapping is left at once
        return row

    def history(self, instrument: str) -> RouteHistory:
        """Return what is remembered of an instrument's switches."""
        return self._histories.get(instrument, RouteHistory())

    def take(self, instrument: str, code: str) -> None:
        """Let this provider serve the instrument from now on."""
        self.active[instrument] = code
        self.set_away(instrument)

    def switched(self, instrument: str, left: str, now_s: float, *, failed: bool) -> None:
        """Remember a switch away from `left`."""
        history = self.history(instrument)
        self._histories[instrument] = history.switched(left, now_s, self.rules, failed=failed)

    def set_away(self, instrument: str) -> None:
        """Take note whether the instrument is served by its first provider."""
        rows, code = self.candidates.get(instrument), self.active.get(instrument)
        if rows and code and code != rows[0].provider_code:
            self.away[instrument] = self.clock.monotonic_s() + self.rules.dwell_s
        else:
            self.away.pop(instrument, None)

    def watch(self, instrument: str) -> Watch:
        """Watch an instrument from now on; its ticks go the longer way."""
        watch = self.watches.get(instrument)
        if watch is None:
            watch = self.watches[instrument] = Watch()
            self.passing.pop(instrument, None)
        return watch

    def let_pass(self, instrument: str) -> None:
        """Let the ticks of an instrument go the short way, if nothing stands against it."""
        code = self.active.get(instrument)
        if code is not None and instrument not in self.watches and instrument not in self.floors:
            self.passing[instrument] = code

    def leave(self, instrument: str) -> None:
        """Give up a route and all that is going on about it."""
        watch = self.watches.pop(instrument, None)
        if watch is not None and watch.stale_since_ms is not None:
            self.left_stale[instrument] = watch.stale_since_ms
        for kept in (self.active, self.passing, self.away, self.floors):
            kept.pop(instrument, None)

    def flows(self, instrument: str, code: str) -> bool:
        """Tell whether data of the instrument flows from a provider, let through or not."""
        runtime = self.runtimes.get(code)
        return runtime is not None and runtime.symbol_of.get(instrument) in runtime.flowing

    def passed(self, instrument: str, code: str) -> Passed | None:
        """Return the newest tick that a provider delivered of an instrument, None where there is none."""
        runtime = self.runtimes.get(code)
        symbol = runtime.symbol_of.get(instrument) if runtime is not None else None
        if runtime is None or symbol is None:
            return None
        newest = runtime.normaliser.newest(symbol)
        if newest is None:
            return None
        pulse = runtime.pulses.get(symbol)
        return Passed(*newest, pulse.received_ms if pulse is not None else 0)

    def delivery(self, instrument: str, code: str) -> str:
        """Return how fresh a provider's data of an instrument is promised to be."""
        row, runtime = self.row(instrument, code), self.runtimes.get(code)
        if row is not None and row.delivery is not None:
            return row.delivery
        return runtime.delivery if runtime is not None else REAL_TIME
