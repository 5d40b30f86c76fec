"""Reads the five tables into provider entries and instrument mappings, in one read-only transaction."""

from __future__ import annotations

from datetime import UTC, date, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from sqlalchemy import RowMapping, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models import Exchange, ExchangeProviderMapping, Instrument, Provider, ProviderInstrumentMapping
from services.market_data.instruments import AssetClass, InstrumentMapping, ProviderEntry

_PIECE = 500
"""Rows converted at a stretch: some milliseconds of the event loop."""

_PROVIDERS = select(Provider.code, Provider.name, Provider.rate_limit).where(Provider.is_active)

_MAPPINGS = (
    select(
        ProviderInstrumentMapping.id,
        Exchange.code.label("exchange"),
        Exchange.timezone,
        Instrument.symbol,
        Instrument.name,
        Instrument.asset_class,
        Instrument.currency,
        Instrument.tick_size,
        Instrument.lot_size,
        Instrument.expiry,
        Provider.code.label("provider"),
        ProviderInstrumentMapping.provider_instrument_search_code.label("search_code"),
        ProviderInstrumentMapping.provider_segment.label("segment"),
        ProviderInstrumentMapping.provider_security_id.label("security_id"),
        ExchangeProviderMapping.is_primary,
        ExchangeProviderMapping.priority,
        ExchangeProviderMapping.delivery,
        ExchangeProviderMapping.allow_delayed,
    )
    .select_from(ProviderInstrumentMapping)
    .join(Instrument, Instrument.id == ProviderInstrumentMapping.instrument_id)
    .join(Exchange, Exchange.id == Instrument.exchange_id)
    .join(Provider, Provider.id == ProviderInstrumentMapping.provider_id)
    .join(
        ExchangeProviderMapping,
        (ExchangeProviderMapping.provider_id == Provider.id)
        & (ExchangeProviderMapping.exchange_id == Exchange.id),
    )
    .where(
        ProviderInstrumentMapping.is_active,
        Instrument.is_active,
        Exchange.is_active,
        Provider.is_active,
        ExchangeProviderMapping.is_active,
    )
    # By bytes, whatever the database's locale: the order depends on the content alone.
    .order_by(
        Exchange.code.collate("C"),
        Instrument.symbol.collate("C"),
        ExchangeProviderMapping.is_primary.desc(),
        ExchangeProviderMapping.priority,
        Provider.code.collate("C"),
    )
)


async def read_tables(
    engine: AsyncEngine, now_ms: int, command_timeout_s: float
) -> tuple[tuple[ProviderEntry, ...], tuple[InstrumentMapping, ...]]:
    """Return active providers, and active mappings of active instruments, exchanges and routes.

    Contracts whose last day of trading has passed on their exchange are left out: vendors give their
    ids to new ones. An instrument's providers stand together: the primary, then by priority, then by code.
    """
    async with engine.connect() as connection:
        connection = await connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        async with connection.begin():
            await _bound_waits(connection, command_timeout_s)
            providers = [
                ProviderEntry(
                    code=row.code,
                    name=row.name,
                    rate_limit=None if row.rate_limit is None else float(row.rate_limit),
                )
                for row in await connection.execute(_PROVIDERS)
            ]
            mappings = await _read_mappings(connection, _Today(now_ms))
    return tuple(sorted(providers, key=lambda entry: entry.code)), tuple(mappings)


async def _read_mappings(connection: AsyncConnection, today: _Today) -> list[InstrumentMapping]:
    """Read in pieces: the time limit holds for each, and the event loop breathes between them."""
    mappings: list[InstrumentMapping] = []
    async with connection.stream(_MAPPINGS, execution_options={"max_row_buffer": _PIECE}) as result:
        async for rows in result.mappings().partitions(_PIECE):
            mappings += [
                _mapping(row)
                for row in rows
                if row["expiry"] is None or row["expiry"] >= today.in_zone(row["timezone"])
            ]
    return mappings


async def read_revisions(engine: AsyncEngine, command_timeout_s: float) -> list[str]:
    """Return the schema revisions the database names: one, or none where there is no schema."""
    async with engine.connect() as connection, connection.begin():
        await _bound_waits(connection, command_timeout_s)
        found = await connection.execute(text("SELECT to_regclass('alembic_version') IS NOT NULL"))
        if not found.scalar_one():
            return []
        rows = await connection.execute(text("SELECT version_num FROM alembic_version"))
        return [str(revision) for revision in rows.scalars()]


async def _bound_waits(connection: AsyncConnection, seconds: float) -> None:
    """Let the server give up too: a client that stops waiting leaves its query behind."""
    wait = f"{round(seconds * 1000)}ms"
    await connection.execute(
        text("SELECT set_config('statement_timeout', :wait, true), set_config('lock_timeout', :wait, true)"),
        {"wait": wait},
    )


def _mapping(row: RowMapping) -> InstrumentMapping:
    return InstrumentMapping(
        mapping_id=row["id"],
        instrument=f"{row['exchange']}:{row['symbol']}",
        exchange=row["exchange"],
        symbol=row["symbol"],
        name=row["name"],
        asset_class=AssetClass(row["asset_class"]),
        currency=row["currency"],
        provider_code=row["provider"],
        search_code=row["search_code"],
        segment=row["segment"],
        security_id=row["security_id"],
        tick_size=None if row["tick_size"] is None else float(row["tick_size"]),
        lot_size=row["lot_size"],
        is_primary=row["is_primary"],
        priority=row["priority"],
        delivery=row["delivery"],
        allow_delayed=row["allow_delayed"],
    )


class _Today:
    """The date at one moment in each exchange's time zone."""

    def __init__(self, now_ms: int) -> None:
        self._now = datetime.fromtimestamp(now_ms / 1000, UTC)
        self._dates: dict[str, date] = {}

    def in_zone(self, name: str) -> date:
        day = self._dates.get(name)
        if day is None:
            try:
                day = self._now.astimezone(ZoneInfo(name)).date()
            except (ZoneInfoNotFoundError, ValueError):
                # A zone the tables allow and this machine does not know costs at most a day's delay.
                day = self._now.date()
            self._dates[name] = day
        return day
