"""A running daemon tells the webhook of a parked provider, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from tests.support.eventually import eventually
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(120)


async def test_a_parked_provider_is_told_once(stack: Stack, tmp_path: Path) -> None:
    got: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        got.append(await request.json())
        return web.Response()

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    async with stack.daemon(tmp_path / "state", DHAN_ACCESS_TOKEN="", NOTICE_WEBHOOK_URL=url) as daemon:
        await eventually(lambda: [notice["key"] for notice in got] == ["provider:DHAN"], within_s=40)
        assert got[0]["event"] == "raised"
        assert "DHAN is parked" in got[0]["text"]
        assert "DHAN_ACCESS_TOKEN" in got[0]["text"]
        status = (await daemon.status())["pipeline"]["notices"]
        assert list(status["open"]) == ["provider:DHAN"]
        assert await daemon.stop() == 0
    assert [notice["key"] for notice in got] == ["provider:DHAN"], "told once"
    await runner.cleanup()
