"""Leases: instruments that consumers of the Redis streams ask for with a plain `ZADD md:interest`.

Gateways that run as processes of their own are such consumers: what their clients watch is leased.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from redis.asyncio import Redis

from services.storage.keys import INTEREST

_LEASED_AT_ONCE = 1_000


async def leased_instruments(client: Redis, now_ms: int, key: str = INTEREST) -> set[str]:
    """Return the members of `key` whose lease has not expired; expired ones are removed.

    The score is the expiry in UTC epoch ms. Raises redis-py's errors when Redis does not answer.
    """
    await client.zremrangebyscore(key, "-inf", f"({now_ms}")
    members = await client.zrangebyscore(key, now_ms, "+inf")
    return {
        member.decode("utf-8", "replace") if isinstance(member, bytes) else str(member) for member in members
    }


async def lease_instruments(
    client: Redis, instruments: Iterable[str], expiry_ms: int, key: str = INTEREST
) -> None:
    """Ask for `instruments` until `expiry_ms`, UTC epoch ms; a lease that lasts longer is left as it is.

    Raises redis-py's errors when Redis does not answer.
    """
    left = iter(instruments)
    while batch := dict.fromkeys(islice(left, _LEASED_AT_ONCE), expiry_ms):
        await client.zadd(key, batch, gt=True)
