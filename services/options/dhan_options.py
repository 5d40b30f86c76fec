"""Dhan as a source of option chains: asks, keeps within the limits, and says what a refusal means.

Source: DhanHQ v2 documentation (option chain, errors, rate limits). The account's data limit is five
requests a second for everything, past bars too: the quota is shared with them. The limit of one unique
request in three seconds is kept by the manager, which gives the same answer to all who ask meanwhile.
"""

from __future__ import annotations

from typing import Any

import msgspec

from services.base_provider import credential_expiry_ms
from services.errors import (
    CredentialsMissing,
    CredentialsRejected,
    ProviderError,
    ProviderRateLimited,
    UnexpectedAnswer,
)
from services.market_data.clock import Clock
from services.on_demand_provider import OpenInterest, OptionChain, OptionsDataProvider, chain_of
from services.options.open_interest import open_interest_of
from services.options.source import LEFT_FOR_HISTORY, PATIENCE_S, Settings, Underlying
from services.provider_lifecycle import CredentialGate
from services.rest.client import RestAnswer, RestClient, common_refusal
from services.rest.quota import Quota
from services.wire import dhan_options as wire
from services.wire.option_fields import INDIA, INDIAN_EXPIRY, expiry_day, expiry_moment_s

CODE = "DHAN"
DEFAULT_URL = "https://api.dhan.co/v2"
_CREDENTIALS = ("DHAN_CLIENT_ID", "DHAN_ACCESS_TOKEN")
_TOO_MANY = frozenset({"DH-904", "805"})
_REFUSED = frozenset({"DH-901", "DH-902", "DH-903", "DH-906", "806", "807", "808", "809", "810"})


def symbol_of(underlying: Underlying) -> str | None:
    """Return `SEGMENT:SECURITY_ID`, None when Dhan does not know the underlying."""
    mapping = underlying.mappings.get(CODE)
    if mapping is None or not mapping.segment or not mapping.security_id:
        return None
    return f"{mapping.segment}:{mapping.security_id}"


class DhanOptions(OptionsDataProvider):
    """Option chains of NSE, BSE and MCX. Symbols are `SEGMENT:SECURITY_ID`, as in `IDX_I:13`.

    A token that was refused is not tried again until it changes. Errors: `CredentialsMissing`,
    `CredentialsRejected`, `ProviderRateLimited`, `ProviderUnavailable`, `WireFormatError`.
    """

    def __init__(self, settings: Settings, clock: Clock, quota: Quota) -> None:
        self._settings = settings
        self._clock = clock
        self._client = RestClient("Dhan", clock)
        self._quota = quota
        self._gate = CredentialGate(settings, code=CODE, credential_names=_CREDENTIALS)

    async def get_option_chain(self, symbol: str, expiry: int) -> OptionChain:
        """Return every leg of `symbol` at `expiry` (UTC epoch s)."""
        segment, _, security_id = symbol.partition(":")
        day = expiry_day(expiry, INDIA)
        answer = await self._ask(wire.CHAIN_PATH, wire.chain_body(security_id, segment, day))
        return chain_of(wire.parse_chain(answer.body, expiry=day, received_ms=answer.received_ms))

    async def get_expiry_dates(self, symbol: str) -> list[int]:
        """Return the expiries (end of the day's session, UTC epoch s), ascending."""
        segment, _, security_id = symbol.partition(":")
        answer = await self._ask(wire.EXPIRIES_PATH, wire.underlying_body(security_id, segment))
        return [expiry_moment_s(day, INDIA, INDIAN_EXPIRY) for day in wire.parse_expiries(answer.body)]

    async def get_oi_data(self, symbol: str, expiry: int, time_s: int | None = None) -> list[OpenInterest]:
        """Return open interest by strike as of now. Raises `ValueError` for a time: Dhan keeps none."""
        if time_s is not None:
            raise ValueError("Dhan has no open interest of earlier times")
        return open_interest_of(await self.get_option_chain(symbol, expiry))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _ask(self, path: str, body: dict[str, Any]) -> RestAnswer:
        blocked = self._gate.blocked()
        if blocked is not None:
            raise blocked
        settings = self._settings()
        token = settings["DHAN_ACCESS_TOKEN"]
        expires_ms = credential_expiry_ms(token)
        if expires_ms is not None and expires_ms <= self._clock.now_ms():
            raise CredentialsMissing("Dhan's access token has expired", reason="token_expired")
        await self._quota.take(PATIENCE_S, leave=LEFT_FOR_HISTORY)
        fingerprint = self._gate.fingerprint()
        base = settings.get("DHAN_REST_URL") or DEFAULT_URL
        headers = {"access-token": token, "client-id": settings["DHAN_CLIENT_ID"]}
        answer = await self._client.post(base.rstrip("/") + path, body, headers=headers)
        refusal = refusal_of(answer)
        if refusal is not None:
            if isinstance(refusal, CredentialsRejected):
                self._gate.condemn(fingerprint, refusal)
            elif isinstance(refusal, ProviderRateLimited):
                self._quota.pause(refusal.retry_after_s or wire.SECONDS_PER_REQUEST, str(refusal))
            raise refusal
        return answer


class _Body(msgspec.Struct):
    errorCode: str | None = None  # noqa: N815 - the vendor's name
    errorMessage: str | None = None  # noqa: N815
    data: Any = None
    status: str | None = None


def refusal_of(answer: RestAnswer) -> ProviderError | None:
    """Return what an answer of Dhan's refuses, None when it refuses nothing.

    There are two styles: `errorCode` `DH-9xx`, and `{"data": {"805": "..."}, "status": "failed"}`. Bodies
    that are no JSON occur.
    """
    code, message = _code_of(answer.body)
    if code in _TOO_MANY:
        return ProviderRateLimited(
            f"Dhan: {message or code}", reason=code, retry_after_s=answer.retry_after_s
        )
    common = common_refusal("Dhan", answer)
    if common is not None:
        return common
    if code in _REFUSED or answer.status in (401, 403):
        return CredentialsRejected(
            f"Dhan refuses the credentials: {message or code or answer.status}", reason=code
        )
    if answer.status >= 300 or code:
        words = f"Dhan answers {answer.status}: {message or code or 'nothing readable'}"
        return UnexpectedAnswer(words[:200], reason=code or f"http_{answer.status}")
    return None


def _code_of(body: bytes) -> tuple[str, str]:
    try:
        found = msgspec.json.decode(body, type=_Body)
    except msgspec.DecodeError:
        return "", ""
    if found.errorCode:
        return found.errorCode, found.errorMessage or ""
    if found.status == "failed" and isinstance(found.data, dict):
        for code, message in found.data.items():
            return str(code), str(message)
    return "", ""
