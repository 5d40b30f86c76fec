"""What a benchmark returns, and how it is shown: rows in a table, JSON, plots.

A row is one figure with its goal, if it has one, and its ratios to what was measured beside it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.plot import Plot, svg

RESULTS = Path(__file__).resolve().parent / "results"


def row(
    what: str,
    value: float | None,
    unit: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    ratios: Mapping[str, float | None] | None = None,
    note: str = "",
) -> dict[str, Any]:
    """Return one figure. `value` None: it could not be measured, and `note` says why.

    `ratios` are how many times as much (or as long) as the named thing, measured in the same run.
    """
    goal, met = "", None
    if at_least is not None:
        goal = f"≥ {number(at_least)}"
        met = None if value is None else value >= at_least
    elif at_most is not None:
        goal = f"≤ {number(at_most)}"
        met = None if value is None else value <= at_most
    kept = {name: ratio for name, ratio in (ratios or {}).items() if ratio is not None}
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "goal": goal,
        "met": met,
        "ratios": kept,
        "note": note,
    }


def result(
    rows: Iterable[dict[str, Any]], *, plots: Iterable[Plot] = (), notes: Iterable[str] = (), **raw: Any
) -> dict[str, Any]:
    """Return what `measure` returns; `raw` is kept in the JSON as it is."""
    return {"rows": list(rows), "plots": list(plots), "notes": list(notes), **raw}


def number(value: float | None) -> str:
    """Return a figure for people: three significant digits, thousands apart."""
    if value is None:
        return "-"
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        digits = len(str(int(abs(value)))) - 3
        return f"{round(value / 10**digits) * 10**digits:,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.3g}"


def write(name: str, measured: Mapping[str, Any], machine: Mapping[str, Any], folder: Path = RESULTS) -> None:
    """Write `NAME.json` and one SVG for each plot into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    plots: Sequence[Plot] = measured.get("plots", ())
    for plot in plots:
        (folder / f"{name}-{plot.name}.svg").write_text(svg(plot), encoding="utf-8")
    body = {
        "benchmark": name,
        "machine": machine,
        **{key: value for key, value in measured.items() if key != "plots"},
        "plots": {plot.name: {line: list(points) for line, points in plot.lines.items()} for plot in plots},
    }
    text = json.dumps(body, indent=1, ensure_ascii=False)
    (folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def show(console: Console, name: str, measured: Mapping[str, Any]) -> None:
    """Print one benchmark's rows."""
    table = Table(title=name, title_justify="left", title_style="bold", show_edge=False, pad_edge=False)
    table.add_column("what")
    table.add_column("measured", justify="right")
    table.add_column("goal", justify="right")
    table.add_column("met")
    table.add_column("ratios in the same run")
    for each in measured["rows"]:
        met = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}[each["met"]]
        ratios = ", ".join(f"{ratio:.3g}× {what}" for what, ratio in each["ratios"].items())
        remark = "\n".join(part for part in (ratios, each["note"]) if part)
        value = f"{number(each['value'])} {each['unit']}" if each["value"] is not None else "-"
        table.add_row(each["what"], value, each["goal"], met, remark)
    console.print(table)
    for note in measured.get("notes", ()):
        console.print(f"  {note}", style="dim")
    console.print()


def write_table(folder: Path = RESULTS) -> None:
    """Write `README.md`: the rows of every benchmark whose JSON lies in `folder`."""
    lines = [
        "# Results",
        "",
        "Written by `make bench`; how to read them: [docs/performance.md](../../docs/performance.md).",
        "",
    ]
    for file in sorted(folder.glob("*.json")):
        body = json.loads(file.read_text(encoding="utf-8"))
        if "rows" not in body:
            # One that is shown in a page of its own.
            continue
        machine = body["machine"]
        lines += [
            f"## {body['benchmark']}",
            "",
            f"{machine['when']}, commit {machine['commit']}{', quick' if machine['quick'] else ''}, "
            f"{machine['cpu']}, {machine['cores']} cores, Linux {machine['kernel']}, "
            f"Python {machine['python']}, {machine.get('path', 'interpreted')}, Redis {machine['redis']}, "
            f"load before {machine['load']}",
            "",
            "| what | measured | goal | met | ratios in the same run |",
            "|---|---|---|---|---|",
        ]
        for each in body["rows"]:
            met = {True: "yes", False: "**no**", None: ""}[each["met"]]
            ratios = ", ".join(f"{ratio:.3g}× {what}" for what, ratio in each["ratios"].items())
            remark = "; ".join(part for part in (ratios, each["note"]) if part)
            value = f"{number(each['value'])} {each['unit']}" if each["value"] is not None else "-"
            lines.append(f"| {each['what']} | {value} | {each['goal']} | {met} | {remark} |")
        lines += ["", *(f"{note}  " for note in body.get("notes", ())), ""]
        lines += [f"![{plot}]({body['benchmark']}-{plot}.svg)\n" for plot in body.get("plots", {})]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
