"""News over HTTP: `/api/news`, the newest articles of one instrument or of all.

Reads the stream `md:news` only; asking for an instrument's news counts as interest in them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
from aiohttp import web

from services.errors import StorageError
from services.gateway.encoding import to_json
from services.gateway.errors import HttpError
from services.gateway.grants import Grant
from services.gateway.guard import PRINCIPAL
from services.gateway.parameters import known_parameters, whole_number
from services.market_data.events import NewsUpdate
from services.storage.news_stream import MAX_ENTRIES, NewsBoard

DEFAULT_COUNT, MOST = 50, 500


class NewsSource(msgspec.Struct, frozen=True):
    """What answers for news in this process.

    `is_known` tells mapped instrument keys. `ask(instrument)` notes the interest and returns when its news
    were last fetched, UTC epoch ms; None for never, or where this process fetches none.
    """

    board: NewsBoard
    is_known: Callable[[str], bool]
    ask: Callable[[str], int | None]


class NewsApi:
    """The handler of `/api/news`. `source` is None where there is none."""

    def __init__(self, source: NewsSource | None) -> None:
        self._source = source

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the address."""
        router.add_get("/api/news", self.news)

    async def news(self, request: web.Request) -> web.Response:
        """Return articles, the last published first; 404 for an unknown instrument, 503 without Redis."""
        known_parameters(request, "instrument", "limit")
        limit = whole_number(request, "limit", DEFAULT_COUNT, 1, MOST)
        source = self._source
        if source is None:
            raise HttpError(503, "not_here", "this process has no news")
        grant = request[PRINCIPAL].grant
        instrument = self._instrument(request, source, grant)
        fetched_ms = source.ask(instrument) if instrument is not None else None
        narrowed = instrument is None and grant.instruments is not None
        try:
            found = await source.board.latest(instrument, MAX_ENTRIES if narrowed else limit)
        except StorageError as error:
            raise HttpError(503, "unavailable", str(error), retry_after_s=2) from error
        if narrowed:
            found = [it for it in found if any(grant.covers(key) for key in it.instruments)][:limit]
        body: dict[str, Any] = {"instrument": instrument, "news": [_json(it, grant) for it in found]}
        if instrument is not None:
            body["fetched_ms"] = fetched_ms
        return web.Response(body=to_json(body), content_type="application/json")

    @staticmethod
    def _instrument(request: web.Request, source: NewsSource, grant: Grant) -> str | None:
        text = request.query.get("instrument")
        if text is None:
            return None
        instrument = text.strip().upper()
        if not grant.covers(instrument):
            # Asked before whether it exists: the answer must not tell.
            raise HttpError(403, "forbidden", "this token is not for this instrument")
        if not source.is_known(instrument):
            raise HttpError(404, "unknown_instrument", f"{text[:60]!r} is not mapped")
        return instrument


def _json(article: NewsUpdate, grant: Grant) -> dict[str, Any]:
    return {
        "id": article.id,
        "ts_ms": article.timestamp // 1000,
        "received_ms": article.received_ms,
        "headline": article.headline,
        "publisher": article.publisher,
        "url": article.url or None,
        "instruments": [key for key in article.instruments if grant.covers(key)],
        "symbols": list(article.symbols),
        "src": article.provider_code,
    }
