"""Health as proven delivery: once a second a record of our own travels the whole path.

The probe enters at the sequencer like any tick, on the reserved exchange `_PROBE`, and counts as
delivered by a sink when the store (or the broadcast) has acknowledged it. Readiness is the age of
the newest delivered probe of every sink, and that no task is down; never the mere existence of a
connection. `stuck` is the narrower question behind the systemd watchdog: whether something in this
process does not do its work. A store that is away is a reason not to be ready, but none to be killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.market_data.clock import Clock
from services.market_data.records import PROBE_EXCHANGE, PROBE_INSTRUMENT, DataIngestionFormat, Record
from services.pipeline.sink import Sink, SinkState

PROBE_INTERVAL_S = 1.0
PROBE_MAX_AGE_S = 4.0
STUCK_AFTER_S = {
    SinkState.READY: 10.0,
    SinkState.STARTING: 20.0,
    SinkState.UNAVAILABLE: 20.0,
    SinkState.PARKED: 120.0,
    SinkState.CLOSED: 10.0,
}
"""For how long a sink may neither settle a record nor fail an attempt: longer than its longest wait."""


class HealthProbe:
    """Publishes the probe and judges how fresh its deliveries are. `troubles()` names tasks that are down."""

    def __init__(
        self,
        clock: Clock,
        publish: Callable[[Record], None],
        sinks: tuple[Sink, ...],
        troubles: Callable[[], list[str]] = list,
    ) -> None:
        self._clock = clock
        self._publish = publish
        self._sinks = sinks
        self._troubles = troubles
        self._seen_ms: dict[str, int] = {}
        self._seen_at_s: dict[str, float] = {}
        self._progress: dict[str, tuple[SinkState, int, int]] = {}
        self._progress_at_s: dict[str, float] = {}
        self._sent_at_s: float | None = None
        self.sent = 0

    async def run(self) -> None:
        """Send one probe a second until cancelled."""
        while True:
            self.send()
            await asyncio.sleep(PROBE_INTERVAL_S)

    def send(self) -> None:
        """Publish one probe record now."""
        self.sent += 1
        self._sent_at_s = self._clock.monotonic_s()
        now_ms = self._clock.now_ms()
        self._publish(
            DataIngestionFormat(
                PROBE_INSTRUMENT,
                float(self.sent),
                None,
                now_ms,
                "PROBE",
                received_ms=now_ms,
                exchange=PROBE_EXCHANGE,
            )
        )

    def problems(self) -> list[str]:
        """Return what stands in the way of data, one sentence each; empty when every sink delivers."""
        now_s = self._clock.monotonic_s()
        found = self._troubles()
        for sink in self._sinks:
            # Ages are taken on our monotonic clock, so a step of the wall clock is not a fault.
            if sink.probe_ms != self._seen_ms.get(sink.name, 0):
                self._seen_ms[sink.name] = sink.probe_ms
                self._seen_at_s[sink.name] = now_s
            seen_at_s = self._seen_at_s.get(sink.name)
            if seen_at_s is None:
                found.append(f"{sink.name}: nothing delivered yet{_because(sink)}")
            elif now_s - seen_at_s > PROBE_MAX_AGE_S:
                found.append(f"{sink.name}: nothing delivered for {now_s - seen_at_s:.0f} s{_because(sink)}")
        return found

    def stuck(self) -> list[str]:
        """Return what in this process makes no progress, one sentence each. Call it every few seconds.

        A probe is offered every second, so a sink that works either settles records or fails attempts.
        """
        now_s = self._clock.monotonic_s()
        found = []
        if self._sent_at_s is not None and now_s - self._sent_at_s > PROBE_MAX_AGE_S:
            found.append(f"no probe was sent for {now_s - self._sent_at_s:.0f} s")
        for sink in self._sinks:
            counters = sink.counters
            # Neither what is merged nor what is dropped in a full queue shows that anything moves.
            settled = counters.written + sum(counters.rejected.values()) + counters.spooled
            progress = (sink.state, settled, counters.errors)
            if progress != self._progress.get(sink.name):
                self._progress[sink.name] = progress
                self._progress_at_s[sink.name] = now_s
            still_s = now_s - self._progress_at_s[sink.name]
            if still_s > STUCK_AFTER_S[sink.state]:
                found.append(f"{sink.name} ({sink.state.value}) has not moved for {still_s:.0f} s")
        return found


def _because(sink: Sink) -> str:
    return f" ({sink.reason})" if sink.reason else ""
