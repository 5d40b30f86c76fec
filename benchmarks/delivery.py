"""Deliveries a second that one core makes: the real gateway, and `websockets.broadcast` beside it.

All serve in this process and take turns; the clients are other processes that only take and count. What
counts is processor time of this process, kernel included, by delivery: its reciprocal is what a core makes
when it does nothing else. Every tick is a frame to each of a hundred clients; clients with five hundred
instruments each get the newest values of all in one frame. The peer sends a ready text of the same length;
the ceiling is the kernel's `write` of a ready frame to as many sockets, with nothing else done."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog
import websockets

from benchmarks.fanout import Backend
from benchmarks.report import result, row
from benchmarks.rig import Helper
from benchmarks.turns import Slice, in_turn, rate
from services.data_broadcast import DataBroadcast
from services.gateway.limits import limits_for
from services.gateway.server import Gateway, GatewayConfig
from services.market_data.clock import SystemClock
from services.market_data.records import DataIngestionFormat

ORDER = 25
CLIENTS = 100
WIDE_CLIENTS, WIDE_INSTRUMENTS, EVERY_MS = 100, 500, 250
_TURN_S = 0.002
_SLICE_S, _QUIET_S = 0.3, 0.05
_WIDE_SLICE_S = 1.0


async def measure(quick: bool) -> dict[str, Any]:
    """Measure all four in turn."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    async with contextlib.AsyncExitStack() as stack:
        enter = stack.enter_async_context
        ours = await enter(_gateway(CLIENTS, 1, "all"))
        took = await ours.counted()
        size = round(took["bytes"] / took["frames"])
        wide = await enter(_gateway(WIDE_CLIENTS, WIDE_INSTRUMENTS, "latest"))
        found = await in_turn(
            5 if quick else 60,
            {
                "ours": ours.frames,
                "peer": (await enter(_websockets(size))).frames,
                "kernel": (await enter(_websockets(size, ready=True))).frames,
                "wide": wide.ticks,
            },
        )
    frames, other, ceiling, coalesced = (rate(found[name]) for name in ("ours", "peer", "kernel", "wide"))
    rows = [
        row(f"frames to {CLIENTS} clients, a tick in each", frames, "deliveries/s", at_least=220_000,
            ratios={"the kernel's write": frames / ceiling},
            note=f"{size} bytes a frame; by processor time"),
        row("… × websockets.broadcast", frames / other, "×", at_least=1.2),
        row(f"newest values to {WIDE_CLIENTS} clients × {WIDE_INSTRUMENTS} instruments", coalesced, "ticks/s",
            at_least=4_000_000, ratios={"frames of one tick": coalesced / frames},
            note="by processor time"),
        row("peer: websockets.broadcast", other, "deliveries/s",
            ratios={"the kernel's write": other / ceiling}),
        row("ceiling: the kernel's write of a ready frame", ceiling, "deliveries/s"),
    ]  # fmt: skip
    return result(rows, slices=found)


class _Stage:
    """A server in this process whose clients wait in another, given something to send now and then."""

    def __init__(self, drain: Helper, offer: Callable[[], None], turn_s: float, slice_s: float) -> None:
        self._drain, self._offer = drain, offer
        self._turn_s, self._slice_s = turn_s, slice_s

    async def counted(self) -> dict[str, float]:
        """Offer once a turn; return what the clients took, and our processor time for it as `cpu_s`."""
        await self._drain.ask(do="begin")
        spent_s = time.process_time()
        until_s = time.monotonic() + self._slice_s
        while time.monotonic() < until_s:
            self._offer()
            await asyncio.sleep(self._turn_s)
        # What waits in outboxes is still to be sent, and paid for.
        await asyncio.sleep(max(_QUIET_S, self._turn_s))
        spent_s = time.process_time() - spent_s
        took = await self._drain.ask(do="end")
        return {**{name: float(value) for name, value in took.items()}, "cpu_s": spent_s}

    async def frames(self) -> Slice:
        """Return the frames that the clients took in one slice, and our processor time."""
        took = await self.counted()
        return Slice(took["frames"], took["cpu_s"])

    async def ticks(self) -> Slice:
        """Return the ticks that the clients took in one slice, and our processor time."""
        took = await self.counted()
        return Slice(took["ticks"], took["cpu_s"])


@contextlib.asynccontextmanager
async def _gateway(clients: int, instruments: int, delivery: str) -> AsyncIterator[_Stage]:
    broadcast = DataBroadcast(SystemClock())
    gateway = Gateway(Backend(instruments), broadcast, GatewayConfig(port=0, limits=limits_for(2 * clients)))
    url = f"{(await gateway.start()).replace('http', 'ws', 1)}/ws"
    serving = asyncio.create_task(gateway.run())
    made = 0

    def offer() -> None:
        nonlocal made
        made += instruments
        broadcast.offer_ticks([_tick(number, made + number) for number in range(instruments)])

    arguments = (url, str(clients), str(instruments), delivery, str(EVERY_MS))
    try:
        async with Helper("drain", *arguments) as drain:
            await drain.hear()
            if delivery == "all":
                yield _Stage(drain, offer, _TURN_S, _SLICE_S)
            else:
                # New values at every slot: what is conflated is not what this measures.
                yield _Stage(drain, offer, EVERY_MS / 1000, _WIDE_SLICE_S)
    finally:
        serving.cancel()
        await gateway.stop()
        await asyncio.wait([serving])


@contextlib.asynccontextmanager
async def _websockets(size: int, *, ready: bool = False) -> AsyncIterator[_Stage]:
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

    # No pings of its own: they would be paid for in the others' slices.
    async with websockets.serve(serve, "127.0.0.1", 0, compression=None, ping_interval=None) as server:
        url = f"ws://127.0.0.1:{next(iter(server.sockets)).getsockname()[1]}"
        async with Helper("drain", url, str(CLIENTS), "0", "", "0") as drain:
            await drain.hear()
            offer = write if ready else lambda: websockets.broadcast(connected, text)
            yield _Stage(drain, offer, _TURN_S, _SLICE_S)


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
