"""NSE's own website as a source of option chains: polite, and quick to give up where it is refused.

The site has no official interface. It wants cookies from a page before it answers, and lets nobody ask
often: one request in two seconds, one at a time. Whoever is refused again and again is left alone for five
minutes. It sends the headers of a browser, without which the site answers nobody, and imitates no browser
beyond that: where NSE's bot wall refuses it, this source does not work, and says so.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from services.errors import ProviderError, ProviderUnavailable, WireFormatError
from services.market_data.clock import Clock
from services.market_data.instruments import AssetClass
from services.on_demand_provider import OpenInterest, OptionChain, OptionsDataProvider, chain_of
from services.options.open_interest import open_interest_of
from services.options.source import PATIENCE_S, Settings, Underlying
from services.rest.breaker import Breaker
from services.rest.client import RestAnswer, RestClient, common_refusal
from services.rest.quota import Quota
from services.wire import nse_options as wire
from services.wire.option_fields import INDIA, INDIAN_EXPIRY, expiry_day, expiry_moment_s

_T = TypeVar("_T")
CODE = "NSE"
DEFAULT_URL = "https://www.nseindia.com"
_INDEX_MARK = "INDEX:"
_PAGE_HEADERS = {"Accept": "text/html,application/xhtml+xml", "Accept-Language": "en-US,en;q=0.9"}
_API_HEADERS = {"Accept": "application/json", "X-Requested-With": "XMLHttpRequest"}
_USER_AGENT = (
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36"
)


def symbol_of(underlying: Underlying) -> str | None:
    """Return NSE's symbol, marked where it is an index; None for instruments of other exchanges."""
    if underlying.exchange != "NSE":
        return None
    mark = _INDEX_MARK if underlying.asset_class is AssetClass.INDEX else ""
    return mark + underlying.symbol


class NseOptions(OptionsDataProvider):
    """Option chains of NSE from its website. Symbols are NSE's, indices marked as in `INDEX:NIFTY`."""

    def __init__(self, settings: Settings, clock: Clock, quota: Quota) -> None:
        self._settings = settings
        self._client = RestClient(
            "NSE", clock, headers={"User-Agent": _USER_AGENT, "Accept-Encoding": "gzip, deflate"}
        )
        self._quota = quota
        self._breaker = Breaker("NSE", clock)
        self._one_at_a_time = asyncio.Lock()
        self._warm = False

    async def get_option_chain(self, symbol: str, expiry: int) -> OptionChain:
        """Return every leg of `symbol` at `expiry` (UTC epoch s)."""
        name, is_index = _split(symbol)
        day = expiry_day(expiry, INDIA)
        query = wire.chain_query(name, day, is_index=is_index)

        def parse(answer: RestAnswer) -> OptionChain:
            return chain_of(wire.parse_chain(answer.body, expiry=day, received_ms=answer.received_ms))

        return await self._ask(wire.CHAIN_PATH, query, parse)

    async def get_expiry_dates(self, symbol: str) -> list[int]:
        """Return the expiries (end of the day's session, UTC epoch s), ascending."""
        name, _ = _split(symbol)
        days = await self._ask(
            wire.CONTRACT_INFO_PATH,
            wire.contract_info_query(name),
            lambda answer: wire.parse_expiries(answer.body),
        )
        return [expiry_moment_s(day, INDIA, INDIAN_EXPIRY) for day in days]

    async def get_oi_data(self, symbol: str, expiry: int, time_s: int | None = None) -> list[OpenInterest]:
        """Return open interest by strike as of now. Raises `ValueError` for a time: NSE shows none."""
        if time_s is not None:
            raise ValueError("NSE shows no open interest of earlier times")
        return open_interest_of(await self.get_option_chain(symbol, expiry))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, path: str, query: dict[str, str], parse: Callable[[RestAnswer], _T]) -> _T:
        async with self._one_at_a_time:
            self._breaker.check()
            try:
                try:
                    found = parse(await self._api(path, query))
                except wire.StaleSession:
                    # New cookies once; if that does not help, the site does not want us.
                    self._warm = False
                    found = parse(await self._api(path, query))
            except (ProviderError, WireFormatError):
                self._breaker.failed()
                raise
            self._breaker.succeeded()
            return found

    async def _api(self, path: str, query: dict[str, str]) -> RestAnswer:
        base = (self._settings().get("NSE_REST_URL") or DEFAULT_URL).rstrip("/")
        if not self._warm:
            self._client.forget_cookies()
            for page in wire.WARM_UP_PATHS:
                await self._quota.take(PATIENCE_S)
                self._judge(await self._client.get(base + page, headers=_PAGE_HEADERS))
            self._warm = True
        await self._quota.take(PATIENCE_S)
        headers = {**_API_HEADERS, "Referer": f"{base}/option-chain"}
        answer = await self._client.get(base + path, query=query, headers=headers)
        self._judge(answer)
        return answer

    def _judge(self, answer: RestAnswer) -> None:
        common = common_refusal("NSE", answer)
        if common is not None:
            if common.retry_after_s:
                self._quota.pause(common.retry_after_s, str(common))
            raise common
        if answer.status != 200:
            self._warm = False
            raise ProviderUnavailable(
                f"NSE's website refuses us ({answer.status}); it does so to many networks",
                reason="blocked" if answer.status in (401, 403, 421) else f"http_{answer.status}",
            )


def _split(symbol: str) -> tuple[str, bool]:
    is_index = symbol.startswith(_INDEX_MARK)
    return symbol.removeprefix(_INDEX_MARK), is_index
