"""Who reads an exchange's stream through a consumer group, how far they are, and whether they were trimmed.

Stands beside the writers and only reads. A group was trimmed when entries that it had not been given were
removed from the old end of the stream: it goes on with the next one that is left, and nobody in it is told.
Redis counts all entries ever added and, for most groups, how many of them the group has read, so the number
is known; where Redis does not know it (`entries-read` is absent until a group has once been at the end),
we remember it from the last time the group was.
"""

from __future__ import annotations

from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.pipeline.sequencer import START, Position, parse_position
from services.storage.keys import tick_stream

MOST_GROUPS = 100
"""Groups of one stream that are looked at; more is a mistake of somebody's."""


class GroupStatus(msgspec.Struct, frozen=True):
    """One consumer group as operators see it.

    `lag` is how many entries it was not given yet (None where Redis cannot tell), `pending` how many were
    given and are not acknowledged, `idle_ms` since when none of its consumers asked for anything (None
    without consumers). `trimmed` while it still has the hole ahead of it, `lost` how many entries fell
    into that hole (None where that is unknown).
    """

    exchange: str
    group: str
    consumers: int
    pending: int
    lag: int | None
    idle_ms: int | None
    last_delivered: str
    trimmed: bool
    lost: int | None


class StreamStatus(msgspec.Struct, frozen=True):
    """One exchange's stream: how many entries it holds, when the oldest and the last came, UTC epoch ms."""

    exchange: str
    entries: int
    oldest_ms: int | None
    newest_ms: int


class StreamFacts(msgspec.Struct, frozen=True):
    """What Redis says of a stream; `first` is None while it is empty."""

    length: int
    added: int
    last: Position
    first: Position | None

    @property
    def gone(self) -> int:
        """How many entries were removed."""
        return self.added - self.length


class GroupJudge:
    """Tells which groups were trimmed; remembers how far each was when it was last at the end."""

    def __init__(self) -> None:
        self._read: dict[tuple[str, str], int] = {}

    def hole(
        self, exchange: str, group: str, delivered: Position, entries_read: int | None, stream: StreamFacts
    ) -> tuple[bool, int | None]:
        """Return whether the group has a hole ahead of it, and how many entries fell into that."""
        name = (exchange, group)
        if delivered >= stream.last:
            self._read[name] = stream.added
            return False, 0
        if stream.first is not None and delivered >= stream.first:
            return False, 0
        if entries_read is None:
            entries_read = 0 if delivered == START else self._read.get(name)
        if entries_read is None:
            return True, None
        lost = max(0, stream.gone - entries_read)
        return lost > 0, lost


async def read_stream(
    client: Redis, exchange: str, judge: GroupJudge
) -> tuple[StreamStatus, list[GroupStatus]] | None:
    """Return the state of a stream and its groups, None without a stream. Raises redis-py's errors."""
    key = tick_stream(exchange)
    try:
        facts, groups = await _facts(client, key)
    except ResponseError as error:
        if "no such key" in str(error) or "WRONGTYPE" in str(error):
            return None
        raise
    statuses = []
    for entry in groups[:MOST_GROUPS]:
        group = str(entry["name"])
        consumers: Any = await client.xinfo_consumers(key, group) if entry["consumers"] else []
        delivered = str(entry["last-delivered-id"])
        trimmed, lost = judge.hole(
            exchange, group, parse_position(delivered), entry.get("entries-read"), facts
        )
        statuses.append(
            GroupStatus(
                exchange,
                group,
                int(entry["consumers"]),
                int(entry["pending"]),
                entry.get("lag"),
                min((int(consumer["idle"]) for consumer in consumers), default=None),
                delivered,
                trimmed,
                lost,
            )
        )
    oldest_ms = facts.first[0] if facts.first is not None else None
    return StreamStatus(exchange, facts.length, oldest_ms, facts.last[0]), statuses


async def _facts(client: Redis, key: str) -> tuple[StreamFacts, list[dict[str, Any]]]:
    # Of one moment: an entry trimmed between two answers would look like a loss.
    pipeline = client.pipeline(transaction=True)
    pipeline.xinfo_stream(key)
    pipeline.xinfo_groups(key)
    stream, groups = await pipeline.execute()
    first = stream.get("first-entry")
    facts = StreamFacts(
        length=int(stream["length"]),
        # Before Redis 7 nobody counted: then nothing is known to be gone.
        added=int(stream.get("entries-added", stream["length"])),
        last=parse_position(str(stream["last-generated-id"])),
        first=parse_position(str(first[0])) if first else None,
    )
    return facts, list(groups)
