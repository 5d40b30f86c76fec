"""Bars of history into the series of a real Redis: idempotent, with the longer bars, as live ones are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import redis.asyncio

from services.errors import StorageError
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import Bar, bar_record
from services.market_data.calendar import MarketCalendar, Phase
from services.market_data.clock import SystemClock
from services.market_data.records import ControlRecord
from services.storage.bar_series import read_bars
from services.storage.bar_series_writer import BarSeriesWriter
from services.storage.client import make_client
from services.storage.past_bars import write_candles
from services.storage.retention import Retention
from services.storage.spool import Spool
from tests.support.bar_rig import BarRig, assert_bars_are_true, stored_series, walk
from tests.support.past_bars import write_bars
from tests.support.storage import drained, offer, quick, running

GRID = BarGrid(MarketCalendar())
YEAR = Retention(365 * 86_400_000)
KEY = "NSE:RELIANCE"
DAY_MS = 86_400_000


def at(text: str) -> int:
    return int(pd.Timestamp(text, tz="Asia/Kolkata").timestamp() * 1000)


OPENS, CLOSES = at("2026-12-01T09:15"), at("2026-12-01T15:30")
SESSIONS = [("2026-12-01T09:15+05:30", "2026-12-01T15:30+05:30")]


async def test_history_makes_the_same_series_as_the_live_bars(redis_url: str, tmp_path: Path) -> None:
    client = make_client(redis_url)
    plain = redis.asyncio.from_url(redis_url, decode_responses=True)
    async with BarRig(redis_url, tmp_path, OPENS - 60_000).running() as rig:
        await rig.play(walk(KEY, [(OPENS, CLOSES)], every_ms=40_000, seed=3))
        rig.until(CLOSES + 60_000)
        await rig.settle()
        await assert_bars_are_true(plain, KEY, SESSIONS)
    intervals = ("1m", "5m", "15m", "1h", "1d")
    live = {interval: await stored_series(plain, KEY, interval) for interval in intervals}
    minutes = await read_bars(client, KEY, "NSE", "1m", OPENS, CLOSES)
    info = await plain.ts().info(f"md:ts:{{{KEY}}}:1m:open")
    await plain.flushall()
    for _ in range(2):
        left = await write_bars(client, minutes, retention=YEAR, grid=GRID, now_ms=CLOSES + 15_000)
        assert left == {}
        assert {name: await stored_series(plain, KEY, name) for name in intervals} == live
    again = await plain.ts().info(f"md:ts:{{{KEY}}}:1m:open")
    for fact in ("labels", "retention_msecs", "chunk_size", "duplicate_policy"):
        assert getattr(info, fact) == getattr(again, fact), fact
    await client.aclose()
    await plain.aclose()


@pytest.mark.parametrize("days_later", [0, 3])
async def test_an_empty_series_gets_the_same_bars_as_one_that_held_some(
    redis_url: str, days_later: int
) -> None:
    client = make_client(redis_url)
    plain = redis.asyncio.from_url(redis_url, decode_responses=True)
    minutes = [bar(OPENS + number * 60_000, number, volume=None) for number in range(3)]
    minutes += [bar(OPENS + number * 60_000, number % 17) for number in range(5, 375) if number % 7]
    now_ms = CLOSES + 60_000 + days_later * DAY_MS
    # At once: nothing is read back where all is known. In two parts: the second finds the first stored.
    await write_bars(client, minutes, retention=YEAR, grid=GRID, now_ms=now_ms)
    intervals = ("1m", "5m", "15m", "1h", "1d")
    at_once = {name: await stored_series(plain, KEY, name) for name in intervals}
    assert [len(series) for series in at_once.values()] == [len(minutes), 75, 25, 7, 1]
    assert at_once["5m"][OPENS] == (100.0, 110.0, 90.0, 102.0, None)
    assert at_once["1d"][OPENS][4] == sum(minute.volume or 0 for minute in minutes)
    await plain.flushall()
    await write_bars(client, minutes[150:], retention=YEAR, grid=GRID, now_ms=now_ms)
    await write_bars(client, minutes[:150], retention=YEAR, grid=GRID, now_ms=now_ms)
    assert {name: await stored_series(plain, KEY, name) for name in intervals} == at_once
    await client.aclose()
    await plain.aclose()


async def test_an_empty_series_costs_one_refusal_each_and_no_reading(redis_url: str) -> None:
    client = make_client(redis_url)
    plain = redis.asyncio.from_url(redis_url, decode_responses=True)
    await plain.config_resetstat()
    minutes = [bar(OPENS + number * 60_000, number % 17) for number in range(375)]
    await write_bars(client, minutes, retention=YEAR, grid=GRID, now_ms=CLOSES + 3 * DAY_MS)
    told = await plain.info("commandstats")
    calls = {name.lower().removeprefix("cmdstat_"): figures["calls"] for name, figures in told.items()}
    assert calls["ts.create"] == 25
    assert calls["ts.madd"] <= 12
    assert "ts.range" not in calls
    await client.aclose()
    await plain.aclose()


async def test_a_day_that_a_source_gave_is_not_made_of_minutes(redis_url: str) -> None:
    client = make_client(redis_url)
    plain = redis.asyncio.from_url(redis_url, decode_responses=True)
    now_ms = CLOSES + 3 * DAY_MS
    await write_bars(client, [bar(OPENS, 7, interval="1d")], retention=YEAR, grid=GRID, now_ms=now_ms)
    given = await stored_series(plain, KEY, "1d")
    rows = [(OPENS // 1000 + 60 * number, 50.0, 51.0, 49.0, 50.5, 10) for number in range(375)]
    for kept, expected in (([OPENS], given), ([], {OPENS: (50.0, 51.0, 49.0, 50.5, 3750)})):
        await write_candles(
            client,
            KEY,
            "NSE",
            "1m",
            rows,
            retention=YEAR,
            grid=GRID,
            now_ms=now_ms,
            days_kept=kept,
        )
        assert await stored_series(plain, KEY, "1d") == expected
        assert len(await stored_series(plain, KEY, "1h")) == 7
    await client.aclose()
    await plain.aclose()


async def test_a_day_that_is_not_over_gets_its_finished_bars_and_names_its_minutes(redis_url: str) -> None:
    client = make_client(redis_url)
    plain = redis.asyncio.from_url(redis_url, decode_responses=True)
    first = [bar(OPENS + number * 60_000, number) for number in range(10)]
    await write_bars(client, first, retention=YEAR, grid=GRID, now_ms=OPENS + 3_600_000)
    later = [bar(OPENS + 50 * 60_000, 50)]
    left = await write_bars(client, later, retention=YEAR, grid=GRID, now_ms=OPENS + 3_600_000 - 1)
    assert [minute.start_ms for minute in left[KEY]] == [minute.start_ms for minute in (*first, later[0])]
    assert len(await stored_series(plain, KEY, "1m")) == 11
    fifteen = await stored_series(plain, KEY, "15m")
    assert fifteen == {OPENS: (100.0, 110.0, 90.0, 109.0, 45)}, "the second one was not over"
    assert await stored_series(plain, KEY, "1h") == {OPENS: (100.0, 110.0, 90.0, 109.0, 45)}
    await client.aclose()
    await plain.aclose()


async def test_days_are_stored_as_they_come_and_an_occupied_key_is_an_error(redis_url: str) -> None:
    client = make_client(redis_url)
    plain = redis.asyncio.from_url(redis_url, decode_responses=True)
    day = bar(OPENS, 7, interval="1d", volume=None)
    assert await write_bars(client, [day], retention=YEAR, grid=GRID, now_ms=OPENS) == {}
    assert await stored_series(plain, KEY, "1d") == {OPENS: (107.0, 117.0, 97.0, 107.0, None)}
    assert not await plain.exists(f"md:ts:{{{KEY}}}:1d:volume")
    await plain.set("md:ts:{NSE:TCS}:1d:open", "something else")
    with pytest.raises(StorageError):
        await write_bars(
            client, [bar(OPENS, 7, instrument="NSE:TCS", interval="1d")], retention=YEAR, grid=GRID, now_ms=0
        )
    await client.aclose()
    await plain.aclose()


def bar(start_ms: int, number: int, **fields: object) -> Bar:
    price = 100.0 + number
    values: dict[str, object] = {
        "instrument": KEY,
        "exchange": "NSE",
        "interval": "1m",
        "start_ms": start_ms,
        "open": price,
        "high": 110.0 if number < 10 and fields.get("interval") != "1d" else price + 10,
        "low": 90.0 if number < 10 and fields.get("interval") != "1d" else price - 10,
        "close": price,
        "volume": number,
    }
    return Bar(**(values | fields))  # type: ignore[arg-type]


async def test_retention_differs_by_exchange_and_an_old_series_takes_over_a_new_one(redis_url: str) -> None:
    client = make_client(redis_url)
    plain = redis.asyncio.from_url(redis_url, decode_responses=True)
    crypto = "CRYPTO:BTC-USD"
    moment = at("2026-12-01T10:00")

    def said(key: str) -> ControlRecord:
        exchange = key.partition(":")[0]
        record = bar_record(bar(moment, 1, instrument=key, exchange=exchange), moment)
        record.position_ms = moment
        return record

    async def kept(key: str) -> int:
        return (await plain.ts().info(f"md:ts:{{{key}}}:1m:close")).retention_msecs

    for by_exchange, days in (({"CRYPTO": 5 * DAY_MS}, 5), ({"CRYPTO": 7 * DAY_MS}, 7)):
        writer = BarSeriesWriter(
            redis_url,
            clock=SystemClock(),
            retention_ms=9 * DAY_MS,
            retention_by_exchange=by_exchange,
            **quick(),
        )
        async with running(writer):
            offer([said(KEY), said(crypto)], writer)
            await drained(writer)
            offer([said(KEY), said(crypto)], writer)
            await drained(writer)
        assert await kept(KEY) == 9 * DAY_MS
        assert await kept(crypto) == days * DAY_MS
    await client.aclose()
    await plain.aclose()


async def test_what_is_no_bar_is_refused_and_what_is_extended_not_taken(redis_url: str) -> None:
    client = redis.asyncio.from_url(redis_url, decode_responses=True)
    writer = BarSeriesWriter(redis_url, clock=SystemClock(), **quick())
    good = bar_record(bar(OPENS, 1), OPENS)
    broken = ControlRecord("bar", KEY, "NSE", OPENS, OPENS, "DHAN", {"i": "1m", "s": OPENS})
    other = ControlRecord("gap", KEY, "NSE", OPENS, OPENS, "DHAN", {"from": 1, "to": 2})
    extended = bar_record(bar(OPENS, 1, phase=Phase.PRE), OPENS)
    async with running(writer):
        offer([broken, good, other, extended], writer)
        await drained(writer)
    assert writer.counters.rejected == {"bad_value": 1}
    assert (writer.counters.offered, writer.counters.written) == (2, 1)
    assert list(await stored_series(client, KEY, "1m")) == [OPENS]
    await client.aclose()


async def test_what_waits_on_disk_never_overtakes_a_later_revision(redis_url: str, tmp_path: Path) -> None:
    client = redis.asyncio.from_url(redis_url, decode_responses=True)

    def said(number: int, price: int, revision: int) -> ControlRecord:
        made = bar(OPENS + number * 60_000, price, revision=revision)
        record = bar_record(made, OPENS)
        record.position_ms, record.position_seq = OPENS, 2 * number + revision
        return record

    spool = Spool(tmp_path)
    await spool.open()
    away = BarSeriesWriter(
        "redis://127.0.0.1:1/0", clock=SystemClock(), spool=spool.channels["bar_series"], **quick()
    )
    async with running(away):
        offer([said(number, 1, 0) for number in range(300)], away)
        await away.drain(0)
    writer = BarSeriesWriter(redis_url, clock=SystemClock(), spool=spool.channels["bar_series"], **quick())
    offer([said(299, 7, 1)], writer)
    async with running(writer):
        await drained(writer)
    stored = await stored_series(client, KEY, "1m")
    assert len(stored) == 300
    assert stored[OPENS + 299 * 60_000][0] == 107.0
    await spool.close()
    await client.aclose()
