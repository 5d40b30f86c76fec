"""The series of bars of one instrument and interval, and how bars that came otherwise are stored in them.

Used by the bar series writer, which has the live bars, and by history, which has those of the providers.
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
from services.market_data.bar_grid import LONGER, BarGrid, Span
from services.market_data.bars import INTERVAL_MS, Bar, BarStatus, Interval
from services.market_data.calendar import Phase
from services.storage.client import storage_error
from services.storage.failures import Reason, item_reason
from services.storage.keys import BAR_FIELDS, BarField, bar_labels, bar_series
from services.storage.resp import FLOAT_BULKS, INTEGER_BULKS, bulk, command, to_bytes
from services.storage.retention import Retention

CHUNK_BYTES: dict[str, int] = {"1m": 512, "5m": 256}
"""By interval, 128 for the others: small steps for series that stay short, larger ones where the overhead of
every step counts (measured: a minute bar takes 49 bytes in steps of 128, 31 in steps of 512)."""
_SMALL_CHUNK_BYTES = 128
_CHUNK_BARS = 200
_MADD = bulk("TS.MADD")
JUST_ENDED_MS = 15_000
"""For so long after its end a bar's last minutes may still be on their way into their series."""


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
        return command("TS.CREATE", *self.definition(field, retention_ms))

    def correct(self, field: str, retention_ms: int) -> str:
        """Return the command that gives an existing series of `field` our retention, policy and labels."""
        return command("TS.ALTER", *self.definition(field, retention_ms))

    def definition(self, field: str, retention_ms: int) -> tuple[str, ...]:
        """Return key and options of the series of `field`."""
        labels = bar_labels(self.instrument, self.exchange, self.interval, cast(BarField, field))
        return (
            self.key(field),
            "RETENTION",
            str(retention_ms),
            "CHUNK_SIZE",
            str(CHUNK_BYTES.get(self.interval, _SMALL_CHUNK_BYTES)),
            "DUPLICATE_POLICY",
            "LAST",
            "LABELS",
            *(text for label in labels.items() for text in label),
        )


async def write_bars(
    client: Redis, bars: Iterable[Bar], *, retention: Retention, grid: BarGrid, now_ms: int
) -> dict[str, list[Bar]]:
    """Store bars of regular sessions (`1m`, or `1d` from a source of days) and, of minutes, the longer ones.

    Missing series are made. Longer bars are made anew from the stored minutes of their session, those whose
    time is over at `now_ms` (UTC epoch ms). Returns, by instrument, all stored minutes of the days that are
    not over, or ended just now: `BarSink.refill` makes them part of what is forming. Storing the
    same bars again changes nothing. Raises `StorageError` when Redis does not answer or refuses a sample.
    """
    regular = [bar for bar in bars if bar.phase is Phase.REGULAR]
    await _store(client, regular, retention)
    days: dict[tuple[str, str], dict[int, Span]] = {}
    for bar in regular:
        span = grid.span_of(bar.exchange, "1d", bar.start_ms) if bar.interval == "1m" else None
        if span is not None:
            days.setdefault((bar.instrument, bar.exchange), {})[span.start_ms] = span
    unfinished: dict[str, list[Bar]] = {}
    for (instrument, exchange), spans in days.items():
        for span in spans.values():
            minutes = await read_bars(client, instrument, exchange, "1m", span.start_ms, span.end_ms - 1)
            longer = combine(grid, minutes)
            over = [bar for bar in longer if _end_ms(grid, bar) <= now_ms]
            await _store(client, over, retention)
            if span.end_ms + JUST_ENDED_MS > now_ms:
                unfinished.setdefault(instrument, []).extend(minutes)
    return unfinished


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
    for minute in sorted(minutes, key=lambda bar: bar.start_ms):
        for interval in LONGER:
            span = grid.span_of(minute.exchange, interval, minute.start_ms)
            if span is None or span.phase is not Phase.REGULAR:
                continue
            bar = made.get((interval, span.start_ms))
            if bar is None:
                made[interval, span.start_ms] = msgspec.structs.replace(
                    minute, interval=interval, start_ms=span.start_ms, revision=0
                )
                continue
            bar.high, bar.low = max(bar.high, minute.high), min(bar.low, minute.low)
            bar.close = minute.close
            bar.ticks += minute.ticks
            if minute.volume is not None:
                bar.volume = minute.volume + (bar.volume or 0)
    return sorted(made.values(), key=lambda bar: (INTERVAL_MS[bar.interval], bar.start_ms))


def _end_ms(grid: BarGrid, bar: Bar) -> int:
    span = grid.span_of(bar.exchange, bar.interval, bar.start_ms)
    return bar.start_ms + INTERVAL_MS[bar.interval] if span is None else span.end_ms


async def _store(client: Redis, bars: Sequence[Bar], retention: Retention) -> None:
    for first in range(0, len(bars), _CHUNK_BARS):
        chunk = bars[first : first + _CHUNK_BARS]
        missing = await _add(client, chunk)
        if missing:
            pipeline = client.pipeline(transaction=False)
            for series, name in missing.values():
                kept_ms = retention.of(series.exchange)
                pipeline.execute_command("TS.CREATE", *series.definition(name, kept_ms))
            for reply in await _answers(pipeline):
                if isinstance(reply, ResponseError) and item_reason(str(reply)) is not Reason.SERIES_EXISTS:
                    raise storage_error(reply)
            if left := await _add(client, chunk):
                raise StorageError(f"Redis does not take samples of {next(iter(left))}")


async def _add(client: Redis, bars: Sequence[Bar]) -> dict[str, tuple[BarSeries, str]]:
    """Store bars; return the series that are missing, by key. What is older than retention is left out."""
    targets: list[tuple[BarSeries, BarField]] = []
    pieces = [""]
    known: dict[tuple[str, str], BarSeries] = {}
    for bar in bars:
        series = known.get((bar.instrument, bar.interval))
        if series is None:
            series = BarSeries(bar.instrument, bar.exchange, bar.interval)
            known[bar.instrument, bar.interval] = series
        prices = (bar.open, bar.high, bar.low, bar.close)
        at = INTEGER_BULKS[bar.start_ms]
        for field, head, price in zip(BAR_FIELDS, series.heads, prices, strict=False):
            targets.append((series, field))
            # A whole number would be remembered as the text of its float.
            pieces += (head, at, FLOAT_BULKS[float(price)])
        if bar.volume is not None:
            targets.append((series, BAR_FIELDS[-1]))
            pieces += (series.heads[-1], at, INTEGER_BULKS[bar.volume])
    if not targets:
        return {}
    pieces[0] = f"*{1 + 3 * len(targets)}\r\n{_MADD}"
    replies = await _send(client, to_bytes(pieces))
    missing: dict[str, tuple[BarSeries, str]] = {}
    for (series, field), reply in zip(targets, replies, strict=True):
        if isinstance(reply, Exception):
            reason = item_reason(str(reply))
            if reason is Reason.MISSING_SERIES:
                missing[series.key(field)] = (series, field)
            elif reason is not Reason.OLDER_THAN_RETENTION:
                raise StorageError(f"Redis refuses a sample of {series.key(field)}: {reply}")
    return missing


async def _send(client: Redis, payload: bytes) -> list[Any]:
    """Return the answer to one command put into words by us, which is six times quicker than the library."""
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
