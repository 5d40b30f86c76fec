"""Follows the exchanges' streams: every entry, in order, once, for a process that does not ingest itself.

The writers' counterpart: `XREAD BLOCK` over all streams, from a position on, each record handed on as it was
published, with its own position. A reader may fall behind, be paused or lose its server; it reads on where it
was, and where the stream no longer reaches back to that it says so, before the first record behind the hole.
Never skips in silence, and never writes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.errors import StorageError
from services.market_data.clock import Clock
from services.market_data.records import PROBE_EXCHANGE, Record
from services.pipeline.sequencer import START, Position, parse_position
from services.storage.attending import attended
from services.storage.client import storage_error
from services.storage.entry_reader import record_of
from services.storage.keys import tick_stream
from services.storage.stream_history import PositionGone, StreamHistory

_log = structlog.get_logger(__name__)

PAGE_ENTRIES = 500
"""Entries a stream is asked for at a time; fewer than any stream keeps (STREAM_MAX_ENTRIES)."""
BLOCK_MS = 1_000
_LONGEST_JUMP_MS = 3_000_000
"""Streams keep at least an hour (STREAM_MAX_AGE_HOURS); entries closer than that were not trimmed by age."""
_RETRY_S = 0.25


class StreamFollower:
    """Reads the streams of the exchanges it was told to `follow`; keep `run` running.

    `take(record)` gets every record. `hole(exchange, after, before, reason)` is told, in order with them,
    that entries between two positions are gone. The probe streams (`_PROBE…`) are read along: `probes` says
    when each was heard last, monotonic seconds.
    """

    def __init__(
        self,
        redis_url: str,
        clock: Clock,
        *,
        take: Callable[[Record], None],
        hole: Callable[[str, Position, Position, str], None],
    ) -> None:
        self._redis_url = redis_url
        self._clock = clock
        self._take = take
        self._hole = hole
        self._history = StreamHistory(redis_url)
        self._cursors: dict[str, Position] = {}
        self._full: set[str] = set()
        self.probes: dict[str, float] = {}
        self._probe_ms: dict[str, int] = {}
        self.reason = "no stream was read yet"
        """Why nothing can be read just now, empty while all is well."""
        self.turned_s = clock.monotonic_s()
        """When Redis was asked last, or refused: a reader that works turns every second or two."""
        self.entries = self.pages = self.holes = self.unreadable = self.failures = 0

    # ---- what to follow -------------------------------------------------------------------------

    @property
    def following(self) -> frozenset[str]:
        """The exchanges that are followed, probes among them."""
        return frozenset(self._cursors)

    def follow(self, positions: Mapping[str, Position]) -> None:
        """Follow these exchanges as well, each from behind its position."""
        self._cursors.update(positions)

    def forget(self, exchange: str) -> None:
        """Follow an exchange no longer."""
        self._cursors.pop(exchange, None)
        self._full.discard(exchange)

    def history_replaced(self, reached: Mapping[str, Position]) -> None:
        """Go on in a new history, whose streams have `reached` these positions; unread ones are read whole.

        A stream that has gone beyond our position holds nothing new below it.
        """
        for exchange, newest in reached.items():
            if newest < self._cursors.get(exchange, START):
                # Its positions begin below ours: nothing of it was read.
                self._cursors[exchange] = newest if _is_probe(exchange) else START

    def lag_ms(self, exchange: str, probe_exchange: str) -> int:
        """Return how far the reader is behind an exchange's stream, in ms of its writer's clock.

        0 once it was at the end of it; in between the newest probe of the same writer says what time it is.
        """
        if exchange not in self._full:
            return 0
        return max(0, self._probe_ms.get(probe_exchange, 0) - self._cursors.get(exchange, START)[0])

    # ---- reading --------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow until cancelled; what Redis does not answer is asked again."""
        try:
            async with attended(self._redis_url, name="marketd:follower") as (client, goes_on):
                while goes_on():
                    self.turned_s = self._clock.monotonic_s()
                    try:
                        await self._round(client)
                    except (RedisError, OSError, StorageError) as error:
                        self._failed(error)
                        await asyncio.sleep(_RETRY_S)
        finally:
            await self._history.close()

    async def _round(self, client: Redis) -> None:
        if not self._cursors:
            await asyncio.sleep(_RETRY_S)
            return
        names = {tick_stream(exchange): exchange for exchange in self._cursors}
        streams: Any = {key: _text(self._cursors[exchange]) for key, exchange in names.items()}
        reply: Any = await client.xread(streams, count=PAGE_ENTRIES, block=BLOCK_MS)
        if self.reason:
            self.reason = ""
            _log.info("streams_followed", streams=len(names))
        pages = [(names[key], entries) for key, entries in reply]
        self._full = {exchange for exchange, entries in pages if len(entries) >= PAGE_ENTRIES}
        for exchange, entries in pages:
            if exchange not in self._cursors:
                continue
            if _is_probe(exchange):
                self._heard_probe(exchange, entries)
            else:
                await self._page(exchange, entries)
        # A long way to catch up must leave the event loop to others.
        await asyncio.sleep(0)

    async def _page(self, exchange: str, entries: list[tuple[str, dict[str, str]]]) -> None:
        after = self._cursors[exchange]
        first, last = parse_position(entries[0][0]), parse_position(entries[-1][0])
        # A stream keeps more than a page and an hour: a page that is not full and not long lies at its end,
        # and nothing in front of it was trimmed. Any other is looked at.
        if len(entries) >= PAGE_ENTRIES or last[0] - max(after[0], 1) > _LONGEST_JUMP_MS:
            await self._look_for_a_hole(exchange, after, first)
        take = self._take
        for entry_id, fields in entries:
            record = record_of(exchange, parse_position(entry_id), fields)
            if record is None:
                self.unreadable += 1
            else:
                take(record)
        self.entries += len(entries)
        self.pages += 1
        if exchange in self._cursors:
            self._cursors[exchange] = last

    async def _look_for_a_hole(self, exchange: str, after: Position, first: Position) -> None:
        """While the entry we stand on is there, nothing behind it was trimmed. Raises `StorageError`."""
        try:
            await self._history.page(exchange, after, first, 1)
        except PositionGone as gone:
            if after == START:
                # There was nothing before: what is gone was never ours to read.
                return
            self.holes += 1
            _log.warning(
                "stream_trimmed_past_reader",
                exchange=exchange,
                after=_text(after),
                before=_text(first),
                reason=gone.reason,
                remedy="this process was paused or too slow for longer than the stream keeps: raise "
                "STREAM_MAX_ENTRIES, or run more gateways",
            )
            self._hole(exchange, after, first, gone.reason)

    def _heard_probe(self, exchange: str, entries: list[tuple[str, dict[str, str]]]) -> None:
        position = parse_position(entries[-1][0])
        self._cursors[exchange] = position
        self._probe_ms[exchange] = position[0]
        self.probes[exchange] = self._clock.monotonic_s()

    def _failed(self, error: Exception) -> None:
        self.failures += 1
        if isinstance(error, RedisError):
            error = storage_error(error)
        reason = str(error) or type(error).__name__
        if not self.reason or self.failures == 1:
            _log.warning("streams_not_read", reason=reason)
        self.reason = reason

    def status(self) -> dict[str, Any]:
        """Return the figures for the status page."""
        return {
            "streams": sorted(exchange for exchange in self._cursors if not _is_probe(exchange)),
            "reason": self.reason,
            "entries": self.entries,
            "pages": self.pages,
            "holes": self.holes,
            "unreadable": self.unreadable,
            "failures": self.failures,
        }


def _is_probe(exchange: str) -> bool:
    return exchange.partition(":")[0] == PROBE_EXCHANGE


def _text(position: Position) -> str:
    return f"{position[0]}-{position[1]}"
