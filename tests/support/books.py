"""A depth desk that does as it is told, for tests of what shows order books."""

from __future__ import annotations

from collections.abc import Callable

from services.errors import RequestRefused
from services.market_data.updates import Level2Update


class ToldBooks:
    """`tell` makes a book and hands it out; `refused` are instruments nobody has the depth of."""

    def __init__(self, refused: str = "NSE:RELIANCE") -> None:
        self.refused = refused
        self.wanted: list[tuple[str, int]] = []
        self.books: dict[str, Level2Update] = {}
        self.listeners: list[Callable[[Level2Update], None]] = []
        self.sequence = 0
        self.at_ms = 1_700_000_000_000

    def latest(self, instrument: str) -> Level2Update | None:
        return self.books.get(instrument)

    def listen(self, callback: Callable[[Level2Update], None]) -> Callable[[], None]:
        self.listeners.append(callback)
        return lambda: self.listeners.remove(callback)

    def want(self, instrument: str, levels: int = 5) -> None:
        if instrument == self.refused:
            raise RequestRefused("nobody has its depth", reason="no_depth")
        self.wanted.append((instrument, levels))

    def unwant(self, instrument: str, levels: int = 5) -> None:
        self.wanted.remove((instrument, levels))

    def tell(self, instrument: str, best: float, flags: int = 0, levels: int = 20) -> Level2Update:
        """Hand out a book with its best bid at `best` and its best ask one above."""
        self.sequence += 1
        update = Level2Update(
            instrument,
            instrument.partition(":")[0],
            "DHAN",
            self.at_ms * 1000 + self.sequence,
            self.at_ms,
            tuple((best - level, 10 + level, 1) for level in range(levels)),
            tuple((best + 1 + level, 20 + level, 2) for level in range(levels)),
            levels,
            flags,
            self.at_ms,
            self.sequence,
        )
        self.books[instrument] = update
        for listener in self.listeners:
            listener(update)
        return update
