"""News of a running daemon: fetched for who asks, shown by it and by a gateway that fetches none itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.eventually import eventually
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(240)


async def test_who_asks_gets_news_from_the_daemon_and_from_a_gateway(stack: Stack, tmp_path: Path) -> None:
    stack.yahoo.news.made_up = False
    told = stack.yahoo.news.publish("AAPL", "Apple opens a shop", "AAPL", "MSFT")
    stack.yahoo.news.publish("^GSPC", "Shares fall", "^GSPC")
    async with (
        stack.daemon(
            tmp_path / "state", YAHOO_REST_URL=stack.yahoo.rest_url, NEWS_EVERY_S=300, NEWS_TOPICS="^GSPC"
        ) as daemon,
        stack.gateway(tmp_path / "gateway") as gateway,
        aiohttp.ClientSession() as http,
    ):

        async def get(url: str, path: str) -> Any:
            async with http.get(url + path) as response:
                assert response.status == 200, await response.text()
                return await response.json()

        async def headlines(url: str, path: str) -> list[str]:
            return [it["headline"] for it in (await get(url, path))["news"]]

        async def found(url: str, path: str) -> bool:
            return bool(await headlines(url, path))

        url, other = str(daemon.runtime["api_url"]), str(gateway.runtime["api_url"])
        await eventually(lambda: found(url, "/api/news"), within_s=20)
        assert await headlines(url, "/api/news") == ["Shares fall"]
        assert await headlines(url, "/api/news?instrument=NASDAQ:AAPL") == []
        await eventually(lambda: found(url, "/api/news?instrument=NASDAQ:AAPL"), within_s=30)
        for base in (url, other):
            (article,) = (await get(base, "/api/news?instrument=NASDAQ:MSFT"))["news"]
            assert article["id"] == f"YF:{told['uuid']}"
            assert article["instruments"] == ["NASDAQ:AAPL", "NASDAQ:MSFT"]
        status = await get(url, "/api/providers/status")
        assert status["pipeline"]["news"]["told"] == 2
        assert stack.yahoo.news.answered["AAPL"] == 1
