"""Past bars in Redis: read in one round trip, folded into any interval by the server, and written in bulk.

Stands beside the live writer of bars, for the history service and the backfill. Only series of one minute
and one day are read: whatever is longer is made of those when it is asked for, so that it is right however
late a bar came. Writing a bar again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.errors import StorageError, StorageRejected
from services.market_data.bars import MINUTE_MS, Interval
from services.market_data.candles import Candle
from services.storage.bar_series import BarSeries
from services.storage.client import storage_error
from services.storage.keys import BAR_FIELDS, BarField, bar_series

_AGGREGATORS: tuple[tuple[BarField, str], ...] = (
    ("open", "first"),
    ("high", "max"),
    ("low", "min"),
    ("close", "last"),
    ("volume", "sum"),
)
_SAMPLES_PER_COMMAND = 500
_COMMANDS_PER_TRIP = 10


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
        for field, aggregator in _AGGREGATORS:
            command: tuple[Any, ...] = (
                "TS.REVRANGE",
                bar_series(instrument, interval, field),
                fold.from_ms,
                fold.to_ms - 1,
            )
            if most is not None:
                command += ("COUNT", most)
            if fold.bucket_ms > MINUTE_MS:
                command += ("ALIGN", fold.align_ms, "AGGREGATION", aggregator, fold.bucket_ms)
            commands.append(command)
    replies = await _ask(client, commands)
    candles: list[Candle] = []
    for at in range(len(folds)):
        if most is not None and len(candles) >= most:
            break
        candles += _joined(replies[at * 5 : at * 5 + 5], folds[len(folds) - 1 - at])
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


async def write_bars(
    client: Redis,
    instrument: str,
    interval: Interval,
    candles: Sequence[Candle],
    *,
    retention_ms: int,
) -> int:
    """Store past bars over what is there; return how many. The series are made where there are none.

    Raises `StorageError` when Redis does not take them; writing all of them again is harmless.
    """
    if not candles:
        return 0
    series = BarSeries(instrument, instrument.partition(":")[0], interval)
    await _make(client, series, retention_ms)
    samples: list[tuple[str, int, float | int]] = []
    for at, field in enumerate(BAR_FIELDS, 1):
        key = series.key(field)
        for candle in candles:
            value = candle[at]
            if value is not None:
                samples.append((key, candle[0] * 1000, value))
    step = _SAMPLES_PER_COMMAND * _COMMANDS_PER_TRIP
    for begin in range(0, len(samples), step):
        trip = samples[begin : begin + step]
        commands = [
            ("TS.MADD", *(part for sample in trip[at : at + _SAMPLES_PER_COMMAND] for part in sample))
            for at in range(0, len(trip), _SAMPLES_PER_COMMAND)
        ]
        for reply in await _ask(client, commands):
            for item in reply:
                if isinstance(item, Exception):
                    raise StorageRejected(f"Redis refuses a past bar of {instrument}: {item}")
    return len(candles)


async def _make(client: Redis, series: BarSeries, retention_ms: int) -> None:
    try:
        async with client.pipeline(transaction=False) as pipe:
            for field in BAR_FIELDS:
                pipe.execute_command("TS.CREATE", *series.definition(field, retention_ms))
            replies = await pipe.execute(raise_on_error=False)
    except RedisError as error:
        raise storage_error(error) from error
    for reply in replies:
        if isinstance(reply, ResponseError) and "already exists" not in str(reply):
            raise storage_error(reply)


async def _ask(client: Redis, commands: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    if not commands:
        return []
    try:
        async with client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
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


def _joined(columns: Sequence[list[Any]], fold: Fold) -> list[Candle]:
    """Return five columns, newest first, as candles; one that lacks a price is left out."""
    opens, highs, lows, closes, volumes = columns
    starts = [row[0] for row in opens]
    if all([row[0] for row in column] == starts for column in (highs, lows, closes)):
        volume_of = (
            [row[1] for row in volumes]
            if [row[0] for row in volumes] == starts
            else _at(dict(volumes), starts)
        )
        return [
            (
                max(start, fold.from_ms) // 1000,
                float(opened[1]),
                float(high[1]),
                float(low[1]),
                float(close[1]),
                None if volume is None else int(float(volume)),
            )
            for start, opened, high, low, close, volume in zip(
                starts, opens, highs, lows, closes, volume_of, strict=True
            )
        ]
    by_field = [dict(column) for column in (opens, highs, lows, closes)]
    volume_by_start = dict(volumes)
    candles: list[Candle] = []
    for start in starts:
        prices = [values.get(start) for values in by_field]
        if None in prices:
            continue
        opened, high, low, close = (float(price) for price in prices if price is not None)
        volume = volume_by_start.get(start)
        whole = None if volume is None else int(float(volume))
        candles.append((max(start, fold.from_ms) // 1000, opened, high, low, close, whole))
    return candles


def _at(values: dict[int, Any], starts: list[int]) -> list[Any]:
    return [values.get(start) for start in starts]
