"""Writes a plan of instruments and mappings: each kind of change one statement over arrays of columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Table, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from data_migration.population_plan import INSTRUMENT_FIELDS, MappingUpdate, Plan
from data_migration.resolution import WantedInstrument, WantedMapping
from models import Exchange, Instrument, ProviderInstrumentMapping

_INSTRUMENTS = cast("Table", Instrument.__table__)
_MAPPINGS = cast("Table", ProviderInstrumentMapping.__table__)


async def carry_out(
    connection: AsyncConnection, plan: Plan, exchanges: dict[str, int], providers: dict[str, int]
) -> None:
    """Write a plan in the transaction of `connection`; the ids of exchanges and providers are by code."""
    await _insert_instruments(connection, plan.new_instruments, exchanges)
    await _write_many(
        connection,
        f"UPDATE instruments SET ({', '.join(INSTRUMENT_FIELDS)}) = "  # noqa: S608 - our own column names
        f"ROW({', '.join(f'new.{name}' for name in INSTRUMENT_FIELDS)}) "
        "FROM {rows} WHERE instruments.id = new.id",
        _INSTRUMENTS,
        {
            "id": [update.id for update in plan.instrument_updates],
            **{
                name: [update.values[name] for update in plan.instrument_updates]
                for name in INSTRUMENT_FIELDS
            },
        },
    )
    # Names move between rows: all that lose or change one let go of it before any takes it.
    active = [update for update in plan.mapping_updates if update.is_active]
    await _write_many(
        connection,
        "UPDATE provider_instrument_mappings SET is_active = false FROM {rows} "
        "WHERE provider_instrument_mappings.id = new.id",
        _MAPPINGS,
        {"id": [*plan.retired, *(update.id for update in active)]},
    )
    await _update_mappings(connection, plan.mapping_updates)
    await _insert_mappings(connection, plan.new_mappings, providers)


async def _insert_instruments(
    connection: AsyncConnection, rows: Sequence[WantedInstrument], exchanges: dict[str, int]
) -> None:
    columns: dict[str, list[Any]] = {
        "exchange_id": [exchanges[row.exchange] for row in rows],
        "symbol": [row.symbol for row in rows],
        **{name: [getattr(row, name) for row in rows] for name in INSTRUMENT_FIELDS},
    }
    names = ", ".join(columns)
    await _write_many(
        connection,
        f"INSERT INTO instruments ({names}) SELECT {names} FROM {{rows}}",  # noqa: S608 - as above
        _INSTRUMENTS,
        columns,
    )


async def _update_mappings(connection: AsyncConnection, updates: Sequence[MappingUpdate]) -> None:
    await _write_many(
        connection,
        "UPDATE provider_instrument_mappings SET is_active = new.is_active, "
        "provider_instrument_search_code = new.provider_instrument_search_code, "
        "provider_segment = new.provider_segment, provider_security_id = new.provider_security_id "
        "FROM {rows} WHERE provider_instrument_mappings.id = new.id",
        _MAPPINGS,
        {
            "id": [update.id for update in updates],
            "is_active": [update.is_active for update in updates],
            **_mapping_columns([update.wanted for update in updates]),
        },
    )


async def _insert_mappings(
    connection: AsyncConnection, rows: Sequence[tuple[str, WantedMapping]], providers: dict[str, int]
) -> None:
    if not rows:
        return
    ids = {
        f"{row.exchange}:{row.symbol}": row.id
        for row in await connection.execute(
            select(Instrument.id, Instrument.symbol, Exchange.code.label("exchange")).join(
                Exchange, Exchange.id == Instrument.exchange_id
            )
        )
    }
    columns: dict[str, list[Any]] = {
        "provider_id": [providers[mapping.provider] for _, mapping in rows],
        "instrument_id": [ids[key] for key, _ in rows],
        **_mapping_columns([mapping for _, mapping in rows]),
    }
    names = ", ".join(columns)
    await _write_many(
        connection,
        f"INSERT INTO provider_instrument_mappings ({names}) SELECT {names} FROM {{rows}}",  # noqa: S608
        _MAPPINGS,
        columns,
    )


def _mapping_columns(mappings: Sequence[WantedMapping]) -> dict[str, list[Any]]:
    return {
        "provider_instrument_search_code": [mapping.search_code for mapping in mappings],
        "provider_segment": [mapping.segment for mapping in mappings],
        "provider_security_id": [mapping.security_id for mapping in mappings],
    }


async def _write_many(
    connection: AsyncConnection, statement: str, table: Table, columns: dict[str, list[Any]]
) -> None:
    """Run one statement over many rows: `{rows}` stands for them, each column sent as one array."""
    if not columns["id" if "id" in columns else next(iter(columns))]:
        return
    arrays = ", ".join(
        f"CAST(:{name} AS {table.c[name].type.compile(connection.dialect)}[])" for name in columns
    )
    rows = f"unnest({arrays}) AS new({', '.join(columns)})"
    await connection.execute(text(statement.format(rows=rows)), columns)
