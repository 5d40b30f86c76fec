"""Two providers' prices of one instrument, compared; a mapping that cannot be right shows here. Pure.

Only fresh prices are compared, both real-time and of about the same moment: what is old may differ honestly.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping

import msgspec

from services.market_data.instruments import AssetClass

FRESH_MS = 15_000
"""Both prices are at most so old, and their own times at most so far apart."""
LIMIT_BPS: Mapping[AssetClass, float] = {
    AssetClass.EQUITY: 100.0,
    AssetClass.ETF: 100.0,
    AssetClass.INDEX: 50.0,
    AssetClass.FUTURE: 100.0,
    AssetClass.OPTION: 1_000.0,
    AssetClass.FX: 50.0,
    AssetClass.CRYPTO: 150.0,
}
"""From so many basis points apart on, two prices are hardly those of one instrument."""
ALARM_AFTER_MS = 600_000
"""So long they must differ, in every comparison, before it is an alarm."""
LEAST_COMPARISONS = 5
FORGOTTEN_AFTER_MS = 3_600_000
"""Without a comparison for so long, what was seen before proves nothing any more."""


class Quote(msgspec.Struct, frozen=True):
    """One provider's newest price of an instrument; times are UTC epoch ms, `symbol` is the provider's."""

    provider: str
    symbol: str
    price: float
    received_ms: int
    event_ms: int
    real_time: bool


class Dispute(msgspec.Struct):
    """Two providers that differ about an instrument: since when, how often compared, by how much at last."""

    instrument: str
    first: Quote
    second: Quote
    since_ms: int
    newest_ms: int
    comparisons: int
    bps: float
    alarmed: bool = False

    def text(self) -> str:
        """Say it in words for an operator."""
        minutes = (self.newest_ms - self.since_ms) // 60_000
        sides = " and ".join(
            f"{quote.provider} ({quote.symbol}) {quote.price:g}" for quote in (self.first, self.second)
        )
        return (
            f"{self.instrument}: {sides} are {self.bps:.0f} bps apart for {minutes} min; "
            "one of the two mappings names another instrument"
        )


class PriceComparison:
    """Compares the prices of every instrument that several providers bring, once a minute."""

    def __init__(self) -> None:
        self._disputes: dict[tuple[str, str, str], Dispute] = {}

    def compare(
        self, instrument: str, asset_class: AssetClass, quotes: Iterable[Quote], now_ms: int
    ) -> list[tuple[str, str, float]]:
        """Return (provider, provider, basis points) of each pair that can be compared now."""
        fresh = [quote for quote in quotes if _is_fresh(quote, now_ms)]
        found: list[tuple[str, str, float]] = []
        for place, first in enumerate(fresh):
            for second in fresh[place + 1 :]:
                if abs(first.event_ms - second.event_ms) > FRESH_MS:
                    continue
                bps = difference_bps(first.price, second.price)
                found.append((first.provider, second.provider, bps))
                self._note(instrument, first, second, bps, LIMIT_BPS[asset_class], now_ms)
        return found

    def alarms(self, now_ms: int) -> dict[str, Dispute]:
        """Return the disputes that have lasted too long, by instrument key."""
        for key, dispute in list(self._disputes.items()):
            if now_ms - dispute.newest_ms > FORGOTTEN_AFTER_MS:
                del self._disputes[key]
        return {dispute.instrument: dispute for dispute in self._disputes.values() if dispute.alarmed}

    def retain(self, instruments: Container[str]) -> None:
        """Forget the instruments that are no longer mapped."""
        for key in [key for key in self._disputes if key[0] not in instruments]:
            del self._disputes[key]

    def _note(
        self, instrument: str, first: Quote, second: Quote, bps: float, limit_bps: float, now_ms: int
    ) -> None:
        key = (instrument, first.provider, second.provider)
        dispute = self._disputes.get(key)
        if dispute is not None and (dispute.first.symbol, dispute.second.symbol) != (
            first.symbol,
            second.symbol,
        ):
            # Mapped anew: whatever was wrong may be right now.
            del self._disputes[key]
            dispute = None
        # An alarm ends well below the limit only, lest it come and go.
        if bps < (limit_bps / 2 if dispute is not None and dispute.alarmed else limit_bps):
            self._disputes.pop(key, None)
            return
        if dispute is None or now_ms - dispute.newest_ms > FORGOTTEN_AFTER_MS:
            self._disputes[key] = Dispute(instrument, first, second, now_ms, now_ms, 1, bps)
            return
        dispute.first, dispute.second, dispute.bps = first, second, bps
        dispute.newest_ms = now_ms
        dispute.comparisons += 1
        lasted_ms = now_ms - dispute.since_ms
        if lasted_ms >= ALARM_AFTER_MS and dispute.comparisons >= LEAST_COMPARISONS:
            dispute.alarmed = True


def difference_bps(first: float, second: float) -> float:
    """Return how far two prices are apart, in basis points of their mean."""
    mean = (abs(first) + abs(second)) / 2.0
    return abs(first - second) / mean * 10_000.0 if mean > 0.0 else 0.0


def _is_fresh(quote: Quote, now_ms: int) -> bool:
    return quote.real_time and quote.event_ms > 0 and abs(now_ms - quote.received_ms) <= FRESH_MS
