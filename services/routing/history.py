"""What is remembered of an instrument's switches, so that it does not flap. Pure."""

from __future__ import annotations

import msgspec

from services.routing.rules import RoutingRules


class RouteHistory(msgspec.Struct, frozen=True):
    """When the present source took over, when the last switches were, and who failed when; monotonic s."""

    since_s: float | None = None
    switches_s: tuple[float, ...] = ()
    failures_s: tuple[tuple[str, float], ...] = ()

    def switched(self, left: str, now_s: float, rules: RoutingRules, *, failed: bool) -> RouteHistory:
        """Return the history after a switch away from `left`, which `failed` or was merely second best."""
        oldest_s = now_s - rules.failures_count_s
        failures = tuple(entry for entry in self.failures_s if entry[1] > oldest_s)
        return RouteHistory(
            now_s,
            (*(at_s for at_s in self.switches_s if at_s > now_s - rules.window_s), now_s),
            (*failures, (left, now_s)) if failed else failures,
        )

    def recent(self, now_s: float, rules: RoutingRules) -> int:
        """Return how many switches there were within the window that ends now."""
        return sum(at_s > now_s - rules.window_s for at_s in self.switches_s)

    def may_switch(self, now_s: float, rules: RoutingRules) -> bool:
        """Tell whether the bound on switches leaves one."""
        return self.recent(now_s, rules) < rules.switches_at_most

    def may_fail_back(self, now_s: float, rules: RoutingRules) -> bool:
        """Tell whether the bound leaves one for coming back, and one more for whatever happens then."""
        return self.recent(now_s, rules) < rules.switches_at_most - 1

    def held_until_s(self, provider: str, rules: RoutingRules) -> float:
        """Return until when a provider that failed is not tried again; 0.0 where it did not fail."""
        times = [at_s for code, at_s in self.failures_s if code == provider]
        if not times:
            return 0.0
        newest_s = max(times)
        counted = sum(at_s > newest_s - rules.failures_count_s for at_s in times)
        return newest_s + min(rules.hold_down_cap_s, rules.hold_down_s * 2.0 ** (counted - 1))

    def next_free_s(self, now_s: float, rules: RoutingRules) -> float:
        """Return when the bound leaves a switch again."""
        inside = sorted(at_s for at_s in self.switches_s if at_s > now_s - rules.window_s)
        excess = len(inside) - rules.switches_at_most
        return inside[excess] + rules.window_s if excess >= 0 else now_s
