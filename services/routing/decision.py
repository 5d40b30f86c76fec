"""The decision of routing, for one instrument at one moment. Pure: the same input, the same answer.

Stands between what is known of the candidates (the providers' states, the judge of silence, the trials of
standbys) and the router, which carries the answer out. It never looks at a clock and keeps nothing.

    KEEP       all is as it should be, or nothing better can be done now
    START      nobody serves the instrument yet: take this one
    WARM_UP    have these subscribed and listened to; the route stays
    SWITCH     the present source fails and this one has proved itself
    FAIL_BACK  the present source is well, but this better one has proved itself beside it
    STALE      nobody delivers; say so, and keep these warm

What is never done: from real-time to delayed data unless the mapping of the delayed source allows it; a
switch to a source that has not proved itself; more switches than the bound allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import msgspec

from services.routing.history import RouteHistory
from services.routing.rules import RoutingRules

REAL_TIME, END_OF_DAY = "real_time", "end_of_day"
HALF_MINUTE_AWAY = "provider_unavailable"
BETTER = "priority"
"""Why a better source takes over from one that is well."""
BY_HAND = "manual"


class Action(str, Enum):
    """What is to be done."""

    KEEP = "keep"
    START = "start"
    WARM_UP = "warm_up"
    SWITCH = "switch"
    FAIL_BACK = "fail_back"
    STALE = "stale"


class Trial(msgspec.Struct, frozen=True, gc=False):
    """How a standby that is listened to does.

    `since_s` is when listening began; `fresh` how many ticks in a row were newer than all that was let
    through before, and `fresh_s` how long ago the first of them came; `agrees` whether the newest lay within
    tolerance; `clean_s` how long both sources have flowed and agreed without a break; `whole` whether its
    next tick can be let through without counting any traded quantity twice.
    """

    since_s: float
    fresh: int = 0
    agrees: bool = True
    clean_s: float = 0.0
    whole: bool = True
    fresh_s: float = 0.0

    def rescues(self, rules: RoutingRules, *, at_once: bool) -> bool:
        """Tell whether it has proved itself while nobody else delivers; one tick is enough `at_once`."""
        if not self.agrees or not self.fresh:
            return False
        return at_once or self.fresh >= rules.warm_ticks or self.fresh_s >= rules.settle_s

    def follows(self, rules: RoutingRules) -> bool:
        """Tell whether it has proved itself beside a source that is well."""
        return (
            self.agrees
            and self.whole
            and self.fresh >= rules.overlap_ticks
            and self.clean_s >= rules.overlap_s
        )


class Health(msgspec.Struct, frozen=True, gc=False):
    """One candidate as it stands now.

    `trouble` is why it does not deliver, empty while it does or might. `room` says whether one more symbol
    can be subscribed there, `trial` how it does as a standby, None while nobody listens to it.
    """

    provider: str
    usable: bool = True
    trouble: str = ""
    delivery: str = REAL_TIME
    allow_delayed: bool = False
    room: bool = True
    trial: Trial | None = None

    @property
    def well(self) -> bool:
        """Whether it may be expected to deliver."""
        return self.usable and not self.trouble


class Route(msgspec.Struct, frozen=True):
    """The route as it is: who serves, and what came before.

    `trouble_since_s` is when the present source was found not to deliver, None while it does. `expected`
    says whether data is expected at all, which it is not in a closed market. `forced` is the source an
    operator asked for.
    """

    current: str | None = None
    history: RouteHistory = RouteHistory()
    trouble_since_s: float | None = None
    expected: bool = True
    forced: str | None = None


class Decision(msgspec.Struct, frozen=True):
    """What to do, to whom, and why; `warm` are the standbys to listen to, beside the first in the order."""

    action: Action
    to: str | None = None
    reason: str = ""
    warm: tuple[str, ...] = ()


def allowed(candidate: Health, position: int) -> bool:
    """Tell whether a candidate may serve at all, as far as the freshness of its data goes.

    The first in the order may always: who put a delayed source there meant it.
    """
    if position == 0 or candidate.delivery == REAL_TIME:
        return True
    return candidate.allow_delayed and candidate.delivery != END_OF_DAY


def decide(candidates: Sequence[Health], route: Route, now_s: float, rules: RoutingRules) -> Decision:
    """Return what to do about one instrument. `candidates` are in the order of preference."""
    eligible = [found for at, found in enumerate(candidates) if allowed(found, at)]
    forced = next((found for found in candidates if found.provider == route.forced), None)
    if forced is not None:
        eligible = [forced, *(found for found in eligible if found is not forced)]
    current = next((found for found in candidates if found.provider == route.current), None)
    if current is None:
        return _start(eligible, route)
    if current.well:
        return _look_for_better(current, eligible, route, now_s, rules, forced)
    return _rescue(current, eligible, route, now_s, rules)


def _start(eligible: Sequence[Health], route: Route) -> Decision:
    best = next((found for found in eligible if found.well), None)
    if best is None:
        best = next((found for found in eligible if found.usable), eligible[0] if eligible else None)
    if best is None:
        return Decision(Action.KEEP, reason="no_candidate")
    return Decision(Action.START, best.provider, BY_HAND if best.provider == route.forced else "first")


def _look_for_better(
    current: Health,
    eligible: Sequence[Health],
    route: Route,
    now_s: float,
    rules: RoutingRules,
    forced: Health | None,
) -> Decision:
    """The present source delivers: is there a better one, and has it proved itself?"""
    place = next((at for at, found in enumerate(eligible) if found is current), len(eligible))
    history = route.history
    for better in eligible[:place]:
        by_hand = better is forced
        if not better.well or not (better.room or better.trial):
            continue
        if not by_hand:
            if history.held_until_s(better.provider, rules) > now_s:
                continue
            if history.since_s is not None and now_s - history.since_s < rules.dwell_s:
                continue
            if not history.may_fail_back(now_s, rules):
                return Decision(Action.KEEP, reason="too_many_switches")
        trial = better.trial
        if trial is not None and trial.follows(rules):
            return Decision(Action.FAIL_BACK, better.provider, BY_HAND if by_hand else BETTER)
        return Decision(Action.WARM_UP, reason=BY_HAND if by_hand else BETTER, warm=(better.provider,))
    return Decision(Action.KEEP)


def _rescue(
    current: Health, eligible: Sequence[Health], route: Route, now_s: float, rules: RoutingRules
) -> Decision:
    """The present source does not deliver: who does?"""
    reason = current.trouble or HALF_MINUTE_AWAY
    since_s = now_s if route.trouble_since_s is None else route.trouble_since_s
    others = [found for found in eligible if found is not current and found.usable]
    spent = not route.history.may_switch(now_s, rules)
    if not spent:
        for found in others:
            trial = found.trial
            if trial is not None and trial.rescues(rules, at_once=not current.usable):
                return Decision(Action.SWITCH, found.provider, reason)
    warm: list[str] = []
    for found in others:
        if not found.well or not (found.room or found.trial):
            continue
        warm.append(found.provider)
        if found.trial is None or now_s - found.trial.since_s < rules.warm_within_s:
            # Give it its time before the next one is troubled as well.
            break
    if route.expected and (not warm or spent or now_s - since_s >= rules.stale_after_s):
        return Decision(Action.STALE, reason="too_many_switches" if spent else reason, warm=tuple(warm))
    if warm:
        return Decision(Action.WARM_UP, reason=reason, warm=tuple(warm))
    return Decision(Action.KEEP, reason=reason)
