"""The gateway: one aiohttp server for HTTP, WebSocket and the dashboard, and its life from bind to close.

Stands at the end of the flow. Shows what the broadcast holds and what the backend says; commands nothing.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import resource
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import structlog
from aiohttp import web

from services.data_broadcast import DataBroadcast
from services.errors import ConfigurationError
from services.gateway.acceptor import Acceptor, bound_sockets
from services.gateway.authentication import Authenticator
from services.gateway.backend import GatewayBackend
from services.gateway.channel_hub import ChannelHub
from services.gateway.charts import BarSource, ChartFrames
from services.gateway.directory import InstrumentDirectory
from services.gateway.errors import HttpError
from services.gateway.event_stream import EventStreamEndpoint
from services.gateway.flow import FlowLimits
from services.gateway.guard import Guard, JsonRequestHandler
from services.gateway.history_api import PastApi
from services.gateway.http_api import HttpApi
from services.gateway.limits import ClientLimits, is_loopback
from services.gateway.metrics import MetricsPage
from services.gateway.news_api import NewsApi, NewsSource
from services.gateway.options_api import OptionDesk, OptionsApi
from services.gateway.origin import OriginPolicy
from services.gateway.outbox import SharedFrames
from services.gateway.pacer import Pacer
from services.gateway.protocol import MAX_MESSAGE_BYTES
from services.gateway.recovery import History, RecoveryDesk, RecoveryLimits
from services.gateway.routes_api import RoutesApi, RoutesBackend
from services.gateway.session import CLOSE_RIGHTS_CHANGED, CLOSE_TOKEN_WRONG, SessionContext
from services.gateway.subscriptions import SubscriptionContext
from services.gateway.tick_views import TickViews
from services.gateway.websocket import WebSocketEndpoint
from services.pipeline.supervisor import end_together

_log = structlog.get_logger(__name__)

WEB_ROOT = Path(__file__).resolve().parents[2] / "web" / "dist"
IDLE_CONNECTION_S = 15.0
"""A connection that has sent no (or half a) request for so long is closed."""
RESERVED_DESCRIPTORS = 256
"""File descriptors left to everything but clients: providers, stores, files."""
BACKLOG = 2_048


class GatewayConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where and for whom the gateway listens.

    `port` 0 takes any free port; `port_fallback` does the same when `port` is taken. `tokens` maps
    name to secret; none are needed on loopback. `allowed_origins` are browser origins besides the
    dashboard's own. Without `serves_clients` the HTTP interface is there, but no stream of records: `/ws`
    and `/api/stream` send whoever asks to a gateway.
    """

    host: str = "127.0.0.1"
    port: int = 8080
    port_fallback: bool = False
    tokens: Mapping[str, str] = {}
    allowed_origins: tuple[str, ...] = ()
    limits: ClientLimits = ClientLimits()
    serves_clients: bool = True
    flow: FlowLimits = FlowLimits()
    recovery: RecoveryLimits = RecoveryLimits()
    web_root: Path = WEB_ROOT


class Gateway:
    """Serves clients. `start`, keep `run` running, `stop`; `stop` is harmless when repeated.

    `history` is where clients that come back are answered from; without it a client is recovered only
    when it has missed nothing. `bars` are shown on the chart channel; without them it is silent. `routes`
    shows and changes who serves what, where providers run.
    """

    def __init__(
        self,
        backend: GatewayBackend,
        broadcast: DataBroadcast,
        config: GatewayConfig,
        history: History | None = None,
        bars: BarSource | None = None,
        routes: RoutesBackend | None = None,
        options: OptionDesk | None = None,
        news: NewsSource | None = None,
    ) -> None:
        self.config = config
        self._routes = routes
        self._backend = backend
        self._broadcast = broadcast
        self._limits = config.limits
        self._options = OptionsApi(broadcast.clock, options)
        self._news = NewsApi(news)
        try:
            authenticator = Authenticator(config.tokens)
        except ValueError as error:
            raise ConfigurationError(f"API_TOKENS: {error}") from error
        self._authenticator = authenticator
        self._directory = InstrumentDirectory(backend, broadcast.clock)
        self._pacer = Pacer(broadcast.clock)
        self._guard = Guard(authenticator)
        self.channels = ChannelHub()
        """The channels beside ticks and charts: connect more feeds before `start`."""
        TickViews(broadcast, self.channels)
        self._desk = RecoveryDesk(history, broadcast.clock, config.recovery, self._held_bytes)
        context = SessionContext(
            subscriptions=SubscriptionContext(
                backend,
                self._directory,
                broadcast,
                config.limits,
                self._pacer.spread,
                self._desk,
                self.channels,
            ),
            clock=broadcast.clock,
            authenticator=authenticator,
            limits=config.limits,
            flow=config.flow,
            frames=SharedFrames(ChartFrames(bars) if bars is not None else None),
            ready=self._pacer.ready,
            paced=self._pacer.paced,
            taking=self._pacer.taking,
        )
        self._sockets = WebSocketEndpoint(context, authenticator, config.limits, self._pacer)
        self._event_streams = EventStreamEndpoint(
            context, self._sockets, self._guard, backend, self._directory
        )
        self._runner: web.AppRunner | None = None
        self._acceptor: Acceptor | None = None
        self.url = ""

    async def start(self) -> str:
        """Listen, and return the base URL with the real port.

        Raises `ConfigurationError` when the port is taken, the address is not ours, or it can be
        reached from other machines and no token is set.
        """
        config = self.config
        if not self._authenticator.required and not is_loopback(config.host):
            raise ConfigurationError(
                f"API_HOST={config.host} is reachable from other machines: "
                "set API_TOKENS=name:secret, or API_HOST=127.0.0.1"
            )
        self._claim_descriptors()
        app = web.Application(middlewares=[self._guard.middleware], client_max_size=MAX_MESSAGE_BYTES)
        HttpApi(
            self._backend,
            self._broadcast,
            self._directory,
            self.client_figures,
            MetricsPage(self._backend, self.client_figures),
            config.web_root,
        ).add_routes(app.router)
        PastApi(self._backend, self._directory).add_routes(app.router)
        RoutesApi(self._routes).add_routes(app.router)
        self._options.add_routes(app.router)
        self._news.add_routes(app.router)
        if config.serves_clients:
            app.router.add_get("/ws", self._sockets.handle)
            app.router.add_get("/api/stream", self._event_streams.handle, allow_head=False)
        else:
            for path in ("/ws", "/api/stream"):
                app.router.add_get(path, _elsewhere, allow_head=False)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        try:
            self._acceptor = await self._listen(runner)
        except ConfigurationError:
            await runner.cleanup()
            raise
        self._runner = runner
        port = self._acceptor.sockets[0].getsockname()[1]
        self._guard.policy = OriginPolicy(
            config.host, port, config.allowed_origins, open_to_all=not self._authenticator.required
        )
        self._broadcast.on_interest = self._backend.interest_changed
        self.url = f"http://{_reachable(config.host)}:{port}"
        _log.info("gateway_listening", url=self.url, tokens=len(config.tokens))
        return self.url

    async def run(self) -> None:
        """Serve the clients' paces, pings, deadlines and returns until cancelled."""
        await end_together(
            ("recovery", self._desk.run()), ("returns", self._desk.watch_bus()), ("pacer", self._pacer.run())
        )

    async def stop(self) -> None:
        """Refuse new clients, tell those connected to come back (1012), and close, within about 4 s."""
        runner, self._runner = self._runner, None
        if self._acceptor is not None:
            self._acceptor.close()
        await self._sockets.close_all(self._limits.closing_s)
        if runner is not None:
            await runner.cleanup()
            _log.info("gateway_closed")

    def hold(self) -> None:
        """Take no clients (503 on `/ws`) until `admit`; health and status are answered all the same."""
        self._sockets.stopping = True

    def admit(self) -> None:
        """Take clients."""
        self._sockets.stopping = False

    async def send_away(self, reason: str) -> None:
        """Take no more clients and tell those connected to connect again (1012), within about 4 s."""
        await self._sockets.close_all(self._limits.closing_s, reason)

    def catalogue_changed(self) -> None:
        """Bring directory and subscriptions into line with the instruments there are now."""
        self._directory.forget()
        for session in list(self._sockets.sessions):
            session.catalogue_changed()

    def replace_tokens(self, tokens: Mapping[str, str]) -> None:
        """Accept these tokens only from now on.

        Sessions of tokens that were revoked are closed for good (4500), those of tokens with other rights
        must connect again (4402). Tokens that cannot be used (none at all on an open address, scopes that
        do not read) are refused, and those there were stay.
        """
        if not tokens and not is_loopback(self.config.host):
            _log.error("tokens_refused", reason="API_HOST is reachable from other machines: set API_TOKENS")
            return
        try:
            revoked, changed = self._authenticator.replace(tokens)
        except ValueError as error:
            _log.error("tokens_refused", reason=str(error))
            return
        if self._guard.policy is not None:
            self._guard.policy.open_to_all = not self._authenticator.required
        closed = 0
        for session in list(self._sockets.sessions):
            name = session.principal.name if session.principal is not None else None
            if name in revoked:
                session.close(CLOSE_TOKEN_WRONG, "the token was revoked")
            elif name in changed:
                session.close(CLOSE_RIGHTS_CHANGED, "what the token allows has changed; connect again")
            else:
                continue
            closed += 1
        if revoked or changed:
            _log.info(
                "tokens_replaced", revoked=sorted(revoked), changed=sorted(changed), sessions_closed=closed
            )

    def epoch_changed(self) -> None:
        """Tell every client the new epoch: what was stored before it cannot be resumed from."""
        for session in list(self._sockets.sessions):
            session.resync()

    def client_figures(self) -> dict[str, Any]:
        """Return the figures of the WebSocket side: clients, what they watch, what was sent and skipped."""
        return self._sockets.figures() | {
            "http_refused": dict(self._guard.refused),
            "connections": self._acceptor.open if self._acceptor is not None else 0,
            "connections_refused": self._acceptor.cut if self._acceptor is not None else 0,
            "resumed": msgspec.to_builtins(self._desk.figures),
        }

    def _held_bytes(self) -> int:
        return sum(session.outbox.backlog_bytes for session in self._sockets.sessions)

    def relieve(self, on: bool) -> None:
        """While `on`, take no new clients and give those there are less: the process is short of memory."""
        self._sockets.relieve(on)

    def _claim_descriptors(self) -> None:
        """Make sure that clients can never take the descriptors that data needs.

        Raises `ConfigurationError` when the operating system allows too few, however far they are raised.
        """
        limits = self.config.limits
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = limits.connections + RESERVED_DESCRIPTORS
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise ConfigurationError(
                f"API_MAX_CLIENTS={limits.clients} needs {wanted} open files and only {hard} are allowed: "
                f"raise them (ulimit -Hn {wanted}, systemd LimitNOFILE={wanted}), or lower API_MAX_CLIENTS"
            )
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

    async def _listen(self, runner: web.AppRunner) -> Acceptor:
        loop = asyncio.get_running_loop()
        manager = cast(web.Server, runner.server)

        def serve() -> asyncio.BaseProtocol:
            return JsonRequestHandler(
                manager,
                acceptor.gone,
                loop=loop,
                keepalive_timeout=IDLE_CONNECTION_S,
                access_log=_aiohttp_log,
                logger=_aiohttp_log,
            )

        acceptor = Acceptor(await self._bind(), serve, limit=self._limits.connections)
        acceptor.start()
        return acceptor

    async def _bind(self) -> list[socket.socket]:
        config = self.config
        try:
            return await bound_sockets(config.host, config.port, BACKLOG)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not config.port_fallback:
                raise _bind_refused(config, error) from error
        try:
            return await bound_sockets(config.host, 0, BACKLOG)
        except OSError as error:
            raise _bind_refused(config, error) from error


async def _elsewhere(_request: web.Request) -> web.StreamResponse:
    raise HttpError(
        404, "no_clients_here", "this daemon only ingests (run --role ingest): connect to a gateway"
    )


def _bind_refused(config: GatewayConfig, error: OSError) -> ConfigurationError:
    if isinstance(error, socket.gaierror):
        return ConfigurationError(f"API_HOST={config.host} is no address of this machine: {error}")
    if error.errno == errno.EADDRINUSE:
        return ConfigurationError(
            f"API_PORT={config.port} is taken on {config.host}: stop what uses it, set another API_PORT, "
            "or API_PORT=0 for any free port"
        )
    if error.errno == errno.EACCES:
        return ConfigurationError(f"API_PORT={config.port} needs privileges: set a port of 1024 or more")
    return ConfigurationError(f"cannot listen on API_HOST={config.host} API_PORT={config.port}: {error}")


def _reachable(host: str) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"[{host}]" if ":" in host else host


# Malformed requests are answered and counted; aiohttp would log a trace, and every request a line.
_aiohttp_log = logging.getLogger("marketd.http")
_aiohttp_log.setLevel(logging.CRITICAL)
