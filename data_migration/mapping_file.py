"""Mappings as a file that people edit (CSV), and what brings the tables to what it says.

One row of the file is one row of `provider_instrument_mappings`. A row with `valid_from` follows the
row that holds until then, which gets that moment as its end: a roll-over is one line.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from models import Exchange, Instrument, Provider, ProviderInstrumentMapping
from services.errors import ConfigurationError

COLUMNS = (
    "exchange",
    "symbol",
    "provider",
    "search_code",
    "segment",
    "security_id",
    "is_active",
    "valid_from",
    "valid_to",
)
_REQUIRED = COLUMNS[:4]
_YES, _NO = ("true", "yes", "1", "t", ""), ("false", "no", "0", "f")
_SHOWN_PROBLEMS = 50


class FileRow(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the file, or of the table; `valid_from` and `valid_to` are UTC, None for always."""

    instrument: str
    provider: str
    search_code: str
    segment: str | None = None
    security_id: str | None = None
    is_active: bool = True
    valid_from: datetime | None = None
    valid_to: datetime | None = None
    line: int = 0
    row_id: int = 0


_VALUES = ("search_code", "segment", "security_id", "is_active", "valid_from", "valid_to")
_COLUMN_OF = {
    "search_code": "provider_instrument_search_code",
    "segment": "provider_segment",
    "security_id": "provider_security_id",
}


def read_mapping_file(content: str, name: str) -> list[FileRow]:
    """Return the rows of a file. Raises `ConfigurationError` with every bad row and its line."""
    reader = csv.DictReader(io.StringIO(content))
    header = reader.fieldnames or ()
    unknown = [column for column in header if column not in COLUMNS]
    missing = [column for column in _REQUIRED if column not in header]
    if unknown or missing:
        raise ConfigurationError(
            f"{name}: the header must be {','.join(COLUMNS)} (the last five may be left out); "
            + (f"unknown: {', '.join(unknown)}" if unknown else f"missing: {', '.join(missing)}")
        )
    rows: list[FileRow] = []
    problems: list[str] = []
    seen: dict[tuple[str, str, datetime | None], int] = {}
    for raw in reader:
        line = reader.line_num
        try:
            row = _row(raw, line)
        except ValueError as error:
            problems.append(f"  line {line}: {error}")
            continue
        key = (row.instrument, row.provider, row.valid_from)
        if key in seen:
            problems.append(f"  line {line}: the same mapping as line {seen[key]}")
        seen[key] = line
        rows.append(row)
    if problems:
        more = len(problems) - _SHOWN_PROBLEMS
        lines = problems[:_SHOWN_PROBLEMS] + ([f"  … and {more} more"] if more > 0 else [])
        raise ConfigurationError("\n".join([f"{name}: nothing was written:", *lines]))
    return rows


def _row(raw: dict[str, Any], line: int) -> FileRow:
    if None in raw or any(value is None for value in raw.values()):
        raise ValueError("it has more or fewer fields than the header")
    values = {name: str(value).strip() for name, value in raw.items()}
    empty = [name for name in _REQUIRED if not values[name]]
    if empty:
        raise ValueError(f"{', '.join(empty)} must not be empty")
    active = values.get("is_active", "").lower()
    if active not in _YES + _NO:
        raise ValueError(f"is_active is {active!r}: write true or false")
    begins, ends = _moment(values, "valid_from"), _moment(values, "valid_to")
    if begins is not None and ends is not None and begins >= ends:
        raise ValueError("valid_from must be before valid_to")
    return FileRow(
        instrument=f"{values['exchange'].upper()}:{values['symbol'].upper()}",
        provider=values["provider"].upper(),
        search_code=values["search_code"],
        segment=values.get("segment") or None,
        security_id=values.get("security_id") or None,
        is_active=active in _YES,
        valid_from=begins,
        valid_to=ends,
        line=line,
    )


def _moment(values: dict[str, str], name: str) -> datetime | None:
    given = values.get(name, "")
    if not given:
        return None
    try:
        moment = datetime.fromisoformat(given)
    except ValueError:
        raise ValueError(f"{name} is {given!r}: write it like 2026-12-31T10:00:00Z") from None
    if moment.tzinfo is None:
        raise ValueError(f"{name} is {given!r}: it needs a zone, as in 2026-12-31T15:30:00+05:30")
    return moment.astimezone(UTC)


def write_mapping_file(rows: Iterable[FileRow]) -> str:
    """Return the content of a file with these rows."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        exchange, _, symbol = row.instrument.partition(":")
        writer.writerow(
            [
                exchange,
                symbol,
                row.provider,
                row.search_code,
                row.segment or "",
                row.security_id or "",
                "true" if row.is_active else "false",
                row.valid_from.isoformat() if row.valid_from else "",
                row.valid_to.isoformat() if row.valid_to else "",
            ]
        )
    return target.getvalue()


async def stored_rows(
    connection: AsyncConnection, exchange: str | None = None, provider: str | None = None
) -> list[FileRow]:
    """Return the mappings of the tables, of one exchange or provider where given, active or not."""
    query = (
        select(
            ProviderInstrumentMapping.id,
            Exchange.code,
            Instrument.symbol,
            Provider.code,
            ProviderInstrumentMapping.provider_instrument_search_code,
            ProviderInstrumentMapping.provider_segment,
            ProviderInstrumentMapping.provider_security_id,
            ProviderInstrumentMapping.is_active,
            ProviderInstrumentMapping.valid_from,
            ProviderInstrumentMapping.valid_to,
        )
        .join(Instrument, Instrument.id == ProviderInstrumentMapping.instrument_id)
        .join(Exchange, Exchange.id == Instrument.exchange_id)
        .join(Provider, Provider.id == ProviderInstrumentMapping.provider_id)
        .order_by(Exchange.code, Instrument.symbol, Provider.code, ProviderInstrumentMapping.id)
    )
    if exchange is not None:
        query = query.where(Exchange.code == exchange)
    if provider is not None:
        query = query.where(Provider.code == provider)
    return [
        FileRow(
            row_id=row[0],
            instrument=f"{row[1]}:{row[2]}",
            provider=row[3],
            search_code=row[4],
            segment=row[5],
            security_id=row[6],
            is_active=row[7],
            valid_from=_finite(row[8]),
            valid_to=_finite(row[9]),
        )
        for row in await connection.execute(query)
    ]


def _finite(moment: datetime | None) -> datetime | None:
    """Return a moment as it is, None for one without end."""
    return None if moment is None or not 1 < moment.year < 9999 else moment


class MappingPlan(msgspec.Struct):
    """New values by row id, new rows, and the rows that must let go of their names first."""

    updates: dict[int, FileRow] = msgspec.field(default_factory=dict)
    inserts: list[FileRow] = msgspec.field(default_factory=list)


def make_mapping_plan(
    wanted: Sequence[FileRow], stored: Sequence[FileRow], *, complete: bool = False
) -> MappingPlan:
    """Return what brings the stored rows to the wanted ones. Pure.

    With `complete` the file is all there is of each exchange at each provider that it names: what it
    does not name is deactivated.
    """
    plan = MappingPlan()
    by_pair: dict[tuple[str, str], list[FileRow]] = {}
    for row in stored:
        by_pair.setdefault((row.instrument, row.provider), []).append(row)
    named: set[int] = set()
    followers: list[FileRow] = []
    for row in wanted:
        same = [
            it for it in by_pair.get((row.instrument, row.provider), []) if it.valid_from == row.valid_from
        ]
        known = max(same, key=lambda it: (it.is_active, it.row_id), default=None)
        if known is None:
            plan.inserts.append(row)
        else:
            named.add(known.row_id)
            if any(getattr(known, name) != getattr(row, name) for name in _VALUES):
                plan.updates[known.row_id] = row
        if row.valid_from is not None and row.is_active:
            followers.append(row)
    for row in followers:
        for before in by_pair.get((row.instrument, row.provider), []):
            if _is_followed(before, row) and before.row_id not in named:
                named.add(before.row_id)
                plan.updates[before.row_id] = msgspec.structs.replace(before, valid_to=row.valid_from)
    if complete:
        scope = {(row.instrument.partition(":")[0], row.provider) for row in wanted}
        for row in stored:
            place = (row.instrument.partition(":")[0], row.provider)
            if row.is_active and row.row_id not in named and place in scope:
                plan.updates[row.row_id] = msgspec.structs.replace(row, is_active=False)
    return plan


def _is_followed(row: FileRow, by: FileRow) -> bool:
    """Tell whether `row` still holds when `by` begins."""
    if not row.is_active or by.valid_from is None or row.valid_to == by.valid_from:
        return False
    begun = row.valid_from is None or row.valid_from < by.valid_from
    return begun and (row.valid_to is None or row.valid_to > by.valid_from)


async def apply_rows(connection: AsyncConnection, wanted: Sequence[FileRow], *, complete: bool) -> None:
    """Bring the tables to the wanted rows. Raises `ConfigurationError` for names that do not exist."""
    providers = {row[1]: row[0] for row in await connection.execute(select(Provider.id, Provider.code))}
    instruments = {
        f"{row[1]}:{row[2]}": row[0]
        for row in await connection.execute(
            select(Instrument.id, Exchange.code, Instrument.symbol).join(
                Exchange, Exchange.id == Instrument.exchange_id
            )
        )
    }
    problems = [
        f"  line {row.line}: there is no {what} {name}"
        for row in wanted
        for what, name, known in (
            ("provider", row.provider, providers),
            ("instrument", row.instrument, instruments),
        )
        if name not in known
    ]
    if problems:
        raise ConfigurationError("\n".join(["nothing was written:", *problems[:_SHOWN_PROBLEMS]]))
    plan = make_mapping_plan(wanted, await stored_rows(connection), complete=complete)
    # Names move between rows: all that change let go of theirs before any takes another.
    await connection.execute(
        text("UPDATE provider_instrument_mappings SET is_active = false WHERE is_active AND id = ANY(:ids)"),
        {"ids": list(plan.updates)},
    )
    inactive_first = sorted(plan.updates.items(), key=lambda item: item[1].is_active)
    assignments = ", ".join(f"{_COLUMN_OF.get(name, name)} = :{name}" for name in _VALUES)
    if inactive_first:
        await connection.execute(
            text(f"UPDATE provider_instrument_mappings SET {assignments} WHERE id = :id"),  # noqa: S608
            [
                {"id": row_id} | {name: getattr(row, name) for name in _VALUES}
                for row_id, row in inactive_first
            ],
        )
    if plan.inserts:
        names = ", ".join(_COLUMN_OF.get(name, name) for name in _VALUES)
        await connection.execute(
            text(
                f"INSERT INTO provider_instrument_mappings (provider_id, instrument_id, {names}) "  # noqa: S608
                f"VALUES (:provider_id, :instrument_id, {', '.join(f':{name}' for name in _VALUES)})"
            ),
            [
                {"provider_id": providers[row.provider], "instrument_id": instruments[row.instrument]}
                | {name: getattr(row, name) for name in _VALUES}
                for row in plan.inserts
            ],
        )
