"""Bars over restarts and outages of a real Redis: none wrong, missing or said twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pandas as pd
import pytest
import redis.asyncio

from services.market_data.bars import Bar
from services.market_data.records import FLAG_DELAYED, DataIngestionFormat, Record
from services.storage.keys import BAR_FIELDS
from services.storage.retention import Retention
from tests.support.bar_rig import (
    BarRig,
    assert_bars_are_true,
    marked,
    said_bars,
    stored_series,
    stored_ticks,
    walk,
)
from tests.support.eventually import eventually
from tests.support.past_bars import write_bars
from tests.support.servers import PrivateRedis

KEY = "CRYPTO:BTC-USD"
DAY = [
    ("2026-12-01T00:00+00:00", "2026-12-02T00:00+00:00"),
    ("2026-12-02T00:00+00:00", "2026-12-03T00:00+00:00"),
]


def at(text: str) -> int:
    return int(pd.Timestamp(text, tz="UTC").timestamp() * 1000)


def market(first: str, last: str) -> list[tuple[int, DataIngestionFormat]]:
    arrivals = list(walk(KEY, [(at(first), at(last))], every_ms=6_000, seed=11))
    return sorted(arrivals, key=lambda arrival: arrival[0])


def parted(
    arrivals: list[tuple[int, DataIngestionFormat]], moment: int
) -> tuple[list[tuple[int, Record]], list[tuple[int, Record]]]:
    before: list[tuple[int, Record]] = [row for row in arrivals if row[0] < moment]
    after: list[tuple[int, Record]] = [row for row in arrivals if row[0] >= moment]
    return before, after


@pytest.mark.parametrize(
    ("stops", "starts"),
    [
        ("2026-12-01T10:17:33", "2026-12-01T10:17:41"),
        ("2026-12-01T10:20:00.500", "2026-12-01T10:20:02"),
        ("2026-12-01T10:29:59.900", "2026-12-01T10:47:10"),
        ("2026-12-01T11:01:10", "2026-12-01T13:30:00"),
        ("2026-12-01T23:59:40", "2026-12-02T00:00:20"),
    ],
)
@pytest.mark.parametrize("short_stream", [False, True])
async def test_a_restart_builds_again_what_was_forming(
    stops: str, starts: str, short_stream: bool, redis_url: str, tmp_path: Path
) -> None:
    first = str(pd.Timestamp(stops).floor("1h") - pd.Timedelta("70min"))
    arrivals = market(first, str(pd.Timestamp(starts) + pd.Timedelta("20min")))
    client = redis.asyncio.from_url(redis_url, decode_responses=True)
    before, after = parted(arrivals, at(stops))
    async with BarRig(redis_url, tmp_path / "one", at(first)).running() as rig:
        await rig.play(before)
        rig.until(at(stops))
        await rig.settle()
    said = len(await said_bars(client, KEY))
    if short_stream:
        await client.xtrim("md:ticks:CRYPTO", maxlen=8, approximate=False)
    else:
        # The last bar was said, and the daemon killed before its samples were written.
        last = (await said_bars(client, KEY))[-1]
        for field in BAR_FIELDS:
            series = f"md:ts:{{{KEY}}}:{last.interval}:{field}"
            await client.ts().delete(series, last.start_ms, last.start_ms)
    async with BarRig(redis_url, tmp_path / "two", at(starts)).running() as rig:
        await rig.recall(client, [KEY])
        await rig.play([row for row in after if row[0] >= at(starts)])
        rig.until(at(starts) + 2 * 86_400_000)
        await rig.settle()
        if short_stream:
            # The trades of before are gone from the stream; their bars and series are not.
            await assert_minutes_are_the_series_of_ticks(client)
        else:
            assert len(await said_bars(client, KEY)) > said
            await assert_bars_are_true(client, KEY, DAY)
    await client.aclose()


@pytest.mark.parametrize(
    ("stops", "starts"),
    [
        ("2026-12-01T10:17:33", "2026-12-01T10:17:41"),
        ("2026-12-01T10:20:01.500", "2026-12-01T10:20:03"),
        ("2026-12-01T11:16:10", "2026-12-01T11:19:00"),
        ("2026-12-02T00:14:40", "2026-12-02T00:15:20"),
    ],
)
@pytest.mark.parametrize("flags", [FLAG_DELAYED, 0])
async def test_a_restart_builds_again_what_was_forming_of_delayed_instruments(
    stops: str, starts: str, flags: int, redis_url: str, tmp_path: Path
) -> None:
    first = str(pd.Timestamp(stops).floor("1h") - pd.Timedelta("70min"))
    arrivals = [
        (at_ms + 15 * 60_000, marked(tick, flags))
        for at_ms, tick in market(first, str(pd.Timestamp(starts) + pd.Timedelta("20min")))
    ]
    client = redis.asyncio.from_url(redis_url, decode_responses=True)
    before, after = parted(arrivals, at(stops))
    async with BarRig(redis_url, tmp_path / "one", at(first)).running() as rig:
        await rig.play(before)
        rig.until(at(stops))
        await rig.settle()
    async with BarRig(redis_url, tmp_path / "two", at(starts)).running() as rig:
        await rig.recall(client, [KEY])
        await rig.play([row for row in after if row[0] >= at(starts)])
        rig.until(at(starts) + 2 * 86_400_000)
        await rig.settle()
        await assert_bars_are_true(client, KEY, DAY)
    await client.aclose()


async def test_a_trade_that_came_much_too_late_makes_no_bar_after_a_restart_either(
    redis_url: str, tmp_path: Path
) -> None:
    other = "CRYPTO:ETH-USD"
    spans = [(at("2026-12-01T10:00:00"), at("2026-12-01T10:30:00"))]
    traded = market("2026-12-01T10:00:00", "2026-12-01T10:06:00")
    straggler = DataIngestionFormat(KEY, 1.0, 9, at("2026-12-01T10:05:50"), "DHAN", exchange="CRYPTO")
    arrivals = [*traded, *walk(other, spans, every_ms=6_000, seed=3), (at("2026-12-01T10:19:30"), straggler)]
    stops = at("2026-12-01T10:20:10")
    before, after = parted(sorted(arrivals, key=lambda row: row[0]), stops)
    client = redis.asyncio.from_url(redis_url, decode_responses=True)
    async with BarRig(redis_url, tmp_path / "one", at("2026-12-01T09:59:00")).running() as rig:
        await rig.play(before)
        rig.until(stops)
        await rig.settle()
        assert rig.bars.status()["not_in_bars"] == {"too_late": 1}
    minutes = await stored_series(client, KEY, "1m")
    assert minutes[at("2026-12-01T10:05:00")][2] > 1_000
    async with BarRig(redis_url, tmp_path / "two", stops + 5_000).running() as rig:
        await rig.recall(client, [KEY, other])
        await rig.play(after)
        rig.until(at("2026-12-02T00:01:00"))
        await rig.settle()
    assert await stored_series(client, KEY, "1m") == minutes
    said = [(bar.interval, bar.start_ms) for bar in await said_bars(client, KEY)]
    assert len(said) == len(set(said)), "said twice"
    await client.aclose()


async def assert_minutes_are_the_series_of_ticks(client: redis.asyncio.Redis) -> None:
    samples = await client.ts().range(f"md:ts:{{{KEY}}}:price", "-", "+")
    prices = pd.Series(
        [float(p) for _, p in samples], index=pd.to_datetime([t for t, _ in samples], unit="ms")
    )
    for interval, rule in (("1m", "1min"), ("1h", "1h"), ("1d", "1D")):
        expected = prices.resample(rule).ohlc().dropna()
        for field in ("open", "high", "low", "close"):
            stored = await client.ts().range(f"md:ts:{{{KEY}}}:{interval}:{field}", "-", "+")
            assert [(t, float(v)) for t, v in stored] == [
                (int(at.timestamp() * 1000), float(value)) for at, value in expected[field].items()
            ], (interval, field)


async def test_an_outage_over_the_end_of_minutes_costs_no_bar(
    private_redis: Callable[[], Awaitable[PrivateRedis]], tmp_path: Path
) -> None:
    server = await private_redis()
    arrivals = market("2026-12-01T23:50:00", "2026-12-02T00:12:00")
    before, rest = parted(arrivals, at("2026-12-01T23:58:30"))
    away, after = parted([row for row in arrivals if row in rest], at("2026-12-02T00:03:10"))
    client = redis.asyncio.from_url(server.url, decode_responses=True)
    async with BarRig(server.url, tmp_path, at("2026-12-01T23:49:00")).running() as rig:
        await rig.play(before)
        await rig.settle()
        await server.kill()
        await rig.play(away)
        await eventually(lambda: rig.bar_series.counters.spooled > 0, within_s=10)
        await server.start()
        await rig.play(after)
        rig.until(at("2026-12-03T00:01:00"))
        await eventually(lambda: not any(sink.counters.spooled or sink.queued for sink in rig.writers), 20)
        await assert_bars_are_true(client, KEY, DAY)
        # The stream is what the bars are held against, so it has to be whole itself.
        assert len(await stored_ticks(client, KEY)) == len(arrivals)
    await client.aclose()


async def test_a_restart_during_an_outage_finds_ticks_and_bars_on_disk(
    private_redis: Callable[[], Awaitable[PrivateRedis]], tmp_path: Path
) -> None:
    server = await private_redis()
    arrivals = market("2026-12-01T10:00:00", "2026-12-01T10:50:00")
    stops = at("2026-12-01T10:34:20")
    before, rest = parted(arrivals, at("2026-12-01T10:12:30"))
    away, after = parted([row for row in arrivals if row in rest], stops)
    client = redis.asyncio.from_url(server.url, decode_responses=True)
    async with BarRig(server.url, tmp_path, at("2026-12-01T09:59:00")).running() as rig:
        await rig.play(before)
        await rig.settle()
        # Who is stopped before Redis is back can tell it nothing again of what it forgot.
        await server.logged()
        await server.kill()
        await rig.play(away)
        rig.until(stops)
        await asyncio.gather(*(writer.drain(0.0) for writer in rig.writers))
        assert rig.bar_series.counters.spooled > 20
    await server.start()
    async with BarRig(server.url, tmp_path, stops + 1_000).running() as rig:
        # Before the writers had a turn: Redis knows nothing of the last twenty minutes.
        found = await rig.recall(client, [KEY])
        assert found.said
        await rig.play(after)
        rig.until(at("2026-12-02T00:01:00"))
        await eventually(lambda: not any(sink.counters.spooled or sink.queued for sink in rig.writers), 20)
        await assert_bars_are_true(client, KEY, DAY[:1])
    await client.aclose()


@pytest.mark.parametrize("starts", ["2026-12-01T10:47:10", "2026-12-02T09:00:20"])
async def test_what_was_fetched_while_nobody_ran_is_not_written_over_at_the_start(
    starts: str, redis_url: str, tmp_path: Path
) -> None:
    stops = at("2026-12-01T10:17:33")
    before, after = parted(market("2026-12-01T09:05:00", "2026-12-01T10:55:00"), stops)
    client = redis.asyncio.from_url(redis_url, decode_responses=True)
    async with BarRig(redis_url, tmp_path / "one", at("2026-12-01T09:04:00")).running() as rig:
        await rig.play(before)
        rig.until(stops)
        await rig.settle()
    fetched = [
        Bar(
            instrument=KEY,
            exchange="CRYPTO",
            interval="1m",
            start_ms=at("2026-12-01T10:17:00") + number * 60_000,
            open=1e6,
            high=2e6,
            low=1.0,
            close=1e6,
            volume=1_000_000,
        )
        for number in range(28)
    ]
    retention, now_ms = Retention(365 * 86_400_000), at(starts)
    await write_bars(client, fetched, retention=retention, grid=rig.grid, now_ms=now_ms)
    async with BarRig(redis_url, tmp_path / "two", now_ms).running() as rig:
        await rig.recall(client, [KEY])
        rig.until(now_ms + 30_000)
        await rig.play([row for row in after if row[0] >= now_ms])
        rig.until(at("2026-12-03T00:01:00"))
        await rig.settle()
    minutes = await stored_series(client, KEY, "1m")
    assert {minutes[bar.start_ms] for bar in fetched} == {(1e6, 2e6, 1.0, 1e6, 1_000_000)}
    (day,) = (await stored_series(client, KEY, "1d")).values()
    rows = list(minutes.values())
    assert day == (rows[0][0], 2e6, 1.0, rows[-1][3], sum(row[4] or 0 for row in rows))
    hours = await stored_series(client, KEY, "1h")
    assert hours[at("2026-12-01T10:00:00")][1:3] == (2e6, 1.0)
    await client.aclose()
