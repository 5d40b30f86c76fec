"""Decides when each client's bytes go out: at once for those with delivery `all`, in slots for the others.

One loop serves every client, a few milliseconds at a time, so that a thousand clients neither wake a
thousand tasks nor keep the event loop from reading what comes in. A client that cannot take more is
passed over and tried again; nobody waits for it.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

from services.compiled import load
from services.data_broadcast import Publication
from services.gateway.flow import PING_INTERVAL_S, FlowWindow
from services.gateway.outbox import Outbox
from services.gateway.session import ClientSession, SessionCounters
from services.market_data.clock import Clock
from services.pipeline.hop_times import SAMPLE_EVERY_MS, HopTimes

SLOT_S = 0.002
SLICE_S = 0.004
LONGEST_SLICE_S = 0.02
SHORTEST_REST_S = 0.0008
"""A rest that would be shorter is left out: timers of the event loop count whole milliseconds."""
LONGEST_SLEEP_S = 0.05
RETRY_S = 0.02
CHECK_EVERY_S = 0.25
STALL_S = 1.0
"""After a pause of the event loop as long as this nobody is judged by it: what clients sent is read first."""
LOOK_AT_THE_CLOCK_EVERY = 16
"""So many sessions are flushed between two looks at the clock."""
_GOLDEN = 0.6180339887498949


class Pacer:
    """Serves the sessions of one gateway. `run` must be running for anything paced to be sent."""

    __slots__ = (
        *("_checked_s", "_clock", "_due", "_due_s_of", "_flush_handle", "_flush_planned_s", "_looked_away"),
        *("_order", "_ready", "_rest_until_s", "_sessions", "_spread", "_stalled", "_time_from_s", "_wake"),
        *("delivered_within", "flush_some", "ready"),
    )

    def __init__(self, clock: Clock) -> None:
        self.ready: Callable[[ClientSession], None]
        self.flush_some: Callable[[int, float], None]
        if _compiled is None:
            self.ready, self.flush_some = self._make_ready, self._flush_some
        else:
            self.ready = partial(_compiled.ready, self)
            self.flush_some = partial(_compiled.flush_some, self)
        self._clock = clock
        self._sessions: set[ClientSession] = set()
        self._ready: deque[ClientSession] = deque()
        self._stalled: set[ClientSession] = set()
        self._due: list[tuple[float, int, ClientSession]] = []
        self._due_s_of: dict[ClientSession, float] = {}
        self._order = 0
        self._spread = 0.0
        self._flush_handle: asyncio.Handle | None = None
        self._rest_until_s = 0.0
        self._flush_planned_s = 0.0
        self._checked_s = 0.0
        self._looked_away = False
        self._wake = asyncio.Event()
        self.delivered_within = HopTimes()
        """From a tick's acceptance until the socket of a client with delivery `all` has taken it."""
        self._time_from_s = 0.0

    def enter(self, session: ClientSession) -> None:
        """Begin to look after a session."""
        self._sessions.add(session)
        self._wake.set()

    def leave(self, session: ClientSession) -> None:
        """Stop looking after a session."""
        self._sessions.discard(session)
        self._stalled.discard(session)
        self._due_s_of.pop(session, None)

    def _make_ready(self, session: ClientSession) -> None:
        """Flush the session's queue when the event loop has done what it is at: a burst is one write.

        After a round that took long the next one waits as long: at least half of the time belongs to
        what comes in, and what is queued meanwhile leaves in fewer, larger writes.
        """
        if not session.awaits_flush:
            session.awaits_flush = True
            self._ready.append(session)
            if self._flush_handle is None:
                self._flush_soon()

    @staticmethod
    def taking(outbox: Outbox) -> Callable[[Publication], None]:
        """Return what queues a tick with delivery `all` in an outbox."""
        return outbox.take if _compiled is None else partial(_compiled.take, outbox)

    def paced(self, session: ClientSession) -> None:
        """Put a session that has a new pace, or was just served, into the order of service."""
        due_s = session.next_due_s()
        planned_s = self._due_s_of.get(session)
        if due_s is None or (planned_s is not None and planned_s <= due_s):
            return
        self._due_s_of[session] = due_s
        self._order += 1
        heapq.heappush(self._due, (due_s, self._order, session))

    def spread(self) -> float:
        """Return the next of numbers that fill 0 to 1 evenly: where in its time a new pace begins.

        Clients that come at once, as after a restart, are so served one after the other.
        """
        self._spread = (self._spread + _GOLDEN) % 1.0
        return self._spread

    async def run(self) -> None:
        """Serve what is due until cancelled."""
        planned_s = self._clock.monotonic_s()
        while True:
            if not self._sessions:
                self._wake.clear()
                await self._wake.wait()
                planned_s = self._clock.monotonic_s()
            more = self.serve(_slice_s(self._clock.monotonic_s() - planned_s))
            pause_s = SLOT_S if more else self._pause_s()
            planned_s = self._clock.monotonic_s() + pause_s
            await asyncio.sleep(pause_s)

    def serve(self, slice_s: float = SLICE_S) -> bool:
        """Serve due sessions for about `slice_s` seconds; return whether some are still waiting."""
        clock = self._clock
        started_s = now_s = clock.monotonic_s()
        since_s = now_s - self._checked_s
        if since_s >= CHECK_EVERY_S:
            self._checked_s = now_s
            self._looked_away = since_s >= STALL_S and not self._looked_away
            for session in () if self._looked_away else list(self._sessions):
                session.check(now_s)
        for session in list(self._stalled):
            self._stalled.discard(session)
            self._flush(session, now_s)
        due = self._due
        while due and due[0][0] <= now_s:
            if now_s - started_s >= slice_s:
                return True
            due_s, _, session = heapq.heappop(due)
            # A session planned anew since (for an earlier time), or gone, has left its old entry behind.
            if self._due_s_of.get(session) == due_s:
                del self._due_s_of[session]
                session.serve_paces(now_s)
                self.paced(session)
            now_s = clock.monotonic_s()
        return False

    def _pause_s(self) -> float:
        longest_s = RETRY_S if self._stalled else LONGEST_SLEEP_S
        if not self._due:
            return longest_s
        return min(longest_s, max(SLOT_S, self._due[0][0] - self._clock.monotonic_s()))

    def _flush_soon(self) -> None:
        loop = asyncio.get_running_loop()
        now_s = self._clock.monotonic_s()
        rest_s = self._rest_until_s - now_s
        self._flush_planned_s = now_s + max(0.0, rest_s)
        if rest_s < SHORTEST_REST_S:
            self._flush_handle = loop.call_soon(self._flush_ready)
        else:
            self._flush_handle = loop.call_later(rest_s, self._flush_ready)

    def _flush_ready(self) -> None:
        self._flush_handle = None
        clock = self._clock
        started_s = now_s = clock.monotonic_s()
        slice_s = _slice_s(now_s - self._flush_planned_s)
        ready = self._ready
        left = len(ready)
        while left and now_s - started_s < slice_s:
            if now_s >= self._time_from_s:
                self._flush_timed(now_s)
                left -= 1
            some = min(left, LOOK_AT_THE_CLOCK_EVERY)
            self.flush_some(some, now_s)
            left -= some
            now_s = clock.monotonic_s()
        self._rest_until_s = now_s + (now_s - started_s)
        if ready and self._flush_handle is None:
            self._flush_soon()

    def _flush_some(self, most: int, now_s: float) -> None:
        ready = self._ready
        for _ in range(most):
            session = ready.popleft()
            session.awaits_flush = False
            self._flush(session, now_s)

    def _flush_timed(self, now_s: float) -> None:
        session = self._ready[0]
        accepted_ms = session.outbox.oldest_ms()
        self.flush_some(1, now_s)
        if accepted_ms:
            self._time_from_s = now_s + SAMPLE_EVERY_MS / 1000
            if not session.outbox.waiting:
                self.delivered_within.note((self._clock.now_ms() - accepted_ms) / 1000)

    def _flush(self, session: ClientSession, now_s: float) -> None:
        if session.flush(now_s):
            self.ready(session)
        elif session.outbox.waiting and session in self._sessions:
            self._stalled.add(session)


def _slice_s(late_s: float) -> float:
    """Return how long to serve at once: longer when the loop came back late, in fairness."""
    return min(LONGEST_SLICE_S, SLICE_S + max(0.0, late_s) / 2)


_compiled: Any = load("fanout")
if _compiled is not None:
    _compiled.shapes_of_the_gateway(
        Outbox, ClientSession, FlowWindow, SessionCounters, Pacer, PING_INTERVAL_S
    )
