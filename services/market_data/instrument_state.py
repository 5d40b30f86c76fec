"""What the normaliser must remember of one instrument at one provider. Pure."""

from __future__ import annotations

from math import nan
from typing import NamedTuple

from services.market_data.instruments import InstrumentMapping
from services.market_data.normaliser_counters import ExchangeTally
from services.market_data.pricing import price_grid, reference_price
from services.market_data.quality import (
    EARLIEST_EVENT_MS,
    SUSPECTS_BEFORE_ACCEPTED,
    allows_negative,
    band_ratio,
    has_volume,
)
from services.market_data.records import FLAG_DELAYED, DataIngestionFormat, ProviderTick

SECOND_MS = 1_000
_REMEMBERED_SECONDS = 8
REMEMBERED_TICKS = 8
_NEVER_MS = 1 << 62
_NOTHING = DataIngestionFormat("", 0.0, None, 0, "")


class InstrumentState:
    """One instrument at one provider: its mapping prepared for use, and what came of it last.

    `last` is the newest tick that was not late, with its time as it was stored; `last_raw_event_ms` is that
    time as the source said it, `last_volume` the newest cumulative volume that was known, `baseline` the
    one that the next quantity is counted from. `seeded_ms` is the time of a tick stored by an earlier run.
    """

    __slots__ = (
        "band",
        "base_flags",
        "baseline",
        "begins_ms",
        "clean_price",
        "day_high",
        "day_low",
        "day_mark",
        "day_open",
        "ends_ms",
        "exchange",
        "grid",
        "instrument",
        "known",
        "last",
        "last_raw_event_ms",
        "last_volume",
        "late_slots",
        "mapping",
        "negative_allowed",
        "oi",
        "on_grid",
        "previous_close",
        "price_decimals",
        "raw_close",
        "raw_decimals",
        "raw_high",
        "raw_low",
        "raw_open",
        "raw_price",
        "recent",
        "reference",
        "seeded_ms",
        "suspects",
        "tally",
        "volume_means_trades",
    )

    def __init__(self, mapping: InstrumentMapping, *, delayed: bool) -> None:
        self.tally = ExchangeTally()
        self.use(mapping, delayed=delayed)
        self.baseline: int | None = None
        self.last = _NOTHING
        self.last_raw_event_ms = 0
        self.last_volume: int | None = None
        self.seeded_ms = 0
        self.oi: int | None = None
        self.previous_close: float | None = None
        self.day_open: float | None = None
        self.day_high: float | None = None
        self.day_low: float | None = None
        self.reference = 0.0
        self.suspects = 0
        self.late_slots: dict[int, int] | None = None
        # Numbers that stand for what was said: there are as many of these lists as instruments.
        self.recent: list[int] = []

    def use(self, mapping: InstrumentMapping, *, delayed: bool) -> None:
        """Take over a mapping, which may be a changed one of the same instrument."""
        self.mapping = mapping
        self.instrument, self.exchange = mapping.instrument, mapping.exchange
        if mapping.delivery is not None:
            delayed = mapping.delivery != "real_time"
        self.base_flags = FLAG_DELAYED if delayed else 0
        self.grid = price_grid(mapping.tick_size)
        self.known = self.grid.known
        self.negative_allowed = allows_negative(mapping)
        self.volume_means_trades = has_volume(mapping)
        self.band = band_ratio(mapping.asset_class)
        begins_ms, self.ends_ms = certain_times(mapping)
        self.begins_ms = max(begins_ms, EARLIEST_EVENT_MS)
        # Not equal to anything: what comes next is put on this grid.
        self.raw_price = nan
        self.price_decimals: int | None = None
        self.clean_price = nan
        self.on_grid = True
        self.raw_open: float | None = nan
        self.raw_high: float | None = nan
        self.raw_low: float | None = nan
        self.raw_close: float | None = nan
        self.raw_decimals: int | None = None
        self.day_mark: bytes | None = None

    def seed(self, newest: DataIngestionFormat) -> None:
        """Recall the newest stored tick."""
        # The stored time may lie anywhere in the source's second; the source itself said the second's start.
        self.last_raw_event_ms = newest.timestamp - newest.timestamp % SECOND_MS
        self.seeded_ms = newest.timestamp
        self.last = newest
        self.reference = newest.price
        self.last_volume = newest.cumulative_volume

    def take_day(self, tick: ProviderTick) -> None:
        """Clean the day's prices, the same in most ticks, and remember of which they were made.

        A previous close that a tick does not give stays; the day's prices are those of the last tick.
        """
        decimals = tick.price_decimals
        changed = decimals != self.raw_decimals
        close = tick.previous_close
        if close is not None and (changed or close != self.raw_close):
            self.previous_close, self.raw_close = reference_price(self.grid, close, decimals), close
        if (
            changed
            or tick.day_high != self.raw_high
            or tick.day_low != self.raw_low
            or tick.day_open != self.raw_open
        ):
            grid = self.grid
            self.raw_open, self.raw_high, self.raw_low = tick.day_open, tick.day_high, tick.day_low
            self.raw_decimals = decimals
            self.day_open = reference_price(grid, tick.day_open, decimals)
            self.day_high = reference_price(grid, tick.day_high, decimals)
            self.day_low = reference_price(grid, tick.day_low, decimals)
        self.day_mark = tick.day_mark

    def is_repeat(
        self,
        tick: ProviderTick,
        raw_event_ms: int,
        price: float,
        volume: int | None,
        bid: float | None,
        ask: float | None,
    ) -> bool:
        """Tell whether a tick says nothing that was not said before."""
        if raw_event_ms in (self.last_raw_event_ms, self.seeded_ms):
            last = self.last
            return (
                price == last.price
                and (volume is None or volume == self.last_volume)
                and (bid is None or bid == last.bid)
                and (ask is None or ask == last.ask)
                and (tick.bid_size is None or tick.bid_size == last.bid_size)
                and (tick.ask_size is None or tick.ask_size == last.ask_size)
            )
        return raw_event_ms < self.last_raw_event_ms and hash((raw_event_ms, price, volume)) in self.recent

    def outside_band(self, price: float) -> bool:
        """Tell whether a price is too far from its reference; after a few in a row it is the new one."""
        reference = self.reference or self.previous_close or 0.0
        if reference <= 0.0 or reference / self.band <= price <= reference * self.band:
            self.reference, self.suspects = price, 0
            return False
        self.suspects += 1
        if self.suspects > SUSPECTS_BEFORE_ACCEPTED:
            self.reference, self.suspects = price, 0
            return False
        return True

    def late_time(self, event_ms: int, resolution_ms: int) -> int:
        """Return the stored time of a late tick: in its own second, counted down from the second's end.

        Ticks in order count up from the second's start, so the two do not overwrite each other.
        """
        if resolution_ms < SECOND_MS:
            return event_ms
        second = event_ms - event_ms % SECOND_MS
        slots = self.late_slots
        if slots is None:
            slots = self.late_slots = {}
        slot = max(0, slots.get(second, SECOND_MS) - 1)
        if second not in slots and len(slots) >= _REMEMBERED_SECONDS:
            del slots[min(slots)]
        slots[second] = slot
        return second + slot


class PreparedInstruments(NamedTuple):
    """A set of instruments that a normaliser is about to take over."""

    states: dict[str, InstrumentState]
    changed: list[tuple[InstrumentState, InstrumentMapping]]
    tallies: dict[str, ExchangeTally]
    delayed: bool


def certain_times(mapping: InstrumentMapping) -> tuple[int, int]:
    """Return from which event time, and until before which, a symbol surely means the mapping's instrument.

    Vendors' times have whole seconds: in the second of a change nobody can say whose tick it is.
    """
    begins_ms, ends_ms = mapping.valid_from_ms, mapping.valid_to_ms
    return (
        0 if begins_ms is None else begins_ms - begins_ms % SECOND_MS + SECOND_MS,
        _NEVER_MS if ends_ms is None else ends_ms - ends_ms % SECOND_MS,
    )
