"""The control interface of a simulator process: a small HTTP API on loopback, JSON in and out.

Stands in front of the simulators' Python methods and adds nothing to them. `GET /` says what there is.

    GET  /state                           both simulators: connections, faults, counts
    POST /dhan/fault   /yahoo/fault       {"fault": "close", "code": 1011}; see `GET /` for all of them
    POST /rate                            {"rate": 5.0, "provider": "dhan", "symbols": ["NSE_EQ:2885"]}
    POST /emit                            {"provider": "yahoo", "symbol": "AAPL", "price": "307.21"}
    GET  /journal?since=0&limit=1000      what was sent, from a position on
    GET  /requests?provider=dhan          the newest messages of clients
    POST /token/expire                    {"token": null}: the current one expires
    POST /token/issue                     {"consumer": "SELF", "life_s": 86400}: a new good token
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from itertools import islice
from types import TracebackType
from typing import Any, Literal, Self

import msgspec
from aiohttp import web

from simulators.dhan import DhanSimulator
from simulators.faults import DhanFault, YahooFault
from simulators.journal import Journal
from simulators.stream import StreamSimulator
from simulators.tokens import TOKEN_LIFE_S
from simulators.yahoo import YahooSimulator

_MOST_ENTRIES = 20_000


class RateRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ticks per second, of one provider or both, of some symbols or all."""

    rate: float
    provider: Literal["dhan", "yahoo"] | None = None
    symbols: tuple[str, ...] | None = None


class EmitRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tick now. `price` is a decimal as text (or `nan`, `inf`); `event_ms` is UTC."""

    provider: Literal["dhan", "yahoo"]
    symbol: str
    price: str | float | None = None
    quantity: int | None = None
    volume: int | None = None
    event_ms: int | None = None


class ExpireRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The token to let expire; None is the current one."""

    token: str | None = None


class IssueRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the new token shall be."""

    consumer: Literal["SELF", "APP"] = "SELF"
    life_s: int = TOKEN_LIFE_S


def _json(value: object, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value), status=status, content_type="application/json", charset="utf-8"
    )


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def _errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except (msgspec.DecodeError, ValueError) as error:
        return _json({"error": str(error)}, 400)
    except KeyError as error:
        return _json({"error": f"unknown symbol {error.args[0]}"}, 404)


class ControlServer:
    """Serves the control API for two simulators and their common journal. `port` 0 takes a free one."""

    def __init__(
        self, dhan: DhanSimulator, yahoo: YahooSimulator, journal: Journal, *, port: int = 0
    ) -> None:
        self._dhan = dhan
        self._yahoo = yahoo
        self._journal = journal
        self._port = port
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """The API's address."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        app = web.Application(middlewares=[_errors_as_json])
        app.router.add_get("/", self._index)
        app.router.add_get("/state", self._state)
        app.router.add_post("/dhan/fault", self._dhan_fault)
        app.router.add_post("/yahoo/fault", self._yahoo_fault)
        app.router.add_post("/rate", self._rate)
        app.router.add_post("/emit", self._emit)
        app.router.add_get("/journal", self._entries)
        app.router.add_get("/requests", self._requests)
        app.router.add_post("/token/expire", self._expire)
        app.router.add_post("/token/issue", self._issue)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = int(self._runner.addresses[0][1])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _simulator(self, provider: str | None) -> StreamSimulator:
        if provider == "dhan":
            return self._dhan
        if provider == "yahoo":
            return self._yahoo
        raise ValueError("provider must be dhan or yahoo")

    async def _index(self, request: web.Request) -> web.Response:  # noqa: ARG002
        schema: dict[str, Any] = {
            "usage": __doc__,
            "dhan_faults": msgspec.json.schema(DhanFault),
            "yahoo_faults": msgspec.json.schema(YahooFault),
        }
        return _json(schema)

    async def _state(self, request: web.Request) -> web.Response:  # noqa: ARG002
        return _json({"dhan": self._dhan.state(), "yahoo": self._yahoo.state()})

    async def _dhan_fault(self, request: web.Request) -> web.Response:
        fault = msgspec.json.decode(await request.read(), type=DhanFault)
        return _json({"ok": True, "connections": await self._dhan.inject(fault)})

    async def _yahoo_fault(self, request: web.Request) -> web.Response:
        fault = msgspec.json.decode(await request.read(), type=YahooFault)
        return _json({"ok": True, "connections": await self._yahoo.inject(fault)})

    async def _rate(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=RateRequest)
        chosen = [self._dhan, self._yahoo] if wanted.provider is None else [self._simulator(wanted.provider)]
        for simulator in chosen:
            simulator.set_rate(wanted.rate, wanted.symbols)
        return _json({"ok": True})

    async def _emit(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read(), type=EmitRequest)
        sent = self._simulator(wanted.provider).emit(
            wanted.symbol,
            price=wanted.price,
            quantity=wanted.quantity,
            volume=wanted.volume,
            event_ms=wanted.event_ms,
        )
        return _json({"sent": [entry.as_dict() for entry in sent]})

    async def _entries(self, request: web.Request) -> web.Response:
        since = int(request.query.get("since", "0"))
        limit = min(int(request.query.get("limit", "1000")), _MOST_ENTRIES)
        following, entries = self._journal.since(max(0, since), max(0, limit))
        return _json(
            {
                "next": following,
                "recorded": self._journal.recorded,
                "forgotten": self._journal.forgotten,
                "entries": [entry.as_dict() for entry in entries],
            }
        )

    async def _requests(self, request: web.Request) -> web.Response:
        requests = self._simulator(request.query.get("provider")).requests
        limit = min(int(request.query.get("limit", "1000")), _MOST_ENTRIES)
        return _json({"requests": list(islice(requests, max(0, len(requests) - limit), None))})

    async def _expire(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read() or b"{}", type=ExpireRequest)
        return _json({"expired": self._dhan.expire_token(wanted.token)})

    async def _issue(self, request: web.Request) -> web.Response:
        wanted = msgspec.json.decode(await request.read() or b"{}", type=IssueRequest)
        token = self._dhan.tokens.issue(consumer=wanted.consumer, life_s=wanted.life_s)
        return _json({"access_token": token, "client_id": self._dhan.client_id})
