"""A `ProviderManager` with the real providers on their simulators, and what a fault test asserts of them.

    async with DhanSimulator(...) as dhan, YahooSimulator(...) as yahoo, fault_rig(dhan, yahoo) as rig:
        rig.feeds["DHAN"].provider ...

Everything is real from the socket to the sequencer; what is published is kept in a list instead of sinks.
On leaving, the accounts must balance and the loop must never have stood still.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from services.base_provider import ProviderContext, ProviderState
from services.connection.muteness import MuteRules
from services.connection.rules import ConnectionRules
from services.connection.transport import TransportLimits
from services.connection.websocket_provider import WebSocketProvider
from services.data_broadcast import DataBroadcast
from services.dhan_provider import DhanProvider
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import Clock, SystemClock
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot, ProviderEntry
from services.market_data.records import ControlRecord, DataIngestionFormat, Record
from services.pipeline.backoff import Backoff
from services.pipeline.sequencer import Sequencer
from services.pipeline.supervisor import Supervisor
from services.provider_manager import ProviderManager
from services.routing.rules import RoutingRules
from services.silence.judge import SilenceJudge
from services.yahoo_finance_connection import YahooFinanceConnection
from simulators import DhanSimulator, YahooSimulator
from simulators.journal import Journal
from simulators.market import Market
from tests.support.eventually import eventually
from tests.support.feed_oracle import FeedJudgement, judge_feed
from tests.support.loop_lag import LoopLag

Simulator = DhanSimulator | YahooSimulator
EQUITY, SECOND = "NSE_EQ:2885", "NSE_EQ:1333"
INDIAN = {EQUITY: "NSE:RELIANCE", SECOND: "NSE:HDFCBANK"}
AMERICAN = {"AAPL": "NASDAQ:AAPL", "MSFT": "NASDAQ:MSFT"}
QUICK_MUTE = MuteRules(after_s=1.0, window_s=0.5, windows=2, least_frames=300)
"""A connection with five frames a second is busy, and is given up after a second."""
UNRESOLVED_AFTER_S = 1.0


def quick(rules: ConnectionRules) -> ConnectionRules:
    """A vendor's rules with times that fit into a test."""
    return msgspec.structs.replace(
        rules,
        transport=TransportLimits(open_timeout_s=0.5),
        ping_after_s=0.5,
        pong_within_s=0.5,
        stagger_s=0.0,
        pace_s=0.001,
        settle_s=0.02,
        close_within_s=0.3,
        resubscribe_every_s=rules.resubscribe_every_s and 0.5,
        resubscribe_missing_after_s=rules.resubscribe_missing_after_s and 0.5,
    )


def dhan(rate: float = 20.0, **options: Any) -> DhanSimulator:
    """A Dhan whose ticks can be told apart."""
    return DhanSimulator(rate=rate, market=Market(identity=True), journal=Journal(), **options)


def yahoo(rate: float = 20.0, **options: Any) -> YahooSimulator:
    """A Yahoo whose ticks can be told apart."""
    return YahooSimulator(rate=rate, market=Market(identity=True), journal=Journal(), **options)


class Feed:
    """One provider on its simulator. `symbols` are provider symbols and their instrument keys."""

    def __init__(self, sim: Simulator, url: str | None, symbols: Mapping[str, str] | None) -> None:
        self.sim = sim
        self.kind: type[WebSocketProvider]
        if isinstance(sim, DhanSimulator):
            self.code, self.kind, self.symbols = "DHAN", DhanProvider, dict(symbols or INDIAN)
            self.url_name = "DHAN_FEED_URL"
            self.settings = {"DHAN_CLIENT_ID": sim.client_id, "DHAN_ACCESS_TOKEN": sim.access_token}
        else:
            self.code, self.kind, self.symbols = "YF", YahooFinanceConnection, dict(symbols or AMERICAN)
            self.url_name = "YAHOO_STREAM_URL"
            self.settings = {}
        self.settings[self.url_name] = url or sim.url
        self.provider: WebSocketProvider

    def make(self, context: ProviderContext) -> WebSocketProvider:
        context.poll_s = 0.02
        context.unresolved_after_s = UNRESOLVED_AFTER_S
        context.backoff = lambda: Backoff(base_s=0.05, cap_s=0.3)
        self.provider = self.kind(context, rules=quick(self.kind.default_rules))
        self.provider.mute_rules = QUICK_MUTE
        return self.provider

    @property
    def watched(self) -> set[str]:
        return {symbol for symbol, _ in self.sim.watched()}

    async def streaming(self) -> None:
        """Wait until every instrument is subscribed at the simulator."""
        await eventually(lambda: self.watched >= set(self.symbols), within_s=10)
        await eventually(lambda: self.provider.state is ProviderState.STREAMING, within_s=10)


class FaultRig:
    """The manager, its providers, and every record it published."""

    def __init__(
        self,
        feeds: list[Feed],
        *,
        always_open: bool,
        kinds: Mapping[str, AssetClass],
        tick_sizes: Mapping[str, float],
        clock: Clock,
        rules: RoutingRules | None = None,
        judge: SilenceJudge | None = None,
    ) -> None:
        self.feeds = {feed.code: feed for feed in feeds}
        self.first = feeds[0]
        self.sim = self.first.sim
        self.settings = {name: value for feed in feeds for name, value in feed.settings.items()}
        self.published: list[Record] = []
        self.references: list[DataIngestionFormat] = []
        self.supervisor = Supervisor()
        self.lag = LoopLag()
        self.clock = clock
        self.sequencer = Sequencer(clock)
        self.broadcast = DataBroadcast(clock)
        self.manager = ProviderManager(
            clock=clock,
            settings=lambda: dict(self.settings),
            publish=self._publish,
            supervisor=self.supervisor,
            show_reference=self.references.append,
            factories={feed.code: feed.make for feed in feeds},
            calendar=MarketCalendar(always_open=always_open),
            rules=rules,
            judge=judge,
        )
        self._kinds = kinds
        self._tick_sizes = tick_sizes
        self.manager.load(self.snapshot_of_feeds())

    def snapshot_of_feeds(self) -> MappingSnapshot:
        """The mappings as the feeds have them; the first feed is the first choice of what both know."""
        return MappingSnapshot(
            version=1,
            loaded_ms=self.clock.now_ms(),
            providers=tuple(ProviderEntry(code=feed.code, name=feed.code) for feed in self.feeds.values()),
            mappings=tuple(
                mapping_of(
                    feed.code,
                    symbol,
                    key,
                    self._kinds.get(key, AssetClass.EQUITY),
                    primary=feed is self.first or key not in self.first.symbols.values(),
                    tick_size=self._tick_sizes.get(key),
                )
                for feed in self.feeds.values()
                for symbol, key in feed.symbols.items()
            ),
        )

    def leave_alone_for(self, code: str, seconds: float) -> None:
        """Make the manager believe that a provider has been away for so long."""
        runtime = self.manager._runtimes[code]
        runtime.look()
        assert runtime._away_since_s is not None, "it is not away"
        runtime._away_since_s -= seconds

    def _publish(self, record: Record) -> None:
        self.sequencer.stamp(record)
        self.published.append(record)
        self.broadcast.offer(record)

    @property
    def provider(self) -> WebSocketProvider:
        return self.first.provider

    @property
    def keys(self) -> set[str]:
        return set(self.first.symbols.values())

    @property
    def ticks(self) -> list[DataIngestionFormat]:
        return [record for record in self.published if isinstance(record, DataIngestionFormat)]

    def ticks_of(self, instrument: str) -> list[DataIngestionFormat]:
        return [tick for tick in self.ticks if tick.symbol == instrument]

    def controls(self, kind: str) -> list[ControlRecord]:
        return [r for r in self.published if isinstance(r, ControlRecord) and r.type == kind]

    @property
    def gaps(self) -> list[ControlRecord]:
        return self.controls("gap")

    @property
    def ledger(self) -> dict[str, Any]:
        return self.manager.ledger()[self.first.code]

    async def streaming(self) -> None:
        """Wait until every instrument of every provider is subscribed."""
        for feed in self.feeds.values():
            await feed.streaming()

    async def gap_of_each(self, reason: str) -> None:
        """Wait for a gap of every instrument of the first provider, and of no other, for this reason."""
        await eventually(lambda: {gap.symbol for gap in self.gaps} >= self.keys, within_s=10)
        for gap in self.gaps:
            assert gap.symbol in self.keys, gap
            assert gap.fields["reason"] == reason, gap
            assert 0 < int(gap.fields["from"]) <= int(gap.fields["to"]), gap

    def gap_text(self) -> str:
        """How long the gaps were, in words."""
        longest_ms = max((int(gap.fields["to"]) - int(gap.fields["from"]) for gap in self.gaps), default=0)
        return f"{len(self.gaps)} declared gaps, the longest {longest_ms / 1000:.1f} s"

    async def settled(self) -> FeedJudgement:
        """Let each instrument trade once more, wait until that is published, and judge all of it."""
        for feed in self.feeds.values():
            feed.sim.set_rate(0)
            feed.sim.release_held()
            for symbol in feed.symbols:
                feed.sim.emit(symbol)
        recorded = -1
        # What was due before the rates were taken down may still come.
        while recorded != (recorded := sum(feed.sim.journal.recorded for feed in self.feeds.values())):
            await eventually(self._all_arrived, within_s=20)
            await asyncio.sleep(0.05)
        return self.judge()

    def _all_arrived(self) -> bool:
        arrived = {(tick.symbol, tick.price) for tick in self.ticks}
        return all(
            {
                key: tick.price for tick in feed.sim.journal.ticks if (key := feed.symbols.get(tick.symbol))
            }.items()
            <= arrived
            for feed in self.feeds.values()
        )

    def judge(self) -> FeedJudgement:
        """Compare all that was sent with all that was published; nothing may be unaccounted for."""
        sent = [tick for feed in self.feeds.values() for tick in feed.sim.journal.ticks]
        names = {symbol: key for feed in self.feeds.values() for symbol, key in feed.symbols.items()}
        verdict = judge_feed(self.published, sent, names)
        assert verdict.clean, verdict.problems
        return verdict

    def check_balance(self) -> None:
        """Assert that every frame and every record is accounted for, and that the loop never stood."""
        for code, ledger in self.manager.ledger().items():
            assert ledger["frames"] == ledger["decoded"] + sum(ledger["wire_errors"].values()), code
            rejected = sum(ledger["rejected"].values())
            assert ledger["records"] == ledger["accepted"] + ledger["merged"] + rejected, code
        assert len(self.ticks) == sum(ledger["passed"] for ledger in self.manager.ledger().values())
        self.lag.check()


@asynccontextmanager
async def fault_rig(
    *sims: Simulator,
    url: str | None = None,
    symbols: Mapping[str, str] | None = None,
    kinds: Mapping[str, AssetClass] | None = None,
    tick_sizes: Mapping[str, float] | None = None,
    clock: Clock | None = None,
    always_open: bool = True,
    wait: bool = True,
    rules: RoutingRules | None = None,
    judge: SilenceJudge | None = None,
    second_symbols: Mapping[str, str] | None = None,
) -> AsyncIterator[FaultRig]:
    """Run a manager on the simulators while the body lasts; its books must balance at the end.

    `url` (which may lead through a proxy) and `symbols` are of the first simulator, `kinds` says what an
    instrument is where it is no equity, `tick_sizes` where one has a grid. `second_symbols` are those of the
    second simulator; what both know, the first one serves.
    """
    feeds = [
        Feed(sim, url if sim is sims[0] else None, symbols if sim is sims[0] else second_symbols)
        for sim in sims
    ]
    rig = FaultRig(
        feeds,
        always_open=always_open,
        kinds=kinds or {},
        tick_sizes=tick_sizes or {},
        clock=clock or SystemClock(),
        rules=rules,
        judge=judge,
    )
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


def mapping_of(
    code: str,
    symbol: str,
    key: str,
    kind: AssetClass = AssetClass.EQUITY,
    *,
    primary: bool = True,
    tick_size: float | None = None,
) -> InstrumentMapping:
    """The row that maps one provider symbol to an instrument."""
    segment, _, security_id = symbol.partition(":")
    exchange, _, name = key.partition(":")
    return InstrumentMapping(
        mapping_id=1,
        instrument=key,
        exchange=exchange,
        symbol=name,
        name=name,
        asset_class=kind,
        currency="INR",
        provider_code=code,
        search_code=name if security_id else symbol,
        is_primary=primary,
        priority=1 if primary else 2,
        segment=segment if security_id else None,
        security_id=security_id or None,
        tick_size=tick_size,
        allow_delayed=True,
    )
