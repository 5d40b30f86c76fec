"""The compiled fan-out and the Python one do the same with the same clients: bytes, counts, pings, order.

Real sessions, outboxes and sockets (pairs in this process); the transport's buffer is the test's, the clock
is set by hand. A client reads all, some or nothing; sockets are small, so that they fill.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
from typing import Any

import pytest

from services.data_broadcast import DataBroadcast, Publication
from services.gateway import outbox, pacer
from services.gateway.flow import FlowLimits
from services.gateway.limits import ClientLimits
from services.gateway.outbox import build_frame
from services.gateway.protocol import parse_client_message
from services.gateway.server import Gateway, GatewayConfig
from services.gateway.session import ClientSession
from services.market_data.clock import ManualClock
from services.market_data.records import ControlRecord, DataIngestionFormat
from tests.support.gateway import StubBackend

KEYS = [f"{exchange}:S{number}" for exchange in ("NSE", "BSE") for number in range(6)]
CLIENTS, STEPS = 8, 300
COMPILED = pacer._compiled

pytestmark = pytest.mark.skipif(COMPILED is None, reason="the compiled fan-out is not built")


class Wire(asyncio.Transport):
    """A transport over one end of a pair of sockets; what the socket does not take waits until `send_on`."""

    def __init__(self) -> None:
        super().__init__()
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.setblocking(False)
        self.ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        self.waiting = bytearray()
        self.closed = False
        self.got = b""

    def write(self, data: Any) -> None:
        self.waiting += data
        self.send_on()

    def send_on(self) -> None:
        with contextlib.suppress(OSError):
            while self.waiting:
                del self.waiting[: self.ours.send(self.waiting)]

    def read(self, most: int) -> list[bytes]:
        """Read up to about `most` bytes; return the payloads of pings among them."""
        start = len(self.got)
        with contextlib.suppress(BlockingIOError):
            while len(self.got) - start < most:
                self.got += self.theirs.recv(most)
        return [payload for opcode, payload in frames_of(self.got)[0] if opcode == 9]

    def get_write_buffer_size(self) -> int:
        return len(self.waiting)

    def is_closing(self) -> bool:
        return self.closed

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def abort(self) -> None:
        self.closed = True

    def close(self) -> None:
        self.closed = True


def frames_of(data: bytes) -> tuple[list[tuple[int, bytes]], int]:
    """Return opcode and payload of complete frames, and where the rest begins."""
    found, at = [], 0
    while at + 4 < len(data):
        size, start = data[at + 1], at + 2
        if size == 126:
            size, start = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        if start + size > len(data):
            break
        found.append((data[at] & 15, data[start : start + size]))
        at = start + size
    return found, at


async def played(seed: int) -> dict[str, Any]:
    """Play one story and return all that can be seen of it."""
    chance, clock = random.Random(seed), ManualClock()
    broadcast = DataBroadcast(clock)
    limits = ClientLimits(outbox_bytes=6_000)
    flow = FlowLimits(initial_bytes=4_096, smallest_bytes=2_048, largest_bytes=16_384)
    gateway = Gateway(StubBackend(KEYS), broadcast, GatewayConfig(port=0, limits=limits, flow=flow))
    context, line = gateway._sockets._context, gateway._pacer
    principal = context.authenticator.check("")
    wires, sessions = [Wire() for _ in range(CLIENTS)], []
    for number, wire in enumerate(wires):
        session = ClientSession(
            context, wire, address="", principal=principal, descriptor=wire.ours.fileno() if number else -1
        )
        wish = {"action": "subscribe", "delivery": "all", "instruments": chance.sample(KEYS, 1 + number)}
        session.subscribe(parse_client_message(json.dumps(wish)))  # type: ignore[arg-type]
        line.enter(session)
        sessions.append(session)
    seen: list[Any] = []
    for step in range(1, STEPS):
        stuck = 100 < step < 200
        clock.advance(chance.choice((0.0, 0.002, 0.4)) if not stuck else 0.002)
        ticks = [tick(chance.choice(KEYS), step, number) for number in range(chance.choice((1, 1, 2, 9, 40)))]
        broadcast.offer_ticks(ticks[:1] if chance.random() < 0.5 else ticks)
        if chance.random() < 0.05:
            broadcast.offer(
                ControlRecord("gap", chance.choice(KEYS), "NSE", 5, 5, "DHAN", {}, 1_000 + step, 99)
            )
        if chance.random() < 0.05:
            chance.choice(sessions).hear(b'{"action":"ping","id":7}')
        if chance.random() < 0.01:
            chance.choice(wires[:3]).closed = True
        if line._flush_handle is not None:
            line._flush_handle.cancel()
            line._flush_ready()
        for session, wire in zip(sessions, wires, strict=True):
            reads = chance.choice((0, 0, 300, 1 << 20)) if not (stuck and wire is wires[-1]) else 0
            known = len(wire.read(0))
            for payload in wire.read(reads)[known:] if reads else []:
                session.heard_pong(payload)
            wire.send_on()
        line.serve()
        seen.append([(len(session.outbox._queue), session.outbox.queued_bytes) for session in sessions])
    for wire in wires:
        wire.read(1 << 22)
        wire.ours.close()
        wire.theirs.close()
    return {
        "queues": seen,
        "bytes": [wire.got + wire.waiting for wire in wires],
        "counters": [session.counters for session in sessions],
        "skipped": [session.outbox.skipped_total for session in sessions],
        "flow": [flow_of(session) for session in sessions],
    }


def flow_of(session: ClientSession) -> dict[str, Any]:
    return {
        name: getattr(session._flow, name)
        for name in ("_sent_total", "_read_total", "_window_bytes", "_last_ping_s", "_last_sent_s", "_number")
    }


def tick(instrument: str, step: int, number: int) -> DataIngestionFormat:
    exchange = instrument.partition(":")[0]
    return DataIngestionFormat(
        *(instrument, float(step), 1, 1_000 + step, "DHAN"),
        exchange=exchange,
        position_ms=1_000 + step,
        position_seq=number,
    )


@pytest.mark.parametrize("seed", range(12))
async def test_both_send_the_same_bytes_and_count_the_same(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = await played(seed)
    monkeypatch.setattr(pacer, "_compiled", None)
    monkeypatch.setattr(outbox, "_compiled", None)
    assert await played(seed) == compiled
    # The story holds what it is about: data, pings, losses, and clients that were behind.
    assert sum(counters.frames_out for counters in compiled["counters"]) > 1_000
    assert sum(compiled["skipped"]) > 0
    assert any(re.search(rb"\x89\x01\d", data) for data in compiled["bytes"])


def test_both_build_the_same_frames() -> None:
    chance = random.Random(1)
    for size in (1, 2, 30, 200):
        for _ in range(20):
            batch = [
                Publication(
                    tick(f"{chance.choice(('NSE', 'BSE', 'MCX'))}:S{number}", chance.randrange(9), number)
                )
                for number in range(size)
            ]
            for item in batch:
                item.record.position_ms = chance.choice((0, 5, 6, 7))
                item.record.position_seq = chance.randrange(4)
            assert COMPILED.build_frame(batch) == build_frame(batch)
