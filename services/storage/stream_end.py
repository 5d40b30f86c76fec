"""The last minutes of an exchange's stream, as far back as a start may read: from Redis, and from the disk.

Beneath `bar_recall`. Reads backwards from the newest entry, so that what is read is bounded however busy the
market is or was, and says from when on it is whole. Of a tick it keeps what bars are made of.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from services.market_data.records import FLAG_TEXT, DataIngestionFormat, Record
from services.pipeline.giving_way import slices
from services.pipeline.sequencer import Position, parse_position
from services.storage.ask_many import ask_many
from services.storage.entry_reader import record_of
from services.storage.keys import tick_stream
from services.storage.resp import command
from services.storage.spool import Spool

MOST_ENTRIES = 150_000
"""So many entries of a stream are read at most: some two seconds of work, however busy the market is."""
_PAGE = 500
_FLAGS_OF = {text: flags for flags, text in enumerate(FLAG_TEXT)}


class StreamEnd(msgspec.Struct):
    """Records, oldest first; none is missing of what was accepted from `whole_ms` (UTC epoch ms) on."""

    whole_ms: int
    records: list[Record]


async def read_stream_end(
    client: Redis,
    exchange: str,
    last: Position,
    since_ms: int,
    *,
    spool: Spool | None = None,
    most: int = MOST_ENTRIES,
) -> StreamEnd:
    """Return what was accepted from `since_ms` to the position `last`, about the newest `most` records.

    Raises redis-py's errors when Redis does not answer.
    """
    waiting: list[Record] = []
    if spool is not None:

        def is_of_it(record: Record) -> bool:
            return record.exchange == exchange and record.position_ms >= since_ms

        waiting = await spool.waiting("stream", is_of_it, most=most)
    if len(waiting) >= most:
        return StreamEnd(waiting[0].position_ms + 1, waiting)
    key = tick_stream(exchange)
    newest_first: list[tuple[Position, Record | None]] = []
    upto, left = f"{last[0]}-{last[1]}", most - len(waiting)
    whole_ms = since_ms
    names: dict[str, str] = {}
    while True:
        asked = command("XREVRANGE", key, upto, f"{since_ms}-0", "COUNT", str(min(_PAGE, left)))
        (page,) = await ask_many(client, [asked])
        if isinstance(page, ResponseError):
            raise page
        for entry_id, words in page:
            position, flat = parse_position(entry_id), iter(words)
            fields = dict(zip(flat, flat, strict=True))
            newest_first.append((position, _record_of(exchange, position, fields, names)))
        left -= len(page)
        if left <= 0:
            # Others of that millisecond may not have been read.
            whole_ms = newest_first[-1][0][0] + 1
            break
        if len(page) < _PAGE:
            whole_ms = await _whole_from(client, key, since_ms, last[0])
            break
        upto = f"({page[-1][0]}"
    top = newest_first[0][0] if newest_first else (0, 0)
    records = [record for _, record in reversed(newest_first) if record is not None]
    async for part in slices(waiting):
        for record in part:
            # What goes to Redis once more it may have as well, and it may be on disk twice.
            position = (record.position_ms, record.position_seq)
            if position > top:
                top = position
                records.append(record)
    return StreamEnd(whole_ms, records)


async def _whole_from(client: Redis, key: str, since_ms: int, last_ms: int) -> int:
    """Return from when on a stream of which all since `since_ms` was read holds what was accepted."""
    oldest: Any = await client.xrange(key, "-", "+", 1)
    if not oldest:
        return last_ms
    oldest_ms = parse_position(oldest[0][0])[0]
    facts: Any = await client.xinfo_stream(key)
    was_trimmed = facts.get("entries-added") != facts["length"]
    return oldest_ms if was_trimmed and oldest_ms > since_ms else since_ms


def _record_of(
    exchange: str, position: Position, fields: Mapping[str, str], names: dict[str, str]
) -> Record | None:
    """Return the record of an entry; a tick without what bars have no use for, a third of the size."""
    if fields.get("type") != "tick":
        return record_of(exchange, position, fields)
    try:
        price = float(fields["p"])
        volume = fields.get("v")
        symbol, source = fields["k"], fields["src"]
        if not isfinite(price):
            return None
        return DataIngestionFormat(
            names.setdefault(symbol, symbol),
            price,
            None if volume is None else int(volume),
            int(fields["t"]),
            names.setdefault(source, source),
            flags=_FLAGS_OF.get(fields.get("f", ""), 0),
            exchange=exchange,
            position_ms=position[0],
            position_seq=position[1],
        )
    except (KeyError, ValueError):
        return None
