"""Fan-out: a thousand WebSocket clients, one in ten of them frozen, against none frozen.

The real gateway and broadcast in this process; the clients in two others. The same nine hundred clients are
measured in windows that alternate between "nobody is frozen" and "one in ten is", so that a machine that is
busy with other things is busy in both. What counts is how much worse they fare: p99 and throughput.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import os
import random
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import structlog
import uvloop

from services.data_broadcast import DataBroadcast
from services.gateway.backend import InstrumentView, Readiness
from services.gateway.limits import limits_for
from services.gateway.server import Gateway, GatewayConfig
from services.market_data.clock import SystemClock
from services.market_data.records import DataIngestionFormat

CLIENTS, FROZEN_PART, EACH, INSTRUMENTS = 1_000, 10, 50, 500
TICKS_PER_S = 300
"""30 000 deliveries a second to 1 000 clients: well below what one core can do, as gateways are run."""
STAMPS_PER_S = 10_000
P99_RISE_AT_MOST, THROUGHPUT_LOSS_AT_MOST = 0.20, 0.02
ORDER = 60
_CLIENTS = Path(__file__).with_name("fanout_clients.py")


class Backend:
    """A daemon with instruments and nothing behind them."""

    demo = True
    epoch = "benchmark"

    def __init__(self, count: int) -> None:
        self.keys = {f"NSE:S{number}" for number in range(count)}

    def provider_status(self) -> list[dict[str, Any]]:
        """Return none."""
        return []

    def instruments(self) -> list[InstrumentView]:
        """Return all."""
        return [
            InstrumentView(
                key=key,
                exchange="NSE",
                symbol=key[4:],
                name=key,
                asset_class="equity",
                currency="INR",
            )
            for key in self.keys
        ]

    def is_known(self, instrument: str) -> bool:
        """Tell whether there is such an instrument."""
        return instrument in self.keys

    def readiness(self) -> Readiness:
        """Return that all is well."""
        return Readiness(ready=True)

    def pipeline_status(self) -> dict[str, Any]:
        """Return nothing."""
        return {}

    async def why(self, instrument: str) -> dict[str, Any] | None:
        """Return nothing."""
        return None

    def similar(self, instrument: str) -> list[str]:
        """Return none."""
        return []

    def interest_changed(self, added: frozenset[str], removed: frozenset[str]) -> None:
        """Do nothing."""


class Market:
    """Offers ticks at an even rate; the price of each is the moment it was offered."""

    def __init__(self, broadcast: DataBroadcast, base_s: float, ticks_per_s: int) -> None:
        self._broadcast = broadcast
        self._base_s = base_s
        self._ticks_per_s = ticks_per_s
        self.made = 0

    async def run(self) -> None:
        """Offer until cancelled; what is due late is offered at once, stamped with when it was due."""
        chance = random.Random(1)
        keys = [f"NSE:S{number}" for number in range(INSTRUMENTS)]
        began_s = time.monotonic()
        while True:
            due = int((time.monotonic() - began_s) * self._ticks_per_s)
            while self.made < due:
                at_s = began_s + self.made / self._ticks_per_s
                self.made += 1
                stamp = float(int((at_s - self._base_s) * STAMPS_PER_S))
                self._broadcast.offer(
                    DataIngestionFormat(
                        chance.choice(keys),
                        stamp,
                        10,
                        self.made,
                        "BENCH",
                        exchange="NSE",
                        position_ms=1 + self.made,
                    )
                )
            await asyncio.sleep(0.002)


class Crowd:
    """A process full of clients."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    @classmethod
    async def start(cls, port: int, count: int, first: int, base_s: float) -> Crowd:
        """Start it and wait until all of its clients watch."""
        words = map(str, (port, count, first, INSTRUMENTS, EACH, base_s))
        crowd = cls(
            await asyncio.create_subprocess_exec(
                sys.executable,
                str(_CLIENTS),
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
        )
        await crowd._answer(240.0)
        return crowd

    async def do(self, what: str) -> dict[str, Any]:
        """Give a command and return its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": what}).encode() + b"\n")
        return await self._answer(240.0)

    async def end(self) -> None:
        """Let it go."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), 5.0)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()

    async def _answer(self, within_s: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = await asyncio.wait_for(self._process.stdout.readline(), within_s)
        if not line:
            raise RuntimeError("the clients' process ended")
        return dict(json.loads(line))


async def measure(
    quick: bool = False, clients: int = CLIENTS, ticks_per_s: int = TICKS_PER_S
) -> dict[str, Any]:
    """Return the figures of both cases and what became of the bounds; shorter windows with `quick`."""
    pairs, window_s = (3, 8.0) if quick else (8, 12.0)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    clock, backend = SystemClock(), Backend(INSTRUMENTS)
    broadcast = DataBroadcast(clock)
    gateway = Gateway(backend, broadcast, GatewayConfig(port=0, limits=limits_for(2 * clients)))
    port = int((await gateway.start()).rpartition(":")[2])
    base_s = time.monotonic()
    market = Market(broadcast, base_s, ticks_per_s)
    serving = asyncio.create_task(gateway.run())
    frozen = clients // FROZEN_PART
    crowds = [
        await Crowd.start(port, clients - frozen, 0, base_s),
        await Crowd.start(port, frozen, clients - frozen, base_s),
    ]
    trading = asyncio.create_task(market.run())
    windows: dict[str, list[dict[str, Any]]] = {"none_frozen": [], "one_in_ten_frozen": []}
    try:
        # As in the daemon: what lives as long as the process is kept from the collector.
        gc.collect()
        gc.freeze()
        await asyncio.sleep(5.0)
        for _ in range(pairs):
            for case, order in (("none_frozen", "thaw"), ("one_in_ten_frozen", "freeze")):
                await crowds[1].do(order)
                # Until the first frozen ones are cut, which is when they cost most.
                await asyncio.sleep(1.0)
                windows[case].append(await _window(crowds[0], market, window_s))
        figures = gateway.client_figures()
    finally:
        for task in (trading, serving):
            task.cancel()
        for crowd in crowds:
            await crowd.end()
        await gateway.stop()
        await asyncio.wait([trading, serving])
    return _judged(windows, figures, clients, ticks_per_s)


async def _window(crowd: Crowd, market: Market, window_s: float) -> dict[str, Any]:
    await crowd.do("begin")
    made, began_s, spent_s = market.made, time.monotonic(), time.process_time()
    await asyncio.sleep(window_s)
    found = await crowd.do("end")
    took_s = time.monotonic() - began_s
    return found | {
        "offered_per_s": (market.made - made) / took_s,
        "delivered_per_s": found["ticks"] / took_s,
        "cpu_us_per_offered": (time.process_time() - spent_s) * 1e6 / max(1, market.made - made),
    }


def _judged(
    windows: dict[str, list[dict[str, Any]]], figures: dict[str, Any], clients: int, ticks_per_s: int
) -> dict[str, Any]:
    middle = {
        case: {
            name: statistics.median(window[name] for window in found)
            for name in ("p50", "p99", "delivered_per_s", "offered_per_s", "cpu_us_per_offered")
        }
        for case, found in windows.items()
    }
    none, some = middle["none_frozen"], middle["one_in_ten_frozen"]
    cut = figures["closed_by_code"].get(4008, 0)
    # Neighbouring windows with each other: what else the machine does changes more slowly than they do.
    pairs = zip(windows["none_frozen"], windows["one_in_ten_frozen"], strict=True)
    rise = statistics.median(frozen["p99"] / free["p99"] for free, frozen in pairs) - 1
    # Per tick that was offered: a window in which the machine gave us less is no fault of the frozen.
    share = {
        case: sum(window["delivered_per_s"] for window in found)
        / sum(window["offered_per_s"] for window in found)
        for case, found in windows.items()
    }
    loss = 1 - share["one_in_ten_frozen"] / share["none_frozen"]
    rows = [
        _row("p99, nobody frozen", none["p99"], "ms"),
        _row("p99, one in ten frozen", some["p99"], "ms"),
        _row("p99 rises by", rise, "", P99_RISE_AT_MOST),
        _row("delivered, nobody frozen", none["delivered_per_s"], "ticks/s"),
        _row("delivered, one in ten frozen", some["delivered_per_s"], "ticks/s"),
        _row("throughput falls by", loss, "", THROUGHPUT_LOSS_AT_MOST),
        _row("gateway's CPU a tick, nobody frozen", none["cpu_us_per_offered"], "µs"),
        _row("gateway's CPU a tick, one in ten frozen", some["cpu_us_per_offered"], "µs"),
        _row("frozen connections that were cut", float(cut), ""),
    ]
    return {
        "rows": rows,
        "plots": [],
        "notes": [
            f"{clients} clients with {EACH} of {INSTRUMENTS} instruments, every tick, {ticks_per_s} ticks/s",
            "p99 is from the moment a tick was due to its reading in another process",
            f"load of the machine at the end: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
        ],
        "windows": windows,
        "skipped": figures["skipped"],
        "cut": cut,
        "met": rise < P99_RISE_AT_MOST and loss < THROUGHPUT_LOSS_AT_MOST and cut > 0,
    }


def _row(what: str, value: float, unit: str, at_most: float | None = None) -> dict[str, Any]:
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "goal": "" if at_most is None else f"≤ {at_most:g}",
        "met": None if at_most is None else value <= at_most,
        "ratios": {},
        "note": "",
    }


def main() -> int:
    """Run it and print the figures as JSON; 1 when a bound was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="shorter windows, coarser figures")
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--ticks-per-s", type=int, default=TICKS_PER_S)
    chosen = parser.parse_args()
    measured = uvloop.run(measure(chosen.quick, chosen.clients, chosen.ticks_per_s))
    print(json.dumps(measured, indent=1, ensure_ascii=False))
    return 0 if measured["met"] else 1


if __name__ == "__main__":
    sys.exit(main())
