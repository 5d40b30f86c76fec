"""The coverage ledger in PostgreSQL: read by instrument, changed by notes, in transactions that may repeat.

Stands under the ledger, which decides when. Several processes may note at once: a lock per instrument and
type, held for one transaction, keeps them apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from services.catalogue.access import DatabaseAccess
from services.catalogue.database import Connection
from services.market_data.candles import CoverageSpan
from services.market_data.coverage import Note, apply
from services.pipeline.giving_way import slices

KEYS_PER_TRANSACTION = 500
_AT_ONCE = 100
_FIELDS = ("instrument", "type", "state", "source", "reason", "from_ms", "to_ms")
_COLUMNS = ", ".join(_FIELDS)
_OF_KEYS = "(instrument, type) IN (SELECT * FROM unnest(CAST($1 AS text[]), CAST($2 AS text[])))"
_LOCK = (
    "SELECT pg_advisory_xact_lock(hashtextextended(k, 7340)) FROM "
    "(SELECT k FROM unnest(CAST($1 AS text[])) AS k ORDER BY k) AS ordered"
)
_READ_KEYS = f"SELECT {_COLUMNS} FROM coverage WHERE {_OF_KEYS}"  # noqa: S608 - constants
_DELETE = f"DELETE FROM coverage WHERE {_OF_KEYS}"  # noqa: S608 - constants
_INSERT = (
    f"INSERT INTO coverage ({_COLUMNS}) SELECT * FROM unnest(CAST($1 AS text[]), "  # noqa: S608
    "CAST($2 AS text[]), CAST($3 AS text[]), CAST($4 AS text[]), CAST($5 AS text[]), "
    "CAST($6 AS bigint[]), CAST($7 AS bigint[]))"
)
_READ_ONE = (
    f"SELECT {_COLUMNS} FROM coverage WHERE instrument = $1 "  # noqa: S608 - constants
    "ORDER BY type, from_ms, to_ms, state, source"
)
_READ_TYPE = (
    f"SELECT {_COLUMNS} FROM coverage WHERE type = $2 "  # noqa: S608 - constants
    "AND instrument = ANY(CAST($1 AS text[])) ORDER BY instrument, from_ms"
)
_MISSING = (
    f"SELECT {_COLUMNS} FROM coverage WHERE state = 'missing' AND type IN ('1m', '1d') "  # noqa: S608
    "AND instrument = ANY(CAST($1 AS text[])) ORDER BY to_ms DESC, instrument, type LIMIT $2"
)
_COUNT_MISSING = (
    "SELECT type, count(*) AS spans, coalesce(sum(to_ms - from_ms), 0)::bigint AS ms FROM coverage "
    "WHERE state = 'missing' AND type IN ('1m', '1d') GROUP BY type"
)


class CoverageStore:
    """The table `coverage` of one database. `close` it when done; it connects at the first call.

    Every method raises what `DatabaseAccess` raises.
    """

    def __init__(self, database_url: str) -> None:
        self._database = DatabaseAccess(database_url, application_name="marketd:coverage")

    async def use_url(self, database_url: str) -> None:
        """Connect by another URL from now on."""
        await self._database.use_url(database_url)

    async def close(self) -> None:
        """Close the connection; harmless when there is none."""
        await self._database.close()

    async def note(self, notes: Sequence[Note]) -> None:
        """Take notes into the table, all or (after an error) the first of them."""
        by_key: dict[tuple[str, str], list[Note]] = {}
        for note in notes:
            by_key.setdefault(note.key, []).append(note)
        keys = list(by_key)
        for at in range(0, len(keys), KEYS_PER_TRANSACTION):
            chunk = keys[at : at + KEYS_PER_TRANSACTION]
            async with self._database.writing() as connection:
                await self._replace(connection, {key: by_key[key] for key in chunk})

    async def forget(self) -> None:
        """Drop everything that is had; what is missing or not to be had stays so."""
        async with self._database.writing() as connection:
            await connection.execute("DELETE FROM coverage WHERE state = 'have'")

    async def of(self, instrument: str) -> list[CoverageSpan]:
        """Return everything that is known of an instrument, by type and time."""
        return await self._read(_READ_ONE, instrument)

    async def of_type(self, instruments: Iterable[str], kind: str) -> dict[str, list[CoverageSpan]]:
        """Return what is known of one type of many instruments, by instrument."""
        found: dict[str, list[CoverageSpan]] = {}
        for row in await self._read(_READ_TYPE, list(instruments), kind):
            found.setdefault(row.instrument, []).append(row)
        return found

    async def missing(self, instruments: Iterable[str], most: int) -> list[CoverageSpan]:
        """Return the newest `most` missing spans of bars of these instruments."""
        return await self._read(_MISSING, list(instruments), most)

    async def missing_by_type(self) -> dict[str, tuple[int, int]]:
        """Return how many spans, and how many ms of them, are missing, by type."""
        rows = await self._database.read(_COUNT_MISSING)
        return {row["type"]: (row["spans"], row["ms"]) for row in rows}

    # ---- inner ----------------------------------------------------------------------------------

    async def _replace(self, connection: Connection, by_key: dict[tuple[str, str], list[Note]]) -> None:
        await connection.fetch(_LOCK, [f"{instrument} {kind}" for instrument, kind in by_key])
        keys = [instrument for instrument, _ in by_key], [kind for _, kind in by_key]
        known: dict[tuple[str, str], list[CoverageSpan]] = {}
        for row in await connection.fetch(_READ_KEYS, *keys):
            span = _span(row)
            known.setdefault((span.instrument, span.type), []).append(span)
        changed: list[CoverageSpan] = []
        touched: list[tuple[str, str]] = []
        async for part in slices(by_key.items(), _AT_ONCE):
            for key, notes in part:
                before = sorted(known.get(key, []), key=msgspec.structs.astuple)
                after = apply(before, notes)
                if sorted(after, key=msgspec.structs.astuple) != before:
                    touched.append(key)
                    changed += after
        if not touched:
            return
        await connection.execute(_DELETE, [key[0] for key in touched], [key[1] for key in touched])
        if changed:
            await connection.execute(_INSERT, *([getattr(row, name) for row in changed] for name in _FIELDS))

    async def _read(self, statement: str, *values: Any) -> list[CoverageSpan]:
        return [_span(row) for row in await self._database.read(statement, *values)]


def _span(row: Any) -> CoverageSpan:
    instrument, kind, state, source, reason, from_ms, to_ms = row
    return CoverageSpan(
        instrument=instrument,
        type=kind,
        state=state,
        source=source,
        reason=reason,
        from_ms=from_ms,
        to_ms=to_ms,
    )
