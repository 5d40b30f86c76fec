"""What the writers of time series have in common: one `TS.MADD` a batch, series made and mended on the way.

Between `spooled_sink` and the two writers of series, that of ticks and that of bars. A series that is
missing is made in front of the batch that found it so; one that was there, which somebody else may have made
otherwise, is corrected soon after. Every sample's answer is looked at, and a record counts as stored when all
its samples are.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Protocol

from services.market_data.clock import Clock
from services.market_data.records import Record
from services.storage.answers import Reply, ReplyError
from services.storage.batch import Batch
from services.storage.failures import Reason, item_reason, server_refusal
from services.storage.resp import bulk, to_bytes
from services.storage.retention import Retention
from services.storage.series_repair import MENDABLE, SeriesRepair
from services.storage.spooled_sink import SpooledSink

BATCH_SAMPLES = 500
"""More samples in one command gain nothing."""
CORRECTED_AT_ONCE = 50
"""Series corrected with one batch: after a restart that is every series there is, and the ticks go first."""
BUSY_IN_FLIGHT = 16
_REPAIRS_A_BATCH = 2
_MADD = to_bytes([bulk("TS.MADD")])


class Series(Protocol):
    """The series of one kind of record of one instrument, one for each field."""

    exchange: str

    def key(self, field: str) -> str:
        """Return the key of one series."""
        ...

    def create(self, field: str, retention_ms: int) -> str:
        """Return the command that makes a series; it fails where there is one."""
        ...

    def correct(self, field: str, retention_ms: int) -> str:
        """Return the command that gives an existing series our retention, policy and labels."""
        ...

    def forget(self, field: str) -> None:
        """Assume no longer that a series exists."""
        ...


Target = tuple[Series, str]
"""One series: those it belongs to, and its field."""


class SeriesBatch(Batch):
    """A batch of samples; `making` names the series that each command of its prelude makes or corrects."""

    __slots__ = ("making",)

    making: Sequence[Target]


class SeriesSink(SpooledSink):
    """The part of a writer that deals with `TS.MADD` and its answers."""

    in_order = False

    def __init__(
        self, name: str, redis_url: str, *, clock: Clock, retention: Retention, **options: Any
    ) -> None:
        """Prepare a writer whose series keep what `retention` says; `options` as for `SpooledSink`."""
        super().__init__(name, redis_url, busy_in_flight=BUSY_IN_FLIGHT, **options)
        self._retention = retention
        self._to_correct: dict[Target, None] = {}
        self._repairs = SeriesRepair(clock, retention)

    @abstractmethod
    def _samples_of(self, record: Record) -> tuple[Series, Iterable[str], int]:
        """Return the series of a record, the fields it has samples of, in order, and their time."""

    def _forget(self, batch: Batch) -> None:
        assert isinstance(batch, SeriesBatch)  # noqa: S101 - these sinks make no other
        for series, field in batch.making:
            series.forget(field)

    def _batch(
        self,
        records: list[Any],
        body: Sequence[str] | bytes,
        stamps: Sequence[str] | bytes,
        samples: int,
        making: list[Target],
        merged: Iterable[int] = (),
        probe_ms: int = 0,
    ) -> Batch | None:
        """Return records put into words as one command, behind those that make their series.

        `body` are their samples; `stamps` the times of these as integer replies, which is what Redis answers
        when all of them are stored. Both are text in pieces or bytes.
        """
        if not records:
            return None
        batch = SeriesBatch(
            records,
            b"*%d\r\n%b%b" % (1 + 3 * samples, _MADD, _bytes_of(body)),
            body_replies=1,
            merged=frozenset(merged),
            probe_ms=probe_ms,
            answer=b"*%d\r\n%b" % (samples, _bytes_of(stamps)),
        )
        batch.making = ()
        if not making and not self._to_correct:
            return batch
        corrections = list(islice(self._to_correct, CORRECTED_AT_ONCE))
        for target in corrections:
            del self._to_correct[target]
        batch.making = corrections + making
        kept_ms = self._retention.of
        batch.prelude = [
            *(series.correct(field, kept_ms(series.exchange)) for series, field in corrections),
            *(series.create(field, kept_ms(series.exchange)) for series, field in making),
        ]
        return batch

    # ---- settling -------------------------------------------------------------------------------

    def _settle(self, batch: Batch, replies: list[Reply]) -> bool:
        assert isinstance(batch, SeriesBatch)  # noqa: S101 - these sinks make no other
        if batch.prelude:
            self._check_making(batch, replies)
        answer = replies[-1]
        if not isinstance(answer, list):
            refusal = server_refusal(str(answer))
            if refusal is not None:
                raise refusal
            self._unknown_refusal(batch, str(answer))
            return True
        return self._settle_samples(batch, answer)

    def _check_making(self, batch: SeriesBatch, replies: list[Reply]) -> None:
        """Look at the answers to the prelude; raises `StorageError` when Redis takes nothing."""
        for (series, field), reply in zip(batch.making, replies, strict=False):
            if not isinstance(reply, ReplyError):
                continue
            message = str(reply)
            refusal = server_refusal(message)
            if refusal is not None:
                raise refusal
            reason = item_reason(message)
            if reason is Reason.WRONG_TYPE:
                self._repairs.give_up_on(series, field, reason)
            elif reason is Reason.SERIES_EXISTS and not batch.repairs:
                # Made by an earlier run, or by somebody else with other ideas: a later batch corrects it.
                self._to_correct[series, field] = None

    def _settle_samples(self, batch: SeriesBatch, answer: list[Reply]) -> bool:
        """Account for each record by its samples: stored when all are, else refused with the first reason.

        False when series had to be made anew: then nothing is settled yet and the batch goes again.
        """
        outcomes: list[Reason | None] = []
        repairs: dict[Target, Reason] = {}
        replies = iter(answer)
        for record in batch.records:
            series, fields, at_ms = self._samples_of(record)
            outcome: Reason | None = None
            for field in fields:
                reply = next(replies)
                if reply == at_ms:
                    continue
                reason = _judge(reply)
                if reason is Reason.OLDER_THAN_RETENTION:
                    if (series, field) in repairs or self._is_poisoned(series, field, at_ms):
                        repairs[series, field] = reason
                elif reason in MENDABLE:
                    given_up = self._repairs.given_up(series, field)
                    if given_up is not None:
                        reason = given_up
                    elif batch.repairs < _REPAIRS_A_BATCH:
                        repairs[series, field] = reason
                    else:
                        self._repairs.give_up_on(series, field, reason)
                outcome = outcome or reason
            outcomes.append(outcome)
        if repairs:
            batch.repairs += 1
            self.counters.errors += 1
            commands = [
                (target, text)
                for target, reason in repairs.items()
                for text in self._repairs.mend(*target, reason)
            ]
            batch.making = [target for target, _ in commands]
            batch.prelude = [text for _, text in commands]
            return False
        self._settle_by_record(batch, outcomes)
        return True

    def _is_poisoned(self, series: Series, field: str, at_ms: int) -> bool:
        """Tell whether a sample in the future stands in the way of one at `at_ms`; count what is found."""
        found = self._repairs.is_poisoned(series, field, at_ms)
        self.counters.repaired += found
        return found


def _judge(reply: Reply) -> Reason:
    """Return why a sample was not stored at its time."""
    if not isinstance(reply, ReplyError):
        return Reason.IGNORED
    message = str(reply)
    refusal = server_refusal(message)
    if refusal is not None:
        raise refusal
    return item_reason(message)


def _bytes_of(words: Sequence[str] | bytes) -> bytes:
    return words if isinstance(words, bytes) else to_bytes(words)
