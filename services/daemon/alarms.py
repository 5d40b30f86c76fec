"""What an administrator is told: the troubles of the moment, and what happened.

Between the status of everything and the notifier. A daemon that stands by has no troubles of its own.
"""

from __future__ import annotations

from services.daemon.config import IngestionConfig
from services.daemon.stages import Stages
from services.daemon.view import DaemonView
from services.market_data.records import ControlRecord
from services.operations.notices import Notifier
from services.operations.troubles import told_gap, troubles


class Alarms:
    """Holds the `notifier`; None when nobody is to be told."""

    def __init__(self, config: IngestionConfig, stages: Stages, view: DaemonView) -> None:
        self._clock = stages.clock
        self._calendar = stages.calendar
        self._state = stages.state
        self._routing = stages.routing
        self._storage = stages.storage
        self._depth = stages.depth
        self._view = view
        self.notifier: Notifier | None = None
        if config.notices:
            self.notifier = Notifier(stages.clock, self.troubles, config.notices, demo=config.demo)

    def note_control(self, record: ControlRecord) -> None:
        """Tell of a gap within the market's hours and of a switch."""
        if self.notifier is None:
            return
        if record.type == "gap" and self._calendar.in_session(record.exchange, record.timestamp):
            gap = told_gap(record)
            if gap is not None:
                self.notifier.happened(gap)
        if record.type == "switched":
            fields = record.fields
            self.notifier.happened(f"{fields['from_src']} -> {fields['to_src']}: {fields['reason']}")

    def troubles(self) -> dict[str, str]:
        """Return what an administrator should hear of now, by what it concerns."""
        if not self._state.running:
            return {}
        readiness, routing = self._view.readiness(), self._routing
        found = troubles(
            now_ms=self._clock.now_ms(),
            providers=routing.conditions(),
            sinks=(*self._storage.writers, *self._depth.sinks),
            spool=self._storage.spool.status(),
            not_ready=readiness.reasons,
            degraded=readiness.degraded,
            silence=routing.judge.alarms(),
            disputes=routing.disputes(),
            not_renewed=routing.credentials.problems if routing.credentials else {},
        )
        summary = routing.providers.router.summary()
        if summary["stale"]:
            named = ", ".join(summary["stale_instruments"])
            found["routing:stale"] = f"nobody delivers {summary['stale']} instruments: {named}"
        return found | self._depth.troubles()
