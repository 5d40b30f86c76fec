"""In which order the daemon stops what may publish, and what it does not do while it leads nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from services import live_data_ingestion
from services.errors import ConfigurationError
from services.live_data_ingestion import IngestionConfig, LiveDataIngestion
from services.market_data.clock import ManualClock


async def test_a_daemon_that_routes_nothing_takes_no_choice_of_route(tmp_path: Path) -> None:
    config = IngestionConfig(
        database_url="postgresql://localhost:1/none", redis_url="redis://localhost:1/0", state_dir=tmp_path
    )
    daemon = LiveDataIngestion(config, provider_settings=dict, clock=ManualClock())
    with pytest.raises(ConfigurationError, match="stands by"):
        daemon.routes.switch_route("NSE:TCS", "YF", for_s=60.0, by="ops", why="")


async def test_nobody_announces_anything_into_streams_that_are_drained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = IngestionConfig(
        database_url="postgresql://localhost:1/none", redis_url="redis://localhost:1/0", state_dir=tmp_path
    )
    daemon = LiveDataIngestion(config, provider_settings=dict, clock=ManualClock())
    running: list[str] = []

    async def drained(*_: Any) -> dict[str, int]:
        running.extend(census.name for census in daemon.supervisor.census())
        return {}

    monkeypatch.setattr(live_data_ingestion, "drain_all", drained)
    for name in ("past", "losses", "history", "health_probe", "sink:stream"):
        daemon.supervisor.keep(name, asyncio.Event().wait, core=False)  # type: ignore[arg-type]
    await daemon.storage.spool.open()
    await daemon.stop()
    assert running == ["sink:stream"]
