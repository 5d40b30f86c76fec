"""Whether a changed mapping snapshot may replace the one in use, and what time alone changes. Pure.

The tables' constraints refuse what is wrong row by row; this refuses what is only wrong as a whole,
such as an emptied table. The daemon then keeps what it has and says why.
"""

from __future__ import annotations

from operator import attrgetter

import msgspec

from services.catalogue.validation import MAPPINGS, MappingProblem, named_rows
from services.market_data.instruments import InstrumentMapping, MappingSnapshot

LARGEST_LOSS = 0.2
"""The share of the instruments that may vanish in one step."""
OVERRIDE = "python main.py mappings apply --allow-removal"
"""How an operator says that a loss is meant."""
_SMALLEST_SET = 10


def same_content(one: MappingSnapshot, other: MappingSnapshot) -> bool:
    """Tell whether two snapshots say the same, whenever they were taken."""
    return (
        one.providers == other.providers and one.mappings == other.mappings and one.upcoming == other.upcoming
    )


def refusal(current: MappingSnapshot, proposed: MappingSnapshot) -> MappingProblem | None:
    """Return why `proposed` must not replace `current`, None when it may.

    What ends by its date does not count as a loss, nor anything once it is permitted, nor what goes because
    its provider or exchange was switched off: that is one row, and what it says is meant.
    """
    if proposed.permit > current.permit:
        return None
    now_ms = proposed.loaded_ms
    held = [
        mapping for mapping in current.mappings if mapping.valid_to_ms is None or mapping.valid_to_ms > now_ms
    ]
    before = {mapping.instrument for mapping in held}
    after = {mapping.instrument for mapping in proposed.mappings}
    gone = before - after
    if not gone:
        return None
    off = set(proposed.switched_off)
    lost = {
        mapping.instrument
        for mapping in held
        if mapping.instrument in gone and (mapping.exchange, mapping.provider_code) not in off
    }
    rows = sorted(mapping.mapping_id for mapping in held if mapping.instrument in gone)
    if not after:
        return MappingProblem(
            "emptied",
            MAPPINGS,
            tuple(rows),
            "no instrument would be left: no active provider, exchange or mapping row remains of "
            f"{named_rows(rows)} of {MAPPINGS}",
        )
    if len(before) >= _SMALLEST_SET and len(lost) > LARGEST_LOSS * len(before):
        shown = ", ".join(sorted(lost)[:5])
        rows = sorted(mapping.mapping_id for mapping in held if mapping.instrument in lost)
        return MappingProblem(
            "mass_removal",
            MAPPINGS,
            tuple(rows),
            f"{len(lost)} of {len(before)} instruments would vanish at once ({shown}, …; "
            f"{named_rows(rows)} of {MAPPINGS})",
        )
    return None


def next_date_ms(snapshot: MappingSnapshot) -> int | None:
    """Return when a mapping next begins or ceases to hold, UTC epoch ms; None when none does."""
    ends = [mapping.valid_to_ms for mapping in snapshot.mappings if mapping.valid_to_ms is not None]
    begins = [mapping.valid_from_ms for mapping in snapshot.upcoming if mapping.valid_from_ms is not None]
    return min(ends + begins, default=None)


def at_time(snapshot: MappingSnapshot, now_ms: int) -> MappingSnapshot:
    """Return what the same tables say at `now_ms`: without what has ended, with what has begun."""
    kept = [
        mapping
        for mapping in snapshot.mappings
        if mapping.valid_to_ms is None or mapping.valid_to_ms > now_ms
    ]
    begun = [
        mapping
        for mapping in snapshot.upcoming
        if (mapping.valid_from_ms or 0) <= now_ms
        and (mapping.valid_to_ms is None or mapping.valid_to_ms > now_ms)
    ]
    later = tuple(mapping for mapping in snapshot.upcoming if (mapping.valid_from_ms or 0) > now_ms)
    return msgspec.structs.replace(
        snapshot,
        mappings=in_order([*kept, *begun]) if begun else tuple(kept),
        upcoming=later,
    )


_BY_NAME = attrgetter("exchange", "symbol")


def in_order(mappings: list[InstrumentMapping]) -> tuple[InstrumentMapping, ...]:
    """Return mappings in the order of a snapshot: by instrument, its primary provider first."""
    mappings.sort(key=lambda row: (*_BY_NAME(row), not row.is_primary, row.priority, row.provider_code))
    return tuple(mappings)
