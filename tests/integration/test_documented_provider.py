"""The smallest provider, as printed in MULTI_PROVIDER_SETUP.md, against a real WebSocket server."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import WSMsgType, web

from services.market_data.clock import SystemClock
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry
from services.market_data.records import ControlRecord, DataIngestionFormat, Record
from services.pipeline.supervisor import Supervisor
from services.provider_manager import ProviderManager
from tests.support.daemon import ROOT
from tests.support.eventually import eventually


def documented_class() -> Any:
    """Return the class that the guide prints, made from the guide's own text."""
    text = (ROOT / "MULTI_PROVIDER_SETUP.md").read_text(encoding="utf-8")
    (code,) = [
        block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "class AcmeProvider" in block
    ]
    names: dict[str, Any] = {"__name__": "acme"}
    exec(compile(code, "MULTI_PROVIDER_SETUP.md", "exec"), names)
    return names["AcmeProvider"]


class AcmeServer:
    """Sends one tick for every symbol of a subscription."""

    def __init__(self) -> None:
        self.requests: list[dict[str, list[str]]] = []
        self.sockets: list[web.WebSocketResponse] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets.append(socket)
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                break
            asked = json.loads(message.data)
            self.requests.append(asked)
            for symbol in asked.get("subscribe", []):
                now_ms = SystemClock().now_ms()
                await socket.send_json({"s": symbol, "p": 12.5 + len(self.requests), "t": now_ms})
        return socket


@pytest.fixture
async def acme() -> AsyncIterator[AcmeServer]:
    server = AcmeServer()
    app = web.Application()
    app.router.add_get("/", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"ws://127.0.0.1:{runner.addresses[0][1]}/"
    yield server
    await runner.cleanup()


def snapshot() -> MappingSnapshot:
    return MappingSnapshot(
        version=1,
        loaded_ms=0,
        providers=(ProviderEntry(code="ACME", name="Acme"),),
        mappings=(
            InstrumentMapping(
                mapping_id=1,
                instrument="NYSE:ABC",
                exchange="NYSE",
                symbol="ABC",
                name="ABC",
                asset_class=AssetClass.EQUITY,
                currency="USD",
                provider_code="ACME",
                search_code="ABC",
                tick_size=0.01,
                is_primary=True,
            ),
        ),
    )


async def test_it_streams_reconnects_and_declares_the_gap(acme: AcmeServer) -> None:
    published: list[Record] = []
    supervisor = Supervisor()
    settings = {"ACME_TOKEN": "secret", "ACME_URL": acme.url}
    manager = ProviderManager(
        clock=SystemClock(),
        settings=lambda: settings,
        publish=published.append,
        supervisor=supervisor,
        show_reference=published.append,
        factories={"ACME": documented_class()},
    )
    manager.load(snapshot())
    await manager.start()
    try:
        await eventually(lambda: any(isinstance(record, DataIngestionFormat) for record in published))
        tick = next(record for record in published if isinstance(record, DataIngestionFormat))
        assert (tick.symbol, tick.price, tick.provider_code) == ("NYSE:ABC", 13.5, "ACME")
        assert manager.get_provider_status()["ACME"]["state"] == "streaming"
        await acme.sockets[0].close()
        await eventually(lambda: len(acme.requests) == 2, within_s=10)
        await eventually(lambda: any(isinstance(record, ControlRecord) for record in published))
        (gap,) = [record for record in published if isinstance(record, ControlRecord)]
        assert (gap.type, gap.symbol) == ("gap", "NYSE:ABC")
        assert gap.fields["from"] <= gap.fields["to"]
    finally:
        await asyncio.wait_for(manager.stop(), 5)
        assert await supervisor.stop() == []


async def test_without_its_token_it_is_parked_and_says_what_is_missing(acme: AcmeServer) -> None:
    supervisor = Supervisor()
    manager = ProviderManager(
        clock=SystemClock(),
        settings=lambda: {"ACME_URL": acme.url},
        publish=lambda record: None,
        supervisor=supervisor,
        show_reference=lambda record: None,
        factories={"ACME": documented_class()},
    )
    manager.load(snapshot())
    await manager.start()
    try:
        await eventually(lambda: manager.get_provider_status()["ACME"]["state"] == "parked")
        assert "ACME_TOKEN" in manager.get_provider_status()["ACME"]["reason"]
        assert acme.sockets == []
    finally:
        await manager.stop()
        await supervisor.stop()
