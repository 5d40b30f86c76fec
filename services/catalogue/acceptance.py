"""Whether a changed mapping snapshot may replace the one in use. Pure.

The tables' constraints refuse what is wrong row by row; this refuses what is only wrong as a whole,
such as an emptied table. The daemon then keeps what it has and says why.
"""

from __future__ import annotations

from services.market_data.instruments import MappingSnapshot

LARGEST_LOSS = 0.2
"""The share of the instruments that may vanish in one step."""
_SMALLEST_SET = 10


def same_content(one: MappingSnapshot, other: MappingSnapshot) -> bool:
    """Tell whether two snapshots say the same, whenever they were taken."""
    return one.providers == other.providers and one.mappings == other.mappings


def refusal(current: MappingSnapshot, proposed: MappingSnapshot) -> str | None:
    """Return in words why `proposed` must not replace `current`, None when it may."""
    before = {mapping.instrument for mapping in current.mappings}
    after = {mapping.instrument for mapping in proposed.mappings}
    if before and not after:
        return (
            "no instrument would be left: no active provider, exchange or mapping row remains; "
            "restart the daemon if that is meant"
        )
    gone = sorted(before - after)
    if len(before) >= _SMALLEST_SET and len(gone) > LARGEST_LOSS * len(before):
        shown = ", ".join(gone[:5])
        return (
            f"{len(gone)} of {len(before)} instruments would vanish at once ({shown}, …); "
            "restart the daemon if that is meant"
        )
    return None
