"""What Redis confirmed in the last seconds: a Redis that is killed may have forgotten it.

Beneath `redis_sink`, which sends it once more when a connection was lost. Holds no more than the seconds in
which that can happen, and a bounded number of records.

These are most of the daemon's young objects, and none is ever part of a cycle. So the collector is kept from
them: with 10 000 ticks a second it stopped everything for 25 to 70 ms every few seconds to walk over them.
"""

from __future__ import annotations

import ctypes
from collections import deque

from services.storage.batch import Batch

FORGETS_S = 5.0
"""How far back a killed Redis may have forgotten what it confirmed.

While one fsync of its log runs, Redis with `appendfsync everysec` holds back the next write to the log for
up to two seconds (whole ones, so nearly three), and confirms meanwhile. The rest is for noticing the loss.
Source: redis/src/aof.c, flushAppendOnlyFile.
"""
_MOST_RECORDS = 50_000


_keep_from_collector = ctypes.PYFUNCTYPE(None, ctypes.py_object)(("PyObject_GC_UnTrack", ctypes.pythonapi))
"""Take a container out of what the collector walks over; its count of references still ends it.

Source: https://docs.python.org/3/c-api/gcsupport.html (`PyObject_GC_UnTrack`).
"""


class ConfirmedBatches:
    """Settled batches, oldest first. Times are seconds on the event loop's clock."""

    def __init__(self) -> None:
        self._batches: deque[Batch] = deque()
        self._records = 0

    def keep(self, batch: Batch, now_s: float) -> None:
        """Keep a settled batch for the time in which Redis may still forget it."""
        batch.again = batch.maybe_stored = True
        batch.spooled_until = 0
        batch.answer = b""
        batch.settled_s = now_s
        _keep_from_collector(batch)
        _keep_from_collector(batch.records)
        batches = self._batches
        batches.append(batch)
        self._records += len(batch.records)
        while batches and (batches[0].settled_s < now_s - FORGETS_S or self._records > _MOST_RECORDS):
            self._records -= len(batches.popleft().records)

    def take(self, now_s: float) -> list[Batch]:
        """Return what was confirmed lately, in its order, and forget it."""
        lately = [batch for batch in self._batches if batch.settled_s >= now_s - FORGETS_S]
        self.clear()
        return lately

    def clear(self) -> None:
        """Forget all."""
        self._batches.clear()
        self._records = 0
