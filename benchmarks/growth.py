"""What a tick costs with more instruments, and with a longer stream: CPU of daemon and Redis by tick.

The same rate for each, low enough for every size, in turn; what is compared is CPU time, not speed. Two
things grow by themselves with the number of instruments and stand beside it: what Redis takes for the same
commands thrown at it over as many keys, and how many newest values are written a tick (of few instruments
most are overtaken by the next tick before they are written).
Bars are left out: it is measured between two minutes' ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from benchmarks.ceiling import Blaster, blast, command, encoded
from benchmarks.plot import Plot
from benchmarks.report import result, row
from benchmarks.rig import Rig
from benchmarks.turns import Slice, in_turn, rate

ORDER = 50
_RATE = 10_000
_SLICE_S = 3.0
_FROM_S = 15.0
_BLASTED = 50_000
_ENTRIES = (1, 250_000, 1_000_000)


async def measure(quick: bool) -> dict[str, Any]:
    """Measure over instruments and over stream entries, each in turn."""
    sizes = (100, 5_000) if quick else (100, 1_000, 5_000, 25_000)
    lengths = _ENTRIES[:2] if quick else _ENTRIES
    rounds = 2 if quick else 5
    async with contextlib.AsyncExitStack() as stack:
        rigs = {size: await stack.enter_async_context(Rig(instruments=size)) for size in sizes}
        for rig in rigs.values():
            await _once(rig)
        spent = await in_turn(rounds, {size: partial(_spent, rig) for size, rig in rigs.items()})
        alone = await in_turn(rounds, {size: partial(_spent_alone, rig) for size, rig in rigs.items()})
    async with Rig(instruments=1_000, STREAM_MAX_ENTRIES=2_000_000) as rig:
        await _once(rig)
        spent_long = await in_turn(rounds, {length: partial(_spent_at, rig, length) for length in lengths})
    by_instruments, by_entries = _costs(spent), _costs(spent_long)
    ceilings = {size: 1e6 / rate(slices) for size, slices in alone.items()}
    rows = [
        row(f"Redis alone (raw blaster), {size} instruments", took_us, "µs/tick",
            ratios={"the first": took_us / ceilings[sizes[0]]},
            note="processor time")
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
    return result(
        rows,
        plots=[plot],
        by_instruments=by_instruments,
        by_entries=by_entries,
        ceilings=ceilings,
        slices={"instruments": spent, "entries": spent_long, "alone": alone},
    )


class _Spent(NamedTuple):
    """What so many ticks took: processor seconds of each process, and newest values written."""

    ticks: int
    daemon_s: float
    redis_s: float
    newest_values: int


def _costs(spent: Mapping[int, Sequence[_Spent]]) -> dict[int, dict[str, float]]:
    """Return by size what a tick took, µs, and how many newest values were written for it."""
    costs = {}
    for size, slices in spent.items():
        ticks = sum(one.ticks for one in slices)
        costs[size] = {
            "daemon": sum(one.daemon_s for one in slices) / ticks * 1e6,
            "redis": sum(one.redis_s for one in slices) / ticks * 1e6,
            "newest_values": sum(one.newest_values for one in slices) / ticks,
        }
    return costs


async def _once(rig: Rig) -> None:
    """Go over every instrument twice: what is made once is not the cost of a tick."""
    await rig.load.run(rate=_RATE, seconds=max(1.0, 2 * rig.instruments / _RATE))
    await rig.settled(120)


async def _spent(rig: Rig) -> _Spent:
    while True:
        await _amid_a_minute(_SLICE_S)
        # The first bars of very many instruments take long, because their series are made.
        await rig.settled(120)
        if _is_amid(_SLICE_S):
            break
    before, written = rig.used(), _newest_values(await rig.status())
    told = await rig.load.run(rate=_RATE, seconds=_SLICE_S)
    settled = await rig.settled(120)
    after = rig.used()
    daemon_s, redis_s = (after[who].cpu_s - before[who].cpu_s for who in ("daemon", "redis"))
    return _Spent(told["sent"], daemon_s, redis_s, _newest_values(settled) - written)


async def _spent_at(rig: Rig, length: int) -> _Spent:
    await _fill(rig.redis_url, length)
    return await _spent(rig)


async def _spent_alone(rig: Rig) -> Slice:
    """Return what ready-made commands for so many ticks take Redis of its processor."""

    def run() -> Slice:
        blaster = Blaster(rig.redis_url)
        try:
            blaster.prepare(rig.instruments)
            payloads = encoded(rig.instruments, _BLASTED)
            before_s = rig.used()["redis"].cpu_s
            blaster.run(payloads)
            return Slice(_BLASTED, rig.used()["redis"].cpu_s - before_s)
        finally:
            blaster.close()

    return await asyncio.to_thread(run)


async def _amid_a_minute(seconds: float) -> None:
    """Wait until so many seconds of the minute are left, and its predecessor's bars are written.

    A bar is made of an instrument and a minute, not of a tick: of many instruments a minute's end would be
    most of what a few seconds cost.
    """
    if not _is_amid(seconds):
        await asyncio.sleep((_FROM_S - time.time()) % 60)


def _is_amid(seconds: float) -> bool:
    return _FROM_S <= time.time() % 60 <= 58 - seconds


def _newest_values(status: dict[str, Any]) -> int:
    return int(status["sinks"]["latest_value"]["written"])


async def _fill(url: str, length: int) -> None:
    """Let the stream have so many entries, of a day gone by."""
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
    payloads = []
    for first in range(1, length + 1, 1_000):
        entries = [
            command("XADD", "bench:long", f"1700000000000-{number}", *fields)
            for number in range(first, min(first + 1_000, length + 1))
        ]
        payloads.append(b"".join(entries))
    await blast(url, payloads[:-1], 1_000)
    await blast(url, payloads[-1:], (length - 1) % 1_000 + 1)
    # The daemon never sees the stream without entries, and may write meanwhile.
    await blast(url, [command("RENAME", "bench:long", "md:ticks:NSE")], 1)
