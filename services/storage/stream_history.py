"""Reads an exchange's stream for clients that were away: from their position on, page by page.

Beside the writers, on a connection of its own, so that a long look back never stands between them and
the server. Every page begins with the entry it goes on from: while that entry is there nothing behind
it was trimmed, because a stream is only ever trimmed from its old end.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.errors import StorageError
from services.pipeline.sequencer import START, Position, parse_position
from services.storage.client import make_client, storage_error
from services.storage.keys import tick_stream

Entry = tuple[Position, dict[str, str]]
"""Position and fields of one stream entry."""


class PositionGone(StorageError):
    """The stream does not hold the position asked for, so what follows it is not known to be whole.

    `reason` is `trimmed` when older entries were removed beyond it, else `position_unknown`.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(f"the stream cannot be read on from this position: {reason}")
        self.reason = reason


class StreamHistory:
    """The streams as a client that comes back needs them. Connects on first use; `close` at the end."""

    def __init__(self, redis_url: str) -> None:
        self._client: Redis = make_client(redis_url, name="marketd:history")

    async def page(self, exchange: str, after: Position, upto: Position, count: int) -> list[Entry]:
        """Return at most `count` entries after `after` and up to `upto`, in order.

        Raises `PositionGone` unless `after` is an entry of the stream (`0-0` stands for the beginning of
        a stream that has lost nothing), `StorageError` when Redis does not answer.
        """
        try:
            if after == START:
                return await self._first_page(exchange, upto, count)
            found = await self._range(exchange, _text(after), _text(upto), count + 1)
            if found and found[0][0] == after:
                return found[1:]
            oldest = await self._range(exchange, "-", "+", 1)
        except RedisError as error:
            raise storage_error(error) from error
        except OSError as error:
            raise StorageError(f"Redis cannot be reached: {error}") from error
        raise PositionGone("trimmed" if oldest and oldest[0][0] > after else "position_unknown")

    async def reached(self, exchange: str) -> Position:
        """Return the newest position the stream ever had, `0-0` without a stream. Raises `StorageError`."""
        try:
            facts: Any = await self._client.xinfo_stream(tick_stream(exchange))
        except ResponseError as error:
            if "no such key" in str(error):
                return START
            raise storage_error(error) from error
        except RedisError as error:
            raise storage_error(error) from error
        except OSError as error:
            raise StorageError(f"Redis cannot be reached: {error}") from error
        return parse_position(str(facts["last-generated-id"]))

    async def close(self) -> None:
        """Let go of the connection."""
        await self._client.aclose()

    async def _range(self, exchange: str, first: str, last: str, count: int) -> list[Entry]:
        reply: Any = await self._client.xrange(tick_stream(exchange), first, last, count)
        return [(parse_position(entry_id), fields) for entry_id, fields in reply]

    async def _first_page(self, exchange: str, upto: Position, count: int) -> list[Entry]:
        key = tick_stream(exchange)
        pipeline = self._client.pipeline(transaction=True)
        pipeline.xinfo_stream(key)
        pipeline.xrange(key, "-", _text(upto), count)
        facts, reply = await pipeline.execute(raise_on_error=False)
        if isinstance(facts, ResponseError) and "no such key" in str(facts):
            return []
        for answer in (facts, reply):
            if isinstance(answer, Exception):
                raise answer
        if facts.get("entries-added") != facts["length"]:
            raise PositionGone("trimmed")
        return [(parse_position(entry_id), fields) for entry_id, fields in reply]


def _text(position: Position) -> str:
    return f"{position[0]}-{position[1]}"
