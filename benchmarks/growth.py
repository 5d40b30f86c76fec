"""What a tick costs with more instruments, and with a longer stream: CPU of daemon and Redis by tick.

The same rate each time, low enough for every size; what is compared is CPU time, not speed. Two things grow
by themselves with the number of instruments and stand beside it: what Redis takes for the same commands
thrown at it over as many keys, and how many newest values are written a tick (of few instruments most are
overtaken by the next tick before they are written).
Bars are left out: it is measured between two minutes' ends.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from benchmarks.ceiling import blast, command, raw_blaster
from benchmarks.plot import Plot
from benchmarks.report import result, row
from benchmarks.rig import Rig

ORDER = 50
_RATE = 10_000
_FROM_S = 15.0
_ENTRIES = (1, 250_000, 1_000_000)


async def measure(quick: bool) -> dict[str, Any]:
    """Measure over instruments and over stream entries."""
    sizes = (100, 5_000) if quick else (100, 1_000, 5_000, 25_000)
    lengths = _ENTRIES[:2] if quick else _ENTRIES
    seconds = 3.0 if quick else 10.0
    by_instruments, ceilings = {}, {}
    for size in sizes:
        async with Rig(instruments=size) as rig:
            by_instruments[size] = await _cost(rig, seconds)
            ceilings[size] = await _ceiling(rig, 50_000 if quick else 100_000)
    by_entries = {}
    async with Rig(instruments=1_000, STREAM_MAX_ENTRIES=2_000_000) as rig:
        for length in lengths:
            await _fill(rig.redis_url, length)
            by_entries[length] = await _cost(rig, seconds)
    rows = [
        row(f"Redis alone (raw blaster), {size} instruments", took_us, "µs/tick",
            ratios={"the first": took_us / ceilings[sizes[0]]},
            note="processor time, the series made included")
        for size, took_us in ceilings.items()
    ]  # fmt: skip
    for name, found in (("instruments", by_instruments), ("stream entries", by_entries)):
        first = next(iter(found.values()))
        for size, cost in found.items():
            for who in ("daemon", "redis"):
                change = (cost[who] / first[who] - 1) * 100
                rows.append(
                    row(
                        f"{who}, {size} {name}",
                        cost[who],
                        "µs/tick",
                        ratios={"the first": cost[who] / first[who]},
                        note=f"{change:+.0f} %"
                        + (f", {cost['newest_values']:.2f} newest values a tick" if who == "daemon" else ""),
                    )
                )
        last = found[max(found)]
        both = (last["daemon"] + last["redis"]) / (first["daemon"] + first["redis"])
        rows.append(
            row(
                f"daemon + Redis from {min(found)} to {max(found)} {name}",
                abs(both - 1) * 100,
                "%",
                at_most=15,
            )
        )
    lines = {who: [(size, cost[who]) for size, cost in by_instruments.items()] for who in ("daemon", "redis")}
    plot = Plot(name="instruments", title="CPU by tick", x="instruments", y="µs", lines=lines, log_x=True)
    return result(rows, plots=[plot], by_instruments=by_instruments, by_entries=by_entries, ceilings=ceilings)


async def _cost(rig: Rig, seconds: float) -> dict[str, float]:
    # Once over every instrument first: what is made once is not the cost of a tick.
    await rig.load.run(rate=_RATE, seconds=max(1.0, 2 * rig.instruments / _RATE))
    await rig.settled(120)
    await _amid_a_minute(seconds)
    before, written = rig.used(), _newest_values(await rig.status())
    told = await rig.load.run(rate=_RATE, seconds=seconds)
    settled = await rig.settled(120)
    after = rig.used()
    cost = {who: (after[who].cpu_s - before[who].cpu_s) / told["sent"] * 1e6 for who in ("daemon", "redis")}
    return {**cost, "newest_values": (_newest_values(settled) - written) / told["sent"]}


async def _ceiling(rig: Rig, ticks: int) -> float:
    """Return what a tick takes Redis of its processor while it is given ready-made commands, µs."""
    before = rig.used()["redis"].cpu_s
    await raw_blaster(rig.redis_url, instruments=rig.instruments, ticks=ticks)
    # It sends all of them twice.
    return (rig.used()["redis"].cpu_s - before) / (2 * ticks) * 1e6


async def _amid_a_minute(seconds: float) -> None:
    """Wait until so many seconds of the minute are left, and its predecessor's bars are written.

    A bar is made of an instrument and a minute, not of a tick: of many instruments a minute's end would be
    most of what a few seconds cost.
    """
    second = time.time() % 60
    if not _FROM_S <= second <= 58 - seconds:
        await asyncio.sleep((_FROM_S - second) % 60)


def _newest_values(status: dict[str, Any]) -> int:
    return int(status["sinks"]["latest_value"]["written"])


async def _fill(url: str, length: int) -> None:
    """Lengthen the stream, before what the daemon writes there, by entries of a day gone by."""
    fields = (
        "type",
        "tick",
        "k",
        "NSE:SYM00001",
        "src",
        "DHAN",
        "t",
        1,
        "r",
        1,
        "p",
        100.05,
        "v",
        1,
        "cv",
        1,
    )
    payloads = [command("DEL", "md:ticks:NSE")]
    await blast(url, payloads, 1)
    for first in range(1, length, 1_000):
        entries = [
            command("XADD", "md:ticks:NSE", f"1700000000000-{number}", *fields)
            for number in range(first, first + 1_000)
        ]
        payloads.append(b"".join(entries))
    await blast(url, payloads[1:], 1_000)
