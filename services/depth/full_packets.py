"""Books that come with the ticks: five levels in every full packet of a provider's live feed.

Stands between a provider's message handler and the desk. Asks for nothing upstream: an instrument brings its
book as long as its ticks are subscribed. Costs nothing for instruments nobody wants the depth of.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from services.base_provider import BaseMarketDataProvider, ProviderState
from services.depth.book import best_first
from services.depth.source import BookTaker, in_slices
from services.errors import RequestRefused
from services.market_data.instruments import Candidates, InstrumentMapping, candidates_of
from services.market_data.pricing import PriceGrid
from services.market_data.updates import DEPTH_RECEIVED, Level

LEVELS = 5
_MOST = float("inf")
_OUT_OF_WORK = (ProviderState.PARKED, ProviderState.CLOSED)


class _Carried(NamedTuple):
    instrument: str
    grid: PriceGrid


class _Tap:
    """What hangs at one provider."""

    def __init__(self, desk: BookTaker, code: str) -> None:
        self.wanted: dict[str, _Carried] = {}
        self._take = desk.take
        self._lost = desk.lost
        self._code = code

    def book(self, symbol: str, bids: tuple[Level, ...], asks: tuple[Level, ...], received_ms: int) -> None:
        """Put a book on the instrument's price grid and hand it on."""
        instrument, grid = self.wanted[symbol]
        self._take(
            instrument,
            best_first(_on_grid(bids, grid), bids=True),
            best_first(_on_grid(asks, grid), bids=False),
            levels=LEVELS,
            provider_code=self._code,
            received_ms=received_ms,
            flags=DEPTH_RECEIVED,
        )

    def lost(self, symbols: Iterable[str]) -> None:
        """Tell whose books are old from now on."""
        wanted = self.wanted
        self._lost([wanted[symbol].instrument for symbol in symbols if symbol in wanted], LEVELS)


class FullPackets:
    """The source of five levels. `providers()` are the installed ones by code, as they are now."""

    levels = LEVELS
    capacity = None

    def __init__(
        self, desk: BookTaker, providers: Callable[[], Mapping[str, BaseMarketDataProvider]]
    ) -> None:
        self._desk = desk
        self._providers = providers
        self._rows: Candidates = {}
        self._grids: dict[str, PriceGrid] = {}
        self._taps: dict[str, _Tap] = {}
        self._homes: dict[str, tuple[str, str]] = {}

    def load(self, mappings: Iterable[InstrumentMapping]) -> None:
        """Take over which providers have which instrument, and under what name."""
        self._rows, self._grids = candidates_of(tuple(mappings)), {}
        self._desk.look_soon()

    def stand(self) -> Hashable:
        """Return what refusals depend on besides the mappings."""
        return tuple((code, id(it), it.state) for code, it in self._providers().items())

    def refusal(self, instrument: str) -> RequestRefused | None:
        """Return why no five levels of an instrument can be had; None when they can."""
        found = self._carrier(instrument)
        if found is None:
            return RequestRefused(
                f"no provider sends the order book of {instrument} with its ticks", reason="no_depth"
            )
        provider = found[1]
        if provider.state in _OUT_OF_WORK:
            return RequestRefused(
                f"{provider.name} has the order book of {instrument}, but it is {provider.state.value}: "
                f"{provider.reason}",
                reason="depth_unavailable",
            )
        return None

    async def carry(self, instruments: Sequence[str]) -> None:
        """Let the books of these through, and of no others."""
        wanted: dict[str, dict[str, _Carried]] = {}
        homes: dict[str, tuple[str, str]] = {}
        async for some in in_slices(instruments):
            self._place(some, wanted, homes)
        self._homes = homes
        for code in (*self._taps, *wanted):
            tap = self._taps.get(code)
            if tap is None:
                tap = self._taps[code] = _Tap(self._desk, code)
            tap.wanted = wanted.get(code, {})
        self._hang()

    async def change(self, added: Sequence[str], removed: Sequence[str]) -> None:
        """Let the books of `added` through as well, and of `removed` no longer."""
        for instrument in removed:
            code, symbol = self._homes.pop(instrument, ("", ""))
            if code in self._taps:
                self._taps[code].wanted.pop(symbol, None)
        wanted: dict[str, dict[str, _Carried]] = {}
        self._place(added, wanted, self._homes)
        for code, symbols in wanted.items():
            tap = self._taps.get(code)
            if tap is None:
                tap = self._taps[code] = _Tap(self._desk, code)
            tap.wanted.update(symbols)
        self._hang()

    def _place(
        self,
        instruments: Sequence[str],
        wanted: dict[str, dict[str, _Carried]],
        homes: dict[str, tuple[str, str]],
    ) -> None:
        for instrument in instruments:
            if (found := self._carrier(instrument)) is not None:
                row = found[0]
                grid = self._grids.get(instrument)
                if grid is None:
                    grid = self._grids[instrument] = PriceGrid(row.tick_size)
                symbol = row.provider_symbol
                wanted.setdefault(row.provider_code, {})[symbol] = _Carried(instrument, grid)
                homes[instrument] = row.provider_code, symbol

    def _hang(self) -> None:
        """Hang each tap at its provider while it lets anything through."""
        self._taps = {code: tap for code, tap in self._taps.items() if tap.wanted}
        for code, provider in self._providers().items():
            provider.depth_tap = self._taps.get(code)

    def status(self) -> dict[str, Any]:
        """Return how many books each provider is let bring."""
        providers = self._providers()
        return {
            "name": "full packets",
            "capacity": None,
            "carried": sum(len(tap.wanted) for tap in self._taps.values()),
            "state": {code: providers[code].state.value for code in self._taps if code in providers},
        }

    def _carrier(self, instrument: str) -> tuple[InstrumentMapping, BaseMarketDataProvider] | None:
        providers = self._providers()
        for row in self._rows.get(instrument, ()):
            provider = providers.get(row.provider_code)
            if provider is not None and provider.depth_levels(row.provider_symbol):
                return row, provider
        return None


def _on_grid(rows: tuple[Level, ...], grid: PriceGrid) -> tuple[Level, ...]:
    """Return the levels that exist, at the prices that the float32 of the wire were meant to be."""
    known, clean = grid.known, grid.clean
    return tuple(
        [
            ((known.get(price) or clean(price))[0], quantity, orders)
            for price, quantity, orders in rows
            if quantity and 0.0 < price < _MOST
        ]
    )
