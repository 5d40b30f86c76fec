"""Yahoo's REST side, simulated: charts, and the crumb that its own library asks for.

Stands beside the stream on the same port and shows the same market. The chart needs no crumb, like the
real one. Limits are named in the answers as Yahoo names them.
Source: `/v8/finance/chart` and `/v1/test/getcrumb` as yfinance 1.7 uses them; published error texts.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from zoneinfo import ZoneInfo

from aiohttp import web

from services.wire.yahoo_chart import DEPTH_DAYS, INTERVAL_S, WINDOW_DAYS
from simulators import past
from simulators.market import Kind
from simulators.past import Hours, PastBar
from simulators.rest_limits import RequestLimit

if TYPE_CHECKING:
    from simulators.stream import Listing
    from simulators.yahoo import YahooSimulator

CRUMB = "simulatedCrumb"
_INTERVALS = {"1m", "2m", "5m", "15m", "30m", "60m", "90m", "1h", "1d"}
_RANGES = {"1d": 1, "5d": 5, "1mo": 30, "3mo": 91, "6mo": 182, "1y": 365, "2y": 730, "5y": 1826}
_INDIAN = frozenset({"NSI", "BSE"})
DIVIDEND_FACTOR = 0.98
"""What the adjusted close of the simulator is of the close, for bars before the last dividend."""


class YahooCharts:
    """The handlers. `answered` and `refused` count requests, the latter by code.

    `live_row` adds the price of the moment as a last row while the market is open. `always_open` answers
    bars around the clock. `gaps` answers null for every n-th minute. `dividend_days` is how long ago the
    last dividend was paid, for the adjusted closes.
    """

    def __init__(self, simulator: YahooSimulator) -> None:
        self._simulator = simulator
        self.limit = RequestLimit(5.0)
        self.live_row = True
        self.always_open = False
        self.gaps = 0
        self.dividend_days = 30
        self.answered = 0
        self.refused: dict[str, int] = {}

    def add_routes(self, app: web.Application) -> None:
        """Add the paths to the server."""
        app.router.add_get("/v8/finance/chart/{symbol}", self._chart)
        app.router.add_get("/v1/test/getcrumb", self._crumb)

    async def _crumb(self, request: web.Request) -> web.Response:
        self._simulator.note("http", f"GET {request.path}")
        answer = web.Response(text=CRUMB)
        answer.set_cookie("A3", "d=simulated", path="/")
        return answer

    async def _chart(self, request: web.Request) -> web.Response:
        self._simulator.note("http", f"GET {request.path_qs}")
        if self.limit.refusal() is not None:
            self._simulator.fault_counts["rate_limited"] += 1
            self.refused["429"] = self.refused.get("429", 0) + 1
            # Yahoo answers plain text here.
            return web.Response(status=429, text="Too Many Requests\r\n")
        listing = self._simulator.listing(request.match_info["symbol"])
        if listing is None:
            return self._no(404, "Not Found", "No data found, symbol may be delisted")
        interval = request.query.get("interval", "1d")
        if interval not in _INTERVALS:
            return self._no(
                422, "Unprocessable Entity", f"Invalid input - interval={interval} is not supported"
            )
        now_s = self._simulator.now_ms() // 1000
        try:
            from_s, to_s = _span(request, now_s)
        except ValueError:
            return self._no(400, "Bad Request", "Invalid input - start date cannot be read")
        refusal = self._out_of_reach(interval, from_s, to_s, now_s)
        if refusal is not None:
            return refusal
        self.answered += 1
        return web.json_response(
            {"chart": {"result": [self._result(listing, interval, from_s, to_s, now_s)]}}
        )

    def _out_of_reach(self, interval: str, from_s: int, to_s: int, now_s: int) -> web.Response | None:
        name = "1h" if interval == "60m" else interval
        depth = DEPTH_DAYS.get(name)
        span = f"startTime={from_s} and endTime={to_s}"
        if from_s >= to_s:
            return self._no(400, "Bad Request", "Invalid input - start date cannot be after end date.")
        if depth is not None and from_s < now_s - depth * 86_400:
            return self._no(
                422,
                "Unprocessable Entity",
                f"{interval} data not available for {span}. The requested range must be within the last "
                f"{depth} days.",
            )
        window = WINDOW_DAYS.get(name)
        if window is not None and to_s - from_s > window * 86_400:
            return self._no(
                422,
                "Unprocessable Entity",
                f"Only {window} days worth of {interval} granularity data are allowed to be fetched per request.",
            )
        return None

    def _result(self, listing: Listing, interval: str, from_s: int, to_s: int, now_s: int) -> dict[str, Any]:
        hours = _hours_of(listing)
        if self.always_open:
            hours = past.around_the_clock(hours)
        it = listing.instrument
        if interval == "1d":
            bars = past.daily_bars(it, hours, from_s, to_s, now_s)
        else:
            bars = past.bars(it, hours, INTERVAL_S.get(interval, 5400) // 60, from_s, to_s, now_s)
        regular = _regular_near(hours, now_s)
        open_now = regular[0] <= now_s < regular[1]
        if bars and open_now and self.live_row and to_s > now_s:
            price = it.price if it.last_event_ms else bars[-1].close
            bars = [*bars, PastBar(now_s, price, price, price, price, 0)]
        zone = ZoneInfo(hours.zone)
        offset_s = int((datetime.fromtimestamp(now_s, zone).utcoffset() or timedelta()).total_seconds())
        quote = {
            name: [self._value(bar, name, interval) for bar in bars]
            for name in ("open", "high", "low", "close", "volume")
        }
        indicators: dict[str, Any] = {"quote": [quote]}
        if interval == "1d":
            paid_s = now_s - self.dividend_days * 86_400
            adjusted = [bar.close * (DIVIDEND_FACTOR if bar.start_s < paid_s else 1.0) for bar in bars]
            indicators["adjclose"] = [{"adjclose": adjusted}]
        period = {"timezone": "", "start": regular[0], "end": regular[1], "gmtoffset": offset_s}
        return {
            "meta": {
                "currency": listing.currency,
                "symbol": listing.symbol,
                "exchangeName": listing.exchange,
                "instrumentType": it.kind.value.upper(),
                "firstTradeDate": 820_467_900,
                "regularMarketTime": min(now_s, regular[1]),
                "gmtoffset": offset_s,
                "timezone": "",
                "exchangeTimezoneName": hours.zone,
                "regularMarketPrice": it.price,
                "chartPreviousClose": bars[0].open if bars else it.price,
                "priceHint": 2,
                "currentTradingPeriod": {"pre": period, "regular": period, "post": period},
                "dataGranularity": "1h" if interval == "60m" else interval,
                "range": "",
                "validRanges": list(_RANGES),
            },
            **({"timestamp": [bar.start_s for bar in bars]} if bars else {}),
            "indicators": indicators,
        }

    def _value(self, bar: PastBar, name: str, interval: str) -> float | int | None:
        if self.gaps and interval == "1m" and bar.start_s // 60 % self.gaps == 0:
            return None
        value: float | int = getattr(bar, name)
        return value

    def _no(self, status: int, code: str, description: str) -> web.Response:
        self.refused[str(status)] = self.refused.get(str(status), 0) + 1
        body = {"chart": {"result": None, "error": {"code": code, "description": description}}}
        return web.json_response(body, status=status)


def _span(request: web.Request, now_s: int) -> tuple[int, int]:
    if "range" in request.query:
        return now_s - _RANGES.get(request.query["range"], 3650) * 86_400, now_s + 1
    return int(request.query.get("period1", now_s - 86_400)), int(request.query.get("period2", now_s + 1))


def _hours_of(listing: Listing) -> Hours:
    if listing.exchange in _INDIAN or (listing.currency == "INR" and listing.instrument.kind is not Kind.FX):
        return past.INDIA
    if listing.instrument.kind is Kind.CRYPTO:
        return past.ALWAYS
    return past.FX if listing.instrument.kind is Kind.FX else past.NEW_YORK


def _regular_near(hours: Hours, now_s: int) -> tuple[int, int]:
    """Return the session that runs, else the next one, as `currentTradingPeriod` does."""
    day = datetime.fromtimestamp(now_s, UTC).astimezone(ZoneInfo(hours.zone)).date() - timedelta(
        days=hours.days
    )
    for _ in range(15):
        for opens_s, closes_s in past.sessions(hours, day):
            if closes_s > now_s:
                return opens_s, closes_s
        day += timedelta(days=1)
    return now_s, now_s
