"""The accounts and access tokens of the simulated Dhan: made, accepted, expired, renewed.

Stands beside the Dhan simulator's feed and REST paths. A token is a JWT with the claims the vendor's
tokens carry, signed with a key of this process: good for nothing anywhere else.
Source: claims of published expired tokens; DhanHQ v2 authentication documentation.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import itertools
import secrets
import time

import msgspec

TOKEN_LIFE_S = 24 * 3600
CLIENT_ID = "1000000001"


class TokenBook:
    """Which tokens are good for which client.

    `client_id` is the one account; `current` its newest token. `accept` adds tokens made elsewhere.
    """

    def __init__(self, client_id: str = CLIENT_ID) -> None:
        self.client_id = client_id
        self._key = secrets.token_bytes(32)
        self._serial = itertools.count(1)
        self._accepted: dict[str, str] = {}
        self._expired: set[str] = set()
        self.current = self.issue()

    def issue(self, *, consumer: str = "SELF", life_s: int = TOKEN_LIFE_S) -> str:
        """Make and accept a new token; `consumer` is `SELF` (made on the web) or `APP` (by PIN and TOTP)."""
        now = int(time.time())
        claims = {
            "iss": "dhan",
            "partnerId": "",
            "exp": now + life_s,
            "iat": now,
            "tokenConsumerType": consumer,
            "webhookUrl": "",
            "dhanClientId": self.client_id,
            "jti": str(next(self._serial)),
        }
        head = _base64url(msgspec.json.encode({"typ": "JWT", "alg": "HS512"}))
        body = _base64url(msgspec.json.encode(claims))
        signature = hmac.new(self._key, f"{head}.{body}".encode(), hashlib.sha512).digest()
        self.current = f"{head}.{body}.{_base64url(signature)}"
        self._accepted[self.current] = self.client_id
        return self.current

    def accept(self, token: str, client_id: str | None = None) -> None:
        """Accept a token made elsewhere, for this client id."""
        self._accepted[token] = client_id or self.client_id
        self._expired.discard(token)

    def expire(self, token: str | None = None) -> str:
        """Let a token (default: the current one) expire; return it."""
        chosen = token or self.current
        self._accepted.pop(chosen, None)
        self._expired.add(chosen)
        return chosen

    def renew(self, token: str) -> str | None:
        """Exchange a good token for a new one; the old one expires. None for a bad one."""
        if token not in self._accepted:
            return None
        self.expire(token)
        return self.issue()

    def refusal(self, token: str, client_id: str) -> int | None:
        """Return why this pair is refused, as Dhan's reason code, or None when it is good."""
        owner = self._accepted.get(token)
        until_s = expiry_s(token) if owner is not None else None
        if token in self._expired or (until_s is not None and until_s <= time.time()):
            return 807
        if owner is None:
            return 809
        return None if owner == client_id else 810


def expiry_s(token: str) -> int | None:
    """Return the `exp` claim of a token in UTC seconds, None when it has none."""
    claim = _claims(token).get("exp")
    return claim if isinstance(claim, int) else None


def consumer_type(token: str) -> str:
    """Return the `tokenConsumerType` claim, empty when there is none."""
    return str(_claims(token).get("tokenConsumerType", ""))


def _claims(token: str) -> dict[str, object]:
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        body = base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4))
        claims = msgspec.json.decode(body)
    except (ValueError, msgspec.DecodeError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
