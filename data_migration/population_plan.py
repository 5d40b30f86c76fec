"""Compares what the tables hold with what they shall hold, and says what to write. Pure.

Nothing is ever deleted. What an operator switched off stays off. A name at Dhan that now belongs to
another instrument is taken from the one that had it; at a provider whose names are made by rule, that
is a conflict for people to settle.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import date
from decimal import Decimal

import msgspec

from data_migration.changes import Change, Kind, arrows, difference
from data_migration.resolution import WantedInstrument, WantedMapping

INSTRUMENT_FIELDS = (
    "name",
    "asset_class",
    "currency",
    "tick_size",
    "lot_size",
    "underlying",
    "expiry",
    "strike",
    "option_type",
    "isin",
)
_VENDOR_NAMED = frozenset({"DHAN"})
_MAPPING_LABELS = {
    "search_code": "search code",
    "segment": "segment",
    "security_id": "security id",
}


class StoredInstrument(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One row of `instruments`."""

    id: int
    key: str
    name: str
    asset_class: str
    currency: str
    tick_size: Decimal | None
    lot_size: int | None
    underlying: str | None
    expiry: date | None
    strike: Decimal | None
    option_type: str | None
    isin: str | None
    is_active: bool = True


class StoredMapping(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One row of `provider_instrument_mappings`, with its instrument's key and expiry.

    `is_dated` says that an operator gave it dates; a row whose dates are over counts as not active.
    """

    id: int
    key: str
    provider: str
    search_code: str
    segment: str | None
    security_id: str | None
    is_active: bool
    expiry: date | None
    is_dated: bool = False


class InstrumentUpdate(msgspec.Struct, frozen=True):
    """New values of one row of `instruments`, all fields of it."""

    id: int
    values: dict[str, object]


class MappingUpdate(msgspec.Struct, frozen=True):
    """New values of one row of `provider_instrument_mappings`; it stays as active as it is."""

    id: int
    is_active: bool
    wanted: WantedMapping


class Plan(msgspec.Struct):
    """What to write, and how to say it. With a conflict nothing is to be written."""

    new_instruments: list[WantedInstrument] = msgspec.field(default_factory=list)
    instrument_updates: list[InstrumentUpdate] = msgspec.field(default_factory=list)
    new_mappings: list[tuple[str, WantedMapping]] = msgspec.field(default_factory=list)
    mapping_updates: list[MappingUpdate] = msgspec.field(default_factory=list)
    retired: list[int] = msgspec.field(default_factory=list)
    changes: list[Change] = msgspec.field(default_factory=list)
    conflicts: list[str] = msgspec.field(default_factory=list)


def make_plan(
    wanted: Sequence[WantedInstrument],
    instruments: Collection[StoredInstrument],
    mappings: Collection[StoredMapping],
    today: date,
) -> Plan:
    """Return what brings the stored rows to the wanted ones."""
    plan = Plan()
    stored = {row.key: row for row in instruments}
    for instrument in wanted:
        _plan_instrument(plan, instrument, stored.get(instrument.key))
    resting = {row.key for row in instruments if not row.is_active}
    _plan_mappings(plan, wanted, mappings, today, resting)
    return plan


def _plan_instrument(plan: Plan, wanted: WantedInstrument, stored: StoredInstrument | None) -> None:
    if stored is None:
        plan.new_instruments.append(wanted)
        plan.changes.append(Change("instruments", wanted.key, Kind.ADDED, wanted.name))
        return
    values = {name: getattr(wanted, name) for name in INSTRUMENT_FIELDS}
    old = {name: getattr(stored, name) for name in INSTRUMENT_FIELDS}
    if wanted.asset_class == stored.asset_class:
        # Blank in every source means unknown there, not none: what is stored stays.
        values = {name: old[name] if value is None else value for name, value in values.items()}
    changed = difference(old, values)
    if not changed:
        plan.changes.append(Change("instruments", wanted.key, Kind.UNCHANGED))
        return
    plan.instrument_updates.append(InstrumentUpdate(stored.id, values))
    plan.changes.append(Change("instruments", wanted.key, Kind.CHANGED, arrows(changed)))


def _plan_mappings(
    plan: Plan,
    wanted: Sequence[WantedInstrument],
    stored: Collection[StoredMapping],
    today: date,
    resting: Collection[str],
) -> None:
    by_instrument: dict[tuple[str, str], list[StoredMapping]] = defaultdict(list)
    holders: dict[tuple[str, str | None, str, str], StoredMapping] = {}
    for row in stored:
        by_instrument[(row.key, row.provider)].append(row)
        if row.is_active:
            for name in _names(row.provider, row.segment, row.search_code, row.security_id):
                holders[name] = row
    pairs = {(instrument.key, mapping.provider) for instrument in wanted for mapping in instrument.mappings}
    kept = {
        (key, provider): reason
        for key, provider in pairs
        if (reason := _reason_to_keep(key, by_instrument.get((key, provider), []), resting)) is not None
    }
    renamed = pairs - kept.keys()
    retired: set[int] = set()
    for instrument in wanted:
        for mapping in instrument.mappings:
            reason = kept.get((instrument.key, mapping.provider))
            if reason is not None:
                name_of_pair = f"{instrument.key} at {mapping.provider}"
                plan.changes.append(Change(_TABLE, name_of_pair, Kind.KEPT, reason))
                continue
            known = by_instrument.get((instrument.key, mapping.provider), [])
            for name in _names(mapping.provider, mapping.segment, mapping.search_code, mapping.security_id):
                holder = holders.get(name)
                if holder is None or holder.key == instrument.key or holder.id in retired:
                    continue
                if (holder.key, holder.provider) not in renamed:
                    _take_over(plan, holder, instrument.key, name, today, retired)
            _plan_mapping(plan, instrument.key, mapping, known)


def _reason_to_keep(key: str, known: Sequence[StoredMapping], resting: Collection[str]) -> str | None:
    """Return why a mapping is left to the operator, None when it is ours to write."""
    if any(row.is_dated and row.is_active for row in known):
        return "it has dates"
    if key in resting and (not known or any(row.is_active for row in known)):
        return "the instrument is not active"
    return None


def _take_over(
    plan: Plan,
    holder: StoredMapping,
    key: str,
    name: tuple[str, str | None, str, str],
    today: date,
    retired: set[int],
) -> None:
    provider, segment, kind, text = name
    place = f"{segment} " if segment else ""
    expired = holder.expiry is not None and holder.expiry < today
    if provider not in _VENDOR_NAMED and not expired:
        plan.conflicts.append(
            f"{key}: the {kind} {place}{text} of {provider} is mapped to {holder.key}; "
            "deactivate that mapping, or give another yahoo_symbol"
        )
        return
    retired.add(holder.id)
    plan.retired.append(holder.id)
    why = "expired, and its" if expired else "its"
    note = f"{why} {kind} {place}{text} now means {key}"
    plan.changes.append(Change(_TABLE, f"{holder.key} at {provider}", Kind.RETIRED, note))


_TABLE = "provider_instrument_mappings"


def _plan_mapping(plan: Plan, key: str, wanted: WantedMapping, known: list[StoredMapping]) -> None:
    name = f"{key} at {wanted.provider}"
    if not known:
        plan.new_mappings.append((key, wanted))
        plan.changes.append(Change(_TABLE, name, Kind.ADDED, _described(wanted)))
        return
    row = max(known, key=lambda row: (row.is_active, row.id))
    changed = difference(
        {label: getattr(row, field) for field, label in _MAPPING_LABELS.items()},
        {label: getattr(wanted, field) for field, label in _MAPPING_LABELS.items()},
    )
    if changed:
        plan.mapping_updates.append(MappingUpdate(row.id, row.is_active, wanted))
        plan.changes.append(Change(_TABLE, name, Kind.CHANGED, arrows(changed)))
    if not row.is_active:
        plan.changes.append(Change(_TABLE, name, Kind.KEPT, "not active"))
    elif not changed:
        plan.changes.append(Change(_TABLE, name, Kind.UNCHANGED))


def _names(
    provider: str, segment: str | None, search_code: str, security_id: str | None
) -> list[tuple[str, str | None, str, str]]:
    """Return what must mean one instrument only among a provider's active mappings."""
    names = [(provider, segment, "symbol", search_code)]
    if security_id is not None:
        names.append((provider, segment, "security id", security_id))
    return names


def _described(mapping: WantedMapping) -> str:
    if mapping.security_id is None:
        return mapping.search_code
    return f"{mapping.search_code}, {mapping.segment} {mapping.security_id}"
