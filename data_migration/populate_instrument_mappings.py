"""Writes instruments and the names each provider knows them by. Safe to run again.

The shipped list has the NIFTY 50 as of its review of March 2026, Indian and US indices, fifty large US
stocks and ETFs, currency and crypto pairs. Rows that have gone from a list stay in the tables.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated, NamedTuple
from zoneinfo import ZoneInfo

if not __package__:
    # Run as a file: Python has put this directory on the path instead of the project's.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import typer
from rich.markup import escape

from config.settings import Settings, load_settings
from data_migration import scrip_master_file
from data_migration.changes import print_changes
from data_migration.command_line import err, open_database, out, run_async, run_script
from data_migration.population import exchange_codes, populate
from data_migration.population_plan import Plan
from data_migration.resolution import Resolution, listed_contracts, resolve
from data_migration.schema import LOCK_WAIT_S
from data_migration.sources.dhan_scrip_master import ReadingReport, ScripMaster
from data_migration.sources.instrument_list import ListedInstrument, Problem, read_instrument_list
from services.errors import ConfigurationError
from services.operations.state_dir import StateDirectory

SHIPPED_LIST = Path(__file__).resolve().parent / "data" / "instruments.csv"
SHOWN_NAMES = 5
SHOWN_PROBLEMS = 100

app = typer.Typer(pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})


class Sources(NamedTuple):
    """Where a run takes instruments and names from; without `scrip_master` nothing is mapped to Dhan.

    `derivatives` are underlyings (`NIFTY`) whose contracts of the nearest `expiries` are added.
    """

    instruments: Path = SHIPPED_LIST
    scrip_master: ScripMaster | None = None
    derivatives: tuple[str, ...] = ()
    expiries: int = 2


async def populate_from(
    database_url: str, sources: Sources, *, dry_run: bool = False, lock_wait_s: float = LOCK_WAIT_S
) -> tuple[Resolution, Plan]:
    """Write what the sources say into a database that `setup_providers` has prepared.

    Raises `ConfigurationError` with every bad row and its line; then nothing has been written.
    """
    codes, _ = await exchange_codes(database_url)
    rows = _read_list(sources.instruments, codes)
    rows += _contracts(sources, rows)
    resolution = resolve(rows, sources.scrip_master)
    if resolution.problems:
        raise _refusal(sources.instruments, resolution.problems)
    plan = await populate(database_url, resolution.instruments, dry_run=dry_run, lock_wait_s=lock_wait_s)
    return resolution, plan


@app.command()
def main(
    instruments: Annotated[
        Path,
        typer.Option("--instruments", help="List of instruments (CSV).", show_default="the shipped list"),
    ] = SHIPPED_LIST,
    dhan_scrip_master: Annotated[
        Path | None,
        typer.Option(
            "--dhan-scrip-master",
            help="Dhan's instrument master, compact or detailed (CSV).",
            show_default="downloaded, kept 24 hours",
        ),
    ] = None,
    without_dhan: Annotated[bool, typer.Option("--without-dhan", help="Map nothing to Dhan.")] = False,
    derivatives: Annotated[
        str,
        typer.Option(
            "--derivatives", help="Underlyings whose futures and options are added: NIFTY,BANKNIFTY"
        ),
    ] = "",
    expiries: Annotated[
        int, typer.Option("--expiries", min=1, help="How many of their nearest expiries.")
    ] = 2,
    if_empty: Annotated[
        bool, typer.Option("--if-empty", help="Do nothing when instruments are mapped already.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would change; write nothing.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show every row, not the first twenty.")] = False,
    lock_wait: Annotated[
        float, typer.Option("--lock-wait", min=0, help="Seconds to wait for another run on this database.")
    ] = LOCK_WAIT_S,
) -> None:
    """Write instruments and their names at each provider."""
    if without_dhan and (dhan_scrip_master is not None or derivatives):
        raise ConfigurationError(
            "--without-dhan goes with neither --dhan-scrip-master nor --derivatives: leave one out"
        )
    settings = load_settings()
    underlyings = tuple(name.strip().upper() for name in derivatives.split(",") if name.strip())

    async def work() -> None:
        async with open_database(settings) as database_url:
            codes, active = await exchange_codes(database_url)
            if if_empty and active:
                out.print(f"{active} mappings are there already: nothing to do.")
                return
            # What people wrote is checked before anything is downloaded.
            _read_list(instruments, codes)
            master = None if without_dhan else await _scrip_master(settings, dhan_scrip_master)
            if master is not None:
                _print_reading(master.report)
            resolution, plan = await populate_from(
                database_url,
                Sources(instruments, master, underlyings, expiries),
                dry_run=dry_run,
                lock_wait_s=lock_wait,
            )
        print_changes(out, plan.changes, everything=verbose)
        _print_missing(resolution)
        if dry_run:
            out.print("Dry run: nothing was written.")

    run_async(work)


async def _scrip_master(settings: Settings, given: Path | None) -> ScripMaster:
    if given is None:
        with StateDirectory(settings.state_dir, demo=False) as state:
            given = await scrip_master_file.obtain(state.path / "cache", err)
    return await asyncio.to_thread(scrip_master_file.read, given, err)


def _read_list(path: Path, exchanges: list[str]) -> list[ListedInstrument]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows, problems = read_instrument_list(file, exchanges)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: save it as UTF-8 CSV.") from error
    if problems:
        raise _refusal(path, problems)
    return rows


def _contracts(sources: Sources, rows: list[ListedInstrument]) -> list[ListedInstrument]:
    if not sources.derivatives:
        return []
    if sources.scrip_master is None:
        raise ConfigurationError("futures and options come from Dhan's scrip master: give one")
    today = datetime.now(ZoneInfo("Asia/Kolkata")).date()
    contracts, missing = listed_contracts(
        sources.scrip_master, sources.derivatives, sources.expiries, today, {row.key for row in rows}
    )
    if missing:
        raise ConfigurationError(
            f"the scrip master has no futures or options on {', '.join(missing)}: correct --derivatives"
        )
    return contracts


def _refusal(path: Path, problems: list[Problem]) -> ConfigurationError:
    lines = [f"  line {problem.line}: {problem.text}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        lines.append(f"  … and {len(problems) - SHOWN_PROBLEMS} more")
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    return ConfigurationError("\n".join([f"{path} has {count}, nothing was written:", *lines]))


def _print_reading(report: ReadingReport) -> None:
    for reason, count in sorted(report.left_out.items()):
        out.print(f"scrip master: left out: {escape(reason)} ({count})")
    for reason, count in sorted(report.odd.items()):
        lines = [str(row.line) for row in report.odd_rows if row.reason == reason][:SHOWN_NAMES]
        more = ", …" if count > len(lines) else ""
        where = f", line {', '.join(lines)}{more}" if lines else ""
        err.print(f"warning: scrip master: odd rows: {escape(reason)} ({count}){where}")


def _print_missing(resolution: Resolution) -> None:
    for names, text in (
        (resolution.not_at_dhan, "not in Dhan's scrip master, so not mapped to Dhan"),
        (resolution.without_provider, "mapped to no provider at all"),
    ):
        if names:
            more = ", …" if len(names) > SHOWN_NAMES else ""
            err.print(f"warning: {text}: {len(names)} ({escape(', '.join(names[:SHOWN_NAMES]))}{more})")


if __name__ == "__main__":
    sys.exit(run_script(app))
