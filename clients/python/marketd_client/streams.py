"""The Redis streams of a daemon: follow one, replay a part of it, share the work in a consumer group.

Needs `redis`. Every function takes a `redis.asyncio.Redis` made with `decode_responses=True` and leaves
reconnecting to it. None of them hides a hole: a `Trimmed` comes where entries were removed unread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from marketd_client.entries import record_of
from marketd_client.positions import START, is_after, order
from marketd_client.records import Control, Tick, Trimmed

StreamRecord = Tick | Control | Trimmed


def stream_key(exchange: str) -> str:
    """Return the key of an exchange's stream."""
    return f"md:ticks:{exchange}"


async def tail(
    client: Redis, exchange: str, after: str = "$", *, block_ms: int = 5_000, count: int = 1_000
) -> AsyncIterator[StreamRecord]:
    """Yield every record of an exchange behind the position `after`, for ever.

    `0-0` is the beginning of what there is, `$` the present end. Keep the `position` of the last record that
    you have dealt with, and begin there the next time. A `Trimmed` comes first where entries are gone.
    """
    key = stream_key(exchange)
    reader = _Reader(key)
    last = (await _facts(client, key)).last if after == "$" else after
    order(last)
    while True:
        facts, entries = await _page(client, key, last, count)
        hole = reader.hole(last, facts, len(entries))
        if hole is not None:
            yield hole
            if not entries:
                # Begun anew with smaller positions, or emptied: in both cases this is where it goes on.
                last = START if order(facts.last) < order(last) else facts.last
                continue
        for position, fields in entries:
            yield record_of(exchange, position, fields)
            last = position
        if not entries:
            await client.xread({key: last}, count=1, block=block_ms)


async def replay(
    client: Redis, exchange: str, start_ms: int, end_ms: int, *, count: int = 1_000
) -> AsyncIterator[StreamRecord]:
    """Yield the records that came from `start_ms` to before `end_ms` (UTC epoch ms, by the daemon's clock).

    A `Trimmed` comes first when the stream no longer goes back to `start_ms`.
    """
    key = stream_key(exchange)
    last = f"{start_ms - 1}-{2**63 - 1}" if start_ms > 0 else START
    facts = await _facts(client, key)
    if facts.first is not None and facts.added > facts.length and is_after(facts.first, f"{start_ms}-0"):
        yield Trimmed(key, last, facts.first)
    while True:
        entries: Any = await client.xrange(key, f"({last}", f"({end_ms}-0", count)
        for position, fields in entries:
            yield record_of(exchange, position, fields)
            last = position
        if len(entries) < count:
            return


@dataclass(frozen=True, slots=True)
class Delivery:
    """One record given to this consumer; it is given to another one unless `ack` is called in time.

    `times` is how often it was given to anybody; the second time means that somebody died with it.
    """

    record: Tick | Control
    position: str
    times: int
    group: GroupReader

    async def ack(self) -> None:
        """Say that the record was dealt with."""
        await self.group.ack(self.position)


class GroupReader:
    """One consumer of a group that shares the work on an exchange's stream.

    Every record goes to one consumer of the group. What a consumer was given and has not acknowledged for
    `claim_idle_ms` is taken over by another, so a record may come twice: make the work repeatable, or look at
    `Delivery.times`. A `Trimmed` comes where the group was too slow. Give every process another `consumer`.
    """

    def __init__(
        self,
        client: Redis,
        exchange: str,
        group: str,
        consumer: str,
        *,
        start: str = "$",
        claim_idle_ms: int = 60_000,
        block_ms: int = 2_000,
        count: int = 200,
    ) -> None:
        """`start` is where a group that does not exist yet begins: `$`, `0-0` or a position."""
        self._client = client
        self._exchange = exchange
        self._key = stream_key(exchange)
        self._group = group
        self._consumer = consumer
        self._start = start
        self._claim_idle_ms = claim_idle_ms
        self._block_ms = block_ms
        self._count = count

    async def ack(self, *positions: str) -> None:
        """Say that these records were dealt with."""
        await self._client.xack(self._key, self._group, *positions)

    async def deliveries(self) -> AsyncIterator[Delivery | Trimmed]:
        """Yield what is this consumer's to do, for ever: first what others left, then what is new."""
        await self._make_group()
        loop = asyncio.get_running_loop()
        claim_due_s = 0.0
        while True:
            if loop.time() >= claim_due_s:
                claim_due_s = loop.time() + self._claim_idle_ms / 2_000
                async for item in self._claimed():
                    yield item
            hole, entries = await self._next()
            if hole is not None:
                yield hole
            for position, fields in entries:
                yield self._delivery(position, fields, 1)

    async def _make_group(self) -> None:
        try:
            await self._client.xgroup_create(self._key, self._group, self._start, mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _claimed(self) -> AsyncIterator[Delivery | Trimmed]:
        cursor = START
        while True:
            reply: Any = await self._client.xautoclaim(
                self._key, self._group, self._consumer, self._claim_idle_ms, cursor, self._count
            )
            cursor, entries, gone = str(reply[0]), reply[1], [str(position) for position in reply[2]]
            if gone:
                # Given to somebody who never finished, and trimmed since.
                yield Trimmed(self._key, gone[0], gone[-1], len(gone))
            times = await self._times([position for position, _ in entries])
            for position, fields in entries:
                yield self._delivery(position, fields, times.get(position, 1))
            if cursor == START:
                return

    async def _times(self, positions: list[str]) -> dict[str, int]:
        if not positions:
            return {}
        pending: Any = await self._client.xpending_range(
            self._key, self._group, positions[0], positions[-1], len(positions), self._consumer
        )
        return {str(entry["message_id"]): int(entry["times_delivered"]) for entry in pending}

    async def _next(self) -> tuple[Trimmed | None, list[tuple[str, dict[str, str]]]]:
        # In one transaction, so that nothing is trimmed between the look and the taking.
        pipeline = self._client.pipeline(transaction=True)
        pipeline.xinfo_stream(self._key)
        pipeline.xinfo_groups(self._key)
        pipeline.xreadgroup(self._group, self._consumer, {self._key: ">"}, self._count)
        stream, groups, reply = await pipeline.execute()
        entries = reply[0][1] if reply else []
        if not entries:
            # Waits without taking: what comes is taken, with the look at the stream, in the next turn.
            own = next(group for group in groups if group["name"] == self._group)
            last = str(own["last-delivered-id"])
            await self._client.xread({self._key: last}, count=1, block=self._block_ms)
            return None, []
        return _group_hole(self._key, self._group, _facts_of(stream), groups), entries

    def _delivery(self, position: str, fields: dict[str, str], times: int) -> Delivery:
        return Delivery(record_of(self._exchange, position, fields), position, times, self)


# ---- what Redis says of a stream ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Facts:
    length: int
    added: int
    first: str | None
    last: str


class _Reader:
    """Counts the entries ever added up to the reader's position; knows that once it was at the end."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._seen: int | None = None

    def hole(self, last: str, facts: _Facts, count: int) -> Trimmed | None:
        """Return what is missing behind `last` when the next `count` entries are read now."""
        seen, self._seen = self._seen, None
        if order(facts.last) < order(last) or (seen is not None and facts.added < seen):
            return Trimmed(self._key, last, facts.first or facts.last, recreated=True)
        if facts.last == last:
            self._seen = facts.added
            return None
        if facts.first is not None and not is_after(facts.first, last):
            self._seen = None if seen is None else seen + count
            return None
        # What comes next is the oldest there is: the `gone` entries before it were read, or lost.
        gone = facts.added - facts.length
        self._seen = gone + count
        if seen is None and last == START:
            seen = 0
        first = facts.first or facts.last
        if seen is None:
            return Trimmed(self._key, last, first)
        return Trimmed(self._key, last, first, gone - seen) if gone > seen else None


def _group_hole(key: str, group: str, facts: _Facts, groups: list[dict[str, Any]]) -> Trimmed | None:
    own = next(entry for entry in groups if entry["name"] == group)
    delivered = str(own["last-delivered-id"])
    if facts.first is None or not is_after(facts.first, delivered) or not is_after(facts.last, delivered):
        return None
    read = own.get("entries-read")
    if read is None and delivered == START:
        read = 0
    if read is None:
        return Trimmed(key, delivered, facts.first)
    lost = facts.added - facts.length - int(read)
    return Trimmed(key, delivered, facts.first, lost) if lost > 0 else None


def _facts_of(stream: dict[str, Any]) -> _Facts:
    first = stream.get("first-entry")
    length = int(stream["length"])
    return _Facts(
        length,
        int(stream.get("entries-added", length)),
        str(first[0]) if first else None,
        str(stream["last-generated-id"]),
    )


async def _facts(client: Redis, key: str) -> _Facts:
    try:
        return _facts_of(await client.xinfo_stream(key))
    except ResponseError as error:
        if "no such key" not in str(error):
            raise
        return _Facts(0, 0, None, START)


async def _page(
    client: Redis, key: str, last: str, count: int
) -> tuple[_Facts, list[tuple[str, dict[str, str]]]]:
    # In one transaction, so that nothing is trimmed between the look and the reading.
    pipeline = client.pipeline(transaction=True)
    pipeline.xinfo_stream(key)
    pipeline.xrange(key, f"({last}", "+", count)
    stream, entries = await pipeline.execute(raise_on_error=False)
    if isinstance(stream, ResponseError) and "no such key" in str(stream):
        return _Facts(0, 0, None, START), []
    for reply in (stream, entries):
        if isinstance(reply, Exception):
            raise reply
    return _facts_of(stream), entries
