"""The addresses of the past: `/api/history`, `/api/coverage`, `/api/backfill`.

Beside `http_api`; asks the backend and shapes what it says. Limits are judged here, before anything is read.
"""

from __future__ import annotations

from typing import Any

import msgspec
from aiohttp import web

from services.errors import MarketdError, ProviderError, StorageError, TemporaryError
from services.gateway.backend import GatewayBackend
from services.gateway.directory import InstrumentDirectory
from services.gateway.encoding import to_json
from services.gateway.errors import HttpError
from services.gateway.guard import PRINCIPAL
from services.gateway.protocol import is_well_formed
from services.market_data.candles import DEFAULT_COUNT, MAX_COUNT, HistoryRequest, parse_resolution

MAX_BACKFILL_INSTRUMENTS = 5_000
_LATEST_S = 32_503_680_000
"""The year 3000: what is beyond is in milliseconds, or a slip."""


class BackfillOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"from_s": "from", "to_s": "to"}):
    """What `POST /api/backfill` takes: keys or `EXCHANGE:*`, `1m` or `1d`, UTC epoch seconds."""

    instruments: list[str]
    interval: str
    from_s: int
    to_s: int


class PastApi:
    """The handlers of what concerns the past."""

    def __init__(self, backend: GatewayBackend, directory: InstrumentDirectory) -> None:
        self._backend = backend
        self._directory = directory

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register every address."""
        router.add_get("/api/history/{instrument}", self.history)
        router.add_get("/api/coverage/{instrument}", self.coverage)
        router.add_get("/api/backfill", self.backfill_status)
        router.add_post("/api/backfill", self.order_backfill)

    async def history(self, request: web.Request) -> web.Response:
        """Return candles of one instrument; 404 when it is not known, 503 while Redis does not answer."""
        instrument = self._instrument(request)
        asked = _history_request(request, instrument)
        try:
            answer = await self._backend.history(asked)
        except ValueError as error:
            raise HttpError(400, "bad_parameter", str(error)) from error
        except (StorageError, TemporaryError, ProviderError) as error:
            raise HttpError(503, "unavailable", str(error), retry_after_s=2) from error
        except MarketdError as error:
            raise HttpError(400, "too_many", str(error)) from error
        body: dict[str, Any] = {
            "instrument": instrument,
            "interval": asked.resolution.text,
            "candles": answer.candles,
            "complete": answer.complete,
        }
        if answer.forming:
            body["forming"] = True
        if answer.missing:
            body["missing"] = [[gap.from_s, gap.to_s, gap.reason] for gap in answer.missing]
        if answer.sources:
            body["sources"] = answer.sources
        return _json(body)

    async def coverage(self, request: web.Request) -> web.Response:
        """Return what is had, missing and not to be had of one instrument's past."""
        instrument = self._instrument(request)
        _only(request, "type")
        wanted = request.query.get("type")
        if wanted not in (None, "ticks", "1m", "1d"):
            raise HttpError(400, "bad_parameter", "type must be ticks, 1m or 1d")
        try:
            rows = await self._backend.coverage(instrument)
        except MarketdError as error:
            raise HttpError(503, "unavailable", str(error), retry_after_s=2) from error
        spans = [
            {
                "type": row.type,
                "state": row.state,
                "source": row.source,
                "from_ms": row.from_ms,
                "to_ms": row.to_ms,
                "reason": row.reason,
            }
            for row in rows
            if wanted in (None, row.type)
        ]
        return _json({"instrument": instrument, "spans": spans})

    async def backfill_status(self, request: web.Request) -> web.Response:
        """Return how the backfill is: what was asked for, what was found, the providers' quotas."""
        _only(request)
        return _json(self._backend.backfill_status())

    async def order_backfill(self, request: web.Request) -> web.Response:
        """Fetch a span of the past now; 202 with the job, which goes on by itself."""
        try:
            order = msgspec.json.decode(await request.read(), type=BackfillOrder)
        except msgspec.DecodeError as error:
            raise HttpError(400, "bad_request", f"the body is no order: {error}") from error
        instruments: list[str] = []
        for name in dict.fromkeys(order.instruments):
            exchange, _, symbol = name.partition(":")
            found = self._directory.keys_of(exchange) if symbol == "*" else [name]
            if symbol != "*" and not self._known(name):
                raise HttpError(404, "unknown_instrument", self._unknown(name))
            if not found:
                raise HttpError(404, "unknown_instrument", f"{exchange} has no instruments here")
            instruments += found
        grant = request[PRINCIPAL].grant
        if not all(grant.covers(name) for name in instruments):
            raise HttpError(403, "forbidden", "this token is not for these instruments")
        if not 1 <= len(instruments) <= MAX_BACKFILL_INSTRUMENTS:
            raise HttpError(400, "bad_parameter", f"from 1 to {MAX_BACKFILL_INSTRUMENTS} instruments at a time")
        if order.interval not in ("1m", "1d"):
            raise HttpError(400, "bad_parameter", "interval must be 1m or 1d; others are made of these")
        if not 0 <= order.from_s < order.to_s <= _LATEST_S:
            raise HttpError(400, "bad_parameter", "from must be before to, both in UTC epoch seconds")
        try:
            job = await self._backend.order_backfill(
                instruments, order.interval, order.from_s * 1000, order.to_s * 1000
            )
        except ValueError as error:
            raise HttpError(400, "too_many", str(error)) from error
        except MarketdError as error:
            raise HttpError(503, "unavailable", str(error), retry_after_s=5) from error
        return _json(job, 202)

    def _instrument(self, request: web.Request) -> str:
        instrument = request.match_info["instrument"]
        if not request[PRINCIPAL].grant.covers(instrument):
            # Judged before whether it exists: the answer must not tell.
            raise HttpError(403, "forbidden", "this token is not for this instrument")
        if not self._known(instrument):
            raise HttpError(404, "unknown_instrument", self._unknown(instrument))
        return instrument

    def _known(self, instrument: str) -> bool:
        return is_well_formed(instrument) and self._backend.is_known(instrument)

    def _unknown(self, instrument: str) -> str:
        near = self._backend.similar(instrument)
        hint = f"; did you mean {', '.join(near)}?" if near else ""
        return f"not known: {instrument[:80]}{hint}"


def _history_request(request: web.Request, instrument: str) -> HistoryRequest:
    _only(request, "interval", "count", "from", "to", "forming", "adjusted")
    try:
        resolution = parse_resolution(request.query.get("interval", "1m"))
    except ValueError as error:
        raise HttpError(400, "bad_parameter", str(error)) from error
    from_s, to_s = _epoch_s(request, "from"), _epoch_s(request, "to")
    if from_s is not None and to_s is not None and from_s >= to_s:
        raise HttpError(400, "bad_parameter", "from must be before to")
    count = _count(request)
    return HistoryRequest(
        instrument=instrument,
        resolution=resolution,
        count=DEFAULT_COUNT if count is None and from_s is None else count,
        from_ms=None if from_s is None else from_s * 1000,
        to_ms=None if to_s is None else to_s * 1000,
        forming=_flag(request, "forming"),
        adjusted=_flag(request, "adjusted"),
    )


def _count(request: web.Request) -> int | None:
    text = request.query.get("count")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 1 <= int(text) <= MAX_COUNT):
        raise HttpError(400, "bad_parameter", f"count must be a whole number from 1 to {MAX_COUNT}")
    return int(text)


def _epoch_s(request: web.Request, name: str) -> int | None:
    text = request.query.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 12) or int(text) > _LATEST_S:
        raise HttpError(400, "bad_parameter", f"{name} must be UTC epoch seconds, as in 1790000000")
    return int(text)


def _flag(request: web.Request, name: str) -> bool:
    text = request.query.get(name, "false").lower()
    if text not in ("true", "false", "1", "0"):
        raise HttpError(400, "bad_parameter", f"{name} must be true or false")
    return text in ("true", "1")


def _only(request: web.Request, *names: str) -> None:
    for name in request.query:
        if name not in names:
            allowed = f"; there are {', '.join(names)}" if names else ""
            raise HttpError(400, "unknown_parameter", f"{name[:40]!r} is no parameter here{allowed}")


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=to_json(value), content_type="application/json")
