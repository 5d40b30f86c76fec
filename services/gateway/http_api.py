"""The HTTP interface: health, status, instruments, quotes, metrics, the dashboard's files.

Reads from the backend and the broadcast's memory; never from Redis or PostgreSQL.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from services.data_broadcast import DataBroadcast
from services.gateway.backend import GatewayBackend
from services.gateway.directory import InstrumentDirectory
from services.gateway.encoding import raw_tick, to_json
from services.gateway.errors import HttpError
from services.gateway.guard import PRINCIPAL
from services.gateway.metrics import MetricsPage
from services.gateway.openapi import openapi_document
from services.gateway.parameters import known_parameters, whole_number
from services.gateway.protocol import is_well_formed

DEFAULT_INSTRUMENTS = 100
MAX_INSTRUMENTS = 10_000
MAX_QUOTES = 1_000


class HttpApi:
    """The handlers of everything but `/ws`. `clients()` returns the figures of the WebSocket side."""

    def __init__(
        self,
        backend: GatewayBackend,
        broadcast: DataBroadcast,
        directory: InstrumentDirectory,
        clients: Callable[[], dict[str, Any]],
        metrics: MetricsPage,
        web_root: Path,
    ) -> None:
        self._backend = backend
        self._broadcast = broadcast
        self._directory = directory
        self._clients = clients
        self._metrics = metrics
        self._web_root = web_root

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register every address."""
        router.add_get("/", self.dashboard)
        router.add_get("/docs", self.reference)
        router.add_get("/healthz", self.healthz)
        router.add_get("/readyz", self.readyz)
        router.add_get("/metrics", self.metrics)
        router.add_get("/openapi.json", self.openapi)
        router.add_get("/api/providers/status", self.providers_status)
        router.add_get("/api/instruments", self.instruments)
        router.add_get("/api/quotes", self.quotes)
        router.add_get("/api/why/{instrument}", self.why)
        router.add_get("/static/{name:.+}", self.static_file)

    async def healthz(self, _request: web.Request) -> web.Response:
        """Say that the process answers."""
        return _json({"status": "ok", "demo": self._backend.demo})

    async def readyz(self, _request: web.Request) -> web.Response:
        """Say whether data can flow: 200, or 503 with the reasons; and what is degraded although it does."""
        readiness = self._backend.readiness()
        answer = {"ready": readiness.ready, "reasons": list(readiness.reasons), "demo": self._backend.demo}
        if readiness.degraded:
            answer["degraded"] = list(readiness.degraded)
        return _json(answer, 200 if readiness.ready else 503)

    async def providers_status(self, _request: web.Request) -> web.Response:
        """Return the state of every provider, of the pipeline and of the clients."""
        return _json(
            {
                "demo": self._backend.demo,
                "time_ms": self._broadcast.clock.now_ms(),
                "providers": self._backend.provider_status(),
                "pipeline": self._backend.pipeline_status(),
                "clients": self._clients(),
            }
        )

    async def instruments(self, request: web.Request) -> web.Response:
        """Return the instruments of an exchange, or those whose key or name holds the words asked for."""
        known_parameters(request, "exchange", "q", "limit")
        limit = whole_number(request, "limit", DEFAULT_INSTRUMENTS, 1, MAX_INSTRUMENTS)
        found, total = self._directory.search(
            request.query.get("exchange", "").strip().upper(),
            request.query.get("q", ""),
            limit,
            request[PRINCIPAL].grant,
        )
        return _json({"instruments": found, "total": total})

    async def quotes(self, request: web.Request) -> web.Response:
        """Return the newest values of the instruments asked for; 404 when none of them is known."""
        known_parameters(request, "instruments")
        asked = ",".join(request.query.getall("instruments", [])).split(",")
        keys = [key for key in dict.fromkeys(part.strip() for part in asked) if key]
        if not keys:
            raise HttpError(
                400, "bad_parameter", "instruments must name at least one, as in NSE:TCS,NSE:INFY"
            )
        if len(keys) > MAX_QUOTES:
            raise HttpError(400, "bad_parameter", f"at most {MAX_QUOTES} instruments at a time")
        quotes: dict[str, Any] = {}
        unknown: list[str] = []
        forbidden: list[str] = []
        no_data: list[str] = []
        grant = request[PRINCIPAL].grant
        for key in keys:
            if not grant.covers(key):
                # Asked before whether it exists: the answer must not tell.
                forbidden.append(key)
            elif not is_well_formed(key) or not self._backend.is_known(key):
                unknown.append(key)
            elif (newest := self._broadcast.latest(key)) is None:
                no_data.append(key)
            else:
                quotes[key] = raw_tick(newest)
        if len(forbidden) == len(keys):
            raise HttpError(403, "forbidden", "this token is not for these instruments")
        if len(unknown) == len(keys):
            raise HttpError(404, "unknown_instrument", f"not known: {', '.join(unknown[:10])}")
        answer: dict[str, Any] = {
            "demo": self._backend.demo,
            "time_ms": self._broadcast.clock.now_ms(),
            "quotes": quotes,
            "no_data": no_data,
            "unknown": unknown,
        }
        if forbidden:
            answer["forbidden"] = forbidden
        return _json(answer)

    async def why(self, request: web.Request) -> web.Response:
        """Explain where one instrument's ticks are and what to do; 404 when it is not known."""
        known_parameters(request)
        instrument = request.match_info["instrument"].strip()
        answer = await self._backend.why(instrument) if is_well_formed(instrument) else None
        if answer is None:
            similar = ", ".join(self._backend.similar(instrument))
            hint = f"; did you mean {similar}?" if similar else ""
            raise HttpError(404, "unknown_instrument", f"{instrument[:60]!r} is not mapped{hint}")
        return _json(answer)

    async def metrics(self, _request: web.Request) -> web.Response:
        """Return the metrics in Prometheus text format."""
        body, content_type = self._metrics.render()
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def openapi(self, _request: web.Request) -> web.Response:
        """Return the description of this interface."""
        return _json(openapi_document())

    async def static_file(self, request: web.Request) -> web.FileResponse:
        """Return one of the dashboard's files."""
        root = self._web_root.resolve()
        path = (root / request.match_info["name"]).resolve()
        if not path.is_relative_to(root) or not path.is_file():
            raise HttpError(404, "not_found", "there is nothing at this address")
        return web.FileResponse(path, headers={"Cache-Control": "no-cache"})

    async def dashboard(self, _request: web.Request) -> web.FileResponse:
        """Return the dashboard's page."""
        return web.FileResponse(self._web_root / "index.html", headers={"Cache-Control": "no-cache"})

    async def reference(self, _request: web.Request) -> web.FileResponse:
        """Return the page to try this interface."""
        return web.FileResponse(self._web_root / "docs.html", headers={"Cache-Control": "no-cache"})


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(status=status, body=to_json(value), content_type="application/json")
