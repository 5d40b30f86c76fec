"""Deliveries a second that one core makes: the real gateway, and `websockets.broadcast` beside it.

Both serve in this process, one after the other; the clients are another process that only takes and counts.
What counts is processor time of this process, kernel included, by delivery: its reciprocal is what a core
makes when it does nothing else. First every tick is a frame to each of a hundred clients; then clients with
five hundred instruments each get the newest values of all in one frame. The peer sends a ready text of the
same length; the ceiling is the kernel's `write` of a ready frame to as many sockets, with nothing else
done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable
from statistics import median
from typing import Any

import structlog
import websockets

from benchmarks.fanout import Backend
from benchmarks.report import result, row
from benchmarks.rig import Helper
from services.data_broadcast import DataBroadcast
from services.gateway.limits import limits_for
from services.gateway.server import Gateway, GatewayConfig
from services.market_data.clock import SystemClock
from services.market_data.records import DataIngestionFormat

ORDER = 25
CLIENTS = 100
WIDE_CLIENTS, WIDE_INSTRUMENTS, EVERY_MS = 100, 500, 250
_TURN_S = 0.002
_QUIET_S = 0.5


async def measure(quick: bool) -> dict[str, Any]:
    """Measure both, alternating, so that a machine that changes its mood changes it for both."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    seconds, rounds = (2.0, 2) if quick else (2.0, 9)
    ours: list[dict[str, float]] = []
    peer: list[dict[str, float]] = []
    kernel: list[dict[str, float]] = []
    wide: list[dict[str, float]] = []
    for _ in range(rounds):
        ours.append(await _gateway(CLIENTS, 1, "all", seconds))
        size = round(ours[-1]["bytes"] / ours[-1]["frames"])
        peer.append(await _websockets(seconds, size))
        kernel.append(await _websockets(seconds, size, ready=True))
        wide.append(await _gateway(WIDE_CLIENTS, WIDE_INSTRUMENTS, "latest", seconds))
    frames, other, ceiling = (median(each["frames_per_cpu_s"] for each in it) for it in (ours, peer, kernel))
    coalesced = median(each["ticks_per_cpu_s"] for each in wide)
    to_peer, to_kernel = _ratio(ours, peer), _ratio(ours, kernel)
    rows = [
        row(f"frames to {CLIENTS} clients, a tick in each", frames, "deliveries/s", at_least=220_000,
            ratios={"websockets.broadcast": to_peer, "the kernel's write": to_kernel},
            note=f"{ours[-1]['bytes'] / ours[-1]['frames']:.0f} bytes a frame; by processor time"),
        row("… × websockets.broadcast", to_peer, "×", at_least=1.2, note="median of the rounds' ratios"),
        row(f"newest values to {WIDE_CLIENTS} clients × {WIDE_INSTRUMENTS} instruments", coalesced, "ticks/s",
            at_least=4_000_000, ratios={"frames of one tick": coalesced / frames},
            note=f"{wide[-1]['ticks'] / max(1, wide[-1]['frames']):.0f} ticks a frame; by processor time"),
        row("peer: websockets.broadcast", other, "deliveries/s",
            ratios={"the kernel's write": _ratio(peer, kernel)}),
        row("ceiling: the kernel's write of a ready frame", ceiling, "deliveries/s"),
    ]  # fmt: skip
    return result(rows, ours=ours, peer=peer, kernel=kernel, wide=wide)


def _ratio(some: list[dict[str, float]], others: list[dict[str, float]]) -> float:
    """Return the middle of the ratios of rounds that followed each other."""
    name = "frames_per_cpu_s"
    return median(one[name] / other[name] for one, other in zip(some, others, strict=True))


async def _gateway(clients: int, instruments: int, delivery: str, seconds: float) -> dict[str, float]:
    broadcast = DataBroadcast(SystemClock())
    gateway = Gateway(Backend(instruments), broadcast, GatewayConfig(port=0, limits=limits_for(2 * clients)))
    url = f"{(await gateway.start()).replace('http', 'ws', 1)}/ws"
    serving = asyncio.create_task(gateway.run())
    made = 0

    def offer() -> None:
        nonlocal made
        made += instruments
        broadcast.offer_ticks([_tick(number, made + number) for number in range(instruments)])

    try:
        arguments = (url, str(clients), str(instruments), delivery, str(EVERY_MS))
        # New values at every slot: what is conflated is not what this measures.
        turn_s = _TURN_S if delivery == "all" else EVERY_MS / 1000
        return await _measured(arguments, offer, turn_s, seconds)
    finally:
        serving.cancel()
        await gateway.stop()
        await asyncio.wait([serving])


async def _websockets(seconds: float, size: int, *, ready: bool = False) -> dict[str, float]:
    """Broadcast a text; `ready`: write its frame to the sockets, past the library."""
    connected: set[websockets.ServerConnection] = set()

    async def serve(connection: websockets.ServerConnection) -> None:
        connected.add(connection)
        await connection.wait_closed()

    text = "x" * size
    frame = (bytes([0x81, size]) if size < 126 else b"\x81\x7e" + size.to_bytes(2, "big")) + text.encode()

    def write() -> None:
        for connection in connected:
            with contextlib.suppress(BlockingIOError):
                os.write(connection.transport.get_extra_info("socket").fileno(), frame)

    async with websockets.serve(serve, "127.0.0.1", 0, compression=None) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        arguments = (url, str(CLIENTS), "0", "", "0")
        offer = write if ready else lambda: websockets.broadcast(connected, text)
        return await _measured(arguments, offer, _TURN_S, seconds)


async def _measured(
    arguments: tuple[str, ...], offer: Callable[[], None], turn_s: float, seconds: float
) -> dict[str, float]:
    """Offer once a turn; return what the clients took, and how much by second of our processor time."""
    async with Helper("drain", *arguments) as drain:
        await drain.hear()
        await _for(0.5, offer, turn_s)
        await drain.ask(do="begin")
        spent_s = time.process_time()
        await _for(seconds, offer, turn_s)
        # What waits in outboxes is still to be sent, and paid for.
        await asyncio.sleep(_QUIET_S)
        spent_s = time.process_time() - spent_s
        took = await drain.ask(do="end")
    return {
        **{name: float(value) for name, value in took.items()},
        "cpu_s": spent_s,
        "frames_per_cpu_s": took["frames"] / spent_s,
        "ticks_per_cpu_s": took["ticks"] / spent_s,
    }


async def _for(seconds: float, offer: Callable[[], None], turn_s: float) -> None:
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        offer()
        await sleep(turn_s)


def _tick(number: int, made: int) -> DataIngestionFormat:
    return DataIngestionFormat(
        f"NSE:S{number}",
        2_456.75 + made % 100 / 20,
        10,
        1_790_000_000_000 + made,
        "BENCH",
        received_ms=1_790_000_000_000 + made,
        exchange="NSE",
        position_ms=1_790_000_000_000 + made,
    )
