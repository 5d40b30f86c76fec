"""Answers clients that come back: what they missed is read from the streams, all of it or nothing.

    subscribe with resume ──► Recovery ──► RecoveryDesk: pages of the stream ──► done ──► the client
          │                                                                          ▲
          └─► Tail: what the bus brings meanwhile ───────────────────────────────────┘

The bus's newest position is noted in the step that attaches the tail. So what was missed is exactly the
stream up to that position, and the tail exactly what comes after it: nothing is missing, doubled or
out of order where they meet. One desk serves all clients of a gateway, one scan of a stream at a time
for all who wait for it: a storm of clients reads the stream a few times, not once each, and the path of
live ticks is never held up for longer than one page.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
import structlog

from services.data_broadcast import Pending, Publication, is_exchange_wide
from services.errors import StorageError
from services.gateway.charts import shows
from services.gateway.encoding import fragment
from services.market_data.bars import Interval
from services.market_data.clock import Clock
from services.market_data.records import ControlRecord, DataIngestionFormat
from services.pipeline.bounded import finishes_within
from services.pipeline.sequencer import START, Position
from services.storage.entry_reader import record_of
from services.storage.stream_history import Entry, PositionGone

_log = structlog.get_logger(__name__)

PAGE_ENTRIES = 250
RETRY_S = 0.02
CLOSE_S = 2.0


class RecoveryLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How far back a client may come, and what that may cost.

    `entries` of one exchange's stream are looked through for one client; `bytes` is what it may be sent
    of them, `bytes_in_all` what waits for all clients together. `tail` is how many live records are
    held back meanwhile. A stream that is behind the bus is waited for `behind_s` seconds, and a client
    gets its answer within about `patience_s`.
    """

    entries: int = 100_000
    bytes: int = 8 << 20
    bytes_in_all: int = 128 << 20
    tail: int = 100_000
    behind_s: float = 2.0
    patience_s: float = 10.0


class History(Protocol):
    """Where the streams are read; raises `StorageError`, and `PositionGone` for an unknown position."""

    async def page(self, exchange: str, after: Position, upto: Position, count: int) -> list[Entry]:
        """Return at most `count` entries after `after` and up to `upto`, in order."""
        ...

    async def reached(self, exchange: str) -> Position:
        """Return the newest position the exchange's stream has."""
        ...

    async def close(self) -> None:
        """Let go of the connection."""
        ...


class Tail:
    """Holds back what the bus brings for one client while its history is read. An `Outlet`.

    With `pending` in use (delivery `latest`) ticks are conflated there, and a control record takes the
    pending ticks it concerns with it, so that it keeps its place behind them. Bars are held back of the
    interval `bars` only, and without `ticks` no ticks.
    """

    def __init__(self, limit: int, *, ticks: bool = True, bars: Interval | None = None) -> None:
        self._limit = limit
        self._ticks = ticks
        self._bars = bars
        self.items: list[Publication] = []
        self.pending: Pending = {}
        self.overfull = False

    def take(self, publication: Publication) -> None:
        """Hold back one tick."""
        if self._ticks:
            self._hold(publication)

    def _hold(self, publication: Publication) -> None:
        if len(self.items) >= self._limit:
            self.overfull = True
            self.items.clear()
        if not self.overfull:
            self.items.append(publication)

    def take_control(self, publication: Publication) -> None:
        """Hold back one control record, behind every tick that came before it."""
        record = publication.record
        if isinstance(record, ControlRecord) and record.type == "bar":
            if shows(record, self._bars):
                self._hold(publication)
            return
        for symbol, before in list(self.pending.items()):
            if symbol == record.symbol or (
                is_exchange_wide(record) and before.record.exchange == record.exchange
            ):
                self.take(self.pending.pop(symbol))
        self._hold(publication)


class Recovery:
    """What one client missed: asked for with `spans`, filled by the desk, then given to `done`.

    `spans` holds, per exchange, the client's position and the bus's when the tail was attached. `wanted`
    are the instruments; without `ticks` only control records are looked for, and bars of the interval `bars`
    only. After `done` either
    `refusal` says why it cannot be had, or `found` is all of it, in the order of the positions.
    """

    def __init__(
        self,
        spans: Mapping[str, tuple[Position, Position]],
        wanted: frozenset[str],
        *,
        ticks: bool,
        bars: Interval | None = None,
        done: Callable[[Recovery], None],
        asked_s: float,
    ) -> None:
        self.spans = spans
        self.wanted = wanted
        self.ticks = ticks
        self.bars = bars
        self.done = done
        self.asked_s = asked_s
        self.found: list[Publication] = []
        self.found_bytes = 0
        self.refusal = ""
        self.cancelled = False

    @property
    def open(self) -> bool:
        """Whether the client still waits, and all can still be had."""
        return not self.cancelled and not self.refusal

    def refuse(self, reason: str) -> None:
        """Give up: it cannot be had whole, so nothing of it is sent."""
        if not self.refusal:
            self.refusal = reason
        self.found.clear()
        self.found_bytes = 0

    def add(self, publication: Publication, limit_bytes: int) -> None:
        """Take in one missed record."""
        self.found.append(publication)
        self.found_bytes += len(fragment(publication))
        if self.found_bytes > limit_bytes:
            self.refuse("too_far_behind")


class RecoveryFigures(msgspec.Struct):
    """What became of resumes: `recovered`, or `refused` by reason; `entries` were read for them."""

    recovered: int = 0
    refused: dict[str, int] = {}
    scans: int = 0
    entries: int = 0

    def count_refusal(self, reason: str) -> None:
        """Count one client that was told to begin anew."""
        self.refused[reason] = self.refused.get(reason, 0) + 1


class RecoveryDesk:
    """Serves the recoveries of one gateway. `run` must be running; `held()` is what waits for clients."""

    def __init__(
        self, history: History | None, clock: Clock, limits: RecoveryLimits, held: Callable[[], int]
    ) -> None:
        self._history = history
        self._clock = clock
        self._held = held
        self._waiting: deque[Recovery] = deque()
        self._wake = asyncio.Event()
        self.limits = limits
        self.figures = RecoveryFigures()

    @property
    def available(self) -> bool:
        """Whether there are streams to read at all."""
        return self._history is not None

    def submit(self, recovery: Recovery) -> None:
        """Begin a recovery; its `done` is called once, in a later turn of the event loop."""
        self._waiting.append(recovery)
        self._wake.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        try:
            while True:
                self._wake.clear()
                await self._wake.wait()
                while self._waiting:
                    together = list(self._waiting)
                    self._waiting.clear()
                    await self._serve(together)
        finally:
            if self._history is not None:
                await finishes_within(self._history.close(), CLOSE_S)

    async def _serve(self, together: list[Recovery]) -> None:
        for exchange in sorted({exchange for recovery in together for exchange in recovery.spans}):
            concerned = [item for item in together if exchange in item.spans and item.open]
            if concerned:
                await self._read(exchange, concerned)
        for number, recovery in enumerate(together):
            if recovery.cancelled:
                continue
            if recovery.open and self._held() + recovery.found_bytes > self.limits.bytes_in_all:
                recovery.refuse("busy")
            if len(recovery.spans) > 1:
                recovery.found.sort(key=_order)
            recovery.done(recovery)
            if number % 16 == 15:
                # What was given out just now leaves before more of it is.
                await asyncio.sleep(0)

    async def _read(self, exchange: str, concerned: list[Recovery]) -> None:
        if self._history is None:
            reason = "history_unavailable"
        else:
            self.figures.scans += 1
            scan = _Scan(self._history, self._clock, self.limits, exchange, concerned)
            try:
                await scan.run()
            except StorageError as error:
                _log.warning("history_not_read", exchange=exchange, reason=str(error))
            self.figures.entries += scan.entries
            reason = "history_unavailable"
            concerned = scan.unserved()
        for recovery in concerned:
            recovery.refuse(reason)


class _Scan:
    """One way through an exchange's stream, for all who wait for a part of it."""

    def __init__(
        self,
        history: History,
        clock: Clock,
        limits: RecoveryLimits,
        exchange: str,
        recoveries: list[Recovery],
    ) -> None:
        self._history = history
        self._clock = clock
        self._limits = limits
        self._exchange = exchange
        self._later = deque(sorted(recoveries, key=lambda item: item.spans[exchange][0]))
        self._active: list[Recovery] = []
        self._scanned: dict[Recovery, int] = {}
        self._watchers: dict[str, list[Recovery]] = {}
        self.entries = 0

    def unserved(self) -> list[Recovery]:
        """Return those that have neither all of it nor a refusal: the scan broke off."""
        return [item for item in (*self._active, *self._later) if item.open]

    async def run(self) -> None:
        """Read until everybody has what was missed, or the reason why not. Raises `StorageError`."""
        exchange = self._exchange
        while self._later:
            cursor = self._later[0].spans[exchange][0]
            self._join(cursor)
            try:
                await self._follow(cursor)
            except PositionGone as gone:
                for recovery in self._active:
                    recovery.refuse(gone.reason)
                self._settle(cursor)

    async def _follow(self, cursor: Position) -> None:
        behind_since_s: float | None = None
        stored_upto = START
        self._settle(cursor)
        while self._active:
            upto = max(self._end_of(recovery) for recovery in self._active)
            page = await self._history.page(self._exchange, cursor, upto, PAGE_ENTRIES)
            self.entries += len(page)
            for position, fields in page:
                self._pass_over(position)
                self._give(position, fields)
                self._join(position)
                cursor = position
            for recovery in self._active:
                self._scanned[recovery] += len(page)
                if self._scanned[recovery] > self._limits.entries:
                    recovery.refuse("too_far_behind")
            now_s = self._clock.monotonic_s()
            if len(page) < PAGE_ENTRIES:
                if stored_upto >= upto:
                    # All of it was stored before this page was read, and there is no more.
                    cursor = max(cursor, upto)
                elif (reached := await self._history.reached(self._exchange)) >= upto:
                    stored_upto = reached
                else:
                    # The writer is behind the bus.
                    behind_since_s = now_s if behind_since_s is None else behind_since_s
                    if now_s - behind_since_s > self._limits.behind_s:
                        self._refuse_all("history_behind")
                    await asyncio.sleep(RETRY_S)
            self._refuse_impatient(now_s)
            self._settle(cursor)

    def _join(self, position: Position) -> None:
        """Begin to serve those who have everything up to `position`."""
        while self._later and self._later[0].spans[self._exchange][0] == position:
            recovery = self._later.popleft()
            self._active.append(recovery)
            self._scanned[recovery] = 0
            for instrument in recovery.wanted:
                self._watchers.setdefault(instrument, []).append(recovery)

    def _pass_over(self, position: Position) -> None:
        """Refuse those whose position would stand before this entry, and does not."""
        while self._later and self._later[0].spans[self._exchange][0] < position:
            self._later.popleft().refuse("position_unknown")

    def _give(self, position: Position, fields: dict[str, str]) -> None:
        kind = fields.get("type", "")
        is_bar = kind == "bar"
        if is_bar and "ph" in fields:
            return
        is_tick = kind == "tick"
        instrument = fields.get("k", "")
        wide = not is_tick and instrument.partition(":")[2] in ("", "*")
        takers = self._active if wide else self._watchers.get(instrument, ())
        takers = [
            item
            for item in takers
            if item.open
            and (item.ticks or not is_tick)
            and (not is_bar or item.bars == fields.get("i"))
            and position <= self._end_of(item)
        ]
        if takers:
            record = record_of(self._exchange, position, fields)
            if record is not None:
                publication = Publication(record)
                for item in takers:
                    item.add(publication, self._limits.bytes)

    def _end_of(self, recovery: Recovery) -> Position:
        return recovery.spans[self._exchange][1]

    def _refuse_all(self, reason: str) -> None:
        for recovery in self._active:
            recovery.refuse(reason)

    def _refuse_impatient(self, now_s: float) -> None:
        for recovery in (*self._active, *self._later):
            if now_s - recovery.asked_s > self._limits.patience_s:
                recovery.refuse("busy")

    def _settle(self, cursor: Position) -> None:
        """Let go of those who have all of it, or never will."""
        left = [item for item in self._active if item.open and self._end_of(item) > cursor]
        self._later = deque(item for item in self._later if item.open)
        if len(left) == len(self._active):
            return
        self._active = left
        self._watchers = {}
        for recovery in left:
            for instrument in recovery.wanted:
                self._watchers.setdefault(instrument, []).append(recovery)


def _order(publication: Publication) -> tuple[int, int]:
    record: DataIngestionFormat | ControlRecord = publication.record
    return record.position_ms, record.position_seq
