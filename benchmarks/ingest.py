"""Ticks a second through the whole product: feed socket to Redis, with clients watching, all checks on.

The daemon runs as a process with its sinks, its AOF-keeping Redis and ten WebSocket clients of fifty
instruments each. First the load sends as fast as it is taken; then the greatest rate is sought at which
everything is stored while it comes, and held. Ceiling and peers have a Redis of their own. For the ratios
they and the daemon are given all they can take in turn, a second each, many times over.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Self

import redis.asyncio

from benchmarks import ceiling
from benchmarks.machine import ROOT, output
from benchmarks.report import result, row
from benchmarks.rig import Helper, LoadProcess, Rig, Usage
from benchmarks.turns import Slice, Take, in_turn, rate
from services.operations.embedded_redis import EmbeddedRedis

ORDER = 10
INSTRUMENTS = 1_000
CLIENTS, WATCHED = 10, 50
PEERS_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
CRYPTOFEED = ("cryptofeed==2.4.1", "redis==8.1.0", "hiredis==3.5.0")
_SLICE_S = 1.0
_BLASTED = 100_000
"""Ticks for the ceiling in one slice: half a second's, or a little more."""
_KEEPS_UP_S = 0.5
"""What is still unstored at the end of a sustained run must be stored within this time."""


async def measure(quick: bool) -> dict[str, Any]:
    """Measure throughput, ceiling and peers."""
    search_s, hold_s = (3.0, 6.0) if quick else (6.0, 60.0)
    ours = await _ours("quote", search_s, hold_s)
    castings, rounds = (1, 5) if quick else (3, 10)
    found: dict[str, list[Slice]] = {}
    for _ in range(castings):
        # Begun anew: how a process lies in memory makes some hundredths, as long as it lives.
        async with _Rivals() as rivals, _watched("full") as full_rig, _watched("quote") as rig:
            takes: dict[str, Take] = {
                "ours": partial(_taken, rig),
                "full": partial(_taken, full_rig),
                **rivals.takes(),
            }
            for name, slices in (await in_turn(rounds, takes)).items():
                found.setdefault(name, []).extend(slices)
    full = await _ours("full", search_s, search_s)
    sustained = ours["sustained"]

    rates = {name: rate(slices) for name, slices in found.items()}

    def ratio(other: str, one: str = "ours") -> float | None:
        return rates[one] / rates[other] if other in rates else None

    beside = f"all given all they can take, {castings} × {rounds} × {_SLICE_S:.0f} s in turn"
    rows = [
        row(f"sustained {hold_s:.0f} s, one process", sustained, "ticks/s", at_least=150_000,
            note=f"{ours['held_s']:.0f} s held, {ours['queued']} queued at the end, none lost"),
        row("× cryptofeed TradeStream", ratio("cryptofeed"), "×", at_least=3, note=beside),
        row("× three awaits a tick", ratio("awaits"), "×", at_least=30, note=beside),
        row("× Redis ceiling (raw blaster)", ratio("blaster"), "×", at_least=0.4, note=beside),
        row("taken when sent without limit", ours["saturated"], "ticks/s", note=ours["saturated_note"]),
        row("the same in full mode (four samples), sustained", full["sustained"], "ticks/s",
            ratios={"quote mode, without limit": ratio("ours", "full")}),
        row("daemon CPU", ours["daemon_us"], "µs/tick", note="while sustained"),
        row("Redis CPU", ours["redis_us"], "µs/tick", note="while sustained"),
        row("load CPU", ours["load_us"], "µs/tick", note="shares the cores with both"),
        row("daemon RSS after it", ours["rss_mb"], "MB"),
        row("Redis ceiling: raw blaster", rates["blaster"], "ticks/s",
            note="two samples and one flat entry a tick"),
        row("redis-benchmark, XADD of six fields", rivals.redis_benchmark, "entries/s"),
        *(row(f"peer: {name}", rates.get(which), "ticks/s", note="" if which in rates else "not installed")
          for name, which in (("three awaits a tick", "awaits"), ("cryptofeed TradeStream", "cryptofeed"))),
    ]  # fmt: skip
    return result(rows, quote=ours, full=full, slices=found)


@contextlib.asynccontextmanager
async def _watched(mode: Any) -> AsyncIterator[Rig]:
    """Give a rig whose daemon has clients, and has ticked."""
    async with Rig(instruments=INSTRUMENTS, mode=mode) as rig:
        url = f"{rig.daemon.api_url.replace('http', 'ws', 1)}/ws"
        arguments = (url, "0", str(CLIENTS), str(WATCHED), str(INSTRUMENTS), "latest", "250")
        async with Helper("watchers", *arguments) as watchers:
            await watchers.hear()
            await rig.load.run(rate=2_000, seconds=1)
            yield rig


async def _taken(rig: Rig) -> Slice:
    """Return what the daemon stores of a slice of all it can take, and how long that took."""
    loop = asyncio.get_running_loop()
    before, began_s = await rig.status(), loop.time()
    await rig.load.run(rate=0, seconds=_SLICE_S)
    after = await rig.settled(120, every_s=0.02)
    return Slice(_stored(before, after), loop.time() - began_s)


async def _ours(mode: Any, search_s: float, hold_s: float) -> dict[str, Any]:
    async with _watched(mode) as rig:
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


class _Peer:
    """Another program with a load and a Redis of its own, kept for several rounds."""

    def __init__(self, which: str, python: str) -> None:
        self._which, self._python = which, python
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="marketd-bench-"))
        server = await enter(EmbeddedRedis(Path(folder)))
        self._load = await enter(LoadProcess("quote", ""))
        url = await server.start()
        self._client = redis.asyncio.from_url(url)
        self._stack.push_async_callback(self._client.aclose)
        feed = f"ws://127.0.0.1:{self._load.port}"
        peer = await enter(Helper("peer", self._which, feed, url, str(INSTRUMENTS), program=self._python))
        await peer.hear()
        while (await self._load.ask())["subscribed"] < INSTRUMENTS:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.05)
        await self._load.run(rate=500, seconds=1)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def take(self) -> Slice:
        """Return what it stores of a slice of all it can take, and the time until the last lies in Redis."""
        loop = asyncio.get_running_loop()
        before, began_s = await _entries(self._client), loop.time()
        told = await self._load.run(rate=0, seconds=_SLICE_S)
        stored, ended_s = await _entries(self._client), loop.time()
        while stored - before < told["sent"] and loop.time() < ended_s + 5.0:
            await asyncio.sleep(0.02)
            now = await _entries(self._client)
            if now > stored:
                stored, ended_s = now, loop.time()
        return Slice(stored - before, ended_s - began_s)


class _Rivals:
    """The ceiling and the peers, ready to be measured in turn with the daemon."""

    def __init__(self) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._peers: dict[str, _Peer] = {}
        self.redis_benchmark: float | None = None

    async def __aenter__(self) -> Self:
        enter = self._stack.enter_async_context
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="marketd-bench-"))
        server = await enter(EmbeddedRedis(Path(folder)))
        self._url = await server.start()
        self._client = redis.asyncio.from_url(self._url)
        self._stack.push_async_callback(self._client.aclose)
        self.redis_benchmark = await ceiling.redis_benchmark(self._url)
        self._payloads = ceiling.encoded(INSTRUMENTS, _BLASTED)
        self._peers["awaits"] = await enter(_Peer("awaits", sys.executable))
        python = await _peers_python()
        if python is not None:
            self._peers["cryptofeed"] = await enter(_Peer("cryptofeed", python))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def takes(self) -> dict[str, Take]:
        """Return what measures each of them once."""
        return {"blaster": self._blast, **{name: peer.take for name, peer in self._peers.items()}}

    async def _blast(self) -> Slice:
        await self._client.flushall()
        took_s = await ceiling.raw_blaster(self._url, self._payloads, instruments=INSTRUMENTS)
        return Slice(_BLASTED, took_s)


async def _entries(client: redis.asyncio.Redis) -> int:
    """Return how many stream entries Redis has been given."""
    stats = await client.info("commandstats")
    return int(stats.get("cmdstat_xadd", {}).get("calls", 0))
