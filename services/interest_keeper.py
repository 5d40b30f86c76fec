"""Keeps leases on what the clients of a gateway process watch, so that the ingest daemon subscribes it.

The counterpart of `subscriptions` in a process without providers. What clients watch is leased in
`md:interest` and renewed while they do; what they watch no longer is let expire, because another consumer may
have leased it, too. However fast clients come and go, Redis hears of it ten times a second at most.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection
from typing import Any

import structlog
from redis.exceptions import RedisError

from services.market_data.clock import Clock
from services.storage.attending import attended
from services.storage.client import storage_error
from services.storage.keys import INTEREST
from services.storage.leases import lease_instruments

_log = structlog.get_logger(__name__)

LEASE_S = 30.0
RENEW_EVERY_S = 10.0
_SETTLE_S = 0.1


class InterestKeeper:
    """Leases what is `watched()` (keys, `EXCHANGE:*`) while `needed()`: while ingestion follows interest.

    `key` is another sorted set than `md:interest` where it is not ticks that are wanted.
    """

    def __init__(
        self,
        redis_url: str,
        clock: Clock,
        *,
        watched: Callable[[], Collection[str]],
        needed: Callable[[], bool],
        key: str = INTEREST,
    ) -> None:
        self._redis_url = redis_url
        self._key = key
        self._clock = clock
        self._watched = watched
        self._needed = needed
        self._leased: frozenset[str] = frozenset()
        self._wake = asyncio.Event()
        self.renewals = 0
        self.reason = ""

    def changed(self) -> None:
        """Look soon: a client began or ceased to watch something."""
        self._wake.set()

    async def run(self) -> None:
        """Lease and renew until cancelled; while Redis is away it is asked again every second."""
        renew_due_s = 0.0
        async with attended(self._redis_url, name="marketd:interest") as (client, goes_on):
            while goes_on():
                now_s = self._clock.monotonic_s()
                watched = frozenset(self._watched()) if self._needed() else frozenset()
                due = now_s >= renew_due_s
                wanted = watched if due else watched - self._leased
                try:
                    if wanted:
                        until_ms = self._clock.now_ms() + int(LEASE_S * 1000)
                        await lease_instruments(client, wanted, until_ms, self._key)
                except (RedisError, OSError) as error:
                    self._failed(error)
                    renew_due_s = 0.0
                    self._leased = frozenset()
                else:
                    self.reason = ""
                    self._leased = watched
                    if due:
                        renew_due_s = now_s + RENEW_EVERY_S
                        self.renewals += 1
                await asyncio.sleep(_SETTLE_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await self._wake.wait()
                self._wake.clear()

    def status(self) -> dict[str, Any]:
        """Return how much is leased, and why not if it cannot be."""
        mode = "leases" if self._needed() else "static"
        return {"mode": mode, "leased": len(self._leased), "renewals": self.renewals, "reason": self.reason}

    def _failed(self, error: Exception) -> None:
        reason = str(storage_error(error) if isinstance(error, RedisError) else error)
        if not self.reason:
            _log.warning("interest_not_leased", reason=reason)
        self.reason = reason
