"""The series of bars of one instrument and interval, and how bars that came otherwise are stored in them.

Used by the bar series writer, which has the live bars, and by `past_bars`, which has those of the providers.
Only bars of regular sessions are kept as series. A bar is one sample in each of five series at its start;
an unknown volume is no sample. Storing the same bar again changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.errors import StorageError
from services.market_data.bar_grid import LONGER, BarGrid
from services.market_data.bars import INTERVAL_MS, Bar, BarStatus, Interval
from services.market_data.calendar import Phase
from services.storage.client import storage_error
from services.storage.failures import Reason, item_reason
from services.storage.keys import BAR_FIELDS, BarField, bar_labels, bar_series
from services.storage.resp import bulk
from services.storage.retention import Retention
from services.storage.series_words import correct_series, create_series, series_options

CHUNK_BYTES: dict[str, int] = {"1m": 512, "5m": 256}
"""By interval, 128 for the others: small steps for series that stay short, larger ones where the overhead of
every step counts (measured: a minute bar takes 49 bytes in steps of 128, 31 in steps of 512)."""
_SMALL_CHUNK_BYTES = 128


class BarSeries:
    """Everything a writer must know of one instrument's bars of one interval."""

    __slots__ = ("exchange", "heads", "instrument", "interval", "made")

    def __init__(self, instrument: str, exchange: str, interval: str) -> None:
        self.instrument = instrument
        self.exchange = exchange
        self.interval = interval
        self.heads = tuple(bulk(bar_series(instrument, interval, field)) for field in BAR_FIELDS)
        self.made = 0

    def key(self, field: str) -> str:
        """Return the key of the series of `field`."""
        return bar_series(self.instrument, self.interval, cast(BarField, field))

    def forget(self, field: str) -> None:
        """Assume no longer that the series of `field` exists."""
        self.made &= ~(1 << BAR_FIELDS.index(cast(BarField, field)))

    def create(self, field: str, retention_ms: int) -> str:
        """Return the command that makes the series of `field`; it fails where there is one."""
        return create_series(self.key(field), retention_ms, self._chunk_bytes, self._labels(field))

    def correct(self, field: str, retention_ms: int) -> str:
        """Return the command that gives an existing series of `field` our retention, policy and labels."""
        return correct_series(self.key(field), retention_ms, self._chunk_bytes, self._labels(field))

    def definition(self, field: str, retention_ms: int) -> tuple[str, ...]:
        """Return key and options of the series of `field`."""
        return (
            self.key(field),
            *series_options(retention_ms, self._chunk_bytes),
            *(text for label in self._labels(field).items() for text in label),
        )

    @property
    def _chunk_bytes(self) -> int:
        return CHUNK_BYTES.get(self.interval, _SMALL_CHUNK_BYTES)

    def _labels(self, field: str) -> dict[str, str]:
        return bar_labels(self.instrument, self.exchange, self.interval, cast(BarField, field))


async def read_bars(
    client: Redis, instrument: str, exchange: str, interval: Interval, from_ms: int, to_ms: int
) -> list[Bar]:
    """Return the stored bars that begin between two moments (UTC epoch ms, both included), oldest first.

    A bar without all four prices is left out. Raises `StorageError` when Redis does not answer.
    """
    pipeline = client.pipeline(transaction=False)
    for field in BAR_FIELDS:
        pipeline.execute_command("TS.RANGE", bar_series(instrument, interval, field), from_ms, to_ms)
    return bars_of(instrument, exchange, interval, await _answers(pipeline))


def bars_of(instrument: str, exchange: str, interval: Interval, replies: Sequence[Any]) -> list[Bar]:
    """Return bars from the answers to a `TS.RANGE` of each field. Raises `StorageError` for a refusal."""
    opens, highs, lows, closes, volumes = map(_column, replies)
    return [
        Bar(
            instrument=instrument,
            exchange=exchange,
            interval=interval,
            start_ms=start_ms,
            open=open_,
            high=highs[start_ms],
            low=lows[start_ms],
            close=closes[start_ms],
            volume=None if (volume := volumes.get(start_ms)) is None else int(volume),
            status=BarStatus.FINAL,
        )
        for start_ms, open_ in opens.items()
        if start_ms in highs and start_ms in lows and start_ms in closes
    ]


def combine(grid: BarGrid, minutes: Iterable[Bar]) -> list[Bar]:
    """Return the longer bars that minutes of one instrument make, oldest first, shortest interval first."""
    made: dict[tuple[Interval, int], Bar] = {}
    ordered = sorted(minutes, key=lambda bar: bar.start_ms)
    for interval in LONGER:
        bar, until_ms = None, 0
        for minute in ordered:
            if minute.start_ms >= until_ms:
                span = grid.span_of(minute.exchange, interval, minute.start_ms)
                if span is None or span.phase is not Phase.REGULAR:
                    continue
                until_ms = span.end_ms
                bar = made.get((interval, span.start_ms))
                if bar is None:
                    bar = made[interval, span.start_ms] = msgspec.structs.replace(
                        minute, interval=interval, start_ms=span.start_ms, revision=0
                    )
                    continue
            if bar is not None:
                _add_minute(bar, minute)
    return sorted(made.values(), key=lambda bar: (INTERVAL_MS[bar.interval], bar.start_ms))


def _add_minute(bar: Bar, minute: Bar) -> None:
    # Comparing is twice as quick as max() and min(), and a day has thousands of these.
    if minute.high > bar.high:
        bar.high = minute.high
    if minute.low < bar.low:
        bar.low = minute.low
    bar.close = minute.close
    bar.ticks += minute.ticks
    if minute.volume is not None:
        bar.volume = minute.volume + (bar.volume or 0)


async def make_series(client: Redis, series: BarSeries, fields: Iterable[str], retention: Retention) -> None:
    """Make the series of some fields; one that is there already stays. Raises `StorageError`."""
    pipeline = client.pipeline(transaction=False)
    for field in fields:
        pipeline.execute_command("TS.CREATE", *series.definition(field, retention.of(series.exchange)))
    for reply in await _answers(pipeline):
        if isinstance(reply, ResponseError) and item_reason(str(reply)) is not Reason.SERIES_EXISTS:
            raise storage_error(reply)


async def send_command(client: Redis, payload: bytes) -> list[Any]:
    """Return the answer to one command put into words by us, which is six times quicker than the library.

    Raises `StorageError` when Redis does not answer.
    """
    pool: Any = client.connection_pool
    try:
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(payload, check_health=False)
            answer: list[Any] = await connection.read_response()
        finally:
            await pool.release(connection)
    except RedisError as error:
        raise storage_error(error) from error
    except OSError as error:
        raise StorageError(f"Redis cannot be reached: {error}") from error
    return answer


async def _answers(pipeline: Any) -> list[Any]:
    try:
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
    except RedisError as error:
        raise storage_error(error) from error
    except OSError as error:
        raise StorageError(f"Redis cannot be reached: {error}") from error
    for reply in replies:
        if isinstance(reply, RedisError) and not isinstance(reply, ResponseError):
            raise storage_error(reply)
    return replies


def _column(reply: Any) -> dict[int, float]:
    if isinstance(reply, Exception):
        if "does not exist" in str(reply):
            return {}
        raise storage_error(reply) if isinstance(reply, RedisError) else reply
    return {int(at_ms): float(value) for at_ms, value in reply}
