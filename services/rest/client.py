"""A REST client for vendors: bounded in time and size, its troubles told as errors of `services.errors`.

Stands beneath everything that asks a vendor instead of listening to it. It knows no vendor: what a status
or a body means is for its user to say. Never logs a header, a body or a query: secrets may be in them.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from http.cookies import SimpleCookie
from typing import Any, NamedTuple

import aiohttp
from yarl import URL

from services.errors import ProviderRateLimited, ProviderUnavailable, WireFormatError
from services.market_data.clock import Clock
from services.redaction import redact

LARGEST_BODY_BYTES = 32 << 20
_PIECE_BYTES = 64 << 10


class RestAnswer(NamedTuple):
    """What came back; `received_ms` is UTC epoch ms."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    received_ms: int

    @property
    def retry_after_s(self) -> float | None:
        """How long the vendor asks to wait, in seconds; None where it does not say."""
        text = self.headers.get("Retry-After", "").strip()
        return float(text) if text.isascii() and text.isdigit() and len(text) < 7 else None


class RestClient:
    """Asks one vendor. Connects at the first request; `close` it when done. Cookies are kept.

    Raises `ProviderUnavailable` when there is no answer within `timeout_s`, `WireFormatError` when the
    answer is larger than anything the vendor has reason to send.
    """

    def __init__(
        self, vendor: str, clock: Clock, *, timeout_s: float = 10.0, headers: Mapping[str, str] | None = None
    ) -> None:
        self._vendor = vendor
        self._clock = clock
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(5.0, timeout_s))
        self._headers = dict(headers or {})
        self._session: aiohttp.ClientSession | None = None

    async def get(
        self, url: str, *, query: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> RestAnswer:
        """Return the answer to a GET of `url`, whatever its status."""
        return await self._ask("GET", url, query=query, headers=headers)

    async def post(self, url: str, body: Any, *, headers: Mapping[str, str] | None = None) -> RestAnswer:
        """Return the answer to a POST of `body` as JSON, whatever its status."""
        return await self._ask("POST", url, body=body, headers=headers)

    def forget_cookies(self) -> None:
        """Begin anew: the next request carries no cookie."""
        if self._session is not None:
            self._session.cookie_jar.clear()

    def cookies(self, url: str) -> SimpleCookie:
        """Return the cookies that a request to `url` would carry."""
        return SimpleCookie() if self._session is None else self._session.cookie_jar.filter_cookies(URL(url))  # type: ignore[return-value]

    async def close(self) -> None:
        """Close all connections; harmless when there are none."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(
        self,
        method: str,
        url: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> RestAnswer:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=self._timeout,
                headers=self._headers,
                cookie_jar=aiohttp.CookieJar(unsafe=True),
                json_serialize=json.dumps,
            )
        try:
            # Whoever quoted the path has done it: `^` and `=` of symbols must not be quoted twice.
            async with self._session.request(
                method,
                URL(url, encoded=True),
                params=query,
                json=body,
                headers=headers,
                allow_redirects=False,
            ) as answer:
                content = await self._read(answer)
                return RestAnswer(answer.status, answer.headers, content, self._clock.now_ms())
        except TimeoutError as error:
            raise ProviderUnavailable(f"{self._vendor} did not answer in time", reason="timeout") from error
        except (aiohttp.ClientError, OSError, asyncio.IncompleteReadError) as error:
            words = redact(str(error))[:200] or type(error).__name__
            raise ProviderUnavailable(
                f"{self._vendor} cannot be asked: {words}", reason="unreachable"
            ) from error

    async def _read(self, answer: aiohttp.ClientResponse) -> bytes:
        pieces, size = [], 0
        async for piece in answer.content.iter_chunked(_PIECE_BYTES):
            size += len(piece)
            if size > LARGEST_BODY_BYTES:
                raise WireFormatError(
                    "too_large", f"{self._vendor} sends more than {LARGEST_BODY_BYTES >> 20} MiB"
                )
            pieces.append(piece)
        return b"".join(pieces)


def common_refusal(vendor: str, answer: RestAnswer) -> ProviderUnavailable | ProviderRateLimited | None:
    """Return what a status means that says the same at every vendor; None where its user must judge."""
    if answer.status == 429:
        wait = answer.retry_after_s
        return ProviderRateLimited(
            f"{vendor} says we ask too often" + (f"; again in {wait:.0f} s" if wait else ""),
            reason="http_429",
            retry_after_s=wait,
        )
    if answer.status >= 500:
        return ProviderUnavailable(f"{vendor} answers {answer.status}", reason=f"http_{answer.status}")
    return None
