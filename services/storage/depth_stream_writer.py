"""Writes order books into `md:depth:{exchange}`, the newest of each instrument, in the order of positions.

Listens at the depth desk, on a connection of its own: nothing on the path of the ticks waits for it. A book
is a state, not an event: while a batch is on its way, or Redis takes nothing, the newest book of an
instrument replaces the one that waits, counted as collapsed. So what waits is bounded by the number of
instruments, and nothing of it goes to disk. Each batch is one transaction, and the next leaves when it is
settled: entries are stored in their order or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from time import monotonic
from typing import Any, cast

from services.errors import StorageError
from services.market_data.records import Record
from services.market_data.updates import Level2Update
from services.storage.answers import Reply, ReplyError, first_error
from services.storage.batch import Batch
from services.storage.depth_entry import DepthEncoder
from services.storage.failures import Reason, item_reason, server_refusal
from services.storage.keys import depth_stream
from services.storage.redis_sink import RedisSink
from services.storage.resp import BULK_HEAD, bulk, command

DEPTH_STREAM_MAX_ENTRIES = 50_000
DEPTH_STREAM_MAX_AGE_MS = 600_000
INSTRUMENTS_LIMIT = 30_000
"""More than all connections to a vendor can carry."""
TRIM_EVERY_S = 5.0
_BATCH_RECORDS = 500
_MULTI, _EXEC = command("MULTI"), command("EXEC")


class _Stream:
    """The constant part of one stream's commands, and when it was last trimmed by age (monotonic)."""

    __slots__ = ("heads", "key", "middle", "trimmed_s")

    def __init__(self, exchange: str, max_entries: int) -> None:
        self.key = depth_stream(exchange)
        self.middle = "".join(map(bulk, ("XADD", self.key, "MAXLEN", "~", str(max_entries))))
        self.heads: dict[int, str] = {}
        self.trimmed_s = 0.0

    def head(self, arguments: int) -> str:
        head = self.heads[arguments] = f"*{6 + arguments}\r\n{self.middle}"
        return head


class DepthStreamWriter(RedisSink):
    """The writer behind `md:depth:{exchange}`. Let the desk call `take`; keep `run` running while leading."""

    def __init__(
        self,
        redis_url: str,
        *,
        max_entries: int = DEPTH_STREAM_MAX_ENTRIES,
        max_age_ms: int = DEPTH_STREAM_MAX_AGE_MS,
        queue_limit: int = INSTRUMENTS_LIMIT,
        **options: Any,
    ) -> None:
        """Prepare a writer that keeps about `max_entries` per stream; `options` as for `RedisSink`."""
        super().__init__("depth_stream", redis_url, in_flight=1, queue_limit=queue_limit, **options)
        self._max_entries = max_entries
        self._max_age_ms = max_age_ms
        self._encoder = DepthEncoder()
        self._pending: dict[str, Level2Update] = {}
        self._streams: dict[str, _Stream] = {}

    def take(self, update: Level2Update) -> None:
        """Queue one update, already carrying its position, in place of an older one of its instrument."""
        counters = self.counters
        counters.offered += 1
        pending = self._pending
        symbol = update.symbol
        if pending.pop(symbol, None) is not None:
            counters.collapsed += 1
        elif len(pending) >= self._queue_limit:
            self._overflow()
        # At the end, where its position belongs: Redis takes ids in rising order only.
        pending[symbol] = update
        if self._waiter is not None:
            self._wake()

    def offer(self, record: Record) -> None:
        """Take nothing of the bus: books come from the desk, by `take`."""

    @property
    def _pending_count(self) -> int:
        return len(self._pending)

    def _discard_oldest(self) -> Record:
        return cast(Record, self._pending.pop(next(iter(self._pending))))

    def _keep_confirmed(self, batch: Batch) -> None:
        """Keep nothing: a book that Redis forgets is outdated by the time it is back."""

    def _encode(self) -> Batch | None:
        pending = self._pending
        encode = self._encoder.arguments
        taken = [pending.pop(symbol) for symbol in list(islice(pending, _BATCH_RECORDS))]
        pieces, prelude, now_s = [_MULTI], [], monotonic()
        for update in taken:
            arguments, text = encode(update)
            stream = self._streams.get(update.exchange)
            if stream is None:
                stream = self._streams[update.exchange] = _Stream(update.exchange, self._max_entries)
            if now_s - stream.trimmed_s >= TRIM_EVERY_S:
                stream.trimmed_s = now_s
                oldest = str(max(0, update.position_ms - self._max_age_ms))
                prelude.append(command("XTRIM", stream.key, "MINID", "~", oldest))
            head = stream.heads.get(arguments) or stream.head(arguments)
            entry_id = f"{update.position_ms}-{update.position_seq}"
            pieces.append(f"{head}{BULK_HEAD[len(entry_id)]}{entry_id}\r\n{text}")
        pieces.append(_EXEC)
        return Batch(cast(Sequence[Record], taken), pieces, body_replies=len(taken) + 2, prelude=prelude)

    def _settle(self, batch: Batch, replies: list[Reply]) -> bool:
        stored = replies[-1]
        if not isinstance(stored, list):
            self._refuse(batch, replies)
            return True
        outcomes: list[Reason | None] = []
        for reply in stored:
            reason = item_reason(str(reply)) if isinstance(reply, ReplyError) else None
            if reason is Reason.BEHIND_STREAM_TOP and batch.maybe_stored:
                # The first attempt was carried out after all; only its answer was lost.
                self.counters.already_written += 1
                reason = None
            outcomes.append(reason)
        self._settle_by_record(batch, outcomes)
        return True

    def _refuse(self, batch: Batch, replies: list[Reply]) -> None:
        """Deal with a transaction that was discarded. Raises `StorageError` when it is to be tried again."""
        causes = [str(reply) for reply in replies if isinstance(reply, ReplyError)]
        refusals: list[StorageError] = [error for cause in causes if (error := server_refusal(cause))]
        if refusals:
            raise refusals[0]
        self._unknown_refusal(batch, first_error(replies) or f"transaction answered {replies[-1]!r:.80}")
