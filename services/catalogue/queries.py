"""Reads the five tables into provider entries and instrument mappings, in one read-only transaction.

Judges nothing: what is wrong is read as it is, for `validation` to find.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, date, datetime, time, timedelta
from sys import intern
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from sqlalchemy import Date, DateTime, and_, bindparam, func, or_, select, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from models import (
    Exchange,
    ExchangeProviderMapping,
    Instrument,
    MappingChange,
    Provider,
    ProviderInstrumentMapping,
)
from services.catalogue.validation import Route
from services.market_data.instruments import AssetClass, InstrumentMapping, ProviderEntry

_PIECE = 1_000
"""Rows converted at a stretch: some milliseconds of the event loop."""
_FETCHED = 5_000
"""Rows asked for at a time: on a busy machine each round trip waits for its turn."""
_FOR_EVER_YEAR = 9999
"""Where `infinity` arrives."""

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
        ProviderInstrumentMapping.valid_from,
        ProviderInstrumentMapping.valid_to,
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
        # What is long over stays in the tables for ever and is not read; zones differ by a day at most.
        or_(Instrument.expiry.is_(None), Instrument.expiry >= bindparam("recent", type_=Date)),
        or_(
            ProviderInstrumentMapping.valid_to.is_(None),
            ProviderInstrumentMapping.valid_to > bindparam("now", type_=DateTime(timezone=True)),
        ),
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


# Only tables without their foreign keys can hold such rows.
_DANGLING = (
    select(ProviderInstrumentMapping.id)
    .outerjoin(Instrument, Instrument.id == ProviderInstrumentMapping.instrument_id)
    .outerjoin(Exchange, Exchange.id == Instrument.exchange_id)
    .outerjoin(Provider, Provider.id == ProviderInstrumentMapping.provider_id)
    .where(ProviderInstrumentMapping.is_active, or_(Exchange.id.is_(None), Provider.id.is_(None)))
    .order_by(ProviderInstrumentMapping.id)
    .limit(1_000)
)

_ROUTES = (
    select(
        ExchangeProviderMapping.id,
        Exchange.code,
        Provider.code,
        ExchangeProviderMapping.is_primary,
        and_(ExchangeProviderMapping.is_active, Exchange.is_active, Provider.is_active),
    )
    .join(Exchange, Exchange.id == ExchangeProviderMapping.exchange_id)
    .join(Provider, Provider.id == ExchangeProviderMapping.provider_id)
    .order_by(ExchangeProviderMapping.id)
)

_PERMIT = select(func.coalesce(func.max(MappingChange.id), 0)).where(MappingChange.allows_removal)


class TablesRead(msgspec.Struct, frozen=True):
    """What the tables say at one moment.

    `mappings` hold now and stand in order: an instrument's providers together, the primary first, then by
    priority, then by code. `upcoming` begin to hold later. `dangling` are ids of active mappings of
    something that does not exist. `permit` is the newest permission to remove many, 0 for none.
    """

    providers: tuple[ProviderEntry, ...]
    mappings: tuple[InstrumentMapping, ...]
    upcoming: tuple[InstrumentMapping, ...]
    routes: tuple[Route, ...]
    dangling: tuple[int, ...]
    permit: int


async def read_tables(
    engine: AsyncEngine, now_ms: int, command_timeout_s: float, known: Iterable[InstrumentMapping] = ()
) -> TablesRead:
    """Return active providers, and active mappings of active instruments, exchanges and routes.

    Mappings whose dates are over, and contracts whose last day of trading has passed on their exchange,
    are left out: vendors give their ids to new ones. A row that says what one of `known` says is that same
    object again, so that reading what has not changed needs no memory.
    """
    async with engine.connect() as connection:
        connection = await connection.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        async with connection.begin():
            await _bound_waits(connection, command_timeout_s)
            return await read_from(connection, now_ms, known)


async def read_from(
    connection: AsyncConnection, now_ms: int, known: Iterable[InstrumentMapping] = ()
) -> TablesRead:
    """Return what the tables say inside the transaction of `connection`."""
    providers = [
        ProviderEntry(
            code=row.code,
            name=row.name,
            rate_limit=None if row.rate_limit is None else float(row.rate_limit),
        )
        for row in await connection.execute(_PROVIDERS)
    ]
    routes = [Route(*row) for row in await connection.execute(_ROUTES)]
    dangling = list((await connection.execute(_DANGLING)).scalars())
    permit = int((await connection.execute(_PERMIT)).scalar_one())
    mappings, upcoming = await _read_mappings(connection, now_ms, known)
    return TablesRead(
        providers=tuple(sorted(providers, key=lambda entry: entry.code)),
        mappings=tuple(mappings),
        upcoming=tuple(upcoming),
        routes=tuple(routes),
        dangling=tuple(dangling),
        permit=permit,
    )


async def _read_mappings(
    connection: AsyncConnection, now_ms: int, known: Iterable[InstrumentMapping]
) -> tuple[list[InstrumentMapping], list[InstrumentMapping]]:
    """Read in pieces: the time limit holds for each, and the event loop breathes between them."""
    mappings: list[InstrumentMapping] = []
    upcoming: list[InstrumentMapping] = []
    ends = _LastDays()
    held = {mapping.mapping_id: mapping for mapping in known}
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    parameters = {"now": now, "recent": now.date() - timedelta(days=2)}
    options = {"max_row_buffer": _FETCHED}
    async with connection.stream(_MAPPINGS, parameters, execution_options=options) as result:
        async for fetched in result.partitions(_FETCHED):
            for at in range(0, len(fetched), _PIECE):
                for row in fetched[at : at + _PIECE]:
                    mapping = _mapping(row, ends)
                    before = held.get(mapping.mapping_id)
                    if before is not None and before == mapping:
                        mapping = before
                    if mapping.valid_to_ms is not None and mapping.valid_to_ms <= now_ms:
                        continue
                    later = mapping.valid_from_ms is not None and mapping.valid_from_ms > now_ms
                    (upcoming if later else mappings).append(mapping)
                await asyncio.sleep(0)
    return mappings, upcoming


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


_ASSET_CLASSES = {kind.value: kind for kind in AssetClass}


def _mapping(row: Any, ends: _LastDays) -> InstrumentMapping:
    (
        row_id,
        exchange,
        timezone,
        symbol,
        name,
        asset_class,
        currency,
        tick_size,
        lot_size,
        expiry,
        provider,
        search_code,
        segment,
        security_id,
        is_primary,
        priority,
        delivery,
        allow_delayed,
        valid_from,
        valid_to,
    ) = row
    valid_to_ms = _to_ms(valid_to)
    if expiry is not None:
        end_ms = ends.end_ms(expiry, timezone)
        valid_to_ms = end_ms if valid_to_ms is None else min(end_ms, valid_to_ms)
    return InstrumentMapping(
        mapping_id=row_id,
        instrument=f"{exchange}:{symbol}",
        # What many rows say is kept once; the driver makes it anew for each of them.
        exchange=intern(exchange),
        symbol=symbol,
        name=name,
        asset_class=_ASSET_CLASSES[asset_class],
        currency=intern(currency),
        provider_code=intern(provider),
        search_code=search_code,
        segment=None if segment is None else intern(segment),
        security_id=security_id,
        tick_size=None if tick_size is None else float(tick_size),
        lot_size=lot_size,
        is_primary=is_primary,
        priority=priority,
        valid_from_ms=_to_ms(valid_from),
        valid_to_ms=valid_to_ms,
        delivery=None if delivery is None else intern(delivery),
        allow_delayed=allow_delayed,
    )


def _to_ms(moment: datetime | None) -> int | None:
    """Return UTC epoch ms; None for no limit and for one that is never reached."""
    if moment is None or moment.year >= _FOR_EVER_YEAR:
        return None
    if moment.year <= 1:
        return 0
    return (moment - _EPOCH) // _ONE_MS


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ONE_MS = timedelta(milliseconds=1)


class _LastDays:
    """When the last days of trading end, by each exchange's clock."""

    def __init__(self) -> None:
        self._known: dict[tuple[date, str], int] = {}

    def end_ms(self, last_day: date, zone: str) -> int:
        """Return the first moment after the day in the zone, UTC epoch ms."""
        key = (last_day, zone)
        found = self._known.get(key)
        if found is None:
            midnight = datetime.combine(last_day + timedelta(days=1), time.min)
            try:
                moment = midnight.replace(tzinfo=ZoneInfo(zone))
            except (ZoneInfoNotFoundError, ValueError):
                # A zone the tables allow and this machine does not know costs at most a day's delay.
                moment = midnight.replace(tzinfo=UTC)
            found = self._known[key] = (moment - _EPOCH) // _ONE_MS
        return found
