"""Bars that formed when a daemon ended: from busy streams, and of instruments that trade rarely and late."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import redis.asyncio
from redis.asyncio import Redis

from services.market_data.bar_builder import BarBuilder
from services.market_data.bars import Bar
from services.market_data.records import FLAG_DELAYED, DataIngestionFormat, Record
from services.storage import stream_end
from services.storage.ask_many import ask_many
from services.storage.bar_recall import BarRecall
from services.storage.stream_end import read_stream_end
from tests.support.bar_rig import BarRig, assert_bars_are_true, marked, walk

KEYS = [f"CRYPTO:C{number}-USD" for number in range(5)]
DAY = [("2026-12-01T00:00+00:00", "2026-12-02T00:00+00:00")]
BEGIN = "2026-12-01T10:00:01"
EVERY_MS = 20


def at(text: str) -> int:
    return int(pd.Timestamp(text, tz="UTC").timestamp() * 1000)


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[Redis]:
    client = redis.asyncio.from_url(redis_url, decode_responses=True)
    yield client
    await client.aclose()


def busy(seconds: int, *, shared: float) -> list[tuple[int, Record]]:
    """Trades of all instruments every 20 ms; some share the millisecond of the one before."""
    dice = random.Random(5)
    arrivals: list[tuple[int, Record]] = []
    for number in range(seconds * 1_000 // EVERY_MS):
        at_ms = at(BEGIN) + number * EVERY_MS
        for key in KEYS:
            price = round(100 + dice.random(), 2)
            for _ in range(1 + (dice.random() < shared)):
                volume = dice.randint(1, 9)
                tick = DataIngestionFormat(key, price, volume, at_ms, "DHAN", exchange="CRYPTO")
                arrivals.append((at_ms + 3, tick))
    return arrivals


def forming(builder: Any) -> list[Bar]:
    found = [builder.forming(key, "1m") for key in KEYS]
    assert all(found)
    return found


def counts(bars: list[Bar]) -> list[int]:
    return [bar.ticks for bar in bars]


def figures(bars: list[Bar]) -> list[tuple[Any, ...]]:
    return [(bar.start_ms, bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in bars]


class CountingReads:
    """Counts the entries of streams that are read through a client."""

    def __init__(self, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entries = 0
        for name in ("xrange", "xrevrange"):
            monkeypatch.setattr(client, name, self._counted(getattr(client, name)))

        async def counted_pages(asked: Redis, commands: list[str]) -> list[Any]:
            assert asked is client
            pages = await ask_many(asked, commands)
            self.entries += sum(map(len, pages))
            return pages

        monkeypatch.setattr(stream_end, "ask_many", counted_pages)

    def _counted(self, read: Any) -> Any:
        async def counted(*arguments: Any, **options: Any) -> Any:
            page = await read(*arguments, **options)
            self.entries += len(page)
            return page

        return counted


@pytest.mark.parametrize("most", [700, 2_000, 100_000])
async def test_a_busy_minute_comes_back_whole_from_a_bounded_part_of_the_stream(
    most: int, redis_url: str, client: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arrivals = busy(40, shared=0.3)
    async with BarRig(redis_url, tmp_path / "one", at(BEGIN)).running() as rig:
        await rig.play(arrivals)
        await rig.settle()
        before = forming(rig.bars)
        ticks = [tick for _, tick in arrivals if isinstance(tick, DataIngestionFormat)]
        last = (ticks[-1].position_ms, ticks[-1].position_seq)
        reads = CountingReads(client, monkeypatch)
        builder = BarBuilder(rig.grid)
        recall = BarRecall(client, builder, rig.grid, rig.spool, most=most)
        newest = {tick.symbol: tick for tick in ticks}
        await recall.run({"CRYPTO": last}, dict.fromkeys(KEYS, "CRYPTO"), newest)
        # One more is looked at to see how far back the stream goes.
        assert reads.entries <= min(most, len(ticks) + 1)
        after = forming(builder)
    assert figures(after) == figures(before)
    # Only trades of one millisecond that were not read in the stream cannot be told apart.
    moments = [(tick.symbol, tick.timestamp) for tick in ticks[:-most]]
    hidden = len(moments) - len(set(moments))
    assert (hidden > 0) == (most < len(ticks))
    assert sum(counts(after)) >= sum(counts(before)) - hidden - len(KEYS) * (hidden > 0)
    assert all(now <= was for now, was in zip(counts(after), counts(before), strict=True))


async def test_what_is_read_of_a_stream_is_bounded_after_a_lull_as_well(
    redis_url: str, client: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its newest entries lie far apart, and a crowd of others before them."""
    arrivals = busy(30, shared=0.0)
    last_ms = arrivals[-1][0]
    lull: list[tuple[int, Record]] = [
        (
            last_ms + 500 * number,
            DataIngestionFormat(KEYS[0], 1.0, 1, last_ms + 500 * number, "DHAN", exchange="CRYPTO"),
        )
        for number in range(1, 41)
    ]
    async with BarRig(redis_url, tmp_path, at(BEGIN)).running() as rig:
        await rig.play([*arrivals, *lull])
        await rig.settle()
        position = (rig.sequencer.positions()["CRYPTO"]).split("-")
        last = (int(position[0]), int(position[1]))
        reads = CountingReads(client, monkeypatch)
        end = await read_stream_end(client, "CRYPTO", last, last[0] - 150_000, most=300)
        assert reads.entries == 300 == len(end.records)
        assert (end.records[-1].position_ms, end.records[-1].position_seq) == last
        assert end.whole_ms == end.records[0].position_ms + 1


@pytest.mark.parametrize("most", [250, 1_500, 100_000])
async def test_a_gateway_beside_a_running_daemon_counts_nothing_twice(
    most: int, redis_url: str, client: Redis, tmp_path: Path
) -> None:
    arrivals = busy(20, shared=0.0)
    async with BarRig(redis_url, tmp_path, at(BEGIN)).running() as rig:
        await rig.play(arrivals)
        await rig.settle()
        truth = forming(rig.bars)
        records = [record for _, record in arrivals]
        for behind in (0, 1, 7, 100, 333):
            # It looked at the positions, and the daemon went on writing.
            known = records[: len(records) - behind]
            last = (known[-1].position_ms, known[-1].position_seq)
            newest = {tick.symbol: tick for tick in records if isinstance(tick, DataIngestionFormat)}
            builder = BarBuilder(rig.grid, follow=True)
            recall = BarRecall(client, builder, rig.grid, most=most)
            await recall.run({"CRYPTO": last}, dict.fromkeys(KEYS, "CRYPTO"), newest)
            for record in records[len(records) - behind :]:
                assert isinstance(record, DataIngestionFormat)
                builder.take(record)
            assert figures(forming(builder)) == figures(truth), behind
            assert counts(forming(builder)) == counts(truth), behind


@pytest.mark.parametrize("flags", [FLAG_DELAYED, 0])
@pytest.mark.parametrize(
    "stops",
    [
        # Both trades of its minute, or the first, or neither are in the end of the stream.
        "2026-12-01T10:19:30",
        "2026-12-01T10:20:00",
        "2026-12-01T10:21:30",
        # The first trade of a minute, and all of the one before was said.
        "2026-12-01T10:34:00",
    ],
)
async def test_the_minute_of_a_delayed_instrument_that_trades_now_and_then_survives_a_restart(
    stops: str, flags: int, redis_url: str, client: Redis, tmp_path: Path
) -> None:
    sparse, lively = KEYS[:2]
    trades = ["09:58:20", "10:02:10.500", "10:02:50", "10:11:15", "10:18:40", "10:18:45"]
    arrivals: list[tuple[int, Record]] = []
    for number, moment in enumerate(trades):
        at_ms = at(f"2026-12-01T{moment}")
        tick = DataIngestionFormat(sparse, 100.0 + number, 10 + number, at_ms, "YF", exchange="CRYPTO")
        arrivals.append((at_ms + 15 * 60_000, marked(tick, flags)))
    spans = [(at("2026-12-01T10:12:00"), at("2026-12-01T10:50:00"))]
    arrivals += walk(lively, spans, every_ms=3_000, seed=2)
    arrivals.sort(key=lambda arrival: arrival[0])
    before = [row for row in arrivals if row[0] < at(stops)]
    after = [row for row in arrivals if row[0] >= at(stops)]
    async with BarRig(redis_url, tmp_path / "one", at("2026-12-01T09:50:00")).running() as rig:
        await rig.play(before)
        rig.until(at(stops))
        await rig.settle()
    async with BarRig(redis_url, tmp_path / "two", at(stops) + 2_000).running() as rig:
        await rig.recall(client, [sparse, lively])
        await rig.play(after)
        rig.until(at("2026-12-02T00:40:00"))
        await rig.settle()
        for key in (sparse, lively):
            await assert_bars_are_true(client, key, DAY)
