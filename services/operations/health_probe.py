"""Health as proven delivery: once a second a record of our own travels the whole path.

The probe enters at the sequencer like any tick, on the reserved exchange `_PROBE`, and counts as
delivered by a sink when the store (or the broadcast) has acknowledged it. Readiness is the age of
the newest delivered probe of every sink, never the mere existence of a connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.market_data.clock import Clock
from services.market_data.records import PROBE_EXCHANGE, PROBE_INSTRUMENT, DataIngestionFormat, Record
from services.pipeline.sink import Sink

PROBE_INTERVAL_S = 1.0
PROBE_MAX_AGE_S = 4.0


class HealthProbe:
    """Publishes the probe and judges how fresh its deliveries are."""

    def __init__(self, clock: Clock, publish: Callable[[Record], None], sinks: tuple[Sink, ...]) -> None:
        self._clock = clock
        self._publish = publish
        self._sinks = sinks
        self._seen_ms: dict[str, int] = {}
        self._seen_at_s: dict[str, float] = {}
        self.sent = 0

    async def run(self) -> None:
        """Send one probe a second until cancelled."""
        while True:
            self.send()
            await asyncio.sleep(PROBE_INTERVAL_S)

    def send(self) -> None:
        """Publish one probe record now."""
        self.sent += 1
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
        found = []
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


def _because(sink: Sink) -> str:
    return f" ({sink.reason})" if sink.reason else ""
