"""What `routes` prints: one screen about a route, or a table of the providers. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table


def route_view(answer: Mapping[str, Any]) -> Group:
    """Return one screen about one route: who serves, who could, what was decided."""
    now_ms = answer["time_ms"]
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_row("served by", f"{answer['active'] or 'nobody'} ({answer['delivery']})")
    facts.add_row("since", _moment(answer["since_ms"]) if answer["since_ms"] else "the first route")
    facts.add_row("backup", ", ".join(answer["backup"]) or "none")
    if answer["trouble"]:
        facts.add_row("trouble", f"[red]{escape(answer['trouble'])}[/]")
    if answer["stale_since_ms"]:
        facts.add_row("stale", f"[red]since {_moment(answer['stale_since_ms'])}[/]")
    if answer["open_gap"]:
        gap = answer["open_gap"]
        facts.add_row("gap", f"since {_moment(gap['from'])}: {escape(gap['reason'])}")
    if answer["forced"]:
        chosen = answer["forced"]
        told = f"{chosen['to']} until {_moment(chosen['until_ms'])}, by {chosen['by']}"
        facts.add_row("chosen", escape(f"{told}{': ' + chosen['why'] if chosen['why'] else ''}"))
    window_min = answer["window_s"] / 60
    facts.add_row(
        "switches", f"{answer['switches_in_window']} of {answer['switches_at_most']} in {window_min:.0f} min"
    )
    return Group(
        f"[bold]{escape(answer['instrument'])}[/]",
        facts,
        "",
        _candidates(answer, now_ms),
        "",
        _events(answer["events"]),
        *([f"[yellow]{escape(answer['note'])}[/]"] if answer["note"] else []),
    )


def _candidates(answer: Mapping[str, Any], now_ms: int) -> Table:
    table = _table("provider", "data", "may serve", "state", "silence", "last tick", "standby")
    standbys = {row["provider"]: row for row in answer["standbys"]}
    for row in answer["candidates"]:
        held_ms = row["held_down_ms"]
        standby = standbys.get(row["provider"])
        table.add_row(
            f"[bold]{row['provider']}[/]" if row["provider"] == answer["active"] else row["provider"],
            row["delivery"],
            "yes" if row["allowed"] else "no (allow_delayed)",
            row["state"] if row["usable"] else f"[red]{row['state']}[/]",
            escape(row["silence"] or "-"),
            "-"
            if row["last_tick_ms"] is None
            else f"{max(0, now_ms - row['last_tick_ms']) / 1000:.1f} s ago",
            _standby(standby) if standby else f"not for {held_ms / 1000:.0f} s" if held_ms else "-",
        )
    return table


def _standby(row: Mapping[str, Any]) -> str:
    parts = [f"{row['fresh_ticks']} fresh"]
    if row["off_bps"] is not None:
        parts.append(f"{row['off_bps']} bps {'off' if row['agrees'] else 'off: too far'}")
    if row["clean_ms"]:
        parts.append(f"clean for {row['clean_ms'] / 1000:.0f} s")
    return ", ".join(parts)


def _events(events: list[dict[str, Any]]) -> Table | str:
    if not events:
        return "nothing was decided yet"
    table = _table("time (UTC)", "decision", "from", "to", "reason", "details")
    for event in events:
        details = ", ".join(f"{name} {value}" for name, value in event["details"].items())
        table.add_row(
            _moment(event["at_ms"]),
            event["action"],
            event["from"] or "-",
            event["to"] or "-",
            escape(event["reason"]),
            escape(details),
        )
    return table


def providers_view(answer: Mapping[str, Any]) -> Group:
    """Return all providers, what they can do and serve, and what is not as it should be."""
    table = _table("code", "name", "from", "state", "can", "data", "order by exchange", "serves")
    for row in answer["providers"]:
        table.add_row(
            row["code"],
            escape(row["name"]),
            row["origin"].replace("_", " "),
            escape(row["state"] + (f" ({row['reason']})" if row["reason"] else "")),
            ", ".join(row["capabilities"]),
            row["delivery"],
            ", ".join(f"{exchange} {place}." for exchange, place in sorted(row["exchanges"].items())) or "-",
            str(row["routed"]),
        )
    routing = answer["routing"]
    lines = [
        f"{routing['away_from_first']} instruments away from their first provider, "
        f"{routing['in_trouble']} in trouble, {routing['stale']} stale"
    ]
    if routing["stale_instruments"]:
        lines.append(f"[red]stale[/]: {escape(', '.join(routing['stale_instruments']))}")
    if routing["forced"]:
        lines.append(
            "chosen by hand: " + escape(", ".join(f"{key} {to}" for key, to in routing["forced"].items()))
        )
    if routing["problem"]:
        lines.append(f"[yellow]decisions wait to be stored[/]: {escape(routing['problem'])}")
    return Group(table, "", *lines)


def routing_lines(routing: Mapping[str, Any], silence: Mapping[str, str]) -> list[str]:
    """Return what `status` says of routing: nothing while every instrument is where it belongs."""
    lines = []
    if routing.get("away_from_first") or routing.get("in_trouble"):
        lines.append(
            f"routes: {routing['away_from_first']} instruments away from their first provider, "
            f"{routing['in_trouble']} in trouble"
        )
    if routing.get("stale"):
        named = escape(", ".join(routing["stale_instruments"]))
        lines.append(f"[red]nobody delivers {routing['stale']} instruments[/]: {named}")
    lines += [f"[yellow]{escape(text)}[/]" for text in silence.values()]
    if routing.get("problem"):
        lines.append(f"[yellow]decisions wait to be stored[/]: {escape(routing['problem'])}")
    return lines


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in columns:
        table.add_column(column)
    return table


def _moment(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
