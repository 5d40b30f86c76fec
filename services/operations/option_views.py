"""What `options` prints: a chain as a table, calls left and puts right of the strikes. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

_SYMBOL, _STRIKE, _SIDE, _SPOT, _LAST, _VOLUME, _OI, _CHANGE, _EXPIRY, _DELTA, _GAMMA, _THETA, _VEGA, _IV = (
    range(14)
)
_COLUMNS = ("OI", "change", "volume", "IV %", "delta", "bid", "ask", "last")
_NARROW = ("OI", "IV %", "delta", "last")
_WIDE_FROM = 150
"""So many characters the table needs with all columns."""


def chain_view(chain: Mapping[str, Any], day: str, strikes: int, width: int = _WIDE_FROM) -> Group:
    """Return a chain as one screen: at most `strikes` strikes each way of the one at the money (0: all).

    `chain` is an answer of `/api/options/{underlying}/chain`, `day` the date of its expiry. With a `width` of
    less than 150 characters only the most needed columns are shown.
    """
    rows = _by_strike(chain["symbols"])
    shown = _around(list(rows), chain["atm_strike"], strikes)
    table = Table(box=None, padding=(0, 1), header_style="bold")
    columns = _COLUMNS if width >= _WIDE_FROM else _NARROW
    for column in columns:
        table.add_column(column, justify="right", style="green", no_wrap=True)
    table.add_column(day, justify="center", no_wrap=True)
    for column in reversed(columns):
        table.add_column(column, justify="right", style="red", no_wrap=True)
    for strike in shown:
        sides = rows[strike]
        at_the_money = strike == chain["atm_strike"]
        table.add_row(
            *_cells(sides.get("call"), columns),
            f"[reverse bold] {strike} [/]" if at_the_money else strike,
            *reversed(_cells(sides.get("put"), columns)),
        )
    hidden = len(rows) - len(shown)
    return Group(
        _head(chain),
        *(f"[yellow]{_refused(refusal)}[/]" for refusal in chain["refusals"]),
        "",
        "[green]calls[/] left, [red]puts[/] right, the strike at the money marked",
        table,
        *([f"[dim]{hidden} more strikes: --strikes 0 shows all[/]"] if hidden else []),
    )


def _head(chain: Mapping[str, Any]) -> str:
    facts = [
        f"[bold]{escape(chain['underlying'])}[/] {_text(chain['underlying_price'], 2)}",
        f"from {chain['source']}, {chain['age_ms'] / 1000:.0f} s old",
        f"forward {_text(chain['forward'], 2)} ({chain['forward_by'] or 'unknown'})",
        f"PCR {_text(chain['pcr'], 2)}",
        f"max pain {chain['max_pain'] or '-'}",
        f"{chain['completeness']:.0%} of the legs",
    ]
    return " · ".join(facts)


def _refused(refusal: Mapping[str, str]) -> str:
    return escape(f"{refusal['provider']} did not answer: {refusal['message']}")


def _by_strike(legs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for leg in legs:
        rows.setdefault(leg["f"][_STRIKE], {})[leg["f"][_SIDE]] = leg
    return dict(sorted(rows.items(), key=lambda item: float(item[0])))


def _around(strikes: list[str], middle: str | None, each_way: int) -> list[str]:
    if not each_way or middle not in strikes:
        return strikes
    at = strikes.index(middle)
    return strikes[max(0, at - each_way) : at + each_way + 1]


def _cells(leg: Mapping[str, Any] | None, columns: Sequence[str]) -> list[str]:
    if leg is None:
        return ["-"] * len(columns)
    f = leg["f"]
    change = "-" if f[_CHANGE] is None else f"{f[_CHANGE]:+,}"
    cells = {
        "OI": _count(f[_OI]),
        "change": change,
        "volume": _count(f[_VOLUME]),
        "IV %": _text(f[_IV], 1),
        "delta": _text(f[_DELTA], 2),
        "bid": _text(leg["bid"], 2),
        "ask": _text(leg["ask"], 2),
        "last": f"[bold]{_text(f[_LAST], 2)}[/]",
    }
    return [cells[column] for column in columns]


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def expiries_view(answer: Mapping[str, Any]) -> Table:
    """Return the expiries of an underlying with the days that are left."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(f"{escape(answer['underlying'])} expires")
    table.add_column("ends (UTC)")
    for day, moment_s in zip(answer["dates"], answer["expiries"], strict=True):
        table.add_row(day, f"{datetime.fromtimestamp(moment_s, UTC):%Y-%m-%d %H:%M}")
    return table
