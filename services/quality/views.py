"""What `providers score` and `mappings suggest` print. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Group
from rich.table import Table

from services.quality.figures import Score
from services.quality.suggestions import Suggestion

_BLOCKS = "▁▂▃▄▅▆▇█"
_GOOD, _FAIR = 90.0, 70.0


def score_view(scores: Sequence[Score], days: int) -> Table | str:
    """Return a table with a line for each provider and exchange: the newest day, its parts, the trend."""
    if not scores:
        return (
            f"There are no scores of the last {days} days: the daemon writes them while a market is open, "
            "from its first half hour on."
        )
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("exchange", "provider", "day", "score"):
        table.add_column(column)
    for column in ("faulty", "no link", "doubled", "late", "apart", "latency"):
        table.add_column(column, justify="right")
    table.add_column(f"last {days} days (oldest first)")
    for feed in _feeds(scores):
        newest = feed[-1]
        values = newest.values
        table.add_row(
            newest.exchange,
            newest.provider,
            newest.day.isoformat(),
            _points(newest.score),
            _percent(values.get("freshness")),
            _percent(values.get("gaps")),
            _percent(values.get("duplicates")),
            _percent(values.get("out_of_order")),
            f"{values['disagreement']:.1f} bps" if "disagreement" in values else "-",
            _latency(values.get("latency")),
            _trend(feed, days),
        )
    return table


def score_rows(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Return the scores for JSON; shares are of 1, latency is in ms, disagreement in basis points."""
    return [
        {
            **msgspec.to_builtins(one),
            "parts": {name: round(points, 1) for name, points in one.parts.items()},
            "values": {name: round(value, 6) for name, value in one.values.items()},
        }
        for one in scores
    ]


def suggestion_view(found: Sequence[Suggestion]) -> Group | str:
    """Return what is proposed, with the command and the SQL that a human may apply."""
    if not found:
        return "The scores speak for no change of the order."
    lines: list[str] = []
    for one in found:
        lines += [
            f"[bold]{one.exchange}: put {one.provider} before {one.instead_of}[/]",
            f"  {one.reason}",
            f"  {one.command}",
            f"  {one.sql}",
            "",
        ]
    return Group(*lines, "Nothing was changed: run a command, or the SQL, to apply it.")


def _feeds(scores: Sequence[Score]) -> list[list[Score]]:
    found: dict[tuple[str, str], list[Score]] = {}
    for one in scores:
        found.setdefault((one.exchange, one.provider), []).append(one)
    return [sorted(feed, key=lambda one: one.day) for _, feed in sorted(found.items())]


def _trend(feed: Sequence[Score], days: int) -> str:
    shown = [one for one in feed if one.score is not None][-days:]
    if not shown:
        return "-"
    line = "".join(_BLOCKS[min(7, int((one.score or 0.0) / 12.5))] for one in shown)
    mean = sum(one.score or 0.0 for one in shown) / len(shown)
    return f"{line}  mean {mean:.1f}"


def _points(points: float | None) -> str:
    if points is None:
        return "[dim]too early[/]"
    colour = "green" if points >= _GOOD else "yellow" if points >= _FAIR else "red"
    return f"[{colour}]{points:.1f}[/]"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.2%}"


def _latency(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:.0f} ms" if ms < 10_000 else f"{ms / 1000:.0f} s"
