"""Past bars from Dhan: daily back to the listing, intraday of five years in windows of 90 days.

Asks Dhan's REST itself rather than through its SDK, which waits 60 s, has no back-off, takes a body that is
not JSON for a failure without a reason, and loses the code of the data API's own errors; the SDK is the
oracle of the tests. Credentials are read anew at every request.
Source: DhanHQ v2 historical data documentation and rate limits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

import aiohttp

from services.errors import CredentialsMissing, ProviderUnavailable
from services.history.source import DAY_MS, HistorySource, Offer, begun_within
from services.market_data.bars import INTERVAL_MS, Interval
from services.market_data.calendar import trading_day
from services.market_data.instruments import AssetClass, InstrumentMapping
from services.on_demand_provider import Candle
from services.rest import vendor_limits
from services.rest.quota import QuotaLimits
from services.wire import dhan_charts

DEFAULT_REST_URL = "https://api.dhan.co/v2"
_ANSWER_WITHIN_S = 15.0
_INDEX_UNDERLYINGS = frozenset(
    ["NIFTY", "BANKNIFTY", "FINNIFTY", "MIDCPNIFTY", "NIFTYNXT50", "SENSEX", "BANKEX", "SENSEX50"]
)
_WINDOW_MS = dhan_charts.WINDOW_DAYS * DAY_MS - 3_600_000
_DEPTH_MS = dhan_charts.DEPTH_DAYS * DAY_MS - 3_600_000
"""An hour less than documented: the vendor counts by its own clock, and in whole seconds."""


class DhanHistory(HistorySource):
    """Dhan as a source of past bars. Provider symbols are `SEGMENT:SECURITY_ID`."""

    code: ClassVar[str] = "DHAN"
    offers: ClassVar[Mapping[str, Offer]] = {
        **{
            interval: Offer(window_ms=_WINDOW_MS, depth_ms=_DEPTH_MS)
            for interval in ("1m", "5m", "15m", "1h")
        },
        "1d": Offer(window_ms=10 * 365 * DAY_MS),
    }
    limits: ClassVar[QuotaLimits] = vendor_limits.DHAN
    _http: aiohttp.ClientSession | None = None

    def offer(self, mapping: InstrumentMapping, interval: str) -> Offer | None:
        """Return what there is of an interval; nothing for instruments without a security id."""
        return self.offers.get(interval) if mapping.segment and mapping.security_id else None

    async def close(self) -> None:
        """Close the connections."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def _ask(
        self, mapping: InstrumentMapping, interval: Interval, from_ms: int, to_ms: int, adjusted: bool
    ) -> list[Candle]:
        if adjusted:
            raise ValueError("Dhan has no adjusted prices")
        what = (mapping.security_id or "", mapping.segment or "", instrument_type(mapping))
        now_ms = self.clock.now_ms()
        if interval == "1d":
            first = trading_day(mapping.exchange, from_ms)
            last = trading_day(mapping.exchange, to_ms - 1)
            body = dhan_charts.daily_body(*what, first, last + timedelta(days=1))
            raw = await self._post("/charts/historical", body)
            rows = await asyncio.to_thread(dhan_charts.decode_chart, raw)
            return [row for row in rows if first <= dhan_charts.day_of(row[0]) <= last]
        minutes = dhan_charts.INTRADAY_MINUTES[interval]
        body = dhan_charts.intraday_body(*what, minutes, from_ms // 1000, -(-to_ms // 1000))
        raw = await self._post("/charts/intraday", body)
        # Up to ten thousand rows: not on the loop.
        rows = await asyncio.to_thread(dhan_charts.decode_chart, raw)
        step_ms = INTERVAL_MS[interval]
        return begun_within(rows, from_ms, min(to_ms, now_ms - step_ms + 1))

    async def _post(self, path: str, body: dict[str, Any]) -> bytes:
        settings = self._settings()
        client_id = settings.get("DHAN_CLIENT_ID", "")
        token = settings.get("DHAN_ACCESS_TOKEN", "")
        if not client_id or not token:
            raise CredentialsMissing(
                "Dhan is not asked: DHAN_CLIENT_ID or DHAN_ACCESS_TOKEN is not set",
                reason="credentials_missing",
            )
        url = (settings.get("DHAN_REST_URL") or DEFAULT_REST_URL).rstrip("/") + path
        headers = {"access-token": token, "client-id": client_id, "Accept": "application/json"}
        if self._http is None:
            self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_ANSWER_WITHIN_S))
        try:
            # The token goes to the address that is set and nowhere else.
            async with self._http.post(
                url, json=body | {"dhanClientId": client_id}, headers=headers, allow_redirects=False
            ) as answer:
                raw = await answer.read()
                if 200 <= answer.status < 300:
                    return raw
                raise dhan_charts.refusal(answer.status, raw, answer.headers.get("Retry-After"))
        except TimeoutError as error:
            raise ProviderUnavailable("Dhan did not answer in time", reason="timeout") from error
        except aiohttp.ClientError as error:
            raise ProviderUnavailable(
                f"Dhan cannot be reached: {type(error).__name__}", reason="unreachable"
            ) from error


def instrument_type(mapping: InstrumentMapping) -> str:
    """Return Dhan's name for what an instrument is, as in `EQUITY` or `OPTIDX`."""
    kind, segment = mapping.asset_class, mapping.segment or ""
    if kind is AssetClass.INDEX or segment == "IDX_I":
        return "INDEX"
    if kind not in (AssetClass.FUTURE, AssetClass.OPTION):
        return "EQUITY"
    future = kind is AssetClass.FUTURE
    if segment.endswith("CURRENCY"):
        return "FUTCUR" if future else "OPTCUR"
    if segment == "MCX_COMM":
        return "FUTCOM" if future else "OPTFUT"
    on_index = mapping.symbol.partition("-")[0] in _INDEX_UNDERLYINGS
    return ("FUT" if future else "OPT") + ("IDX" if on_index else "STK")
