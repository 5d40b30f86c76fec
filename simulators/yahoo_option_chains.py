"""Yahoo's option chains, simulated: `/v7/finance/options/{symbol}`, refused without cookie and crumb.

Stands beside the charts on the same port, shares their limit and shows the same market.
Source: the answers that yfinance 1.7.0 reads.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from aiohttp import web

from simulators import option_market
from simulators.market import Instrument, Kind
from simulators.option_market import NEW_YORK, OptionLeg
from simulators.yahoo_rest import CRUMB

if TYPE_CHECKING:
    from simulators.yahoo import YahooSimulator

_KINDS = frozenset({Kind.EQUITY, Kind.ETF, Kind.INDEX})
_INDIAN = frozenset({"NSI", "BSE"})


class YahooOptionChains:
    """The handler. `answered` and `refused` count requests; `crumb_ended` wants a new crumb once more."""

    def __init__(self, simulator: YahooSimulator) -> None:
        self._simulator = simulator
        self.crumb_ended = False
        self.answered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def add_routes(self, app: web.Application) -> None:
        """Add the path to the server."""
        app.router.add_get("/v7/finance/options/{symbol}", self._options)

    async def _options(self, request: web.Request) -> web.Response:
        simulator = self._simulator
        simulator.note("http", f"GET {request.path_qs}")
        if simulator.charts.limit.refusal() is not None:
            simulator.fault_counts["rate_limited"] += 1
            self.refused["429"] += 1
            return web.Response(status=429, text="Too Many Requests\r\n")
        ended, self.crumb_ended = self.crumb_ended, False
        if ended or request.query.get("crumb") != CRUMB or "A3" not in request.cookies:
            self.refused["401"] += 1
            return _no(401, "Unauthorized", "Invalid Crumb")
        listing = simulator.listing(request.match_info["symbol"])
        if listing is None or listing.exchange in _INDIAN or listing.instrument.kind not in _KINDS:
            self.refused["404"] += 1
            return web.json_response({"optionChain": {"result": [], "error": None}})
        now_ms = simulator.now_ms()
        days = option_market.expiries(NEW_YORK, now_ms)
        day = days[0]
        if "date" in request.query:
            day = datetime.fromtimestamp(int(request.query["date"]), UTC).date()
        self.answered["chain"] += 1
        return web.json_response(
            {
                "optionChain": {
                    "result": [_result(listing.symbol, listing.instrument, days, day, now_ms)],
                    "error": None,
                }
            }
        )


def _result(symbol: str, it: Instrument, days: list[date], day: date, now_ms: int) -> dict[str, Any]:
    # Asked for a day without contracts, Yahoo answers the next one.
    day = day if day in days else days[0]
    legs = option_market.legs(it, NEW_YORK, day, now_ms)
    return {
        "underlyingSymbol": symbol,
        "expirationDates": [option_market.midnight_utc_s(one) for one in days],
        "strikes": sorted({leg.strike for leg in legs}),
        "hasMiniOptions": False,
        "quote": {
            "symbol": symbol,
            "regularMarketPrice": it.price,
            "regularMarketTime": (it.last_event_ms or now_ms) // 1000,
            "currency": "USD",
        },
        "options": [
            {
                "expirationDate": option_market.midnight_utc_s(day),
                "hasMiniOptions": False,
                "calls": [_leg(symbol, leg, day, now_ms) for leg in legs if leg.side == "CE"],
                "puts": [_leg(symbol, leg, day, now_ms) for leg in legs if leg.side == "PE"],
            }
        ],
    }


def _leg(symbol: str, leg: OptionLeg, day: date, now_ms: int) -> dict[str, Any]:
    kind = "C" if leg.side == "CE" else "P"
    return {
        "contractSymbol": f"{symbol.lstrip('^')}{day:%y%m%d}{kind}{round(leg.strike * 1000):08d}",
        "strike": leg.strike,
        "currency": "USD",
        "lastPrice": leg.price,
        "change": 0.0,
        "percentChange": 0.0,
        "volume": leg.volume,
        "openInterest": leg.oi,
        "bid": leg.bid,
        "ask": leg.ask,
        "contractSize": "REGULAR",
        "expiration": option_market.midnight_utc_s(day),
        "lastTradeDate": now_ms // 1000 - 60,
        "impliedVolatility": leg.iv / 100,
        "inTheMoney": False,
    }


def _no(status: int, code: str, description: str) -> web.Response:
    body = {"finance": {"result": None, "error": {"code": code, "description": description}}}
    return web.json_response(body, status=status)
