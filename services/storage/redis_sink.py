"""What the three Redis writers have in common: queue, batches, replay, states and the account of records.

A writer stands behind the bus on a connection of its own. Batches leave at the end of each turn of the
event loop while few are in flight (natural batching: an idle system is quick, a busy one efficient).
When a batch is refused by the server as a whole, or its outcome is unknown, it and everything sent
behind it goes back in order and is replayed byte for byte; the commands are such that this is harmless.
So is what Redis confirmed in the last seconds before a connection was lost: while the disk is slow, Redis
confirms what it has written to no file yet, and forgets it when it is killed.
While Redis takes nothing, records wait in the queue; beyond its bound the oldest is dropped and counted
(`_overflow` is the one place where a record leaves without having been tried). `spooled_sink` puts a
disk behind the queue.

    pending records --encode--> batch in flight --settle--> written | collapsed | rejected
                                      ^  |
                                 replay, in order
"""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from services.errors import StorageError, StorageMisconfigured, StorageUnavailable
from services.pipeline.backoff import Backoff
from services.pipeline.sink import SinkState
from services.storage.accounted_sink import AccountedSink
from services.storage.address import RedisAddress, parse_address
from services.storage.answers import AS_EXPECTED, Reply
from services.storage.batch import Batch
from services.storage.confirmed_batches import ConfirmedBatches
from services.storage.connection import RedisConnection, open_connection

_log = structlog.get_logger(__name__)

QUEUE_LIMIT = 100_000
IN_FLIGHT = 4
_BUSY_QUEUE = 2_000
PARKED_RETRY_S = 60.0

Connect = Callable[[RedisAddress, str], Awaitable[RedisConnection]]


class RedisSink(AccountedSink):
    """The common part of a writer. A subclass queues in `offer`, encodes batches and settles them."""

    def __init__(
        self,
        name: str,
        redis_url: str,
        *,
        queue_limit: int = QUEUE_LIMIT,
        in_flight: int = IN_FLIGHT,
        busy_in_flight: int | None = None,
        connect: Connect = open_connection,
        backoff: Backoff | None = None,
        parked_retry_s: float = PARKED_RETRY_S,
    ) -> None:
        super().__init__(name)
        self._address = parse_address(redis_url)
        self._queue_limit = queue_limit
        self._usual_window = in_flight
        self._busy_window = busy_in_flight or in_flight
        self._connect = connect
        self._backoff = backoff or Backoff(base_s=0.1, cap_s=5.0, floor_s=0.02, reset_after_s=1.0)
        self._parked_retry_s = parked_retry_s
        self._connection: RedisConnection | None = None
        self._window = 1
        self._in_flight: deque[Batch] = deque()
        self._returned: list[Batch] = []
        self._replay: deque[Batch] = deque()
        self._confirmed = ConfirmedBatches()
        self._turn: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._retry = asyncio.Event()
        self._accepted_s: float | None = None
        self._lost_s: float | None = None
        self._closing = False

    # ---- what a writer adds ---------------------------------------------------------------------

    @abstractmethod
    def _encode(self) -> Batch | None:
        """Take the oldest pending records into a batch; None when none of them can be sent."""

    @abstractmethod
    def _settle(self, batch: Batch, replies: list[Reply]) -> bool:
        """Account for every record of an answered batch, or for none and return False to send it again.

        Raises `StorageError` when the server takes nothing just now.
        """

    # ---- the sink's contract --------------------------------------------------------------------

    @property
    def _has_work(self) -> bool:
        """Whether anything waits that a fresh connection can be tried with."""
        return self.queued > 0 or bool(self._replay)

    async def run(self) -> None:
        """Keep connected and write until cancelled."""
        loop = asyncio.get_running_loop()
        self.state = SinkState.STARTING
        try:
            while True:
                self._accepted_s = None
                try:
                    connection = await self._connect(self._address, f"marketd:{self.name}")
                    loss = await self._serve(connection)
                except StorageError as error:
                    loss = error
                if self._accepted_s is not None:
                    self._backoff.succeeded(loop.time() - self._accepted_s)
                self._unavailable(loss)
                await self._pause(loss)
        finally:
            self.state = SinkState.CLOSED
            self.reason = ""

    async def drain(self, deadline_s: float) -> int:
        """Wait until all is settled, at most `deadline_s` seconds; return how many records remain."""
        self.retry_now()
        try:
            async with asyncio.timeout(deadline_s):
                while self.queued:
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            return self.queued
        return 0

    @property
    def keeps_on_disk(self) -> bool:
        """Whether `drain` brings to disk what Redis does not take."""
        return False

    def give_up(self, reason: str) -> None:
        """Drop all that waits in memory, counted under `reason`. Only while Redis is not written to."""
        waiting = self.queued
        while self._pending_count:
            self._discard_oldest()
        self._replay.clear()
        self._again_left = 0
        self._confirmed.clear()
        self._batched = 0
        if waiting:
            self.counters.drop(reason, waiting)
        self._note_settled()

    def retry_now(self) -> None:
        """Try to connect at once instead of at the end of the wait, as after a changed password."""
        self._retry.set()

    # ---- one connection's life ------------------------------------------------------------------

    async def _serve(self, connection: RedisConnection) -> StorageError:
        """Write over one connection until it is lost; return why."""
        loop = asyncio.get_running_loop()
        self._connection = connection
        connection.on_closed = self._wake
        if self._has_work:
            # One batch alone shows whether Redis really takes writes again.
            self._window = 1
        else:
            self._accepted()
        try:
            while connection.closed_by is None:
                self._turn = loop.create_future()
                self._fill()
                if connection.closed_by is None:
                    await self._turn
        finally:
            self._waiter = self._turn = None
            connection.abort(StorageUnavailable("the writer was stopped"))
            self._connection = None
            self._take_back()
            self._take_back_confirmed()
        if isinstance(connection.closed_by, StorageError):
            return connection.closed_by
        raise connection.closed_by

    def _fill(self) -> None:
        """Send batches while few enough are in flight; then sleep until a record or a reply comes."""
        connection = self._connection
        self._waiter = None
        if connection is None or self._returned or self._closing:
            return
        in_flight = self._in_flight
        window = self._window
        if window > 1 and self._pending_count > _BUSY_QUEUE:
            # A far or slow server: more batches on the way make up for the time each of them takes.
            window = self._busy_window
        while len(in_flight) < window:
            if not connection.takes_a_batch():
                return
            batch = self._replay.popleft() if self._replay else self._next_batch()
            if batch is None:
                self._waiter = self._turn
                return
            in_flight.append(batch)
            connection.send(batch.payload(), batch.replies, self._answered, batch.expected)

    def _next_batch(self) -> Batch | None:
        """Return the batch to send next, None when there is nothing to send just now."""
        while self._pending_count:
            batch = self._encode()
            if batch is not None:
                self._batched += len(batch.records)
                return batch
            self._note_settled()
        return None

    def _answered(self, replies: list[Reply]) -> None:
        """Settle the oldest batch in flight by its replies, and send what can be sent now."""
        batch = self._in_flight.popleft()
        if self._returned:
            # A batch before this one goes again, so this one goes again behind it: order is kept.
            batch.maybe_stored = True
            self._returned.append(batch)
        else:
            try:
                if replies is AS_EXPECTED:
                    self._all_written(batch)
                    settled = True
                else:
                    settled = self._settle(batch, replies)
            except StorageError as refusal:
                self._returned.append(batch)
                if self._connection is not None:
                    self._connection.abort(refusal)
                return
            if settled:
                self.counters.batches += 1
                if self._timed_offer:
                    self._note_time()
                if self._accepted_s is None:
                    self._accepted()
                self._note_settled()
                self._keep_confirmed(batch)
            else:
                self._returned.append(batch)
        if self._returned and not self._in_flight:
            self._take_back()
        self._fill()

    def _take_back(self) -> None:
        """Put every batch without a result back in front, in its order."""
        for batch in self._in_flight:
            batch.maybe_stored = True
        self._replay.extendleft(reversed((*self._returned, *self._in_flight)))
        self._returned.clear()
        self._in_flight.clear()

    def _keep_confirmed(self, batch: Batch) -> None:
        """Keep a settled batch for the time in which Redis may still forget it."""
        if batch.again:
            self._note_again(batch)
        self._confirmed.keep(batch, asyncio.get_running_loop().time())

    def _take_back_confirmed(self) -> None:
        """Put what was confirmed just before the loss in front of all that waits, in its order."""
        lately = self._confirmed.take(asyncio.get_running_loop().time())
        if not self._closing:
            self._to_send_again(lately)

    def _to_send_again(self, batches: list[Batch]) -> None:
        """Send batches that were settled once more, before all that waits."""
        self._again_left += len(batches)
        self._replay.extendleft(reversed(batches))

    def _wake(self) -> None:
        self._waiter = None
        if self._turn is not None and not self._turn.done():
            self._turn.set_result(None)

    # ---- states ---------------------------------------------------------------------------------

    def _accepted(self) -> None:
        """Redis takes our writes: use the whole window, and say so if it was not so before."""
        loop = asyncio.get_running_loop()
        self._window = self._usual_window
        if self._accepted_s is None:
            self._accepted_s = loop.time()
        if self.state is SinkState.READY:
            return
        self.state = SinkState.READY
        self.reason = ""
        if self._lost_s is not None:
            _log.info(
                "sink_recovered",
                sink=self.name,
                down_s=round(loop.time() - self._lost_s, 1),
                queued=self.queued,
            )
            self._lost_s = None

    def _unavailable(self, loss: StorageError) -> None:
        """Redis takes no writes: remember since when and why, and say so once."""
        self.counters.errors += 1
        state = SinkState.PARKED if isinstance(loss, StorageMisconfigured) else SinkState.UNAVAILABLE
        self.reason = str(loss)
        if self._lost_s is None:
            self._lost_s = asyncio.get_running_loop().time()
        if state is not self.state:
            self.state = state
            _log.warning("sink_" + state.value, sink=self.name, reason=self.reason, queued=self.queued)

    async def _pause(self, loss: StorageError) -> None:
        wait_s = (
            self._parked_retry_s if isinstance(loss, StorageMisconfigured) else self._backoff.next_wait_s()
        )
        try:
            async with asyncio.timeout(wait_s):
                await self._retry.wait()
        except TimeoutError:
            return
        self._retry.clear()
