"""How HTTP requests are refused: one JSON shape, the right status, never a trace."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from aiohttp import web

from services.errors import MarketdError


class HttpError(MarketdError):
    """A request that is answered with an error. `retry_after_s` becomes the `Retry-After` header."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        headers: Mapping[str, str] | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(retry_after_s)
        if status == 401:
            self.headers["WWW-Authenticate"] = 'Bearer realm="marketd"'

    def response(self) -> web.Response:
        """Return the answer to send."""
        return error_response(self.status, self.code, str(self), self.headers)


def error_response(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> web.Response:
    """Return `{"error":{"code","message"}}` with a status."""
    return web.Response(
        status=status,
        body=msgspec.json.encode({"error": {"code": code, "message": message}}),
        content_type="application/json",
        headers=headers,
    )
