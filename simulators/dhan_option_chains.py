"""Dhan's option chains, simulated: `/v2/optionchain` and `/v2/optionchain/expirylist`.

Stands beside the charts of `dhan_charts` and shares their account and its limit of data requests. One unique
request (underlying and expiry) in three seconds, as documented; the second one is refused in the style of
the data API.
Source: DhanHQ v2 option chain documentation, annexure of errors.
"""

from __future__ import annotations

import time
from collections import Counter
from datetime import date
from typing import TYPE_CHECKING, Any

import msgspec
from aiohttp import web

from simulators import option_market
from simulators.option_market import INDIA, OptionLeg

if TYPE_CHECKING:
    from simulators.dhan import DhanSimulator
    from simulators.market import Instrument

SECONDS_PER_UNIQUE_REQUEST = 3.0


class _Wanted(msgspec.Struct):
    UnderlyingScrip: int
    UnderlyingSeg: str
    Expiry: str | None = None


class DhanOptionChains:
    """The handlers. `answered` and `refused` count requests by what was asked.

    `empty` answers chains without legs, `missing_legs` leaves out every n-th leg.
    """

    def __init__(self, simulator: DhanSimulator) -> None:
        self._simulator = simulator
        self._last_s: dict[tuple[object, ...], float] = {}
        self.answered: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.seconds_per_request = SECONDS_PER_UNIQUE_REQUEST
        self.empty = False
        self.missing_legs = 0

    def add_routes(self, app: web.Application) -> None:
        """Add the paths to the server."""
        app.router.add_post("/v2/optionchain", self._chain)
        app.router.add_post("/v2/optionchain/expirylist", self._expiries)

    async def _expiries(self, request: web.Request) -> web.Response:
        wanted, refusal = await self._asked(request)
        if refusal is not None or wanted is None:
            return refusal or _failed("814", "Invalid Request")
        if self._underlying(wanted) is None:
            return self._refuse("813", "Invalid SecurityId")
        self.answered["expiries"] += 1
        days = option_market.expiries(INDIA, self._simulator.now_ms())
        return web.json_response({"data": [day.isoformat() for day in days], "status": "success"})

    async def _chain(self, request: web.Request) -> web.Response:
        wanted, refusal = await self._asked(request)
        if refusal is not None or wanted is None:
            return refusal or _failed("814", "Invalid Request")
        underlying = self._underlying(wanted)
        if underlying is None:
            return self._refuse("813", "Invalid SecurityId")
        days = option_market.expiries(INDIA, self._simulator.now_ms())
        try:
            day = date.fromisoformat(wanted.Expiry or "")
        except ValueError:
            return self._refuse("812", "Invalid Date Format")
        if day not in days:
            return self._refuse("811", "Invalid Expiry Date")
        self.answered["chain"] += 1
        return web.json_response(
            {
                "data": {"last_price": underlying.price, "oc": self._strikes(underlying, day)},
                "status": "success",
            }
        )

    def _strikes(self, underlying: Instrument, day: date) -> dict[str, dict[str, Any]]:
        strikes: dict[str, dict[str, Any]] = {}
        if self.empty:
            return strikes
        found = option_market.legs(underlying, INDIA, day, self._simulator.now_ms())
        for number, leg in enumerate(found, 1):
            if not self.missing_legs or number % self.missing_legs:
                strikes.setdefault(f"{leg.strike:.6f}", {})[leg.side.lower()] = _leg(leg)
        return strikes

    async def _asked(self, request: web.Request) -> tuple[_Wanted | None, web.Response | None]:
        simulator = self._simulator
        raw = await request.read()
        simulator.note("http", f"POST {request.path} {raw.decode('utf-8', 'replace')[:300]}")
        client_id = request.headers.get("client-id") or simulator.tokens.client_id
        refusal = simulator.tokens.refusal(request.headers.get("access-token", ""), client_id)
        if refusal is not None:
            self.refused["DH-901"] += 1
            return None, web.json_response(
                {
                    "errorType": "Invalid_Authentication",
                    "errorCode": "DH-901",
                    "errorMessage": "Client ID or user generated access token is invalid or expired.",
                },
                status=401,
            )
        if simulator.charts.limit.refusal() is not None:
            return None, self._too_many()
        if not simulator.data_plan_active:
            return None, self._refuse("806", "Data APIs not subscribed")
        try:
            wanted = msgspec.json.decode(raw, type=_Wanted)
        except msgspec.DecodeError:
            return None, self._refuse("814", "Invalid Request")
        key = (request.path, wanted.UnderlyingScrip, wanted.UnderlyingSeg, wanted.Expiry)
        now_s = time.monotonic()
        if now_s - self._last_s.get(key, -1e9) < self.seconds_per_request:
            return None, self._too_many()
        self._last_s[key] = now_s
        return wanted, None

    def _underlying(self, wanted: _Wanted) -> Instrument | None:
        listing = self._simulator.listing(f"{wanted.UnderlyingSeg}:{wanted.UnderlyingScrip}")
        return None if listing is None else listing.instrument

    def _too_many(self) -> web.Response:
        self._simulator.fault_counts["rate_limited"] += 1
        return self._refuse(
            "805", "Too many requests. Further requests may result in the user being blocked."
        )

    def _refuse(self, code: str, message: str) -> web.Response:
        self.refused[code] += 1
        return _failed(code, message)


def _failed(code: str, message: str) -> web.Response:
    status = 429 if code == "805" else 400
    return web.json_response({"data": {code: message}, "status": "failed"}, status=status)


def _leg(leg: OptionLeg) -> dict[str, Any]:
    return {
        "average_price": leg.price,
        "greeks": {"delta": leg.delta, "theta": leg.theta, "gamma": leg.gamma, "vega": leg.vega},
        "implied_volatility": leg.iv,
        "last_price": leg.price,
        "oi": leg.oi,
        "previous_close_price": leg.price,
        "previous_oi": leg.oi - leg.oi_change,
        "previous_volume": leg.volume,
        "security_id": 40_000 + int(leg.strike * 2) % 20_000 + (leg.side == "PE"),
        "top_ask_price": leg.ask,
        "top_ask_quantity": 75,
        "top_bid_price": leg.bid,
        "top_bid_quantity": 75,
        "volume": leg.volume,
    }
