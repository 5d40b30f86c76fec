"""Past bars from Yahoo: daily back to the listing, hours of two years, minutes of thirty days.

Asks the chart address as `yfinance` does, with a browser's TLS handshake (`curl_cffi`), which Yahoo answers
where it refuses others with 429; the requests run in a thread, one at a time. `yfinance` itself keeps one
session for the whole process, asks twice per symbol and makes data frames: it is the oracle of the tests.
Prices are adjusted for splits by Yahoo, for dividends only on request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, ClassVar

from services.errors import ProviderUnavailable
from services.history.quota import QuotaLimits
from services.history.source import DAY_MS, HistorySource, Offer
from services.market_data.bars import INTERVAL_MS, Interval
from services.market_data.calendar import trading_day
from services.market_data.instruments import InstrumentMapping
from services.on_demand_provider import Candle
from services.wire import yahoo_chart

DEFAULT_REST_URL = "https://query2.finance.yahoo.com"
_ANSWER_WITHIN_S = 15.0
_LESS_MS = 3_600_000
"""Asked this much less deep, and for so much less at once, than allowed: the vendor has its own clock."""


def _offer(interval: str) -> Offer:
    depth_days = yahoo_chart.DEPTH_DAYS.get(interval, 0)
    window_days = yahoo_chart.WINDOW_DAYS.get(interval, depth_days or 30 * 365)
    depth_ms = depth_days * DAY_MS - _LESS_MS if depth_days else 0
    return Offer(window_ms=window_days * DAY_MS - _LESS_MS, depth_ms=depth_ms)


class YahooHistory(HistorySource):
    """Yahoo as a source of past bars. Provider symbols are Yahoo's (`AAPL`, `RELIANCE.NS`)."""

    code: ClassVar[str] = "YF"
    offers: ClassVar[Mapping[str, Offer]] = {
        interval: _offer(interval) for interval in ("1m", "5m", "15m", "1h", "1d")
    }
    limits: ClassVar[QuotaLimits] = QuotaLimits(per_second=yahoo_chart.REQUESTS_PER_S)
    has_adjusted: ClassVar[bool] = True
    _http: Any = None

    async def close(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None:
            await asyncio.to_thread(http.close)

    async def _ask(
        self, mapping: InstrumentMapping, interval: Interval, from_ms: int, to_ms: int, adjusted: bool
    ) -> list[Candle]:
        base = (self._settings().get("YAHOO_REST_URL") or DEFAULT_REST_URL).rstrip("/")
        daily = interval == "1d"
        from_s, to_s = from_ms // 1000, -(-to_ms // 1000)
        if adjusted and not daily:
            raise ValueError("Yahoo adjusts daily prices only")
        url = base + yahoo_chart.chart_path(mapping.search_code, interval, from_s, to_s)
        raw = await self._get(url)
        # Up to ten thousand rows: not on the loop.
        answer = await asyncio.to_thread(yahoo_chart.decode_chart, raw, interval)
        rows = yahoo_chart.adjust(answer) if adjusted else list(answer.rows)
        now_ms = self.clock.now_ms()
        if daily:
            today = trading_day(mapping.exchange, now_ms)
            session_runs = answer.closes_s is None or now_ms < answer.closes_s * 1000
            return [
                row
                for row in rows
                if not (session_runs and trading_day(mapping.exchange, row[0] * 1000) >= today)
            ]
        step_ms = INTERVAL_MS[interval]
        return [row for row in rows if from_ms <= row[0] * 1000 < to_ms and row[0] * 1000 + step_ms <= now_ms]

    async def _get(self, url: str) -> bytes:
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S + 2.0):
                status, raw, retry_after = await asyncio.to_thread(self._get_blocking, url)
        except TimeoutError as error:
            raise ProviderUnavailable("Yahoo did not answer in time", reason="timeout") from error
        if status != 200:
            raise yahoo_chart.refusal(status, raw, retry_after)
        return raw

    def _get_blocking(self, url: str) -> tuple[int, bytes, str | None]:
        # Loaded at the first request: it takes a quarter of a second.
        from curl_cffi import requests
        from curl_cffi.requests.exceptions import RequestException

        if self._http is None:
            self._http = requests.Session(impersonate="chrome", timeout=_ANSWER_WITHIN_S)
        try:
            answer = self._http.get(url)
        except RequestException as error:
            raise ProviderUnavailable(
                f"Yahoo cannot be reached: {type(error).__name__}", reason="unreachable"
            ) from error
        return int(answer.status_code), bytes(answer.content), answer.headers.get("Retry-After")
