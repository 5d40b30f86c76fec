"""Resident memory of the daemon and bytes of Redis, by instrument and by sample.

What Redis needs for a market day is reckoned from what an empty series, a sample and a stream entry cost
here: the day itself would take six hours.
"""

from __future__ import annotations

from typing import Any

import redis.asyncio

from benchmarks.report import result, row
from benchmarks.rig import Rig
from services.storage.series import CHUNK_BYTES

ORDER = 60
_SESSION_S = 22_500
_MB = 1e6
_BAR_CHUNKS = (128, 512, 1024, 4096)


async def measure(quick: bool) -> dict[str, Any]:
    """Measure with 1 000 and with 25 000 instruments (quick: 5 000)."""
    sizes = (1_000, 5_000) if quick else (1_000, 25_000)
    found = {size: await _one(size, samples=40 if quick else 120) for size in sizes}
    small, large = (found[size] for size in sizes)
    apart = sizes[1] - sizes[0]
    per_series = large["empty_series_bytes"]
    per_sample = large["bytes_per_sample"]
    day = 5_000 * 4 * (per_series + _SESSION_S * per_sample)
    empty_bars, per_bar = min(large["bars"].values(), key=lambda each: each[1])
    bars = 500 * 5 * (empty_bars + 250 * 375 * per_bar)
    rows = [
        row(f"daemon RSS, {sizes[1]} instruments, each ticked", large["rss"] / _MB, "MB", at_most=250),
        row(f"daemon RSS, {sizes[0]} instruments", small["rss"] / _MB, "MB"),
        row("daemon RSS per instrument", (large["rss"] - small["rss"]) / apart / 1e3, "KB"),
        row("Redis: an empty tick series", per_series, "bytes",
            note=f"chunks of {CHUNK_BYTES} bytes, labels included"),
        row("Redis: a sample of price or volume", per_sample, "bytes",
            note="compressed, mean of both; bytes of whole chunks"),
        row("Redis: a stream entry", large["bytes_per_entry"], "bytes"),
        *(row(f"Redis: a bar's sample in chunks of {size} bytes", large["bars"][size][1], "bytes",
              note=f"an empty series {large['bars'][size][0]:.0f} bytes") for size in _BAR_CHUNKS),
        row("Redis for 5 000 instruments × 4 fields × 6.25 h at 1 tick/s, and a year of minute bars of 500",
            (day + bars) / _MB, "MB", at_most=600,
            note=f"reckoned: {day / _MB:.0f} MB for 450 million ticks + {bars / _MB:.0f} MB for 234 million "
                 "bars, in the chunks that take least"),
    ]  # fmt: skip
    return result(rows, found=found)


async def _one(instruments: int, *, samples: int) -> dict[str, Any]:
    async with Rig(instruments=instruments) as rig:
        client = redis.asyncio.from_url(rig.redis_url)
        key = f"md:ts:{{{rig.instrument(1)}}}:price"
        await client.execute_command(
            "TS.CREATE", "bench:empty", "CHUNK_SIZE", CHUNK_BYTES, "LABELS", *_LABELS
        )
        empty = await client.memory_usage("bench:empty", samples=0)
        # Twice over every instrument, so that volumes are known and every series exists.
        await rig.load.run(rate=5_000, seconds=max(1.0, 2.2 * instruments / 5_000))
        await rig.settled(180)
        rss = rig.used()["daemon"].rss_bytes
        stream_before = await _stream(client)
        rate = min(5_000, instruments * samples / 20)
        await rig.load.run(rate=rate, seconds=instruments * samples / rate if instruments <= 1_000 else 10)
        await rig.settled(180)
        stream_after = await _stream(client)
        per_sample = [await _compressed(client, name) for name in (key, key.replace("price", "volume"))]
        bars = {size: await _bars(client, size) for size in _BAR_CHUNKS}
        await client.aclose()
    return {
        "rss": rss,
        "empty_series_bytes": empty,
        "bytes_per_sample": sum(per_sample) / 2,
        "bytes_per_entry": (stream_after[0] - stream_before[0]) / max(1, stream_after[1] - stream_before[1]),
        "bars": bars,
    }


_LABELS = (
    "instrument",
    "NSE:SYM00001",
    "exchange",
    "NSE",
    "symbol",
    "SYM00001",
    "field",
    "price",
    "kind",
    "tick",
)


async def _stream(client: Any) -> tuple[int, int]:
    return await client.memory_usage("md:ticks:NSE", samples=0), await client.xlen("md:ticks:NSE")


async def _compressed(client: Any, key: str) -> float:
    """Return the bytes of a sample, by copying a series' own samples over until many chunks are full."""
    found = [(int(stamp), float(value)) for stamp, value in await client.ts().range(key, "-", "+")]
    await client.execute_command("TS.CREATE", "bench:copy", "CHUNK_SIZE", CHUNK_BYTES, "LABELS", *_LABELS)
    empty = await client.memory_usage("bench:copy", samples=0)
    stamp, written = found[0][0], 0
    while written < 20_000:
        pipe = client.pipeline(transaction=False)
        for _, value in found:
            # One a second, somewhere within it, as a source with whole seconds comes to be stored.
            stamp += 1_000 + (written * 7_919) % 40 - (written * 7_919 - 7_919) % 40
            pipe.execute_command("TS.ADD", "bench:copy", stamp, value)
            written += 1
        await pipe.execute()
    held = await client.memory_usage("bench:copy", samples=0)
    await client.delete("bench:copy")
    return float(held - empty) / written


async def _bars(client: Any, chunk_bytes: int) -> tuple[float, float]:
    """Return the bytes of an empty series, and of one of a month's minute bars."""
    await client.execute_command("TS.CREATE", "bench:bars", "CHUNK_SIZE", chunk_bytes, "LABELS", *_LABELS)
    empty = await client.memory_usage("bench:bars", samples=0)
    pipe = client.pipeline(transaction=False)
    price = 20_000
    for minute in range(7_500):
        price += (minute * 7_919) % 41 - 20
        day, of_day = divmod(minute, 375)
        pipe.execute_command(
            "TS.ADD", "bench:bars", (day * 1_440 + of_day) * 60_000 + 1_790_000_000_000, price / 20
        )
    await pipe.execute()
    held = await client.memory_usage("bench:bars", samples=0)
    await client.delete("bench:bars")
    return float(empty), (held - empty) / 7_500
