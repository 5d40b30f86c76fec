"""Order books for a process that has no provider: read from `md:depth:{exchange}`, with the desk's interface.

What is wanted here is leased in `md:depth_interest` by whoever runs this; the ingest daemon then carries it,
and writes the books this reads. Begins at the end of a stream, with the newest book of each instrument there.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.market_data.updates import Level2Update
from services.pipeline.sequencer import parse_position
from services.storage.attending import attended
from services.storage.depth_entry import depth_of_entry
from services.storage.keys import depth_stream

_log = structlog.get_logger(__name__)

_PAGE = 500
_BLOCK_MS = 250
_RETRY_S = 0.5
_OPENING_ENTRIES = 2_000


class DepthFollower:
    """The books of what is wanted, as an ingest daemon writes them. Keep `run` running."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._wanted: Counter[tuple[str, int]] = Counter()
        self._instruments: Counter[str] = Counter()
        self._books: dict[str, Level2Update] = {}
        self._cursors: dict[str, str] = {}
        self._unseen: set[str] = set()
        self._listeners: tuple[Callable[[Level2Update], None], ...] = ()
        self.updates = self.unreadable = 0
        self.reason = ""

    def latest(self, instrument: str) -> Level2Update | None:
        """Return the newest book of an instrument that is wanted; None when there is none."""
        return self._books.get(instrument)

    def listen(self, callback: Callable[[Level2Update], None]) -> Callable[[], None]:
        """Call `callback` with every book of what is wanted; return what ends that."""

        def call(update: Level2Update) -> None:
            callback(update)

        self._listeners = (*self._listeners, call)

        def stop() -> None:
            self._listeners = tuple(other for other in self._listeners if other is not call)

        return stop

    def want(self, instrument: str, levels: int = 5) -> None:
        """Count one more who wants `levels` of depth; whether it can be had the ingest daemon knows."""
        self._wanted[instrument, levels] += 1
        self._instruments[instrument] += 1
        if self._instruments[instrument] == 1:
            self._unseen.add(instrument)

    def unwant(self, instrument: str, levels: int = 5) -> None:
        """Take back one `want`; more than were counted are ignored."""
        if self._wanted[instrument, levels] <= 0:
            del self._wanted[instrument, levels]
            return
        self._wanted[instrument, levels] -= 1
        if not self._wanted[instrument, levels]:
            del self._wanted[instrument, levels]
        self._instruments[instrument] -= 1
        if not self._instruments[instrument]:
            del self._instruments[instrument]
            self._books.pop(instrument, None)
            self._unseen.discard(instrument)

    def leases(self) -> set[str]:
        """Return what is wanted as members of `md:depth_interest`."""
        return {f"{instrument} {levels}" for instrument, levels in self._wanted}

    def status(self) -> dict[str, Any]:
        """Return what is wanted and what came, and why nothing does if so."""
        return {
            "wanted": len(self._wanted),
            "books": len(self._books),
            "updates": self.updates,
            "unreadable": self.unreadable,
            "reason": self.reason,
        }

    async def run(self) -> None:
        """Follow until cancelled; what Redis does not answer is asked again."""
        async with attended(self._redis_url, name="marketd:depth-follower") as (client, goes_on):
            while goes_on():
                try:
                    await self._round(client)
                except (RedisError, OSError) as error:
                    if not self.reason:
                        _log.warning("depth_not_read", reason=str(error))
                    self.reason = str(error)
                    await asyncio.sleep(_RETRY_S)
                else:
                    self.reason = ""

    async def _round(self, client: Redis) -> None:
        exchanges = {instrument.partition(":")[0] for instrument in self._instruments}
        for gone in self._cursors.keys() - exchanges:
            del self._cursors[gone]
        for exchange in {instrument.partition(":")[0] for instrument in self._unseen}:
            await self._open(client, exchange)
        if not self._cursors:
            await asyncio.sleep(_BLOCK_MS / 1000)
            return
        names = {depth_stream(exchange): exchange for exchange in self._cursors}
        streams: Any = {key: self._cursors[exchange] for key, exchange in names.items()}
        reply: Any = await client.xread(streams, count=_PAGE, block=_BLOCK_MS)
        for key, entries in reply:
            exchange = names[key]
            for entry_id, fields in entries:
                self._cursors[exchange] = str(entry_id)
                self._take(exchange, str(entry_id), fields)
        # A long way to catch up must leave the event loop to others.
        await asyncio.sleep(0)

    async def _open(self, client: Redis, exchange: str) -> None:
        """Look for the newest books of what was not seen yet, and follow from there."""
        unseen = {name for name in self._unseen if name.startswith(f"{exchange}:")}
        self._unseen -= unseen
        entries: Any = await client.xrevrange(depth_stream(exchange), count=_OPENING_ENTRIES)
        if exchange not in self._cursors:
            self._cursors[exchange] = str(entries[0][0]) if entries else "0-0"
        for entry_id, fields in entries:
            instrument = fields.get("k", "")
            if instrument in unseen:
                unseen.discard(instrument)
                self._take(exchange, str(entry_id), fields)
            if not unseen:
                break

    def _take(self, exchange: str, entry_id: str, fields: dict[str, str]) -> None:
        if fields.get("k") not in self._instruments:
            return
        book = depth_of_entry(exchange, parse_position(entry_id), fields)
        if book is None:
            self.unreadable += 1
            return
        known = self._books.get(book.symbol)
        if known is not None and (known.position_ms, known.position_seq) >= (
            book.position_ms,
            book.position_seq,
        ):
            return
        self.updates += 1
        self._books[book.symbol] = book
        for listener in self._listeners:
            listener(book)
