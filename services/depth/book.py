"""What can be told of a book by looking at it. Pure.

Never repairs: a crossed book stays as it is and is marked. Levels in another order than the best first are
put in order, which changes nothing about them.
"""

from __future__ import annotations

from collections.abc import Iterable

from services.market_data.updates import DEPTH_CROSSED, DEPTH_ONE_SIDED, Level

_MOST = float("inf")


def marks(bids: tuple[Level, ...], asks: tuple[Level, ...]) -> int:
    """Return the flags that a book's own levels call for."""
    if bids and asks:
        return DEPTH_CROSSED if bids[0][0] >= asks[0][0] else 0
    return DEPTH_ONE_SIDED if bids or asks else 0


def real_levels(rows: Iterable[Level]) -> tuple[Level, ...]:
    """Return the levels that exist: a quantity at a finite price above zero. Vendors pad with zeros."""
    return tuple([row for row in rows if 0.0 < row[0] < _MOST and row[1] > 0])


def best_first(levels: tuple[Level, ...], *, bids: bool) -> tuple[Level, ...]:
    """Return `levels` in order of their price, as they came where they are in order already."""
    prices = [level[0] for level in levels]
    ordered = sorted(prices, reverse=bids)
    if prices == ordered:
        return levels
    return tuple(sorted(levels, key=lambda level: level[0], reverse=bids))
