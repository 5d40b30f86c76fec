"""Past bars in Redis as candles: read in one round trip, folded into any interval by the server.

Stands beside `bar_series`, for the history service. Only series of one minute and one day are read: whatever
is longer is made of those when it is asked for, so that it is right however late a bar came.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.client import NEVER_DECODE
from redis.exceptions import RedisError, ResponseError

from services.errors import StorageError
from services.market_data.bars import MINUTE_MS, Interval
from services.market_data.candles import Candle
from services.storage.client import storage_error
from services.storage.keys import BarField, bar_series

_AGGREGATORS: tuple[tuple[BarField, str], ...] = (
    ("open", "first"),
    ("high", "max"),
    ("low", "min"),
    ("close", "last"),
    ("volume", "sum"),
)


class Fold(msgspec.Struct, frozen=True):
    """A part of what is read: bars that begin within [from_ms, to_ms), folded by `bucket_ms` from `align_ms`.

    A bucket of one minute, or of 0, reads the bars as they are.
    """

    from_ms: int
    to_ms: int
    bucket_ms: int
    align_ms: int = 0


async def read_bars(
    client: Redis,
    instrument: str,
    interval: Interval,
    folds: Sequence[Fold],
    *,
    most: int | None,
) -> list[Candle]:
    """Return candles, oldest first, the newest `most` of them (all where None), in one round trip.

    `folds` are ascending and do not overlap. Raises `StorageError` when Redis does not answer.
    """
    commands: list[tuple[Any, ...]] = []
    for fold in reversed(folds):
        # Backwards the server exchanges first and last: what is folded is read forwards.
        folded = fold.bucket_ms > MINUTE_MS
        for field, aggregator in _AGGREGATORS:
            command: tuple[Any, ...] = (
                "TS.RANGE" if folded else "TS.REVRANGE",
                bar_series(instrument, interval, field),
                fold.from_ms,
                fold.to_ms - 1,
            )
            if folded:
                command += ("ALIGN", fold.align_ms, "AGGREGATION", aggregator, fold.bucket_ms)
            elif most is not None:
                command += ("COUNT", most)
            commands.append(command)
    replies = await _ask(client, commands)
    candles: list[Candle] = []
    for at in range(len(folds)):
        if most is not None and len(candles) >= most:
            break
        fold = folds[len(folds) - 1 - at]
        part = _joined(replies[at * 5 : at * 5 + 5], fold)
        candles += reversed(part) if fold.bucket_ms > MINUTE_MS else part
    if most is not None:
        del candles[most:]
    candles.reverse()
    return candles


async def read_starts(
    client: Redis, instrument: str, interval: Interval, spans: Iterable[tuple[int, int]]
) -> list[int]:
    """Return the starts, UTC epoch ms ascending, of the bars that begin within ascending spans."""
    key = bar_series(instrument, interval, "close")
    replies = await _ask(client, [("TS.RANGE", key, begin, end - 1) for begin, end in spans])
    return [start for reply in replies for start, _ in reply]


async def _ask(client: Redis, commands: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    if not commands:
        return []
    try:
        async with client.pipeline(transaction=False) as pipe:
            for command in commands:
                # Thousands of numbers: making texts of them first takes a third of the time.
                pipe.execute_command(*command, **{NEVER_DECODE: True})
            replies = await pipe.execute(raise_on_error=False)
    except RedisError as error:
        raise storage_error(error) from error
    except OSError as error:
        raise StorageError(f"Redis cannot be reached: {error}") from error
    answers: list[list[Any]] = []
    for reply in replies:
        if isinstance(reply, ResponseError):
            if "does not exist" not in str(reply):
                raise storage_error(reply)
            answers.append([])
        elif isinstance(reply, RedisError):
            raise storage_error(reply)
        else:
            answers.append(reply)
    return answers


_decode_numbers = msgspec.json.Decoder(list[float]).decode


def _numbers(texts: Sequence[bytes]) -> list[float]:
    """Return numbers as Redis writes them; as one list in JSON that takes a fifth of reading one by one."""
    try:
        return _decode_numbers(b"[" + b",".join(texts) + b"]")
    except msgspec.DecodeError:
        return list(map(float, texts))


def _joined(columns: Sequence[list[Any]], fold: Fold) -> list[Candle]:
    """Return five columns as candles, in their order; one that lacks a price is left out."""
    opens, highs, lows, closes, volumes = columns
    split = [tuple(zip(*column, strict=True)) or ((), ()) for column in columns]
    starts, _ = split[0]
    if all(begins == starts for begins, _ in split[1:4]):
        # Only a folded bucket may begin before what was asked for.
        from_s = [start // 1000 for start in starts]
        if fold.bucket_ms > MINUTE_MS:
            from_s = [max(start, fold.from_ms // 1000) for start in from_s]
        prices = [_numbers(values) for _, values in split[:4]]
        traded: Iterable[int | None]
        if split[4][0] == starts:
            traded = map(int, _numbers(split[4][1]))
        else:
            volume_of = dict(volumes)
            traded = [
                None if (volume := volume_of.get(start)) is None else int(float(volume)) for start in starts
            ]
        return list(zip(from_s, *prices, traded, strict=True))
    by_field = [dict(column) for column in (opens, highs, lows, closes)]
    volume_by_start = dict(volumes)
    candles: list[Candle] = []
    for start in starts:
        found = [values.get(start) for values in by_field]
        if None in found:
            continue
        opened, high, low, close = (float(price) for price in found if price is not None)
        volume = volume_by_start.get(start)
        whole = None if volume is None else int(float(volume))
        candles.append((max(start, fold.from_ms) // 1000, opened, high, low, close, whole))
    return candles
