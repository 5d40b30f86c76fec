"""The chain on the terminal: calls left, puts right, what is unknown shown as such."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from services.operations.option_views import chain_view, expiries_view

STRIKES = ("24900", "24950", "25000", "25050", "25100")


def leg(strike: str, side: str, **more: Any) -> dict[str, Any]:
    last = 111.5 if side == "call" else 222.5
    f = [f"NFO:{strike}", strike, side, 25_010.0, last, 1_000, 2_000, -50, 1, 0.5, 0.001, -9.0, 12.0, 13.25]
    return {"f": f, "bid": last - 1, "ask": last + 1, "age_ms": 0, "greeks_by": "vendor"} | more


def chain(**more: Any) -> dict[str, Any]:
    legs = [leg(strike, side) for strike in STRIKES for side in ("call", "put")]
    return {
        "underlying": "NSE:NIFTY",
        "underlying_price": 25_010.0,
        "source": "DHAN",
        "age_ms": 2_400,
        "forward": 25_030.25,
        "forward_by": "parity",
        "pcr": 0.91,
        "max_pain": "25000",
        "completeness": 0.9,
        "atm_strike": "25000",
        "refusals": [],
        "symbols": legs,
    } | more


def shown(view: Any) -> list[str]:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(view)
    return capture.get().splitlines()


def test_calls_stand_left_and_puts_right_of_their_strike() -> None:
    lines = shown(chain_view(chain(), "2026-12-29", 0))
    assert "25,010.00" in lines[0]
    assert "max pain 25000" in lines[0]
    rows = [line for line in lines if line.split()[8:9] and line.split()[8] in STRIKES]
    assert [row.split()[8] for row in rows] == list(STRIKES)
    assert rows[0].split()[:8] == ["2,000", "-50", "1,000", "13.2", "0.50", "110.50", "112.50", "111.50"]
    assert rows[0].split()[9:] == ["222.50", "223.50", "221.50", "0.50", "13.2", "1,000", "-50", "2,000"]


def test_only_strikes_around_the_money_are_shown_and_the_others_are_counted() -> None:
    lines = shown(chain_view(chain(), "2026-12-29", 1))
    assert [strike for strike in STRIKES if any(f" {strike} " in line for line in lines[3:])] == [
        "24950",
        "25000",
        "25050",
    ]
    assert "2 more strikes" in lines[-1]


def test_a_narrow_terminal_gets_fewer_columns_and_nothing_is_cut() -> None:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(chain_view(chain(), "2026-12-29", 0, width=80))
    text = capture.get()
    assert "…" not in text
    assert "2,000  13.2   0.50  111.50" in text
    assert "volume" not in text


def test_what_is_missing_or_unknown_is_a_dash_and_refusals_are_told() -> None:
    lone = leg("25000", "put", bid=None)
    lone["f"][6:8] = [None, None]
    refusals = [{"provider": "DHAN", "reason": "806", "message": "Data APIs [not] subscribed"}]
    lines = shown(chain_view(chain(symbols=[lone], refusals=refusals, pcr=None, atm_strike=None), "x", 5))
    assert "PCR -" in lines[0]
    assert lines[1] == "DHAN did not answer: Data APIs [not] subscribed"
    row = lines[-1].split()
    assert row[:8] == ["-"] * 8
    assert row[9:] == ["222.50", "223.50", "-", "0.50", "13.2", "1,000", "-", "-"]


def test_expiries_are_listed_with_the_moment_they_end() -> None:
    lines = shown(
        expiries_view({"underlying": "NSE:NIFTY", "dates": ["2026-12-29"], "expiries": [1_798_538_400]})
    )
    assert lines[1].split() == ["2026-12-29", "2026-12-29", "10:00"]
