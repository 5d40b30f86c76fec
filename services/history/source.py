"""What the history service needs of a provider of past bars, and what all of them share.

A source asks one vendor for one window of one instrument at a time; windows, order, failover and storage
are decided above it. It keeps the vendor's quota and turns what goes wrong into errors of our tree.
"""

from __future__ import annotations

from abc import abstractmethod
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar

import msgspec

from services.errors import ProviderRateLimited
from services.market_data.bars import INTERVAL_MS, Interval
from services.market_data.clock import Clock
from services.market_data.instruments import InstrumentMapping
from services.on_demand_provider import Candle, HistoricalDataProvider
from services.rest.quota import Quota, QuotaLimits

DAY_MS = 86_400_000
PATIENCE_S = 30.0
FOUND_LEAVES = 0.5
"""The part of a vendor's requests of the day that the backfill leaves to what somebody asks for."""
ORDERED_LEAVES = 0.25
"""The part that a backfill that was ordered leaves to whoever waits for an answer."""


class Offer(msgspec.Struct, frozen=True, kw_only=True):
    """One interval a source has: how long one request may span, and how far back it goes (0: no limit)."""

    window_ms: int
    depth_ms: int = 0


class HistorySource(HistoricalDataProvider):
    """A provider of past bars behind a quota. `settings` returns its settings, read anew at every call."""

    code: ClassVar[str]
    offers: ClassVar[Mapping[str, Offer]]
    limits: ClassVar[QuotaLimits]
    has_adjusted: ClassVar[bool] = False
    """Whether prices adjusted for dividends can be had."""

    def __init__(
        self,
        *,
        clock: Clock,
        settings: Callable[[], Mapping[str, str]],
        quota: Quota,
        mapping_of: Callable[[str], InstrumentMapping | None] = lambda _: None,
    ) -> None:
        self.clock = clock
        self.quota = quota
        self._settings = settings
        self._mapping_of = mapping_of
        self.requests = 0
        self.failures: dict[str, int] = {}

    def offer(self, mapping: InstrumentMapping, interval: str) -> Offer | None:  # noqa: ARG002
        """Return what there is of an interval for an instrument; None where there is nothing."""
        return self.offers.get(interval)

    async def fetch(
        self,
        mapping: InstrumentMapping,
        interval: Interval,
        from_ms: int,
        to_ms: int,
        *,
        patience_s: float = PATIENCE_S,
        adjusted: bool = False,
        leave: float = 0.0,
    ) -> list[Candle]:
        """Return the finished bars that begin within [from_ms, to_ms), oldest first.

        A daily bar's start is any moment of its day. The span must fit the offer; `leave` is the part of
        the day's requests that is left to others. Raises a
        `ProviderError`, `WireFormatError`, or ValueError for what the source has not.
        """
        if self.offer(mapping, interval) is None:
            raise ValueError(f"{self.code} has no {interval} bars of {mapping.instrument}")
        if adjusted and not self.has_adjusted:
            raise ValueError(f"{self.code} has no adjusted prices")
        return await self._paced(
            lambda: self._ask(mapping, interval, from_ms, to_ms, adjusted), patience_s=patience_s, leave=leave
        )

    async def get_hist_candles(self, symbol: str, interval: str, count: int) -> list[Candle]:
        """Return the newest `count` finished bars of a provider symbol, oldest first.

        Raises a `ProviderError`, ValueError for an interval the provider has not or an unknown symbol.
        """
        mapping = self._mapping_of(symbol)
        if mapping is None:
            raise ValueError(f"{self.code} knows no {symbol}")
        offer = self.offer(mapping, interval)
        if offer is None or interval not in INTERVAL_MS:
            raise ValueError(f"{self.code} has no {interval} bars of {symbol}")
        stored: Interval = interval
        now_ms = self.clock.now_ms()
        oldest_ms = now_ms - offer.depth_ms if offer.depth_ms else 0
        found: list[Candle] = []
        to_ms, empty = now_ms, 0
        # Sessions are shorter than days: go back window by window until there are enough.
        while len(found) < count and to_ms > oldest_ms and empty < 2:
            from_ms = max(oldest_ms, to_ms - offer.window_ms)
            rows = await self.fetch(mapping, stored, from_ms, to_ms)
            empty = 0 if rows else empty + 1
            found = rows + found
            to_ms = from_ms
        return found[-count:]

    async def close(self) -> None:
        """Close what connections there are; harmless when there are none."""
        return

    @abstractmethod
    async def _ask(
        self, mapping: InstrumentMapping, interval: Interval, from_ms: int, to_ms: int, adjusted: bool
    ) -> list[Candle]:
        """Make one request and return its bars."""

    async def _paced(
        self, ask: Callable[[], Awaitable[list[Candle]]], *, patience_s: float, leave: float
    ) -> list[Candle]:
        await self.quota.take(patience_s, leave=leave)
        self.requests += 1
        try:
            return await ask()
        except ProviderRateLimited as error:
            self.quota.pause(error.retry_after_s or 5.0, str(error))
            raise


def begun_within(rows: list[Candle], from_ms: int, to_ms: int) -> list[Candle]:
    """Return those of ascending bars that begin within [from_ms, to_ms), UTC epoch ms."""
    begin = bisect_left(rows, from_ms, key=_start_ms)
    end = bisect_left(rows, to_ms, lo=begin, key=_start_ms)
    return rows if end - begin == len(rows) else rows[begin:end]


def _start_ms(row: Candle) -> int:
    return row[0] * 1000
