"""From what a provider said to a tick that can be trusted, or a counted rejection.

One normaliser per provider stands between its decoded messages and the router. It knows the
instrument behind each provider symbol, cleans the price, finds the event time, turns cumulative
volume into traded quantity, and refuses what is damaged, stale or repeated. Pure: no I/O, no tasks.

    records in = accepted + merged + sum(rejected)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog

from services.market_data.calendar import trading_day
from services.market_data.instrument_state import (
    LAST_PLACE,
    SECOND_MS,
    InstrumentState,
    PreparedInstruments,
)
from services.market_data.instruments import InstrumentMapping
from services.market_data.normaliser_counters import ExchangeTally, NormaliserCounters
from services.market_data.odd_times import IST_OFFSET_MS, ZONE_ALARM_AFTER, OddTimes, time_in_order
from services.market_data.pricing import reference_price
from services.market_data.quality import (
    EARLIEST_EVENT_MS,
    FUTURE_TOLERANCE_MS,
    LARGEST_PRICE,
    STALE_AFTER_MS,
    refusal_of_price,
)
from services.market_data.records import (
    FLAG_LATE,
    FLAG_SKEWED,
    FLAG_SNAPSHOT,
    FLAG_SUSPECT,
    DataIngestionFormat,
    ProviderTick,
)

__all__ = ["IST_OFFSET_MS", "ZONE_ALARM_AFTER", "Normaliser", "PreparedInstruments"]

_log = structlog.get_logger(__name__)

_SAMPLE_EVERY_MS = 60_000


class Normaliser:
    """Normalises the ticks of one provider.

    `accept` returns the tick to pass on, or None after counting why not. A snapshot too old to be a
    tick is kept in `reference_quote` for whoever wants to show the last known price. `wall_step_ms()` is how
    far our clock was set since the start: times are believed that are right by the clock before or after.
    """

    __slots__ = ("__dict__", "__weakref__", "_states")

    def __init__(self, provider_code: str, wall_step_ms: Callable[[], int] = lambda: 0) -> None:
        self.provider_code = provider_code
        self.delayed = False
        """Whether the data is delayed where the mapping does not say; taken over by the next `load`."""
        self.counters = NormaliserCounters()
        self.reference_quote: DataIngestionFormat | None = None
        self._times = OddTimes(provider_code, self.counters, wall_step_ms)
        self._unmapped_logged_ms = 0
        self._unmapped_unlogged = 0
        self._states: dict[str, InstrumentState] = {}
        self.tallies: dict[str, ExchangeTally] = {}

    def load(self, mappings: Iterable[InstrumentMapping]) -> None:
        """Replace the set of instruments; those that stay keep their memory."""
        self.take_over(self.prepare(mappings, delayed=self.delayed))

    def prepare(self, mappings: Iterable[InstrumentMapping], *, delayed: bool) -> PreparedInstruments:
        """Return what `take_over` is to be given; changes nothing, so it may run in a thread."""
        states: dict[str, InstrumentState] = {}
        changed: list[tuple[InstrumentState, InstrumentMapping]] = []
        tallies = dict(self.tallies)
        for mapping in mappings:
            state = self._states.get(mapping.provider_symbol)
            if state is None or state.mapping.instrument != mapping.instrument:
                state = InstrumentState(mapping, delayed=delayed)
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
        if state is not None and newest.timestamp > state.last.timestamp:
            state.seed(newest)

    def newest(self, provider_symbol: str) -> tuple[float, int, int | None] | None:
        """Return price, event time (UTC epoch ms) and cumulative volume of a symbol's newest tick, if any."""
        state = self._states.get(provider_symbol)
        if state is None or not state.last.timestamp:
            return None
        return state.last.price, state.last.timestamp, state.last_volume

    def rebase(self, provider_symbols: Iterable[str]) -> None:
        """Forget the volume baselines of these symbols: what was traded in between is unknown."""
        for symbol in provider_symbols:
            state = self._states.get(symbol)
            if state is not None:
                state.baseline = None

    def accept(self, tick: ProviderTick, received_ms: int) -> DataIngestionFormat | None:
        """Return the normalised tick, or None when it was merged or refused (counted by reason)."""
        # The hot path: what nearly every tick needs stands here in one piece, what few need is called.
        counters = self.counters
        counters.records += 1
        state = self._states.get(tick.provider_symbol)
        if state is None:
            counters.reject("unmapped")
            self._sample_unmapped(tick.provider_symbol, received_ms)
            return None
        if tick.oi is not None:
            state.oi = tick.oi
        mark = tick.day_mark
        if mark is None or mark is not state.day_mark:
            state.take_day(tick)
        price = tick.price
        if price is None:
            counters.merged += 1
            return None
        if not 0.0 < price <= LARGEST_PRICE:
            refusal = refusal_of_price(price, negative_allowed=state.negative_allowed)
            if refusal is not None:
                counters.reject(refusal)
                return None

        raw_ms = event_ms = received_ms if tick.event_ms is None else tick.event_ms
        if not state.begins_ms <= event_ms < state.ends_ms:
            counters.reject("no_time" if event_ms < EARLIEST_EVENT_MS else "ambiguous")
            return None
        flags = tick.flags | state.base_flags
        resolution_ms = tick.event_resolution_ms
        stale = False
        if (
            tick.event_ms is None
            or self._times.suspects
            or not -FUTURE_TOLERANCE_MS <= received_ms - event_ms <= STALE_AFTER_MS
        ):
            timing = self._times.judge(state, tick, received_ms, flags)
            if timing is None:
                return None
            raw_ms, event_ms, resolution_ms, flags, stale = timing

        decimals = tick.price_decimals
        if price == state.raw_price and decimals == state.price_decimals:
            # The same as in the tick before, as most are; the common memory of prices is far away.
            clean_price, on_grid = state.clean_price, state.on_grid
        else:
            clean_price, on_grid = state.known.get(price) or state.grid.clean(price, decimals)
            state.raw_price, state.price_decimals = price, decimals
            state.clean_price, state.on_grid = clean_price, on_grid
        volume = tick.cumulative_volume if state.volume_means_trades else None
        bid, ask = tick.bid, tick.ask
        if bid is not None:
            bid = reference_price(state.grid, bid, decimals)
        if ask is not None:
            ask = reference_price(state.grid, ask, decimals)
        last, last_raw_ms = state.last, state.last_raw_event_ms
        # Most ticks have another price or volume than the last, or a later time; only the others are looked
        # at closely.
        if (
            raw_ms < last_raw_ms
            or (clean_price == last.price and (volume is None or volume == state.last_volume))
        ) and state.is_repeat(tick, raw_ms, clean_price, volume, bid, ask):
            counters.reject("duplicate")
            state.tally.duplicates += 1
            return None
        if stale:
            counters.reject("stale")
            if flags & FLAG_SNAPSHOT:
                self._keep_reference(state, tick, clean_price, event_ms, received_ms, volume, flags)
            return None
        if not on_grid:
            counters.note("off_tick")

        quantity = None
        skewed = flags & FLAG_SKEWED
        late = raw_ms < last_raw_ms and not skewed
        if late:
            flags |= FLAG_LATE
            counters.note("late")
            state.tally.late += 1
            event_ms = state.late_time(event_ms, resolution_ms)
        else:
            last_ms = last.timestamp
            if (
                last_ms < received_ms
                and 0 <= received_ms - event_ms < SECOND_MS == resolution_ms
                and not (skewed or event_ms % SECOND_MS)
            ):
                # What `time_in_order` says of a whole second that has just begun.
                event_ms = received_ms
            elif skewed or resolution_ms >= SECOND_MS:
                event_ms = time_in_order(last_ms, event_ms, resolution_ms, received_ms, skewed=bool(skewed))
            if volume is not None:
                state.last_volume = volume
                baseline, state.baseline = state.baseline, volume
                if baseline is not None:
                    quantity = volume - baseline
                    if quantity < 0:
                        quantity = None
                        if trading_day(state.exchange, event_ms) == trading_day(state.exchange, last_ms):
                            flags |= FLAG_SUSPECT
                            counters.note("volume_backwards")
                        else:
                            counters.note("volume_rebased")
            if band := state.band:
                reference = state.reference
                if reference / band <= clean_price <= reference * band and reference > 0.0:
                    state.reference = clean_price
                    state.suspects = 0
                elif state.outside_band(clean_price):
                    flags |= FLAG_SUSPECT
                    counters.note("suspect")
            if not skewed:
                state.last_raw_event_ms = raw_ms
        place = state.place
        state.recent[place] = hash((raw_ms, clean_price, volume))
        state.place = place + 1 & LAST_PLACE
        counters.accepted += 1
        record = DataIngestionFormat(
            state.instrument,
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
            state.exchange,
        )
        if not late:
            state.last = record
        return record

    def _keep_reference(
        self,
        state: InstrumentState,
        tick: ProviderTick,
        price: float,
        event_ms: int,
        received_ms: int,
        volume: int | None,
        flags: int,
    ) -> None:
        """Keep a snapshot that is too old to be a tick, for whoever shows the last known price."""
        decimals = tick.price_decimals
        self.reference_quote = DataIngestionFormat(
            symbol=state.instrument,
            price=price,
            volume=None,
            timestamp=event_ms,
            provider_code=self.provider_code,
            provider_symbol=tick.provider_symbol,
            received_ms=received_ms,
            cumulative_volume=volume,
            bid=reference_price(state.grid, tick.bid, decimals),
            ask=reference_price(state.grid, tick.ask, decimals),
            bid_size=tick.bid_size,
            ask_size=tick.ask_size,
            oi=state.oi,
            day_open=state.day_open,
            day_high=state.day_high,
            day_low=state.day_low,
            previous_close=state.previous_close,
            flags=flags,
            exchange=state.exchange,
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
