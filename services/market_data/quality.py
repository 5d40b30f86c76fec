"""The rules a tick must pass, and how far a price may jump before it is flagged.

Pure functions and constants; the normaliser applies them and counts by reason.
"""

from __future__ import annotations

from services.market_data.instruments import AssetClass, InstrumentMapping

FUTURE_TOLERANCE_MS = 5_000
"""A time this far ahead of ours is believed; beyond it the receive time is used and flagged."""
FAR_FUTURE_MS = 24 * 3_600_000
"""A time this far ahead is not a clock difference but nonsense: the tick is refused."""
STALE_AFTER_MS = 3_600_000
"""A tick older than this on arrival is an old snapshot, not live data."""
EARLIEST_EVENT_MS = 946_684_800_000
"""2000-01-01: earlier times mean "never traded" (1970, 1980) on every wire we read."""
LARGEST_PRICE = 1e9
"""Above this a price is a decoding error in any currency we serve."""

_BANDS = {
    AssetClass.EQUITY: 1.5,
    AssetClass.ETF: 1.5,
    AssetClass.INDEX: 1.25,
    AssetClass.FUTURE: 1.5,
    AssetClass.FX: 1.2,
    AssetClass.CRYPTO: 2.0,
}
SUSPECTS_BEFORE_ACCEPTED = 3
"""After so many prices in a row outside the band the new level is taken as the market's."""


def band_ratio(asset_class: AssetClass) -> float:
    """Return how many times larger or smaller than its reference a price may be; 0.0 for no limit.

    Options have no limit: tenfold moves are ordinary there.
    """
    return _BANDS.get(asset_class, 0.0)


def allows_negative(mapping: InstrumentMapping) -> bool:
    """Tell whether the instrument can trade below zero, as commodity futures have."""
    return mapping.asset_class is AssetClass.FUTURE


def has_volume(mapping: InstrumentMapping) -> bool:
    """Tell whether a cumulative volume of this instrument means traded quantity."""
    return mapping.asset_class not in (AssetClass.INDEX, AssetClass.FX)


def refusal_of_price(price: float, *, negative_allowed: bool) -> str | None:
    """Return why a price cannot be a trade (`not_finite`, `zero_price`, …), or None when it can."""
    if price != price or price in (float("inf"), float("-inf")):
        return "not_finite"
    if price == 0.0:
        return "zero_price"
    if price < 0.0 and not negative_allowed:
        return "negative_price"
    if abs(price) > LARGEST_PRICE:
        return "absurd_price"
    return None
