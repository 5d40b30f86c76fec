"""Gives every record of an exchange its position: one total order for all sinks and all clients.

A position is `<ms>-<seq>`, the id of the record's stream entry. The milliseconds are those of our
clock when the record was accepted (never going back), the sequence counts within one millisecond.
Because the position is ours, a retry is harmless: Redis refuses an id that it already has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.compiled import load
from services.market_data.clock import Clock
from services.market_data.records import Record
from services.market_data.updates import Level2Update

Position = tuple[int, int]
START: Position = (0, 0)
_stamp_run: Any = getattr(load("runs"), "stamp_run", None)


def parse_position(text: str) -> Position:
    """Return `(ms, seq)` of `"1700000000000-4"`. Raises ValueError for anything else."""
    ms, separator, seq = text.partition("-")
    if not separator or not (ms.isascii() and ms.isdigit() and seq.isascii() and seq.isdigit()):
        raise ValueError(f"not a position: {text[:40]!r}; expected <ms>-<seq>")
    return int(ms), int(seq)


class Sequencer:
    """Assigns positions, one counter per exchange.

    Must be told of the last stored position of each exchange (`resume_after`) before its first
    record, so that a restarted daemon, even with its clock set back, goes on increasing.
    """

    def __init__(self, clock: Clock) -> None:
        self._now_ms = clock.now_ms
        self._last: dict[str, Position] = {}

    def resume_after(self, exchange: str, position: Position) -> None:
        """Make every future position of `exchange` greater than `position`."""
        self._last[exchange] = max(position, self._last.get(exchange, START))

    def stamp(self, record: Record | Level2Update) -> None:
        """Write the next position of the record's exchange into the record."""
        exchange = record.exchange
        last_ms, last_seq = self._last.get(exchange, START)
        now_ms = self._now_ms()
        if now_ms > last_ms:
            record.position_ms, record.position_seq = now_ms, 0
            self._last[exchange] = (now_ms, 0)
            return
        seq = last_seq + 1
        record.position_ms, record.position_seq = last_ms, seq
        self._last[exchange] = (last_ms, seq)

    def stamp_run(self, records: Sequence[Record]) -> None:
        """Write the next positions into records, in their order, as if all came at this moment."""
        now_ms = self._now_ms()
        last = self._last
        if _stamp_run is not None:
            _stamp_run(last, now_ms, records)
            return
        exchange = None
        ms, seq = START
        for record in records:
            if record.exchange != exchange:
                if exchange is not None:
                    last[exchange] = (ms, seq)
                exchange = record.exchange
                ms, seq = last.get(exchange, START)
                if now_ms > ms:
                    ms, seq = now_ms, -1
            seq += 1
            record.position_ms = ms
            record.position_seq = seq
        if exchange is not None:
            last[exchange] = (ms, seq)

    def position(self, exchange: str) -> str:
        """Return the newest position given out for `exchange`, `0-0` before the first."""
        ms, seq = self._last.get(exchange, START)
        return f"{ms}-{seq}"

    def positions(self) -> dict[str, str]:
        """Return the newest position of every exchange that has one."""
        return {exchange: f"{ms}-{seq}" for exchange, (ms, seq) in self._last.items()}
