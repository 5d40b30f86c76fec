"""Stores bars that came over no stream, and makes the longer ones of them: the backfill's way to Redis.

Stands beside `bar_series_writer`, which has the live bars. Works in columns, some hundred bars at a time,
and gives way to other work in between. What is stored already of the same days is read only where there can
be any. Remembers nothing: prices of the past do not repeat as live ones do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import isfinite

import msgspec
from redis.asyncio import Redis

from services.errors import StorageError
from services.market_data.bar_grid import LONGER, BarGrid, Span
from services.market_data.bars import Bar, Interval
from services.market_data.calendar import Phase
from services.market_data.candles import Candle
from services.pipeline.giving_way import slices
from services.storage.bar_series import BarSeries, make_series, read_bars, send_command
from services.storage.failures import Reason, item_reason
from services.storage.keys import BAR_FIELDS
from services.storage.resp import BULK_HEAD, bulk, to_bytes
from services.storage.retention import Retention

JUST_ENDED_MS = 15_000
"""For so long after its end a bar's last minutes may still be on their way into their series."""
_LIVE_WITHIN_MS = 3_600_000
"""Of a day that ended longer ago nobody else writes minutes."""
_CHUNK_BARS = 400
_PRICES = 4
_MADD = bulk("TS.MADD")
_encode_json = msgspec.json.Encoder().encode


async def write_candles(
    client: Redis,
    instrument: str,
    exchange: str,
    interval: Interval,
    candles: Sequence[Candle],
    *,
    retention: Retention,
    grid: BarGrid,
    now_ms: int,
    days_kept: Collection[int] = (),
) -> list[Bar]:
    """Store bars of regular sessions (`1m`, or `1d` from a source of days) and, of minutes, the longer ones.

    `candles` are ascending, their starts in UTC epoch seconds. Missing series are made. Longer bars are made
    anew from the stored minutes of their session, those whose time is over at `now_ms` (UTC epoch ms), but
    not the days that begin at one of `days_kept` (UTC epoch ms). Returns all stored minutes of the days that
    are not over, or ended just now: `BarSink.refill` makes them part of what is forming. Storing the same
    bars again changes nothing. Raises `StorageError` when Redis does not answer or refuses a sample.
    """
    alone = await _store(client, BarSeries(instrument, exchange, interval), candles, retention)
    if interval != "1m":
        return []
    unfinished: list[Bar] = []
    longer: dict[Interval, list[Candle]] = {name: [] for name in LONGER}
    for day, minutes in _by_day(grid, exchange, candles):
        if not alone or day.end_ms + _LIVE_WITHIN_MS > now_ms:
            stored = await read_bars(client, instrument, exchange, "1m", day.start_ms, day.end_ms - 1)
            minutes = [_candle(bar) for bar in stored]
            if day.end_ms + JUST_ENDED_MS > now_ms:
                unfinished += stored
        async for part in slices(LONGER, 1):
            longer[part[0]] += _longer(grid, exchange, part[0], minutes, now_ms)
    for name, bars in longer.items():
        kept = [bar for bar in bars if bar[0] * 1000 not in days_kept] if name == "1d" else bars
        await _store(client, BarSeries(instrument, exchange, name), kept, retention)
    return unfinished


def _by_day(
    grid: BarGrid, exchange: str, candles: Sequence[Candle]
) -> Iterator[tuple[Span, Sequence[Candle]]]:
    """Yield the days of ascending minutes, with those minutes; what lies in no session is in none."""
    begin = 0
    while begin < len(candles):
        at_ms = candles[begin][0] * 1000
        day = grid.span_of(exchange, "1d", at_ms)
        if day is None:
            begin += 1
            continue
        end = begin + 1
        while end < len(candles) and candles[end][0] * 1000 < day.end_ms:
            end += 1
        yield day, candles[begin:end]
        begin = end


def _longer(
    grid: BarGrid, exchange: str, interval: Interval, minutes: Sequence[Candle], now_ms: int
) -> list[Candle]:
    """Return the bars of an interval that ascending minutes make and whose time is over, oldest first."""
    made: list[Candle] = []
    taken: list[Candle] = []
    until_s, span = 0, None
    for minute in minutes:
        if minute[0] >= until_s:
            if taken and span is not None and span.end_ms <= now_ms:
                made.append(_joined(span, taken))
            taken = []
            span = grid.span_of(exchange, interval, minute[0] * 1000)
            if span is None or span.phase is not Phase.REGULAR:
                span = None
                continue
            until_s = span.end_ms // 1000
        taken.append(minute)
    if taken and span is not None and span.end_ms <= now_ms:
        made.append(_joined(span, taken))
    return made


def _joined(span: Span, minutes: Sequence[Candle]) -> Candle:
    _, opens, highs, lows, closes, volumes = zip(*minutes, strict=True)
    known = [volume for volume in volumes if volume is not None]
    return (
        span.start_ms // 1000,
        opens[0],
        max(highs),
        min(lows),
        closes[-1],
        sum(known) if known else None,
    )


def _candle(bar: Bar) -> Candle:
    return (bar.start_ms // 1000, bar.open, bar.high, bar.low, bar.close, bar.volume)


async def _store(client: Redis, series: BarSeries, candles: Sequence[Candle], retention: Retention) -> bool:
    """Store bars of one series; tell whether they are all that is stored there, none left out.

    What is older than retention is left out.
    """
    if not candles:
        return False
    # The first bar alone shows which series are missing: one refusal for each, not one for each sample.
    missing, refused = await _add(client, series, candles[:1])
    alone = missing == set(_fields(candles[:1]))
    if missing:
        await make_series(client, series, missing, retention)
    rest = candles if missing else candles[1:]
    async for chunk in slices(rest, _CHUNK_BARS):
        absent, older = await _add(client, series, chunk)
        if absent:
            # The volume, of bars of which the first has none; or somebody removed one meanwhile.
            await make_series(client, series, absent, retention)
            absent, older = await _add(client, series, chunk)
        if absent:
            raise StorageError(f"Redis does not take samples of {series.key(absent.pop())}")
        refused = refused or older
    return alone and not refused


async def _add(client: Redis, series: BarSeries, candles: Sequence[Candle]) -> tuple[set[str], bool]:
    """Store bars; return the fields whose series are missing, and whether anything was too old."""
    replies = await send_command(client, _samples(series, candles))
    missing: set[str] = set()
    older = False
    if all(type(reply) is int for reply in replies):
        return missing, older
    for field, reply in zip(_fields(candles), replies, strict=True):
        if not isinstance(reply, Exception):
            continue
        reason = item_reason(str(reply))
        if reason is Reason.MISSING_SERIES:
            missing.add(field)
        elif reason is Reason.OLDER_THAN_RETENTION:
            older = True
        else:
            raise StorageError(f"Redis refuses a sample of {series.key(field)}: {reply}")
    return missing, older


def _samples(series: BarSeries, candles: Sequence[Candle]) -> bytes:
    """Return the command that stores bars. Raises ValueError for a price that is not finite."""
    starts, opens, highs, lows, closes, volumes = zip(*candles, strict=True)
    prices = [_texts(column) for column in (opens, highs, lows, closes)]
    open_, high, low, close, traded = series.heads
    pieces = [""]
    samples = 0
    for start, first, most, least, last, volume in zip(starts, *prices, volumes, strict=True):
        at = bulk(str(start * 1000))
        pieces.append(f"{open_}{at}{first}{high}{at}{most}{low}{at}{least}{close}{at}{last}")
        samples += _PRICES
        if volume is not None:
            pieces.append(f"{traded}{at}{bulk(str(volume))}")
            samples += 1
    pieces[0] = f"*{1 + 3 * samples}\r\n{_MADD}"
    return to_bytes(pieces)


def _texts(prices: Sequence[float]) -> list[str]:
    if not all(map(isfinite, prices)):
        raise ValueError("a price is not a finite number")
    # The shortest decimals that read back as the same doubles; a whole number as the text of its float.
    texts = _encode_json([float(price) for price in prices]).decode()[1:-1].split(",")
    return [f"{BULK_HEAD[len(text)]}{text}\r\n" for text in texts]


def _fields(candles: Sequence[Candle]) -> Iterator[str]:
    for candle in candles:
        yield from BAR_FIELDS if candle[5] is not None else BAR_FIELDS[:_PRICES]
