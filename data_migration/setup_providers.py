"""Brings the schema to head and writes providers, exchanges and their mappings. Safe to run again.

Everything happens in one transaction under the writers' lock: it is done or it is not.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

if not __package__:
    # Run as a file: Python has put this directory on the path instead of the project's.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import msgspec
import typer
from sqlalchemy import text

from config.settings import load_settings
from data_migration.changes import Change, Kind, print_changes
from data_migration.command_line import open_database, out, run_async, run_script
from data_migration.reference_writer import write_reference_data
from data_migration.schema import LOCK_WAIT_S, current_revision, head_revision, take_lock, upgrade
from services.catalogue.connection import DATABASE_ERRORS, database_error, make_engine

app = typer.Typer(pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})


class SetupReport(msgspec.Struct, frozen=True):
    """What a run changed: the schema revision before (None: no schema) and after, and every row."""

    revision_before: str | None
    revision_after: str
    changes: tuple[Change, ...]


async def setup(
    database_url: str, *, reset: bool = False, dry_run: bool = False, lock_wait_s: float = LOCK_WAIT_S
) -> SetupReport:
    """Migrate and write the shipped rows; with `dry_run` only say what would happen.

    `reset` puts the operator's changes back to what is shipped. Raises `ConfigurationError` or
    `TemporaryError`; a second writer waits `lock_wait_s` seconds for the first.
    """
    engine = make_engine(database_url, application_name="marketd-setup", connect_timeout_s=10)
    try:
        async with engine.connect() as connection, connection.begin() as transaction:
            if dry_run and await current_revision(connection) == head_revision():
                await connection.execute(text("SET TRANSACTION READ ONLY"))
            else:
                await take_lock(connection, lock_wait_s)
            # DDL is part of the transaction: a dry run on an older schema migrates, looks and rolls back.
            before, after = await upgrade(connection)
            changes = await write_reference_data(connection, reset=reset, dry_run=dry_run)
            if dry_run:
                await transaction.rollback()
        return SetupReport(before, after, tuple(changes))
    except DATABASE_ERRORS as error:
        raise database_error(error, database_url) from error
    finally:
        await engine.dispose()


@app.command()
def main(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change; write nothing.")
    ] = False,
    reset: Annotated[
        bool,
        typer.Option(
            "--reset",
            help="Put is_active, priority, is_primary and rate_limit back to what is shipped.",
        ),
    ] = False,
    lock_wait: Annotated[
        float, typer.Option("--lock-wait", min=0, help="Seconds to wait for another run on this database.")
    ] = LOCK_WAIT_S,
) -> None:
    """Bring the schema to head; write providers, exchanges and who serves which exchange."""
    settings = load_settings()

    async def work() -> None:
        async with open_database(settings) as database_url:
            report = await setup(database_url, reset=reset, dry_run=dry_run, lock_wait_s=lock_wait)
        _print(report, dry_run=dry_run)

    run_async(work)


def _print(report: SetupReport, *, dry_run: bool) -> None:
    before, after = report.revision_before or "nothing", report.revision_after
    if report.revision_before == after:
        out.print(f"schema: at {after}")
    else:
        out.print(f"schema {'will be' if dry_run else 'was'} migrated from {before} to {after}")
    print_changes(out, report.changes, everything=True)
    if any(change.kind is Kind.KEPT for change in report.changes):
        out.print("Rows marked ! keep your changes; --reset puts them back to what is shipped.")
    if dry_run:
        out.print("Dry run: nothing was written.")


if __name__ == "__main__":
    sys.exit(run_script(app))
