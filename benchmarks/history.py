"""How long a client waits for past candles: `GET /api/history`, one request after another on one connection.

Against the demo as a process of its own, with its simulated market at work and nothing else to do: the past
before its start is fetched when it is asked for the first time, and not beside the measurement. Beside the
wait, which a busy machine makes longer, stands the processor time that a request takes of the daemon.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import aiohttp

from benchmarks.report import result, row
from benchmarks.rig import DaemonProcess, usage
from benchmarks.turns import in_turn

ORDER = 45
INSTRUMENTS = ("NSE:RELIANCE", "NASDAQ:AAPL", "CRYPTO:BTC-USD")
ASKED = (("1m", 500), ("5m", 200), ("1d", 60))
GOAL = "500 candles of 1m"
NOTHING = "nothing (/healthz)"
_STORED_WITHIN_S = 180.0
_BEFORE_S = 600
_REST_S = 10.0
_AT_A_TIME = 50


class Took(NamedTuple):
    """What requests of one kind took: the wait of each, and the daemon's processor time for one, in ms."""

    waits_ms: list[float]
    cpu_ms: float


async def measure(quick: bool) -> dict[str, Any]:
    """Measure the time from the request to the last byte of the answer, by interval and count."""
    times = 200 if quick else 1_000
    settings = {"BACKFILL_MINUTE_DAYS": 0, "BACKFILL_DAILY_DAYS": 0}
    to_s = int(time.time()) - _BEFORE_S
    with tempfile.TemporaryDirectory(prefix="marketd-bench-") as folder:
        async with (
            DaemonProcess(Path(folder) / "state", "--demo", **settings) as daemon,
            aiohttp.ClientSession(daemon.api_url) as session,
        ):
            asked = {
                f"{count} candles of {interval}": [
                    f"/api/history/{name}?interval={interval}&count={count}&to={to_s}" for name in INSTRUMENTS
                ]
                for interval, count in ASKED
            }
            for addresses in asked.values():
                for address in addresses:
                    await _until_stored(session, address)
            rest = await resting_share(daemon.pid)
            found = await took_in_turn(session, daemon.pid, asked | {NOTHING: ["/healthz"]}, times, rest)
    rows = []
    floor = found[NOTHING]
    for name, each in found.items():
        waits, least = sorted(each.waits_ms), sorted(floor.waits_ms)
        middle, beside = len(waits) // 2, () if each is floor else (NOTHING,)
        goal = 5 if name == GOAL else None
        rows += [
            row(f"{name}: median wait", waits[middle], "ms", at_most=goal,
                ratios=dict.fromkeys(beside, waits[middle] / least[middle])),
            row(f"{name}: 99th of 100", waits[len(waits) * 99 // 100], "ms"),
            row(f"{name}: the daemon's processor time", each.cpu_ms, "ms",
                ratios={it: each.cpu_ms / floor.cpu_ms for it in beside if floor.cpu_ms}),
        ]  # fmt: skip
    return result(
        rows, waits_ms={name: [round(each, 3) for each in it.waits_ms] for name, it in found.items()}
    )


async def _until_stored(session: aiohttp.ClientSession, address: str) -> None:
    deadline_s = time.monotonic() + _STORED_WITHIN_S
    while True:
        async with session.get(address) as answer:
            body = await answer.json()
        if answer.status == 200 and body["complete"]:
            return
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{address} was never complete: {str(body)[:300]}")
        await asyncio.sleep(1.0)


async def resting_share(pid: int) -> float:
    """Return how much of a processor the daemon uses for its market alone."""
    before, began_s = usage(pid).cpu_s, time.perf_counter()
    await asyncio.sleep(_REST_S)
    return (usage(pid).cpu_s - before) / (time.perf_counter() - began_s)


async def took_in_turn(
    session: aiohttp.ClientSession, pid: int, kinds: Mapping[str, list[str]], times: int, resting_share: float
) -> dict[str, Took]:
    """Return what `times` requests of each kind of addresses take, beyond what the process uses at rest.

    They are made fifty at a time, one kind after another.
    """
    takes = {
        name: partial(_took, session, pid, list(islice(cycle(addresses), _AT_A_TIME)), resting_share)
        for name, addresses in kinds.items()
    }
    slices = await in_turn(times // _AT_A_TIME, takes)
    return {
        name: Took([wait for one in each for wait in one.waits_ms], mean(one.cpu_ms for one in each))
        for name, each in slices.items()
    }


async def _took(session: aiohttp.ClientSession, pid: int, addresses: list[str], resting_share: float) -> Took:
    before, began_s = usage(pid).cpu_s, time.perf_counter()
    waits = [await timed(session, address) for address in addresses]
    resting_s = resting_share * (time.perf_counter() - began_s)
    return Took(waits, (usage(pid).cpu_s - before - resting_s) / len(addresses) * 1000)


async def timed(session: aiohttp.ClientSession, address: str) -> float:
    """Return how long one request takes until the last byte of its answer, ms."""
    began_s = time.perf_counter()
    async with session.get(address) as answer:
        await answer.read()
        answer.raise_for_status()
    return (time.perf_counter() - began_s) * 1000
