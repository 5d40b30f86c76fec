"""What a script changes, or would change, in a form people read: added, changed old to new, kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal
from enum import Enum

import msgspec
from rich.console import Console
from rich.markup import escape

from data_migration.sources.contract_symbols import plain_number

SHOWN_PER_KIND = 20


class Kind(Enum):
    """What happens to one row; the value is the mark it is printed with."""

    ADDED = "+"
    CHANGED = "~"
    RETIRED = "-"
    KEPT = "!"
    UNCHANGED = "="


_COLOURS = {Kind.ADDED: "green", Kind.CHANGED: "yellow", Kind.RETIRED: "red", Kind.KEPT: "cyan"}
_WORDS = {
    Kind.ADDED: "added",
    Kind.CHANGED: "changed",
    Kind.RETIRED: "deactivated",
    Kind.KEPT: "kept as you set it",
    Kind.UNCHANGED: "unchanged",
}


class Change(msgspec.Struct, frozen=True):
    """What happens to one row of a table. `note` says it to people."""

    table: str
    key: str
    kind: Kind
    note: str = ""


def difference(old: Mapping[str, object], new: Mapping[str, object]) -> dict[str, tuple[object, object]]:
    """Return the fields of `new` that differ from `old`, each with both values."""
    return {name: (old[name], value) for name, value in new.items() if old[name] != value}


def arrows(fields: Mapping[str, tuple[object, object]]) -> str:
    """Return `calendar none → XBOM, priority 5 → 10`."""
    return ", ".join(f"{name} {shown(old)} → {shown(new)}" for name, (old, new) in fields.items())


def shown(value: object) -> str:
    """Return a value as people write it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return plain_number(value) if isinstance(value, Decimal) else str(value)


def print_changes(console: Console, changes: Iterable[Change], *, everything: bool = False) -> None:
    """Print changes by table and kind; of each kind the first twenty rows unless `everything`."""
    tables: dict[str, dict[Kind, list[Change]]] = {}
    for change in changes:
        tables.setdefault(change.table, {}).setdefault(change.kind, []).append(change)
    for table, kinds in tables.items():
        counts = ", ".join(f"{len(kinds[kind])} {_WORDS[kind]}" for kind in Kind if kind in kinds)
        console.print(f"[bold]{escape(table)}[/]: {counts}")
        for kind in Kind:
            if kind is not Kind.UNCHANGED:
                _print_rows(console, kind, kinds.get(kind, []), everything=everything)


def _print_rows(console: Console, kind: Kind, rows: list[Change], *, everything: bool) -> None:
    limit = len(rows) if everything else SHOWN_PER_KIND
    for row in rows[:limit]:
        note = f"  {escape(row.note)}" if row.note else ""
        console.print(f"  [{_COLOURS[kind]}]{kind.value} {escape(row.key)}[/]{note}")
    if len(rows) > limit:
        console.print(f"    … and {len(rows) - limit} more (--verbose shows all)")
