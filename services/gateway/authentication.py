"""Who may read: named tokens, compared in constant time, never taken from a URL.

Pure: no I/O. Without any token the gateway is open, which it allows on a loopback bind only.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Mapping

import msgspec

ANONYMOUS = "anonymous"

_TOKEN_NAMES = frozenset({"token", "access_token", "api_key", "apikey", "authorization", "auth"})


class Principal(msgspec.Struct, frozen=True):
    """Who a request or a session belongs to, by the name of its token."""

    name: str


class Authenticator:
    """Checks secrets against the configured tokens."""

    def __init__(self, tokens: Mapping[str, str]) -> None:
        self._tokens = [(name, secret.encode()) for name, secret in tokens.items()]

    def replace(self, tokens: Mapping[str, str]) -> frozenset[str]:
        """Use other tokens from now on; return the names whose holders may no longer read.

        Those are names that have gone or have another secret now; also the unnamed, once there are tokens.
        """
        before, self._tokens = self._tokens, [(name, secret.encode()) for name, secret in tokens.items()]
        kept = set(self._tokens)
        gone = {name for name, secret in before if (name, secret) not in kept}
        if not before and tokens:
            gone.add(ANONYMOUS)
        return frozenset(gone)

    @property
    def required(self) -> bool:
        """Whether a secret is needed at all."""
        return bool(self._tokens)

    def check(self, secret: str) -> Principal | None:
        """Return whose secret this is, or None. Takes the same time for every wrong one."""
        given = secret.encode(errors="surrogateescape")
        found: Principal | None = None if self._tokens else Principal(ANONYMOUS)
        for name, expected in self._tokens:
            # No early end: the time taken must not tell how far down the list a secret stands.
            if hmac.compare_digest(given, expected):
                found = Principal(name)
        return found


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
