"""Streams of option chains, `md:options:{NSE:NIFTY}`: an entry for each chain that says something new.

`OptionChainWriter` is the daemon that asks for chains, `OptionChainFollower` every gateway. The writer gives
an entry its id before it is written, so that clients of the writing process and of any gateway see the same
one, and a repeat after an unknown outcome is refused by Redis. Bounded by entries; a stream that nobody wrote
for two days is gone.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Collection
from typing import Any

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from services.market_data.option_chains import (
    ChainRefusal,
    OptionChainSnapshot,
    chain_of_entry,
    entry_of,
    refusal_entry,
    refusal_of_entry,
)
from services.pipeline.sequencer import START, Position, parse_position
from services.storage.attending import attended
from services.storage.keys import option_stream

_log = structlog.get_logger(__name__)

STREAM_ENTRIES = 100
"""Chains kept of one underlying, all its expiries together; one of 200 legs is 32 KB of text."""
QUEUE_CHAINS = 512
KEPT_S = 2 * 86_400
_REMEMBERED = 1_024
_RETRY_S = 1.0
_BLOCK_MS = 250
_OPENING_ENTRIES = 40
_BEHIND = "equal or smaller"


_Name = tuple[str, int] | tuple[str, str]
"""Underlying with the expiry of a chain, or with the day of a refusal."""


class OptionChainWriter:
    """Writes what `offer` accepts. Keep `run` running while leading.

    While Redis is away the newest chain of each expiry waits, at most `QUEUE_CHAINS` of them.
    """

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._last: OrderedDict[tuple[str, int], OptionChainSnapshot] = OrderedDict()
        self._positions: dict[str, Position] = {}
        self._queue: OrderedDict[_Name, OptionChainSnapshot | ChainRefusal] = OrderedDict()
        self._refused: dict[tuple[str, str], str] = {}
        self._filled = asyncio.Event()
        self.written = self.unchanged = self.replaced = self.dropped = 0

    def offer(self, chain: OptionChainSnapshot) -> bool:
        """Give a chain that says something new its position and queue it; tell whether it does."""
        name = (chain.symbol, chain.expiry)
        before = self._last.pop(name, None)
        self._last[name] = chain if before is None else before
        if before is not None and chain.says_the_same(before):
            self.unchanged += 1
            return False
        self._last[name] = chain
        if len(self._last) > _REMEMBERED:
            self._last.popitem(last=False)
        self._put(name, chain)
        return True

    def refuse(self, symbol: str, expiry_date: str, reason: str, now_ms: int) -> None:
        """Queue why a chain cannot be had, once; an empty reason: it can again.

        The next chain is an entry then, whether or not it says something new: whoever reads knows by it.
        """
        name = (symbol, expiry_date)
        if self._refused.get(name, "") == reason:
            return
        if not reason:
            del self._refused[name]
            return
        self._refused[name] = reason
        for known in [it for it in self._last if it[0] == symbol]:
            last = self._last[known]
            if last.expiry_date == expiry_date or (not expiry_date and last.is_next):
                del self._last[known]
        self._put(name, ChainRefusal(symbol, expiry_date, now_ms, reason))

    def _put(self, name: _Name, entry: OptionChainSnapshot | ChainRefusal) -> None:
        last_ms, last_seq = self._positions.get(entry.symbol, START)
        now_ms = entry.received_ms
        position = (now_ms, 0) if now_ms > last_ms else (last_ms, last_seq + 1)
        self._positions[entry.symbol] = (entry.position_ms, entry.position_seq) = position
        if self._queue.pop(name, None) is not None:
            self.replaced += 1
        self._queue[name] = entry
        if len(self._queue) > QUEUE_CHAINS:
            self._queue.popitem(last=False)
            self.dropped += 1
        self._filled.set()

    async def run(self) -> None:
        """Write until cancelled; while Redis is away it is asked again every second."""
        said = tried = False
        async with attended(self._redis_url, name="marketd:option-chains") as (client, goes_on):
            while goes_on():
                self._filled.clear()
                while self._queue and goes_on():
                    name, entry = next(iter(self._queue.items()))
                    try:
                        await self._write(client, entry, again=tried)
                    except (RedisError, OSError) as error:
                        if not said:
                            _log.warning("option_chains_not_written", reason=str(error))
                        said = tried = True
                        await asyncio.sleep(_RETRY_S)
                    else:
                        said = tried = False
                        if self._queue.get(name) is entry:
                            del self._queue[name]
                if goes_on():
                    await self._filled.wait()

    def status(self) -> dict[str, int]:
        """Return what was written, and what was not and why."""
        return {
            "queued": len(self._queue),
            "written": self.written,
            "unchanged": self.unchanged,
            "replaced": self.replaced,
            "dropped": self.dropped,
        }

    async def _write(self, client: Redis, entry: OptionChainSnapshot | ChainRefusal, *, again: bool) -> None:
        key = option_stream(entry.symbol)
        fields: Any = refusal_entry(entry) if isinstance(entry, ChainRefusal) else entry_of(entry)
        entry_id = f"{entry.position_ms}-{entry.position_seq}"
        try:
            await client.xadd(key, fields, id=entry_id, maxlen=STREAM_ENTRIES, approximate=True)
        except ResponseError as error:
            if _BEHIND not in str(error):
                raise
            if not again:
                # Another clock has written here: the next one goes behind what there is.
                facts: Any = await client.xinfo_stream(key)
                self._positions[entry.symbol] = parse_position(str(facts["last-generated-id"]))
                if isinstance(entry, OptionChainSnapshot):
                    self._last.pop((entry.symbol, entry.expiry), None)
                else:
                    self._refused.pop((entry.symbol, entry.expiry_date), None)
                self.dropped += 1
                return
        self.written += 1
        await client.expire(key, KEPT_S)


class OptionChainFollower:
    """Reads the streams of the underlyings that are `wanted()`; `take(chain)` gets every chain in order.

    `refused(refusal)` gets, in order with them, why one cannot be had. One that is new begins with the newest
    entry of each expiry. Keep `run` running.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        wanted: Callable[[], Collection[str]],
        take: Callable[[OptionChainSnapshot], None],
        refused: Callable[[ChainRefusal], None] = lambda _refusal: None,
    ) -> None:
        self._redis_url = redis_url
        self._wanted = wanted
        self._take = take
        self._refused = refused
        self._cursors: dict[str, str] = {}
        self.entries = self.unreadable = 0
        self.reason = ""

    async def run(self) -> None:
        """Follow until cancelled; what Redis does not answer is asked again."""
        async with attended(self._redis_url, name="marketd:options-follower") as (client, goes_on):
            while goes_on():
                try:
                    await self._round(client)
                except (RedisError, OSError) as error:
                    if not self.reason:
                        _log.warning("option_chains_not_read", reason=str(error))
                    self.reason = str(error)
                    await asyncio.sleep(_RETRY_S)
                else:
                    self.reason = ""

    def status(self) -> dict[str, Any]:
        """Return what is followed and what came, and why nothing does if so."""
        return {
            "underlyings": sorted(self._cursors),
            "entries": self.entries,
            "unreadable": self.unreadable,
            "reason": self.reason,
        }

    async def _round(self, client: Redis) -> None:
        wanted = set(self._wanted())
        for gone in self._cursors.keys() - wanted:
            del self._cursors[gone]
        for underlying in wanted - self._cursors.keys():
            await self._open(client, underlying)
        if not self._cursors:
            await asyncio.sleep(_BLOCK_MS / 1000)
            return
        names = {option_stream(underlying): underlying for underlying in self._cursors}
        streams: Any = {key: self._cursors[underlying] for key, underlying in names.items()}
        reply: Any = await client.xread(streams, count=20, block=_BLOCK_MS)
        for key, entries in reply:
            for entry_id, fields in entries:
                self._cursors[names[key]] = str(entry_id)
                self._give(str(entry_id), fields)

    async def _open(self, client: Redis, underlying: str) -> None:
        entries: Any = await client.xrevrange(option_stream(underlying), count=_OPENING_ENTRIES)
        newest: dict[str, tuple[str, dict[str, str]]] = {}
        for entry_id, fields in entries:
            newest.setdefault(fields.get("e", f"refused {fields.get('d')}"), (str(entry_id), fields))
        self._cursors[underlying] = str(entries[0][0]) if entries else "0-0"
        for entry_id, fields in reversed(newest.values()):
            self._give(entry_id, fields)

    def _give(self, entry_id: str, fields: dict[str, str]) -> None:
        refusal = refusal_of_entry(fields)
        if refusal is not None:
            self._refused(refusal)
            return
        chain = chain_of_entry(parse_position(entry_id), fields)
        if chain is None:
            self.unreadable += 1
            return
        self.entries += 1
        self._take(chain)
