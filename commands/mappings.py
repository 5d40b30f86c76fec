"""`mappings`: under which name each provider knows an instrument; edits by file, the log, the way back."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from commands.catalogue import (
    AllowRemoval,
    Demo,
    DryRun,
    catalogue_database,
    change_as_json,
    chosen_settings,
    print_rows,
    read_only,
    run_edit,
)
from commands.context import AsJson, out
from services.errors import ConfigurationError

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from data_migration.catalogue_edit import ChangeReport
    from data_migration.mapping_file import FileRow
    from services.market_data.instruments import InstrumentMapping, MappingSnapshot

app = typer.Typer(
    help="Mappings: compare them, change them from a file, look into their log, take a change back.",
    no_args_is_help=True,
)

_FILE_HELP = (
    "CSV with the header exchange,symbol,provider,search_code,segment,security_id,is_active,"
    "valid_from,valid_to; mappings export writes one."
)
_Complete = Annotated[
    bool,
    typer.Option(
        "--complete",
        help="The file is all there is of each exchange and provider in it: the rest is deactivated.",
    ),
]


@app.command()
def diff(
    file: Annotated[Path | None, typer.Argument(help=_FILE_HELP)] = None,
    complete: _Complete = False,
    as_json: AsJson = False,
    demo: Demo = False,
) -> None:
    """Show what a file would change in the tables; without one, what the tables changed for the daemon.

    Without FILE the tables are compared with the last snapshot that a daemon on this state directory
    accepted, and judged: that shows why a change is refused.
    """
    if file is None:
        _diff_with_accepted(demo=demo, as_json=as_json)
        return
    _apply_file(
        file, complete=complete, allow_removal=True, note="", dry_run=True, as_json=as_json, demo=demo
    )


@app.command()
def apply(
    file: Annotated[Path | None, typer.Argument(help=_FILE_HELP)] = None,
    complete: _Complete = False,
    allow_removal: AllowRemoval = False,
    note: Annotated[str, typer.Option("--note", help="Why, for the log.")] = "",
    dry_run: DryRun = False,
    as_json: AsJson = False,
    demo: Demo = False,
) -> None:
    """Bring the tables to what a file says, in one transaction.

    Without FILE but with --allow-removal: let the running daemon take over what the tables say now,
    although that removes many instruments at once.
    """
    if file is None:
        if not allow_removal:
            raise ConfigurationError(
                "name a file to apply, or give --allow-removal for what the tables say now"
            )
        run_edit(
            _nothing,
            note=note or "mappings apply --allow-removal",
            demo=demo,
            dry_run=dry_run,
            as_json=as_json,
            allow_removal=True,
        )
        return
    _apply_file(
        file,
        complete=complete,
        allow_removal=allow_removal,
        note=note or f"mappings apply {file.name}",
        dry_run=dry_run,
        as_json=as_json,
        demo=demo,
    )


async def _nothing(_: AsyncConnection) -> None:
    return None


def _apply_file(
    file: Path, *, complete: bool, allow_removal: bool, note: str, dry_run: bool, as_json: bool, demo: bool
) -> None:
    from data_migration.mapping_file import apply_rows, read_mapping_file

    try:
        content = file.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ConfigurationError(f"{file} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{file} is not UTF-8 text: save it as UTF-8 CSV.") from error
    wanted = read_mapping_file(content, str(file))

    async def work(connection: AsyncConnection) -> None:
        await apply_rows(connection, wanted, complete=complete)

    run_edit(work, note=note, demo=demo, dry_run=dry_run, as_json=as_json, allow_removal=allow_removal)


@app.command()
def export(
    exchange: Annotated[str | None, typer.Option("--exchange", help="Only this exchange.")] = None,
    provider: Annotated[str | None, typer.Option("--provider", help="Only this provider.")] = None,
    demo: Demo = False,
) -> None:
    """Write the mappings as CSV to the output, to be edited and applied again."""
    from data_migration.mapping_file import stored_rows, write_mapping_file

    async def rows(connection: AsyncConnection) -> list[FileRow]:
        return await stored_rows(
            connection, exchange.upper() if exchange else None, provider.upper() if provider else None
        )

    found: list[FileRow] = _read(rows, demo=demo)
    # One row stands for a pair and a beginning: what was replaced in place is history of the log.
    newest: dict[tuple[Any, ...], FileRow] = {}
    for row in found:
        key = (row.instrument, row.provider, row.valid_from)
        if key not in newest or (row.is_active, row.row_id) > (newest[key].is_active, newest[key].row_id):
            newest[key] = row
    print(write_mapping_file(newest.values()), end="")


@app.command()
def rollback(
    change: Annotated[
        int | None, typer.Argument(help="Number of the change; without one, the last.", show_default=False)
    ] = None,
    allow_removal: AllowRemoval = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    demo: Demo = False,
) -> None:
    """Take a change back, whoever made it: a command, a script, or SQL by hand."""
    from data_migration.catalogue_edit import undo

    async def work(connection: AsyncConnection) -> int:
        return await undo(connection, change)

    run_edit(
        work,
        note=f"mappings rollback {change}" if change is not None else "mappings rollback",
        demo=demo,
        dry_run=dry_run,
        as_json=as_json,
        allow_removal=allow_removal,
    )


@app.command()
def history(
    change: Annotated[
        int | None, typer.Argument(help="Number of a change, to see its rows.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=10_000, help="How many changes.")] = 20,
    as_json: AsJson = False,
    demo: Demo = False,
) -> None:
    """Show who changed the catalogue when and why, newest first; with a number, every row of that change."""
    from data_migration.catalogue_edit import read_change, read_history

    if change is not None:
        number = change

        async def one(connection: AsyncConnection) -> ChangeReport:
            return await read_change(connection, number)

        report: ChangeReport = _read(one, demo=demo)
        if as_json:
            print(json.dumps(change_as_json(report), indent=2))
            return
        out.print(_heading(report))
        print_rows(report)
        return

    async def many(connection: AsyncConnection) -> list[ChangeReport]:
        return await read_history(connection, limit)

    reports: list[ChangeReport] = _read(many, demo=demo)
    if as_json:
        print(json.dumps([change_as_json(report) for report in reports], indent=2))
        return
    if not reports:
        out.print("Nothing was changed yet.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("change", "when (UTC)", "who", "rows", "why"):
        table.add_column(column)
    for report in reports:
        table.add_row(
            str(report.change),
            _when(report),
            escape(report.actor),
            str(report.rows_count),
            escape(report.note) + _marks(report),
        )
    out.print(table)


def _heading(report: ChangeReport) -> str:
    return (
        f"change {report.change}, {_when(report)} UTC, by {escape(report.actor)}: "
        f"{escape(report.note) or 'SQL by hand'}{_marks(report)}"
    )


def _when(report: ChangeReport) -> str:
    from datetime import UTC

    moment = report.changed_at
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _marks(report: ChangeReport) -> str:
    marks = [
        f"takes back change {report.reverts}" if report.reverts is not None else "",
        f"taken back by change {report.reverted_by}" if report.reverted_by is not None else "",
        "allows removal" if report.allows_removal else "",
    ]
    told = ", ".join(mark for mark in marks if mark)
    return f" [dim]({told})[/]" if told else ""


def _read(work: Any, *, demo: bool) -> Any:
    settings = chosen_settings(demo)

    async def look() -> Any:
        async with catalogue_database(settings, demo=demo) as database_url:
            return await read_only(database_url, work)

    return asyncio.run(look())


# ---- the tables against the daemon -----------------------------------------------------------------


def _diff_with_accepted(*, demo: bool, as_json: bool) -> None:
    from data_migration.catalogue_edit import read_within
    from models.revisions import SCHEMA_REVISION
    from services.catalogue.acceptance import at_time, refusal
    from services.catalogue.last_good import LastGoodUnusable, read_last_good
    from services.catalogue.loader import snapshot_of
    from services.catalogue.queries import TablesRead
    from services.catalogue.validation import find_problems, in_words
    from services.database_url import shown_url

    settings = chosen_settings(demo)
    now_ms = time.time_ns() // 1_000_000

    async def tables(connection: AsyncConnection) -> TablesRead:
        return await read_within(connection, now_ms)

    async def look() -> tuple[TablesRead, MappingSnapshot]:
        async with catalogue_database(settings, demo=demo) as database_url:
            found = await read_only(database_url, tables)
            try:
                accepted = read_last_good(
                    settings.state_dir / "mappings.json",
                    schema_revision=SCHEMA_REVISION,
                    source=shown_url(database_url),
                    now_ms=now_ms,
                )
            except LastGoodUnusable as reason:
                raise ConfigurationError(
                    f"there is nothing to compare the tables with, no daemon's mappings in "
                    f"{settings.state_dir} ({reason}): start the daemon, or name a file"
                ) from reason
            return found, accepted

    found, accepted = asyncio.run(look())
    accepted = at_time(accepted, now_ms)
    proposed = snapshot_of(found, now_ms)
    problems = find_problems((*found.mappings, *found.upcoming), found.routes, found.dangling)
    lost = refusal(accepted, proposed)
    if lost is not None:
        problems.append(lost)
    before = {row.mapping_id: row for row in (*accepted.mappings, *accepted.upcoming)}
    after = {row.mapping_id: row for row in (*proposed.mappings, *proposed.upcoming)}
    added = [row for number, row in after.items() if number not in before]
    removed = [row for number, row in before.items() if number not in after]
    changed = [(before[number], row) for number, row in after.items() if before.get(number, row) != row]
    if as_json:
        print(
            json.dumps(
                {
                    "problems": [msgspec.to_builtins(problem) for problem in problems],
                    "added": [msgspec.to_builtins(row) for row in added],
                    "removed": [msgspec.to_builtins(row) for row in removed],
                    "changed": [
                        {"before": msgspec.to_builtins(old), "after": msgspec.to_builtins(new)}
                        for old, new in changed
                    ],
                },
                indent=2,
            )
        )
        return
    if not (added or removed or changed or problems):
        out.print("The tables say what the daemon uses.")
        return
    _print_snapshot_rows(added, removed, changed)
    if problems:
        out.print(f"[red]The daemon refuses the tables:[/] {escape(in_words(problems))}")


def _print_snapshot_rows(
    added: list[InstrumentMapping],
    removed: list[InstrumentMapping],
    changed: list[tuple[InstrumentMapping, InstrumentMapping]],
) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "row", "mapping", "change"):
        table.add_column(column)
    for mark, rows in (("[green]+[/]", added), ("[red]-[/]", removed)):
        for row in rows[:50]:
            name = f"{row.instrument} at {row.provider_code}"
            table.add_row(mark, str(row.mapping_id), escape(name), escape(row.provider_symbol))
    for old, new in changed[:50]:
        fields = ", ".join(
            f"{name} {getattr(old, name)} → {getattr(new, name)}"
            for name in new.__struct_fields__
            if getattr(old, name) != getattr(new, name)
        )
        name = f"{new.instrument} at {new.provider_code}"
        table.add_row("[yellow]~[/]", str(new.mapping_id), escape(name), escape(fields))
    out.print(table)
    out.print(f"{len(added)} added, {len(removed)} removed, {len(changed)} changed")
