"""What a starting daemon reads back from Redis: positions, newest ticks, the epoch.

Runs once, before any writer. Reads in pipelines of bounded size, so that 25 000 instruments take well
under two seconds and no single answer grows large.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.errors import StorageError, StorageMisconfigured
from services.market_data.records import DataIngestionFormat
from services.pipeline.sequencer import START, Position, parse_position
from services.storage.ask_many import ask_many
from services.storage.client import storage_error
from services.storage.entry_reader import record_of, tick_of
from services.storage.keys import EPOCH, last_tick, tick_stream
from services.storage.resp import command

_CHUNK = 1_000
_STREAM_DEPTH = 5_000

LastTick: TypeAlias = DataIngestionFormat
"""The newest stored tick of an instrument. `provider_symbol` and the position are not stored, so not set."""


async def last_positions(
    client: Redis, exchanges: Iterable[str], key: Callable[[str], str] = tick_stream
) -> dict[str, Position]:
    """Return the greatest position each exchange's stream ever had, `(0, 0)` where there is no stream.

    `key` names the stream of an exchange. Counts entries that were trimmed or deleted since. Raises
    `StorageError` when Redis does not answer or keeps something else under the stream's key.
    """
    names = list(exchanges)
    replies = await _in_chunks(client, [("XINFO", "STREAM", key(name)) for name in names])
    positions: dict[str, Position] = {}
    for name, reply in zip(names, replies, strict=True):
        if isinstance(reply, ResponseError):
            if "no such key" not in str(reply):
                raise _complaint(key(name), reply)
            positions[name] = START
        else:
            positions[name] = parse_position(str(_pairs(reply)["last-generated-id"]))
    return positions


async def last_ticks(client: Redis, instruments: Iterable[str]) -> dict[str, LastTick]:
    """Return the newest stored tick of each instrument that has one.

    A hash that does not read as a tick is left out: the next tick overwrites it. Raises `StorageError`
    when Redis does not answer.
    """
    keys = list(instruments)
    replies = await _in_chunks(client, [("HGETALL", last_tick(key)) for key in keys])
    ticks: dict[str, LastTick] = {}
    for key, reply in zip(keys, replies, strict=True):
        if not isinstance(reply, ResponseError) and reply:
            tick = tick_of(key, _pairs(reply))
            if tick is not None:
                ticks[key] = tick
    return ticks


async def newest_in_streams(
    client: Redis, exchanges: Iterable[str], *, depth: int = _STREAM_DEPTH
) -> dict[str, LastTick]:
    """Return the newest tick of each instrument among the last `depth` entries of each exchange's stream.

    A daemon that was killed between two batches may have written a tick to its stream and not yet to its
    hash; without this it would be stored again when the provider repeats it. Raises `StorageError` when
    Redis does not answer.
    """
    newest: dict[str, LastTick] = {}
    for exchange in exchanges:
        try:
            entries: Any = await client.xrevrange(tick_stream(exchange), count=depth)
        except RedisError as error:
            raise storage_error(error) from error
        for entry_id, fields in entries:
            record = record_of(exchange, parse_position(str(entry_id)), fields)
            if isinstance(record, DataIngestionFormat):
                known = newest.get(record.symbol)
                if known is None or record.timestamp > known.timestamp:
                    newest[record.symbol] = record
    return newest


async def ensure_epoch(client: Redis) -> tuple[str, bool]:
    """Return the epoch of the key space and whether it was made just now, in an empty Redis.

    Raises `StorageError` when Redis does not answer or takes no writes.
    """
    fresh = secrets.token_hex(8)
    try:
        existing = await client.set(EPOCH, fresh, nx=True, get=True)
    except RedisError as error:
        raise storage_error(error) from error
    return (fresh, True) if existing is None else (str(existing), False)


async def _in_chunks(client: Redis, commands: Sequence[tuple[str, ...]]) -> list[Any]:
    replies: list[Any] = []
    try:
        for start in range(0, len(commands), _CHUNK):
            replies += await ask_many(client, [command(*each) for each in commands[start : start + _CHUNK]])
            # Some milliseconds of shaping follow; others may have theirs in between.
            await asyncio.sleep(0)
    except RedisError as error:
        raise storage_error(error) from error
    except OSError as error:
        raise StorageError(f"Redis cannot be reached: {error}") from error
    for reply in replies:
        if isinstance(reply, ResponseError) and not _concerns_one_key(reply):
            raise storage_error(reply) from reply
    return replies


def _concerns_one_key(error: ResponseError) -> bool:
    return "no such key" in str(error) or "WRONGTYPE" in str(error)


def _complaint(key: str, error: ResponseError) -> StorageError:
    return StorageMisconfigured(f"the key {key} holds something else ({error}): rename or delete it")


def _pairs(reply: Any) -> dict[Any, Any]:
    if isinstance(reply, dict):
        return reply
    return dict(zip(reply[::2], reply[1::2], strict=True))
