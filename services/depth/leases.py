"""DepthLeases: depth that consumers of the Redis streams ask for with a plain `ZADD md:depth_interest`.

A member is an instrument key and a number of levels (`NSE:RELIANCE 20`; the key alone means 5), its score
when the lease ends, UTC epoch ms. Stands between Redis and the desk, where a lease counts like any interest.
"""

from __future__ import annotations

import asyncio
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.depth.desk import DepthDesk
from services.errors import RequestRefused
from services.market_data.clock import Clock
from services.storage.attending import attended
from services.storage.keys import DEPTH_INTEREST
from services.storage.leases import leased_instruments

_log = structlog.get_logger(__name__)

POLL_S = 1.0
MOST_LEASES = 30_000
_SHOWN = 20


class DepthLeases:
    """Keeps the desk's interest at what is leased. `run` it while leading."""

    def __init__(self, desk: DepthDesk, redis_url: str, clock: Clock) -> None:
        self._desk = desk
        self._redis_url = redis_url
        self._clock = clock
        self._held: dict[str, tuple[str, int]] = {}
        self._refused: dict[str, str] = {}

    async def run(self) -> None:
        """Follow the leases until cancelled; while Redis is away they stand as they were last seen."""
        try:
            async with attended(self._redis_url, name="marketd:depth_interest") as (client, goes_on):
                while goes_on():
                    try:
                        await self.look(client)
                    except (RedisError, OSError) as error:
                        _log.debug("depth_leases_not_read", error=str(error))
                    await asyncio.sleep(POLL_S)
        finally:
            self._let_go(list(self._held))

    async def look(self, client: Redis) -> None:
        """Read the leases once. Raises redis-py's errors."""
        members = await leased_instruments(client, self._clock.now_ms(), DEPTH_INTEREST)
        self._let_go([member for member in self._held if member not in members])
        self._refused = {member: why for member, why in self._refused.items() if member in members}
        for member in sorted(members.difference(self._held))[: MOST_LEASES - len(self._held)]:
            instrument, _, text = member.partition(" ")
            levels = int(text) if text.isascii() and text.isdigit() else 0 if text else 5
            try:
                self._desk.want(instrument, levels)
            except RequestRefused as refused:
                if self._refused.get(member) != refused.reason:
                    _log.info("depth_lease_refused", member=member[:80], reason=refused.reason)
                self._refused[member] = refused.reason
            else:
                self._held[member] = (instrument, levels)
                self._refused.pop(member, None)

    def status(self) -> dict[str, Any]:
        """Return how many leases are held, and why others are not."""
        return {"held": len(self._held), "refused": dict(list(self._refused.items())[:_SHOWN])}

    def _let_go(self, members: list[str]) -> None:
        for member in members:
            self._desk.unwant(*self._held.pop(member))
