"""The numbers of routing: how long, how often, how close. Pure data; one set for the whole daemon."""

from __future__ import annotations

import msgspec

from services.market_data.instruments import AssetClass


class RoutingRules(msgspec.Struct, frozen=True, kw_only=True):
    """When to switch, and when to come back. Times in seconds, prices in basis points (1 bps = 0.01 %).

    `switches_at_most` in any `window_s`: the bound on flapping; of these the last one is kept for a rescue,
    so that coming back never uses up the switch that a new failure would need. A source is left for
    `dwell_s` at least before a better one is tried, and a better one that failed is not tried again for
    `hold_down_s`, doubled with every failure within `failures_count_s`, `hold_down_cap_s` at most.

    `warm_ticks` fresh ticks within tolerance prove a standby whose predecessor is silent; so does one that is
    `settle_s` old, as of an instrument that is seldom traded, or one at all where the predecessor's provider
    is down altogether. A standby that does not prove itself in `warm_within_s` has the next candidate warmed
    beside it. When nobody has delivered for `stale_after_s` since the fault was found, the instrument is
    declared stale.

    Coming back needs `overlap_s` in which both flow and agree, with `overlap_ticks` fresh ticks at least.
    What was warmed in vain, or left, stays subscribed for `linger_s`, in case it is needed again.
    """

    switches_at_most: int = 6
    window_s: float = 600.0
    dwell_s: float = 10.0
    hold_down_s: float = 20.0
    hold_down_cap_s: float = 600.0
    failures_count_s: float = 1_800.0
    warm_ticks: int = 2
    settle_s: float = 1.0
    warm_within_s: float = 10.0
    stale_after_s: float = 5.0
    overlap_s: float = 10.0
    overlap_ticks: int = 3
    linger_s: float = 30.0
    agree_bps: float = 50.0
    rescue_bps: float = 500.0
    rescue_bps_per_minute: float = 100.0
    rescue_bps_at_most: float = 2_000.0
    behind_at_most_s: float = 10.0
    fresh_within_s: float = 60.0
    delayed_within_s: float = 2_400.0


_WIDER = {AssetClass.OPTION: 20.0, AssetClass.CRYPTO: 2.0, AssetClass.FUTURE: 2.0}
"""By how much more the prices of two sources may differ than those of a share at the same moment."""
DELAYED_WIDER = 10.0
"""The price of some minutes ago differs by more than two sources do at the same moment."""


def agree_bps(rules: RoutingRules, asset_class: AssetClass, *, delayed: bool) -> float:
    """Return how far two sources that both flow may be apart, in basis points."""
    wider = _WIDER.get(asset_class, 1.0) * (DELAYED_WIDER if delayed else 1.0)
    return rules.agree_bps * wider


def rescue_bps(rules: RoutingRules, asset_class: AssetClass, age_s: float, *, delayed: bool) -> float:
    """Return how far a new source may be from the last price of one silent for `age_s`, in basis points.

    The older the last price, the further the market may have gone since.
    """
    wider = _WIDER.get(asset_class, 1.0) * (DELAYED_WIDER / 2 if delayed else 1.0)
    grown = rules.rescue_bps + rules.rescue_bps_per_minute * max(0.0, age_s) / 60.0
    return min(grown, rules.rescue_bps_at_most) * wider
