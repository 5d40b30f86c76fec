"""The Python client's questions about the past, against a real gateway and a real Redis."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pandas as pd
import pytest
import redis

from marketd_client.errors import HistoryRefused
from marketd_client.history import get_historical_ohlcv, get_historical_oi
from services.market_data.candles import HistoryAnswer, Missing
from tests.support.gateway import running_gateway


async def test_candles_become_a_frame_that_says_what_is_missing() -> None:
    async with running_gateway(["NSE:TCS"]) as rig:
        rig.backend.past = HistoryAnswer(
            candles=[
                (1_700_000_040, 10.0, 11.0, 9.5, 10.5, 100),
                (1_700_000_100, 10.5, 10.5, 10.0, 10.0, None),
            ],
            complete=False,
            missing=(Missing(1_700_000_160, 1_700_000_220, "stale"),),
        )
        frame = await asyncio.to_thread(
            get_historical_ohlcv,
            rig.url,
            "NSE:TCS",
            "1m",
            start=datetime.fromtimestamp(1_700_000_000, UTC),
            forming=True,
        )
        asked = rig.backend.asked[-1]
        assert (asked.from_ms, asked.count, asked.forming) == (1_700_000_000_000, None, True)
    assert list(frame.columns) == ["open", "high", "low", "close", "volume"]
    assert frame.index[0] == pd.Timestamp(1_700_000_040, unit="s", tz="UTC")
    assert frame["close"].tolist() == [10.5, 10.0]
    assert frame["volume"].isna().tolist() == [False, True]
    assert frame.attrs == {"complete": False, "missing": [(1_700_000_160, 1_700_000_220, "stale")]}


async def test_no_candles_are_an_empty_frame_with_the_same_columns() -> None:
    async with running_gateway(["NSE:TCS"]) as rig:
        rig.backend.past = HistoryAnswer(candles=[], complete=False)
        frame = await asyncio.to_thread(get_historical_ohlcv, rig.url, "NSE:TCS", "1d", count=5)
    assert frame.empty
    assert list(frame.columns) == ["open", "high", "low", "close", "volume"]


async def test_a_refusal_carries_the_daemons_code() -> None:
    async with running_gateway(["NSE:TCS"], tokens={"desk": "correct-horse"}) as rig:
        with pytest.raises(HistoryRefused, match="unauthorized"):
            await asyncio.to_thread(get_historical_ohlcv, rig.url, "NSE:TCS")
        with pytest.raises(HistoryRefused) as caught:
            await asyncio.to_thread(get_historical_ohlcv, rig.url, "NSE:NOPE", token="correct-horse")
        assert (caught.value.status, caught.value.code) == (404, "unknown_instrument")
    with pytest.raises(ValueError, match="needs its zone"):
        get_historical_ohlcv("http://127.0.0.1:1", "NSE:TCS", start=datetime(2026, 1, 2))


async def test_open_interest_is_a_series_of_those_ticks_that_had_it(redis_url: str) -> None:
    client = redis.Redis.from_url(redis_url)
    key = "md:ts:{NFO:NIFTY-FUT}"
    for at, price, oi in ((1_000, 10.0, 500), (2_000, 11.0, None), (3_000, 12.0, 700)):
        client.execute_command("TS.ADD", f"{key}:price", at, price)
        if oi is not None:
            client.execute_command("TS.ADD", f"{key}:oi", at, oi)
    series = get_historical_oi(client, "NFO:NIFTY-FUT")
    client.close()
    assert series.tolist() == [500.0, 700.0]
