"""The keys of a replay in Redis: emptied before it, expiring after it, and no way to any other key.

Used by `services.replay` only.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import redis.asyncio
import redis.exceptions

from services.errors import ConfigurationError, StorageMisconfigured, StorageUnavailable
from services.storage.address import RedisAddress
from services.storage.client import make_client
from services.storage.connection import RedisConnection, open_connection
from services.storage.keys import REPLAY_PREFIX, KeySpace

_AT_ONCE = 1_000
_KEYS = re.compile(rb"\r\n(md:[^\r]*)\r\n")


def replay_keys(name: str) -> KeySpace:
    """Return the key space of the replay `name`. Raises `ConfigurationError` when that is no name."""
    try:
        if not name:
            raise ValueError
        return KeySpace(name)
    except ValueError:
        raise ConfigurationError(
            f"{name!r} is no name for a replay: up to 64 letters, digits, dots, dashes and underscores"
        ) from None


async def open_guarded(address: RedisAddress, name: str, keys: KeySpace) -> RedisConnection:
    """Connect for a replay: a batch with any other key of ours than those of `keys` is never sent."""
    if not keys.prefix.startswith(REPLAY_PREFIX):
        raise StorageMisconfigured("a replay never writes live keys")
    prefix = keys.prefix.encode()

    def guard(payload: bytes) -> None:
        for key in _KEYS.findall(payload):
            if not key.startswith(prefix):
                raise StorageMisconfigured(f"a replay never writes {key[:80].decode(errors='replace')}")

    connection = await open_connection(address, name)
    connection.guard = guard
    return connection


class ReplaySpace:
    """The keys of one replay."""

    def __init__(self, redis_url: str, keys: KeySpace) -> None:
        self.keys = keys
        self._client = make_client(redis_url, name="marketd:replay")

    async def empty(self) -> int:
        """Delete what an earlier replay of this name left; return how many keys that was.

        Raises `StorageUnavailable`.
        """
        count = 0
        try:
            async for names in self._batches():
                count += int(await self._client.unlink(*names))
        except redis.exceptions.RedisError as error:
            raise StorageUnavailable(f"the keys of an earlier replay cannot be deleted: {error}") from error
        return count

    async def expire(self, after_s: int) -> int:
        """Let all keys expire after so many seconds; return how many keys. Raises `StorageUnavailable`."""
        count = 0
        try:
            async for names in self._batches():
                async with self._client.pipeline(transaction=False) as pipe:
                    for name in names:
                        pipe.expire(name, after_s)
                    await pipe.execute()
                count += len(names)
        except redis.exceptions.RedisError as error:
            raise StorageUnavailable(f"the replay's keys were not given an end: {error}") from error
        return count

    async def close(self) -> None:
        """Let go of the connection."""
        await self._client.aclose()

    async def _batches(self) -> AsyncIterator[list[bytes | str]]:
        cursor = 0
        while True:
            cursor, names = await self._client.scan(cursor, match=f"{self.keys.prefix}*", count=_AT_ONCE)
            if names:
                yield names
            if cursor == 0:
                return
