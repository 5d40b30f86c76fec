"""Turns the float32 prices of the wire into the decimal prices that were meant.

307.2 travels as 307.20001220703125. The instrument's tick size says which decimal it was; a price
that does not lie on the tick grid is kept as the shortest decimal that the float32 stands for,
never moved to a tick the market did not trade at.
"""

from __future__ import annotations

from functools import lru_cache
from math import floor, isfinite

_TOLERANCE = 1.001 * 2.0**-24
"""Largest relative distance between a decimal and its nearest float32."""
_REMEMBERED = 32_768
_KNOWN: dict[float, dict[float, tuple[float, bool]]] = {}
"""By tick size: what was found out of prices. They repeat, and a look-up costs a sixth of the reckoning."""


class PriceGrid:
    """Rounds prices of one instrument. `tick_size` in price units, None where there is no grid.

    `known` is what `clean` has answered before and would answer again; empty where there is no tick size.
    """

    __slots__ = ("_per_unit", "_tick", "known")

    def __init__(self, tick_size: float | None) -> None:
        self._tick = tick_size if tick_size and tick_size > 0 else None
        self.known = _KNOWN.setdefault(self._tick, {}) if self._tick else {}
        per_unit = 1.0 / self._tick if self._tick else 0.0
        # Dividing by a whole number gives the double nearest to the decimal; multiplying by 0.05 does not.
        self._per_unit = (
            float(round(per_unit)) if per_unit and abs(per_unit - round(per_unit)) < 1e-6 else 0.0
        )

    def clean(self, price: float, decimals: int | None = None) -> tuple[float, bool]:
        """Return the decimal price and whether it lies on the grid (True where there is no grid).

        `decimals` is the precision the source states, used where there is no tick size.
        `price` must be finite.
        """
        if self._tick is None:
            return self._without_grid(price, decimals)
        known = self.known.get(price)
        if known is None:
            if len(self.known) >= _REMEMBERED:
                self.known.clear()
            known = self.known[price] = self._on_grid(price, self._tick)
        return known

    def _on_grid(self, price: float, tick: float) -> tuple[float, bool]:
        tolerance = abs(price) * _TOLERANCE
        if self._per_unit:
            candidate = floor(price * self._per_unit + 0.5) / self._per_unit
        else:
            candidate = round(floor(price / tick + 0.5) * tick, 9)
        if abs(candidate - price) <= tolerance:
            return candidate, True
        return shortest_decimal(price, tolerance), False

    @staticmethod
    def _without_grid(price: float, decimals: int | None) -> tuple[float, bool]:
        tolerance = abs(price) * _TOLERANCE
        if decimals is not None:
            candidate = round(price, decimals)
            if abs(candidate - price) <= tolerance:
                return candidate, True
        return shortest_decimal(price, tolerance), True


@lru_cache(maxsize=1_024)
def price_grid(tick_size: float | None) -> PriceGrid:
    """Return the grid of a tick size; instruments of one tick size share it."""
    return PriceGrid(tick_size)


def shortest_decimal(price: float, tolerance: float) -> float:
    """Return the decimal with the fewest digits within `tolerance` of `price`."""
    for digits in (6, 7, 8):
        candidate = float(f"{price:.{digits}g}")
        if abs(candidate - price) <= tolerance:
            return candidate
    return price


def reference_price(grid: PriceGrid, price: float | None, decimals: int | None) -> float | None:
    """Return a cleaned bid, ask or day price; None for absent, zero, NaN and infinite ones."""
    if not price or not isfinite(price):
        return None
    return grid.clean(price, decimals)[0]
