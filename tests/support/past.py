"""The past on real servers: both vendors simulated, a database at head, Redis, and a clock of the day."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from services.history.backfill import BackfillDepth
from services.history.past import Past, PastConfig
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import SystemClock
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot
from services.market_data.records import ControlRecord
from simulators.dhan import DhanSimulator
from simulators.market import Market
from simulators.yahoo import YahooSimulator

RELIANCE = "NSE:RELIANCE"
NOON_MS = int(datetime(2026, 11, 12, 6, 30, tzinfo=UTC).timestamp() * 1000)
"""A Thursday at noon in Mumbai; NSE is open since 09:15."""


def mapping(
    instrument: str,
    provider: str,
    symbol: str,
    *,
    primary: bool = False,
    kind: AssetClass = AssetClass.EQUITY,
) -> InstrumentMapping:
    """Return one mapping; a symbol with a colon is Dhan's segment and security id."""
    segment, colon, security_id = symbol.partition(":")
    exchange, _, name = instrument.partition(":")
    return InstrumentMapping(
        mapping_id=1,
        instrument=instrument,
        exchange=exchange,
        symbol=name,
        name=name,
        asset_class=kind,
        currency="INR",
        provider_code=provider,
        search_code=symbol if not colon else f"{name}-EQ",
        segment=segment if colon else None,
        security_id=security_id if colon else None,
        is_primary=primary,
        priority=1 if primary else 2,
    )


NOTHING = BackfillDepth()
BOTH = (
    mapping(RELIANCE, "DHAN", "NSE_EQ:2885", primary=True),
    mapping(RELIANCE, "YF", "RELIANCE.NS"),
)


class FixedClock(SystemClock):
    """The machine's clock, except that the wall clock begins at `start_ms`."""

    def __init__(self, start_ms: int) -> None:
        super().__init__()
        self._offset_ms = start_ms - super().now_ms()

    def now_ms(self) -> int:
        """Return the time of the test's day."""
        return super().now_ms() + self._offset_ms

    def advance_ms(self, by_ms: int) -> None:
        """Let time pass."""
        self._offset_ms += by_ms


class PastRig(msgspec.Struct):
    """What a test of the past works with."""

    dhan: DhanSimulator
    yahoo: YahooSimulator
    clock: FixedClock
    settings: dict[str, str]
    database_url: str
    redis_url: str
    folder: Path
    published: list[ControlRecord]

    async def past(
        self,
        mappings: Sequence[InstrumentMapping] = BOTH,
        *,
        depth: BackfillDepth = NOTHING,
        fast: bool = True,
    ) -> Past:
        """Return a new one, as after a start; `fast` raises the limits of both sides."""
        past = Past(
            PastConfig(
                database_url=self.database_url,
                redis_url=self.redis_url,
                folder=self.folder,
                depth=depth,
            ),
            clock=self.clock,
            calendar=MarketCalendar(),
            settings=lambda: self.settings,
            publish=self.published.append,
        )
        past.load(MappingSnapshot(version=1, loaded_ms=0, providers=(), mappings=tuple(mappings)))
        if fast:
            for source in past.sources.values():
                limits = msgspec.structs.replace(source.quota.limits, per_second=1_000.0, per_day=0)
                source.quota.limits = limits
        await past.open()
        await past.lead("epoch-1")
        return past


@contextlib.asynccontextmanager
async def past_rig(
    database_url: str, redis_url: str, folder: Path, *, start_ms: int = NOON_MS, fast: bool = True
) -> AsyncIterator[PastRig]:
    """Yield a rig whose simulators share one market and the rig's clock."""
    clock, market = FixedClock(start_ms), Market()
    async with (
        DhanSimulator(market=market, now_ms=clock.now_ms) as dhan,
        YahooSimulator(market=market, now_ms=clock.now_ms) as yahoo,
    ):
        if fast:
            for charts in (dhan.charts, yahoo.charts):
                charts.limit.per_second, charts.limit.per_day = 1_000.0, 0
        settings = {
            "DHAN_CLIENT_ID": dhan.client_id,
            "DHAN_ACCESS_TOKEN": dhan.access_token,
            "DHAN_REST_URL": dhan.rest_url,
            "YAHOO_REST_URL": yahoo.rest_url,
        }
        yield PastRig(dhan, yahoo, clock, settings, database_url, redis_url, folder, [])
