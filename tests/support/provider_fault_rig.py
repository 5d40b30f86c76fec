"""A `ProviderManager` with the real Dhan provider on its simulator, and what a fault test asserts of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from services.base_provider import ProviderContext, ProviderState
from services.connection.transport import TransportLimits
from services.dhan_provider import DhanProvider
from services.market_data.clock import SystemClock
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry
from services.market_data.records import ControlRecord, DataIngestionFormat, Record
from services.pipeline.backoff import Backoff
from services.pipeline.supervisor import Supervisor
from services.provider_manager import ProviderManager
from simulators import DhanSimulator
from tests.support.eventually import eventually
from tests.support.loop_lag import LoopLag

EQUITY, SECOND = "NSE_EQ:2885", "NSE_EQ:1333"
KEYS = {EQUITY: "NSE:RELIANCE", SECOND: "NSE:HDFCBANK"}
QUICK = msgspec.structs.replace(
    DhanProvider.default_rules,
    transport=TransportLimits(open_timeout_s=0.5),
    ping_after_s=0.5,
    pong_within_s=0.5,
    stagger_s=0.0,
    pace_s=0.001,
    settle_s=0.02,
    close_within_s=0.3,
    resubscribe_missing_after_s=0.5,
)


class FaultRig:
    """The manager, its one provider, and every record it published. `url` may lead through a proxy."""

    def __init__(self, sim: DhanSimulator, url: str | None, mute_after_s: float | None) -> None:
        self.sim = sim
        self.settings = {
            "DHAN_FEED_URL": url or sim.url,
            "DHAN_CLIENT_ID": sim.client_id,
            "DHAN_ACCESS_TOKEN": sim.access_token,
        }
        self.published: list[Record] = []
        self.references: list[DataIngestionFormat] = []
        self.supervisor = Supervisor()
        self.lag = LoopLag()
        self.manager = ProviderManager(
            clock=SystemClock(),
            settings=lambda: dict(self.settings),
            publish=self.published.append,
            supervisor=self.supervisor,
            show_reference=self.references.append,
            factories={"DHAN": self._make},
            mute_after_s=mute_after_s,
        )
        self.provider: DhanProvider
        self.manager.load(
            MappingSnapshot(
                version=1,
                loaded_ms=SystemClock().now_ms(),
                providers=(ProviderEntry(code="DHAN", name="Dhan"),),
                mappings=tuple(_mapping(symbol, key) for symbol, key in KEYS.items()),
            )
        )

    def _make(self, context: ProviderContext) -> DhanProvider:
        context.poll_s = 0.02
        context.backoff = lambda: Backoff(base_s=0.05, cap_s=0.3)
        self.provider = DhanProvider(context, rules=QUICK)
        return self.provider

    @property
    def ticks(self) -> list[DataIngestionFormat]:
        return [record for record in self.published if isinstance(record, DataIngestionFormat)]

    @property
    def gaps(self) -> list[ControlRecord]:
        return [r for r in self.published if isinstance(r, ControlRecord) and r.type == "gap"]

    @property
    def ledger(self) -> dict[str, Any]:
        return self.manager.ledger()["DHAN"]

    async def streaming(self) -> None:
        """Wait until both instruments are subscribed at the simulator."""
        await eventually(lambda: {s for s, _ in self.sim.watched()} == set(KEYS), within_s=10)
        await eventually(lambda: self.provider.state is ProviderState.STREAMING, within_s=10)

    async def gap_of_each(self, reason: str) -> None:
        """Wait for the gap of every instrument; from before to, and this reason."""
        await eventually(lambda: {gap.symbol for gap in self.gaps} >= set(KEYS.values()), within_s=10)
        for gap in self.gaps:
            assert gap.fields["reason"] == reason, gap
            assert 0 < int(gap.fields["from"]) <= int(gap.fields["to"]), gap

    def check_balance(self) -> None:
        """Assert that every frame and every record is accounted for, and that the loop never stood."""
        ledger = self.ledger
        assert ledger["frames"] == ledger["decoded"] + sum(ledger["wire_errors"].values())
        rejected = sum(ledger["rejected"].values())
        assert ledger["records"] == ledger["accepted"] + ledger["merged"] + rejected
        self.lag.check()


@asynccontextmanager
async def fault_rig(
    sim: DhanSimulator, *, url: str | None = None, mute_after_s: float | None = None, wait: bool = True
) -> AsyncIterator[FaultRig]:
    """Run a manager on the simulator while the body lasts; its books must balance at the end."""
    rig = FaultRig(sim, url, mute_after_s)
    probe = asyncio.create_task(rig.lag.run())
    await rig.manager.start()
    try:
        if wait:
            await rig.streaming()
        yield rig
        rig.check_balance()
    finally:
        probe.cancel()
        await asyncio.wait([probe])
        await rig.manager.stop()
        await rig.supervisor.stop()


def _mapping(symbol: str, key: str) -> InstrumentMapping:
    segment, security_id = symbol.split(":")
    exchange, name = key.split(":")
    return InstrumentMapping(
        mapping_id=1,
        instrument=key,
        exchange=exchange,
        symbol=name,
        name=name,
        asset_class=AssetClass.EQUITY,
        currency="INR",
        provider_code="DHAN",
        search_code=f"{name}-EQ",
        is_primary=True,
        priority=1,
        segment=segment,
        security_id=security_id,
    )
