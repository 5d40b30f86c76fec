"""Single look-ups in what is stored: the newest tick of one instrument, as Redis has it."""

from __future__ import annotations

import contextlib

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.storage.client import storage_error
from services.storage.keys import last_tick, tick_series


class StoredNewest(msgspec.Struct, frozen=True):
    """Times of the newest tick in Redis, UTC epoch ms; None where there is none.

    `received_ms` and `event_ms` are those of `md:last:{…}`, `sample_ms` is the price series' newest.
    """

    received_ms: int | None = None
    event_ms: int | None = None
    sample_ms: int | None = None


async def stored_newest(client: Redis, instrument: str) -> StoredNewest:
    """Return when the newest stored tick was. Raises `StorageError` when Redis does not answer."""
    try:
        fields = await client.hmget(last_tick(instrument), ["r", "t"])
        sample = None
        with contextlib.suppress(ResponseError):  # the series does not exist
            sample = await client.execute_command(  # type: ignore[no-untyped-call]
                "TS.GET", tick_series(instrument, "price")
            )
    except RedisError as error:
        raise storage_error(error) from error
    received, event = (int(field) if field else None for field in fields)
    return StoredNewest(received, event, int(sample[0]) if sample else None)
