"""The ticks of some instruments read back from their series: one for a millisecond, whatever came in it.

Beneath `bar_recall`, for what a stream has lost or is too busy to be read for. A tick has the last price and
the whole volume of its millisecond; how many shared it is not stored, nor which of them were no trades. What
waits on disk for the series counts as well.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.market_data.records import DataIngestionFormat, Record
from services.storage.keys import tick_series
from services.storage.spool import Spool

_TOGETHER = 50
_MOST_WAITING = 150_000


async def read_series_ticks(
    client: Redis,
    exchange: str,
    spans: Mapping[str, tuple[int, int]],
    *,
    spool: Spool | None = None,
) -> AsyncIterator[list[DataIngestionFormat]]:
    """Yield the ticks of each instrument in its span (UTC epoch ms, both ends included), in order.

    Raises redis-py's errors when Redis does not answer.
    """
    waiting = {} if spool is None else await _waiting(spool, spans)
    keys = list(spans)
    for first in range(0, len(keys), _TOGETHER):
        together = keys[first : first + _TOGETHER]
        pipeline: Any = client.pipeline(transaction=False)
        for key in together:
            pipeline.execute_command("TS.RANGE", tick_series(key, "price"), *spans[key])
            pipeline.execute_command("TS.RANGE", tick_series(key, "volume"), *spans[key])
        replies = await pipeline.execute(raise_on_error=False)
        for key, prices, volumes in zip(together, replies[::2], replies[1::2], strict=True):
            known = {at: int(float(volume)) for at, volume in _samples(volumes)}
            ticks = {
                at: DataIngestionFormat(key, float(price), known.get(at), at, "", exchange=exchange)
                for at, price in _samples(prices)
            }
            ticks |= waiting.get(key, {})
            if ticks:
                yield [ticks[at] for at in sorted(ticks)]


def _samples(reply: Any) -> list[tuple[int, Any]]:
    if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
        raise reply
    # A series that is missing has none.
    return [] if isinstance(reply, Exception) else [(int(at), value) for at, value in reply]


async def _waiting(
    spool: Spool, spans: Mapping[str, tuple[int, int]]
) -> dict[str, dict[int, DataIngestionFormat]]:
    def is_of_them(record: Record) -> bool:
        span = spans.get(record.symbol)
        return (
            span is not None
            and isinstance(record, DataIngestionFormat)
            and span[0] <= record.timestamp <= span[1]
        )

    found: dict[str, dict[int, DataIngestionFormat]] = {}
    for record in await spool.waiting("time_series", is_of_them, most=_MOST_WAITING):
        if isinstance(record, DataIngestionFormat):
            found.setdefault(record.symbol, {})[record.timestamp] = record
    return found
