"""Dhan's charts, simulated: `POST /v2/charts/historical` and `/v2/charts/intraday`.

Stands beside the quotes of `dhan_rest` and shares their account. Answers columns of true UTC seconds, with
the vendor's limits: 90 days a request, five years back, five requests a second and a number a day.
Source: DhanHQ v2 historical data documentation, rate limits and annexure of errors.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aiohttp import web

from services.errors import WireFormatError
from services.wire.dhan import Segment
from services.wire.dhan_charts import (
    DATA_REQUESTS_PER_DAY,
    DATA_REQUESTS_PER_S,
    DEPTH_DAYS,
    ChartRequest,
    parse_body,
)
from simulators import past
from simulators.market import Instrument
from simulators.past import Hours, PastBar
from simulators.rest_limits import RequestLimit

if TYPE_CHECKING:
    from simulators.dhan import DhanSimulator

_IST_S = 19_800
_HOURS_OF = {
    Segment.NSE_CURRENCY: past.INDIA_CURRENCY,
    Segment.BSE_CURRENCY: past.INDIA_CURRENCY,
    Segment.MCX_COMM: past.INDIA_COMMODITY,
}
_INSTRUMENTS = frozenset(["INDEX", "EQUITY", "FUTIDX", "OPTIDX", "FUTSTK", "OPTSTK", "FUTCUR", "OPTCUR", "FUTCOM", "OPTFUT"])


class DhanCharts:
    """The handlers. `answered` and `refused` count requests, the latter by reason.

    `always_open` answers bars around the clock, as the demo's market trades. `quiet` leaves out every
    n-th minute, as where nothing was traded. `broken` answers with what is no JSON, `empty` with no bars.
    """

    def __init__(self, simulator: DhanSimulator) -> None:
        self._simulator = simulator
        self.limit = RequestLimit(DATA_REQUESTS_PER_S, per_day=DATA_REQUESTS_PER_DAY)
        self.always_open = False
        self.quiet = 0
        self.broken = False
        self.empty = False
        self.answered = 0
        self.refused: dict[str, int] = {}

    def add_routes(self, app: web.Application) -> None:
        """Add the paths to the server."""
        app.router.add_post("/v2/charts/historical", self._daily)
        app.router.add_post("/v2/charts/intraday", self._intraday)

    async def _daily(self, request: web.Request) -> web.Response:
        return await self._answer(request, daily=True)

    async def _intraday(self, request: web.Request) -> web.Response:
        return await self._answer(request, daily=False)

    async def _answer(self, request: web.Request, *, daily: bool) -> web.Response:
        simulator = self._simulator
        raw = await request.read()
        simulator.note("http", f"POST {request.path} {raw.decode('utf-8', 'replace')[:300]}")
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if self.broken:
            return web.Response(text="<html>maintenance</html>", content_type="text/html")
        try:
            wanted = parse_body(raw, daily=daily)
        except WireFormatError as error:
            return self._no(400, "DH-905", "Input_Exception", f"Missing or bad values: {error}.")
        listing = simulator.listing(f"{wanted.segment}:{wanted.security_id}")
        if listing is None or wanted.instrument not in _INSTRUMENTS:
            return self._no(400, "DH-905", "Input_Exception", "Invalid SecurityId or instrument.")
        now_s = simulator.now_ms() // 1000
        if not daily and wanted.to_s < now_s - DEPTH_DAYS * 86_400:
            return self._no(400, "DH-907", "Data_Error", "No data present for these parameters.")
        self.answered += 1
        hours = _HOURS_OF.get(Segment(listing.segment), past.INDIA)
        if self.always_open:
            hours = past.around_the_clock(hours)
        if self.empty:
            return _columns([], daily=daily)
        found = self._bars(wanted, hours, listing.instrument, now_s)
        return _columns(found, daily=daily)

    def _bars(self, wanted: ChartRequest, hours: Hours, instrument: Instrument, now_s: int) -> list[PastBar]:
        if wanted.interval is None:
            # Days, the last one excluded; by the Indian date.
            return past.daily_bars(instrument, hours, wanted.from_s, wanted.to_s, now_s)
        bars = past.bars(instrument, hours, wanted.interval, wanted.from_s, wanted.to_s, now_s)
        if self.quiet and wanted.interval == 1:
            bars = [bar for bar in bars if bar.start_s // 60 % self.quiet]
        return bars

    def _refusal(self, request: web.Request) -> web.Response | None:
        simulator = self._simulator
        over = self.limit.refusal()
        if over is not None:
            simulator.fault_counts["rate_limited"] += 1
            return self._no(
                429, "DH-904", "Rate_Limit", f"Too many requests on server from single user: {over}."
            )
        token, client_id = request.headers.get("access-token", ""), request.headers.get("client-id", "")
        if simulator.tokens.refusal(token, client_id or simulator.client_id) is not None:
            return self._no(401, "DH-901", "Invalid_Authentication", "Client ID or token is invalid.")
        if not simulator.data_plan_active:
            return self._no(403, "DH-902", "Invalid_Access", "User has not subscribed to Data APIs.")
        return None

    def _no(self, status: int, code: str, kind: str, message: str) -> web.Response:
        self.refused[code] = self.refused.get(code, 0) + 1
        body = {"errorType": kind, "errorCode": code, "errorMessage": message}
        return web.json_response(body, status=status)


def _columns(bars: list[PastBar], *, daily: bool) -> web.Response:
    starts = [_indian_midnight_s(bar.start_s) if daily else bar.start_s for bar in bars]
    return web.json_response(
        {
            "open": [bar.open for bar in bars],
            "high": [bar.high for bar in bars],
            "low": [bar.low for bar in bars],
            "close": [bar.close for bar in bars],
            "volume": [bar.volume for bar in bars],
            "timestamp": [float(start) for start in starts],
            "open_interest": [],
        }
    )


def _indian_midnight_s(at_s: int) -> int:
    local = datetime.fromtimestamp(at_s + _IST_S, UTC)
    return int(local.replace(hour=0, minute=0, second=0, microsecond=0).timestamp()) - _IST_S
