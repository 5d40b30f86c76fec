"""DataBroadcast: hands every record to whoever in this process watches its instrument.

The last sink of the bus. It remembers the newest tick of each instrument and the newest position of
each exchange, and gives each record to the interested outlets (WebSocket sessions, Python
consumers). An outlet only queues, so a slow consumer costs nobody anything; nothing here waits,
touches a socket, or makes JSON.

To consume from Python, in the daemon's process:

    async for item in broadcast.subscribe(["NSE:RELIANCE", "CRYPTO:*"], delivery="all"):
        match item:
            case DataIngestionFormat(): ...   # a tick; item.symbol, item.price, item.timestamp
            case ControlRecord(): ...         # a gap, a provider switch; item.type, item.fields
            case Skipped(): ...               # this consumer was too slow and lost item.count records

    broadcast.latest("NSE:RELIANCE")          # the newest tick or None
    broadcast.positions()                     # {"NSE": "1700000000000-4"}

Callbacks for trades, quotes, bars, order books and news stand above it, in `services.data_source`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from services.compiled import load
from services.market_data.clock import Clock
from services.market_data.records import (
    FLAG_LATE,
    PROBE_EXCHANGE,
    ControlRecord,
    DataIngestionFormat,
    Record,
)
from services.pipeline.sequencer import START, Position
from services.pipeline.sink import Sink, SinkState

Delivery = Literal["all", "latest"]

DEFAULT_QUEUE_LIMIT = 10_000
"""Records a Python consumer may lag behind before its oldest ones are skipped."""


class Publication(msgspec.Struct, gc=False):
    """One record on its way to many clients, with what they share: its JSON, made by the first who needs it.

    `fragment` is the record's part of a message, `frame` a complete WebSocket frame of that one record.
    """

    record: Record
    fragment: bytes | None = None
    frame: bytes | None = None


Pending = dict[str, Publication]
"""Newest publication per instrument that a conflating outlet has not sent yet."""


class Outlet(Protocol):
    """What a consumer gives to `attach`. Both methods only queue: they never block and never raise."""

    def take(self, publication: Publication) -> None:
        """Queue one tick (only called for instruments attached without a `Pending`)."""
        ...

    def take_control(self, publication: Publication) -> None:
        """Queue one control record, behind every tick that came before it."""
        ...


class Skipped(msgspec.Struct, frozen=True):
    """Tells a consumer that it was too slow: `count` records were dropped, by instrument in `instruments`."""

    count: int
    instruments: dict[str, int]


def is_exchange_wide(record: Record) -> bool:
    """Tell whether a control record concerns all of its exchange: it names no symbol, or `*`."""
    return record.symbol.partition(":")[2] in ("", "*")


class _Audience:
    """Who watches one instrument."""

    __slots__ = ("conflated", "queued")

    def __init__(self) -> None:
        self.conflated: dict[Outlet, Pending] = {}
        self.queued: dict[Outlet, Callable[[Publication], None]] = {}


_fan_out: Any = None
if (_compiled := load("runs")) is not None:
    _compiled.shapes_of_the_broadcast(Publication, _Audience)
    _fan_out = _compiled.fan_out


class DataBroadcast(Sink):
    """Fans records out to the consumers in this process, and answers what is newest.

    `clock` is the time of everything behind it, the gateway included.
    `on_interest(added, removed)`, when set, hears which instruments gained their first or lost their
    last consumer; a wildcard of a Python consumer is reported as `EXCHANGE:*`. `on_control(record)`, when
    set, hears every control record, whoever listens; it must not raise.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__("broadcast")
        self.on_interest: Callable[[frozenset[str], frozenset[str]], None] | None = None
        self.on_control: Callable[[ControlRecord], None] | None = None
        self.clock = clock
        self._newest: dict[str, DataIngestionFormat] = {}
        self._tips: dict[str, Record] = {}
        self._seeded_positions: dict[str, Position] = {}
        self._audiences: dict[str, _Audience] = {}
        self._exchange_audiences: dict[str, dict[Outlet, Callable[[Publication], None]]] = {}

    # ---- sink -----------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Always 0: a record is settled when it lies in the outboxes."""
        return 0

    def offer(self, record: Record) -> None:
        """Remember the record and queue it with everybody who watches its instrument."""
        if not isinstance(record, ControlRecord):
            self.offer_ticks((record,))
            return
        self.counters.offered += 1
        self.counters.written += 1
        self._tips[record.exchange] = record
        self._offer_control(record)

    def offer_ticks(self, ticks: Sequence[DataIngestionFormat]) -> None:
        """Remember a run of ticks and queue each with everybody who watches its instrument."""
        counters = self.counters
        counters.offered += len(ticks)
        counters.written += len(ticks)
        newest, audiences, tips = self._newest, self._audiences, self._tips
        if _fan_out is not None:
            _fan_out(self, newest, tips, audiences, self._exchange_audiences, ticks)
            return
        exchange, wide = "", None
        for tick in ticks:
            if tick.exchange != exchange:
                if tick.exchange == PROBE_EXCHANGE:
                    self.probe_ms = tick.position_ms
                    continue
                exchange = tick.exchange
                wide = self._exchange_audiences.get(exchange)
            tips[exchange] = tick
            symbol = tick.symbol
            before = newest.get(symbol)
            # `latest` never goes back in time: not for a late tick, nor for a source that lags the last one.
            is_newest = (before is None or tick.timestamp >= before.timestamp) and not tick.flags & FLAG_LATE
            if is_newest:
                newest[symbol] = tick
            audience = audiences.get(symbol)
            if audience is None and wide is None:
                continue
            publication = Publication(tick)
            if audience is not None:
                if is_newest:
                    for pending in audience.conflated.values():
                        pending[symbol] = publication
                for take in audience.queued.values():
                    take(publication)
            if wide is not None:
                for take in wide.values():
                    take(publication)

    def announce(self, record: ControlRecord) -> None:
        """Tell whoever it concerns of something that is no part of any stream: it has no position."""
        self._offer_control(record)

    async def run(self) -> None:
        """Stand ready until cancelled; all work is done in `offer` and by the consumers themselves."""
        self.state = SinkState.READY
        self.reason = ""
        try:
            await asyncio.Event().wait()
        finally:
            self.state = SinkState.CLOSED

    async def drain(self, deadline_s: float) -> int:  # noqa: ARG002 - nothing is ever queued here
        """Return 0: nothing is queued here."""
        return 0

    # ---- what is newest -------------------------------------------------------------------------

    def seed(self, ticks: Iterable[DataIngestionFormat]) -> None:
        """Take in known values that are no news: those stored before a start, reference quotes.

        A value older than the one already here is ignored. Conflating consumers are shown it,
        consumers of every tick are not: it is not part of the stream.
        """
        for tick in ticks:
            newest = self._newest.get(tick.symbol)
            if newest is not None and tick.timestamp <= newest.timestamp:
                continue
            self._newest[tick.symbol] = tick
            audience = self._audiences.get(tick.symbol)
            if audience is not None and audience.conflated:
                # Its position, if any, is history: a client must not take it for the stream's.
                publication = Publication(msgspec.structs.replace(tick, position_ms=0, position_seq=0))
                for pending in audience.conflated.values():
                    pending[tick.symbol] = publication

    def seed_positions(self, positions: Mapping[str, Position]) -> None:
        """Take in the last stored position of each exchange, so that clients can resume across a restart."""
        for exchange, position in positions.items():
            if exchange != PROBE_EXCHANGE and position > START:
                self._seeded_positions[exchange] = position

    def restart_positions(self, positions: Mapping[str, Position]) -> None:
        """Forget every position until now, because the history is another one, and begin with these."""
        self._tips.clear()
        self._seeded_positions.clear()
        self.seed_positions(positions)

    def latest(self, instrument: str) -> DataIngestionFormat | None:
        """Return the newest tick of `instrument`, None when there is none yet."""
        return self._newest.get(instrument)

    def position(self, exchange: str) -> str | None:
        """Return the newest position of `exchange` as `<ms>-<seq>`, None before the first record."""
        tip = self._tips.get(exchange)
        if tip is not None:
            return tip.position
        seeded = self._seeded_positions.get(exchange)
        return None if seeded is None else f"{seeded[0]}-{seeded[1]}"

    def positions(self) -> dict[str, str]:
        """Return the newest position of every exchange that has one."""
        known = {*self._seeded_positions, *self._tips}
        return {exchange: text for exchange in sorted(known) if (text := self.position(exchange)) is not None}

    # ---- consumers ------------------------------------------------------------------------------

    def attach(self, outlet: Outlet, instruments: Iterable[str], pending: Pending | None = None) -> None:
        """Let `outlet` watch `instruments`: through `pending` (newest only), or every tick when it is None.

        An instrument that the outlet already watches changes over to this way.
        """
        added = []
        for instrument in instruments:
            audience = self._audiences.get(instrument)
            if audience is None:
                audience = self._audiences[instrument] = _Audience()
                added.append(instrument)
            if pending is None:
                audience.conflated.pop(outlet, None)
                audience.queued[outlet] = outlet.take
            else:
                audience.queued.pop(outlet, None)
                audience.conflated[outlet] = pending
        self._tell_interest(added, ())

    def detach(self, outlet: Outlet, instruments: Iterable[str]) -> None:
        """End the outlet's watch of `instruments`; those it does not watch are ignored."""
        removed = []
        for instrument in instruments:
            audience = self._audiences.get(instrument)
            if audience is None:
                continue
            audience.conflated.pop(outlet, None)
            audience.queued.pop(outlet, None)
            if not audience.conflated and not audience.queued:
                del self._audiences[instrument]
                removed.append(instrument)
        self._tell_interest((), removed)

    def watched(self) -> frozenset[str]:
        """Return every instrument, and every `EXCHANGE:*`, that has a consumer."""
        return frozenset(self._audiences).union(f"{exchange}:*" for exchange in self._exchange_audiences)

    async def subscribe(
        self,
        instruments: Iterable[str],
        *,
        delivery: Delivery = "all",
        limit: int = DEFAULT_QUEUE_LIMIT,
    ) -> AsyncIterator[Record | Skipped]:
        """Yield the records of `instruments` (keys or `EXCHANGE:*`) from now on, for ever.

        `all` yields every tick in order; a consumer more than `limit` records behind loses its oldest
        ones and finds a `Skipped` in their place. `latest` yields the newest tick of each instrument
        and passes over those in between. Control records come in order with the ticks. The
        subscription begins with the first `anext` and ends when the iterator is closed.
        """
        consumer = _Consumer(self, delivery, limit)
        keys = list(dict.fromkeys(instruments))
        singles = [key for key in keys if not key.endswith(":*")]
        exchanges = [key[:-2] for key in keys if key.endswith(":*")]
        wholly = set(exchanges)
        singles = [key for key in singles if key.partition(":")[0] not in wholly]
        self.attach(consumer, singles)
        self.attach_exchanges(consumer, exchanges)
        try:
            while True:
                yield await consumer.next()
        finally:
            self.detach(consumer, singles)
            self.detach_exchanges(consumer, exchanges)

    def attach_exchanges(self, outlet: Outlet, exchanges: Iterable[str]) -> None:
        """Let `outlet` take every record of `exchanges`, of whatever instrument."""
        for exchange in exchanges:
            if not self._exchange_audiences.setdefault(exchange, {}):
                self._tell_interest((f"{exchange}:*",), ())
            self._exchange_audiences[exchange][outlet] = outlet.take

    def detach_exchanges(self, outlet: Outlet, exchanges: Iterable[str]) -> None:
        """End that; harmless where it does not."""
        for exchange in exchanges:
            audience = self._exchange_audiences.get(exchange, {})
            if audience.pop(outlet, None) is not None and not audience:
                del self._exchange_audiences[exchange]
                self._tell_interest((), (f"{exchange}:*",))

    def _offer_control(self, record: ControlRecord) -> None:
        if self.on_control is not None:
            self.on_control(record)
        outlets: dict[Outlet, None] = dict.fromkeys(self._exchange_audiences.get(record.exchange, ()))
        if is_exchange_wide(record):
            prefix = f"{record.exchange}:"
            for instrument, audience in self._audiences.items():
                if instrument.startswith(prefix):
                    outlets.update(dict.fromkeys((*audience.conflated, *audience.queued)))
        else:
            found = self._audiences.get(record.symbol)
            if found is not None:
                outlets.update(dict.fromkeys((*found.conflated, *found.queued)))
        publication = Publication(record)
        for outlet in outlets:
            outlet.take_control(publication)

    def _tell_interest(self, added: Iterable[str], removed: Iterable[str]) -> None:
        if self.on_interest is not None:
            gained, lost = frozenset(added), frozenset(removed)
            if gained or lost:
                self.on_interest(gained, lost)


class _Consumer:
    """The outlet behind one Python subscription."""

    def __init__(self, broadcast: DataBroadcast, delivery: Delivery, limit: int) -> None:
        self._broadcast = broadcast
        self._latest_only = delivery == "latest"
        self._limit = max(1, limit)
        self._queue: deque[Record] = deque()
        self._pending: dict[str, Record] = {}
        self._skipped: dict[str, int] = {}
        self._wake = asyncio.Event()

    def take(self, publication: Publication) -> None:
        """Queue one tick, or remember it as its instrument's newest."""
        record = publication.record
        if self._latest_only:
            if self._broadcast.latest(record.symbol) is not record:
                return
            self._pending[record.symbol] = record
        else:
            self._append(record)
        self._wake.set()

    def take_control(self, publication: Publication) -> None:
        """Queue one control record behind the ticks before it that it concerns."""
        record = publication.record
        concerned = [
            symbol
            for symbol, tick in self._pending.items()
            if symbol == record.symbol or (is_exchange_wide(record) and tick.exchange == record.exchange)
        ]
        for symbol in concerned:
            self._append(self._pending.pop(symbol))
        self._append(record)
        self._wake.set()

    def _append(self, record: Record) -> None:
        self._queue.append(record)
        if len(self._queue) > self._limit:
            lost = self._queue.popleft()
            self._skipped[lost.symbol] = self._skipped.get(lost.symbol, 0) + 1

    async def next(self) -> Record | Skipped:
        """Return the next item, waiting for one if need be."""
        while True:
            if self._skipped:
                skipped, self._skipped = self._skipped, {}
                return Skipped(sum(skipped.values()), skipped)
            if self._queue:
                return self._queue.popleft()
            if self._pending:
                return self._pending.pop(next(iter(self._pending)))
            self._wake.clear()
            await self._wake.wait()
