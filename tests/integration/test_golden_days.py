"""Whole market days on a real Redis: bars of every interval are a pandas resample of the stored ticks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import redis.asyncio

from services.market_data.records import (
    FLAG_LATE,
    FLAG_SNAPSHOT,
    FLAG_SUSPECT,
    ControlRecord,
    DataIngestionFormat,
    Record,
)
from tests.support.bar_rig import BarRig, assert_bars_are_true, marked, said_bars, stored_series, walk

KOLKATA, NEW_YORK = "Asia/Kolkata", "America/New_York"


def at(text: str, zone: str = "UTC") -> int:
    return int(pd.Timestamp(text, tz=zone).timestamp() * 1000)


def local(day: str, opens: str, closes: str, zone: str) -> tuple[str, str]:
    return tuple(pd.Timestamp(f"{day}T{moment}", tz=zone).isoformat() for moment in (opens, closes))  # type: ignore[return-value]


DAYS = {
    "an ordinary day in India": (
        "NSE:RELIANCE",
        KOLKATA,
        ["2026-12-01T09:00 2026-12-01T16:05"],
        [local("2026-12-01", "09:15", "15:30", KOLKATA)],
    ),
    "a Muhurat session": (
        "NSE:RELIANCE",
        KOLKATA,
        ["2025-10-21T13:30 2025-10-21T15:00"],
        [local("2025-10-21", "13:45", "14:45", KOLKATA)],
    ),
    "a half day in New York": (
        "NASDAQ:AAPL",
        NEW_YORK,
        ["2026-11-27T08:00 2026-11-27T17:05"],
        [local("2026-11-27", "09:30", "13:00", NEW_YORK)],
    ),
    "the days around a change of New York's clocks": (
        "NYSE:JPM",
        NEW_YORK,
        ["2026-10-30T09:00 2026-10-30T16:30", "2026-11-02T09:00 2026-11-02T16:30"],
        [local(day, "09:30", "16:00", NEW_YORK) for day in ("2026-10-30", "2026-11-02")],
    ),
    "a day and a half that never close": (
        "CRYPTO:BTC-USD",
        "UTC",
        ["2026-12-01T00:00 2026-12-02T13:00"],
        [
            ("2026-12-01T00:00+00:00", "2026-12-02T00:00+00:00"),
            ("2026-12-02T00:00+00:00", "2026-12-03T00:00+00:00"),
        ],
    ),
}


@pytest.mark.parametrize("name", DAYS)
async def test_every_bar_of_the_day_is_what_the_stored_ticks_make(
    name: str, redis_url: str, tmp_path: Path
) -> None:
    key, zone, traded, sessions = DAYS[name]
    spans = [(at(first, zone), at(last, zone)) for first, last in (span.split() for span in traded)]
    client = redis.asyncio.from_url(redis_url, decode_responses=True)
    async with BarRig(redis_url, tmp_path, spans[0][0] - 60_000).running() as rig:
        await rig.play(walk(key, spans, every_ms=40_000, seed=7))
        rig.until(int(pd.Timestamp(sessions[-1][1]).timestamp() * 1000) + 60_000)
        await rig.settle()
        await assert_bars_are_true(client, key, sessions)
        extended = [bar for bar in await said_bars(client, key) if bar.phase.value != "regular"]
        assert bool(extended) == (
            key.partition(":")[0] in ("NSE", "NASDAQ", "NYSE") and "Muhurat" not in name
        )
        assert {bar.interval for bar in extended} <= {"1m"}
    await client.aclose()


async def test_gaps_late_and_double_ticks_and_a_switch_inside_a_minute_leave_true_bars(
    redis_url: str, tmp_path: Path
) -> None:
    key, opens = "NSE:RELIANCE", at("2026-12-01T09:15", KOLKATA)
    hour = 3_600_000
    gaps = [
        (opens + 600_000 + 20_000, opens + 900_000),
        (opens + hour, opens + 2 * hour),
        (opens + 3 * hour - 5_000, opens + 3 * hour + 5_000),
    ]
    edges = [opens, *(moment for gap in gaps for moment in gap), at("2026-12-01T15:30", KOLKATA)]
    flowing = list(zip(edges[::2], edges[1::2], strict=True))
    arrivals: list[tuple[int, Record]] = []
    for number, span in enumerate(flowing):
        arrivals += walk(key, [span], every_ms=30_000, seed=number, provider="YF" if number == 2 else "DHAN")
    ticks = [record for _, record in arrivals if isinstance(record, DataIngestionFormat)]
    # The same trade twice, trades that come late for finished and unfinished bars, a snapshot, a bad price.
    for tick in ticks[50:250:20]:
        arrivals.append((tick.timestamp + 400, copy(tick)))
    for number, tick in enumerate(ticks[100::50]):
        late = marked(
            copy(tick, price=tick.price + 25 - 50 * (number % 2), volume=None, timestamp=tick.timestamp + 3),
            FLAG_LATE,
        )
        arrivals.append((tick.timestamp + (5_000, 70_000, 280_000)[number % 3], late))
    arrivals.append((ticks[30].timestamp + 1, marked(copy(ticks[30], price=1.0), FLAG_SNAPSHOT)))
    arrivals.append((ticks[40].timestamp + 1, marked(copy(ticks[40], price=9_999.0), FLAG_SUSPECT)))
    inside = opens + 4 * hour
    arrivals.append((inside + 30_000, copy(ticks[0], price=2_500.0, timestamp=inside + 29_000)))
    arrivals.append(
        (inside + 31_000, copy(ticks[0], price=2_501.0, timestamp=inside + 30_000, provider_code="YF"))
    )
    for first, last in gaps:
        fields: dict[str, str | int] = {"from": first, "to": last, "reason": "disconnected"}
        arrivals.append((last + 2, ControlRecord("gap", key, "NSE", last, last, "DHAN", fields)))
    arrivals.sort(key=lambda arrival: arrival[0])
    client = redis.asyncio.from_url(redis_url, decode_responses=True)
    async with BarRig(redis_url, tmp_path, opens - 60_000).running() as rig:
        await rig.play(arrivals)
        rig.until(at("2026-12-01T15:36", KOLKATA))
        await rig.settle()
        await assert_bars_are_true(client, key, [local("2026-12-01", "09:15", "15:30", KOLKATA)])
        said = await said_bars(client, key)
        assert any(bar.revision for bar in said), "no late tick came after its bar"
        minutes = {bar.start_ms: bar for bar in said if bar.interval == "1m"}
        assert set(minutes[inside].sources) == {"DHAN", "YF"}
        (day,) = [bar for bar in said if bar.interval == "1d" and not bar.revision]
        assert day.covered_ms == at("2026-12-01T15:30", KOLKATA) - opens - sum(
            last - first for first, last in gaps
        )
        hollow = [start for start in minutes if gaps[1][0] <= start < gaps[1][1]]
        assert hollow == []
        edge = opens + 3 * hour - 60_000
        if edge in minutes:
            assert minutes[edge].covered_ms in (60_000, 55_000)
        assert len(await stored_series(client, key, "1m")) == len(minutes)
    await client.aclose()


def copy(tick: DataIngestionFormat, **changed: object) -> DataIngestionFormat:
    fields = {name: getattr(tick, name) for name in tick.__struct_fields__}
    return DataIngestionFormat(**(fields | changed))  # type: ignore[arg-type]
