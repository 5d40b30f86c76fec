"""From what a provider said to a tick that can be trusted, or a counted rejection.

One normaliser per provider stands between its decoded messages and the router. It knows the
instrument behind each provider symbol, cleans the price, finds the event time, turns cumulative
volume into traded quantity, and refuses what is damaged, stale or repeated. Pure: no I/O, no tasks.

    records in = accepted + merged + sum(rejected)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import nan
from typing import NamedTuple

import msgspec
import structlog

from services.market_data.calendar import trading_day
from services.market_data.instruments import InstrumentMapping
from services.market_data.pricing import PriceGrid, price_grid, reference_price
from services.market_data.quality import (
    EARLIEST_EVENT_MS,
    FAR_FUTURE_MS,
    FUTURE_TOLERANCE_MS,
    LARGEST_PRICE,
    STALE_AFTER_MS,
    SUSPECTS_BEFORE_ACCEPTED,
    allows_negative,
    band_ratio,
    has_volume,
    refusal_of_price,
)
from services.market_data.records import (
    FLAG_DELAYED,
    FLAG_LATE,
    FLAG_SKEWED,
    FLAG_SNAPSHOT,
    FLAG_SUSPECT,
    DataIngestionFormat,
    ProviderTick,
)

_log = structlog.get_logger(__name__)

_SECOND_MS = 1_000
IST_OFFSET_MS = 19_800_000
"""How far India's clocks are ahead of UTC."""
_ZONE_TOLERANCE_MS = 60_000
ZONE_ALARM_AFTER = 100
"""So many ticks in a row that are ahead by that much are no coincidence."""
_REMEMBERED_SECONDS = 8
_CLAMPED_MS = 5_000
"""Where our clock is the only one, times stand still for at most so long after it was set back."""
_SAMPLE_EVERY_MS = 60_000
_NEVER_MS = 1 << 62


class NormaliserCounters(msgspec.Struct):
    """What became of the records of one provider. `merged` are reference updates without a price.

    `noted` counts remarks on accepted ticks (`off_tick`, `skewed`, `clock_stepped`, `volume_rebased` at a new
    day, `volume_backwards` within one, `suspect`, `late`).
    """

    records: int = 0
    accepted: int = 0
    merged: int = 0
    rejected: dict[str, int] = msgspec.field(default_factory=dict)
    noted: dict[str, int] = msgspec.field(default_factory=dict)

    def reject(self, reason: str) -> None:
        """Count one refused record."""
        self.rejected[reason] = self.rejected.get(reason, 0) + 1

    def note(self, remark: str) -> None:
        """Count one remark on an accepted tick."""
        self.noted[remark] = self.noted.get(remark, 0) + 1


class ExchangeTally(msgspec.Struct, gc=False):
    """What was not as it should be in the records of one exchange, for its quality score."""

    duplicates: int = 0
    late: int = 0


class _InstrumentState:
    """What must be remembered of one instrument at one provider."""

    __slots__ = (
        "band",
        "base_flags",
        "baseline",
        "begins_ms",
        "day_high",
        "day_low",
        "day_open",
        "ends_ms",
        "grid",
        "last_ask",
        "last_ask_size",
        "last_bid",
        "last_bid_size",
        "last_event_ms",
        "last_price",
        "last_raw_event_ms",
        "last_volume",
        "late_slots",
        "mapping",
        "negative_allowed",
        "oi",
        "previous_close",
        "raw_close",
        "raw_decimals",
        "raw_high",
        "raw_low",
        "raw_open",
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
        self.last_raw_event_ms = 0
        self.last_event_ms = 0
        self.seeded_ms = 0
        self.last_price = 0.0
        self.last_volume: int | None = None
        self.last_bid: float | None = None
        self.last_ask: float | None = None
        self.last_bid_size: int | None = None
        self.last_ask_size: int | None = None
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
        self.mapping = mapping
        if mapping.delivery is not None:
            delayed = mapping.delivery != "real_time"
        self.base_flags = FLAG_DELAYED if delayed else 0
        self.grid: PriceGrid = price_grid(mapping.tick_size)
        self.negative_allowed = allows_negative(mapping)
        self.volume_means_trades = has_volume(mapping)
        self.band = band_ratio(mapping.asset_class)
        self.begins_ms, self.ends_ms = certain_times(mapping)
        # Not equal to anything: what comes next is put on this grid.
        self.raw_open: float | None = nan
        self.raw_high: float | None = nan
        self.raw_low: float | None = nan
        self.raw_close: float | None = nan
        self.raw_decimals: int | None = None

    def take_day(self, tick: ProviderTick) -> None:
        """Clean the day's prices, which are the same in most ticks, and remember of which they were made."""
        grid, decimals = self.grid, tick.price_decimals
        self.raw_open, self.raw_high, self.raw_low = tick.day_open, tick.day_high, tick.day_low
        self.raw_decimals = decimals
        self.day_open = reference_price(grid, tick.day_open, decimals)
        self.day_high = reference_price(grid, tick.day_high, decimals)
        self.day_low = reference_price(grid, tick.day_low, decimals)


class PreparedInstruments(NamedTuple):
    """A set of instruments that a normaliser is about to take over."""

    states: dict[str, _InstrumentState]
    changed: list[tuple[_InstrumentState, InstrumentMapping]]
    tallies: dict[str, ExchangeTally]
    delayed: bool


class Normaliser:
    """Normalises the ticks of one provider.

    `accept` returns the tick to pass on, or None after counting why not. A snapshot too old to be a
    tick is kept in `reference_quote` for whoever wants to show the last known price. `wall_step_ms()` is how
    far our clock was set since the start: times are believed that are right by the clock before or after.
    """

    def __init__(self, provider_code: str, wall_step_ms: Callable[[], int] = lambda: 0) -> None:
        self.provider_code = provider_code
        self.delayed = False
        """Whether the data is delayed where the mapping does not say; taken over by the next `load`."""
        self.wall_step_ms = wall_step_ms
        self.counters = NormaliserCounters()
        self.reference_quote: DataIngestionFormat | None = None
        self._zone_suspects = 0
        self._behind_utc = False
        self._unmapped_logged_ms = 0
        self._unmapped_unlogged = 0
        self._states: dict[str, _InstrumentState] = {}
        self.tallies: dict[str, ExchangeTally] = {}

    def load(self, mappings: Iterable[InstrumentMapping]) -> None:
        """Replace the set of instruments; those that stay keep their memory."""
        self.take_over(self.prepare(mappings, delayed=self.delayed))

    def prepare(self, mappings: Iterable[InstrumentMapping], *, delayed: bool) -> PreparedInstruments:
        """Return what `take_over` is to be given; changes nothing, so it may run in a thread."""
        states: dict[str, _InstrumentState] = {}
        changed: list[tuple[_InstrumentState, InstrumentMapping]] = []
        tallies = dict(self.tallies)
        for mapping in mappings:
            state = self._states.get(mapping.provider_symbol)
            if state is None or state.mapping.instrument != mapping.instrument:
                state = _InstrumentState(mapping, delayed=delayed)
                state.tally = tallies.setdefault(mapping.exchange, state.tally)
            elif delayed != self.delayed or state.mapping != mapping:
                changed.append((state, mapping))
            states[mapping.provider_symbol] = state
        return PreparedInstruments(states, changed, tallies, delayed)

    def take_over(self, prepared: PreparedInstruments) -> None:
        """Go over to a prepared set of instruments; what did not change is not touched."""
        self.delayed = prepared.delayed
        self.tallies = prepared.tallies
        for state, mapping in prepared.changed:
            state.use(mapping, delayed=self.delayed)
            state.tally = self.tallies.setdefault(mapping.exchange, ExchangeTally())
        self._states = prepared.states

    def seed(self, provider_symbol: str, newest: DataIngestionFormat) -> None:
        """Recall the newest stored tick, so that a restart does not store the same one again."""
        state = self._states.get(provider_symbol)
        if state is None or newest.timestamp <= state.last_event_ms:
            return
        # The stored time may lie anywhere in the source's second; the source itself said the second's start.
        state.last_raw_event_ms = newest.timestamp - newest.timestamp % _SECOND_MS
        state.seeded_ms = state.last_event_ms = newest.timestamp
        state.last_price = state.reference = newest.price
        state.last_volume = newest.cumulative_volume
        state.last_bid, state.last_ask = newest.bid, newest.ask
        state.last_bid_size, state.last_ask_size = newest.bid_size, newest.ask_size

    def newest(self, provider_symbol: str) -> tuple[float, int, int | None] | None:
        """Return price, event time (UTC epoch ms) and cumulative volume of a symbol's newest tick, if any."""
        state = self._states.get(provider_symbol)
        if state is None or not state.last_event_ms:
            return None
        return state.last_price, state.last_event_ms, state.last_volume

    def rebase(self, provider_symbols: Iterable[str]) -> None:
        """Forget the volume baselines of these symbols: what was traded in between is unknown."""
        for symbol in provider_symbols:
            state = self._states.get(symbol)
            if state is not None:
                state.baseline = None

    def accept(self, tick: ProviderTick, received_ms: int) -> DataIngestionFormat | None:
        """Return the normalised tick, or None when it was merged or refused (counted by reason)."""
        counters = self.counters
        counters.records += 1
        state = self._states.get(tick.provider_symbol)
        if state is None:
            counters.reject("unmapped")
            self._sample_unmapped(tick.provider_symbol, received_ms)
            return None
        if tick.oi is not None:
            state.oi = tick.oi
        decimals = tick.price_decimals
        if (close := tick.previous_close) is not None and (
            close != state.raw_close or decimals != state.raw_decimals
        ):
            state.previous_close = reference_price(state.grid, close, decimals)
            state.raw_close = close
        price = tick.price
        if price is None:
            counters.merged += 1
            return None
        if not 0.0 < price <= LARGEST_PRICE:
            refusal = refusal_of_price(price, negative_allowed=state.negative_allowed)
            if refusal is not None:
                counters.reject(refusal)
                return None

        event_ms = received_ms if tick.event_ms is None else tick.event_ms
        flags = tick.flags | state.base_flags
        if event_ms < EARLIEST_EVENT_MS:
            counters.reject("no_time")
            return None
        if not state.begins_ms <= event_ms < state.ends_ms:
            counters.reject("ambiguous")
            return None
        resolution_ms = tick.event_resolution_ms
        raw_event_ms = event_ms
        stale = False
        if (
            tick.event_ms is None
            or self._zone_suspects
            or not received_ms - STALE_AFTER_MS <= event_ms <= received_ms + FUTURE_TOLERANCE_MS
        ):
            excused = False
            if tick.event_ms is None:
                if event_ms < state.last_event_ms:
                    # Only our own clock can have gone back, and nothing is late for that: a little is waited
                    # for, more is followed.
                    flags |= FLAG_SKEWED
                    counters.note("skewed")
                    if state.last_event_ms - event_ms <= _CLAMPED_MS:
                        event_ms = raw_event_ms = state.last_event_ms + 1
                    else:
                        state.last_raw_event_ms = event_ms - 1
            elif not received_ms - STALE_AFTER_MS <= event_ms <= received_ms + FUTURE_TOLERANCE_MS:
                excused = self._was_right_before(event_ms, received_ms)
            if excused:
                counters.note("clock_stepped")
            elif event_ms > received_ms + FUTURE_TOLERANCE_MS:
                if event_ms > received_ms + FAR_FUTURE_MS:
                    counters.reject("far_future")
                    return None
                flags |= FLAG_SKEWED
                counters.note("skewed")
                self._watch_zone(event_ms - received_ms)
                event_ms, resolution_ms = received_ms, 1
            elif event_ms < received_ms - STALE_AFTER_MS and not flags & FLAG_SNAPSHOT:
                self._watch_zone(event_ms - received_ms)
                if self._behind_utc:
                    flags |= FLAG_SKEWED
                    counters.note("skewed")
                    event_ms, resolution_ms = received_ms, 1
            elif self._zone_suspects and not flags & FLAG_SNAPSHOT:
                self._zone_suspects, self._behind_utc = 0, False
            stale = not excused and event_ms < received_ms - STALE_AFTER_MS

        grid = state.grid
        clean_price, on_grid = grid.known.get(price) or grid.clean(price, decimals)
        volume = tick.cumulative_volume if state.volume_means_trades else None
        bid = ask = None
        if tick.bid is not None:
            bid = reference_price(grid, tick.bid, decimals)
        if tick.ask is not None:
            ask = reference_price(grid, tick.ask, decimals)
        # Most ticks have another price than the last, or a later time; only the others are looked at closely.
        if (clean_price == state.last_price or raw_event_ms < state.last_raw_event_ms) and self._is_repeat(
            state, tick, raw_event_ms, clean_price, volume, bid, ask
        ):
            counters.reject("duplicate")
            state.tally.duplicates += 1
            return None
        if (
            tick.day_high != state.raw_high
            or tick.day_low != state.raw_low
            or tick.day_open != state.raw_open
            or decimals != state.raw_decimals
        ):
            state.take_day(tick)
        if stale:
            counters.reject("stale")
            if flags & FLAG_SNAPSHOT:
                self.reference_quote = DataIngestionFormat(
                    symbol=state.mapping.instrument,
                    price=clean_price,
                    volume=None,
                    timestamp=event_ms,
                    provider_code=self.provider_code,
                    provider_symbol=tick.provider_symbol,
                    received_ms=received_ms,
                    cumulative_volume=volume,
                    bid=bid,
                    ask=ask,
                    bid_size=tick.bid_size,
                    ask_size=tick.ask_size,
                    oi=state.oi,
                    day_open=state.day_open,
                    day_high=state.day_high,
                    day_low=state.day_low,
                    previous_close=state.previous_close,
                    flags=flags,
                    exchange=state.mapping.exchange,
                )
            return None
        if not on_grid:
            counters.note("off_tick")

        late = raw_event_ms < state.last_raw_event_ms and not flags & FLAG_SKEWED
        if late:
            flags |= FLAG_LATE
            counters.note("late")
            state.tally.late += 1
            event_ms = self._late_time(state, event_ms, resolution_ms)
            quantity = None
        else:
            event_ms = _time_in_order(state.last_event_ms, event_ms, resolution_ms, received_ms, flags)
            quantity = None
            if volume is not None:
                baseline, state.baseline = state.baseline, volume
                if baseline is not None:
                    quantity = volume - baseline
            if quantity is not None and quantity < 0:
                quantity = None
                if self._same_day(state, event_ms):
                    flags |= FLAG_SUSPECT
                    counters.note("volume_backwards")
                else:
                    counters.note("volume_rebased")
            if state.band and self._outside_band(state, clean_price):
                flags |= FLAG_SUSPECT
                counters.note("suspect")
            state.last_event_ms = event_ms
            state.last_raw_event_ms = raw_event_ms if not flags & FLAG_SKEWED else state.last_raw_event_ms
            state.last_price = clean_price
            if volume is not None:
                state.last_volume = volume
            state.last_bid = bid
            state.last_ask = ask
            state.last_bid_size = tick.bid_size
            state.last_ask_size = tick.ask_size
        recent = state.recent
        recent.append(hash((raw_event_ms, clean_price, volume)))
        if len(recent) > _REMEMBERED_SECONDS:
            del recent[0]
        counters.accepted += 1
        return DataIngestionFormat(
            state.mapping.instrument,
            clean_price,
            quantity,
            event_ms,
            self.provider_code,
            tick.provider_symbol,
            received_ms,
            volume,
            bid,
            ask,
            tick.bid_size,
            tick.ask_size,
            state.oi,
            state.day_open,
            state.day_high,
            state.day_low,
            state.previous_close,
            flags,
            state.mapping.exchange,
        )

    def _was_right_before(self, event_ms: int, received_ms: int) -> bool:
        """Tell whether a time that looks wrong now is right by our clock as it ran before it was set."""
        step_ms = self.wall_step_ms()
        before_ms = received_ms - step_ms
        return step_ms != 0 and before_ms - STALE_AFTER_MS <= event_ms <= before_ms + FUTURE_TOLERANCE_MS

    def _watch_zone(self, ahead_ms: int) -> None:
        """Raise one alarm when times are off by India's offset from UTC, tick after tick.

        Times that are behind would be refused as stale, all of them: from the alarm on the receive time
        stands in for those too.
        """
        if abs(abs(ahead_ms) - IST_OFFSET_MS) > _ZONE_TOLERANCE_MS:
            self._zone_suspects, self._behind_utc = 0, False
            return
        self._zone_suspects += 1
        if self._zone_suspects == ZONE_ALARM_AFTER:
            self._behind_utc = ahead_ms < 0
            _log.error(
                "provider_time_zone_wrong",
                provider=self.provider_code,
                ahead_ms=ahead_ms,
                ticks=ZONE_ALARM_AFTER,
                remedy="Indian time taken for UTC, or shifted twice? the receive time is used instead",
            )

    def _sample_unmapped(self, provider_symbol: str, received_ms: int) -> None:
        """Name one of the symbols that nobody mapped, once a minute."""
        if abs(received_ms - self._unmapped_logged_ms) < _SAMPLE_EVERY_MS:
            self._unmapped_unlogged += 1
            return
        _log.warning(
            "tick_unmapped",
            provider=self.provider_code,
            symbol=provider_symbol[:40],
            unlogged=self._unmapped_unlogged,
        )
        self._unmapped_logged_ms, self._unmapped_unlogged = received_ms, 0

    @staticmethod
    def _same_day(state: _InstrumentState, event_ms: int) -> bool:
        """Tell whether the exchange's day is still that of the tick before."""
        exchange = state.mapping.exchange
        return trading_day(exchange, event_ms) == trading_day(exchange, state.last_event_ms)

    @staticmethod
    def _is_repeat(
        state: _InstrumentState,
        tick: ProviderTick,
        raw_event_ms: int,
        price: float,
        volume: int | None,
        bid: float | None,
        ask: float | None,
    ) -> bool:
        """Tell whether the tick says nothing that was not said before."""
        if raw_event_ms in (state.last_raw_event_ms, state.seeded_ms):
            return (
                price == state.last_price
                and (volume is None or volume == state.last_volume)
                and (bid is None or bid == state.last_bid)
                and (ask is None or ask == state.last_ask)
                and (tick.bid_size is None or tick.bid_size == state.last_bid_size)
                and (tick.ask_size is None or tick.ask_size == state.last_ask_size)
            )
        return raw_event_ms < state.last_raw_event_ms and hash((raw_event_ms, price, volume)) in state.recent

    @staticmethod
    def _outside_band(state: _InstrumentState, price: float) -> bool:
        reference = state.reference or state.previous_close or 0.0
        if reference <= 0.0 or reference / state.band <= price <= reference * state.band:
            state.reference, state.suspects = price, 0
            return False
        state.suspects += 1
        if state.suspects > SUSPECTS_BEFORE_ACCEPTED:
            state.reference, state.suspects = price, 0
            return False
        return True

    @staticmethod
    def _late_time(state: _InstrumentState, event_ms: int, resolution_ms: int) -> int:
        """Return the stored time of a late tick: in its own second, counted down from the second's end.

        Ticks in order count up from the second's start, so the two do not overwrite each other.
        """
        if resolution_ms < _SECOND_MS:
            return event_ms
        second = event_ms - event_ms % _SECOND_MS
        slots = state.late_slots
        if slots is None:
            slots = state.late_slots = {}
        slot = max(0, slots.get(second, _SECOND_MS) - 1)
        if second not in slots and len(slots) >= _REMEMBERED_SECONDS:
            del slots[min(slots)]
        slots[second] = slot
        return second + slot


def certain_times(mapping: InstrumentMapping) -> tuple[int, int]:
    """Return from which event time, and until before which, a symbol surely means the mapping's instrument.

    Vendors' times have whole seconds: in the second of a change nobody can say whose tick it is.
    """
    begins_ms, ends_ms = mapping.valid_from_ms, mapping.valid_to_ms
    return (
        0 if begins_ms is None else begins_ms - begins_ms % _SECOND_MS + _SECOND_MS,
        _NEVER_MS if ends_ms is None else ends_ms - ends_ms % _SECOND_MS,
    )


def _time_in_order(last_ms: int, event_ms: int, resolution_ms: int, received_ms: int, flags: int) -> int:
    """Return the event time to store for a tick that is not late.

    A whole-second source gets the receive time when that lies in the same second, else the next free
    millisecond after the last tick, never leaving the second (there the ticks collapse).
    """
    if flags & FLAG_SKEWED:
        return event_ms if event_ms > last_ms or last_ms - event_ms > _SECOND_MS else last_ms + 1
    if resolution_ms < _SECOND_MS:
        return event_ms
    second = event_ms - event_ms % _SECOND_MS
    last_of_second = second + _SECOND_MS - 1
    stored = received_ms if second <= received_ms <= last_of_second else second
    if last_ms >= stored:
        stored = last_ms + 1
    return stored if stored <= last_of_second else last_of_second
