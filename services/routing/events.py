"""What routing decided, instrument by instrument: the newest in memory, all of it on the way to PostgreSQL.

Stands between the router, which adds, and whoever asks (`why`, `/api/routes`) or writes
(`services.routing.event_writer`). Adding never waits: what is too much is dropped, oldest first, and counted.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice
from typing import Any

import msgspec

QUEUE_LIMIT = 50_000
"""So many events wait for PostgreSQL at most."""
REMEMBERED_INSTRUMENTS = 30_000
REMEMBERED_EACH = 10


class RouteEvent(msgspec.Struct):
    """One decision. `action` is a word of `Action` or `resumed`, `forced`, `released`; `at_ms` UTC epoch ms.

    `from_provider` and `to_provider` are empty where there is none; `seq` numbers the events of a process.
    """

    instrument: str
    action: str
    from_provider: str
    to_provider: str
    reason: str
    at_ms: int
    details: dict[str, Any]
    seq: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return the event for JSON."""
        return {
            "at_ms": self.at_ms,
            "action": self.action,
            "from": self.from_provider or None,
            "to": self.to_provider or None,
            "reason": self.reason,
            "details": self.details,
        }


class RouteJournal:
    """The events of this process. `added = written + dropped + len(queue)` at any time."""

    def __init__(self) -> None:
        self.added = 0
        self.dropped = 0
        self.written = 0
        self._queue: deque[RouteEvent] = deque()
        self._newest: OrderedDict[str, deque[RouteEvent]] = OrderedDict()

    def add(self, event: RouteEvent) -> None:
        """Take one event. Never waits."""
        self.added += 1
        event.seq = self.added
        if len(self._queue) >= QUEUE_LIMIT:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(event)
        own = self._newest.get(event.instrument)
        if own is None:
            own = self._newest[event.instrument] = deque(maxlen=REMEMBERED_EACH)
            if len(self._newest) > REMEMBERED_INSTRUMENTS:
                self._newest.popitem(last=False)
        own.append(event)

    @property
    def waiting(self) -> int:
        """How many events are not written yet."""
        return len(self._queue)

    def newest(self, instrument: str) -> list[RouteEvent]:
        """Return the newest events of an instrument, oldest first."""
        return list(self._newest.get(instrument, ()))

    def batch(self, limit: int) -> list[RouteEvent]:
        """Return the oldest events that wait, without taking them away."""
        return list(islice(self._queue, limit))

    def settle(self, batch: list[RouteEvent], *, refused: bool = False) -> None:
        """Take away what was written, or can never be; what was dropped meanwhile is gone already."""
        for event in batch:
            if self._queue and self._queue[0] is event:
                self._queue.popleft()
                if refused:
                    self.dropped += 1
                else:
                    self.written += 1

    def status(self) -> dict[str, int]:
        """Return the account of the events."""
        return {
            "added": self.added,
            "written": self.written,
            "dropped": self.dropped,
            "waiting": self.waiting,
        }
