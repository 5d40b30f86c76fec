"""Edits of the catalogue by command: one transaction, judged as the daemon judges it, logged, undone again.

Used by `commands/providers.py` and `commands/mappings.py`. What a command changed is read from the
log that the database's triggers write, so a dry run shows what would happen and not what was planned.
"""

from __future__ import annotations

import getpass
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from data_migration.population import check_at_head
from data_migration.schema import LOCK_WAIT_S, take_lock
from services.catalogue.acceptance import refusal
from services.catalogue.connection import DATABASE_ERRORS, database_error, make_engine, sqlstate
from services.catalogue.loader import snapshot_of
from services.catalogue.queries import TablesRead, read_from
from services.catalogue.validation import MappingsInvalid, find_problems
from services.errors import ConfigurationError

TABLES = (
    "providers",
    "exchanges",
    "instruments",
    "exchange_provider_mappings",
    "provider_instrument_mappings",
)
"""In the order in which rows may be inserted; they are deleted in the opposite one."""
_REFUSED_BY_THE_TABLES = ("23", "22", "P0")


class RowChange(msgspec.Struct, frozen=True):
    """What became of one row by one change. Added rows have no `before`, deleted ones no `after`."""

    table: str
    row: int
    label: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class ChangeReport(msgspec.Struct, frozen=True):
    """One change of the log. `change` None: nothing was changed. `rows_count` counts what was logged."""

    change: int | None
    changed_at: datetime | None = None
    actor: str = ""
    note: str = ""
    reverts: int | None = None
    reverted_by: int | None = None
    allows_removal: bool = False
    rows_count: int = 0
    rows: tuple[RowChange, ...] = ()


async def edit(
    database_url: str,
    work: Callable[[AsyncConnection], Awaitable[int | None]],
    *,
    note: str,
    dry_run: bool = False,
    allow_removal: bool = False,
    lock_wait_s: float = LOCK_WAIT_S,
) -> ChangeReport:
    """Do `work` on the tables in one transaction and return what it changed.

    `work` returns the change that it undoes, None for others. With `dry_run` everything is done and
    taken back. Raises `ConfigurationError` when the result is not valid, or would lose many instruments
    without `allow_removal`; `TemporaryError` when another writer is at work for too long.
    """
    engine = make_engine(database_url, application_name="marketd-edit", connect_timeout_s=10)
    try:
        async with engine.connect() as connection, connection.begin() as transaction:
            await take_lock(connection, lock_wait_s)
            await check_at_head(connection)
            await connection.execute(
                text(
                    "SELECT set_config('marketd.actor', :actor, true), "
                    "set_config('marketd.note', :note, true)"
                ),
                {"actor": _actor(), "note": note},
            )
            now_ms = time.time_ns() // 1_000_000
            before = await read_within(connection, now_ms)
            reverts = await work(connection)
            after = await read_within(connection, now_ms)
            problems = find_problems((*after.mappings, *after.upcoming), after.routes, after.dangling)
            if problems:
                raise MappingsInvalid(problems)
            # Whoever sits at the command is asked, whichever way the instruments go.
            proposed = msgspec.structs.replace(snapshot_of(after, now_ms), switched_off=())
            lost = refusal(snapshot_of(before, now_ms), proposed)
            if lost is not None and not allow_removal:
                raise ConfigurationError(f"{lost.text}: add --allow-removal if that is meant")
            report = await _finish(connection, reverts, allow_removal=allow_removal)
            if dry_run:
                await transaction.rollback()
        return report
    except DATABASE_ERRORS as error:
        code = sqlstate(error)
        if code is not None and code.startswith(_REFUSED_BY_THE_TABLES):
            raise ConfigurationError(
                f"{database_error(error, database_url)} Nothing was written: correct that first."
            ) from error
        raise database_error(error, database_url) from error
    finally:
        await engine.dispose()


async def _finish(connection: AsyncConnection, reverts: int | None, *, allow_removal: bool) -> ChangeReport:
    if allow_removal or reverts is not None:
        # Made first: a statement does not see the row that a function of its own has just inserted.
        number = (await connection.execute(text("SELECT current_mapping_change()"))).scalar_one()
        await connection.execute(
            text("UPDATE mapping_changes SET allows_removal = :allowed, reverts = :reverts WHERE id = :id"),
            {"allowed": allow_removal, "reverts": reverts, "id": number},
        )
    change = (
        await connection.execute(
            text(
                "SELECT id FROM mapping_changes "
                "WHERE transaction_id = pg_current_xact_id()::text::bigint AND changed_at = now()"
            )
        )
    ).scalar()
    return ChangeReport(None) if change is None else await read_change(connection, int(change))


def _actor() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


# ---- the log ----------------------------------------------------------------------------------------

_CHANGES = """
    SELECT c.id, c.changed_at, c.actor, c.note, c.reverts, c.allows_removal,
           (SELECT max(r.id) FROM mapping_changes r WHERE r.reverts = c.id) AS reverted_by,
           (SELECT count(*) FROM mapping_change_rows r WHERE r.change_id = c.id) AS rows_count
    FROM mapping_changes c
"""


async def read_history(connection: AsyncConnection, limit: int) -> list[ChangeReport]:
    """Return the newest changes, newest first, without their rows."""
    found = await connection.execute(text(_CHANGES + " ORDER BY c.id DESC LIMIT :limit"), {"limit": limit})
    return [_report(row, ()) for row in found.mappings()]


async def read_change(connection: AsyncConnection, change: int) -> ChangeReport:
    """Return one change with what became of every row. Raises `ConfigurationError` for an unknown one."""
    found = (await connection.execute(text(_CHANGES + " WHERE c.id = :id"), {"id": change})).mappings()
    row = found.first()
    if row is None:
        raise ConfigurationError(f"there is no change {change}: see python main.py mappings history")
    return _report(row, await net_rows(connection, change))


def _report(row: Any, rows: tuple[RowChange, ...]) -> ChangeReport:
    return ChangeReport(
        change=row["id"],
        changed_at=row["changed_at"],
        actor=row["actor"],
        note=row["note"],
        reverts=row["reverts"],
        reverted_by=row["reverted_by"],
        allows_removal=row["allows_removal"],
        rows_count=row["rows_count"],
        rows=rows,
    )


async def net_rows(connection: AsyncConnection, change: int) -> tuple[RowChange, ...]:
    """Return what became of each row from the beginning of a change to its end."""
    logged = await connection.execute(
        text(
            "SELECT table_name, row_id, before, after FROM mapping_change_rows "
            "WHERE change_id = :id ORDER BY id"
        ),
        {"id": change},
    )
    net: dict[tuple[str, int], tuple[dict[str, Any] | None, dict[str, Any] | None]] = {}
    for table, row_id, before, after in logged:
        key = (table, row_id)
        net[key] = (before, after) if key not in net else _joined(net[key], before, after)
    rows = [
        (table, row_id, *values)
        for (table, row_id), pair in net.items()
        if (values := _without_equal(*pair)) != (None, None)
    ]
    labels = await _labels(connection, rows)
    order = {table: number for number, table in enumerate(TABLES)}
    rows.sort(key=lambda row: (order.get(row[0], 9), row[1]))
    return tuple(
        RowChange(table, row_id, labels.get((table, row_id), f"row {row_id}"), before, after)
        for table, row_id, before, after in rows
    )


def _joined(
    seen: tuple[dict[str, Any] | None, dict[str, Any] | None],
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    first, last = seen
    if after is None:
        # Deleted: what was added meanwhile was never there; else the whole row as it was at the beginning.
        return (None, None) if first is None else ({**(before or {}), **first}, None)
    if last is None:
        return first, after
    if first is None:
        return None, {**last, **after}
    return {**(before or {}), **first}, {**last, **after}


def _without_equal(
    before: dict[str, Any] | None, after: dict[str, Any] | None
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    if before is None or after is None:
        return before, after
    names = [
        name
        for name in before.keys() | after.keys()
        if name not in ("created_at", "updated_at") and before.get(name) != after.get(name)
    ]
    if not names:
        return None, None
    return {name: before.get(name) for name in names}, {name: after.get(name) for name in names}


async def _labels(
    connection: AsyncConnection, rows: Sequence[tuple[str, int, Any, Any]]
) -> dict[tuple[str, int], str]:
    """Return what people call the rows: codes and instrument keys."""
    codes = {
        table: {
            row.id: row.code
            for row in await connection.execute(text(f"SELECT id, code FROM {table}"))  # noqa: S608
        }
        for table in ("providers", "exchanges")
    }
    touched: dict[str, list[int]] = {table: [] for table in TABLES}
    gone: dict[tuple[str, int], dict[str, Any]] = {}
    for table, row_id, before, after in rows:
        touched.setdefault(table, []).append(row_id)
        if after is None and before is not None:
            gone[table, row_id] = before
    parents: dict[tuple[str, int], tuple[int, int]] = {}
    for table, other in (
        ("exchange_provider_mappings", "exchange_id"),
        ("provider_instrument_mappings", "instrument_id"),
    ):
        found = await connection.execute(
            text(f"SELECT id, provider_id, {other} FROM {table} WHERE id = ANY(:ids)"),  # noqa: S608
            {"ids": touched[table]},
        )
        parents |= {(table, row[0]): (row[1], row[2]) for row in found}
        parents |= {
            key: (int(values["provider_id"]), int(values[other]))
            for key, values in gone.items()
            if key[0] == table
        }
    wanted = {second for (table, _), (_, second) in parents.items() if table == TABLES[-1]}
    instruments = {
        row[0]: f"{row[1]}:{row[2]}"
        for row in await connection.execute(
            text(
                "SELECT i.id, e.code, i.symbol FROM instruments i JOIN exchanges e ON e.id = i.exchange_id "
                "WHERE i.id = ANY(:ids)"
            ),
            {"ids": [*wanted, *touched["instruments"]]},
        )
    }
    for (table, row_id), values in gone.items():
        if table == "instruments":
            exchange = codes["exchanges"].get(values["exchange_id"], values["exchange_id"])
            instruments.setdefault(row_id, f"{exchange}:{values['symbol']}")
        elif table in codes:
            codes[table].setdefault(row_id, values["code"])
    labels: dict[tuple[str, int], str] = {}
    for table, row_id, _, _ in rows:
        if table in codes:
            label = codes[table].get(row_id)
        elif table == "instruments":
            label = instruments.get(row_id)
        else:
            provider, other_id = parents.get((table, row_id), (0, 0))
            names = instruments if table == TABLES[-1] else codes["exchanges"]
            label = f"{names.get(other_id, other_id)} at {codes['providers'].get(provider, provider)}"
        if label is not None:
            labels[table, row_id] = label
    return labels


# ---- undoing ----------------------------------------------------------------------------------------

_HELD_BACK = {"exchange_provider_mappings": "is_primary", "provider_instrument_mappings": "is_active"}
"""What makes rows clash with each other while they change one after the other."""


async def last_change(connection: AsyncConnection) -> int:
    """Return the newest change that is neither undone nor undoes another. Raises `ConfigurationError`."""
    found = await connection.execute(
        text(
            "SELECT c.id FROM mapping_changes c WHERE c.reverts IS NULL "
            "AND NOT EXISTS (SELECT FROM mapping_changes r WHERE r.reverts = c.id) "
            "AND EXISTS (SELECT FROM mapping_change_rows r WHERE r.change_id = c.id) "
            "ORDER BY c.id DESC LIMIT 1"
        )
    )
    number = found.scalar()
    if number is None:
        raise ConfigurationError("there is no change that could be rolled back")
    return int(number)


async def undo(connection: AsyncConnection, change: int | None) -> int:
    """Bring every row that a change touched back to what it was before; return the change.

    Without `change` the last one is undone. Raises `ConfigurationError` when it is undone already, or a
    row was changed again since.
    """
    number = await last_change(connection) if change is None else change
    report = await read_change(connection, number)
    if report.reverted_by is not None:
        raise ConfigurationError(f"change {number} was rolled back already, by change {report.reverted_by}")
    rows: dict[str, list[RowChange]] = {table: [] for table in TABLES}
    for row in report.rows:
        rows[row.table].append(row)
    columns = {table: await _columns(connection, table) for table in TABLES}
    for table in TABLES:
        await _check_untouched(connection, table, rows[table], number)
    for table in reversed(TABLES):
        await connection.execute(
            text(f"DELETE FROM {table} WHERE id = ANY(:ids)"),  # noqa: S608 - our own table names
            {"ids": [row.row for row in rows[table] if row.before is None]},
        )
    held: dict[str, dict[int, bool]] = {}
    for table, flag in _HELD_BACK.items():
        ids = {"ids": [row.row for row in rows[table] if row.before is not None and row.after is not None]}
        found = await connection.execute(
            text(f"SELECT id, {flag} FROM {table} WHERE id = ANY(:ids)"),  # noqa: S608
            ids,
        )
        held[table] = {row[0]: row[1] for row in found}
        await connection.execute(
            text(f"UPDATE {table} SET {flag} = false WHERE id = ANY(:ids) AND {flag}"),  # noqa: S608
            ids,
        )
    for table in TABLES[:3]:
        await _insert(connection, table, rows[table], columns[table])
    for table in TABLES:
        values = {
            row.row: {_HELD_BACK[table]: held[table][row.row], **row.before} if table in held else row.before
            for row in rows[table]
            if row.before is not None and row.after is not None
        }
        await _update(connection, table, values, columns[table])
    for table in TABLES[3:]:
        await _insert(connection, table, rows[table], columns[table])
    return number


async def _columns(connection: AsyncConnection, table: str) -> list[str]:
    found = await connection.execute(
        text(
            "SELECT attname FROM pg_attribute WHERE attrelid = CAST(:name AS regclass) "
            "AND attnum > 0 AND NOT attisdropped AND attname <> 'updated_at' ORDER BY attnum"
        ),
        {"name": table},
    )
    return [str(name) for name in found.scalars()]


async def _check_untouched(
    connection: AsyncConnection, table: str, rows: Sequence[RowChange], change: int
) -> None:
    expected = {row.row: row.after for row in rows}
    found = await connection.execute(
        text(f"SELECT t.id, to_jsonb(t) FROM {table} t WHERE t.id = ANY(:ids)"),  # noqa: S608
        {"ids": list(expected)},
    )
    present = {row[0]: row[1] for row in found}
    for row in rows:
        now = present.get(row.row)
        if row.after is None:
            same = now is None
        else:
            same = now is not None and all(now.get(name) == value for name, value in row.after.items())
        if not same:
            raise ConfigurationError(
                f"row {row.row} of {table} ({row.label}) was changed again after change {change}: "
                "roll the later change back first"
            )


async def _insert(
    connection: AsyncConnection, table: str, rows: Sequence[RowChange], columns: Sequence[str]
) -> None:
    deleted = [row.before for row in rows if row.after is None and row.before is not None]
    if deleted:
        names = ", ".join(columns)
        await connection.execute(
            text(
                f"INSERT INTO {table} ({names}) SELECT {names} "  # noqa: S608
                f"FROM jsonb_populate_recordset(NULL::{table}, CAST(:rows AS jsonb))"
            ),
            {"rows": msgspec.json.encode(deleted).decode()},
        )


async def _update(
    connection: AsyncConnection, table: str, values: dict[int, dict[str, Any]], columns: Sequence[str]
) -> None:
    if not values:
        return
    names = [name for name in columns if name not in ("id", "created_at")]
    rows = [{"id": row_id, "values": value} for row_id, value in values.items()]
    await connection.execute(
        text(
            f"UPDATE {table} AS t SET ({', '.join(names)}) = "  # noqa: S608
            f"(SELECT {', '.join(f'r.{name}' for name in names)} "
            f"FROM jsonb_populate_record(t, old.values) AS r) "
            "FROM jsonb_to_recordset(CAST(:rows AS jsonb)) AS old(id bigint, values jsonb) "
            "WHERE t.id = old.id"
        ),
        {"rows": msgspec.json.encode(rows).decode()},
    )


async def read_within(connection: AsyncConnection, now_ms: int) -> TablesRead:
    """Return what the tables say inside the transaction of an engine's connection."""
    raw = await connection.get_raw_connection()
    return await read_from(raw.driver_connection, now_ms)
