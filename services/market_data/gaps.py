"""Which instruments nobody delivers now, since when and why; closed gaps become records.

Stands beside the router, which knows whose data counts. An instrument has at most one open gap: what
happens while it is open (another refusal, another provider that cannot help) lengthens it, and its first
reason stays. Pure.
"""

from __future__ import annotations

from services.market_data.instruments import InstrumentMapping
from services.market_data.records import ControlRecord


class GapBook:
    """The open gaps, by instrument key. Times are UTC epoch ms."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[int, str]] = {}

    def __contains__(self, instrument: str) -> bool:
        return instrument in self._open

    def open_gap(self, instrument: str) -> tuple[int, str] | None:
        """Return since when and why nothing of `instrument` has come; None when something has."""
        return self._open.get(instrument)

    def lost(self, instrument: str, since_ms: int, reason: str) -> None:
        """Take note that nothing of `instrument` has been let through since `since_ms`."""
        self._open.setdefault(instrument, (since_ms, reason))

    def forget(self, instrument: str) -> None:
        """Declare no gap of an instrument that is no more."""
        self._open.pop(instrument, None)

    def restored(self, mapping: InstrumentMapping, at_ms: int, now_ms: int) -> ControlRecord | None:
        """Close the gap of an instrument whose data flows again since `at_ms`; None where there is none."""
        gap = self._open.pop(mapping.instrument, None)
        if gap is None:
            return None
        since_ms, reason = gap
        return ControlRecord(
            "gap",
            mapping.instrument,
            mapping.exchange,
            now_ms,
            now_ms,
            mapping.provider_code,
            # A clock that was set back meanwhile must not turn the gap around.
            {"from": since_ms, "to": max(since_ms, at_ms), "reason": reason},
        )
