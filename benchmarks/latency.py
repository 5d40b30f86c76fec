"""How long a tick takes from the feed's socket to a consumer of the stream, and to a WebSocket client.

The day's volume of every tick is the moment of its sending, so a consumer in another process knows how old
each is. The stream is read by `XREAD BLOCK`; the clients watch fifty instruments each, with every tick.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio

from benchmarks.plot import Plot
from benchmarks.report import result, row
from benchmarks.rig import Helper, Rig

ORDER = 20
INSTRUMENTS = 1_000
RATES = (1_000, 10_000, 50_000, 100_000)
CLIENTS, WATCHED = 100, 50
_STREAM_GOALS = {1_000: (0.4, 2.0), 50_000: (None, 5.0), 100_000: (None, 10.0)}
_CLIENT_GOALS = {10_000: 5.0}
_NOT_KEPT = "without Redis' append-only file"


async def measure(quick: bool) -> dict[str, Any]:
    """Measure both latencies at every rate."""
    seconds = 3.0 if quick else 12.0
    stream, not_kept = await _stream(seconds)
    clients = await _clients(RATES[:3], seconds)
    rows = []
    for rate, told in stream.items():
        p50, p99 = _STREAM_GOALS.get(rate, (None, None))
        rows.append(
            row(f"socket to XREAD at {_k(rate)}/s, p50", told["p50"], "ms", at_most=p50, note=_kept(told))
        )
        rows.append(row(f"socket to XREAD at {_k(rate)}/s, p99", told["p99"], "ms", at_most=p99))
    for rate, told in not_kept.items():
        for name in ("p50", "p99"):
            kept = stream[rate][name]
            rows.append(
                row(f"{_NOT_KEPT}, at {_k(rate)}/s, {name}", told[name], "ms", note=f"with it {kept:.3g} ms")
            )
    for rate, told in clients.items():
        goal = _CLIENT_GOALS.get(rate)
        what = f"socket to WebSocket at {_k(rate)}/s, {CLIENTS} clients × {WATCHED}"
        rows.append(row(f"{what}, p50", told["p50"], "ms", note=_kept(told)))
        rows.append(row(f"{what}, p99", told["p99"], "ms", at_most=goal))
    lines = {
        f"{where} {name}": [(rate, told[name]) for rate, told in found.items() if told[name]]
        for where, found in (("XREAD", stream), ("WebSocket", clients))
        for name in ("p50", "p99")
    }
    plot = Plot(
        name="by-rate", title="Age of a tick at the consumer", x="ticks a second", y="ms", lines=lines,
        log_x=True, log_y=True,
    )  # fmt: skip
    return result(rows, plots=[plot], stream=stream, not_kept=not_kept, clients=clients)


async def _stream(seconds: float) -> tuple[dict[int, dict[str, Any]], dict[int, dict[str, Any]]]:
    """Measure at every rate, and again at some while Redis keeps nothing on disk: what that costs."""
    found, not_kept = {}, {}
    async with Rig(instruments=INSTRUMENTS, stamp="volume") as rig:
        base_s = str(rig.load.base_s)
        async with Helper("reader", rig.redis_url, "md:ticks:NSE", base_s) as reader:
            await reader.hear()
            for rate in RATES:
                found[rate] = await one(rig, reader, rate, seconds)
            async with redis.asyncio.from_url(rig.redis_url) as client:
                await client.config_set("appendonly", "no")
            for rate in _STREAM_GOALS:
                not_kept[rate] = await one(rig, reader, rate, seconds)
    return found, not_kept


async def _clients(rates: tuple[int, ...], seconds: float) -> dict[int, dict[str, Any]]:
    found = {}
    async with Rig(instruments=INSTRUMENTS, stamp="volume") as rig:
        url = f"{rig.daemon.api_url.replace('http', 'ws', 1)}/ws"
        sizes = (str(CLIENTS), str(WATCHED), str(INSTRUMENTS))
        async with Helper("watchers", url, str(rig.load.base_s), *sizes, "all", "0") as watchers:
            await watchers.hear()
            for rate in rates:
                found[rate] = await one(rig, watchers, rate, seconds)
    return found


async def one(rig: Rig, consumer: Helper, rate: int, seconds: float) -> dict[str, Any]:
    """Return what a consumer saw of `seconds` at `rate`, after a second to get going."""
    await rig.load.run(rate=rate, seconds=1)
    await rig.settled(120)
    await asyncio.sleep(0.3)
    await consumer.ask(do="begin")
    told = await rig.load.run(rate=rate, seconds=seconds)
    await rig.settled(120)
    await asyncio.sleep(0.3)
    seen = await consumer.ask(do="end")
    return {**seen, "sent": told["sent"], "asked": rate, "rate": told["sent"] / told["seconds"]}


def _k(rate: int) -> str:
    return f"{rate // 1000} k"


def _kept(told: dict[str, Any]) -> str:
    if told["rate"] >= 0.97 * told["asked"]:
        return f"{told['seen']} seen"
    return f"the rate was not reached: {told['rate']:.0f}/s were taken"
