"""A long Redis outage at full rate: nothing lost, memory flat, replay beside live data, order kept.

The store of such a run is too large to be read at its end, so a reader follows the streams as they grow,
as a consumer would, and checks that every instrument's ticks come without a hole and in order.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulators.journal import Entry, Journal, SentTick
from tests.chaos.chaos_probes import Probes, scan_log
from tests.chaos.chaos_stack import ChaosStack
from tests.support.eventually import eventually

INSTRUMENTS = 100
SLOPE_LIMIT_MIB = 1.0
_PAGE = 2_000
_MIB = 1 << 20
_WARM_S = 240.0
"""Memories of bounded size (texts of prices, what is usual at an instrument) are full by then."""
Say = Callable[[str], None]


class Tally(Journal):
    """A journal that keeps, per symbol, only which sequence was sent: nothing may be missing in it."""

    def __init__(self) -> None:
        super().__init__(limit=1)
        self.first: dict[str, SentTick] = {}
        self.last: dict[str, SentTick] = {}
        self.holes = 0
        self.ticks_sent = 0

    def record(self, entry: Entry) -> None:
        """Take note of one sent tick."""
        super().record(entry)
        if not isinstance(entry, SentTick):
            return
        before = self.last.get(entry.symbol)
        if before is None:
            self.first[entry.symbol] = entry
        elif entry.seq == before.seq:
            return
        elif entry.seq != before.seq + 1:
            self.holes += 1
        self.last[entry.symbol] = entry
        self.ticks_sent += 1


@dataclass
class Follower:
    """Reads every entry of the streams as they grow; counts what is missing, doubled or out of order.

    `moments` counts the different milliseconds of each instrument: so many samples its series must hold.
    """

    client: Any
    streams: list[str]
    read: int = 0
    gaps: int = 0
    wrong: list[str] = field(default_factory=list)
    prices: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    steps: dict[str, float] = field(default_factory=dict)
    moments: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    times: dict[str, str] = field(default_factory=dict)

    async def run(self) -> None:
        """Follow until cancelled; waits while Redis is away."""
        places = dict.fromkeys(self.streams, "0-0")
        while True:
            try:
                found = await self.client.xread(places, count=_PAGE, block=200)
            except (OSError, ConnectionError, TimeoutError, *_redis_errors()):
                await asyncio.sleep(0.5)
                continue
            for stream, entries in found:
                places[stream] = entries[-1][0]
                for _, fields in entries:
                    self._take(fields)

    def _take(self, fields: dict[str, str]) -> None:
        if fields["type"] != "tick":
            self.gaps += fields["type"] == "gap"
            return
        self.read += 1
        key, price = fields["k"], float(fields["p"])
        before = self.prices.get(key)
        self.prices[key] = price
        self.counts[key] += 1
        self.moments[key] += fields["t"] != self.times.get(key)
        self.times[key] = fields["t"]
        if before is None:
            return
        step = self.steps[key]
        if not math.isclose(price - before, step, abs_tol=step / 10) and len(self.wrong) < 1_000:
            self.wrong.append(f"{key}: {price} after {before}")


def _redis_errors() -> tuple[type[BaseException], ...]:
    from redis.exceptions import RedisError

    return (RedisError,)


async def run_outage(folder: Path, *, minutes: float, rate: float, freeze: bool, say: Say) -> list[str]:
    """Make the outage; return what is wrong, empty when all promises held."""
    tally = Tally()
    seconds = minutes * 60
    async with ChaosStack(
        folder,
        dhan_instruments=INSTRUMENTS,
        dhan_rate=rate / INSTRUMENTS,
        yahoo_rate=0.0,
        journal=tally,
        stream_max_entries=1_000_000,
        DHAN_FEED_MODE="quote",
    ) as stack:
        await stack.keeper.ready()
        probes = Probes(stack.keeper)
        client = stack.redis_client()
        exchanges = sorted({key.partition(":")[0] for key in stack.names.values()})
        follower = Follower(client, [f"md:ticks:{exchange}" for exchange in exchanges])
        follower.steps = {key: _tick_size(stack, symbol) for symbol, key in stack.names.items()}
        tasks = [asyncio.create_task(probes.run()), asyncio.create_task(follower.run())]
        try:
            faults = await _outage(stack, probes, follower, tally, seconds, freeze=freeze, say=say)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await client.aclose()
        for task in tasks:
            if not task.cancelled():
                task.result()
        faults += scan_log(stack.keeper.log(), stack.secrets)
    return faults


async def _outage(
    stack: ChaosStack,
    probes: Probes,
    follower: Follower,
    tally: Tally,
    seconds: float,
    *,
    freeze: bool,
    say: Say,
) -> list[str]:
    keeper = stack.keeper
    began_s = time.monotonic()

    def note(text: str) -> None:
        say(f"{time.monotonic() - began_s:7.1f} s  {text}")

    note(f"warming up for {_WARM_S:.0f} s")
    for _ in range(int(_WARM_S / 30)):
        await asyncio.sleep(30.0)
        note(f"RSS {probes.samples[-1].rss_bytes / _MIB:.1f} MiB")
    note(f"{tally.ticks_sent} ticks sent, {follower.read} read from the streams; Redis goes away")
    await (_freeze(stack) if freeze else stack.redis.kill())
    before, down_s = tally.ticks_sent, time.monotonic()
    while (gone_s := time.monotonic() - down_s) < seconds:
        await asyncio.sleep(min(30.0, seconds - gone_s))
        note(f"{_state(await keeper.pipeline())}; RSS {probes.samples[-1].rss_bytes / _MIB:.1f} MiB")
    # The first moments fill buffers that stay filled: ways to the disk, what Redis may forget.
    outage = [sample for sample in probes.samples if sample.at_s >= down_s + min(120.0, seconds / 3)]
    faults = _judge_memory(outage, note)
    sent = tally.ticks_sent - before
    note(f"{sent} ticks in the outage, {sent / (time.monotonic() - down_s):.0f} a second; Redis comes back")
    stack.redis.resume() if freeze else await stack.redis.start()
    back_s, at_back = time.monotonic(), tally.ticks_sent

    async def replayed() -> bool:
        pipeline = await keeper.pipeline()
        return pipeline is not None and all(sink["spooled"] == 0 for sink in pipeline["sinks"])

    await eventually(replayed, max(120.0, 4 * seconds), every_s=0.5)
    took_s = time.monotonic() - back_s
    live = tally.ticks_sent - at_back
    note(f"replayed after {took_s:.1f} s, while {live} live ticks came, {live / took_s:.0f} a second")
    await asyncio.sleep(5.0)
    stack.set_rates(0)
    pipeline = await keeper.settled(within_s=120)
    await eventually(lambda: follower.read >= tally.ticks_sent, 120, every_s=0.5)
    note(f"{tally.ticks_sent} ticks sent, {follower.read} read from the streams, {follower.gaps} gap records")
    faults += _judge_ticks(stack, follower, tally)
    for sink in pipeline["sinks"]:
        note(
            f"{sink['name']}: written {sink['written']}, dropped {sink['dropped']}, "
            f"collapsed {sink['collapsed']}, imbalance {sink['imbalance']}"
        )
        if sink["imbalance"] or (sink["name"] in ("stream", "time_series") and sink["dropped"]):
            faults.append(f"{sink['name']}: dropped {sink['dropped']}, imbalance {sink['imbalance']}")
    faults += await _judge_series(stack, follower, note)
    lags = probes.lags_ms()
    note(f"loop lag: median {lags[len(lags) // 2]:.0f} ms, p99 {lags[len(lags) * 99 // 100]:.0f} ms")
    code = await keeper.stop()
    if code:
        faults.append(f"exit code {code}")
    if keeper.starts != 1:
        faults.append(f"{keeper.starts} starts instead of one")
    return faults


def _tick_size(stack: ChaosStack, symbol: str) -> float:
    simulator = stack.simulators["dhan" if symbol in stack.dhan_names else "yahoo"]
    listing = simulator.listing(symbol)
    assert listing is not None
    return listing.instrument.tick_size


async def _freeze(stack: ChaosStack) -> None:
    stack.redis.pause()


def _state(pipeline: dict[str, Any] | None) -> str:
    if pipeline is None:
        return "no status"
    rows = {sink["name"]: sink for sink in pipeline["sinks"]}
    sizes = sum(channel["size_bytes"] for channel in pipeline["spool"]) / _MIB
    return (
        f"on disk {rows['stream']['spooled']} + {rows['time_series']['spooled']} records, {sizes:.1f} MiB; "
        f"in memory {rows['stream']['queued']} + {rows['time_series']['queued']}"
    )


def _judge_memory(samples: list[Any], note: Say) -> list[str]:
    points = [(sample.at_s, sample.rss_bytes / _MIB) for sample in samples]
    half = len(points) // 2
    if half < 10:
        return []
    span_s = points[-1][0] - points[0][0]
    early = sorted(mib for _, mib in points[:half])[half // 2]
    late = sorted(mib for _, mib in points[half:])[(len(points) - half) // 2]
    slope = (late - early) / (span_s / 2) * 600
    note(
        f"memory in the outage: {points[0][1]:.1f} MiB to {points[-1][1]:.1f} MiB in {span_s:.0f} s, "
        f"slope of the medians {slope:+.2f} MiB per 10 min"
    )
    if late - early > SLOPE_LIMIT_MIB * max(1.0, span_s / 600):
        return [f"memory grew from {early:.1f} to {late:.1f} MiB during the outage"]
    return []


def _judge_ticks(stack: ChaosStack, follower: Follower, tally: Tally) -> list[str]:
    faults = [f"{len(follower.wrong)} holes or disorders: {follower.wrong[:5]}"] if follower.wrong else []
    if tally.holes:
        faults.append(f"the simulator left out {tally.holes} ticks, so this run proves nothing")
    for symbol, last in tally.last.items():
        key = stack.names[symbol]
        wanted = last.seq - tally.first[symbol].seq + 1
        if follower.counts[key] != wanted or not math.isclose(follower.prices[key], last.price):
            faults.append(f"{key}: {follower.counts[key]} stored of {wanted} sent")
    if follower.gaps:
        faults.append(f"{follower.gaps} gap records though no tick was lost")
    return faults[:20]


async def _judge_series(stack: ChaosStack, follower: Follower, note: Say) -> list[str]:
    """Compare how many samples each series holds with the different milliseconds of its stream's entries."""
    client = stack.redis_client()
    held: dict[str, int] = {}
    try:
        for key in stack.names.values():
            if follower.counts[key]:
                held[key] = int((await client.ts().info(f"md:ts:{{{key}}}:price")).total_samples)
    finally:
        await client.aclose()
    note(f"{sum(held.values())} price samples of {sum(follower.moments.values())} different moments")
    return [
        f"{key}: {samples} samples of {follower.moments[key]} moments"
        for key, samples in held.items()
        if samples != follower.moments[key]
    ][:20]
