"""Dhan's account over REST: is a token good, and a new one for it before it ends.

Beside the Dhan provider, which streams. One request each, bounded in time; decides nothing about when.
Source: DhanHQ v2 documentation of authentication (`/profile`, `/RenewToken`) and its errors.
"""

from __future__ import annotations

from typing import Any

import aiohttp
import msgspec

from services.credential_state import credential_expiry_ms
from services.errors import CredentialsRejected, ProviderRateLimited, ProviderUnavailable

PROFILE_WITHIN_S = 3.0
RENEW_WITHIN_S = 20.0
_LARGEST_ANSWER = 64 * 1024
_REMEDY = "put a new DHAN_ACCESS_TOKEN in .env"


async def check_token(rest_url: str, client_id: str, token: str) -> None:
    """Ask Dhan for the profile of the token.

    Raises `CredentialsRejected` when Dhan refuses the pair or the account has no data plan, another
    `ProviderError` when nothing can be said.
    """
    headers = {"access-token": token, "client-id": client_id}
    answer = await _get(f"{rest_url.rstrip('/')}/profile", headers, PROFILE_WITHIN_S)
    plan = str(answer.get("dataPlan", "")).lower()
    if plan and plan != "active":
        raise CredentialsRejected(
            "the Dhan account has no active data plan: subscribe to the Data APIs at Dhan",
            reason="no_data_plan",
        )
    owner = str(answer.get("dhanClientId", ""))
    if owner and owner != client_id:
        raise CredentialsRejected(
            "the Dhan access token belongs to another client: correct DHAN_CLIENT_ID or DHAN_ACCESS_TOKEN",
            reason="client_id",
        )


async def renew_token(rest_url: str, client_id: str, token: str) -> str:
    """Exchange a token that is still good for one that lasts 24 hours; the old one ends at once.

    Raises `CredentialsRejected` when Dhan does not renew it (only tokens made on the web are), another
    `ProviderError` when it is not known whether it did.
    """
    headers = {"access-token": token, "dhanClientId": client_id}
    answer = await _get(f"{rest_url.rstrip('/')}/RenewToken", headers, RENEW_WITHIN_S, final=(400, 404, 405))
    fresh = answer.get("accessToken") or answer.get("token")
    if not isinstance(fresh, str) or not fresh.strip() or fresh == token:
        raise ProviderUnavailable("Dhan answers a renewal without a new token", reason="renewal_answer")
    if credential_expiry_ms(fresh) is None:
        raise ProviderUnavailable(
            "Dhan answers a renewal with a token without an end", reason="renewal_answer"
        )
    return fresh.strip()


async def _get(
    url: str, headers: dict[str, str], within_s: float, *, final: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Return the answer as an object. Answers with one of the statuses `final` are a no for good."""
    timeout = aiohttp.ClientTimeout(total=within_s)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(url, headers=headers, allow_redirects=False) as response,
        ):
            body = await response.content.read(_LARGEST_ANSWER)
            status, retry_after = response.status, response.headers.get("Retry-After", "")
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        # The text of these may hold what was sent.
        raise ProviderUnavailable(
            f"Dhan's REST service cannot be reached ({type(error).__name__})", reason="rest"
        ) from None
    answer = _decoded(body)
    code = str(answer.get("errorCode", ""))
    if status == 429 or code == "DH-904":
        raise ProviderRateLimited(
            "Dhan says we ask too often",
            reason="http_429",
            retry_after_s=float(retry_after) if retry_after.isdigit() else None,
        )
    if status in (401, 403, *final) or code in ("DH-901", "DH-902", "DH-903", "DH-906"):
        said = str(answer.get("errorMessage", "")) or f"HTTP {status}"
        raise CredentialsRejected(f"Dhan refuses the access token: {said}; {_REMEDY}", reason="token_refused")
    if not 200 <= status < 300 or code:
        raise ProviderUnavailable(f"Dhan's REST service answers {status} {code}".rstrip(), reason="rest")
    return answer


def _decoded(body: bytes) -> dict[str, Any]:
    """Return the object of an answer; answers that are no JSON occur."""
    try:
        found = msgspec.json.decode(body) if body else {}
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}
