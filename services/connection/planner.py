"""Which symbol goes over which connection. Pure: a plan that changes by as little as possible.

Stands between the pool and its connections. A symbol stays where it is as long as there is room, new
ones go to the least filled of as many connections as are needed, and what fits nowhere is kept and
named, never dropped silently. The work is in proportion to the change, not to the plan.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from math import ceil

import msgspec


class Change(msgspec.Struct):
    """What becomes different on one connection."""

    added: list[str] = msgspec.field(default_factory=list)
    removed: list[str] = msgspec.field(default_factory=list)


class SharePlan:
    """`shares[i]` are the symbols of connection `i`, in order; `unplaced` found no room anywhere.

    `capacities` limits each connection, `typical` is how many symbols make a further one necessary.
    """

    def __init__(self, capacities: Sequence[int], typical: int) -> None:
        self.capacities = list(capacities)
        self.shares: list[dict[str, None]] = [{} for _ in self.capacities]
        self.unplaced: dict[str, None] = {}
        self._typical = typical
        self._home: dict[str, int] = {}

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._home or symbol in self.unplaced

    def add(self, symbols: Iterable[str]) -> dict[int, Change]:
        """Take in `symbols` that are not in the plan; return what changes, by connection."""
        changes: dict[int, Change] = {}
        self._place([symbol for symbol in dict.fromkeys(symbols) if symbol not in self], changes)
        return changes

    def remove(self, symbols: Iterable[str]) -> dict[int, Change]:
        """Take out `symbols`, and give their places to what had found none."""
        changes: dict[int, Change] = {}
        for symbol in symbols:
            self.unplaced.pop(symbol, None)
            index = self._home.pop(symbol, None)
            if index is not None:
                del self.shares[index][symbol]
                changes.setdefault(index, Change()).removed.append(symbol)
        if self.unplaced and changes:
            waiting, self.unplaced = list(self.unplaced), {}
            self._place(waiting, changes)
        return changes

    def shrink(self, index: int, capacity: int) -> dict[int, Change]:
        """Let connection `index` carry at most `capacity` symbols; the surplus goes to others."""
        self.capacities[index] = capacity
        surplus = list(self.shares[index])[capacity:]
        changes: dict[int, Change] = {}
        for symbol in surplus:
            del self.shares[index][symbol]
            del self._home[symbol]
        if surplus:
            changes[index] = Change(removed=list(surplus))
            self._place(surplus, changes)
        return changes

    def clear(self) -> None:
        """Forget all symbols; what was learned about capacities stays."""
        self.shares = [{} for _ in self.capacities]
        self.unplaced.clear()
        self._home.clear()

    def _place(self, symbols: list[str], changes: dict[int, Change]) -> None:
        needed = ceil((len(self._home) + len(symbols)) / self._typical)
        emptiest: list[tuple[int, int]] = []
        spare: list[int] = []
        for index, share in enumerate(self.shares):
            if len(share) >= self.capacities[index]:
                continue
            if share or index < needed:
                emptiest.append((len(share), index))
            else:
                spare.append(index)
        heapq.heapify(emptiest)
        spare.reverse()
        for symbol in symbols:
            while emptiest and emptiest[0][0] >= self.capacities[emptiest[0][1]]:
                heapq.heappop(emptiest)
            if not emptiest and spare:
                emptiest.append((0, spare.pop()))
            if not emptiest:
                self.unplaced[symbol] = None
                continue
            filled, index = emptiest[0]
            self.shares[index][symbol] = None
            self._home[symbol] = index
            changes.setdefault(index, Change()).added.append(symbol)
            heapq.heapreplace(emptiest, (filled + 1, index))
