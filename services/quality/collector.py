"""QualityCollector: once a minute, looks at what every provider brings of every open exchange.

Stands beside the router: reads the pulses, counters and findings that are there anyway, and changes nothing.
Minutes in which a market is closed do not count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import date

import msgspec

from services.base_provider import BaseMarketDataProvider, ProviderState
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import Clock
from services.market_data.instruments import InstrumentMapping
from services.market_data.normaliser import Normaliser
from services.provider_runtime import ProviderRuntime
from services.quality.figures import DayFigures
from services.quality.histogram import Histogram
from services.quality.prices import FRESH_MS, Dispute, PriceComparison, Quote

REAL_TIME = "real_time"
_MINUTE_MS = 60_000
_STEP = 2_000


class _Marks(msgspec.Struct):
    """Sums at the last look, to take differences from."""

    ticks: int = 0
    duplicates: int = 0
    late: int = 0


class QualityCollector:
    """Keeps today's figures of each provider and exchange.

    `runtimes` are the providers by code, `faulty` how many instruments of a provider's exchange the judge of
    silence finds at fault.
    """

    def __init__(
        self,
        runtimes: Mapping[str, ProviderRuntime],
        *,
        clock: Clock,
        calendar: MarketCalendar,
        faulty: Callable[[str, str], int],
    ) -> None:
        self._runtimes = runtimes
        self._clock = clock
        self._calendar = calendar
        self._faulty = faulty
        self._figures: dict[tuple[date, str, str], DayFigures] = {}
        self._marks: dict[tuple[str, str], _Marks] = {}
        self.prices = PriceComparison()

    def look(self) -> None:
        """Take the figures of this minute, all at once."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[None]:
        """Take the figures of this minute, in short steps between which others may run."""
        now_ms = self._clock.now_ms()
        disagreements: dict[tuple[str, str], list[float]] = {}
        yield from self._compare(now_ms, disagreements)
        for code, runtime in list(self._runtimes.items()):
            provider = runtime.provider
            if provider is None:
                continue
            by_exchange: dict[str, list[InstrumentMapping]] = {}
            for mapping in runtime.instrument_of.values():
                by_exchange.setdefault(mapping.exchange, []).append(mapping)
            wanted = frozenset(provider.wanted)
            for exchange, mappings in by_exchange.items():
                yield
                moved = self._moved(code, exchange, runtime, mappings)
                is_open = self._calendar.in_session(exchange, now_ms)
                if not is_open or not _is_at_work(provider, runtime.normaliser):
                    continue
                yield
                asked = [mapping for mapping in mappings if mapping.provider_symbol in wanted]
                if not asked:
                    continue
                figures = self._today(code, exchange, now_ms)
                _observe(figures, runtime, asked, self._faulty(code, exchange), now_ms)
                figures.ticks += moved.ticks
                figures.duplicates += moved.duplicates
                figures.late += moved.late
                apart = disagreements.get((code, exchange), ())
                if apart:
                    sum_ = Histogram(figures.disagreement)
                    for bps in apart:
                        sum_.add(bps)
                    figures.disagreement = sum_.as_list()

    def figures(self) -> list[DayFigures]:
        """Return the figures of today and of days that were not let go yet."""
        return list(self._figures.values())

    def let_go(self, written: Iterable[DayFigures]) -> None:
        """Forget days that are over and written."""
        now_ms = self._clock.now_ms()
        for figures in written:
            if figures.day < self._calendar.trading_day(figures.exchange, now_ms):
                self._figures.pop(figures.key, None)

    def disputes(self) -> dict[str, Dispute]:
        """Return the instruments whose providers have differed for too long, by key."""
        return self.prices.alarms(self._clock.now_ms())

    # ---- inner ----------------------------------------------------------------------------------

    def _today(self, code: str, exchange: str, now_ms: int) -> DayFigures:
        key = (self._calendar.trading_day(exchange, now_ms), code, exchange)
        figures = self._figures.get(key)
        if figures is None:
            figures = self._figures[key] = DayFigures(*key)
        return figures

    def _moved(
        self, code: str, exchange: str, runtime: ProviderRuntime, mappings: list[InstrumentMapping]
    ) -> _Marks:
        """Return what was counted since the last look."""
        tally = runtime.normaliser.tallies.get(exchange)
        pulses = runtime.pulses
        now = _Marks(
            sum(
                pulse.ticks
                for mapping in mappings
                if (pulse := pulses.get(mapping.provider_symbol)) is not None
            ),
            tally.duplicates if tally else 0,
            tally.late if tally else 0,
        )
        before = self._marks.get((code, exchange), now)
        self._marks[code, exchange] = now
        # Pulses of mappings that went take their ticks along.
        return _Marks(
            max(0, now.ticks - before.ticks), now.duplicates - before.duplicates, now.late - before.late
        )

    def _compare(self, now_ms: int, found: dict[tuple[str, str], list[float]]) -> Iterator[None]:
        """Compare the providers of each instrument; adds basis points by provider and exchange to `found`."""
        quotes: dict[str, list[tuple[InstrumentMapping, Quote]]] = {}
        mapped: set[str] = set()
        for code, runtime in list(self._runtimes.items()):
            for number, (symbol, mapping) in enumerate(runtime.instrument_of.items()):
                if number % _STEP == 0:
                    yield
                mapped.add(mapping.instrument)
                pulse = runtime.pulses.get(symbol)
                if pulse is None or now_ms - pulse.received_ms > FRESH_MS or symbol not in runtime.flowing:
                    continue
                delivery = mapping.delivery or runtime.delivery
                quote = Quote(
                    code, symbol, pulse.price, pulse.received_ms, pulse.event_ms, delivery == REAL_TIME
                )
                quotes.setdefault(mapping.instrument, []).append((mapping, quote))
        yield
        self.prices.retain(mapped)
        for instrument, given in quotes.items():
            if len(given) < 2:
                continue
            mapping = given[0][0]
            pairs = self.prices.compare(
                instrument, mapping.asset_class, [quote for _, quote in given], now_ms
            )
            for first, second, bps in pairs:
                found.setdefault((first, mapping.exchange), []).append(bps)
                found.setdefault((second, mapping.exchange), []).append(bps)


def _is_at_work(provider: BaseMarketDataProvider, normaliser: Normaliser) -> bool:
    """Tell whether anything is to be expected; a provider that never got its credentials is no bad one."""
    if provider.state in (ProviderState.IDLE, ProviderState.PARKED, ProviderState.CLOSED):
        return normaliser.counters.accepted > 0
    return True


def _observe(
    figures: DayFigures, runtime: ProviderRuntime, asked: list[InstrumentMapping], faulty: int, now_ms: int
) -> None:
    connected = 0
    latency = Histogram(figures.latency)
    for mapping in asked:
        symbol = mapping.provider_symbol
        if symbol in runtime.flowing:
            connected += 1
        pulse = runtime.pulses.get(symbol)
        if pulse is not None and pulse.event_ms and 0 <= now_ms - pulse.received_ms < _MINUTE_MS:
            latency.add(pulse.received_ms - pulse.event_ms)
    figures.minutes += 1
    figures.expected += len(asked)
    figures.missing += len(asked) - connected
    figures.faulty += min(faulty, connected)
    figures.latency = latency.as_list()
