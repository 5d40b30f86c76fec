"""What every HTTP request passes before its handler: who asks, from which page, and how errors look.

Order: secrets in the URL, host name, origin, token, scope. The dashboard's files and the description of
the interface are free; health and metrics are free for programs on this machine. Who asks stands in
`request[PRINCIPAL]` for the handlers.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import structlog
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from services.gateway.authentication import ANONYMOUS, Authenticator, Principal, bearer_secret, names_a_token
from services.gateway.errors import HttpError, error_response
from services.gateway.grants import ADMIN, HISTORY, TICKS
from services.gateway.limits import is_loopback
from services.gateway.origin import OriginPolicy

_log = structlog.get_logger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PRINCIPAL = web.RequestKey("principal", Principal)
_SCOPES = (
    ("/api/providers/", ADMIN),
    ("/api/why/", ADMIN),
    ("/api/routes", ADMIN),
    ("/metrics", ADMIN),
    ("/api/history/", HISTORY),
    ("/api/coverage/", HISTORY),
    ("/api/backfill", ADMIN),
    ("/api/options/", HISTORY),
    ("/api/news", HISTORY),
    ("/api/quotes", TICKS),
    ("/api/stream", TICKS),
)
"""The scope that an address needs, by how it begins; those not listed need any token."""
_FREE = frozenset({"/", "/docs", "/openapi.json"})
_FREE_ON_THIS_MACHINE = frozenset({"/healthz", "/readyz", "/metrics"})
_FORWARDED = ("Forwarded", "X-Forwarded-For", "X-Real-IP")
_ERROR_CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "marketd",
}


class Guard:
    """Judges requests before their handlers see them; `policy` is set once the port is known."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator
        self.policy: OriginPolicy | None = None
        self.refused: dict[str, int] = {}

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what may not pass, and turn every refusal into JSON with the right status."""
        try:
            self._check(request)
            if request.method == "OPTIONS":
                response: web.StreamResponse = _preflight()
            else:
                response = await handler(request)
        except HttpError as error:
            self.refused[error.code] = self.refused.get(error.code, 0) + 1
            response = error.response()
        except web.HTTPException as error:
            response = _as_json(error)
        if not response.prepared:
            self.add_headers(request, response)
        return response

    def _check(self, request: web.Request) -> None:
        if names_a_token(request.query):
            raise HttpError(
                400,
                "token_in_url",
                "a secret never goes into the URL, where logs keep it: send it as Authorization: Bearer "
                'SECRET, or as the first WebSocket message {"action":"auth","token":"SECRET"}',
            )
        policy = self.policy
        if policy is None:
            raise HttpError(503, "starting", "the daemon is starting; try again", retry_after_s=1)
        host = request.headers.get("Host")
        if not policy.answers(host):
            raise HttpError(
                403, "host_not_allowed", "without API_TOKENS only this machine's own names are answered"
            )
        origins = request.headers.getall("Origin", [])
        if len(origins) > 1 or not policy.allows(origins[0] if origins else None, host):
            raise HttpError(
                403, "origin_not_allowed", "this page may not talk to the daemon: see API_ALLOWED_ORIGINS"
            )
        if request.path == "/ws" and not origins and "Mozilla/" in request.headers.get("User-Agent", ""):
            # Every browser calls itself so, and names the page with every handshake. Node's WebSocket, which
            # sends a browser's Sec-Fetch-Mode without an Origin, is a program.
            raise HttpError(403, "origin_not_allowed", "a browser must send the Origin of its page")
        request[PRINCIPAL] = Principal(ANONYMOUS)
        if request.method != "OPTIONS" and self._needs_token(request):
            request[PRINCIPAL] = self._principal(request)

    def _principal(self, request: web.Request) -> Principal:
        """Return who asks. Raises 401 without a valid token, 403 when it is not for this address."""
        secret = bearer_secret(request.headers.get("Authorization"))
        if secret is None:
            raise HttpError(401, "unauthorized", "send a token as Authorization: Bearer SECRET")
        principal = self._authenticator.check(secret)
        if principal is None:
            raise HttpError(401, "unauthorized", "the token is not valid")
        for beginning, scope in _SCOPES:
            if request.path.startswith(beginning) and not principal.grant.allows(scope):
                raise HttpError(403, "forbidden", f"this token lacks the scope {scope}")
        return principal

    def _needs_token(self, request: web.Request) -> bool:
        path = request.path
        if not self._authenticator.required or path in _FREE or path.startswith("/static/"):
            return False
        if path == "/ws":
            # It judges the header itself: a first message may bring the token instead.
            return False
        return path not in _FREE_ON_THIS_MACHINE or not _comes_from_this_machine(request)

    def add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        """Add what every answer carries; a handler that begins its answer itself calls this before."""
        response.headers.update(SECURITY_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        origin = request.headers.get("Origin")
        if origin is not None and self.policy is not None and self.policy.lists(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"
        response.headers["Vary"] = "Origin"


class JsonRequestHandler(RequestHandler):
    """aiohttp's HTTP connection, with refusals of malformed requests and crashes in our shape.

    `gone()` is called once, when the connection has ended, and so is `on_lost`, for the handler at work.
    """

    __slots__ = ("_gone", "on_lost")

    def __init__(self, manager: web.Server, gone: Callable[[], None], **options: Any) -> None:
        super().__init__(manager, **options)
        self._gone: Callable[[], None] | None = gone
        self.on_lost: Callable[[], None] | None = None

    def connection_lost(self, exc: BaseException | None) -> None:
        """Let go of the connection."""
        gone, self._gone = self._gone, None
        if gone is not None:
            gone()
        if self.on_lost is not None:
            self.on_lost()
        super().connection_lost(exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,  # noqa: ARG002 - may quote what the client sent
    ) -> web.StreamResponse:
        """Answer a request that could not be read, or whose handler failed."""
        if status >= 500:
            _log.error("request_failed", method=request.method, path=request.path, exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer has begun already; the connection is closed")
        code = "internal" if status >= 500 else _ERROR_CODES.get(status, "bad_request")
        text = "something went wrong here; the log says what" if status >= 500 else "not a valid HTTP request"
        response = error_response(status, code, text, SECURITY_HEADERS)
        response.force_close()
        return response


def _comes_from_this_machine(request: web.Request) -> bool:
    return is_loopback(request.remote or "") and not any(name in request.headers for name in _FORWARDED)


def _preflight() -> web.Response:
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Methods": "GET, HEAD",
            "Access-Control-Allow-Headers": "Authorization",
            "Access-Control-Max-Age": "600",
        },
    )


def _as_json(error: web.HTTPException) -> web.Response:
    status = error.status
    texts = {
        404: "there is nothing at this address",
        405: "this address does not take that method",
        413: "the request is too large",
    }
    headers = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
    return error_response(
        status, _ERROR_CODES.get(status, "refused"), texts.get(status, error.reason), headers
    )
