"""Keeps the newest tick of every instrument in a hash, for whoever wants one value and no history.

Stands behind the bus; `md:last:{instrument}` has the fields of a stream entry. Only the newest tick of
an instrument waits here, so a busy instrument costs no more than a quiet one; the others are counted
as collapsed, as are late ticks. While many instruments tick, there is a pause once all of them are written
(`pause_s`), so that more ticks collapse: a hash costs Redis as much as a stream entry. It grows with how
many there were, so that up to a thousand instruments cost no more than some 10 000 hashes a second, and
never lasts longer than a tenth of a second. A field that is no longer known is deleted just before the new
values are set, in the same breath: a reader may miss a field for a moment, but never sees an outdated one.
Nor does he after a lost connection: what may have been forgotten is not replayed but written as it is now,
with whatever fields the hash may have been left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

from services.compiled import load
from services.errors import StorageError
from services.market_data.records import (
    FLAG_LATE,
    PROBE_INSTRUMENT,
    DataIngestionFormat,
    Record,
)
from services.storage.answers import Reply, ReplyError
from services.storage.batch import Batch
from services.storage.connection import RedisConnection
from services.storage.entry import (
    ALL_FIELDS,
    ARGUMENTS,
    OPTIONAL_FIELDS,
    EncodedTick,
    EntryEncoder,
    without_bad_numbers,
)
from services.storage.failures import Reason, item_reason, server_refusal
from services.storage.keys import LIVE, KeySpace
from services.storage.latest_hash import LatestHash
from services.storage.redis_sink import RedisSink
from services.storage.resp import command

_words = load("words")
_BATCH_RECORDS = 2_000
"""With smaller ones the first of a thousand busy instruments tick again before the last has its turn."""
_PACED_FROM = 50
"""After so many hashes, once nobody waits any more, there is a pause."""
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.1
_PAUSE_A_HASH_S = 0.000_1


def pause_s(hashes: int) -> float:
    """Return how long to wait after writing so many hashes in a row, 0 after a few."""
    if hashes < _PACED_FROM:
        return 0.0
    return min(max(hashes * _PAUSE_A_HASH_S, _SHORTEST_PAUSE_S), _LONGEST_PAUSE_S)


_keep_newest: Any = getattr(load("runs"), "keep_newest", None)


class LatestValueWriter(RedisSink):
    """The sink behind `md:last:{instrument}`; control records are not offered to it."""

    def __init__(
        self,
        redis_url: str,
        *,
        encoder: EntryEncoder | None = None,
        keys: KeySpace = LIVE,
        **options: Any,
    ) -> None:
        """Prepare a writer; `encoder` may be shared with the stream's, `options` are `RedisSink`'s."""
        # One batch at a time: while it is on its way, further ticks of an instrument replace each other.
        super().__init__("latest_value", redis_url, in_flight=1, **options)
        self._encoder = encoder or EntryEncoder()
        self._keys = keys
        self._pending: dict[str, DataIngestionFormat] = {}
        self._hashes: dict[str, LatestHash] = {}
        self._pausing = False
        self._since_pause = 0
        """Hashes written in a row since there was a pause, or nothing to write."""
        self._forgotten: dict[str, None] = {}
        """Instruments whose hash was written just before a loss, in the order of their writing."""

    def offer(self, record: Record) -> None:
        """Queue one tick in place of an older one of its instrument. Control records are not counted."""
        if type(record) is not DataIngestionFormat:
            return
        counters = self.counters
        counters.offered += 1
        if record.flags & FLAG_LATE:
            counters.collapsed += 1
            return
        pending = self._pending
        symbol = record.symbol
        if symbol in pending:
            counters.collapsed += 1
        elif len(pending) >= self._queue_limit:
            self._overflow()
        pending[symbol] = record
        if self._waiter is not None:
            self._wake()

    def offer_ticks(self, ticks: Sequence[DataIngestionFormat]) -> None:
        """Queue a run of ticks, each in place of an older one of its instrument."""
        counters = self.counters
        counters.offered += len(ticks)
        pending = self._pending
        late, before = 0, len(pending)
        if _keep_newest is not None:
            late = _keep_newest(pending, ticks)
        else:
            for tick in ticks:
                if tick.flags & FLAG_LATE:
                    late += 1
                else:
                    pending[tick.symbol] = tick
        counters.collapsed += len(ticks) - (len(pending) - before)
        while len(pending) > self._queue_limit:
            self._overflow()
        if self._waiter is not None and len(ticks) > late:
            self._wake()

    def remember(self, ticks: Iterable[DataIngestionFormat]) -> None:
        """Take note of what the hashes hold already, as a starting daemon has read it."""
        for tick in ticks:
            target = self._hash_of(tick.symbol)
            target.newest = target.newest or tick

    def write_again(self) -> int:
        """Queue the newest tick of every instrument once more, as Redis lost them; return how many."""
        again = [
            target.newest
            for symbol, target in self._hashes.items()
            if target.newest is not None and symbol not in self._pending and symbol != PROBE_INSTRUMENT
        ]
        for record in again:
            self.offer(record)
        return len(again)

    def give_up(self, reason: str) -> None:
        """Drop all that waits, and what is known of the hashes: another daemon may have written them."""
        super().give_up(reason)
        self._forgotten.clear()
        self._hashes.clear()

    @property
    def _pending_count(self) -> int:
        return len(self._pending)

    def _discard_oldest(self) -> Record:
        return self._pending.pop(next(iter(self._pending)))

    def _fill(self) -> None:
        if not self._pausing:
            super()._fill()

    def _take_back(self) -> None:
        batches = (*self._returned, *self._in_flight)
        self._returned.clear()
        self._in_flight.clear()
        again: dict[str, DataIngestionFormat] = {}
        taken = 0
        for batch in batches:
            taken += len(batch.records)
            for record in batch.records:
                assert type(record) is DataIngestionFormat  # noqa: S101 - only ticks are queued
                again[record.symbol] = record
                self._know_nothing_of(record.symbol)
        self._batched -= taken
        before = len(self._pending)
        # Those go first again; where a newer tick waits, it takes the place.
        self._pending = again | self._pending
        self.counters.collapsed += before + taken - len(self._pending)
        while len(self._pending) > self._queue_limit:
            self._overflow()

    def _take_back_confirmed(self) -> None:
        for batch in self._confirmed.take(asyncio.get_running_loop().time()):
            self._forgotten.update((record.symbol, None) for record in batch.records)

    def _know_nothing_of(self, symbol: str) -> None:
        # Redis may have forgotten that a field was deleted, too.
        if (target := self._hashes.get(symbol)) is not None:
            target.mask = ALL_FIELDS

    async def _serve(self, connection: RedisConnection) -> StorageError:
        for symbol in self._forgotten:
            self._know_nothing_of(symbol)
            target = self._hashes.get(symbol)
            if target is not None and target.newest is not None and symbol not in self._pending:
                self.offer(target.newest)
        self._forgotten.clear()
        return await super()._serve(connection)

    def _take_a_pause(self) -> None:
        """Wait with the next batch, if there were many hashes to write."""
        if pause := pause_s(self._since_pause):
            self._pausing = True
            asyncio.get_running_loop().call_later(pause, self._end_pause)
        self._since_pause = 0

    def _end_pause(self) -> None:
        self._pausing = False
        self._fill()

    def _encode(self) -> Batch | None:
        body: Sequence[str] | bytes
        if _words is None:
            records, body, prelude, probe_ms = self._commands(_BATCH_RECORDS)
        else:
            records, body, prelude, probe_ms = _words.hashes(
                self, self._pending, _BATCH_RECORDS, self._encoder.remembered, self._hashes
            )
        if not records:
            return None
        count = len(records)
        self._since_pause += count
        if not self._pending:
            self._take_a_pause()
        # A hash that has all fields already gains none.
        answer = b":0\r\n" * count
        return Batch(records, body, body_replies=count, prelude=prelude, probe_ms=probe_ms, answer=answer)

    def _commands(self, count: int) -> tuple[list[DataIngestionFormat], list[str], list[str], int]:
        """Take up to `count` ticks; return those that can be sent, their commands, those that go before
        them, and the probe's position."""
        pending = self._pending
        encode_tick = self._encoder.tick
        records: list[DataIngestionFormat] = []
        pieces: list[str] = []
        prelude: list[str] = []
        probe_ms = 0
        for symbol in list(islice(pending, count)):
            record = pending.pop(symbol)
            try:
                encoded: EncodedTick | None = encode_tick(record)
            except ValueError:
                encoded = self._words(record)
            if encoded is None:
                continue
            target = self._hashes.get(symbol) or self._hash_of(symbol)
            mask = encoded.mask
            if gone := target.mask & ~mask:
                prelude.append(self._deletion(target, gone))
            target.mask = mask
            target.newest = record
            pieces.append(f"*{2 + ARGUMENTS[mask]}\r\n{target.head}{encoded.text}")
            records.append(record)
            if symbol == PROBE_INSTRUMENT:
                probe_ms = record.position_ms
        return records, pieces, prelude, probe_ms

    def _words(self, record: DataIngestionFormat) -> EncodedTick | None:
        """Return a tick in words, without what is no number; None, counted, where that is its price."""
        try:
            return self._encoder.tick(record)
        except ValueError:
            finite = without_bad_numbers(record)
            if finite is None:
                self._reject(Reason.NOT_FINITE, record.symbol)
                return None
            return self._encoder.tick(finite)

    def _hash_of(self, symbol: str) -> LatestHash:
        target = self._hashes.get(symbol)
        if target is None:
            target = self._hashes[symbol] = LatestHash(self._keys.last_tick(symbol))
        return target

    def _deletion(self, target: LatestHash, gone: int) -> str:
        names = [name for bit, name in enumerate(OPTIONAL_FIELDS) if gone >> bit & 1]
        return command("HDEL", target.key, *names)

    def _settle(self, batch: Batch, replies: list[Reply]) -> bool:
        if set(map(type, replies)) == {int}:
            self._all_written(batch)
            return True
        answers = replies[len(batch.prelude) :]
        errors = [str(reply) for reply in replies if isinstance(reply, ReplyError)]
        for error in errors:
            refusal = server_refusal(error)
            if refusal is not None:
                # Setting the same fields once more is harmless, so the whole batch goes again.
                raise refusal
        self._settle_by_record(
            batch,
            [item_reason(str(answer)) if isinstance(answer, ReplyError) else None for answer in answers],
        )
        return True
