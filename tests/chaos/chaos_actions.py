"""What each fault of the schedule does, how it is taken back, and a word on what it met.

An action is an async function of the stack, the planned fault and a wait: it makes the fault, waits, heals.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable

import aiohttp
from redis.exceptions import RedisError

from simulators import faults as f
from tests.chaos.chaos_plan import Planned
from tests.chaos.chaos_stack import ChaosStack
from tests.support.eventually import eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.servers import free_port

Action = Callable[[ChaosStack, Planned], Awaitable[str]]


# ---- any proxy ----------------------------------------------------------------------------------


async def _reset(stack: ChaosStack, planned: Planned) -> str:
    proxy = stack.proxies[planned.kind.target]
    before = proxy.resets
    proxy.reset_all()
    return f"{proxy.resets - before} connections reset"


async def _black_hole(stack: ChaosStack, planned: Planned) -> str:
    proxy = stack.proxies[planned.kind.target]
    before = proxy.swallowed_bytes
    proxy.black_hole = True
    try:
        await asyncio.sleep(planned.lasts_s)
    finally:
        # What was swallowed is missing in the middle of a connection: none may go on.
        proxy.reset_all()
        proxy.black_hole = False
    return f"{proxy.swallowed_bytes - before} bytes swallowed"


async def _latency(stack: ChaosStack, planned: Planned) -> str:
    proxy = stack.proxies[planned.kind.target]
    before = proxy.delayed_chunks
    proxy.latency_s = stack.choice(planned).uniform(0.02, 0.3)
    try:
        await asyncio.sleep(planned.lasts_s)
    finally:
        proxy.latency_s = 0.0
    return f"{proxy.delayed_chunks - before} chunks delayed"


async def _refuse(stack: ChaosStack, planned: Planned) -> str:
    proxy = stack.proxies[planned.kind.target]
    before = proxy.refused
    proxy.refuse = True
    proxy.reset_all()
    try:
        await asyncio.sleep(planned.lasts_s)
    finally:
        proxy.refuse = False
    return f"{proxy.refused - before} connections refused"


async def _cut_replies(stack: ChaosStack, planned: Planned) -> str:
    proxy: FaultProxy = stack.proxies[planned.kind.target]
    before = proxy.cuts
    proxy.cut_reply_after = stack.choice(planned).randint(1, 20_000)
    proxy.reset_all()
    try:
        await asyncio.sleep(planned.lasts_s)
    finally:
        proxy.cut_reply_after = None
        proxy.reset_all()
    return f"{proxy.cuts - before} replies cut"


# ---- Redis --------------------------------------------------------------------------------------


async def _redis_kill(stack: ChaosStack, planned: Planned) -> str:
    async with stack.restarts["redis"]:
        await stack.redis.kill()
        try:
            await asyncio.sleep(planned.lasts_s)
        finally:
            await stack.redis.start()
    return "killed and back"


async def _redis_freeze(stack: ChaosStack, planned: Planned) -> str:
    stack.redis.pause()
    try:
        await asyncio.sleep(planned.lasts_s)
    finally:
        stack.redis.resume()
    return "stopped and continued"


async def _redis_oom(stack: ChaosStack, planned: Planned) -> str:
    client = stack.redis_client()
    try:
        await client.config_set("maxmemory", "1mb")
        try:
            await asyncio.sleep(planned.lasts_s)
        finally:
            await client.config_set("maxmemory", "0")
        return "out of memory"
    finally:
        await client.aclose()


async def _redis_read_only(stack: ChaosStack, planned: Planned) -> str:
    client = stack.redis_client()
    try:
        await client.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
        try:
            await asyncio.sleep(planned.lasts_s)
        finally:
            await client.execute_command("REPLICAOF", "NO", "ONE")
        return "a read-only replica"
    finally:
        await client.aclose()


# ---- PostgreSQL ---------------------------------------------------------------------------------


async def _postgres_quit(stack: ChaosStack, planned: Planned) -> str:
    async with stack.restarts["postgres"]:
        await stack.postgres.stop_immediately()
        try:
            await asyncio.sleep(planned.lasts_s)
        finally:
            await stack.postgres.start()
    return "ended at once and back"


# ---- providers ----------------------------------------------------------------------------------


def _inject(*faults: f.AnyFault, heal: f.AnyFault | None = None) -> Action:
    async def act(stack: ChaosStack, planned: Planned) -> str:
        simulator = stack.simulators[planned.kind.target]
        met = sum([await simulator.inject(fault) for fault in faults])
        try:
            await asyncio.sleep(planned.lasts_s)
        finally:
            if heal is not None:
                await simulator.inject(heal)
        return f"{met} connections met"

    return act


_PROVIDER: dict[str, Action] = {
    "abort": _inject(f.Abort()),
    "close_1000": _inject(f.Close(code=1000)),
    "close_1001": _inject(f.Close(code=1001)),
    "close_1011": _inject(f.Close(code=1011)),
    "mute": _inject(f.Mute(on=True), heal=f.Mute(on=False)),
    "black_hole": _black_hole,
    "refuse": _refuse,
    "hang": _inject(f.Hang(on=True), f.Abort(), heal=f.Hang(on=False)),
    "garbage": _inject(f.Garbage(count=3)),
    "duplicates": _inject(f.Duplicate(copies=3), heal=f.Duplicate(copies=1)),
    "burst": _inject(f.Flood(factor=10.0), heal=f.Flood(factor=1.0)),
    "latency": _latency,
}


# ---- the daemon ---------------------------------------------------------------------------------


def _end(number: signal.Signals) -> Action:
    async def act(stack: ChaosStack, planned: Planned) -> str:
        ends = len(stack.keeper.ends)
        if not stack.keeper.send(number):
            return "it did not run just then"
        await eventually(lambda: len(stack.keeper.ends) > ends, 40)
        return f"exit code {stack.keeper.ends[ends].code}"

    return act


async def _daemon_freeze(stack: ChaosStack, planned: Planned) -> str:
    if not stack.keeper.send(signal.SIGSTOP):
        return "it did not run just then"
    try:
        await asyncio.sleep(planned.lasts_s)
    finally:
        stack.keeper.send(signal.SIGCONT)
    return "stopped and continued"


# ---- clients ------------------------------------------------------------------------------------


async def _bad_clients(stack: ChaosStack, planned: Planned) -> str:
    """Five clients that subscribe to everything and read slowly, or not at all."""
    clients = [asyncio.create_task(_bad_client(stack, planned)) for _ in range(5)]
    done = await asyncio.gather(*clients, return_exceptions=True)
    return f"{sum(isinstance(outcome, int) for outcome in done)} of 5 connected"


async def _bad_client(stack: ChaosStack, planned: Planned) -> int:
    read = 0
    frozen = planned.kind.name == "frozen"
    url = stack.keeper.api_url
    if url is None:
        raise ConnectionError("the daemon does not run")
    async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws") as socket:
        request = {"action": "subscribe", "id": 1, "channels": ["tick"], "delivery": "all"}
        await socket.send_json(request | {"instruments": sorted(stack.names.values())})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(planned.lasts_s):
                while not frozen:
                    await socket.receive()
                    read += 1
                    await asyncio.sleep(0.2)
                await asyncio.sleep(planned.lasts_s)
    return read


ACTIONS: dict[tuple[str, str], Action] = {
    ("redis", "kill"): _redis_kill,
    ("redis", "freeze"): _redis_freeze,
    ("redis", "latency"): _latency,
    ("redis", "cut_replies"): _cut_replies,
    ("redis", "reset"): _reset,
    ("redis", "black_hole"): _black_hole,
    ("redis", "refuse"): _refuse,
    ("redis", "oom"): _redis_oom,
    ("redis", "read_only"): _redis_read_only,
    ("postgres", "quit"): _postgres_quit,
    ("postgres", "black_hole"): _black_hole,
    ("postgres", "reset"): _reset,
    **{(target, name): action for target in ("dhan", "yahoo") for name, action in _PROVIDER.items()},
    ("daemon", "kill"): _end(signal.SIGKILL),
    ("daemon", "stop"): _end(signal.SIGTERM),
    ("daemon", "freeze"): _daemon_freeze,
    ("clients", "slow"): _bad_clients,
    ("clients", "frozen"): _bad_clients,
}


async def act(stack: ChaosStack, planned: Planned) -> str:
    """Carry out one planned fault and heal it; return what it met."""
    try:
        return await ACTIONS[planned.kind.target, planned.kind.name](stack, planned)
    except (RedisError, OSError, aiohttp.ClientError) as error:
        return f"met nothing: {type(error).__name__}"
