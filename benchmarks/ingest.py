"""Ticks a second through the whole product: feed socket to Redis, with clients watching, all checks on.

The daemon runs as a process with its sinks, its AOF-keeping Redis and ten WebSocket clients of fifty
instruments each. First the load sends as fast as it is taken; then the greatest rate is sought at which
everything is stored while it comes, and held. Ceiling and peers are measured on a fresh Redis beside it.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import redis.asyncio

from benchmarks import ceiling
from benchmarks.machine import ROOT, output
from benchmarks.report import result, row
from benchmarks.rig import Helper, LoadProcess, Rig, Usage
from services.operations.embedded_redis import EmbeddedRedis

ORDER = 10
INSTRUMENTS = 1_000
CLIENTS, WATCHED = 10, 50
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
CRYPTOFEED = ("cryptofeed==2.4.1", "redis==8.1.0", "hiredis==3.5.0")
_KEEPS_UP_S = 0.5
"""What is still unstored at the end of a sustained run must be stored within this time."""


async def measure(quick: bool) -> dict[str, Any]:
    """Measure throughput, ceiling and peers."""
    search_s, hold_s = (3.0, 6.0) if quick else (6.0, 60.0)
    ceilings = await _ceilings(quick)
    ours = await _ours("quote", search_s, hold_s)
    full = await _ours("full", search_s, search_s)
    peers = {
        "three awaits a tick": await _peer("awaits", sys.executable, search_s),
        "cryptofeed TradeStream": await _peer("cryptofeed", await _peers_python(), search_s),
    }
    again = await _ceilings(quick)
    blaster = max(ceilings["raw blaster"] or 0, again["raw blaster"] or 0)
    cryptofeed = peers["cryptofeed TradeStream"]
    sustained = ours["sustained"]

    def ratio(other: float | None) -> float | None:
        return sustained / other if other and sustained else None

    rows = [
        row(f"sustained {hold_s:.0f} s, one process", sustained, "ticks/s", at_least=150_000,
            note=f"{ours['held_s']:.0f} s held, {ours['queued']} queued at the end, none lost"),
        row("… × cryptofeed TradeStream", ratio(cryptofeed), "×", at_least=3),
        row("… × three awaits a tick", ratio(peers["three awaits a tick"]), "×", at_least=30),
        row("… × Redis ceiling (raw blaster)", ratio(blaster), "×", at_least=0.4),
        row("taken when sent without limit", ours["saturated"], "ticks/s", note=ours["saturated_note"]),
        row("the same in full mode (four samples), sustained", full["sustained"], "ticks/s",
            ratios={"quote mode": full["sustained"] / sustained if sustained else None}),
        row("daemon CPU", ours["daemon_us"], "µs/tick", note="while sustained"),
        row("Redis CPU", ours["redis_us"], "µs/tick", note="while sustained"),
        row("load CPU", ours["load_us"], "µs/tick", note="shares the cores with both"),
        row("daemon RSS after it", ours["rss_mb"], "MB"),
        row("Redis ceiling: raw blaster", blaster, "ticks/s", note="two samples and one flat entry a tick"),
        row("redis-benchmark, XADD of six fields", ceilings["redis-benchmark"], "entries/s"),
        *(row(f"peer: {name}", value, "ticks/s", note="" if value else "could not be installed")
          for name, value in peers.items()),
    ]  # fmt: skip
    return result(rows, quote=ours, full=full, peers=peers, ceilings=[ceilings, again])


async def _ceilings(quick: bool) -> dict[str, float | None]:
    with tempfile.TemporaryDirectory(prefix="marketd-bench-") as folder:
        async with EmbeddedRedis(Path(folder)) as server:
            url = await server.start()
            return {
                "raw blaster": await ceiling.raw_blaster(url, ticks=50_000 if quick else 100_000),
                "redis-benchmark": await ceiling.redis_benchmark(url),
            }


async def _ours(mode: Any, search_s: float, hold_s: float) -> dict[str, Any]:
    async with Rig(instruments=INSTRUMENTS, mode=mode) as rig:
        url = f"{rig.daemon.api_url.replace('http', 'ws', 1)}/ws"
        arguments = (url, "0", str(CLIENTS), str(WATCHED), str(INSTRUMENTS), "latest", "250")
        async with Helper("watchers", *arguments) as watchers:
            await watchers.hear()
            await rig.load.run(rate=2_000, seconds=1)
            flooded = await _run(rig, 0, search_s)
            found = flooded["taken"] * 0.95
            held: dict[str, Any] = {}
            for attempt in range(8):
                trial = await _run(rig, found, search_s)
                if trial["kept_up"]:
                    held = trial if hold_s <= search_s else await _run(rig, found, hold_s)
                    if held["kept_up"]:
                        break
                found *= 0.93 if attempt < 4 else 0.85
            else:
                held = {}
    sustained = held.get("taken") if held else None
    return {
        "saturated": flooded["taken"],
        "saturated_note": f"of these {flooded['lost']} not stored" if flooded["lost"] else "all stored",
        "sustained": sustained,
        "held_s": held.get("seconds", 0.0),
        "queued": held.get("queued", 0),
        **{f"{name}_us": held.get(name) for name in ("daemon", "redis", "load")},
        "rss_mb": held.get("rss_mb"),
    }


async def _run(rig: Rig, rate: float, seconds: float) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    before, used = await rig.status(), rig.used()
    began_s = loop.time()
    told = await rig.load.run(rate=rate, seconds=seconds)
    at_end = await rig.status()
    queued = max(sink["queued"] + sink["spooled"] for sink in at_end["sinks"].values())
    ended_s = loop.time()
    after = await rig.settled(120)
    settled_s = loop.time() - ended_s
    now = rig.used()
    stored, lost = _stored(before, after), _lost(before, after)
    kept_up = (
        not lost
        and settled_s < _KEEPS_UP_S
        and told["most_behind"] < max(rate * _KEEPS_UP_S, 500)
        and told["seconds"] < seconds + _KEEPS_UP_S
    )
    cpu = {name: _us_per_tick(used[name], now[name], told["sent"]) for name in used}
    return {
        "taken": stored / (loop.time() - began_s),
        "seconds": told["seconds"],
        "queued": queued,
        "lost": lost,
        "lost_why": {n: (s["dropped"], s["rejected"]) for n, s in after["sinks"].items()},
        "kept_up": kept_up,
        "rss_mb": now["daemon"].rss_bytes / 1e6,
        **cpu,
    }


def _us_per_tick(before: Usage, after: Usage, ticks: int) -> float:
    return (after.cpu_s - before.cpu_s) / ticks * 1e6


def _stored(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    name = "stream"
    return int(after["sinks"][name]["written"] - before["sinks"][name]["written"])


def _lost(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    return sum(
        sum(after["sinks"][name][kind].values()) - sum(before["sinks"][name][kind].values())
        for name in ("stream", "time_series")
        for kind in ("dropped", "rejected")
    )


async def _peers_python() -> str | None:
    """Return the Python that has cryptofeed, made when it is missing; None where it cannot be had."""
    code, _ = await output(str(PEERS_PYTHON), "-c", "import cryptofeed.backends.redis")
    if code:
        await output(sys.executable, "-m", "venv", str(PEERS_PYTHON.parents[1]))
        await output(str(PEERS_PYTHON), "-m", "pip", "install", "-q", *CRYPTOFEED)
        code, _ = await output(str(PEERS_PYTHON), "-c", "import cryptofeed.backends.redis")
    return None if code else str(PEERS_PYTHON)


async def _peer(which: str, python: str | None, seconds: float) -> float | None:
    """Return the ticks a second that a peer has stored, counted until the last one lies in Redis."""
    if python is None:
        return None
    loop = asyncio.get_running_loop()
    with tempfile.TemporaryDirectory(prefix="marketd-bench-") as folder:
        async with EmbeddedRedis(Path(folder)) as server, LoadProcess("quote", "") as load:
            url = await server.start()
            client = redis.asyncio.from_url(url)
            feed = f"ws://127.0.0.1:{load.port}"
            async with Helper("peer", which, feed, url, str(INSTRUMENTS), program=python) as peer:
                await peer.hear()
                while (await load.ask())["subscribed"] < INSTRUMENTS:  # noqa: ASYNC110 - another process
                    await asyncio.sleep(0.05)
                await load.run(rate=500, seconds=1)
                before, began_s = await _entries(client), loop.time()
                await load.run(rate=0, seconds=seconds)
                stored, ended_s = await _entries(client), loop.time()
                while loop.time() < ended_s + 1.0:
                    await asyncio.sleep(0.05)
                    now = await _entries(client)
                    if now > stored:
                        stored, ended_s = now, loop.time()
            await client.aclose()
    return (stored - before) / (ended_s - began_s)


async def _entries(client: redis.asyncio.Redis) -> int:
    """Return how many stream entries Redis has been given."""
    stats = await client.info("commandstats")
    return int(stats.get("cmdstat_xadd", {}).get("calls", 0))
