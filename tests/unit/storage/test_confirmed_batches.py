"""What Redis confirmed lately: for how long it is kept, in which order it comes back, and at whose cost."""

from __future__ import annotations

import gc
import weakref

from services.market_data.records import DataIngestionFormat
from services.storage.batch import NONE_MERGED, Batch
from services.storage.confirmed_batches import FORGETS_S, ConfirmedBatches


def batch(*prices: float) -> Batch:
    records = [DataIngestionFormat("NSE:A", price, 1, 1_790_000_000_000, "DHAN") for price in prices]
    return Batch(records, b"*1\r\n", body_replies=1, answer=b"+OK\r\n")


def test_what_was_confirmed_lately_comes_back_in_its_order_and_once() -> None:
    confirmed = ConfirmedBatches()
    first, second, third = batch(1.0), batch(2.0, 3.0), batch(4.0)
    for at_s, each in ((10.0, first), (12.0, second), (14.0, third)):
        confirmed.keep(each, at_s)
    assert confirmed.take(10.5 + FORGETS_S) == [second, third]
    assert confirmed.take(10.5 + FORGETS_S) == []
    assert second.again
    assert second.maybe_stored
    # What it answered the first time is not what a repetition is answered.
    assert second.expected == b""


def test_kept_batches_are_not_walked_over_by_the_collector_and_end_all_the_same() -> None:
    confirmed = ConfirmedBatches()
    kept = batch(1.0, 2.0)
    assert gc.is_tracked(kept)
    assert gc.is_tracked(kept.records)
    confirmed.keep(kept, 10.0)
    assert not gc.is_tracked(kept)
    assert not gc.is_tracked(kept.records)
    # Nothing else of it is a container of its own.
    assert kept.merged is NONE_MERGED
    assert kept.prelude == ()

    class Witness(list[DataIngestionFormat]):
        pass

    seen = Witness(kept.records)
    ended = weakref.ref(seen)
    gone = Batch(seen, b"", body_replies=1)
    confirmed.keep(gone, 10.0)
    del gone, seen
    assert ended() is not None
    gc.disable()
    try:
        confirmed.keep(batch(3.0), 10.5 + FORGETS_S)
        assert ended() is None
    finally:
        gc.enable()
