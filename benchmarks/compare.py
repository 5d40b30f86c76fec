"""By how much the ratios of two runs differ: what of a result does not hang on the machine's mood.

    python -m benchmarks.compare FOLDER FOLDER        exits 1 when one differs by more than ten percent

A ratio is a figure in `×`, or one beside a row: how many times as much (or as long) as what was measured in
the same run. Absolute figures of two runs are not compared."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.report import number

AT_MOST = 0.10


class Compared(NamedTuple):
    """One ratio in two runs."""

    benchmark: str
    what: str
    one: float
    other: float

    @property
    def apart(self) -> float:
        """How far the two are apart, as a part of the smaller."""
        low, high = sorted((self.one, self.other))
        return high / low - 1 if low > 0 else float("inf")


def ratios(folder: Path) -> dict[tuple[str, str], float]:
    """Return every ratio in the results of a folder, by benchmark and words."""
    return {
        (file.stem, what): value
        for file in sorted(folder.glob("*.json"))
        for what, value in _in_rows(json.loads(file.read_text(encoding="utf-8")))
    }


def _in_rows(body: dict[str, object]) -> Iterator[tuple[str, float]]:
    rows = body.get("rows", [])
    assert isinstance(rows, list)
    for row in rows:
        if row["unit"] == "×" and row["value"] is not None:
            yield row["what"], float(row["value"])
        for other, ratio in row["ratios"].items():
            yield f"{row['what']}: × {other}", float(ratio)


def compared(one: Path, other: Path) -> list[Compared]:
    """Return the ratios that both folders have, those furthest apart first."""
    first, second = ratios(one), ratios(other)
    found = [Compared(*key, first[key], second[key]) for key in first.keys() & second.keys()]
    return sorted(found, key=lambda each: -each.apart)


def show(console: Console, found: list[Compared]) -> bool:
    """Print the ratios of two runs; return whether all agree."""
    table = Table(title="ratios of two runs", title_justify="left", show_edge=False, pad_edge=False)
    for name in ("benchmark", "ratio", "first", "second", "apart"):
        table.add_column(name, justify="left" if name in ("benchmark", "ratio") else "right")
    for each in found:
        colour = "red" if each.apart > AT_MOST else "green"
        apart = f"[{colour}]{each.apart * 100:.1f} %[/]"
        table.add_row(each.benchmark, each.what, number(each.one), number(each.other), apart)
    console.print(table)
    far = sum(each.apart > AT_MOST for each in found)
    console.print(f"{len(found) - far} of {len(found)} ratios agree within {AT_MOST * 100:.0f} %")
    return far == 0


def main(
    one: Annotated[Path, typer.Argument(help="Results of one run.")],
    other: Annotated[Path, typer.Argument(help="Results of another.")],
) -> None:
    """Print by how much the ratios of two runs differ."""
    console = Console(highlight=False, width=140 if not sys.stdout.isatty() else None)
    found = compared(one, other)
    if not found:
        console.print("the two folders have no ratio in common")
        raise typer.Exit(2)
    raise typer.Exit(0 if show(console, found) else 1)


if __name__ == "__main__":
    typer.run(main)
