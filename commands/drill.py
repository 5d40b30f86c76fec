"""`drill`: one fault on a stack of its own, and a count of every tick."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.markup import escape
from rich.table import Table

from commands.context import err, out, quiet_logs
from config.settings import load_settings, setting_names
from services.errors import ConfigurationError

if TYPE_CHECKING:
    from drills.drill_run import DrillReport


def drill(
    fault: Annotated[str, typer.Argument(help="Which drill; none: list them.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Run a fault drill on a demo stack of its own, and say what became of every tick.

    Starts its own servers, simulators and daemon in a temporary folder; nothing that runs is touched.
    Exit code 0: the promise held; 1: it did not.
    """
    from drills.faults import DRILLS

    if not fault:
        _list(as_json=as_json)
        return
    chosen = DRILLS.get(fault)
    if chosen is None:
        raise ConfigurationError(f"there is no drill {fault!r}; there are {', '.join(DRILLS)}")
    from drills.drill_run import run_drill

    ours = {name + end for name in setting_names() for end in ("", "_FILE")}
    environment = {name: value for name, value in os.environ.items() if name.upper() not in ours}
    folder = Path(tempfile.mkdtemp(prefix="marketd-drill-"))
    with quiet_logs(load_settings(use_dotenv=False, overrides={"state_dir": folder}), "ERROR"):

        def say(text: str) -> None:
            if not as_json:
                err.print(f"  {escape(text)}")

        report = asyncio.run(run_drill(chosen, folder, environment, say))
    if report.passed:
        shutil.rmtree(folder, ignore_errors=True)
    if as_json:
        print(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        _show(report, folder)
    if not report.passed:
        raise typer.Exit(1)


def _list(*, as_json: bool) -> None:
    from drills.faults import DRILLS

    if as_json:
        rows = [
            {"drill": drill.name, "summary": drill.summary, "promise": drill.promise}
            for drill in DRILLS.values()
        ]
        print(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for title in ("drill", "what happens", "what is promised"):
        table.add_column(title)
    for drill in DRILLS.values():
        table.add_row(drill.name, drill.summary, drill.promise)
    out.print(table)
    out.print("run one with: python main.py drill NAME")


def _show(report: DrillReport, folder: Path) -> None:
    gaps = ", ".join(f"{reason} {count}" for reason, count in sorted(report.gaps.items())) or "none"
    out.print(f"promise    {report.promise}")
    if report.sent:
        out.print(f"sent       {report.sent} different ticks")
        out.print(f"stored     {report.stored}, each once and with its values")
        out.print(f"gaps told  {gaps}; {sum(report.declared.values())} ticks were sent inside them")
        if report.lost_at_kill:
            out.print(f"in flight  {report.lost_at_kill} ticks when the daemon was killed")
        out.print(
            f"lost {report.lost}, doubled {report.doubled}, foreign {report.foreign}, "
            f"changed {report.changed}, out of order {report.disordered}"
        )
    for line in report.examples:
        out.print(f"  {escape(line.strip())}")
    if report.passed:
        out.print(f"[green]passed[/]: {report.drill} in {report.seconds:.0f} s")
    else:
        out.print(f"[red]failed[/]: {report.drill}: {escape(report.failure)}")
        out.print(f"the daemon's log is {folder}/daemon.log")
