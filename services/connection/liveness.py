"""Tells a quiet connection from a dead one, and a mute one from both. Pure: times and counts in, verdict out.

Stands under the connection runner, which looks at it about once a second; frames only count.
"""

from __future__ import annotations

from enum import Enum


class Pulse(Enum):
    """What to do about a connection now."""

    FINE = "fine"
    PING = "ping"
    DEAD = "dead"
    MUTE = "mute"


class Liveness:
    """The pulse of one open connection, on the monotonic clock.

    Any frame, ping or pong is a sign of life; only frames that brought ticks are data. After a pause in
    our own process nothing is held against the peer: what it sent meanwhile has not been read yet.
    """

    def __init__(self, now_s: float, *, ping_after_s: float, pong_within_s: float) -> None:
        self._ping_after_s = ping_after_s
        self._pong_within_s = pong_within_s
        self._signs = 0
        self._data = 0
        self._alive_s = self._data_s = now_s
        self._pinged_s: float | None = None

    @property
    def look_every_s(self) -> float:
        """How often `look` should be called."""
        return min(1.0, self._ping_after_s / 4, self._pong_within_s / 4)

    def look(
        self,
        now_s: float,
        signs: int,
        data: int,
        *,
        mute_after_s: float | None = None,
        overslept: bool = False,
    ) -> Pulse:
        """Judge the connection from how many signs of life and data frames have come in all.

        `mute_after_s` is how long no data may come, None where silence is normal. `overslept` says that
        our own process stood still since the last look.
        """
        if signs != self._signs or overslept:
            self._signs, self._alive_s, self._pinged_s = signs, now_s, None
        if data != self._data or overslept or mute_after_s is None:
            self._data, self._data_s = data, now_s
        elif now_s - self._data_s >= mute_after_s:
            return Pulse.MUTE
        if self._pinged_s is not None:
            return Pulse.DEAD if now_s - self._pinged_s >= self._pong_within_s else Pulse.FINE
        if now_s - self._alive_s >= self._ping_after_s:
            self._pinged_s = now_s
            return Pulse.PING
        return Pulse.FINE
