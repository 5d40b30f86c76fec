"""Where a provider's credentials stand, from missing to refused, and what that calls for. Pure.

Stands beneath the gate that every attempt to connect has to pass (`provider_lifecycle`), and beneath
the task that renews credentials ahead of their end (`credential_keeper`). Knows no secret: credentials
are compared by a number that the gate makes of them.

    missing  --set-->  untested  --the vendor took them-->  valid  --little time left-->  expiring
    untested, valid, expiring  --their end has come-->  expired     --the vendor said no-->  refused
    expired, refused  --other credentials-->  untested
"""

from __future__ import annotations

import base64
import binascii
from enum import Enum

import msgspec

EXPIRING_MS = 2 * 3_600_000
"""So long before their end credentials count as expiring."""
SETTLE_MS = 3_600_000
"""Credentials should outlast a session by this much, or they are renewed before it begins."""
BEFORE_OPEN_MS = 4 * 3_600_000
"""So long before a session opens, credentials that will not do are an administrator's concern."""


class CredentialState(str, Enum):
    """The words appear as they are in `/api/providers/status`."""

    MISSING = "missing"
    UNTESTED = "untested"
    VALID = "valid"
    EXPIRING = "expiring"
    EXPIRED = "expired"
    REFUSED = "refused"


DEAD = (CredentialState.MISSING, CredentialState.EXPIRED, CredentialState.REFUSED)
"""In these states not one attempt is made."""


class MarketHours(msgspec.Struct, frozen=True):
    """The sessions of a provider's exchanges at one moment, UTC epoch ms.

    `closes_ms` is the end of the sessions that run, else of the next; None where no hours are known.
    """

    open: bool
    next_open_ms: int | None = None
    closes_ms: int | None = None

    def is_quiet(self, now_ms: int) -> bool:
        """Tell whether nothing is traded now, nor soon enough for an administrator to mind."""
        if self.open or self.next_open_ms is None:
            return False
        return self.next_open_ms - now_ms > BEFORE_OPEN_MS


class CredentialBook:
    """What is known of the credentials seen so far, by their number. Small: the last refusal and proof."""

    def __init__(self) -> None:
        self._proven: int | None = None
        self._refused: int | None = None

    def proven(self, number: int) -> None:
        """Note that the vendor took these."""
        self._proven = number
        if self._refused == number:
            self._refused = None

    def refused(self, number: int) -> None:
        """Note that the vendor said no to these."""
        self._refused = number
        if self._proven == number:
            self._proven = None

    def state(self, number: int, *, missing: bool, expires_ms: int | None, now_ms: int) -> CredentialState:
        """Return where the credentials with this number stand."""
        if missing:
            return CredentialState.MISSING
        if expires_ms is not None and expires_ms <= now_ms:
            return CredentialState.EXPIRED
        if number == self._refused:
            return CredentialState.REFUSED
        if expires_ms is not None and expires_ms - now_ms <= EXPIRING_MS:
            return CredentialState.EXPIRING
        return CredentialState.VALID if number == self._proven else CredentialState.UNTESTED


def renewal_due(state: CredentialState, expires_ms: int | None, hours: MarketHours, now_ms: int) -> bool:
    """Tell whether credentials are to be renewed now.

    Once before each session that they would not outlast, while nothing is traded; else when little is
    left, because what has expired cannot be renewed any more.
    """
    if expires_ms is None or state in DEAD:
        return False
    if expires_ms - now_ms <= EXPIRING_MS:
        return True
    if hours.open or hours.next_open_ms is None or hours.closes_ms is None:
        return False
    soon = hours.next_open_ms - now_ms <= BEFORE_OPEN_MS
    return soon and expires_ms < hours.closes_ms + SETTLE_MS


def credential_expiry_ms(token: str) -> int | None:
    """Return when a JWT expires (its claim `exp`) in UTC epoch ms, None for any other kind of token.

    Reads the claim only; the signature is the vendor's business.
    """
    parts = token.strip().split(".")
    if len(parts) != 3:
        return None
    try:
        payload = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = msgspec.json.decode(payload)
    except (binascii.Error, ValueError, msgspec.DecodeError):
        return None
    expires_s = claims.get("exp") if isinstance(claims, dict) else None
    if isinstance(expires_s, bool) or not isinstance(expires_s, (int, float)) or not 0 < expires_s < 1e11:
        return None
    return int(expires_s * 1000)
