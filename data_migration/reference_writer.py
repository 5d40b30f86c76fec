"""Writes the shipped providers, exchanges and their mappings into the tables, or says what it would.

What an operator may change in these rows (`is_active`, `priority`, `is_primary`, `delivery`, `allow_delayed`,
`rate_limit`) stays as it is once a row is there, unless a reset is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Table, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from data_migration.changes import Change, Kind, arrows, difference, shown
from data_migration.reference_data import EXCHANGES, PROVIDERS, ROUTES
from models import Base, Exchange, ExchangeProviderMapping, Provider

_Row = dict[str, Any]
_Key = Callable[[_Row], str]


async def write_reference_data(connection: AsyncConnection, *, reset: bool, dry_run: bool) -> list[Change]:
    """Write the shipped rows in the transaction of `connection`; return what happened to each.

    With `dry_run` nothing is sent but queries. With `reset` the operator's changes are put back.
    """
    writer = _Writer(connection, reset=reset, dry_run=dry_run)
    providers = await writer.upsert(
        Provider,
        {provider.code: provider._asdict() for provider in PROVIDERS},
        await writer.read(Provider),
        _code,
        owned=("rate_limit", "is_active"),
    )
    exchanges = await writer.upsert(
        Exchange,
        {exchange.code: exchange._asdict() for exchange in EXCHANGES},
        await writer.read(Exchange),
        _code,
        owned=("is_active",),
    )
    await _write_routes(writer, providers, exchanges, reset=reset)
    return writer.changes


async def _write_routes(
    writer: _Writer, providers: dict[str, int], exchanges: dict[str, int], *, reset: bool
) -> None:
    provider_codes = {number: code for code, number in providers.items()}
    exchange_codes = {number: code for code, number in exchanges.items()}

    def key(row: _Row) -> str:
        return f"{exchange_codes[row['exchange_id']]} from {provider_codes[row['provider_id']]}"

    existing = await writer.read(ExchangeProviderMapping)
    primary_of = {row["exchange_id"]: key(row) for row in existing if row["is_primary"]}
    known = {key(row) for row in existing}
    shipped = {f"{route.exchange} from {route.provider}" for route in ROUTES}
    wanted: dict[str, _Row] = {}
    for route in ROUTES:
        row: _Row = {
            "provider_id": providers[route.provider],
            "exchange_id": exchanges[route.exchange],
            "is_primary": route.is_primary,
            "priority": route.priority,
            "delivery": route.delivery,
            "allow_delayed": route.allow_delayed,
        }
        name = key(row)
        wanted[name] = row
        primary = primary_of.get(row["exchange_id"], name)
        if route.is_primary and primary != name:
            if reset:
                await writer.clear_primary(existing, key, primary, shipped=primary in shipped)
            elif name not in known:
                # The operator removed this row and made another provider the primary.
                row["is_primary"] = False
    await writer.upsert(
        ExchangeProviderMapping,
        wanted,
        existing,
        key,
        owned=("is_primary", "priority", "is_active", "delivery", "allow_delayed"),
    )


class _Writer:
    """Writes one table after another and notes what happened to each row."""

    def __init__(self, connection: AsyncConnection, *, reset: bool, dry_run: bool) -> None:
        self._connection = connection
        self._reset = reset
        self._dry_run = dry_run
        self.changes: list[Change] = []

    async def read(self, model: type[Base]) -> list[_Row]:
        """Return the rows of a table."""
        result = await self._connection.execute(select(_table(model)))
        return [dict(row) for row in result.mappings()]

    async def upsert(
        self,
        model: type[Base],
        wanted: Mapping[str, _Row],
        existing_rows: list[_Row],
        key: _Key,
        owned: tuple[str, ...],
    ) -> dict[str, int]:
        """Write the wanted rows; return the ids of all rows of the table by key.

        `owned` columns belong to the operator once a row is there. In a dry run new rows get numbers
        below zero.
        """
        table = _table(model)
        existing = {key(row): row for row in existing_rows}
        ids = {name: int(row["id"]) for name, row in existing.items()}
        for number, (name, row) in enumerate(wanted.items(), start=1):
            found = existing.get(name)
            if found is None:
                self._note(table, name, Kind.ADDED, _described(row))
                ids[name] = -number if self._dry_run else await self._insert(table, row)
            else:
                await self._update(table, name, found, row, owned)
        return ids

    async def clear_primary(self, existing: list[_Row], key: _Key, name: str, *, shipped: bool) -> None:
        """Take `is_primary` from the row called `name`, before another one gets it."""
        table = _table(ExchangeProviderMapping)
        if not shipped:
            self._note(table, name, Kind.CHANGED, "is_primary yes → no")
        if not self._dry_run:
            row = next(row for row in existing if key(row) == name)
            await self._connection.execute(
                update(table).where(table.c.id == row["id"]).values(is_primary=False)
            )

    async def _update(self, table: Table, name: str, found: _Row, row: _Row, owned: tuple[str, ...]) -> None:
        changed = difference(found, {**row, "is_active": True})
        kept = {} if self._reset else {column: changed.pop(column) for column in owned if column in changed}
        if kept:
            note = ", ".join(
                f"{column} {shown(old)} (shipped: {shown(new)})" for column, (old, new) in kept.items()
            )
            self._note(table, name, Kind.KEPT, note)
        if changed:
            self._note(table, name, Kind.CHANGED, arrows(changed))
            if not self._dry_run:
                values = {column: new for column, (_, new) in changed.items()}
                await self._connection.execute(update(table).where(table.c.id == found["id"]).values(values))
        elif not kept:
            self._note(table, name, Kind.UNCHANGED)

    async def _insert(self, table: Table, row: _Row) -> int:
        result = await self._connection.execute(insert(table).values(row).returning(table.c.id))
        return int(result.scalar_one())

    def _note(self, table: Table, key: str, kind: Kind, note: str = "") -> None:
        self.changes.append(Change(table.name, key, kind, note))


def _table(model: type[Base]) -> Table:
    table = model.__table__
    assert isinstance(table, Table)  # noqa: S101 - tells the type checker what declarative classes have
    return table


def _code(row: _Row) -> str:
    return str(row["code"])


def _described(row: _Row) -> str:
    """Return what a new row says, without its keys."""
    said = {name: value for name, value in row.items() if name != "code" and not name.endswith("_id")}
    return ", ".join(f"{name} {shown(value)}" for name, value in said.items() if value is not None)
