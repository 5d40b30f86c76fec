"""What one client, and all of them together, may ask of the gateway.

Pure: no I/O. Times are on the monotonic clock, in seconds.
"""

from __future__ import annotations

import ipaddress
from collections import Counter, deque

import msgspec


class ClientLimits(msgspec.Struct, frozen=True, kw_only=True):
    """The limits of one gateway; the reaction to each stands in the table of close codes.

    A client that exceeds `messages_per_s` beyond `message_burst` is told `rate_limited` and closed; more
    than `errors_per_minute` refused messages end its session. `outbox_bytes` is what waits for one
    client with delivery `all`; beyond it the oldest ticks are skipped. `clients_per_address` does not
    hold for this machine's own addresses, `clients_per_token` not where no tokens are set.
    """

    clients: int = 2_000
    clients_per_address: int = 100
    clients_per_token: int = 500
    connections: int = 2_500
    instruments_per_client: int = 1_000
    paces_per_client: int = 8
    chains_per_client: int = 20
    messages_per_s: float = 20.0
    message_burst: int = 100
    errors_per_minute: int = 5
    outbox_bytes: int = 1024 * 1024
    authentication_s: float = 5.0
    closing_s: float = 2.0


def limits_for(clients: int) -> ClientLimits:
    """Return the usual limits for a gateway of so many clients; a quarter more connections may be open."""
    return ClientLimits(clients=clients, connections=clients + max(8, clients // 4))


class TokenBucket:
    """Allows `rate_per_s` on average and `burst` at once."""

    def __init__(self, rate_per_s: float, burst: int, now_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = float(burst)
        self._tokens = float(burst)
        self._at_s = now_s

    def take(self, now_s: float) -> bool:
        """Take one token; return False when there is none."""
        self._tokens = min(self._burst, self._tokens + (now_s - self._at_s) * self._rate_per_s)
        self._at_s = now_s
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


class ErrorBudget:
    """Allows `limit` errors in any minute."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._at_s: deque[float] = deque()

    def spend(self, now_s: float) -> bool:
        """Count one error; return False when that is more than a minute allows."""
        while self._at_s and now_s - self._at_s[0] >= 60.0:
            self._at_s.popleft()
        self._at_s.append(now_s)
        return len(self._at_s) < self._limit


class AddressCensus:
    """How many sessions each remote address holds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sessions: Counter[str] = Counter()

    def enter(self, address: str) -> bool:
        """Count one session in; return False, counting nothing, when the address has too many."""
        if not is_loopback(address) and self._sessions[address] >= self._limit:
            return False
        self._sessions[address] += 1
        return True

    def leave(self, address: str) -> None:
        """Count one session out."""
        self._sessions[address] -= 1
        if self._sessions[address] <= 0:
            del self._sessions[address]


def is_loopback(host: str) -> bool:
    """Tell whether a host name or address means this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)
