"""Yahoo's search, simulated as far as news go: `/v1/finance/search`, on the stream's port.

Every listed symbol has an article each ten minutes; the same
moment gives the same articles. Tests add their own. Shares the limit of the charts.
Source: the answers that yfinance 1.7.0 (`Search.news`) reads.
"""

from __future__ import annotations

import uuid
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from aiohttp import web

if TYPE_CHECKING:
    from simulators.stream import Listing
    from simulators.yahoo import YahooSimulator

EVERY_S = 600
_BACK = 4
_MOST = 1_000


class YahooNewsroom:
    """The handler. `answered` counts requests by what was asked for, `refused` by status.

    `made_up` False answers only what was published; `broken` answers with what is no JSON, `down` with 503.
    """

    def __init__(self, simulator: YahooSimulator) -> None:
        self._simulator = simulator
        self._published: deque[tuple[str, dict[str, Any]]] = deque(maxlen=_MOST)
        self.made_up = True
        self.broken = False
        self.down = False
        self.answered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def add_routes(self, app: web.Application) -> None:
        """Add the path to the server."""
        app.router.add_get("/v1/finance/search", self._search)

    def publish(self, words: str, title: str, *symbols: str, **more: Any) -> dict[str, Any]:
        """Answer an article to whoever searches for `words`; `more` replaces fields of it."""
        article = _article(uuid.uuid4(), title, self._simulator.now_ms() // 1000, list(symbols)) | more
        self._published.append((words, article))
        return article

    async def _search(self, request: web.Request) -> web.Response:
        simulator = self._simulator
        simulator.note("http", f"GET {request.path_qs}")
        if simulator.charts.limit.refusal() is not None:
            simulator.fault_counts["rate_limited"] += 1
            self.refused["429"] += 1
            return web.Response(status=429, text="Too Many Requests\r\n")
        if self.down:
            self.refused["503"] += 1
            return web.Response(status=503, text="Will be right back")
        words = request.query.get("q", "")
        self.answered[words] += 1
        if self.broken:
            return web.Response(text="<html>Will be right back</html>", content_type="text/html")
        news = [article for about, article in self._published if about == words]
        listing = simulator.listing(words)
        if self.made_up and listing is not None:
            news += self._made_up(listing)
        news.sort(key=lambda article: article.get("providerPublishTime", 0), reverse=True)
        count = int(request.query.get("newsCount", "8"))
        return web.json_response(
            {"count": len(news[:count]), "quotes": [], "news": news[:count], "lists": []}
        )

    def _made_up(self, listing: Listing) -> list[dict[str, Any]]:
        slot = self._simulator.now_ms() // 1000 // EVERY_S
        return [
            _article(
                uuid.uuid5(uuid.NAMESPACE_URL, f"{listing.symbol}/{number}"),
                f"Simulated news {number % 1000} about {listing.symbol}",
                number * EVERY_S,
                [listing.symbol],
            )
            for number in range(slot, slot - _BACK, -1)
        ]


def _article(name: uuid.UUID, title: str, published_s: int, symbols: list[str]) -> dict[str, Any]:
    return {
        "uuid": str(name),
        "title": title,
        "publisher": "Simulated Wire",
        "link": f"https://finance.example/news/{name}.html",
        "providerPublishTime": published_s,
        "type": "STORY",
        "relatedTickers": symbols,
    }
