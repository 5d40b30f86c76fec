"""Past bars from Yahoo: daily back to the listing, hours of two years, minutes of thirty days.

Asks the chart address as `yfinance` does, with a browser's TLS handshake (`curl_cffi`), which Yahoo answers
where it refuses others with 429 (`rest/browser_client.py`). `yfinance` itself keeps one
session for the whole process, asks twice per symbol and makes data frames: it is the oracle of the tests.
Prices are adjusted for splits by Yahoo, for dividends only on request.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import ClassVar

from services.history.source import DAY_MS, HistorySource, Offer
from services.market_data.bars import INTERVAL_MS, Interval
from services.market_data.calendar import trading_day
from services.market_data.instruments import InstrumentMapping
from services.on_demand_provider import Candle
from services.rest import vendor_limits
from services.rest.browser_client import BrowserClient
from services.rest.quota import QuotaLimits
from services.wire import yahoo_chart

DEFAULT_REST_URL = "https://query2.finance.yahoo.com"
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
    limits: ClassVar[QuotaLimits] = vendor_limits.YAHOO
    has_adjusted: ClassVar[bool] = True
    _http: BrowserClient | None = None

    async def close(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

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
        if self._http is None:
            self._http = BrowserClient("Yahoo", self.clock)
        answer = await self._http.get(url)
        if answer.status != 200:
            raise yahoo_chart.refusal(answer.status, answer.body, answer.headers.get("Retry-After"))
        return answer.body
