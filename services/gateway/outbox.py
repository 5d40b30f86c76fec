"""What waits for one client: a queue of everything in order, and the newest tick per conflated instrument.

Pure: no I/O, no clock. `take` and `take_control` are called on the hot path and only queue. The rules:

* `all`: every tick, in order. Beyond the byte cap the oldest ticks go; `skipped` stands in their place.
* `latest`: a `Pace` keeps one tick per instrument, the newest; it leaves when the pace is due.
* A chart leaves when its pace is due: every bar that was finished or revised, and what forms just now.
* Of the channels beside them, trades and news stand in the queue like ticks with `all`; depth and option
  chains wait at a pace, the newest of each; quotes do either.
* A control record leaves in its place in the queue, behind the instrument's last tick before it.
* The queue always leaves before a pace, so no older value of an instrument follows a newer one.
* What a client missed while it was away stands before the queue, with what the queue held then; nothing
  of it is ever skipped.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable
from itertools import accumulate, islice
from operator import is_
from typing import Any

from services.compiled import load
from services.data_broadcast import Pending, Publication, is_exchange_wide
from services.gateway.charts import ChartFrames, ChartPending
from services.gateway.encoding import (
    MAX_FRAME_BYTES,
    fragment,
    single_frame,
    skipped_message,
    text_frame,
    tick_frame,
    to_json,
)
from services.gateway.side_messages import SideMessage, side_fragment, side_frame
from services.gateway.side_pending import SidePending
from services.market_data.records import ControlRecord, DataIngestionFormat, Record

Queued = Publication | SideMessage | bytes

_compiled: Any = load("fanout")

WIDE_CONTROLS_REMEMBERED = 1_000
FRAMES_SHARED = 32
"""So many frames are kept for other clients with the same ticks: at most 2 MB."""
ALWAYS_FIT = 100
"""So many ticks have a place in any frame: a tick with all of its fields has less than 400 bytes."""


class SharedFrames:
    """Makes frames of several ticks; clients with the same ticks soon after each other get the same bytes."""

    def __init__(self, charts: ChartFrames | None = None) -> None:
        self.charts = charts
        self._made: dict[int, tuple[list[Publication], bytes]] = {}
        self._run: list[Queued] = []
        self._run_frames: list[bytes] = []

    def frame_of(self, batch: list[Publication]) -> bytes:
        """Return the frame of a batch of ticks of different instruments."""
        return self._known(batch) or self._make(batch)

    def take_frame(self, pending: Pending, budget_bytes: int) -> bytes:
        """Take pending ticks, as many as a frame of at most `budget_bytes` holds; return their frame."""
        batch = list(pending.values())
        frame = self._known(batch)
        if frame is None:
            fit = _fit(batch, min(MAX_FRAME_BYTES, budget_bytes))
            if fit < len(batch):
                for symbol in list(islice(pending, fit)):
                    del pending[symbol]
                return self.frame_of(batch[:fit])
            frame = self._make(batch)
        pending.clear()
        return frame

    def _known(self, batch: list[Publication]) -> bytes | None:
        # Equal means the same objects here, so a batch that differs is told from a known one at once. Those
        # known are kept alive, so that no other object has their first tick's identity.
        known = self._made.get(id(batch[0]))
        if known is not None and len(known[0]) == len(batch) and all(map(is_, batch, known[0])):
            return known[1]
        return None

    def _make(self, batch: list[Publication]) -> bytes:
        made = self._made
        frame = (build_frame if _compiled is None else _compiled.build_frame)(batch)
        made[id(batch[0])] = (batch, frame)
        if len(made) > FRAMES_SHARED:
            del made[next(iter(made))]
        return frame

    def known_run(self, queue: deque[Queued]) -> list[bytes] | None:
        """Return the frames of a whole queue when it is the last one that `keep_run` was given."""
        run = self._run
        return self._run_frames if len(run) == len(queue) and all(map(is_, queue, run)) else None

    def keep_run(self, run: list[Queued], frames: list[bytes]) -> None:
        """Remember the frames of a whole queue for whoever has the same one."""
        self._run, self._run_frames = run, frames


class Pace:
    """The conflated instruments of one client that are served every `every_ms` milliseconds, and charts."""

    __slots__ = ("charts", "due_s", "every_ms", "every_s", "pending", "sides")

    def __init__(self, every_ms: int, due_s: float) -> None:
        self.every_ms = every_ms
        self.every_s = every_ms / 1000
        self.due_s = due_s
        self.pending: Pending = {}
        self.charts = ChartPending()
        self.sides = SidePending()

    @property
    def waiting(self) -> bool:
        """Whether there is anything to send."""
        return bool(self.pending) or self.charts.waiting or self.sides.waiting


class Outbox:
    """The outbox of one client. `wake` is called when the queue was empty and something was put into it."""

    __slots__ = (
        *("_backlog", "_frames", "_limit_bytes", "_queue", "_skipped", "_skipped_sides", "_wake"),
        *("_wide_controls", "backlog_bytes", "overfull", "paces", "queued_bytes", "skipped_total"),
    )

    def __init__(self, limit_bytes: int, wake: Callable[[], None], frames: SharedFrames) -> None:
        self._frames = frames
        self._limit_bytes = limit_bytes
        self._wake = wake
        self._queue: deque[Queued] = deque()
        self._backlog: deque[Queued] = deque()
        self._wide_controls: dict[tuple[str, int, int], None] = {}
        self._skipped: dict[str, int] = {}
        self._skipped_sides: dict[str, int] = {}
        self.paces: dict[int, Pace] = {}
        self.queued_bytes = 0
        self.backlog_bytes = 0
        self.skipped_total = 0
        self.overfull = False
        """Set for good when answers and control records alone exceed the cap: this client must go."""

    # ---- filling --------------------------------------------------------------------------------

    def take(self, publication: Publication) -> None:
        """Queue one tick for delivery `all`."""
        if self.overfull:
            return
        made = publication.fragment
        self.queued_bytes += len(fragment(publication) if made is None else made)
        queue = self._queue
        queue.append(publication)
        if len(queue) == 1:
            self._wake()
        elif self.queued_bytes > self._limit_bytes:
            self._shed()

    def take_side(self, message: SideMessage) -> None:
        """Queue one message of another channel that may not be conflated."""
        if self.overfull:
            return
        self.queued_bytes += len(side_fragment(message))
        self._queue.append(message)
        if len(self._queue) == 1:
            self._wake()
        elif self.queued_bytes > self._limit_bytes:
            self._shed()

    def take_control(self, publication: Publication) -> None:
        """Queue one control record behind the pending ticks it concerns."""
        record = publication.record
        if not self.is_new(record):
            return
        wide = is_exchange_wide(record)
        for pace in self.paces.values():
            for quote in pace.sides.taken_before("" if wide else record.symbol, record.exchange):
                self.take_side(quote)
            if wide:
                for before in [
                    item for item in pace.pending.values() if item.record.exchange == record.exchange
                ]:
                    del pace.pending[before.record.symbol]
                    self.take(before)
            else:
                before_one = pace.pending.pop(record.symbol, None)
                if before_one is not None:
                    self.take(before_one)
        self.take(publication)

    def put(self, frame: bytes) -> None:
        """Queue one complete frame, such as an answer; it is never skipped."""
        self.queued_bytes += len(frame)
        self._queue.append(frame)
        if len(self._queue) == 1:
            self._wake()
        elif self.queued_bytes > self._limit_bytes:
            self._shed()

    def is_new(self, record: Record) -> bool:
        """Tell whether a record was not queued before, as far as that can happen; remember it.

        A record that concerns a whole exchange comes once with every subscription of a client.
        """
        if isinstance(record, DataIngestionFormat) or not is_exchange_wide(record) or not record.position_ms:
            return True
        known = self._wide_controls
        name = (record.exchange, record.position_ms, record.position_seq)
        if name in known:
            return False
        known[name] = None
        if len(known) > WIDE_CONTROLS_REMEMBERED:
            del known[next(iter(known))]
        return True

    def restore(self, answer: bytes, missed: Iterable[Publication | SideMessage]) -> None:
        """Queue an answer and what the client missed, behind all that waits now; none of it is skipped."""
        backlog = self._backlog
        if self._skipped:
            self._put_back(self._skipped_frame())
        backlog.extend(self._queue)
        self.backlog_bytes += self.queued_bytes
        self._queue.clear()
        self.queued_bytes = 0
        self._put_back(answer)
        for item in missed:
            if isinstance(item, SideMessage) or self.is_new(item.record):
                backlog.append(item)
                self.backlog_bytes += _made_size(item)
        self._wake()

    def limit_to(self, limit_bytes: int) -> None:
        """Let at most so many bytes wait from now on; the oldest ticks beyond it are skipped at once."""
        self._limit_bytes = limit_bytes
        if self.queued_bytes > limit_bytes:
            self._shed()

    def forget(self, instrument: str) -> None:
        """Drop the pending tick and chart of an instrument that is no longer conflated here."""
        for pace in self.paces.values():
            pace.pending.pop(instrument, None)
            pace.charts.forget(instrument)

    # ---- emptying -------------------------------------------------------------------------------

    @property
    def waiting(self) -> bool:
        """Whether something stands in the queue (pending ticks of a pace do not count)."""
        return bool(self._queue or self._backlog or self._skipped)

    def oldest_ms(self) -> int:
        """Return when the first tick of the queue was accepted, UTC epoch ms; 0 when no tick stands there."""
        head = self._queue[0] if self._queue and not self._backlog else None
        return head.record.position_ms if isinstance(head, Publication) else 0

    def pop_queue(self, budget_bytes: int) -> list[bytes]:
        """Take complete frames from the queue, in order, until about `budget_bytes` are reached.

        The list may be shared with other clients: it is not to be changed.
        """
        queue = self._queue
        if self._backlog:
            frames, freed = self._pop_line(self._backlog, budget_bytes)
            self.backlog_bytes -= freed
            return frames
        if len(queue) == 1 and not self._skipped:
            item = queue.popleft()
            self.queued_bytes -= _size(item)
            return [_frame(item)]
        notice = []
        if self._skipped:
            notice.append(self._skipped_frame())
        elif self.queued_bytes <= budget_bytes // 2:
            return self._pop_run(budget_bytes)
        frames, freed = self._pop_line(queue, budget_bytes)
        self.queued_bytes -= freed
        return notice + frames

    def pop_pace(self, pace: Pace, budget_bytes: int) -> list[bytes]:
        """Take frames of the pace's pending ticks, then charts, until about `budget_bytes` are reached."""
        pending = pace.pending
        frames: list[bytes] = []
        size = 0
        while pending and size < budget_bytes:
            if len(pending) == 1:
                frame = single_frame(pending.popitem()[1])
            else:
                frame = self._frames.take_frame(pending, budget_bytes - size)
            frames.append(frame)
            size += len(frame)
        if self._frames.charts is None:
            pace.charts.drop()
        elif pace.charts.waiting and size < budget_bytes:
            frames += pace.charts.pop(self._frames.charts, budget_bytes - size)
        if pace.sides.waiting and (room := budget_bytes - sum(map(len, frames))) > 0:
            frames += pace.sides.pop(room)
        return frames

    def _skipped_frame(self) -> bytes:
        notice = skipped_message(self._skipped, self._skipped_sides)
        self._skipped, self._skipped_sides = {}, {}
        return text_frame(to_json(notice))

    def _put_back(self, frame: bytes) -> None:
        self._backlog.append(frame)
        self.backlog_bytes += len(frame)

    def _pop_run(self, budget_bytes: int) -> list[bytes]:
        """Take the whole queue: clients with the same one get the same frames."""
        queue = self._queue
        frames = self._frames.known_run(queue)
        if frames is not None:
            queue.clear()
            self.queued_bytes = 0
            return frames
        run = list(queue)
        frames, freed = self._pop_line(queue, budget_bytes)
        self.queued_bytes -= freed
        if not queue:
            self._frames.keep_run(run, frames)
        return frames

    def _pop_line(self, line: deque[Queued], budget_bytes: int) -> tuple[list[bytes], int]:
        """Take frames of about `budget_bytes`; return them, and by how much the line is smaller."""
        frames: list[bytes] = []
        size = freed = 0
        while line and size < budget_bytes:
            head = line.popleft()
            freed += _size(head)
            if line and isinstance(head, Publication) and isinstance(head.record, DataIngestionFormat):
                frame, more = self._gather(head, line, budget_bytes - size)
                freed += more
            else:
                frame = _frame(head)
            frames.append(frame)
            size += len(frame)
        return frames, freed

    def _gather(self, head: Publication, line: deque[Queued], budget_bytes: int) -> tuple[bytes, int]:
        """Take consecutive ticks of different instruments into one frame with `head`; return their size."""
        seen = {head.record.symbol}
        if not _may_follow(line[0], seen):
            return _frame(head), 0
        batch = [head]
        most = min(MAX_FRAME_BYTES, budget_bytes) - _size(head)
        size = 0
        while line and (size < most or len(batch) < ALWAYS_FIT):
            item = line[0]
            if not isinstance(item, Publication) or not _may_follow(item, seen):
                break
            line.popleft()
            batch.append(item)
            size += _size(item)
            seen.add(item.record.symbol)
        return self._frames.frame_of(batch), size

    def _shed(self) -> None:
        """Drop the oldest ticks until half the cap is left; answers and control records stay."""
        kept: list[Queued] = []
        queue, skipped = self._queue, self._skipped
        while queue and self.queued_bytes > self._limit_bytes // 2:
            item = queue.popleft()
            if isinstance(item, bytes) or isinstance(item.record, ControlRecord):
                kept.append(item)
                continue
            self.queued_bytes -= _made_size(item)
            if isinstance(item, SideMessage):
                symbol = item.symbol
                self._skipped_sides[item.channel] = self._skipped_sides.get(item.channel, 0) + 1
            else:
                symbol = item.record.symbol
            skipped[symbol] = skipped.get(symbol, 0) + 1
            self.skipped_total += 1
        queue.extendleft(reversed(kept))
        self.overfull = self.queued_bytes > self._limit_bytes


def _fit(batch: list[Publication], budget_bytes: int) -> int:
    """Return how many ticks of a batch have a place within `budget_bytes`."""
    if len(batch) <= ALWAYS_FIT:
        return len(batch)
    ends = list(accumulate(len(item.fragment or fragment(item)) + 1 for item in batch))
    return len(batch) if ends[-1] <= budget_bytes else max(ALWAYS_FIT, bisect_right(ends, budget_bytes))


def build_frame(batch: list[Publication]) -> bytes:
    """Return the frame of a batch of ticks of different instruments."""
    newest: dict[str, Record] = {}
    exchange, top_ms, top_seq = "", 0, 0
    # The hottest loop of a busy gateway: per client, slot and tick. Pending ticks are not in the order
    # of their positions, so the newest of each exchange is looked for.
    for publication in batch:
        record = publication.record
        if record.exchange != exchange:
            exchange = record.exchange
            known = newest.get(exchange)
            top_ms, top_seq = (known.position_ms, known.position_seq) if known is not None else (-1, 0)
        position_ms = record.position_ms
        if position_ms > top_ms or (position_ms == top_ms and record.position_seq > top_seq):
            newest[exchange] = record
            top_ms, top_seq = position_ms, record.position_seq
    return tick_frame([item.fragment or fragment(item) for item in batch], newest)


def _made_size(item: Publication | SideMessage) -> int:
    made = item.fragment
    if made is None:
        made = side_fragment(item) if isinstance(item, SideMessage) else fragment(item)
    return len(made)


def _size(item: Queued) -> int:
    return len(item) if isinstance(item, bytes) else len(item.fragment or b"") or _made_size(item)


def _frame(item: Queued) -> bytes:
    if isinstance(item, bytes):
        return item
    return item.frame or (side_frame(item) if isinstance(item, SideMessage) else single_frame(item))


def _may_follow(item: Queued, seen: set[str]) -> bool:
    return (
        isinstance(item, Publication)
        and isinstance(item.record, DataIngestionFormat)
        and item.record.symbol not in seen
    )
