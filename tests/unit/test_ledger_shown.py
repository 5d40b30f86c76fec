"""An account broken on purpose is seen everywhere an operator looks."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

from rich.console import Console
from structlog.testing import capture_logs

from services.gateway.metrics import MetricsPage
from services.live_data_ingestion import IngestionConfig, LiveDataIngestion
from services.market_data.clock import ManualClock
from services.operations.terminal_views import status_view
from services.pipeline.ledger import LASTING_S


def shown(daemon: LiveDataIngestion) -> tuple[str, str]:
    """Return the metrics page and the human status."""
    page, _ = MetricsPage(daemon.view, daemon.gateway.client_figures).render()
    printed = StringIO()
    console = Console(width=200, file=printed)
    console.print(status_view({"providers": [], "pipeline": daemon.pipeline_status()}))
    return page.decode(), printed.getvalue()


async def test_a_lasting_imbalance_is_a_fault_in_status_metrics_readiness_and_log(tmp_path: Path) -> None:
    clock = ManualClock()
    config = IngestionConfig(
        database_url="postgresql://localhost/none", redis_url="redis://localhost/0", state_dir=tmp_path
    )
    daemon = LiveDataIngestion(config, provider_settings=dict, clock=clock)
    with capture_logs() as logs:
        daemon.ledger.look()
        page, status = shown(daemon)
        assert 'marketd_ledger_fault{account="sink stream"} 0.0' in page
        assert "ledger balances" in status
        (stream,) = [sink for sink in daemon.sinks if sink.name == "stream"]
        stream.counters.offered += 3
        daemon.ledger.look()
        clock.advance(LASTING_S + 1)
        daemon.ledger.look()
        daemon.ledger.look()
        page, status = shown(daemon)
    assert 'marketd_ledger_fault{account="sink stream"} 1.0' in page
    assert 'marketd_ledger_imbalance{account="sink stream"} 3.0' in page
    assert "ledger does not balance: sink stream +3" in status
    readiness = daemon.readiness()
    assert [text for text in readiness.degraded if "sink stream" in text]
    assert not [text for text in readiness.reasons if "ledger" in text or "account" in text]
    assert [log["event"] for log in logs] == ["ledger_unbalanced"]
