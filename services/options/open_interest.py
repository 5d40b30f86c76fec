"""Open interest by strike out of a chain. Pure."""

from __future__ import annotations

from services.on_demand_provider import OpenInterest, OptionChain


def open_interest_of(chain: OptionChain) -> list[OpenInterest]:
    """Return the open interest of both sides at every strike, by strike ascending; None where unknown."""
    by_strike: dict[str, dict[str, int | None]] = {}
    for row in chain.symbols:
        by_strike.setdefault(row.f[1], {})[row.f[2]] = row.f[6]
    return [
        OpenInterest(strike, sides.get("call"), sides.get("put"))
        for strike, sides in sorted(by_strike.items(), key=lambda item: float(item[0]))
    ]
