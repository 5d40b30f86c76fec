"""Writes every tick and control record of an exchange into its stream, in order, exactly once.

Stands behind the bus; `md:ticks:{exchange}` is what consumers follow. The id of an entry is the
position the sequencer gave the record, so a replay is harmless: Redis refuses an id it has.

That refusal also makes an entry that was overtaken impossible to add. So each batch is one transaction
(all of it is stored or nothing), and the next one leaves only when it is settled: a server that refuses
one batch and takes the following, as it does around its memory limit, costs no entry. The stream is trimmed
by the last entry of each batch: nobody sees the others without it, and trimming with each of them would cost
Redis an eighth of all it does for the stream.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, cast

from services.compiled import load
from services.errors import StorageError
from services.market_data.records import (
    PROBE_EXCHANGE,
    ControlRecord,
    DataIngestionFormat,
    Record,
)
from services.storage.answers import Reply, ReplyError, first_error
from services.storage.batch import Batch
from services.storage.entry import ARGUMENTS, EntryEncoder, control_fields, without_bad_numbers
from services.storage.failures import Reason, item_reason, server_refusal
from services.storage.keys import LIVE, KeySpace
from services.storage.resp import BULK_HEAD, bulk, command
from services.storage.spool_format import TRIED
from services.storage.spooled_sink import SpooledSink

STREAM_MAX_ENTRIES = 250_000
_BATCH_RECORDS = 500
_BUSY_FROM, _BUSY_BATCH_RECORDS = 2_000, 6_000
"""More than one reading of a full socket brings: only one transaction is on its way at a time, so a smaller
one would fall behind for ever under a flood, however much time there is."""
_PROBE_ENTRIES = 10
_words = load("words")
_MULTI, _EXEC = command("MULTI"), command("EXEC")
_QUEUED = "+QUEUED\r\n"


class _Heads(dict[int, str]):
    """The commands of one stream up to the id, by the number of names and values that follow it.

    `trimming` has for each of them the one that trims the stream besides.
    """

    def __init__(self, key: str, trim: Sequence[str], *, always: bool = False) -> None:
        self._plain = bulk("XADD") + bulk(key)
        self._trim = trim
        self._always = always
        self.trimming: dict[str, str] = {}

    def __missing__(self, arguments: int) -> str:
        plain = f"*{3 + arguments}\r\n{self._plain}"
        trimming = f"*{3 + len(self._trim) + arguments}\r\n{self._plain}{''.join(map(bulk, self._trim))}"
        head = self[arguments] = trimming if self._always else plain
        self.trimming[head] = trimming
        return head


_NO_HEADS = _Heads("", ())


class StreamWriter(SpooledSink):
    """The sink behind `md:ticks:{exchange}`; takes ticks and control records."""

    in_order = True

    def __init__(
        self,
        redis_url: str,
        *,
        max_entries: int = STREAM_MAX_ENTRIES,
        encoder: EntryEncoder | None = None,
        probe_exchange: str = PROBE_EXCHANGE,
        keys: KeySpace = LIVE,
        **options: Any,
    ) -> None:
        """Prepare a writer that keeps about `max_entries` per stream; `options` as for `SpooledSink`.

        The health probe's records go into the stream of `probe_exchange`, which no other writer uses.
        """
        super().__init__("stream", redis_url, in_flight=1, **options)
        self._max_entries = max_entries
        self._probe_exchange = probe_exchange
        self._keys = keys
        self._encoder = encoder or EntryEncoder()
        self._pending: deque[Record] = deque()
        self._heads: dict[str, _Heads] = {}
        self.overtaken_until_ms = 0
        """When another daemon led since we last did: until when. Then a refusal proves nothing."""

    def offer(self, record: Record) -> None:
        """Queue one record, already carrying its position."""
        self.counters.offered += 1
        pending = self._pending
        if len(pending) >= self._queue_limit:
            self._overflow()
        pending.append(record)
        if self._waiter is not None:
            self._wake()

    def offer_ticks(self, ticks: Sequence[DataIngestionFormat]) -> None:
        """Queue a run of ticks, already carrying their positions."""
        self.counters.offered += len(ticks)
        pending = self._pending
        pending.extend(ticks)
        while len(pending) > self._queue_limit:
            self._overflow()
        if self._waiter is not None:
            self._wake()

    @property
    def _pending_count(self) -> int:
        return len(self._pending)

    def _discard_oldest(self) -> Record:
        return self._pending.popleft()

    def _encode(self) -> Batch | None:
        pending = self._pending
        waiting = len(pending)
        count = min(waiting, _BATCH_RECORDS if waiting < _BUSY_FROM else _BUSY_BATCH_RECORDS)
        if count == waiting:
            taken = list(pending)
            pending.clear()
        else:
            taken = [pending.popleft() for _ in range(count)]
        return self._transaction(taken)

    def _finish(self, count: int) -> list[tuple[Record, int]]:
        taken = [self._pending.popleft() for _ in range(count)]
        # A probe proves the present; it is of no use later.
        final = [(record, 0) for record in taken if record.exchange != PROBE_EXCHANGE]
        self.counters.collapsed += count - len(final)
        return final

    def _encode_final(self, source: deque[tuple[Record, int]]) -> Batch | None:
        taken = [source.popleft() for _ in range(min(len(source), _BATCH_RECORDS))]
        batch = self._transaction([record for record, _ in taken])
        if batch is not None:
            batch.maybe_stored = any(flags & TRIED for _, flags in taken)
        return batch

    def _transaction(self, taken: list[Record]) -> Batch | None:
        """Return the entries of `taken` as one transaction, None when there are none to send."""
        body: Sequence[str] | bytes
        if _words is None:
            records, body, answer, probe_ms = self._entries(taken)
        else:
            records, body, answer, probe_ms = _words.entries(
                self, taken, self._encoder.remembered, self._heads, _NO_HEADS
            )
        if not records:
            return None
        return Batch(records, body, body_replies=len(records) + 2, probe_ms=probe_ms, answer=answer)

    def _entries(self, taken: Sequence[Record]) -> tuple[list[Record], list[str], bytes, int]:
        """Return the records that can be sent, their transaction, its answer, and the probe's position."""
        encode_tick = self._encoder.tick
        records: list[Record] = []
        pieces = [_MULTI]
        ids: list[str] = []
        probe_ms = 0
        newest_ms, newest_ms_text = -1, ""
        exchange, heads = "", _NO_HEADS
        ends: dict[str, int] = {}
        for record in taken:
            if type(record) is DataIngestionFormat:
                try:
                    encoded = encode_tick(record)
                    arguments, text = ARGUMENTS[encoded.mask], encoded.text
                except ValueError:
                    entry = self._entry(record)
                    if entry is None:
                        continue
                    arguments, text = entry
            else:
                arguments, text = control_fields(cast(ControlRecord, record))
            if record.exchange != exchange:
                ends[exchange] = len(pieces)
                exchange = record.exchange
                heads = self._heads_of(exchange)
                if exchange == PROBE_EXCHANGE:
                    # Looked at again with the next record, which may be a newer probe.
                    probe_ms, exchange = record.position_ms, ""
            if record.position_ms != newest_ms:
                newest_ms = record.position_ms
                newest_ms_text = str(newest_ms)
            position = f"{newest_ms_text}-{record.position_seq}"
            position = f"{BULK_HEAD[len(position)]}{position}\r\n"
            ids.append(position)
            pieces += (heads[arguments], position, text)
            records.append(record)
        ends[exchange] = len(pieces)
        for name, end in ends.items():
            if name:
                pieces[end - 3] = self._heads[name].trimming[pieces[end - 3]]
        pieces.append(_EXEC)
        count = len(records)
        # An entry that was stored is answered by its id, which was ours to choose.
        answer = f"+OK\r\n{_QUEUED * count}*{count}\r\n{''.join(ids)}".encode()
        return records, pieces, answer, probe_ms

    def _entry(self, record: Record) -> tuple[int, str] | None:
        """Return one record in words: how many arguments, their text; None, counted, without a price."""
        if type(record) is not DataIngestionFormat:
            return control_fields(cast(ControlRecord, record))
        try:
            encoded = self._encoder.tick(record)
        except ValueError:
            finite = without_bad_numbers(record)
            if finite is None:
                self._reject(Reason.NOT_FINITE, record.symbol)
                return None
            encoded = self._encoder.tick(finite)
        return ARGUMENTS[encoded.mask], encoded.text

    def _heads_of(self, exchange: str) -> _Heads:
        heads = self._heads.get(exchange)
        if heads is None:
            if exchange == PROBE_EXCHANGE:
                # Exact trimming is dear, and only the probe's stream is short enough to need it.
                key, trim = self._keys.tick_stream(self._probe_exchange), ("MAXLEN", "=", str(_PROBE_ENTRIES))
                heads = _Heads(key, trim, always=True)
            else:
                trim = ("MAXLEN", "~", str(self._max_entries))
                heads = _Heads(self._keys.tick_stream(exchange), trim)
            self._heads[exchange] = heads
        return heads

    def _settle(self, batch: Batch, replies: list[Reply]) -> bool:
        stored = replies[-1]
        if isinstance(stored, list):
            if ReplyError in set(map(type, stored)):
                self._settle_entries(batch, stored)
            else:
                self._all_written(batch)
        else:
            self._refuse(batch, replies)
        return True

    def _overtaken(self, record: Record) -> bool:
        """Tell whether another leader's entries stand above this one, so that it need not be stored."""
        return record.position_ms <= self.overtaken_until_ms

    def _settle_entries(self, batch: Batch, stored: list[Reply]) -> None:
        outcomes: list[Reason | None] = []
        for record, reply in zip(batch.records, stored, strict=True):
            reason = item_reason(str(reply)) if isinstance(reply, ReplyError) else None
            if reason is Reason.BEHIND_STREAM_TOP and batch.maybe_stored and not self._overtaken(record):
                # The first attempt was carried out after all; only its answer was lost.
                self.counters.already_written += not batch.again
                reason = None
            outcomes.append(reason)
        self._settle_by_record(batch, outcomes)

    def _refuse(self, batch: Batch, replies: list[Reply]) -> None:
        """Deal with a transaction that was discarded. Raises `StorageError` when it is to be tried again."""
        # The reply of EXEC only says that it was discarded; the command that caused it says why.
        causes = [str(reply) for reply in replies if isinstance(reply, ReplyError)]
        refusals: list[StorageError] = [error for cause in causes if (error := server_refusal(cause))]
        if refusals:
            raise refusals[0]
        self._unknown_refusal(batch, first_error(replies) or f"transaction answered {replies[-1]!r:.80}")
