"""The drills: what each does to the stack, and what must be seen of it. How it ends is judged elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping

import aiohttp
import msgspec

from drills.stack import DHAN_RATE, NAMES, YAHOO_RATE, DrillFailed, DrillStack
from simulators import faults as f

_AWAY_S = 5.0
_SILENT_S = 5.0
_LEARNING_S = 130.0
"""A connection counts as busy after two minutes of data; only then is its silence a fault."""
_FLOOD_RATE = 300.0
_FILLING_RATE = 900.0


class Drill(msgspec.Struct, frozen=True):
    """One drill. `act` makes the fault, looks that it really happened, and takes it back."""

    name: str
    summary: str
    promise: str
    act: Callable[[DrillStack], Awaitable[None]]
    settings: Mapping[str, str] = {}
    gap: bool = False
    """Whether consumers must have been told of a gap."""
    dropped: frozenset[str] = frozenset()
    """Reasons for which the daemon may drop, if it tells of it."""


async def _redis_restart(stack: DrillStack) -> None:
    stack.say("Redis is killed")
    await stack.kill_redis()
    await stack.until("the writers say that Redis is away", _sinks_down(stack))
    await stack.until("what Redis cannot take goes to disk", _is_spooling(stack))
    await asyncio.sleep(_AWAY_S)
    await stack.redis.start()
    stack.say("Redis is started again")


async def _redis_hang(stack: DrillStack) -> None:
    stack.say("Redis is stopped in its tracks, its connections stay open")
    stack.pause_redis()
    try:
        await stack.until("the writers say that Redis is away", _sinks_down(stack))
        await stack.until("what Redis cannot take goes to disk", _is_spooling(stack))
        await asyncio.sleep(_AWAY_S)
    finally:
        stack.resume_redis()
    stack.say("Redis goes on")


async def _spool_fill(stack: DrillStack) -> None:
    stack.say("Redis is killed and the market runs forty-five times as fast")
    await stack.kill_redis()
    _set_rates(stack, _FILLING_RATE / DHAN_RATE)

    async def is_over() -> bool:
        pipeline = await stack.pipeline()
        return any(sink["dropped"].get("spool_full") for sink in pipeline.get("sinks", []))

    try:
        await stack.until("the disk's bound of 16 MiB is reached and the oldest is dropped", is_over, 180.0)
    finally:
        _set_rates(stack, 1.0)
    await stack.redis.start()
    stack.say("Redis is started again")


async def _postgres_restart(stack: DrillStack) -> None:
    stack.say("PostgreSQL is killed")
    await stack.kill_postgres()

    async def is_told() -> bool:
        return bool((await stack.pipeline()).get("mappings", {}).get("reason"))

    await stack.until("the daemon says that mappings are not refreshed", is_told, 90.0)
    before = (await stack.pipeline())["published"]
    await asyncio.sleep(2.0)
    if (await stack.pipeline())["published"] <= before:
        raise DrillFailed("no tick was passed on while PostgreSQL was away")
    stack.say("ticks go on flowing meanwhile")
    await stack.postgres.start()
    stack.say("PostgreSQL is started again")

    async def is_over() -> bool:
        return not (await stack.pipeline()).get("mappings", {}).get("reason", "x")

    await stack.until("mappings are refreshed again", is_over, 90.0)


async def _dhan_cut(stack: DrillStack) -> None:
    before = (await stack.provider("DHAN"))["reconnects"]
    stack.say("Dhan resets the connection")
    if not await stack.dhan.inject(f.Abort()):
        raise DrillFailed("there was no connection of Dhan to reset")

    async def is_back() -> bool:
        row = await stack.provider("DHAN")
        return bool(row) and row["reconnects"] > before and row["state"] == "streaming"

    await stack.until("Dhan is connected again", is_back)


async def _dhan_mute(stack: DrillStack) -> None:
    stack.say(f"the daemon learns for {_LEARNING_S:.0f} s how much Dhan has to say")
    await asyncio.sleep(_LEARNING_S)
    stack.say("Dhan stays connected, answers pings, and sends nothing more")
    before = (await stack.provider("DHAN"))["reconnects"]
    await stack.dhan.inject(f.Mute())

    async def is_seen() -> bool:
        row = await stack.provider("DHAN")
        return bool(row) and (row["state"] != "streaming" or row["reconnects"] > before)

    try:
        await stack.until("the silence is seen and the connection given up", is_seen, 180.0)
    finally:
        await stack.dhan.inject(f.Clear())
    stack.say("Dhan sends again")


async def _dhan_token_expired(stack: DrillStack) -> None:
    stack.say("Dhan's access token expires and Dhan says so")
    await stack.dhan.inject(f.ExpireToken())

    async def is_parked() -> bool:
        return (await stack.provider("DHAN")).get("state") == "parked"

    await stack.until("Dhan is parked until there is another token", is_parked)
    tried = stack.dhan.handshakes
    await asyncio.sleep(_SILENT_S)
    if stack.dhan.handshakes != tried:
        raise DrillFailed("the daemon went on trying with a token that it knew to be dead")
    stack.say(f"not one attempt with the dead token in {_SILENT_S:.0f} s")
    stack.write_token(stack.dhan.tokens.issue())
    stack.hang_up()
    stack.say("a new token is written to its file, and the daemon gets SIGHUP")


async def _gateway_slow_client(stack: DrillStack) -> None:
    keys = list(NAMES.values())
    _set_rates(stack, _FLOOD_RATE / DHAN_RATE)
    counts = {"quick": 0}
    url = f"{stack.api_url}/ws"
    subscribe = {"action": "subscribe", "id": 1, "instruments": keys, "channels": ["tick"], "delivery": "all"}

    async def read(socket: aiohttp.ClientWebSocketResponse) -> None:
        async for message in socket:
            frame = json.loads(message.data)
            if frame.get("type") == "skipped":
                raise DrillFailed(f"the quick client lost {frame.get('n')} messages")
            counts["quick"] += frame.get("type") == "raw_tick"

    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as quick:
        await quick.send_json(subscribe)
        reading = asyncio.ensure_future(read(quick))
        try:
            async with session.ws_connect(url, max_msg_size=0) as slow:
                await slow.send_json(subscribe)
                _stop_reading(slow)
                stack.say("one client subscribes to everything and never reads")

                async def is_cut() -> bool:
                    _, body = await stack.get("/api/providers/status")
                    return bool(body) and "4008" in map(str, body["clients"].get("closed_by_code", {}))

                await stack.until("the client that never reads is cut", is_cut, 120.0)
            before = counts["quick"]
            await asyncio.sleep(1.0)
            if reading.done():
                reading.result()
                raise DrillFailed("the quick client was closed, too")
            if counts["quick"] == before:
                raise DrillFailed("the quick client got nothing more")
            stack.say(f"the quick client had {counts['quick']} messages, lost none, and goes on")
        finally:
            reading.cancel()
            await asyncio.wait([reading])
            _set_rates(stack, 1.0)


async def _daemon_kill(stack: DrillStack) -> None:
    stack.say("the daemon is killed")
    await stack.kill_daemon()
    await asyncio.sleep(1.0)
    await stack.start_daemon()


def _sinks_down(stack: DrillStack) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        sinks = (await stack.pipeline()).get("sinks", [])
        return any(sink["state"] == "unavailable" for sink in sinks)

    return is_so


def _is_spooling(stack: DrillStack) -> Callable[[], Awaitable[bool]]:
    async def is_so() -> bool:
        return any(sink["spooled"] for sink in (await stack.pipeline()).get("sinks", []))

    return is_so


def _set_rates(stack: DrillStack, factor: float) -> None:
    stack.dhan.set_rate(DHAN_RATE * factor)
    stack.yahoo.set_rate(YAHOO_RATE * factor)


def _stop_reading(socket: aiohttp.ClientWebSocketResponse) -> None:
    connection = socket._response.connection
    if connection is None or connection.transport is None:
        raise DrillFailed("the slow client was not connected")
    connection.transport.pause_reading()


DRILLS: dict[str, Drill] = {
    drill.name: drill
    for drill in (
        Drill(
            "redis-restart",
            "Redis is killed and comes back",
            "nothing is lost: what Redis cannot take waits on disk and follows in order",
            _redis_restart,
        ),
        Drill(
            "redis-hang",
            "Redis stops answering without closing a connection",
            "nothing is lost, and nothing is stored twice although answers were outstanding",
            _redis_hang,
        ),
        Drill(
            "spool-fill",
            "Redis is away for longer than the disk's bound lasts",
            "the oldest is dropped, and each stretch of it is a declared gap",
            _spool_fill,
            {"SPOOL_LIMIT_MIB": "16"},
            gap=True,
            dropped=frozenset({"spool_full"}),
        ),
        Drill(
            "postgres-restart",
            "PostgreSQL is killed and comes back",
            "nothing is lost: mappings in memory go on, the refresh says that it cannot",
            _postgres_restart,
        ),
        Drill(
            "dhan-cut",
            "Dhan resets the connection",
            "what was traded meanwhile is a declared gap, the rest is complete",
            _dhan_cut,
            gap=True,
        ),
        Drill(
            "dhan-mute",
            "Dhan stays connected and sends nothing",
            "the silence is seen and ends in a new connection, with a declared gap",
            _dhan_mute,
            gap=True,
        ),
        Drill(
            "dhan-token-expired",
            "Dhan's access token expires",
            "parked without one more attempt, back with the new token, with a declared gap",
            _dhan_token_expired,
            gap=True,
        ),
        Drill(
            "gateway-slow-client",
            "one WebSocket client never reads",
            "it is cut, no other client and no tick is harmed",
            _gateway_slow_client,
        ),
        Drill(
            "daemon-kill",
            "the daemon is killed and started again",
            "only what was on its way is missing, and the time it was down is a declared gap",
            _daemon_kill,
            gap=True,
        ),
    )
}
