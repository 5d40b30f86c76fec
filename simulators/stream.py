"""The data side of a simulator: who wants which symbol, the timer that makes ticks, what faults do to them.

Stands between the market model and the connections. Each tick is encoded once per kind of
subscription, queued to every connection that wants it, journaled, and written in batches.
"""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections import Counter
from collections.abc import Coroutine, Iterable
from random import Random
from typing import Any, ClassVar, NamedTuple

import msgspec

from simulators import inject as injection
from simulators.connection import Connection
from simulators.faults import AnyFault
from simulators.journal import SentTick
from simulators.market import Instrument, Market, Tick
from simulators.schedule import Schedule
from simulators.server import WireServer
from simulators.subscriptions import Subscriptions

_TIMER_S = 0.01
_SLICE = 500
_BAD_PRICES = {
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "zero": 0.0,
    "absurd": 1e30,
}


class Listing(msgspec.Struct, frozen=True, kw_only=True):
    """An instrument under a vendor's own name, with what the vendor's packets say of it besides prices."""

    symbol: str
    instrument: Instrument
    segment: int = 0
    security_id: int = 0
    wire_id: str = ""
    exchange: str = ""
    currency: str = ""


class Encoded(NamedTuple):
    """The packets of one tick for one kind of subscription, and what the journal says of them."""

    packets: list[bytes]
    packet: str
    event_ms: int
    volume: int | None
    bid: float | None
    ask: float | None


class _Delivery(NamedTuple):
    connection: Connection
    packets: list[bytes]
    entry: SentTick


class StreamSimulator(WireServer):
    """A vendor's stream. `rate` is in ticks per second and symbol; with 0 only `emit` makes ticks.

    `any_symbol` makes up an instrument for every well-formed unknown symbol; otherwise those are ignored.
    """

    data_opcode: ClassVar[int]

    def __init__(
        self, *, market: Market | None = None, rate: float, any_symbol: bool = False, **server: Any
    ) -> None:
        super().__init__(**server)
        self.market = market or Market()
        self.schedule = Schedule(rate)
        self.subscriptions = Subscriptions(self.schedule)
        self.any_symbol = any_symbol
        self.ticks_made = 0
        self._random = Random(self.market.seed)
        self._listings: dict[str, Listing] = {}
        self._held: dict[str, list[_Delivery]] = {}
        self._tick_counts: Counter[str] = Counter()
        self._wanted = asyncio.Event()

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        return [*super()._work(), self._run_timer()]

    # Who wants what.

    def listing(self, symbol: str) -> Listing | None:
        """Return what a provider symbol stands for, None for an unknown one."""
        found = self._listings.get(symbol)
        if found is None:
            found = self._find_listing(symbol)
            if found is not None:
                self._listings[symbol] = found
        return found

    @abstractmethod
    def _find_listing(self, symbol: str) -> Listing | None:
        """Make the listing of a provider symbol that was not asked for before."""

    def watch(self, connection: Connection, symbol: str, variant: str) -> bool:
        """Let a connection receive a known symbol in one kind of packets; False when it does already."""
        added = self.subscriptions.add(connection, symbol, variant)
        self._wanted.set()
        return added

    def watched(self, connection: Connection | None = None) -> set[tuple[str, str]]:
        """Return (symbol, kind of packets) of all that a connection, or any connection, receives."""
        if connection is None:
            return self.subscriptions.all()
        return set(self.subscriptions.of_connection(connection))

    def forget(self, connection: Connection) -> None:
        """Drop everything that is known of a connection that has ended."""
        self.subscriptions.forget(connection)

    def drops_subscription(self) -> bool:
        """Tell whether the next requested symbol is to be forgotten."""
        dropped = self._random.random() < self.faults.drop_probability
        self.fault_counts["drop_subscriptions"] += dropped
        return dropped

    # Making ticks.

    async def _run_timer(self) -> None:
        last = time.monotonic()
        while True:
            if not len(self.schedule):
                self._wanted.clear()
                await self._wanted.wait()
                last = time.monotonic()
            await asyncio.sleep(_TIMER_S)
            now = time.monotonic()
            elapsed, last = now - last, now
            if self.faults.paused:
                continue
            due = self.schedule.due(elapsed, self.faults.flood_factor)
            for start in range(0, len(due), _SLICE):
                self._emit_batch(due[start : start + _SLICE])
                # Pings and requests are answered between slices even in a flood.
                await asyncio.sleep(0)

    def _emit_batch(self, symbols: Iterable[str]) -> None:
        touched: dict[int, Connection] = {}
        event_ms = self.now_ms() + self.faults.skew_ms
        for symbol in symbols:
            # Somebody may have unsubscribed between two slices.
            if symbol in self.subscriptions and not self.faults.is_muted(symbol):
                listing = self._listings[symbol]
                self._emit_tick(listing, listing.instrument.step(event_ms), touched)
        self._flush(touched.values())

    def emit(
        self,
        symbol: str,
        *,
        price: float | str | None = None,
        quantity: int | None = None,
        volume: int | None = None,
        event_ms: int | None = None,
    ) -> list[SentTick]:
        """Make one tick of a symbol now; return what was sent of it, one entry per connection and packet.

        Without `price`, `quantity` and `volume` the market takes its next step; else the price is unchanged
        and the quantity zero where not given, and `volume` is the cumulative volume after it. `event_ms` is
        UTC, default now; a wire with whole seconds cuts it to them. A muted symbol sends nothing. Raises
        KeyError for an unknown symbol.
        """
        listing = self.listing(symbol)
        if listing is None:
            raise KeyError(symbol)
        at_ms = self.now_ms() + self.faults.skew_ms if event_ms is None else event_ms
        if price is None and quantity is None and volume is None:
            tick = listing.instrument.step(at_ms)
        else:
            wanted = None if price is None else float(price)
            tick = listing.instrument.trade(at_ms, price=wanted, quantity=quantity, volume=volume)
        touched: dict[int, Connection] = {}
        sent = [] if self.faults.is_muted(symbol) else self._emit_tick(listing, tick, touched)
        self._flush(touched.values())
        return sent

    def _emit_tick(self, listing: Listing, tick: Tick, touched: dict[int, Connection]) -> list[SentTick]:
        faults, symbol = self.faults, listing.symbol
        self.ticks_made += 1
        if faults.bad_price is not None:
            damage = faults.take_bad_price(symbol)
            if damage is not None:
                self.fault_counts["bad_price"] += 1
                tick.price = -tick.price if damage == "negative" else _BAD_PRICES[damage]
                tick.fault = f"price_{damage}"
        deliveries = self._prepare(listing, tick, snapshot=False)
        if symbol in faults.truncate:
            size = faults.truncate.pop(symbol)
            self.fault_counts["truncated"] += 1
            for index, (connection, packets, entry) in enumerate(deliveries):
                entry.fault = "truncated"
                deliveries[index] = _Delivery(connection, [self.cut(packets[0], size)], entry)
        if faults.out_of_order_every:
            held = self._held.pop(symbol, None)
            self._tick_counts[symbol] += 1
            if held is not None:
                deliveries += held
            elif self._tick_counts[symbol] % faults.out_of_order_every == 0:
                self.fault_counts["out_of_order"] += 1
                self._held[symbol] = deliveries
                return []
        return self._dispatch(deliveries, touched)

    def _prepare(
        self, listing: Listing, tick: Tick, *, snapshot: bool, only: tuple[int, str] | None = None
    ) -> list[_Delivery]:
        encoded: dict[str, Encoded] = {}
        deliveries: list[_Delivery] = []
        sent_ms = self.now_ms()
        for key, connection in self.subscriptions.of_symbol(listing.symbol).items():
            if only is not None and key != only:
                continue
            number, variant = key
            if connection.congested:
                connection.skipped += 1
                continue
            made = encoded.get(variant)
            if made is None:
                made = encoded[variant] = self._encode(listing, tick, variant)
            entry = SentTick(
                self.provider,
                listing.symbol,
                tick.seq,
                tick.price,
                tick.decimals,
                made.event_ms,
                tick.quantity,
                made.volume,
                made.bid,
                made.ask,
                sent_ms,
                number,
                made.packet,
                snapshot,
                self.faults.copies,
                tick.fault,
            )
            deliveries.append(_Delivery(connection, made.packets, entry))
        return deliveries

    @abstractmethod
    def _encode(self, listing: Listing, tick: Tick, variant: str) -> Encoded:
        """Make the packets of a tick for one kind of subscription."""

    def cut(self, packet: bytes, size: int | None) -> bytes:
        """Return a packet torn after `size` bytes, or in the middle."""
        return packet[: len(packet) // 2 if size is None else size]

    def _dispatch(self, deliveries: list[_Delivery], touched: dict[int, Connection]) -> list[SentTick]:
        sent: list[SentTick] = []
        for connection, packets, entry in deliveries:
            if connection.closing:
                continue
            for packet in packets:
                connection.queue(packet)
            touched[connection.number] = connection
            self.journal.record(entry)
            sent.append(entry)
        return sent

    def _flush(self, touched: Iterable[Connection]) -> None:
        faults = self.faults
        for connection in touched:
            frames = connection.flush(
                self.data_opcode, packets_per_frame=faults.stacked_packets, copies=faults.copies
            )
            if faults.copies > 1:
                self.fault_counts["duplicate"] += frames
        self.journal.flush()

    def send_snapshot(self, connection: Connection, symbol: str, variant: str) -> None:
        """Send the last trade of a watched symbol again, or date it back by the snapshot age."""
        if self.faults.is_muted(symbol):
            return
        listing = self._listings[symbol]
        age_ms = int(self.faults.snapshot_age_s * 1000)
        if age_ms:
            self.fault_counts["snapshot_age"] += 1
        # Vendors repeat the last trade with its own time; what has not traded yet is dated now.
        event_ms = listing.instrument.last_event_ms
        if age_ms or not event_ms:
            event_ms = self.now_ms() + self.faults.skew_ms - age_ms
        tick = listing.instrument.last_tick(event_ms)
        touched: dict[int, Connection] = {}
        only = (connection.number, variant)
        self._dispatch(self._prepare(listing, tick, snapshot=True, only=only), touched)
        self._flush(touched.values())

    def release_held(self) -> None:
        """Send the ticks that were held back to arrive out of order."""
        touched: dict[int, Connection] = {}
        held, self._held = self._held, {}
        for deliveries in held.values():
            self._dispatch(deliveries, touched)
        self._flush(touched.values())

    # Control.

    def set_rate(self, rate: float, symbols: Iterable[str] | None = None) -> None:
        """Set ticks per second, of these provider symbols or of all without a rate of their own."""
        self.schedule.set_rate(rate, symbols)

    async def inject(self, fault: AnyFault) -> int:
        """Put a fault into effect; return how many connections it concerns.

        Raises ValueError for a fault that this vendor cannot have.
        """
        return await injection.inject(self, fault)

    def inject_own(self, fault: AnyFault) -> int:
        """Put one of the vendor's own faults into effect."""
        raise ValueError(f"{self.provider} cannot have the fault {fault.__struct_config__.tag!r}")

    def state(self) -> dict[str, object]:
        """Return what is going on, ready for JSON."""
        return {
            "provider": self.provider,
            "url": self.url,
            "rate": self.schedule.rate,
            "symbols_watched": len(self.subscriptions),
            "ticks_made": self.ticks_made,
            "handshakes": self.handshakes,
            "connections_opened": self.connections_opened,
            "connections": [
                {
                    "connection": it.number,
                    "open_s": round(time.monotonic() - it.opened_monotonic_s, 3),
                    "subscriptions": len(self.subscriptions.of_connection(it)),
                    "frames_sent": it.frames_sent,
                    "packets_skipped": it.skipped,
                }
                for it in self.connections.values()
            ],
            "faults": msgspec.to_builtins(self.faults),
            "fault_counts": {name: count for name, count in self.fault_counts.items() if count},
            "journal": {"recorded": self.journal.recorded, "forgotten": self.journal.forgotten},
        }
