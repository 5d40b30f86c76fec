"""When the silence of a busy connection is a fault. Pure: times and counts in, a limit out.

Stands beside the liveness of a connection, which knows silence but not what it means. A connection is
expected to speak only where a market is open and where it spoke all the time before; a few quiet
instruments never look like a fault, and neither does a holiday.
"""

from __future__ import annotations

import msgspec


class MuteRules(msgspec.Struct, frozen=True, kw_only=True):
    """When a connection that answers pings but brings no data is given up; times in seconds.

    It counts as busy after `windows` windows of `window_s` in a row with `least_frames` data frames a
    minute or more, and until they are less than half as many. A busy one is given up after `after_s`
    without data, at most `tries` times in a row;
    then it is left open until it speaks by itself.
    """

    after_s: float = 30.0
    window_s: float = 60.0
    windows: int = 2
    least_frames: float = 30.0
    tries: int = 3


class MuteWatch:
    """What is known of one connection's habits; outlives the single sockets.

    `futile` counts how often in a row it was given up as mute and still brought nothing.
    """

    def __init__(self) -> None:
        self.futile = 0
        self._markets: frozenset[str] = frozenset()
        self._busy_windows = 0
        self._window_began_s = 0.0
        self._window_frames = 0
        self._frames = 0
        self._spoke_s = 0.0

    def connected(self, now_s: float) -> None:
        """Take note of a new socket, whose frames are counted from 0."""
        self._frames = 0
        self._begin_window(now_s)

    def limit_s(self, rules: MuteRules, now_s: float, frames: int, markets: frozenset[str]) -> float | None:
        """Return after how many seconds of silence to give up, None where silence is ordinary now.

        `frames` is how many data frames this socket has brought, `markets` which exchanges are open.
        When those change, what was learned before says nothing any more.
        """
        new, self._frames = frames - self._frames, frames
        if markets != self._markets:
            self._markets, self._busy_windows = markets, 0
            self._begin_window(now_s)
        if new:
            self.futile = 0
            self._spoke_s = now_s
            self._window_frames += new
        elapsed_s = now_s - self._window_began_s
        # A window is judged only while the connection speaks: silence is what the limit is for.
        if elapsed_s >= rules.window_s and now_s - self._spoke_s < rules.after_s / 4:
            # Half is enough to stay busy, because a silence may have begun within the window.
            needed = rules.least_frames if self._busy_windows < rules.windows else rules.least_frames / 2
            busy = self._window_frames * 60.0 >= needed * elapsed_s
            self._busy_windows = self._busy_windows + 1 if busy else 0
            self._begin_window(now_s)
        if not markets or self._busy_windows < rules.windows or self.futile >= rules.tries:
            return None
        return rules.after_s

    def gave_up(self) -> None:
        """Take note that the connection was given up as mute."""
        self.futile += 1

    def _begin_window(self, now_s: float) -> None:
        self._window_began_s = now_s
        self._window_frames = 0
