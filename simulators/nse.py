"""NSE's website, simulated: cookies from a page, contract-info, option-chain-v3, and all the ways it refuses.

An HTTP server of its own. Without the cookies of a page the answer is 200 with `{}`; an unknown expiry is 200
without rows; whoever asks too often gets 429, and whoever is blocked 403 with a page of HTML.
Source: answers of www.nseindia.com recorded by several clients in 2026.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable
from datetime import date, datetime, timedelta, timezone
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from simulators import option_market
from simulators.market import Instrument, Market
from simulators.option_market import INDIA, OptionLeg
from simulators.rest_limits import RequestLimit
from simulators.universe import price_list

_IST = timezone(timedelta(hours=5, minutes=30))
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
REQUESTS_PER_S = 3.0


class NseSimulator:
    """The site. Use it as an async context manager; `url` is its address.

    `blocked` answers everything with 403, `stale` the calls with `{}` until a page is fetched again, `empty`
    with chains without rows. `answered` counts what was served by path, `refused` what was not by reason.
    """

    def __init__(
        self,
        market: Market | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._market = market or Market()
        self._host = host
        self._port = port
        self._now_ms = now_ms
        self._sessions: set[str] = set()
        self._runner: web.AppRunner | None = None
        self.limit = RequestLimit(REQUESTS_PER_S)
        self.blocked = False
        self.stale = False
        self.empty = False
        self.answered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.url = ""

    async def __aenter__(self) -> Self:
        """Listen."""
        app = web.Application()
        app.router.add_get("/", self._page)
        app.router.add_get("/option-chain", self._page)
        app.router.add_get("/api/option-chain-contract-info", self._contract_info)
        app.router.add_get("/api/option-chain-v3", self._chain)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._host, self._port)
        await site.start()
        port = self._runner.addresses[0][1]
        self.url = f"http://{self._host}:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _page(self, request: web.Request) -> web.Response:
        if self.blocked:
            return self._blocked()
        self.answered[request.path] += 1
        session = secrets.token_hex(8)
        self._sessions.add(session)
        self.stale = False
        response = web.Response(text="<html><title>NSE</title></html>", content_type="text/html")
        response.set_cookie("nsit", session, path="/", httponly=True)
        response.set_cookie("bm_sv", secrets.token_hex(4), path="/")
        return response

    def _refusal(self, request: web.Request) -> web.Response | None:
        if self.blocked:
            return self._blocked()
        if self.limit.refusal() is not None:
            self.refused["429"] += 1
            return web.Response(status=429, text="Too Many Requests", headers={"Retry-After": "2"})
        if self.stale or request.cookies.get("nsit") not in self._sessions:
            self.refused["stale"] += 1
            return web.json_response({})
        return None

    def _blocked(self) -> web.Response:
        self.refused["403"] += 1
        page = "<html><head><title>Access Denied</title></head><body>Access Denied</body></html>"
        return web.Response(status=403, text=page, content_type="text/html")

    async def _contract_info(self, request: web.Request) -> web.Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        underlying = self._underlying(request)
        if underlying is None:
            return web.json_response({})
        self.answered[request.path] += 1
        days = option_market.expiries(INDIA, self._now_ms())
        legs = option_market.legs(underlying, INDIA, days[0], self._now_ms())
        strikes = sorted({leg.strike for leg in legs})
        return web.json_response(
            {"expiryDates": [_text(day) for day in days], "strikePrice": [f"{one:.2f}" for one in strikes]}
        )

    async def _chain(self, request: web.Request) -> web.Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        underlying = self._underlying(request)
        if underlying is None or request.query.get("type") not in ("Indices", "Equity"):
            return web.json_response({})
        self.answered[request.path] += 1
        days = option_market.expiries(INDIA, self._now_ms())
        asked = next((day for day in days if _text(day) == request.query.get("expiry")), None)
        rows = [] if asked is None or self.empty else self._rows(underlying, request.query["symbol"], asked)
        now = datetime.fromtimestamp(self._now_ms() / 1000, _IST)
        records = {
            "timestamp": f"{_text(now.date())} {now:%H:%M:%S}",
            "underlyingValue": underlying.price,
            "expiryDates": [_text(day) for day in days],
            "strikePrices": [f"{row['strikePrice']:g}" for row in rows],
            "data": rows,
        }
        return web.json_response({"records": records, "filtered": {"data": rows}})

    def _rows(self, underlying: Instrument, symbol: str, day: date) -> list[dict[str, Any]]:
        rows: dict[float, dict[str, Any]] = {}
        for leg in option_market.legs(underlying, INDIA, day, self._now_ms()):
            row = rows.setdefault(leg.strike, {"expiryDates": _text(day), "strikePrice": leg.strike})
            row[leg.side] = _leg(leg, symbol, day, underlying.price)
        farthest = max(rows)
        # A contract that was never opened is there, as zeros.
        rows[farthest]["PE"] = dict.fromkeys(rows[farthest]["PE"], 0) | {
            "identifier": None,
            "expiryDate": None,
        }
        return [rows[strike] for strike in sorted(rows)]

    def _underlying(self, request: web.Request) -> Instrument | None:
        row = price_list().get(f"NSE:{request.query.get('symbol', '')}")
        return None if row is None else self._market.instrument(row.spec)


def _leg(leg: OptionLeg, symbol: str, day: date, spot: float) -> dict[str, Any]:
    return {
        "strikePrice": leg.strike,
        "expiryDate": f"{day:%d-%m-%Y}",
        "underlying": symbol,
        "identifier": f"OPTIDX{symbol}{day:%d-%m-%Y}{leg.side}{leg.strike:.2f}",
        # Whole numbers come as floats now and then.
        "openInterest": float(leg.oi) if leg.oi % 2 else leg.oi,
        "changeinOpenInterest": leg.oi_change,
        "pchangeinOpenInterest": 0.0,
        "totalTradedVolume": leg.volume,
        "impliedVolatility": round(leg.iv, 2),
        "lastPrice": leg.price,
        "change": 0.0,
        "pchange": 0.0,
        "totalBuyQuantity": 1_000,
        "totalSellQuantity": 1_000,
        "buyPrice1": leg.bid,
        "buyQuantity1": 75,
        "sellPrice1": leg.ask,
        "sellQuantity1": 75,
        "underlyingValue": spot,
        "optionType": leg.side,
    }


def _text(day: date) -> str:
    return f"{day.day:02}-{_MONTHS[day.month - 1]}-{day.year}"
