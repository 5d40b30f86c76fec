"""What `providers` and `mappings` share: the database, how a change is shown, what the daemon made of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from commands.context import daemon_of, demo_settings, live_settings, out
from services.errors import MarketdError
from services.operations.daemon_client import fetch
from services.operations.state_dir import StateDirectory

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from config.settings import Settings
    from data_migration.catalogue_edit import ChangeReport, RowChange

Demo = Annotated[bool, typer.Option("--demo", help="The demo's database instead of the live one.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would change; write nothing.")]
AllowRemoval = Annotated[
    bool, typer.Option("--allow-removal", help="Let more than a fifth of the instruments go, or all.")
]
SHOWN_ROWS = 50
_HEARD_WITHIN_S = 5.0


def chosen_settings(demo: bool) -> Settings:
    """Return the settings of the demo or of the live daemon."""
    return demo_settings() if demo else live_settings()


@asynccontextmanager
async def catalogue_database(settings: Settings, *, demo: bool) -> AsyncIterator[str]:
    """Give the URL of the database that is set, or the running daemon's, or an embedded one, started."""
    from services.operations.embedded_postgres import EmbeddedPostgres

    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    with StateDirectory(settings.state_dir, demo=demo):
        runtime = StateDirectory.read_runtime(settings.state_dir)
        if runtime is not None and runtime.get("database_url"):
            yield str(runtime["database_url"])
            return
        async with EmbeddedPostgres(settings.state_dir) as server:
            yield await server.start()


async def read_only(database_url: str, work: Callable[[AsyncConnection], Awaitable[Any]]) -> Any:
    """Return what `work` reads from the database in one read-only transaction."""
    from sqlalchemy import text

    from data_migration.population import check_at_head
    from services.catalogue.connection import DATABASE_ERRORS, database_error, make_engine

    engine = make_engine(database_url, application_name="marketd-look", connect_timeout_s=10)
    try:
        async with engine.connect() as connection, connection.begin():
            await connection.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY"))
            await check_at_head(connection)
            return await work(connection)
    except DATABASE_ERRORS as error:
        raise database_error(error, database_url) from error
    finally:
        await engine.dispose()


def run_edit(
    work: Callable[[AsyncConnection], Awaitable[int | None]],
    *,
    note: str,
    demo: bool,
    dry_run: bool,
    as_json: bool,
    allow_removal: bool = False,
) -> None:
    """Do one edit in a transaction, print what it changed and what the running daemon made of it."""
    from data_migration.catalogue_edit import edit

    settings = chosen_settings(demo)

    async def all_of_it() -> tuple[ChangeReport, str]:
        async with catalogue_database(settings, demo=demo) as database_url:
            before = None if dry_run else await _daemon_mappings(settings)
            report = await edit(database_url, work, note=note, dry_run=dry_run, allow_removal=allow_removal)
            if dry_run or report.change is None:
                return report, ""
            return report, await _outcome(settings, before)

    report, outcome = asyncio.run(all_of_it())
    if as_json:
        print(json.dumps({**change_as_json(report), "dry_run": dry_run, "daemon": outcome}, indent=2))
        return
    print_rows(report)
    if dry_run:
        out.print("Dry run: nothing was written.")
    elif report.change is None:
        out.print("Nothing to change.")
    else:
        out.print(f"Written as change {report.change}. {escape(outcome)}".rstrip())


async def _daemon_mappings(settings: Settings) -> dict[str, Any] | None:
    """Return what the running daemon says of its mappings, None where none runs or answers."""
    daemon = daemon_of(settings)
    if daemon is None:
        return None
    try:
        answer = await fetch(daemon[0], "/api/providers/status", daemon[1])
    except MarketdError:
        return None
    found = (answer.get("pipeline") or {}).get("mappings")
    return found if isinstance(found, dict) else None


async def _outcome(settings: Settings, before: dict[str, Any] | None) -> str:
    """Wait until the running daemon has looked at the change; say what it made of it."""
    if before is None:
        return "No daemon runs here; the next one starts with it."
    loop = asyncio.get_running_loop()
    until_s = loop.time() + _HEARD_WITHIN_S
    now: dict[str, Any] | None = None
    while loop.time() < until_s:
        await asyncio.sleep(0.1)
        now = await _daemon_mappings(settings)
        if now is None:
            return "The running daemon does not answer."
        if now["refused"]:
            return f"The running daemon REFUSES the tables: {now['refused']}"
        if now["version"] != before["version"]:
            return f"The running daemon uses it (version {now['version']} of its mappings)."
    if now is not None and now["reason"]:
        return f"The running daemon cannot see it yet: {now['reason']}"
    return "It makes no difference to the running daemon."


# ---- output -----------------------------------------------------------------------------------------


def change_as_json(report: ChangeReport) -> dict[str, Any]:
    """Return a change as JSON has it."""
    values: dict[str, Any] = msgspec.to_builtins(report)
    return values


def print_rows(report: ChangeReport) -> None:
    """Print what became of every row, the first fifty in full."""
    if not report.rows:
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "table", "row", "what", "change"):
        table.add_column(column)
    for row in report.rows[:SHOWN_ROWS]:
        mark, text = _described(row)
        table.add_row(mark, row.table, str(row.row), escape(row.label), escape(text))
    out.print(table)
    if len(report.rows) > SHOWN_ROWS:
        out.print(f"… and {len(report.rows) - SHOWN_ROWS} more rows (--json shows all)")


_NOT_SHOWN = ("id", "created_at", "provider_id", "instrument_id", "exchange_id")


def _described(row: RowChange) -> tuple[str, str]:
    if row.before is None:
        return "[green]+[/]", _values(row.after or {})
    if row.after is None:
        return "[red]-[/]", _values(row.before)
    return "[yellow]~[/]", ", ".join(
        f"{name.removeprefix('provider_')} {_shown(row.before[name])} → {_shown(row.after.get(name))}"
        for name in sorted(row.before)
    )


def _values(values: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.removeprefix('provider_')} {_shown(value)}"
        for name, value in values.items()
        if name not in _NOT_SHOWN
    )


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
