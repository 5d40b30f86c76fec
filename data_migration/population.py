"""Brings instruments and their mappings up to date in one transaction under the writers' lock."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import cast
from zoneinfo import ZoneInfo

from sqlalchemy import Table, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from data_migration.plan_writer import carry_out
from data_migration.population_plan import (
    INSTRUMENT_FIELDS,
    Plan,
    StoredInstrument,
    StoredMapping,
    make_plan,
)
from data_migration.resolution import WantedInstrument
from data_migration.schema import LOCK_WAIT_S, current_revision, head_revision, take_lock
from models import Exchange, Instrument, Provider, ProviderInstrumentMapping
from services.catalogue.connection import DATABASE_ERRORS, SETUP_COMMAND, database_error, make_engine
from services.errors import ConfigurationError

_INSTRUMENTS = cast("Table", Instrument.__table__)


async def populate(
    database_url: str,
    wanted: Sequence[WantedInstrument],
    *,
    dry_run: bool = False,
    lock_wait_s: float = LOCK_WAIT_S,
) -> Plan:
    """Bring the tables to the wanted instruments; with `dry_run` only say what would happen.

    Raises `ConfigurationError` when the schema is not at head, providers or exchanges are missing, or
    names clash; `TemporaryError` when another writer is at work for longer than `lock_wait_s` seconds.
    """
    engine = make_engine(database_url, application_name="marketd-populate", connect_timeout_s=10)
    try:
        async with engine.connect() as connection, connection.begin():
            if dry_run:
                await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
                await check_at_head(connection)
            else:
                await take_lock(connection, lock_wait_s)
                await check_at_head(connection)
                # Nobody else writes these tables while the plan is made and carried out; all may read.
                await connection.execute(
                    text("LOCK TABLE instruments, provider_instrument_mappings IN SHARE ROW EXCLUSIVE MODE")
                )
            exchanges, providers = await _codes(connection, wanted)
            plan = await _plan(connection, wanted)
            if plan.conflicts:
                raise ConfigurationError(
                    f"{len(plan.conflicts)} names are taken, nothing was written:\n  "
                    + "\n  ".join(plan.conflicts[:20])
                )
            if not dry_run:
                await carry_out(connection, plan, exchanges, providers)
        return plan
    except DATABASE_ERRORS as error:
        raise database_error(error, database_url) from error
    finally:
        await engine.dispose()


async def exchange_codes(database_url: str) -> tuple[list[str], int]:
    """Return the codes of the exchanges in the database, and how many mappings are active.

    Raises `ConfigurationError` when the schema is not at head or no exchange is there.
    """
    engine = make_engine(database_url, application_name="marketd-populate", connect_timeout_s=10)
    try:
        async with engine.connect() as connection, connection.begin():
            await connection.execute(text("SET TRANSACTION READ ONLY"))
            await check_at_head(connection)
            codes = list((await connection.execute(select(Exchange.code).order_by(Exchange.id))).scalars())
            active = await connection.execute(
                text("SELECT count(*) FROM provider_instrument_mappings WHERE is_active")
            )
            count = int(active.scalar_one())
    except DATABASE_ERRORS as error:
        raise database_error(error, database_url) from error
    finally:
        await engine.dispose()
    if not codes:
        raise ConfigurationError(f"the database has no exchanges yet: run {SETUP_COMMAND} first")
    return codes, count


async def check_at_head(connection: AsyncConnection) -> None:
    """Raise `ConfigurationError` when the schema is not the one this program writes."""
    found, head = await current_revision(connection), head_revision()
    if found != head:
        raise ConfigurationError(
            f"the database's schema is at {found or 'nothing'}, this program needs {head}: "
            f"run {SETUP_COMMAND} first"
        )


async def _codes(
    connection: AsyncConnection, wanted: Sequence[WantedInstrument]
) -> tuple[dict[str, int], dict[str, int]]:
    exchanges = {row.code: row.id for row in await connection.execute(select(Exchange.code, Exchange.id))}
    providers = {row.code: row.id for row in await connection.execute(select(Provider.code, Provider.id))}
    needed = {mapping.provider for instrument in wanted for mapping in instrument.mappings}
    missing = sorted({row.exchange for row in wanted} - exchanges.keys()) + sorted(needed - providers.keys())
    if missing:
        raise ConfigurationError(
            f"the database does not have {', '.join(missing)}: run {SETUP_COMMAND} first"
        )
    return exchanges, providers


async def _plan(connection: AsyncConnection, wanted: Sequence[WantedInstrument]) -> Plan:
    now = (await connection.execute(text("SELECT now()"))).scalar_one()
    instruments = [
        StoredInstrument(
            key=f"{row.exchange}:{row.symbol}",
            **{n: getattr(row, n) for n in ("id", "is_active", *INSTRUMENT_FIELDS)},
        )
        for row in await connection.execute(
            select(
                Instrument.id,
                Exchange.code.label("exchange"),
                Instrument.symbol,
                Instrument.is_active,
                *(_INSTRUMENTS.c[name] for name in INSTRUMENT_FIELDS),
            ).join(Exchange, Exchange.id == Instrument.exchange_id)
        )
    ]
    mappings = [
        StoredMapping(
            id=row.id,
            key=f"{row.exchange}:{row.symbol}",
            provider=row.provider,
            search_code=row.search_code,
            segment=row.segment,
            security_id=row.security_id,
            # What has ended by its date holds its names no longer.
            is_active=row.is_active and (row.valid_to is None or row.valid_to > now),
            expiry=row.expiry,
            is_dated=row.valid_from is not None or row.valid_to is not None,
        )
        for row in await connection.execute(
            select(
                ProviderInstrumentMapping.id,
                Exchange.code.label("exchange"),
                Instrument.symbol,
                Instrument.expiry,
                Provider.code.label("provider"),
                ProviderInstrumentMapping.provider_instrument_search_code.label("search_code"),
                ProviderInstrumentMapping.provider_segment.label("segment"),
                ProviderInstrumentMapping.provider_security_id.label("security_id"),
                ProviderInstrumentMapping.is_active,
                ProviderInstrumentMapping.valid_from,
                ProviderInstrumentMapping.valid_to,
            )
            .join(Instrument, Instrument.id == ProviderInstrumentMapping.instrument_id)
            .join(Exchange, Exchange.id == Instrument.exchange_id)
            .join(Provider, Provider.id == ProviderInstrumentMapping.provider_id)
        )
    ]
    return make_plan(wanted, instruments, mappings, datetime.now(ZoneInfo("Asia/Kolkata")).date())
