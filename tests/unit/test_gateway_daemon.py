"""What a gateway process hands on to the parts of it that others made."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

from services.gateway_daemon import GatewayDaemon, GatewayDaemonConfig
from services.market_data.candles import HistoryRequest, parse_resolution
from services.market_data.clock import ManualClock
from services.market_data.records import DataIngestionFormat
from tests.support.eventually import eventually

NOW_MS = 1_796_100_000_000


def made(tmp_path: Path) -> GatewayDaemon:
    config = GatewayDaemonConfig(
        database_url="postgresql://marketd:old@127.0.0.1:1/none",
        redis_url="redis://127.0.0.1:1/0",
        state_dir=tmp_path,
    )
    return GatewayDaemon(config, clock=ManualClock(NOW_MS))


async def test_a_changed_password_of_postgresql_reaches_the_coverage_of_the_past(tmp_path: Path) -> None:
    daemon = made(tmp_path)
    url = "postgresql://marketd:new@127.0.0.1:1/none"
    daemon.secrets_changed(database_url=url, redis_url=daemon.config.redis_url, api_tokens={})
    await eventually(lambda: daemon._past.ledger.store._database._url == url)
    await daemon.stop()


async def test_a_gateway_s_history_shows_the_minute_that_forms(tmp_path: Path) -> None:
    daemon = made(tmp_path)
    daemon._bars.offer(
        DataIngestionFormat("CRYPTO:BTC-USD", 7.0, 1, NOW_MS, "YF", exchange="CRYPTO", position_ms=NOW_MS)
    )
    request = HistoryRequest(instrument="CRYPTO:BTC-USD", resolution=parse_resolution("1m"), forming=True)
    with patch("services.history.service.read_bars", return_value=[]):
        answer = await daemon.history(request)
    assert answer.forming
    assert answer.candles == [(NOW_MS // 60_000 * 60, 7.0, 7.0, 7.0, 7.0, 1)]
    await daemon.stop()
