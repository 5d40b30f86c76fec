"""Where a market trades around the clock, candles that are read begin where the stored bars do."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from services.history.service import HistoryService
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import Bar, Interval
from services.market_data.calendar import MarketCalendar
from services.market_data.candles import HistoryRequest, parse_resolution
from services.market_data.trading_time import TradingTime
from services.storage.bar_series import combine
from services.storage.client import make_client
from services.storage.keys import BarField, bar_series
from tests.support.past import FixedClock

MINUTE_S = 60
BEGIN_S = int(datetime(2026, 11, 10, 12, 0, tzinfo=UTC).timestamp())
MINUTES = 2 * 24 * 60
FIELDS: tuple[BarField, ...] = ("open", "high", "low", "close", "volume")


def minutes_of(instrument: str) -> list[Bar]:
    exchange = instrument.partition(":")[0]
    return [
        Bar(
            instrument=instrument,
            exchange=exchange,
            interval="1m",
            start_ms=(BEGIN_S + at * MINUTE_S) * 1000,
            open=100.0 + at,
            high=101.0 + at,
            low=99.0 + at,
            close=100.5 + at,
            volume=at,
        )
        for at in range(MINUTES)
    ]


@pytest.mark.parametrize("interval", ["5m", "15m", "1h"])
@pytest.mark.parametrize("instrument", ["NSE:RELIANCE", "NASDAQ:AAPL", "MCX:GOLD", "CRYPTO:BTC-USD"])
async def test_candles_that_are_read_are_the_stored_bars(
    redis_url: str, instrument: str, interval: Interval
) -> None:
    calendar = MarketCalendar(always_open=True)
    grid = BarGrid(calendar)
    minutes = minutes_of(instrument)
    client = make_client(redis_url)
    try:
        async with client.pipeline(transaction=False) as pipe:
            for field in FIELDS:
                key = bar_series(instrument, "1m", field)
                for bar in minutes:
                    pipe.execute_command("TS.ADD", key, bar.start_ms, getattr(bar, field))
            await pipe.execute()
        clock = FixedClock((BEGIN_S + MINUTES * MINUTE_S) * 1000 + 2 * 3_600_000)
        service = HistoryService(client, None, TradingTime(calendar), grid, clock)
        from_ms = BEGIN_S * 1000
        resolution = parse_resolution(interval)
        by_span = await service.read(
            HistoryRequest(instrument=instrument, resolution=resolution, count=None, from_ms=from_ms)
        )
        newest = await service.get_hist_candles(instrument, interval, 60)
    finally:
        await client.aclose()
    bars = [bar for bar in combine(grid, minutes) if bar.interval == interval]
    stored = [(bar.start_ms // 1000, bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in bars]
    # The span that was asked for cuts its first and last candle.
    assert by_span.candles[1:-1] == stored[1:-1]
    assert len(newest) > 1
    assert newest[:-1] == stored[stored.index(newest[0]) :][: len(newest) - 1]
