"""Yahoo as a source of news: one search per symbol, paid from the account's budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from services.errors import ProviderRateLimited, UnexpectedAnswer
from services.market_data.clock import Clock
from services.rest.browser_client import BrowserClient
from services.rest.client import common_refusal
from services.rest.quota import Quota
from services.wire import yahoo_news as wire

CODE = "YF"
DEFAULT_URL = "https://query2.finance.yahoo.com"
_PATIENCE_S = 30.0
_ARTICLES = 20
_PAUSE_S = 120.0


class YahooNews:
    """Asks for the news of a symbol (`AAPL`, `RELIANCE.NS`), or of words."""

    def __init__(self, settings: Callable[[], Mapping[str, str]], clock: Clock, quota: Quota) -> None:
        self._settings = settings
        self._client = BrowserClient("Yahoo", clock)
        self._quota = quota

    async def fetch(self, words: str) -> list[wire.Article]:
        """Return the newest articles. Raises a `ProviderError` or `WireFormatError`."""
        await self._quota.take(_PATIENCE_S)
        base = (self._settings().get("YAHOO_REST_URL") or DEFAULT_URL).rstrip("/")
        answer = await self._client.get(base + wire.SEARCH_PATH, query=wire.news_query(words, _ARTICLES))
        refusal = common_refusal("Yahoo", answer)
        if isinstance(refusal, ProviderRateLimited):
            self._quota.pause(refusal.retry_after_s or _PAUSE_S, str(refusal))
        if refusal is not None:
            raise refusal
        if answer.status != 200:
            raise UnexpectedAnswer(f"Yahoo answers {answer.status}", reason=f"http_{answer.status}")
        return wire.parse_news(answer.body)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()
