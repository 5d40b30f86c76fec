"""The HTTP addresses of routing: who serves what, what was decided, and an operator's choice.

Part of the gateway; all of it needs the scope `admin`. Reads from the backend and asks it to change a route;
decides nothing itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import msgspec
from aiohttp import web

from services.errors import ConfigurationError
from services.gateway.encoding import to_json
from services.gateway.errors import HttpError
from services.gateway.guard import PRINCIPAL
from services.gateway.protocol import is_well_formed

EVENTS_SHOWN = 50
MOST_EVENTS = 1_000
_LONGEST_REASON = 200


class SwitchRequest(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a switch: to whom (None: back to the order of the mappings), for how long, and why."""

    to: str | None
    for_s: float = 3_600.0
    why: str = ""


class RoutesBackend(Protocol):
    """The routes as the gateway sees them."""

    def routes(self) -> dict[str, Any]:
        """Return every provider, what it can do and serves, and what is not as it should be."""
        ...

    async def route(self, instrument: str, events: int) -> dict[str, Any] | None:
        """Return the route of an instrument and its newest events; None when it is not mapped."""
        ...

    def switch_route(
        self, instrument: str, to: str | None, *, for_s: float, by: str, why: str
    ) -> dict[str, Any]:
        """Prefer a source for a while, or (None) the order of the mappings again.

        Raises `ConfigurationError` for what cannot be.
        """
        ...

    def similar(self, instrument: str) -> Sequence[str]:
        """Return known instrument keys that look like an unknown one."""
        ...


class RoutesApi:
    """The handlers of `/api/routes`; a gateway without providers behind it has no routes to show."""

    def __init__(self, backend: RoutesBackend | None) -> None:
        self._behind = backend

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the addresses."""
        router.add_get("/api/routes", self.routes)
        router.add_get("/api/routes/{instrument}", self.route)
        router.add_post("/api/routes/{instrument}/switch", self.switch)

    async def routes(self, _request: web.Request) -> web.Response:
        """Return all providers and the state of routing."""
        return _json(self._backend.routes())

    async def route(self, request: web.Request) -> web.Response:
        """Return one route with its history; 404 when the instrument is not known."""
        text = request.query.get("events", str(EVENTS_SHOWN))
        if not (text.isascii() and text.isdigit() and len(text) <= 4 and 0 < int(text) <= MOST_EVENTS):
            raise HttpError(400, "bad_parameter", f"events must be a whole number from 1 to {MOST_EVENTS}")
        instrument = self._instrument(request)
        answer = await self._backend.route(instrument, int(text)) if is_well_formed(instrument) else None
        if answer is None:
            raise self._unknown(instrument)
        return _json(answer)

    async def switch(self, request: web.Request) -> web.Response:
        """Carry out an operator's choice; 400 for one that cannot be."""
        instrument = self._instrument(request)
        if request.content_type != "application/json":
            raise HttpError(415, "not_json", 'send JSON, as in {"to": "YF", "for_s": 3600, "why": "…"}')
        try:
            asked = msgspec.json.decode(await request.read(), type=SwitchRequest)
        except msgspec.DecodeError as error:
            raise HttpError(400, "bad_request", f"the body cannot be used: {error}") from error
        if not is_well_formed(instrument) or await self._backend.route(instrument, 1) is None:
            raise self._unknown(instrument)
        try:
            answer = self._backend.switch_route(
                instrument,
                asked.to,
                for_s=asked.for_s,
                by=request[PRINCIPAL].name,
                why=asked.why[:_LONGEST_REASON],
            )
        except ConfigurationError as error:
            raise HttpError(400, "bad_request", str(error)) from error
        return _json(answer)

    @property
    def _backend(self) -> RoutesBackend:
        if self._behind is None:
            raise HttpError(503, "no_routes_here", "this gateway routes nothing: ask a daemon that ingests")
        return self._behind

    @staticmethod
    def _instrument(request: web.Request) -> str:
        instrument = request.match_info["instrument"].strip()
        if not request[PRINCIPAL].grant.covers(instrument):
            raise HttpError(403, "forbidden", "this token is not for this instrument")
        return instrument

    def _unknown(self, instrument: str) -> HttpError:
        similar = ", ".join(self._backend.similar(instrument)) if is_well_formed(instrument) else ""
        hint = f"; did you mean {similar}?" if similar else ""
        return HttpError(404, "unknown_instrument", f"{instrument[:60]!r} is not mapped{hint}")


def _json(value: Any) -> web.Response:
    return web.Response(body=to_json(value), content_type="application/json")
