"""Puts a requested fault into effect on a simulator: the one table from request to action."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from simulators import faults as f
from simulators.connection import BINARY, TEXT, Connection

if TYPE_CHECKING:
    from simulators.stream import StreamSimulator


async def inject(simulator: StreamSimulator, fault: f.AnyFault) -> int:
    """Act on the request; return how many connections it concerns.

    Raises ValueError for a fault this vendor cannot have or a parameter that makes no sense.
    """
    match fault:
        case f.Close(code=code, reason=reason, connection=number):
            return for_each(simulator, number, "close", lambda it: it.close(code, reason))
        case f.Abort(connection=number):
            return for_each(simulator, number, "abort", lambda it: it.abort())
        case f.Garbage(data=data, text=text, count=count):
            opcode, payload = (BINARY, bytes.fromhex(data)) if text is None else (TEXT, text.encode())
            for _ in range(count):
                for_each(simulator, None, "garbage", lambda it: it.send_now(opcode, payload))
        case f.Refuse(on=True):
            simulator.faults.refusing = True
            simulator.refuse()
        case f.Refuse():
            simulator.faults.refusing = False
            await simulator.listen()
        case f.Clear():
            await simulator.listen()
            simulator.release_hanging()
            simulator.release_held()
            simulator.faults = f.FaultState()
        case _:
            return _inject_lasting(simulator, fault)
    return len(simulator.connections)


def _inject_lasting(simulator: StreamSimulator, fault: f.AnyFault) -> int:
    state = simulator.faults
    match fault:
        case f.Mute(symbols=None, on=on):
            state.muted = on
        case f.Mute(symbols=tuple() as symbols, on=on):
            change = state.muted_symbols.update if on else state.muted_symbols.difference_update
            change(symbols)
        case f.Pause(on=on):
            state.paused = on
        case f.DropSubscriptions(probability=probability):
            state.drop_probability = probability
        case f.Truncated(symbol=symbol, size=size):
            state.truncate[symbol] = size
        case f.Duplicate(copies=copies):
            state.copies = max(1, copies)
        case f.OutOfOrder(every=every):
            state.out_of_order_every = max(0, every)
            if not every:
                simulator.release_held()
        case f.BadPrice(count=count):
            state.bad_price, state.bad_prices_left = (fault, count) if count > 0 else (None, 0)
        case f.Skew(ms=ms):
            state.skew_ms = ms
        case f.SnapshotAge(seconds=seconds):
            state.snapshot_age_s = seconds
        case f.Flood(factor=factor):
            state.flood_factor = max(0.0, factor)
        case f.Hang(on=on):
            state.hanging = on
            if not on:
                simulator.release_hanging()
        case f.HandshakeStatus(status=status):
            state.handshake = fault if status is not None else None
        case f.CloseOnConnect(how=how):
            state.close_on_connect = how
        case _:
            return simulator.inject_own(fault)
    return len(simulator.connections)


def for_each(
    simulator: StreamSimulator, number: int | None, name: str, act: Callable[[Connection], object]
) -> int:
    """Act on one connection, or on all; count the fault as often and return how many there were."""
    chosen = [it for it in simulator.connections.values() if number is None or it.number == number]
    for connection in chosen:
        act(connection)
    simulator.fault_counts[name] += len(chosen)
    return len(chosen)
