"""What the routes need subscribed, and what no longer; collected until the manager hands it to the providers.

Stands between the router, which never waits, and the providers, which may take their time. What was warmed in
vain, or left, stays subscribed for a while, in case it is needed again.
"""

from __future__ import annotations

import asyncio

from services.market_data.instruments import InstrumentMapping
from services.routing.book import RouteBook

_A_TURN = 2_000


class Wishes:
    """Subscriptions to be made and let go, of the routes of one book."""

    def __init__(self, book: RouteBook) -> None:
        self._book = book
        self._wishes: dict[str, dict[str, bool]] = {}
        self._lingering: dict[tuple[str, str, str], float] = {}

    def take(self) -> dict[str, dict[str, bool]]:
        """Return what is to be subscribed (True) or let go (False) since the last time, by provider."""
        wishes, self._wishes = self._wishes, {}
        return wishes

    def want(self, row: InstrumentMapping) -> None:
        """Subscribe what a mapping names."""
        self._lingering.pop((row.instrument, row.provider_code, row.provider_symbol), None)
        self._wishes.setdefault(row.provider_code, {})[row.provider_symbol] = True

    def let_go(self, instrument: str, code: str) -> None:
        """Let a provider's subscription of an instrument go at once, unless it is the first in the order."""
        runtime = self._book.runtimes.get(code)
        symbol = runtime.symbol_of.get(instrument) if runtime is not None else None
        if symbol is not None and code != self._book.candidates[instrument][0].provider_code:
            self._wishes.setdefault(code, {})[symbol] = False

    def subscribe(self, instrument: str) -> None:
        """Wish for all that an instrument needs; what is subscribed already costs nothing."""
        if self._book.candidates.get(instrument) and self._book.wanted(instrument):
            for row in self._needed_of(instrument):
                self._wishes.setdefault(row.provider_code, {})[row.provider_symbol] = True

    async def needed(self) -> dict[str, set[str]]:
        """Return the symbols to be subscribed, by provider code; some thousand instruments a turn."""
        needed: dict[str, set[str]] = {code: set() for code in self._book.runtimes}
        for count, instrument in enumerate(list(self._book.candidates), start=1):
            if instrument in self._book.candidates and self._book.wanted(instrument):
                for row in self._needed_of(instrument):
                    needed.setdefault(row.provider_code, set()).add(row.provider_symbol)
            if count % _A_TURN == 0:
                await asyncio.sleep(0)
        return needed

    def needs(self, row: InstrumentMapping) -> bool:
        """Tell whether what a mapping names is to be subscribed just now."""
        book = self._book
        return (
            row.instrument in book.candidates
            and book.wanted(row.instrument)
            and row in self._needed_of(row.instrument)
        )

    def _needed_of(self, instrument: str) -> list[InstrumentMapping]:
        """Return the first in the order, who serves, and who may have to."""
        book = self._book
        rows, watch = book.candidates[instrument], book.watches.get(instrument)
        codes = {rows[0].provider_code, book.active.get(instrument)}
        if watch is not None:
            codes.update(watch.trials)
        return [
            row
            for row in rows
            if row.provider_code in codes
            or (instrument, row.provider_code, row.provider_symbol) in self._lingering
        ]

    def let_linger(self, instrument: str, *codes: str) -> None:
        """Let these subscriptions of an instrument go after a while, unless they are needed by then."""
        until_s = self._book.clock.monotonic_s() + self._book.rules.linger_s
        for code in codes:
            row = self._book.row(instrument, code)
            if row is not None and row is not self._book.candidates[instrument][0]:
                self._lingering[(instrument, code, row.provider_symbol)] = until_s

    def end_lingering(self, now_s: float) -> None:
        """Let go of what has lingered long enough."""
        book = self._book
        for key in [key for key, until_s in self._lingering.items() if until_s <= now_s]:
            del self._lingering[key]
            instrument, code, symbol = key
            watch, runtime = book.watches.get(instrument), book.runtimes.get(code)
            row = runtime.instrument_of.get(symbol) if runtime is not None else None
            if row is not None and row.instrument != instrument:
                # The symbol stands for another instrument by now, which sees to it itself.
                continue
            if book.active.get(instrument) != code and (watch is None or code not in watch.trials):
                self._wishes.setdefault(code, {})[symbol] = False
