"""Talks to a running daemon over its own HTTP and WebSocket interface; behind `status` and `tap`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import aiohttp

from services.errors import ConfigurationError, TemporaryError

_LARGEST_FRAME_BYTES = 8 << 20


def _headers(token: str | None) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


async def fetch(api_url: str, path: str, token: str | None, *, within_s: float = 5.0) -> Any:
    """Return the JSON answer of `GET path`. Raises `TemporaryError` when there is none within `within_s`."""
    return await _ask("GET", api_url, path, token, None, within_s)


async def send(api_url: str, path: str, token: str | None, body: dict[str, Any]) -> Any:
    """Return the JSON answer of `POST path`. Raises `TemporaryError` when the daemon does not answer."""
    return await _ask("POST", api_url, path, token, body, 5.0)


async def _ask(
    method: str, api_url: str, path: str, token: str | None, body: dict[str, Any] | None, within_s: float
) -> Any:
    timeout = aiohttp.ClientTimeout(total=within_s, sock_connect=2)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, headers=_headers(token)) as session,
            session.request(method, f"{api_url}{path}", json=body) as response,
        ):
            answer = await response.json()
            if response.status == 401:
                raise ConfigurationError("the daemon refuses our token: set API_TOKENS as the daemon has it")
            return answer
    except (aiohttp.ClientError, TimeoutError) as error:
        raise TemporaryError(
            f"the daemon at {api_url} does not answer: {error or type(error).__name__}"
        ) from error


async def tap(api_url: str, token: str | None, instruments: Sequence[str]) -> AsyncIterator[dict[str, Any]]:
    """Yield every message the daemon sends for `instruments` (wildcards allowed), every tick of them.

    Raises `TemporaryError` when the connection is refused or ends, `ConfigurationError` when nothing
    of what was asked for exists.
    """
    url = f"{api_url.replace('http', 'ws', 1)}/ws"
    try:
        async with (
            aiohttp.ClientSession(headers=_headers(token)) as session,
            session.ws_connect(url, max_msg_size=_LARGEST_FRAME_BYTES, heartbeat=20) as socket,
        ):
            await socket.send_json(
                {
                    "action": "subscribe",
                    "id": 1,
                    "instruments": list(instruments),
                    "channels": ["tick"],
                    "delivery": "all",
                }
            )
            async for message in socket:
                if message.type is not aiohttp.WSMsgType.TEXT:
                    break
                record = message.json()
                if record.get("type") == "error":
                    raise ConfigurationError(f"{record.get('code')}: {record.get('message')}")
                if record.get("type") == "subscribed" and not record.get("accepted"):
                    refused = ", ".join(f"{key} ({why})" for key, why in record.get("rejected", {}).items())
                    raise ConfigurationError(f"nothing to show: {refused or 'no instrument matches'}")
                yield record
            raise TemporaryError(f"the daemon closed the connection (code {socket.close_code})")
    except aiohttp.WSServerHandshakeError as error:
        if error.status == 401:
            raise ConfigurationError(
                "the daemon refuses our token: set API_TOKENS as the daemon has it"
            ) from error
        raise TemporaryError(f"the daemon at {api_url} answered {error.status}") from error
    except aiohttp.ClientError as error:
        raise TemporaryError(f"the daemon at {api_url} does not answer: {error}") from error
