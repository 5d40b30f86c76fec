"""How far a client has read, learned from its answers to our pings, and how much may be on its way to it.

Pure: no I/O. A socket that accepts bytes proves nothing: kernels and proxies hold megabytes for a
client that never reads. A pong comes back only after everything in front of the ping was read, so
pings sent among the data measure the client itself. A quick client gets a wide window and never
notices; a slow one gets a small window, so that what it reads is fresh; one that answers nothing for
a while although data waits for it is frozen.
"""

from __future__ import annotations

from collections import deque

import msgspec

QUICK_S = 1.0
"""A pong within this time widens the window, a later one narrows it."""
PING_INTERVAL_S = 1.0


class FlowLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the window, in bytes sent and not known to be read, and of patience, in seconds.

    `frozen_after_s` is how long data may wait without any pong; `idle_ping_s` how long nothing need be
    sent before a ping asks whether the client is still there, `idle_patience_s` how long it may take
    to answer that.
    """

    initial_bytes: int = 64 * 1024
    smallest_bytes: int = 32 * 1024
    largest_bytes: int = 1024 * 1024
    frozen_after_s: float = 4.5
    idle_ping_s: float = 20.0
    idle_patience_s: float = 20.0


class _Ping(msgspec.Struct, gc=False):
    number: int
    sent_total: int
    at_s: float
    patience_s: float


class FlowWindow:
    """The window of one client. Every time is on the monotonic clock, in seconds."""

    __slots__ = (
        *("_last_ping_s", "_last_pong_s", "_last_sent_s", "_limits", "_number", "_pinged_total", "_pings"),
        *("_read_total", "_sent_total", "_window_bytes", "round_trip_ms"),
    )

    def __init__(self, now_s: float, limits: FlowLimits) -> None:
        self._limits = limits
        self._window_bytes = limits.initial_bytes
        self._sent_total = 0
        self._read_total = 0
        self._pinged_total = 0
        self._pings: deque[_Ping] = deque()
        self._number = 0
        self._last_ping_s = now_s - PING_INTERVAL_S
        self._last_sent_s = now_s
        self._last_pong_s = now_s
        self.round_trip_ms = 0

    @property
    def outstanding_bytes(self) -> int:
        """Bytes that were sent and are not known to be read."""
        return self._sent_total - self._read_total

    @property
    def open(self) -> bool:
        """Whether more may be sent now."""
        return self._sent_total - self._read_total < self._window_bytes

    def sent(self, size_bytes: int, now_s: float) -> bytes | None:
        """Account for data that was sent; return the payload of a ping to send behind it, when one is due."""
        self._sent_total += size_bytes
        self._last_sent_s = now_s
        unpinged = self._sent_total - self._pinged_total
        if unpinged * 4 >= self._window_bytes or now_s - self._last_ping_s >= PING_INTERVAL_S:
            return self._ping(now_s, self._limits.frozen_after_s)
        return None

    def tick(self, now_s: float) -> bytes | None:
        """Return the payload of a ping to send now, if data or a long silence calls for one."""
        if self._sent_total > self._pinged_total:
            if now_s - self._last_ping_s >= PING_INTERVAL_S:
                return self._ping(now_s, self._limits.frozen_after_s)
            return None
        quiet_since_s = max(self._last_sent_s, self._last_ping_s)
        if not self._pings and now_s - quiet_since_s >= self._limits.idle_ping_s:
            return self._ping(now_s, self._limits.idle_patience_s)
        return None

    def ponged(self, payload: bytes, now_s: float) -> bool:
        """Account for a pong, which answers all pings up to its own; return whether it is one of ours."""
        try:
            number = int(payload)
        except ValueError:
            return False
        if not self._pings or not self._pings[0].number <= number <= self._pings[-1].number:
            return False
        while self._pings and self._pings[0].number <= number:
            ping = self._pings.popleft()
            self._read_total = ping.sent_total
        waited_s = now_s - ping.at_s
        self._last_pong_s = now_s
        self.round_trip_ms = round(waited_s * 1000)
        if waited_s <= QUICK_S:
            self._window_bytes = min(self._limits.largest_bytes, self._window_bytes * 2)
        else:
            self._window_bytes = max(self._limits.smallest_bytes, self._window_bytes // 2)
        return True

    def lag_ms(self, now_s: float) -> int:
        """Return how far behind the client reads: the last round trip, or the age of an unanswered ping."""
        if not self._pings:
            return self.round_trip_ms
        return max(self.round_trip_ms, round((now_s - self._pings[0].at_s) * 1000))

    def frozen(self, now_s: float) -> bool:
        """Tell whether the client has answered nothing for longer than an open ping allows."""
        last_pong_s = self._last_pong_s
        return any(now_s - max(ping.at_s, last_pong_s) >= ping.patience_s for ping in self._pings)

    def _ping(self, now_s: float, patience_s: float) -> bytes:
        self._number += 1
        self._last_ping_s = now_s
        self._pinged_total = self._sent_total
        self._pings.append(_Ping(self._number, self._sent_total, now_s, patience_s))
        return b"%d" % self._number
