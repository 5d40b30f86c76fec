"""Who may read: named tokens, compared in constant time, never taken from a URL.

Pure: no I/O. Without any token the gateway is open, which it allows on a loopback bind only.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable, Mapping

import msgspec

from services.gateway.grants import EVERYTHING, Grant, parse_secret

ANONYMOUS = "anonymous"

_TOKEN_NAMES = frozenset({"token", "access_token", "api_key", "apikey", "authorization", "auth"})


class Principal(msgspec.Struct, frozen=True):
    """Who a request or a session belongs to, by the name of its token, and what it may do."""

    name: str
    grant: Grant = EVERYTHING


class Authenticator:
    """Checks secrets against the configured tokens: name to `secret[:scopes[@instruments]]`."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        """Take the tokens. Raises ValueError for one whose scopes do not read."""
        # Secrets are kept and compared as digests: all of one length, and useless to whoever sees them.
        self._key = secrets.token_bytes(32)
        self._tokens = self._digested(tokens)

    def replace(self, tokens: Mapping[str, str]) -> tuple[frozenset[str], frozenset[str]]:
        """Use other tokens from now on; return the names that were revoked, and those with other rights now.

        Revoked are names that have gone or have another secret; also the unnamed, once there are tokens.
        Raises ValueError, changing nothing, for a token whose scopes do not read.
        """
        before, self._tokens = self._tokens, self._digested(tokens)
        now = {principal.name: (digest, principal.grant) for digest, principal in self._tokens}
        revoked, changed = set(), set()
        for digest, principal in before:
            digest_now, grant_now = now.get(principal.name, (b"", EVERYTHING))
            if not hmac.compare_digest(digest, digest_now):
                revoked.add(principal.name)
            elif grant_now != principal.grant:
                changed.add(principal.name)
        if not before and tokens:
            revoked.add(ANONYMOUS)
        return frozenset(revoked), frozenset(changed)

    @property
    def required(self) -> bool:
        """Whether a secret is needed at all."""
        return bool(self._tokens)

    def check(self, secret: str) -> Principal | None:
        """Return whose secret this is, or None. Takes the same time for every wrong one."""
        given = self._digest(secret)
        found: Principal | None = None if self._tokens else Principal(ANONYMOUS)
        for expected, principal in self._tokens:
            # No early end: the time taken must not tell how far down the list a secret stands.
            if hmac.compare_digest(given, expected):
                found = principal
        return found

    def _digested(self, tokens: Mapping[str, str]) -> list[tuple[bytes, Principal]]:
        digested = []
        for name, text in tokens.items():
            secret, grant = parse_secret(text)
            digested.append((self._digest(secret), Principal(name, grant)))
        return digested

    def _digest(self, secret: str) -> bytes:
        return hashlib.blake2b(secret.encode(errors="surrogateescape"), key=self._key).digest()


def bearer_secret(header: str | None) -> str | None:
    """Return the secret of an `Authorization: Bearer …` header, None when there is none of that kind."""
    if header is None:
        return None
    scheme, _, secret = header.strip().partition(" ")
    secret = secret.strip()
    return secret if scheme.lower() == "bearer" and secret else None


def names_a_token(query_names: Iterable[str]) -> bool:
    """Tell whether a URL's query carries what looks like a secret, which we refuse to read there."""
    return any(name.lower() in _TOKEN_NAMES for name in query_names)
