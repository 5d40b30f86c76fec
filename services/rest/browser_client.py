"""A REST client with a browser's TLS handshake, for vendors that answer others with 429. GET only.

Beside `client.py`, with the same answers and errors; `curl_cffi` does the handshake. Requests run in threads,
with a connection each. Cookies are kept for the next request. Never logs what it sends or gets.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from services.errors import ProviderUnavailable, WireFormatError
from services.market_data.clock import Clock
from services.rest.client import LARGEST_BODY_BYTES, RestAnswer


class BrowserClient:
    """Asks one vendor. Connects at the first request; `close` it when done.

    Raises `ProviderUnavailable` when there is no answer within `timeout_s`, `WireFormatError` when the
    answer is larger than anything the vendor has reason to send.
    """

    def __init__(self, vendor: str, clock: Clock, *, timeout_s: float = 15.0) -> None:
        self._vendor = vendor
        self._clock = clock
        self._timeout_s = timeout_s
        self._session: Any = None

    async def get(self, url: str, *, query: Mapping[str, str] | None = None) -> RestAnswer:
        """Return the answer to a GET of `url`, whatever its status."""
        try:
            async with asyncio.timeout(self._timeout_s + 2.0):
                status, headers, body = await asyncio.to_thread(self._get_blocking, url, query)
        except TimeoutError as error:
            raise ProviderUnavailable(f"{self._vendor} did not answer in time", reason="timeout") from error
        if len(body) > LARGEST_BODY_BYTES:
            raise WireFormatError(
                "too_large", f"{self._vendor} sends more than {LARGEST_BODY_BYTES >> 20} MiB"
            )
        return RestAnswer(status, headers, body, self._clock.now_ms())

    def forget_cookies(self) -> None:
        """Begin anew: the next request carries no cookie."""
        if self._session is not None:
            self._session.cookies.clear()

    async def close(self) -> None:
        """Close all connections; harmless when there are none."""
        session, self._session = self._session, None
        if session is not None:
            await asyncio.to_thread(session.close)

    def _get_blocking(
        self, url: str, query: Mapping[str, str] | None
    ) -> tuple[int, Mapping[str, str], bytes]:
        # Loaded at the first request: it takes a quarter of a second.
        from curl_cffi import requests
        from curl_cffi.requests.exceptions import RequestException, Timeout

        if self._session is None:
            self._session = requests.Session(impersonate="chrome", timeout=self._timeout_s)
        try:
            answer = self._session.get(url, params=dict(query) if query else None)
        except Timeout as error:
            raise ProviderUnavailable(f"{self._vendor} did not answer in time", reason="timeout") from error
        except RequestException as error:
            raise ProviderUnavailable(
                f"{self._vendor} cannot be reached: {type(error).__name__}", reason="unreachable"
            ) from error
        return int(answer.status_code), answer.headers, bytes(answer.content)
