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

from services.catalogue.database import Connection, Database
from services.catalogue.validation import Route
from services.market_data.instruments import AssetClass, InstrumentMapping, ProviderEntry

_PIECE = 1_000
"""Rows converted at a stretch: some milliseconds of the event loop."""
_FETCHED = 5_000
"""Rows asked for at a time: on a busy machine each round trip waits for its turn."""
_FOR_EVER_YEAR = 9999
"""Where `infinity` arrives."""

_PROVIDERS = "SELECT code, name, rate_limit FROM providers WHERE is_active"

# What is long over stays in the tables for ever and is not read; zones differ by a day at most.
# In the order of bytes, whatever the database's locale: it depends on the content alone.
_MAPPINGS = """
SELECT m.id, e.code, e.timezone, i.symbol, i.name, i.asset_class, i.currency, i.tick_size, i.lot_size,
    i.expiry, p.code, m.provider_instrument_search_code, m.provider_segment, m.provider_security_id,
    r.is_primary, r.priority, r.delivery, r.allow_delayed, m.valid_from, m.valid_to
FROM provider_instrument_mappings m
JOIN instruments i ON i.id = m.instrument_id
JOIN exchanges e ON e.id = i.exchange_id
JOIN providers p ON p.id = m.provider_id
JOIN exchange_provider_mappings r ON r.provider_id = p.id AND r.exchange_id = e.id
WHERE m.is_active AND i.is_active AND e.is_active AND p.is_active AND r.is_active
    AND (i.expiry IS NULL OR i.expiry >= CAST($1 AS date))
    AND (m.valid_to IS NULL OR m.valid_to > CAST($2 AS timestamptz))
ORDER BY e.code COLLATE "C", i.symbol COLLATE "C", r.is_primary DESC, r.priority, p.code COLLATE "C"
"""

# Only tables without their foreign keys can hold such rows.
_DANGLING = """
SELECT m.id FROM provider_instrument_mappings m
LEFT JOIN instruments i ON i.id = m.instrument_id
LEFT JOIN exchanges e ON e.id = i.exchange_id
LEFT JOIN providers p ON p.id = m.provider_id
WHERE m.is_active AND (e.id IS NULL OR p.id IS NULL) ORDER BY m.id LIMIT 1000
"""

_ROUTES = """
SELECT r.id, e.code, p.code, r.is_primary, r.is_active AND e.is_active AND p.is_active
FROM exchange_provider_mappings r
JOIN exchanges e ON e.id = r.exchange_id
JOIN providers p ON p.id = r.provider_id
ORDER BY r.id
"""

_PERMIT = "SELECT coalesce(max(id), 0) FROM mapping_changes WHERE allows_removal"


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
    database: Database, now_ms: int, command_timeout_s: float, known: Iterable[InstrumentMapping] = ()
) -> TablesRead:
    """Return active providers, and active mappings of active instruments, exchanges and routes.

    Mappings whose dates are over, and contracts whose last day of trading has passed on their exchange,
    are left out: vendors give their ids to new ones. A row that says what one of `known` says is that same
    object again, so that reading what has not changed needs no memory.
    """
    async with database.transaction(isolation="repeatable_read") as connection:
        await _bound_waits(connection, command_timeout_s)
        return await read_from(connection, now_ms, known)


async def read_from(
    connection: Connection, now_ms: int, known: Iterable[InstrumentMapping] = ()
) -> TablesRead:
    """Return what the tables say inside the transaction of `connection`, one of the driver's."""
    providers = [
        ProviderEntry(code=code, name=name, rate_limit=None if rate_limit is None else float(rate_limit))
        for code, name, rate_limit in await connection.fetch(_PROVIDERS)
    ]
    routes = [Route(*row) for row in await connection.fetch(_ROUTES)]
    dangling = [row[0] for row in await connection.fetch(_DANGLING)]
    permit = int(await connection.fetchval(_PERMIT))
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
    connection: Connection, now_ms: int, known: Iterable[InstrumentMapping]
) -> tuple[list[InstrumentMapping], list[InstrumentMapping]]:
    """Read in pieces: the time limit holds for each, and the event loop breathes between them."""
    mappings: list[InstrumentMapping] = []
    upcoming: list[InstrumentMapping] = []
    ends = _LastDays()
    held = {mapping.mapping_id: mapping for mapping in known}
    now = datetime.fromtimestamp(now_ms / 1000, UTC)
    cursor = await connection.cursor(_MAPPINGS, now.date() - timedelta(days=2), now)
    while rows := await cursor.fetch(_FETCHED):
        for at in range(0, len(rows), _PIECE):
            for row in rows[at : at + _PIECE]:
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


async def read_revisions(database: Database, command_timeout_s: float) -> list[str]:
    """Return the schema revisions the database names: one, or none where there is no schema."""
    async with database.transaction() as connection:
        await _bound_waits(connection, command_timeout_s)
        if not await connection.fetchval("SELECT to_regclass('alembic_version') IS NOT NULL"):
            return []
        return [str(row[0]) for row in await connection.fetch("SELECT version_num FROM alembic_version")]


async def _bound_waits(connection: Connection, seconds: float) -> None:
    """Let the server give up too: a client that stops waiting leaves its query behind."""
    wait = f"{round(seconds * 1000)}ms"
    await connection.fetch(
        "SELECT set_config('statement_timeout', $1, true), set_config('lock_timeout', $1, true)", wait
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
