"""Bars stored as the backfill stores them, given as bars of any instruments and intervals."""

from __future__ import annotations

from collections.abc import Iterable

from redis.asyncio import Redis

from services.market_data.bar_grid import BarGrid
from services.market_data.bars import Bar, Interval
from services.market_data.candles import Candle
from services.storage.past_bars import write_candles
from services.storage.retention import Retention


async def write_bars(
    client: Redis, bars: Iterable[Bar], *, retention: Retention, grid: BarGrid, now_ms: int
) -> dict[str, list[Bar]]:
    """Store bars series by series; return, by instrument, the minutes of days that are not over."""
    rows: dict[tuple[str, str, Interval], list[Candle]] = {}
    for bar in bars:
        row = (bar.start_ms // 1000, bar.open, bar.high, bar.low, bar.close, bar.volume)
        rows.setdefault((bar.instrument, bar.exchange, bar.interval), []).append(row)
    unfinished: dict[str, list[Bar]] = {}
    for (instrument, exchange, interval), candles in rows.items():
        left = await write_candles(
            client, instrument, exchange, interval, candles, retention=retention, grid=grid, now_ms=now_ms
        )
        if left:
            unfinished[instrument] = left
    return unfinished
