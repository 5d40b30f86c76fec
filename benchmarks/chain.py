"""How long a client waits for an option chain that the daemon has fresh: `GET /api/options/…/chain`.

Against the demo as a process of its own, whose chains come from the simulator of Dhan's REST service. What
is measured is the answer from memory: a chain is asked of the vendor once in some seconds, whoever asks.
The first answer, which waits for the vendor and computes all greeks, stands beside it. One request after
another on one connection, and the processor time that each takes of the daemon."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

from benchmarks.history import Took, resting_share, timed, took_in_turn
from benchmarks.report import result, row
from benchmarks.rig import DaemonProcess

ORDER = 46
UNDERLYING = "NSE:NIFTY"
GOAL_MS = 2.0


async def measure(quick: bool) -> dict[str, Any]:
    """Measure the wait from the request to the last byte of the answer, and the daemon's processor time."""
    times = 300 if quick else 2_000
    settings = {"BACKFILL_MINUTE_DAYS": 0, "BACKFILL_DAILY_DAYS": 0}
    address = f"/api/options/{UNDERLYING}/chain"
    with tempfile.TemporaryDirectory(prefix="marketd-bench-") as folder:
        async with (
            DaemonProcess(Path(folder) / "state", "--demo", **settings) as daemon,
            aiohttp.ClientSession(daemon.api_url) as session,
        ):
            first_ms, body = await _first(session, address)
            rest = await resting_share(daemon.pid)
            before = await _asked(daemon)
            kinds = {"chain": [address], "nothing": ["/healthz"]}
            found = await took_in_turn(session, daemon.pid, kinds, times, rest)
            asked = await _asked(daemon) - before
    return _judged(body, first_ms, found["chain"], found["nothing"], asked)


async def _first(session: aiohttp.ClientSession, address: str) -> tuple[float, dict[str, Any]]:
    """Return how long the first answer took, and the answer; the vendor's limits may hold it up."""
    deadline_s = time.monotonic() + 60.0
    while True:
        began_s = time.perf_counter()
        async with session.get(address) as answer:
            body = await answer.json()
        took_ms = (time.perf_counter() - began_s) * 1000
        if answer.status == 200:
            return took_ms, body
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"no chain of {UNDERLYING}: {str(body)[:300]}")
        # A refusal is kept for a moment.
        await timed(session, "/healthz")


async def _asked(daemon: DaemonProcess) -> int:
    """Return how often sources were asked so far."""
    status = await daemon.get("/api/providers/status")
    return sum(status.get("pipeline", status)["options"]["asked"].values())


def _judged(body: dict[str, Any], first_ms: float, cached: Took, nothing: Took, asked: int) -> dict[str, Any]:
    waits, idle = sorted(cached.waits_ms), sorted(nothing.waits_ms)
    median, floor = waits[len(waits) // 2], idle[len(idle) // 2]
    rows = [
        row("a chain from memory: median wait", median, "ms", at_most=GOAL_MS,
            ratios={"nothing (/healthz)": median / floor}, note=f"{len(body['symbols'])} legs"),
        row("a chain from memory: 99th of 100", waits[len(waits) * 99 // 100], "ms",
            note="with the chains asked anew in between"),
        row("a chain from memory: the daemon's processor time", cached.cpu_ms, "ms",
            ratios={"nothing (/healthz)": cached.cpu_ms / nothing.cpu_ms if nothing.cpu_ms else None}),
        row("the first answer: asked of the vendor, greeks computed", first_ms, "ms"),
    ]  # fmt: skip
    notes = [f"{asked} times a source was asked during {len(cached.waits_ms)} requests"]
    return result(rows, notes=notes, waits_ms=[round(each, 3) for each in cached.waits_ms])
