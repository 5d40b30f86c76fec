"""Which symbols are due to tick: rates per symbol, spread evenly, cheap at any number of symbols.

Used by the simulators' one timer. Symbols of the same rate share a ring; every batch takes as many
from the ring as the elapsed time is worth.
"""

from __future__ import annotations

from collections.abc import Iterable

MAX_BACKLOG_S = 0.5
"""Time that could not be served because the machine was busy is given up beyond this."""


class _Ring:
    __slots__ = ("credit", "cursor", "members", "order")

    def __init__(self) -> None:
        self.members: dict[str, None] = {}
        self.order: list[str] | None = None
        self.credit = 0.0
        self.cursor = 0

    def take(self, count: int) -> list[str]:
        if self.order is None:
            self.order = list(self.members)
            self.cursor %= max(1, len(self.order))
        order, cursor, size = self.order, self.cursor, len(self.order)
        self.cursor = (cursor + count) % size
        if cursor + count <= size:
            return order[cursor : cursor + count]
        return [order[(cursor + index) % size] for index in range(count)]


class Schedule:
    """The symbols somebody wants, with their rates in ticks per second."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self._own_rates: dict[str, float] = {}
        self._rings: dict[float, _Ring] = {}
        self._ring_of: dict[str, float] = {}

    def __len__(self) -> int:
        return len(self._ring_of)

    def rate_of(self, symbol: str) -> float:
        """Return the rate of a symbol in ticks per second."""
        return self._own_rates.get(symbol, self.rate)

    def set_rate(self, rate: float, symbols: Iterable[str] | None = None) -> None:
        """Set the rate of these symbols, or the default rate (symbols with their own rate keep it)."""
        if rate < 0:
            raise ValueError("a rate is zero or more ticks per second")
        if symbols is None:
            self.rate = rate
        else:
            self._own_rates.update(dict.fromkeys(symbols, rate))
        wanted = list(self._ring_of)
        self._rings.clear()
        self._ring_of.clear()
        for symbol in wanted:
            self.add(symbol)

    def add(self, symbol: str) -> None:
        """Let a symbol tick."""
        if symbol in self._ring_of:
            return
        rate = self.rate_of(symbol)
        ring = self._rings.setdefault(rate, _Ring())
        ring.members[symbol] = None
        ring.order = None
        self._ring_of[symbol] = rate

    def remove(self, symbol: str) -> None:
        """Let a symbol tick no more."""
        rate = self._ring_of.pop(symbol, None)
        if rate is None:
            return
        ring = self._rings[rate]
        del ring.members[symbol]
        ring.order = None
        if not ring.members:
            del self._rings[rate]

    def due(self, elapsed_s: float, factor: float = 1.0) -> list[str]:
        """Return the symbols that must tick for the time since the last call, in order, with repeats."""
        elapsed_s = min(elapsed_s, MAX_BACKLOG_S)
        due: list[str] = []
        for rate, ring in self._rings.items():
            ring.credit += elapsed_s * rate * factor * len(ring.members)
            count = int(ring.credit)
            if count:
                ring.credit -= count
                due += ring.take(count)
        return due
