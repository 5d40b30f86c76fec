"""When no data flowed: what the `gap` records of the last day say, for the coverage of bars. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from services.market_data.records import ControlRecord

_KEPT_MS = 26 * 3_600_000
_MOST_KEPT = 32

_Gaps = tuple[int, ...]
"""Beginning and end of one gap, then of the next: there may be as many of these as instruments."""


class FlowGaps:
    """The declared gaps of instruments and of whole exchanges. Times are UTC epoch ms."""

    def __init__(self) -> None:
        self._of: dict[str, _Gaps] = {}
        self._to_look_at: list[str] = []

    def note(self, record: ControlRecord) -> None:
        """Take in a `gap` record. One that says what a store lost is none in the flow of data."""
        fields = record.fields
        from_ms, to_ms = fields.get("from"), fields.get("to")
        if "store" in fields or "epoch" in fields:
            return
        if not isinstance(from_ms, int) or not isinstance(to_ms, int) or to_ms <= from_ms:
            return
        symbol = record.symbol
        self.add(
            symbol if symbol.partition(":")[2] not in ("", "*") else f"{record.exchange}:", from_ms, to_ms
        )

    def add(self, name: str, from_ms: int, to_ms: int) -> None:
        """Note a gap of an instrument, or of a whole exchange (`NSE:`)."""
        # Two of the others are looked at with each: what was declared long ago is forgotten bit by bit.
        if not self._to_look_at:
            self._to_look_at = list(self._of)
        for other in self._to_look_at[-2:]:
            gaps = self._of.get(other)
            if gaps is not None and gaps[-1] <= to_ms - _KEPT_MS:
                del self._of[other]
        del self._to_look_at[-2:]
        kept = [gap for gap in _pairs(self._of.get(name)) if gap[1] > to_ms - _KEPT_MS]
        self._of[name] = (*chain.from_iterable(kept[1 - _MOST_KEPT :]), from_ms, to_ms)

    def covered_ms(self, instrument: str, exchange: str, start_ms: int, end_ms: int) -> int:
        """Return for how many ms between two moments no gap of the instrument was declared."""
        own, wide = self._of.get(instrument), self._of.get(f"{exchange}:")
        covered = end_ms - start_ms
        if own is None and wide is None:
            return covered
        upto = start_ms
        for from_ms, to_ms in sorted([*_pairs(own), *_pairs(wide)]):
            begin, end = max(from_ms, upto), min(to_ms, end_ms)
            if end > begin:
                covered -= end - begin
                upto = end
        return covered


def _pairs(gaps: _Gaps | None) -> Iterable[tuple[int, int]]:
    return zip(gaps[::2], gaps[1::2], strict=True) if gaps else ()
