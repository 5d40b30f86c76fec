"""The REST side of the simulated Dhan: profile, token renewal, market quotes, scrip master files.

Stands beside the feed on the same port and reads the same market and the same tokens.
Source: DhanHQ v2 documentation of authentication, market quote, errors and rate limits; answers to
times in Indian wall time, as documented.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from services.wire.dhan import DepthLevel
from simulators.dhan_packets import book_of
from simulators.tokens import consumer_type, expiry_s
from simulators.universe import SCRIP_MASTER, SCRIP_MASTER_DETAILED

if TYPE_CHECKING:
    from simulators.dhan import DhanSimulator
    from simulators.stream import Listing

MAX_INSTRUMENTS = 1_000
_IST = timezone(timedelta(hours=5, minutes=30))
_SLOW_S = 2.0
_NEVER_TRADED = "01/01/1980 00:00:00"


class _Limit:
    """So many requests in any second."""

    def __init__(self, per_second: float) -> None:
        self.per_second = per_second
        self._credit = max(1.0, per_second)
        self._last_s = time.monotonic()

    def allows(self) -> bool:
        now = time.monotonic()
        self._credit = min(max(1.0, self.per_second), self._credit + (now - self._last_s) * self.per_second)
        self._last_s = now
        if self._credit < 1.0:
            return False
        self._credit -= 1.0
        return True


def _error(status: int, code: str, kind: str, message: str) -> web.Response:
    body = {"errorType": kind, "errorCode": code, "errorMessage": message}
    return web.json_response(body, status=status)


def _unauthorised() -> web.Response:
    return _error(
        401,
        "DH-901",
        "Invalid_Authentication",
        "Client ID or user generated access token is invalid or expired.",
    )


class RestApi:
    """The HTTP handlers. `quotes_per_s` and `others_per_s` are the account's rate limits."""

    def __init__(
        self, simulator: DhanSimulator, *, quotes_per_s: float = 1.0, others_per_s: float = 20.0
    ) -> None:
        self._simulator = simulator
        self.quotes = _Limit(quotes_per_s)
        self.others = _Limit(others_per_s)

    def add_routes(self, app: web.Application) -> None:
        """Add the paths to the server."""
        app.router.add_get("/v2/profile", self._profile)
        app.router.add_get("/v2/RenewToken", self._renew)
        app.router.add_post("/v2/marketfeed/{detail:ltp|ohlc|quote}", self._quotes)
        app.router.add_get("/api-data/api-scrip-master.csv", self._compact)
        app.router.add_get("/api-data/api-scrip-master-detailed.csv", self._detailed)

    def _refused(self, request: web.Request, limit: _Limit) -> web.Response | None:
        self._simulator.note("http", f"{request.method} {request.path}")
        if not limit.allows():
            self._simulator.fault_counts["rate_limited"] += 1
            return _error(
                429,
                "DH-904",
                "Rate_Limit",
                "Too many requests on server from single user breaching rate limits.",
            )
        tokens = self._simulator.tokens
        client_id = (
            request.headers.get("client-id") or request.headers.get("dhanClientId") or tokens.client_id
        )
        if tokens.refusal(request.headers.get("access-token", ""), client_id) is not None:
            return _unauthorised()
        return None

    async def _profile(self, request: web.Request) -> web.Response:
        refused = self._refused(request, self.others)
        if refused is not None:
            return refused
        expiry = expiry_s(request.headers["access-token"])
        until = datetime.fromtimestamp(expiry, UTC) if expiry else datetime.now(UTC) + timedelta(days=1)
        plan = "Active" if self._simulator.data_plan_active else "Deactive"
        return web.json_response(
            {
                "dhanClientId": self._simulator.client_id,
                "tokenValidity": until.astimezone(_IST).strftime("%d/%m/%Y %H:%M"),
                "activeSegment": "Equity, Derivative, Currency, Commodity",
                "ddpi": "Active",
                "mtf": "Active",
                "dataPlan": plan,
                "dataValidity": (datetime.now(_IST) + timedelta(days=30)).strftime("%Y-%m-%d %H:%M:%S.0"),
            }
        )

    async def _renew(self, request: web.Request) -> web.Response:
        refused = self._refused(request, self.others)
        if refused is not None:
            return refused
        old = request.headers["access-token"]
        # Source: only tokens that were made on the web are renewed; the words of the refusal are ours.
        if consumer_type(old) == "APP":
            return _error(400, "DH-905", "Input_Exception", "Token renewal is for tokens made on Dhan Web.")
        renewal = self._simulator.renewal
        if renewal:
            self._simulator.fault_counts[f"renewal_{renewal}"] += 1
        if renewal == "http_500":
            return _error(500, "DH-908", "Internal_Error", "Internal server error.")
        if renewal == "no_json":
            return web.Response(text="<html>Bad gateway</html>", content_type="text/html")
        token = self._simulator.tokens.renew(old)
        if token is None:
            return _unauthorised()
        if renewal == "no_answer" and request.transport is not None:
            request.transport.abort()
        if renewal == "slow":
            await asyncio.sleep(_SLOW_S)
        until = datetime.fromtimestamp(expiry_s(token) or 0, UTC).astimezone(_IST)
        return web.json_response(
            {
                "dhanClientId": self._simulator.client_id,
                "dhanClientName": "SIMULATED ACCOUNT",
                "dhanClientUcc": "SIM0001",
                "givenPowerOfAttorney": False,
                "accessToken": token,
                "expiryTime": until.strftime("%Y-%m-%dT%H:%M:%S"),
            }
        )

    async def _quotes(self, request: web.Request) -> web.Response:
        refused = self._refused(request, self.quotes)
        if refused is not None:
            return refused
        if not self._simulator.data_plan_active:
            return _error(
                403, "DH-902", "Invalid_Access", "User has not subscribed to Data APIs or Trading APIs."
            )
        try:
            wanted = msgspec.json.decode(await request.read(), type=dict[str, list[int] | str])
        except msgspec.DecodeError:
            wanted = {}
        # The vendor's SDK adds the client id to every body, beside the segments.
        segments = {segment: ids for segment, ids in wanted.items() if isinstance(ids, list)}
        if not segments or sum(map(len, segments.values())) > MAX_INSTRUMENTS:
            return _error(
                400,
                "DH-905",
                "Input_Exception",
                "Missing required fields, bad values for parameters etc.",
            )
        detail = request.match_info["detail"]
        data: dict[str, dict[str, object]] = {}
        for segment, ids in segments.items():
            data[segment] = {}
            for security_id in ids:
                listing = self._simulator.listing(f"{segment}:{security_id}")
                if listing is not None:
                    data[segment][str(security_id)] = _quote(listing, detail)
        return web.json_response({"data": data, "status": "success"})

    async def _compact(self, request: web.Request) -> web.StreamResponse:
        self._simulator.note("http", f"GET {request.path}")
        return web.FileResponse(SCRIP_MASTER)

    async def _detailed(self, request: web.Request) -> web.StreamResponse:
        self._simulator.note("http", f"GET {request.path}")
        return web.FileResponse(SCRIP_MASTER_DETAILED)


def _quote(listing: Listing, detail: str) -> dict[str, object]:
    it = listing.instrument
    answer: dict[str, object] = {"last_price": it.price}
    if detail == "ltp":
        return answer
    close = it.value(it.previous_close_units)
    answer["ohlc"] = {
        "open": it.value(it.open_units),
        "close": close,
        "high": it.value(it.high_units),
        "low": it.value(it.low_units),
    }
    if detail == "ohlc":
        return answer
    book = book_of(it)
    last_trade = datetime.fromtimestamp(it.last_event_ms / 1000, _IST)
    answer |= {
        "average_price": round(it.average_price, 2),
        "buy_quantity": sum(level.bid_qty for level in book) * 40,
        "sell_quantity": sum(level.ask_qty for level in book) * 40,
        "depth": {"buy": [_buy(level) for level in book], "sell": [_sell(level) for level in book]},
        "last_quantity": it.last_quantity,
        "last_trade_time": last_trade.strftime("%d/%m/%Y %H:%M:%S") if it.last_event_ms else _NEVER_TRADED,
        "lower_circuit_limit": round(close * 0.9, 2),
        "upper_circuit_limit": round(close * 1.1, 2),
        "net_change": round(it.price - close, it.decimals),
        "oi": it.oi,
        "oi_day_high": it.oi_high,
        "oi_day_low": it.oi_low,
        "volume": it.volume,
    }
    return answer


def _buy(level: DepthLevel) -> dict[str, object]:
    return {"quantity": level.bid_qty, "orders": level.bid_orders, "price": level.bid_px}


def _sell(level: DepthLevel) -> dict[str, object]:
    return {"quantity": level.ask_qty, "orders": level.ask_orders, "price": level.ask_px}
