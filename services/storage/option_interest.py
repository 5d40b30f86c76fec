"""Open interest of option legs over time: a series per leg, written with every chain that is asked for.

Beside the writers of the ticks and much slower: what is lost here while Redis is away is asked for again
with the next chain. One sample a leg and chain, at the time the provider says; a repeat replaces itself.
Legs share the series of the instrument they are (`md:ts:{NFO:NIFTY-2026-12-31-25000-CE}:oi`), with labels
that find all legs of an expiry.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Sequence
from datetime import date
from typing import Any

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.storage.client import make_client, storage_error
from services.storage.keys import tick_labels, tick_series

_log = structlog.get_logger(__name__)

QUEUE_CHAINS = 256
"""So many chains may wait for Redis; the oldest goes first, and is counted."""
KNOWN_SERIES = 100_000
_CHUNK_BYTES = 256
_RETRY_S = 2.0
_PIECE = 500


class LegInterest(msgspec.Struct, frozen=True):
    """The open interest of one leg."""

    instrument: str
    strike: str
    side: str
    oi: int


class ChainInterest(msgspec.Struct, frozen=True):
    """The open interest of a chain. `timestamp` is UTC epoch ms, `expiry` the day its contracts end."""

    underlying: str
    expiry: date
    timestamp: int
    legs: tuple[LegInterest, ...]


class InterestAt(msgspec.Struct, frozen=True):
    """Open interest by strike (strike, calls, puts); `timestamp` (UTC epoch ms) is the newest sample's."""

    timestamp: int | None
    strikes: tuple[tuple[str, int | None, int | None], ...]


class OptionInterestStore:
    """Writes what `offer` is given and answers what it was at a time. `run` it; `close` ends the reader."""

    def __init__(self, redis_url: str, *, retention_ms: int) -> None:
        self._redis_url = redis_url
        self._retention_ms = retention_ms
        self._queue: deque[ChainInterest] = deque()
        self._filled = asyncio.Event()
        self._made: OrderedDict[str, None] = OrderedDict()
        self._reader: Redis | None = None
        self.written = 0
        self.dropped = 0

    def offer(self, chain: ChainInterest) -> None:
        """Queue a chain; never blocks."""
        if not chain.legs:
            return
        if len(self._queue) >= QUEUE_CHAINS:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(chain)
        self._filled.set()

    async def run(self) -> None:
        """Write until cancelled; while Redis is away what is queued waits."""
        client = make_client(self._redis_url, name="marketd:options")
        said = False
        try:
            while True:
                self._filled.clear()
                while self._queue:
                    try:
                        await self._write(client, self._queue[0])
                    except (RedisError, OSError) as error:
                        if not said:
                            said = True
                            _log.warning("option_interest_not_written", reason=str(error))
                        await asyncio.sleep(_RETRY_S)
                    else:
                        said = False
                        self._queue.popleft()
                await self._filled.wait()
        finally:
            await client.aclose()

    async def at(self, underlying: str, expiry: date, at_ms: int) -> InterestAt:
        """Return the open interest as it was at `at_ms`. Raises `StorageError` when Redis does not answer."""
        if self._reader is None:
            self._reader = make_client(self._redis_url, name="marketd:options-reader")
        try:
            rows: Any = await self._reader.execute_command(  # type: ignore[no-untyped-call]
                "TS.MREVRANGE",
                0,
                at_ms,
                "COUNT",
                1,
                "SELECTED_LABELS",
                "strike",
                "side",
                "FILTER",
                f"underlying={underlying}",
                f"expiry={expiry.isoformat()}",
                "field=oi",
            )
        except RedisError as error:
            raise storage_error(error) from error
        newest: int | None = None
        by_strike: dict[str, dict[str, int]] = {}
        for labels, samples in _found(rows):
            if samples:
                moment, value = samples[0]
                newest = max(newest or 0, int(moment))
                by_strike.setdefault(labels["strike"], {})[labels["side"]] = int(float(value))
        strikes = sorted(by_strike.items(), key=lambda item: float(item[0]))
        return InterestAt(newest, tuple((strike, it.get("call"), it.get("put")) for strike, it in strikes))

    async def close(self) -> None:
        """Close the reader's connection; harmless when there is none."""
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.aclose()

    # ---- inner ----------------------------------------------------------------------------------

    async def _write(self, client: Redis, chain: ChainInterest) -> None:
        new = [leg for leg in chain.legs if leg.instrument not in self._made]
        for begin in range(0, len(new), _PIECE):
            await self._make(client, chain, new[begin : begin + _PIECE])
        for begin in range(0, len(chain.legs), _PIECE):
            samples: list[Any] = []
            for leg in chain.legs[begin : begin + _PIECE]:
                samples += [tick_series(leg.instrument, "oi"), chain.timestamp, leg.oi]
            replies: Any = await client.execute_command("TS.MADD", *samples)  # type: ignore[no-untyped-call]
            refused = [reply for reply in replies if isinstance(reply, Exception)]
            self.written += len(replies) - len(refused)
            if refused:
                # Gone meanwhile (an empty Redis), or older than the retention: make them anew next time.
                self._made.clear()
                _log.debug("option_interest_refused", count=len(refused), reason=str(refused[0]))

    async def _make(self, client: Redis, chain: ChainInterest, legs: Sequence[LegInterest]) -> None:
        pipeline = client.pipeline(transaction=False)
        for leg in legs:
            key, labels = tick_series(leg.instrument, "oi"), self._labels(chain, leg)
            pipeline.execute_command(
                "TS.CREATE",
                key,
                "RETENTION",
                self._retention_ms,
                "CHUNK_SIZE",
                _CHUNK_BYTES,
                "DUPLICATE_POLICY",
                "LAST",
                "LABELS",
                *labels,
            )
        replies = await pipeline.execute(raise_on_error=False)
        known = [leg for leg, reply in zip(legs, replies, strict=True) if isinstance(reply, Exception)]
        if known:
            # A leg that is also streamed has its series already, without these labels.
            pipeline = client.pipeline(transaction=False)
            for leg in known:
                labels = self._labels(chain, leg)
                pipeline.execute_command("TS.ALTER", tick_series(leg.instrument, "oi"), "LABELS", *labels)
            await pipeline.execute()
        for leg in legs:
            self._made[leg.instrument] = None
        while len(self._made) > KNOWN_SERIES:
            self._made.popitem(last=False)

    @staticmethod
    def _labels(chain: ChainInterest, leg: LegInterest) -> list[str]:
        exchange = leg.instrument.partition(":")[0] if ":" in leg.instrument else ""
        labels = tick_labels(leg.instrument, exchange or "OPTIONS", "oi") | {
            "underlying": chain.underlying,
            "expiry": chain.expiry.isoformat(),
            "strike": leg.strike,
            "side": leg.side,
        }
        return [part for pair in labels.items() for part in pair]


def _found(rows: Any) -> list[tuple[dict[str, str], list[Any]]]:
    """Return labels and samples of each series, from an answer of either protocol version."""
    if isinstance(rows, dict):
        return [(dict(value[0]), value[-1]) for value in rows.values()]
    return [(dict(labels), samples) for _, labels, samples in rows]
