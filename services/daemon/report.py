"""What this daemon reports of itself in Redis, for gateways that run elsewhere and for the other shards."""

from __future__ import annotations

from services.daemon.config import IngestionConfig
from services.daemon.view import DaemonView
from services.storage.ingest_reports import IngestReport, ReportWriter, this_process


def make_reports(config: IngestionConfig, view: DaemonView) -> ReportWriter:
    """Return the writer of the reports; it writes while this daemon leads."""
    stages = view.stages

    def report() -> IngestReport:
        readiness = view.readiness()
        return IngestReport(
            at_ms=stages.clock.now_ms(),
            shard=stages.storage.shard.name,
            demo=stages.demo,
            ready=readiness.ready,
            reasons=list(readiness.reasons),
            degraded=list(readiness.degraded),
            dynamic=stages.subscriptions is not None,
            providers=view.provider_status(),
            **this_process(),
        )

    return ReportWriter(config.redis_url, report, may_write=stages.storage.leadership.may_write)
