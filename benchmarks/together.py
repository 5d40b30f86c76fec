"""All together: a hundred thousand ticks a second in, Redis read by a consumer, a thousand clients watching.

Each client has the newest values of fifty instruments four times a second. Where the rate is not taken,
latency says nothing but that: it is then measured at the greatest rate that is, step by step down."""

from __future__ import annotations

import asyncio
from typing import Any

from benchmarks.report import result, row
from benchmarks.rig import Helper, Rig

ORDER = 28
INSTRUMENTS, CLIENTS, WATCHED, EVERY_MS = 1_000, 1_000, 50, 250
RATE = 100_000
_STEPS = (1.0, 0.6, 0.4, 0.25, 0.15, 0.1, 0.05)
_SLOT_MS = 260.0


async def measure(quick: bool) -> dict[str, Any]:
    """Measure at the full rate, or at the first step below it that is taken without a loss."""
    seconds, clients = (3.0, 200) if quick else (15.0, CLIENTS)
    tried: list[dict[str, Any]] = []
    async with Rig(instruments=INSTRUMENTS, stamp="volume", API_MAX_CLIENTS=2 * CLIENTS) as rig:
        base_s, url = str(rig.load.base_s), f"{rig.daemon.api_url.replace('http', 'ws', 1)}/ws"
        sizes = (str(clients), str(WATCHED), str(INSTRUMENTS))
        async with (
            Helper("reader", rig.redis_url, "md:ticks:NSE", base_s) as reader,
            Helper("watchers", url, base_s, *sizes, "latest", str(EVERY_MS)) as watchers,
        ):
            await reader.hear()
            await watchers.hear()
            for step in _STEPS:
                tried.append(await _at(rig, (reader, watchers), RATE * step, seconds))
                if tried[-1]["kept_up"]:
                    break
    first, last = tried[0], tried[-1]
    note = f"at {last['rate']:.0f}/s with {clients} clients" + (
        "" if last["kept_up"] else ", which was not kept up with"
    )
    rows = [
        row("ticks taken when a hundred thousand a second are sent", first["rate"], "ticks/s",
            at_least=0.97 * RATE, note=f"{clients} clients × {WATCHED}, the greatest rate kept up with "
            + (f"{last['rate']:.0f}/s" if last["kept_up"] else "is lower than all tried")),
        row("socket to XREAD, p99", last["stream"]["p99"], "ms", at_most=10, note=note),
        row("socket to WebSocket, p99", last["client"]["p99"], "ms", at_most=_SLOT_MS + 10, note=note),
        row("deliveries", last["client"]["seen"] / last["seconds"], "ticks/s",
            ratios={"ticks in": last["client"]["seen"] / last["sent"]}),
        row("daemon CPU", last["daemon_us"], "µs/tick", note="of what goes in, all deliveries included"),
        row("clients cut", last["client"]["cut"], "", at_most=0),
    ]  # fmt: skip
    return result(rows, tried=tried)


async def _at(rig: Rig, consumers: tuple[Helper, Helper], rate: float, seconds: float) -> dict[str, Any]:
    await rig.load.run(rate=min(rate, 2_000), seconds=1)
    before = await rig.settled(120)
    for consumer in consumers:
        await consumer.ask(do="begin")
    used = rig.used()["daemon"].cpu_s
    told = await rig.load.run(rate=rate, seconds=seconds)
    cpu_s = rig.used()["daemon"].cpu_s - used
    await asyncio.sleep(EVERY_MS / 1000)
    stream, client = [await consumer.ask(do="end") for consumer in consumers]
    after = await rig.settled(240)
    lost = sum(
        sum(sink[kind].values()) - sum(before["sinks"][name][kind].values())
        for name, sink in after["sinks"].items()
        for kind in ("dropped", "rejected")
    )
    taken = told["sent"] / told["seconds"]
    return {
        **told,
        "asked": rate,
        "rate": taken,
        "stream": stream,
        "client": client,
        "lost": lost,
        "daemon_us": cpu_s / told["sent"] * 1e6,
        "kept_up": taken >= 0.97 * rate and not lost and told["most_behind"] < 0.5 * rate,
    }
