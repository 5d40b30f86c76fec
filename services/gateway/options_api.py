"""Option chains over HTTP: expiries, a chain in the 14-field shape, open interest by strike.

Only translates between the address and what answers behind it. Where no source answers the reply is 503 with
every source's reason, never an empty success.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import date, datetime, time
from typing import Any

import msgspec
from aiohttp import web

from services.errors import StorageError
from services.gateway.encoding import to_json
from services.gateway.errors import HttpError
from services.gateway.guard import PRINCIPAL
from services.gateway.parameters import known_parameters
from services.market_data.clock import Clock
from services.options.chain import Chain, chain_json
from services.options.manager import Found, OptionsManager, UnknownExpiry, UnknownUnderlying
from services.options.source import Underlying
from services.pipeline.failover import NobodyAnswered, Refusal
from services.storage.option_interest import ChainInterest, InterestAt, LegInterest, OptionInterestStore
from services.wire.option_fields import INDIA, expiry_day

_RETRY_AFTER_S = 3
_EARLIEST_S, _LATEST_S = 946_684_800, 4_102_444_800


class OptionDesk(msgspec.Struct, frozen=True):
    """What answers for options in this process; `find` knows underlyings by key or symbol."""

    manager: OptionsManager
    interest: OptionInterestStore
    find: Callable[[str], Underlying | None]


class OptionsApi:
    """The handlers below `/api/options/`. `desk` is None where this process asks no sources."""

    def __init__(self, clock: Clock, desk: OptionDesk | None) -> None:
        self._clock = clock
        self._desk = desk

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register every address."""
        router.add_get("/api/options/{underlying}/expiries", self.expiries)
        router.add_get("/api/options/{underlying}/chain", self.chain)
        router.add_get("/api/options/{underlying}/oi", self.oi)

    async def expiries(self, request: web.Request) -> web.Response:
        """Return the expiries of an underlying, UTC epoch s ascending, and as dates where it is listed."""
        known_parameters(request)
        underlying, desk = self._asked(request)
        try:
            found = await desk.manager.expiries(underlying.key)
        except (UnknownUnderlying, NobodyAnswered) as error:
            raise _refused(error) from error
        days = [expiry_day(one, underlying.zone).isoformat() for one in found.expiries]
        return _json(
            {
                "underlying": found.underlying,
                "source": found.source,
                "expiries": list(found.expiries),
                "dates": days,
                "refusals": _told(found.refusals),
            }
        )

    async def chain(self, request: web.Request) -> web.Response:
        """Return one chain; without `expiry` that of the next expiry."""
        known_parameters(request, "expiry")
        underlying, desk = self._asked(request)
        found = await self._chain(desk, underlying, _expiry(request, underlying))
        shown = chain_json(found.chain, self._clock.now_ms())
        return _json(shown | {"refusals": _told(found.refusals)})

    async def oi(self, request: web.Request) -> web.Response:
        """Return open interest by strike, now or as it was at `time`, with the ratio of puts to calls."""
        known_parameters(request, "expiry", "time")
        underlying, desk = self._asked(request)
        at_s = _moment(request, "time")
        expiry = _expiry(request, underlying)
        if at_s is not None:
            return _json(await self._oi_at(desk, underlying, expiry, at_s))
        chain = (await self._chain(desk, underlying, expiry)).chain
        shown = _oi_json(underlying, chain.expiry, interest_by_strike(chain))
        return _json(shown | {"max_pain": chain.max_pain, "source": chain.source})

    def _asked(self, request: web.Request) -> tuple[Underlying, OptionDesk]:
        if self._desk is None:
            raise HttpError(503, "not_here", "this process asks no option sources: ask the ingesting daemon")
        text = request.match_info["underlying"]
        underlying = self._desk.find(text)
        grant = request[PRINCIPAL].grant
        if grant.instruments is not None and (underlying is None or not grant.covers(underlying.key)):
            # Asked before whether it exists: the answer must not tell.
            raise HttpError(403, "forbidden", "this token is not for this instrument")
        if underlying is None:
            told = f"{text[:60]!r} is mapped to no equity, ETF or index, which options are written on"
            raise HttpError(404, "unknown_instrument", told)
        return underlying, self._desk

    @staticmethod
    async def _chain(desk: OptionDesk, underlying: Underlying, expiry: int | None) -> Found:
        try:
            return await desk.manager.chain(underlying.key, expiry)
        except (UnknownUnderlying, UnknownExpiry, NobodyAnswered) as error:
            raise _refused(error) from error

    @staticmethod
    async def _oi_at(
        desk: OptionDesk, underlying: Underlying, expiry: int | None, at_s: int
    ) -> dict[str, Any]:
        if expiry is None:
            raise HttpError(400, "bad_parameter", "with time, expiry is needed too")
        day = expiry_day(expiry, underlying.zone)
        try:
            found = await desk.interest.at(underlying.key, day, at_s * 1000)
        except StorageError as error:
            raise HttpError(503, "history_unavailable", str(error), retry_after_s=_RETRY_AFTER_S) from error
        if not found.strikes:
            raise HttpError(404, "no_data", f"nothing of {underlying.key} {day} was stored by then")
        return _oi_json(underlying, expiry, found)


def interest_of(chain: Chain, underlying: Underlying) -> ChainInterest:
    """Return the open interest of a chain as it is stored."""
    legs = tuple(
        LegInterest(leg.symbol, leg.quote.strike, leg.quote.side, leg.quote.oi)
        for leg in chain.legs
        if leg.quote.oi is not None
    )
    return ChainInterest(chain.underlying, expiry_day(chain.expiry, underlying.zone), chain.timestamp, legs)


def interest_by_strike(chain: Chain) -> InterestAt:
    """Return the open interest a chain says, by strike."""
    by_strike: dict[str, dict[str, int | None]] = {}
    for leg in chain.legs:
        by_strike.setdefault(leg.quote.strike, {})[leg.quote.side] = leg.quote.oi
    strikes = sorted(by_strike.items(), key=lambda item: float(item[0]))
    return InterestAt(
        chain.timestamp, tuple((strike, it.get("call"), it.get("put")) for strike, it in strikes)
    )


def _oi_json(underlying: Underlying, expiry: int, found: InterestAt) -> dict[str, Any]:
    calls = sum(call or 0 for _, call, _ in found.strikes)
    puts = sum(put or 0 for _, _, put in found.strikes)
    return {
        "underlying": underlying.key,
        "expiry": expiry,
        "timestamp": found.timestamp,
        "strikes": [
            {"strike": strike, "call_oi": call, "put_oi": put} for strike, call, put in found.strikes
        ],
        "total_call_oi": calls,
        "total_put_oi": puts,
        "pcr": round(puts / calls, 4) if calls else None,
    }


def _refused(error: UnknownUnderlying | UnknownExpiry | NobodyAnswered) -> HttpError:
    if isinstance(error, UnknownUnderlying):
        return HttpError(404, "no_options", str(error))
    if isinstance(error, UnknownExpiry):
        days = ", ".join(expiry_day(one, INDIA).isoformat() for one in error.expiries[:8])
        return HttpError(404, "unknown_expiry", f"{error}; there are {days or 'none'}")
    return HttpError(503, "no_source_answers", str(error), retry_after_s=_RETRY_AFTER_S)


def _told(refusals: Sequence[Refusal]) -> list[dict[str, str]]:
    return [
        {"provider": refusal.provider_code, "reason": refusal.reason, "message": refusal.message}
        for refusal in refusals
    ]


def _expiry(request: web.Request, underlying: Underlying) -> int | None:
    """Return `expiry` in UTC epoch s: given as such, or as a date."""
    text = request.query.get("expiry")
    if text is not None and "-" in text:
        try:
            day = date.fromisoformat(text.strip())
        except ValueError:
            day = date.max
        if day.year < 2100:
            return int(datetime.combine(day, time(12), underlying.zone).timestamp())
    return _moment(request, "expiry")


def _moment(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 10 and _EARLIEST_S <= int(text) <= _LATEST_S:
        return int(text)
    also = " or a date such as 2026-12-29" if name == "expiry" else ""
    raise HttpError(400, "bad_parameter", f"{name} must be UTC epoch seconds{also}")


def _json(value: Any) -> web.Response:
    return web.Response(body=to_json(value), content_type="application/json")
