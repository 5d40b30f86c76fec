"""A run of records on its way to Redis, kept whole until every one of them is accounted for."""

from __future__ import annotations

from collections.abc import Sequence

from services.market_data.records import Record
from services.storage.resp import to_bytes

NONE_MERGED: frozenset[int] = frozenset()


class Batch:
    """Commands for some records, in order, sent again byte for byte after an unknown outcome.

    `body` writes the records and causes `body_replies` replies. `prelude` holds commands (one reply
    each) that go before it, such as the creation of series. `merged` names the places in `records`
    whose sample replaces one that was counted before. `probe_ms` is the position of the health probe
    among the records, 0 without one. `answer` is what Redis replies to the body when all of it is stored.
    `maybe_stored` says that an earlier attempt may have been
    carried out. `again` says that it was settled before and only goes once more, in case that Redis
    forgot it: its records are accounted for already. `settled_s` is when that was, on the event loop's clock.
    """

    __slots__ = (
        "again",
        "answer",
        "body",
        "body_replies",
        "maybe_stored",
        "merged",
        "prelude",
        "probe_ms",
        "records",
        "refusals",
        "repairs",
        "settled_s",
        "spool_mark",
        "spooled_until",
    )

    def __init__(
        self,
        records: Sequence[Record],
        pieces: Sequence[str] | bytes,
        *,
        body_replies: int,
        prelude: Sequence[str] = (),
        merged: frozenset[int] = NONE_MERGED,
        probe_ms: int = 0,
        answer: bytes = b"",
    ) -> None:
        self.records = records
        self.body = pieces if isinstance(pieces, bytes) else to_bytes(pieces)
        self.body_replies = body_replies
        # The common empty one: thousands of batches are kept.
        self.prelude = prelude or ()
        self.merged = merged or NONE_MERGED
        self.probe_ms = probe_ms
        self.answer = answer
        self.again = False
        self.maybe_stored = False
        self.refusals = 0
        self.repairs = 0
        self.settled_s = 0.0
        self.spooled_until = 0
        self.spool_mark = 0

    @property
    def replies(self) -> int:
        """How many replies the whole batch causes."""
        return len(self.prelude) + self.body_replies

    @property
    def expected(self) -> bytes:
        """The whole answer when all is well; empty where that cannot be said before."""
        return b"" if self.prelude else self.answer

    def payload(self) -> bytes:
        """Return the bytes to send."""
        return to_bytes(self.prelude) + self.body if self.prelude else self.body
