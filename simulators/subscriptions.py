"""Who wants which symbol: the subscriptions of all connections of a simulator.

Used by the stream simulators; keeps the schedule of symbols that must tick in step.
"""

from __future__ import annotations

from simulators.connection import Connection
from simulators.schedule import Schedule


class Subscriptions:
    """Symbol by symbol, which connection receives it in which kind of packets (`variant`)."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._by_symbol: dict[str, dict[tuple[int, str], Connection]] = {}
        self._by_connection: dict[int, set[tuple[str, str]]] = {}

    def __len__(self) -> int:
        return len(self._by_symbol)

    def __contains__(self, symbol: str) -> bool:
        return symbol in self._by_symbol

    def add(self, connection: Connection, symbol: str, variant: str) -> bool:
        """Let a connection receive a symbol; False when it does already."""
        watchers = self._by_symbol.setdefault(symbol, {})
        key = (connection.number, variant)
        if key in watchers:
            return False
        watchers[key] = connection
        self._by_connection.setdefault(connection.number, set()).add((symbol, variant))
        self._schedule.add(symbol)
        return True

    def remove(self, connection: Connection, symbol: str, variant: str) -> None:
        """Undo `add`; harmless when there is nothing to undo."""
        watchers = self._by_symbol.get(symbol)
        if watchers is None or watchers.pop((connection.number, variant), None) is None:
            return
        self._by_connection[connection.number].discard((symbol, variant))
        if not watchers:
            del self._by_symbol[symbol]
            self._schedule.remove(symbol)

    def forget(self, connection: Connection) -> None:
        """Remove everything of a connection."""
        for symbol, variant in list(self._by_connection.get(connection.number, ())):
            self.remove(connection, symbol, variant)
        self._by_connection.pop(connection.number, None)

    def of_symbol(self, symbol: str) -> dict[tuple[int, str], Connection]:
        """Return who receives a symbol: (connection number, variant) to connection."""
        return self._by_symbol.get(symbol, {})

    def of_connection(self, connection: Connection) -> set[tuple[str, str]]:
        """Return the (symbol, variant) pairs a connection receives."""
        return self._by_connection.get(connection.number, set())

    def all(self) -> set[tuple[str, str]]:
        """Return the (symbol, variant) pairs that any connection receives."""
        return set().union(*self._by_connection.values())
