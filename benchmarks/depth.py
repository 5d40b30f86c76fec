"""How long an order book takes from the feed's socket to its Redis stream, and to a WebSocket client.

A thousand instruments, five full packets a second of each, the five levels of every packet wanted. The
quantity of the best bid is the moment of its sending. Beside the delay: what the books cost the daemon's
processor, against the same packets while nobody wants them, and how its memory grows while Redis takes no
books.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import Any

import redis.asyncio

from benchmarks.report import result, row
from benchmarks.rig import Helper, Rig
from benchmarks.turns import Slice, in_turn, rate

ORDER = 25
INSTRUMENTS = 1_000
RATE = 5_000
CLIENTS, WATCHED = 100, 50
GOAL_MS = 20.0
_SLICE_S = 3.0


async def measure(quick: bool) -> dict[str, Any]:
    """Measure the delays, the price and the memory."""
    seconds = 3.0 if quick else 15.0
    plain_us, wanted_us = await _costs(2 if quick else 6)
    stream = await _stream(seconds)
    clients = await _clients(seconds)
    stuck = await _stuck(2 * seconds)
    what = f"socket to WebSocket, {CLIENTS} clients × {WATCHED} books"
    rows = [
        row("socket to XREAD of md:depth, p50", stream["p50"], "ms", note=_kept(stream)),
        row("socket to XREAD of md:depth, p99", stream["p99"], "ms", at_most=GOAL_MS),
        row(f"{what}, p50", clients["p50"], "ms", note=_kept(clients)),
        row(f"{what}, p99", clients["p99"], "ms", at_most=GOAL_MS),
        row("processor a packet, nobody wants depth", plain_us, "µs"),
        row(
            "processor a packet, its book wanted and written",
            wanted_us,
            "µs",
            ratios={"nobody wants": wanted_us / plain_us},
        ),
        row(
            "memory gained while Redis takes no books",
            stuck["gained_mib"],
            "MiB",
            at_most=64.0,
            note=stuck["note"],
        ),
    ]
    return result(rows, stream=stream, clients=clients, stuck=stuck)


async def _costs(rounds: int) -> tuple[float, float]:
    """Return what a packet costs the daemon's processor, µs: while nobody wants its book, and wanted."""
    async with contextlib.AsyncExitStack() as stack:
        takes = {}
        for depth in ("on_demand", "all"):
            rig = Rig(instruments=INSTRUMENTS, mode="full", stamp="depth", DEPTH=depth)
            takes[depth] = partial(_spent, await stack.enter_async_context(rig))
        found = await in_turn(rounds, takes)
    return 1e6 / rate(found["on_demand"]), 1e6 / rate(found["all"])


async def _spent(rig: Rig) -> Slice:
    await rig.load.run(rate=RATE, seconds=1)
    await rig.settled(60)
    before = rig.used()["daemon"]
    told = await rig.load.run(rate=RATE, seconds=_SLICE_S)
    await rig.settled(60)
    return Slice(told["sent"], rig.used()["daemon"].cpu_s - before.cpu_s)


async def _stream(seconds: float) -> dict[str, Any]:
    async with Rig(instruments=INSTRUMENTS, mode="full", stamp="depth", DEPTH="all") as rig:
        base_s = str(rig.load.base_s)
        async with Helper("reader", rig.redis_url, "md:depth:NSE", base_s, "bids") as reader:
            await reader.hear()
            return await _one(rig, reader, seconds)


async def _clients(seconds: float) -> dict[str, Any]:
    async with Rig(instruments=INSTRUMENTS, mode="full", stamp="depth") as rig:
        url = f"{rig.daemon.api_url.replace('http', 'ws', 1)}/ws"
        sizes = (str(CLIENTS), str(WATCHED), str(INSTRUMENTS))
        async with Helper("watchers", url, str(rig.load.base_s), *sizes, "latest", "0", "depth") as watchers:
            await watchers.hear()
            return await _one(rig, watchers, seconds)


async def _one(rig: Rig, consumer: Helper, seconds: float) -> dict[str, Any]:
    await rig.load.run(rate=RATE, seconds=1)
    await rig.settled(60)
    await asyncio.sleep(0.5)
    await consumer.ask(do="begin")
    told = await rig.load.run(rate=RATE, seconds=seconds)
    await rig.settled(60)
    await asyncio.sleep(0.5)
    seen = await consumer.ask(do="end")
    return {**seen, "sent": told["sent"], "rate": told["sent"] / told["seconds"]}


async def _stuck(seconds: float) -> dict[str, Any]:
    """Return how the daemon's memory grows while ticks are written and books are refused."""
    async with Rig(instruments=INSTRUMENTS, mode="full", stamp="depth", DEPTH="all") as rig:
        await rig.load.run(rate=RATE, seconds=3)
        await rig.settled(60)
        before = rig.used()["daemon"]
        async with redis.asyncio.from_url(rig.redis_url) as client:
            # Everything but the streams of books may still be written.
            await client.execute_command("ACL", "SETUSER", "default", "resetkeys", "~md:[^d]*")
        told = await rig.load.run(rate=RATE, seconds=seconds)
        await asyncio.sleep(1)
        after = rig.used()["daemon"]
        sink = (await rig.status())["sinks"]["depth_stream"]
        if sink["state"] == "ready" or not sink["queued"]:
            raise RuntimeError(f"the streams of books were written after all: {sink}")
        return {
            "gained_mib": (after.rss_bytes - before.rss_bytes) / (1 << 20),
            "note": f"{told['sent']} books came, {sink['queued']} wait, {sink['collapsed']} were replaced",
            "queued": sink["queued"],
        }


def _kept(told: dict[str, Any]) -> str:
    if told["rate"] < 0.97 * RATE:
        return f"the rate was not reached: {told['rate']:.0f}/s were taken"
    return f"{told['seen']} seen of {told['sent']} sent"
