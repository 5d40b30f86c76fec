"""What tests of market depth share: a desk on a simulated Dhan, with its feeds, and all that it told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from services.depth.desk import DepthDesk
from services.depth.dhan_feed import DhanDepth20, DhanDepth200, DhanDepthFeed
from services.depth.dhan_source import DhanDepth
from services.depth.full_packets import FullPackets
from services.dhan_provider import DhanProvider
from services.market_data.clock import SystemClock
from services.market_data.instruments import AssetClass, InstrumentMapping
from services.market_data.updates import Level2Update
from services.pipeline.backoff import Backoff
from services.pipeline.sequencer import Sequencer
from simulators import DhanSimulator
from tests.support.providers import Recorder, running

KNOWN_BY = {"NSE:RELIANCE": "NSE_EQ:2885", "NSE:HDFCBANK": "NSE_EQ:1333", "NSE:TCS": "NSE_EQ:11536"}


def mapping(
    instrument: str, symbol: str, *, provider: str = "DHAN", tick_size: float = 0.05
) -> InstrumentMapping:
    """Return a mapping row of an instrument."""
    exchange, _, name = instrument.partition(":")
    segment, _, security_id = symbol.partition(":")
    return InstrumentMapping(
        mapping_id=hash(instrument) & 0xFFFF,
        instrument=instrument,
        exchange=exchange,
        symbol=name,
        name=name,
        asset_class=AssetClass.EQUITY,
        currency="INR",
        provider_code=provider,
        search_code=symbol,
        segment=segment if security_id else None,
        security_id=security_id or None,
        tick_size=tick_size,
        is_primary=True,
    )


class DepthRig:
    """A desk with all its sources on one simulator. `run` it; `heard` is all that the desk told."""

    def __init__(self, sim: DhanSimulator, **options: Any) -> None:
        self.sim = sim
        self.clock = SystemClock()
        self.settings = {
            "DHAN_FEED_URL": sim.url,
            "DHAN_DEPTH_20_URL": sim.depth_20_url,
            "DHAN_DEPTH_200_URL": sim.depth_200_url,
            "DHAN_CLIENT_ID": sim.client_id,
            "DHAN_ACCESS_TOKEN": sim.access_token,
        }
        self.mappings = [
            *(mapping(instrument, symbol) for instrument, symbol in KNOWN_BY.items()),
            mapping("NSE:NIFTY", "IDX_I:13"),
            mapping("BSE:RELIANCE", "BSE_EQ:500325"),
            mapping("NASDAQ:AAPL", "AAPL", provider="YF"),
        ]
        self.known = {row.instrument: row for row in self.mappings}
        recorder = Recorder(self.settings)
        recorder.settings = self.settings
        self.recorder = recorder
        self.live = DhanProvider(
            recorder.context, rules=msgspec.structs.replace(DhanProvider.default_rules, stagger_s=0.0)
        )
        self.account: DhanProvider | None = self.live
        self.sequencer = Sequencer(self.clock)
        self.desk = DepthDesk(
            self.clock, self.sequencer.stamp, known=lambda: self.known, **({"linger_s": 0.05} | options)
        )
        self.heard: list[Level2Update] = []
        self.desk.listen(self.heard.append)
        self.full = FullPackets(self.desk, lambda: {"DHAN": self.live})
        self.twenty, self.most = self._source(DhanDepth20), self._source(DhanDepth200)
        for source in (self.full, self.twenty, self.most):
            self.desk.add_source(source)
        self.load()

    def load(self) -> None:
        """Have everything take over the mappings."""
        self.known = {row.instrument: row for row in self.mappings}
        self.full.load(self.mappings)
        self.twenty.load(self.mappings)
        self.most.load(self.mappings)

    def _source(self, feed: type[DhanDepthFeed]) -> DhanDepth:
        return DhanDepth(
            feed,
            self.desk,
            self.clock,
            account=lambda: self.account,
            settings=lambda: dict(self.settings),
            spawn=self._spawn,
            open_markets=lambda: frozenset({"NSE"}),
            backoff=lambda: Backoff(base_s=0.02, cap_s=0.2),
            rules=msgspec.structs.replace(
                feed.default_rules, stagger_s=0.0, settle_s=0.02, close_within_s=0.4
            ),
        )

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        return asyncio.create_task(work, name=name)

    @asynccontextmanager
    async def running(self, *, live: bool = False) -> AsyncIterator[None]:
        """Run the desk and the depth feeds, and the live feed if asked to."""
        async with contextlib.AsyncExitStack() as stack:
            task = asyncio.create_task(self.desk.run())
            if live:
                await stack.enter_async_context(running(self.live))
            await stack.enter_async_context(running(self.twenty.feed))
            await stack.enter_async_context(running(self.most.feed))
            try:
                yield
                assert not task.done(), task
            finally:
                task.cancel()
                await asyncio.wait([task])

    def of(self, instrument: str) -> list[Level2Update]:
        """Return what was told of an instrument."""
        return [update for update in self.heard if update.symbol == instrument]
