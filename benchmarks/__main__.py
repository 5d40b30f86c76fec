"""`python -m benchmarks [NAME…] [--quick] [--twice]`: runs benchmarks and writes what they found."""

from __future__ import annotations

import asyncio
import importlib
import pkgutil
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import uvloop
from rich.console import Console

import benchmarks
from benchmarks import compare, machine, report
from benchmarks.rig import SERVERS

Measure = Callable[[bool], Awaitable[dict[str, Any]]]

console = Console(highlight=False, width=140 if not sys.stdout.isatty() else None)


def discover() -> dict[str, tuple[Measure, str]]:
    """Return every benchmark by name with the first line of its docstring, quickest to judge by first.

    A module may set `ORDER` (default 50); lower ones run first.
    """
    found = []
    for module_info in pkgutil.iter_modules(benchmarks.__path__):
        if module_info.name == "__main__":
            continue
        module = importlib.import_module(f"benchmarks.{module_info.name}")
        measure = getattr(module, "measure", None)
        if asyncio.iscoroutinefunction(measure):
            title = (module.__doc__ or "").strip().partition("\n")[0]
            found.append((getattr(module, "ORDER", 50), module_info.name, measure, title))
    return {name: (measure, title) for _, name, measure, title in sorted(found, key=lambda each: each[:2])}


def main(
    names: Annotated[list[str] | None, typer.Argument(help="Which benchmarks; all without.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter runs, coarser figures.")] = False,
    listing: Annotated[bool, typer.Option("--list", help="Name the benchmarks and end.")] = False,
    twice: Annotated[
        bool, typer.Option("--twice", help="Run all of it again, and say by how much the ratios differ.")
    ] = False,
    output: Annotated[Path, typer.Option(help="Where results are written.")] = report.RESULTS,
) -> None:
    """Run benchmarks and write a table, JSON and plots."""
    known = discover()
    if listing:
        for name, (_, title) in known.items():
            console.print(f"{name:<12} {title}")
        return
    unknown = [name for name in names or () if name not in known]
    if unknown:
        console.print(f"no benchmark is named {', '.join(unknown)}; there are {', '.join(known)}")
        raise typer.Exit(2)
    chosen = {name: known[name][0] for name in names or known}
    code = uvloop.run(_run(chosen, quick, output))
    if twice:
        again = output / "again"
        code |= uvloop.run(_run(chosen, quick, again))
        code |= not compare.show(console, compare.compared(output, again))
    raise typer.Exit(code)


async def _run(chosen: dict[str, Measure], quick: bool, folder: Path) -> int:
    began_s = time.monotonic()
    failed = []
    for name, measure in chosen.items():
        described = await machine.describe(quick=quick)
        console.print(f"[dim]{name} …[/]")
        started_s = time.monotonic()
        try:
            measured = await measure(quick)
        except Exception:  # noqa: BLE001 - the others are still worth running
            traceback.print_exc()
            failed.append(name)
            continue
        described["took_s"] = round(time.monotonic() - started_s, 1)
        report.write(name, measured, described, folder)
        report.show(console, name, measured)
    await SERVERS.stop()
    report.write_table(folder)
    console.print(f"{time.monotonic() - began_s:.0f} s; written to {folder}")
    if failed:
        console.print(f"[red]not measured: {', '.join(failed)}[/]")
    return 1 if failed else 0


if __name__ == "__main__":
    typer.run(main)
