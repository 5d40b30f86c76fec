"""A recorded hour of Dhan's packets, replayed twice into a real Redis at different speeds: the same bytes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from redis.asyncio import Redis, from_url

from services.errors import StorageUnavailable
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry
from services.recording.entries import FORMAT, Context, Kind, ProviderMemory, pack, pack_json
from services.recording.files import RecordingWriter
from services.replay.replay import Replay
from services.wire.dhan import IST_OFFSET_S, Segment
from services.wire.dhan_encoding import encode
from services.wire.dhan_records import DepthLevel, Full

INSTRUMENTS = int(os.environ.get("REPLAY_INSTRUMENTS", "10"))
START_MS = 1_700_000_000_000
HOUR_S = 3_600


def record_hour(folder: Path) -> int:
    """Write an hour in which every instrument trades about every other second; return how many frames."""
    rows = tuple(
        InstrumentMapping(
            mapping_id=number,
            instrument=f"NSE:S{number}",
            exchange="NSE",
            symbol=f"S{number}",
            name=f"S{number}",
            asset_class=AssetClass.EQUITY,
            currency="INR",
            provider_code="DHAN",
            search_code=f"S{number}-EQ",
            segment="NSE_EQ",
            security_id=str(1_000 + number),
            tick_size=0.05,
            is_primary=True,
        )
        for number in range(INSTRUMENTS)
    )
    snapshot = MappingSnapshot(
        version=1, loaded_ms=START_MS, providers=(ProviderEntry(code="DHAN", name="Dhan"),), mappings=rows
    )
    context = Context(
        format=FORMAT,
        daemon="x",
        demo=True,
        at_ms=START_MS,
        providers=["DHAN"],
        partial=[],
        snapshot=snapshot,
        routes={row.instrument: "DHAN" for row in rows},
        memory={"DHAN": ProviderMemory([row.provider_symbol for row in rows])},
    )
    choice = random.Random(7)
    prices, volumes = [1_000.0] * INSTRUMENTS, [0] * INSTRUMENTS
    count = 0
    with RecordingWriter(folder, limit_bytes=1 << 30) as writer:
        writer.add_context(pack_json(Kind.CONTEXT, 255, START_MS, context))
        for at_ms in range(START_MS, START_MS + HOUR_S * 1_000, 2_000 // INSTRUMENTS):
            number = choice.randrange(INSTRUMENTS)
            prices[number] = round(prices[number] + choice.choice((-0.05, 0.0, 0.05)), 2)
            volumes[number] += choice.randrange(50)
            price = prices[number]
            packet = encode(
                Full(
                    segment=Segment.NSE_EQ.value,
                    security_id=1_000 + number,
                    ltp=price,
                    ltq=1,
                    ltt=at_ms // 1_000 + IST_OFFSET_S,
                    atp=price,
                    volume=volumes[number],
                    total_sell_qty=1,
                    total_buy_qty=1,
                    oi=0,
                    oi_day_high=0,
                    oi_day_low=0,
                    day_open=1_000.0,
                    day_close=990.0,
                    day_high=1_100.0,
                    day_low=900.0,
                    depth=(DepthLevel(10, 20, 1, 1, price - 0.05, price + 0.05),),
                )
            )
            writer.add(pack(Kind.BINARY, 0, at_ms, packet))
            count += 1
    return count


async def dumps(redis_url: str, prefix: str) -> dict[bytes, bytes]:
    client: Redis = from_url(redis_url)
    found: dict[bytes, bytes] = {}
    async for key in client.scan_iter(match=f"{prefix}ticks:*", count=1_000):
        found[key[len(prefix) :]] = await client.dump(key)
    for number in range(INSTRUMENTS):
        for field in ("price", "volume", "bid", "ask"):
            key = f"{prefix}ts:{{NSE:S{number}}}:{field}"
            samples = await client.execute_command("TS.RANGE", key, "-", "+")
            found[key[len(prefix) :].encode()] = repr(samples).encode()
    await client.aclose()
    return found


@pytest.mark.timeout(240)
async def test_an_hour_replayed_twice_gives_the_same_bytes(redis_url: str, tmp_path: Path) -> None:
    frames = record_hour(tmp_path / "hour")
    one = await Replay(tmp_path / "hour", "one", redis_url).run()
    two = await Replay(tmp_path / "hour", "two", redis_url, speed=3_600.0).run()
    assert one.digest == two.digest
    assert one.frames == {"DHAN": frames}
    assert one.ticks + sum(one.rejected.values()) == frames
    assert one.ticks > 0.9 * frames
    assert one.refused == two.refused == {"time_series": 0, "stream": 0, "latest_value": 0}
    assert one.to_ms - one.from_ms > 3_599_000
    first, second = await dumps(redis_url, "md:replay:one:"), await dumps(redis_url, "md:replay:two:")
    assert len(first) == 1 + 4 * INSTRUMENTS
    assert first == second
    client: Redis = from_url(redis_url)
    assert await client.xlen("md:replay:one:ticks:NSE") == one.ticks
    assert [key async for key in client.scan_iter(match="md:*") if not key.startswith(b"md:replay:")] == []
    await client.aclose()


async def test_a_redis_that_is_away_ends_the_replay_with_a_sentence(tmp_path: Path) -> None:
    record_hour(tmp_path / "hour")
    with pytest.raises(StorageUnavailable, match="the keys of an earlier replay cannot be deleted"):
        await Replay(tmp_path / "hour", "one", "redis://127.0.0.1:1/0").run()
