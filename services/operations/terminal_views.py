"""What `status` and `tap` print: the daemon's answers as tables and lines for a terminal. Pure."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from services.operations.route_views import routing_lines
from services.storage.spool_inspection import ChannelContents

_STATE_COLOURS = {"streaming": "green", "parked": "yellow", "closed": "red", "stale": "red"}


def why_view(answer: Mapping[str, Any]) -> Group:
    """Return one screen about one instrument: the verdict, what to do, and what both rest on."""
    now_ms = answer["time_ms"]
    facts = Table.grid(padding=(0, 2, 0, 0))
    session = answer["session"]
    if session["known"]:
        told = f"open ({session['phase'] or 'always'})" if session["open"] else session["phase"] or "closed"
        edge = session["closes_ms"] if session["open"] else session["next_open_ms"]
        until = f", {'closes' if session['open'] else 'opens'} {_moment(edge)}" if edge else ""
        facts.add_row("market", f"{told}{until}{' (' + session['today'] + ')' if session['today'] else ''}")
    facts.add_row("wanted", str(answer["interest"] or "by nobody"))
    route = answer["route"]
    facts.add_row(
        "served by",
        (route["active"] or "nobody") + (f", going to {route['pending']}" if route["pending"] else ""),
    )
    if route["open_gap"]:
        gap = route["open_gap"]
        facts.add_row("gap", f"since {_moment(gap['from'])}: {gap['reason']}")
    if route.get("stale_since_ms"):
        facts.add_row("stale", f"[red]since {_moment(route['stale_since_ms'])}[/]")
    if route.get("forced"):
        facts.add_row("chosen", f"{route['forced']['to']} until {_moment(route['forced']['until_ms'])}")
    if answer.get("dispute"):
        facts.add_row("price", f"[red]{escape(answer['dispute'])}[/]")
    for row in answer["candidates"]:
        expires = row["credential_expires_ms"]
        parts = [
            row["symbol"],
            row["state"],
            row["subscription"],
            "delivers" if row["flowing"] else "delivers nothing",
            f"last tick {_age(now_ms, row['last_tick_ms'])}",
            f"credentials end {_moment(expires)}" if expires else "",
            row["refused"] or row["reason"],
            row["delivery"] if row.get("delivery", "real_time") != "real_time" else "",
            row["silence"] if row.get("trouble") else "",
        ]
        facts.add_row(f"  {row['provider']}", escape(" · ".join(part for part in parts if part)))
    for hop in answer["hops"]:
        facts.add_row(hop["hop"], escape(" ".join(filter(None, (_age(now_ms, hop["at_ms"]), hop["note"])))))
    if depth := answer.get("depth"):
        levels = " and ".join(map(str, depth["wanted"]))
        had = f"{depth['levels']} levels, {depth['age_s']} s old" if depth["levels"] else "no book comes"
        told = f"wanted with {levels} levels: {had}{' (' + depth['flags'] + ')' if depth['flags'] else ''}"
        facts.add_row("depth", told)
    for row in answer["storage"]:
        if row["state"] != "ready":
            facts.add_row(f"sink {row['sink']}", f"[red]{row['state']}[/] {escape(row['reason'])}")
    for event in answer["events"]:
        rest = {name: value for name, value in event.items() if name not in ("type", "at_ms")}
        told = ", ".join(
            f"{name} {_moment(value) if name in ('from', 'to') else value}" for name, value in rest.items()
        )
        facts.add_row(f"{event['type']} {_moment(event['at_ms'])}", escape(told))
    for decided in answer.get("decisions", [])[-3:]:
        told = f"{decided['from'] or '-'} -> {decided['to'] or '-'}: {decided['reason']}"
        facts.add_row(f"{decided['action']} {_moment(decided['at_ms'])}", escape(told))
    return Group(
        f"[bold]{escape(answer['instrument'])}[/] {escape(answer['name'])}",
        f"[bold]{escape(answer['verdict'])}[/]",
        f"-> {escape(answer['next_action'])}",
        "",
        facts,
    )


def _moment(at_ms: int) -> str:
    return f"{datetime.fromtimestamp(int(at_ms) / 1000, UTC):%Y-%m-%d %H:%M:%S}Z"


def _age(now_ms: int, at_ms: int | None) -> str:
    return "never" if at_ms is None else f"{max(0, now_ms - at_ms) / 1000:.1f} s ago"


def status_view(answer: Mapping[str, Any]) -> Table:
    """Return the table for one answer of `/api/providers/status`."""
    now_ms = answer.get("time_ms") or time.time_ns() // 1_000_000
    grid = Table.grid(padding=(0, 0))
    if answer.get("demo"):
        grid.add_row("[bold yellow]DEMO DATA: simulated prices[/]")
    providers = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("provider", "state", "subs", "live", "ticks/s", "last tick", "p50/p99 ms", "reconn"):
        providers.add_column(column)
    for row in answer["providers"]:
        age = "-" if row["last_tick_ms"] is None else f"{max(0, now_ms - row['last_tick_ms']) / 1000:.1f} s"
        colour = _STATE_COLOURS.get(row["state"], "cyan")
        latency = row["latency_ms"]
        providers.add_row(
            row["code"],
            f"[{colour}]{row['state']}[/]",
            str(row["subscribed"]),
            str(row["instruments_live"]),
            str(row["ticks_per_s"]),
            age,
            f"{_dash(latency['p50'])}/{_dash(latency['p99'])}",
            str(row["reconnects"]),
        )
        if row["reason"]:
            providers.add_row("", f"[dim]{escape(str(row['reason']))}[/]")
        if row.get("credential_state") and row["credential_state"] not in ("missing", "refused"):
            providers.add_row("", f"[dim]{_credentials(row, now_ms)}[/]")
        if unresolved := row.get("unresolved"):
            names = ", ".join(unresolved[:5]) + (" …" if len(unresolved) > 5 else "")
            providers.add_row("", f"[yellow]{len(unresolved)} unresolved: {escape(names)}[/]")
    grid.add_row(providers)
    pipeline = answer.get("pipeline") or {}
    mappings = pipeline.get("mappings") or {}
    if mappings.get("reason"):
        state = (
            "[red]mappings REFUSED" if mappings.get("refused") else f"[yellow]mappings {mappings['state']}"
        )
        grid.add_row(f"{state}[/]: {escape(mappings['reason'])}")
    if (compiled := pipeline.get("compiled") or {}).get("remedy"):
        told = f"{compiled['reason']}: {compiled['remedy']}"
        grid.add_row(f"[yellow]the compiled path of a tick is not used[/]: {escape(told)}")
    for line in routing_lines(pipeline.get("routing") or {}, pipeline.get("silence") or {}):
        grid.add_row(line)
    sinks = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("sink", "state", "written", "collapsed", "queued", "on disk", "dropped", "rejected"):
        sinks.add_column(column)
    for sink in pipeline.get("sinks", []):
        colour = "green" if sink["state"] == "ready" else "red"
        sinks.add_row(
            sink["name"],
            f"[{colour}]{sink['state']}[/]{' ' + escape(sink['reason']) if sink['reason'] else ''}",
            str(sink["written"]),
            str(sink["collapsed"]),
            str(sink["queued"]),
            str(sink.get("spooled", 0)),
            _by_reason(sink["dropped"]),
            _by_reason(sink["rejected"]),
        )
    grid.add_row("")
    grid.add_row(sinks)
    for line in depth_lines(pipeline.get("depth") or {}):
        grid.add_row(line)
    lease = pipeline.get("lease")
    if lease:
        grid.add_row("")
        grid.add_row(_lease_line(lease))
    grid.add_row("")
    grid.add_row(_ledger_line(pipeline.get("accounts", [])))
    for line in _quota_lines((pipeline.get("backfill") or {}).get("sources", {})):
        grid.add_row(line)
    groups = (pipeline.get("streams") or {}).get("groups", [])
    if groups:
        grid.add_row("")
        grid.add_row(_group_table(groups))
    return grid


def depth_lines(depth: Mapping[str, Any]) -> list[str]:
    """Return how market depth is doing, a line for each feed that somebody wants something of."""
    if not depth.get("on") or not (depth["books"] or depth["awaited"] or depth["refused"]):
        return []
    oldest = f", the oldest {depth['oldest_s']} s" if depth["oldest_s"] is not None else ""
    lines = [
        "",
        f"depth: {depth['books']} books, {depth['awaited']} awaited, {depth['stale']} stale{oldest}",
    ]
    for source in depth["sources"]:
        if source["wanted"] and source["levels"] > 5:
            colour = _STATE_COLOURS.get(source["state"], "cyan")
            reason = f": {escape(source['reason'])}" if source["reason"] else ""
            lines.append(
                f"  {source['levels']} levels [{colour}]{source['state']}[/], {source['carried']} of "
                f"{source['capacity']} on {source['connections']} connections{reason}"
            )
    if depth["refused"]:
        first = depth["refused"][0]
        lines.append(
            f"  [yellow]{len(depth['refused'])} not to be had: {escape(first['instrument'])} with "
            f"{first['levels']} levels ({first['reason']})[/]"
        )
    return lines


def _credentials(row: Mapping[str, Any], now_ms: int) -> str:
    """Return where a provider's credentials stand and for how long they are good."""
    state, expires_ms = row["credential_state"], row["credential_expires_ms"]
    if expires_ms is None:
        return f"credentials {state}, without an end"
    minutes = abs(expires_ms - now_ms) // 60_000
    told = f"{minutes // 60} h {minutes % 60:02d} min"
    return f"credentials {state}, " + (f"{told} left" if expires_ms > now_ms else f"ended {told} ago")


def _ledger_line(accounts: Sequence[Mapping[str, Any]]) -> str:
    """Return one line: whether everything that came in is accounted for, and where it is not."""
    faults = [account for account in accounts if account["fault"]]
    if faults:
        named = ", ".join(f"{account['account']} {account['imbalance']:+}" for account in faults)
        return f"ledger [red]does not balance: {escape(named)}[/]"
    return f"ledger [green]balances[/] [dim]({len(accounts)} accounts)[/]" if accounts else ""


def _quota_lines(sources: Mapping[str, Mapping[str, Any]]) -> list[str]:
    lines = []
    for code, source in sources.items():
        if source.get("left_today") is None:
            continue
        used, left = source["used_today"], source["left_today"]
        told = f"{code} was asked for the past and chains {used} times today, {left} requests are left"
        if not left:
            lines.append(f"[red]{told}[/]")
        elif source.get("left_for_backfill") == 0:
            lines.append(f"[yellow]{told}: the backfill keeps them for what is asked for[/]")
    return lines


def _group_table(groups: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("consumer group", "stream", "consumers", "lag", "pending", "idle", "lost"):
        table.add_column(column)
    for group in groups:
        idle = "-" if group["idle_ms"] is None else f"{group['idle_ms'] / 1000:.1f} s"
        lost = str(group["lost_total"])
        if group["trimmed"]:
            lost = f"[red]trimmed: {_dash(group['lost'])} entries it never got[/]"
        table.add_row(
            escape(group["group"]),
            escape(group["exchange"]),
            str(group["consumers"]),
            _dash(group["lag"]),
            str(group["pending"]),
            idle,
            lost,
        )
    return table


def _lease_line(lease: Mapping[str, Any]) -> str:
    colour = "green" if lease["role"] == "leading" and not lease["reason"] else "yellow"
    holder = lease["holder"]
    by = f", epoch {holder['epoch']}, pid {holder['pid']} on {escape(holder['host'])}" if holder else ""
    why = f"  {escape(lease['reason'])}" if lease["reason"] else ""
    return f"lease  [{colour}]{lease['role']}[/]{by}{why}"


def spool_view(channels: Sequence[ChannelContents]) -> Table:
    """Return the table for the contents of the disk spool."""
    grid = Table.grid(padding=(0, 0))
    if not any(channel.records or channel.again for channel in channels):
        grid.add_row("nothing waits on disk")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in (
        "sink",
        "records",
        "bytes",
        "segments",
        "oldest (UTC)",
        "newest (UTC)",
        "damaged",
    ):
        table.add_column(column)
    for channel in channels:
        table.add_row(
            channel.name,
            str(channel.records),
            str(channel.size_bytes),
            str(len(channel.segments)),
            _utc(channel.oldest_ms),
            _utc(channel.newest_ms),
            str(channel.damaged),
        )
    if channels:
        grid.add_row(table)
    for channel in channels:
        if channel.again:
            grid.add_row(f"{channel.name}: {channel.again} go once more, as Redis may have forgotten them")
        for name in channel.corrupt_files:
            grid.add_row(f"[red]{channel.name}/{escape(name)}[/]: a segment with a damaged header, set aside")
        for name in channel.foreign_files:
            grid.add_row(f"[yellow]{channel.name}/{escape(name)}[/]: not a segment of ours, left alone")
    return grid


def _utc(time_ms: int | None) -> str:
    if time_ms is None:
        return "-"
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _dash(value: Any) -> str:
    return "-" if value is None else str(value)


def _by_reason(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items()) or "0"


def tap_lines(message: Mapping[str, Any], *, as_json: bool) -> list[str]:
    """Return the lines to print for one message of the WebSocket; none for protocol answers."""
    kind = message.get("type")
    if kind == "raw_tick":
        ticks = message["data"].items()
        if as_json:
            return [json.dumps({"type": "tick", "instrument": key, **data}) for key, data in ticks]
        return [_tick_line(key, data) for key, data in ticks]
    if kind in ("subscribed", "authenticated", "pong"):
        return []
    if as_json:
        return [json.dumps(message)]
    rest = " ".join(
        f"{name}={value}" for name, value in message.items() if name not in ("type", "instrumentKey")
    )
    return [f"{'':12} {message.get('instrumentKey', ''):<24} {kind} {rest}"]


def _tick_line(key: str, data: Mapping[str, Any]) -> str:
    moment = time.strftime("%H:%M:%S", time.gmtime(data["ts_ms"] / 1000)) + f".{data['ts_ms'] % 1000:03}"
    quantity = f"x {data['ltq']}" if data.get("ltq") is not None else ""
    book = f"{_dash(data.get('bid'))} / {_dash(data.get('ask'))}"
    flags = ",".join(data["flags"]) if isinstance(data.get("flags"), list) else data.get("flags", "")
    line = (
        f"{moment} {key:<24} {data['last_price']:>12} {quantity:<12} {book:<24} {data.get('src', '')} {flags}"
    )
    return line.rstrip()
