"""Keeps the exchanges' streams within their age and watches who reads them through consumer groups.

The stream writer trims by the number of entries with every entry it adds; a command of Redis can trim by
one measure only, so the age is seen to here, once a minute. As in Redis TimeSeries it counts back from the
newest entry: what an exchange sent last on Friday is there on Monday. Entries go in whole blocks of Redis'
own (about 100), from the old end, so some stay a little longer than they must. A supervised task beside
the writers: nothing on the path of the ticks waits for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.market_data.clock import Clock
from services.storage.attending import attended
from services.storage.consumer_groups import GroupJudge, GroupStatus, StreamStatus, read_stream
from services.storage.keys import tick_stream

_log = structlog.get_logger(__name__)

STREAM_MAX_AGE_MS = 48 * 3_600_000
WATCH_EVERY_S = 5.0
_ALL_EVERY = 6
"""A stream that nobody reads through a group is looked at every so many times only."""
TRIM_EVERY_S = 60.0
_TRIM_AT_ONCE = 10_000
_MOST_TRIMS = 100


class StreamKeeper:
    """Looks after the streams of `exchanges()`; entries older than the newest by `max_age_ms` go."""

    def __init__(
        self,
        redis_url: str,
        *,
        clock: Clock,
        exchanges: Callable[[], Iterable[str]],
        max_age_ms: int = STREAM_MAX_AGE_MS,
        watch_every_s: float = WATCH_EVERY_S,
    ) -> None:
        self._redis_url = redis_url
        self._clock = clock
        self._exchanges = exchanges
        self._max_age_ms = max_age_ms
        self._watch_every_s = watch_every_s
        self._judge = GroupJudge()
        self._streams: dict[str, StreamStatus] = {}
        self._groups: dict[tuple[str, str], GroupStatus] = {}
        self._lost: dict[tuple[str, str], int] = {}
        self.trimmed_by_age = 0

    async def run(self) -> None:
        """Watch and trim until cancelled; while Redis is away the last picture stands."""
        trim_due_s, looks = 0.0, 0
        async with attended(self._redis_url, name="marketd:streams") as (client, goes_on):
            while goes_on():
                try:
                    await self.watch(client, only_groups=looks % _ALL_EVERY != 0)
                    looks += 1
                    if self._clock.monotonic_s() >= trim_due_s:
                        await self.trim(client)
                        trim_due_s = self._clock.monotonic_s() + TRIM_EVERY_S
                except (RedisError, OSError) as error:
                    looks = 0
                    _log.debug("streams_not_watched", error=str(error))
                await asyncio.sleep(self._watch_every_s)

    async def trim(self, client: Redis) -> int:
        """Remove what is too old from the streams; return how many entries. Raises redis-py's errors."""
        total = 0
        for exchange, stream in self._streams.items():
            # A clock that is wrong for a moment must not empty a stream.
            oldest_ms = max(0, min(self._clock.now_ms(), stream.newest_ms) - self._max_age_ms)
            if stream.oldest_ms is not None and stream.oldest_ms >= oldest_ms:
                continue
            oldest = str(oldest_ms)
            for _ in range(_MOST_TRIMS):
                removed = int(await client.xtrim(tick_stream(exchange), minid=oldest, limit=_TRIM_AT_ONCE))
                total += removed
                if not removed:
                    break
        self.trimmed_by_age += total
        return total

    async def watch(self, client: Redis, *, only_groups: bool = False) -> None:
        """Look at streams and groups; say once when a group was trimmed. Raises redis-py's errors.

        With `only_groups` streams that had no group the last time are not looked at.
        """
        streams: dict[str, StreamStatus] = {}
        groups: dict[tuple[str, str], GroupStatus] = {}
        read_by_groups = {exchange for exchange, _ in self._groups}
        for exchange in sorted(self._exchanges()):
            if only_groups and exchange not in read_by_groups:
                if exchange in self._streams:
                    streams[exchange] = self._streams[exchange]
                continue
            found = await read_stream(client, exchange, self._judge)
            if found is not None:
                streams[exchange] = found[0]
                groups.update({(status.exchange, status.group): status for status in found[1]})
        for name, status in groups.items():
            before = self._groups.get(name)
            self._note_change(name, status, before)
        self._streams, self._groups = streams, groups

    def status(self) -> dict[str, Any]:
        """Return the last picture, for the status page and the metrics."""
        return {
            "trimmed_by_age": self.trimmed_by_age,
            "streams": [msgspec.to_builtins(stream) for stream in self._streams.values()],
            "groups": [
                msgspec.to_builtins(status) | {"lost_total": self._lost.get(name, 0)}
                for name, status in self._groups.items()
            ],
        }

    def _note_change(self, name: tuple[str, str], now: GroupStatus, before: GroupStatus | None) -> None:
        had_hole = before is not None and before.trimmed
        known = before.lost or 0 if before is not None and had_hole else 0
        self._lost[name] = self._lost.get(name, 0) + max(0, (now.lost or 0) - known)
        if now.trimmed and not had_hole:
            _log.warning(
                "consumer_group_trimmed",
                exchange=now.exchange,
                group=now.group,
                lost=now.lost,
                last_delivered=now.last_delivered,
                remedy="it reads slower than the stream is trimmed: add consumers, or raise "
                "STREAM_MAX_ENTRIES and STREAM_MAX_AGE_HOURS",
            )
        elif had_hole and not now.trimmed:
            _log.info("consumer_group_back", exchange=now.exchange, group=now.group, lag=now.lag)
