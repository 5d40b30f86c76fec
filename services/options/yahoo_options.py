"""Yahoo Finance as a source of option chains of US underlyings: cookie and crumb, then a request a chain.

Source: yfinance 1.7.0: a cookie from `fc.yahoo.com`, a crumb from `/v1/test/getcrumb`, both sent with
`/v7/finance/options`; without them the answer is 401. There is no published limit; after 429 it is minutes
until the next answer. The quota is shared with past bars.
"""

from __future__ import annotations

import asyncio
from datetime import date
from urllib.parse import quote

from services.errors import ProviderUnavailable, UnexpectedAnswer
from services.market_data.clock import Clock
from services.on_demand_provider import OpenInterest, OptionChain, OptionsDataProvider, chain_of
from services.options.open_interest import open_interest_of
from services.options.source import DERIVATIVES_OF, PATIENCE_S, Settings, Underlying
from services.rest.browser_client import BrowserClient
from services.rest.client import RestAnswer, common_refusal
from services.rest.quota import Quota
from services.wire import yahoo_options as wire
from services.wire.option_fields import AMERICAN_EXPIRY, NEW_YORK, expiry_day, expiry_moment_s

CODE = "YF"
DEFAULT_URL = "https://query2.finance.yahoo.com"
DEFAULT_COOKIE_URL = "https://fc.yahoo.com"
RATE_LIMIT_WAIT_S = 120.0
_CRUMB_PATH = "/v1/test/getcrumb"


def symbol_of(underlying: Underlying) -> str | None:
    """Return Yahoo's symbol; None for Indian underlyings, of which Yahoo has no options."""
    mapping = underlying.mappings.get(CODE)
    return None if mapping is None or underlying.exchange in DERIVATIVES_OF else mapping.search_code


class YahooOptions(OptionsDataProvider):
    """Option chains of US underlyings. Symbols are Yahoo's, as in `AAPL` or `^SPX`."""

    def __init__(self, settings: Settings, clock: Clock, quota: Quota) -> None:
        self._settings = settings
        self._client = BrowserClient("Yahoo", clock)
        self._quota = quota
        self._crumb = ""
        self._one_crumb = asyncio.Lock()

    async def get_option_chain(self, symbol: str, expiry: int) -> OptionChain:
        """Return every leg of `symbol` at `expiry` (UTC epoch s)."""
        day = expiry_day(expiry, NEW_YORK)
        answer = await self._ask(symbol, day)
        return chain_of(wire.parse_chain(answer.body, expiry=day, received_ms=answer.received_ms))

    async def get_expiry_dates(self, symbol: str) -> list[int]:
        """Return the expiries (close of the day in New York, UTC epoch s), ascending."""
        answer = await self._ask(symbol, None)
        return [expiry_moment_s(day, NEW_YORK, AMERICAN_EXPIRY) for day in wire.parse_expiries(answer.body)]

    async def get_oi_data(self, symbol: str, expiry: int, time_s: int | None = None) -> list[OpenInterest]:
        """Return open interest by strike as of now. Raises `ValueError` for a time: Yahoo keeps none."""
        if time_s is not None:
            raise ValueError("Yahoo has no open interest of earlier times")
        return open_interest_of(await self.get_option_chain(symbol, expiry))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, symbol: str, day: date | None) -> RestAnswer:
        answer = await self._once(symbol, day)
        if answer.status in (401, 403):
            # The crumb belongs to a cookie that has ended.
            self._crumb = ""
            answer = await self._once(symbol, day)
        if answer.status != 200 and answer.status != 404:
            raise UnexpectedAnswer(f"Yahoo answers {answer.status}", reason=f"http_{answer.status}")
        return answer

    async def _once(self, symbol: str, day: date | None) -> RestAnswer:
        base = (self._settings().get("YAHOO_REST_URL") or DEFAULT_URL).rstrip("/")
        crumb = await self._fetch_crumb(base)
        query = {"crumb": crumb} | ({} if day is None else {"date": wire.expiry_query(day)})
        await self._quota.take(PATIENCE_S)
        return self._judge(
            await self._client.get(base + wire.options_path(quote(symbol, safe="")), query=query)
        )

    async def _fetch_crumb(self, base: str) -> str:
        async with self._one_crumb:
            if not self._crumb:
                cookie_url = self._settings().get("YAHOO_COOKIE_URL") or (
                    DEFAULT_COOKIE_URL if base == DEFAULT_URL else base
                )
                await self._quota.take(PATIENCE_S)
                # Its status does not matter (404 is usual): it sets the cookie.
                self._judge(await self._client.get(cookie_url))
                await self._quota.take(PATIENCE_S)
                answer = self._judge(await self._client.get(base + _CRUMB_PATH))
                crumb = answer.body.decode("utf-8", "replace").strip()
                if answer.status != 200 or not crumb or "<" in crumb or len(crumb) > 64:
                    raise ProviderUnavailable(f"Yahoo gives no crumb ({answer.status})", reason="no_crumb")
                self._crumb = crumb
            return self._crumb

    def _judge(self, answer: RestAnswer) -> RestAnswer:
        common = common_refusal("Yahoo", answer)
        if common is not None:
            if answer.status == 429:
                self._quota.pause(common.retry_after_s or RATE_LIMIT_WAIT_S, str(common))
            raise common
        return answer
