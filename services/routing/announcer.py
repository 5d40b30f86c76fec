"""What routing says: control records into the stream, decisions into the journal, one line into the log.

Stands at the router's exit. Order is its only duty: what is said goes out before the tick it explains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog

from services.market_data.clock import Clock
from services.market_data.gaps import GapBook
from services.market_data.instruments import InstrumentMapping
from services.market_data.records import ControlRecord, ControlType, Record
from services.routing.events import RouteEvent, RouteJournal

_log = structlog.get_logger(__name__)

NAMED_AT_MOST = 10


class Announcer:
    """Publishes for the router. `publish` takes a record into the pipeline."""

    def __init__(self, clock: Clock, publish: Callable[[Record], None], journal: RouteJournal) -> None:
        self._clock = clock
        self._journal = journal
        self.publish = publish
        self._switched: Counter[tuple[str, str, str]] = Counter()
        self._first_switched: list[str] = []

    def record(
        self, kind: ControlType, mapping: InstrumentMapping, code: str, fields: dict[str, str | int]
    ) -> None:
        """Publish a control record of an instrument."""
        now_ms = self._clock.now_ms()
        self.publish(ControlRecord(kind, mapping.instrument, mapping.exchange, now_ms, now_ms, code, fields))

    def close_gap(self, gaps: GapBook, mapping: InstrumentMapping, at_ms: int) -> bool:
        """Publish the gap of an instrument that flows again since `at_ms`; returns whether there was one."""
        record = gaps.restored(mapping, at_ms, self._clock.now_ms())
        if record is None:
            return False
        self.publish(record)
        return True

    def switched(self, row: InstrumentMapping, left: str, reason: str) -> None:
        """Say that an instrument is served by `row`'s provider now; counted for the log."""
        code = row.provider_code
        self.record("switched", row, code, {"from_src": left, "to_src": code, "reason": reason})
        self._switched[(left, code, reason)] += 1
        if len(self._first_switched) < NAMED_AT_MOST:
            self._first_switched.append(row.instrument)

    def event(self, instrument: str, action: str, left: str, to: str, reason: str, **details: Any) -> None:
        """Keep a decision."""
        self._journal.add(RouteEvent(instrument, action, left, to, reason, self._clock.now_ms(), details))

    def say_switched(self) -> None:
        """Log one line for each kind of switch since the last time, however many instruments there were."""
        for (left, to, reason), count in self._switched.items():
            _log.warning(
                "routes_switched",
                left=left,
                to=to,
                reason=reason,
                count=count,
                instruments=self._first_switched,
            )
        self._switched.clear()
        self._first_switched = []
