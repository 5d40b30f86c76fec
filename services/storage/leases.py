"""Leases: instruments that consumers of the Redis streams ask for with a plain `ZADD md:interest`."""

from __future__ import annotations

from redis.asyncio import Redis

from services.storage.keys import INTEREST


async def leased_instruments(client: Redis, now_ms: int) -> set[str]:
    """Return the members of `md:interest` whose lease has not expired; expired ones are removed.

    The score is the expiry in UTC epoch ms. Raises redis-py's errors when Redis does not answer.
    """
    await client.zremrangebyscore(INTEREST, "-inf", f"({now_ms}")
    members = await client.zrangebyscore(INTEREST, now_ms, "+inf")
    return {
        member.decode("utf-8", "replace") if isinstance(member, bytes) else str(member) for member in members
    }
