"""The stages of the daemon, each made once and told of those before it. Nothing here starts or decides.

The gateway and what rests on the daemon's own view come after them, in `live_data_ingestion`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from services.catalogue.loader import Catalogue
from services.catalogue.refresher import MappingRefresher
from services.catalogue.watch import MappingWatch
from services.daemon.config import IngestionConfig
from services.daemon.depth import Depth
from services.daemon.flow import Flow
from services.daemon.instruments import KnownInstruments
from services.daemon.news import News
from services.daemon.options import Options
from services.daemon.routing import Routing
from services.daemon.state import DaemonState
from services.daemon.storage import Storage
from services.data_broadcast import DataBroadcast
from services.diagnosis import Diagnosis
from services.gateway.limits import limits_for
from services.history.past import FOLDER as HISTORY_FOLDER
from services.history.past import Past, PastConfig
from services.market_data.bar_builder import BarBuilder
from services.market_data.bar_grid import BarGrid
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import Clock
from services.operations.health_probe import HealthProbe
from services.operations.notices import Notifier
from services.operations.vitals import Vitals
from services.pipeline.bar_sink import BarSink
from services.pipeline.giving_way import GivingWay
from services.pipeline.ledger import Account, LedgerAudit, provider_accounts, sink_account
from services.pipeline.loop_lag import LoopLag
from services.pipeline.sink import Sink
from services.pipeline.supervisor import Supervisor
from services.provider_registry import ProviderFactory
from services.storage.redis_sink import QUEUE_LIMIT
from services.storage.stream_keeper import StreamKeeper
from services.subscriptions import FILE as SUBSCRIPTIONS_FILE
from services.subscriptions import DynamicSubscriptions

CROWDED = QUEUE_LIMIT // 2
"""When so many records wait for one writer, providers read no further for a moment: a full queue drops."""
RECORD_BYTES = 1_024
"""What a queued record takes at most, with its texts and numbers."""


@dataclass(kw_only=True)
class Stages:
    """The parts the daemon runs and shows. `notifier` and `diagnosis` rest on its view and come after it."""

    demo: bool
    clock: Clock
    calendar: MarketCalendar
    grid: BarGrid
    state: DaemonState
    supervisor: Supervisor
    catalogue: Catalogue
    mappings: MappingRefresher
    known: KnownInstruments
    storage: Storage
    routing: Routing
    flow: Flow
    bars: BarSink
    sinks: tuple[Sink, ...]
    past: Past
    options: Options
    news: News
    depth: Depth
    streams: StreamKeeper
    probe: HealthProbe
    ledger: LedgerAudit
    vitals: Vitals
    loop_lag: LoopLag
    broadcast: DataBroadcast
    subscriptions: DynamicSubscriptions | None
    notifier: Notifier | None = None
    diagnosis: Diagnosis | None = None


def make_stages(
    config: IngestionConfig,
    clock: Clock,
    *,
    settings: Callable[[], Mapping[str, str]],
    factories: Mapping[str, ProviderFactory] | None,
    save_credentials: Callable[[Mapping[str, str]], None] | None,
    history_lost: Callable[[str], None],
    relieve: Callable[[bool], None],
) -> Stages:
    """Return the stages; `relieve(True)` is called when memory becomes short, `history_lost` as named."""
    state, flow, supervisor = DaemonState(started_ms=clock.now_ms()), Flow(clock), Supervisor()
    calendar = MarketCalendar(config.market_day_files, always_open=config.always_open)
    broadcast, grid, loop_lag = DataBroadcast(clock), BarGrid(calendar), LoopLag()
    known = KnownInstruments(config.pinned_instruments if config.dynamic_subscriptions else None)
    catalogue = Catalogue(
        config.database_url, config.state_dir / "mappings.json", clock, exchanges=config.exchanges
    )
    storage = Storage(config, clock, publish=flow.publish, history_lost=history_lost)
    bars = BarSink(lambda: BarBuilder(grid), clock, flow.publish, flow.flush)
    sinks: tuple[Sink, ...] = (*storage.writers, bars, broadcast)
    flow.connect(sinks, storage.writers)
    routing = Routing(
        config,
        clock,
        calendar,
        supervisor,
        broadcast,
        settings=settings,
        publish=flow.publish,
        factories=factories,
        save_credentials=save_credentials,
    )
    routing.providers.crowded = lambda: any(writer.queued > CROWDED for writer in storage.writers)
    past = _make_past(config, clock, calendar, settings, flow, bars, known, loop_lag)
    past.ledger.flowing = lambda instrument: state.running and routing.providers.delivers(instrument)
    depth = Depth(
        config,
        clock,
        settings=settings,
        supervisor=supervisor,
        calendar=calendar,
        stamp=flow.sequencer.stamp,
        providers=routing.providers.streaming_providers,
        known=lambda: known.mappings,
        connect=storage.leadership.connect,
        pacing=routing.first_connects,
    )
    subscriptions = (
        _make_subscriptions(
            config, clock, routing, known, lambda: broadcast.watched() | depth.needs_ticks_of()
        )
        if config.dynamic_subscriptions
        else None
    )
    return Stages(
        demo=config.demo,
        clock=clock,
        calendar=calendar,
        grid=grid,
        state=state,
        supervisor=supervisor,
        catalogue=catalogue,
        mappings=MappingRefresher(catalogue, MappingWatch(config.database_url)),
        known=known,
        storage=storage,
        routing=routing,
        flow=flow,
        bars=bars,
        sinks=sinks,
        past=past,
        options=Options(
            config, clock, settings=settings, quotas=past.quotas, may_write=storage.leadership.may_write
        ),
        news=News(
            config,
            clock,
            settings=settings,
            quotas=past.quotas,
            broadcast=broadcast,
            subscriptions=subscriptions,
            is_known=known.__contains__,
        ),
        depth=depth,
        streams=StreamKeeper(
            config.redis_url,
            clock=clock,
            exchanges=lambda: set(known.exchanges),
            max_age_ms=config.stream_max_age_ms,
        ),
        # The probe makes no bar: it passes the writers that take ticks.
        probe=HealthProbe(clock, flow.publish, (*storage.probed, bars, broadcast), supervisor.troubles),
        ledger=LedgerAudit(clock, lambda: _accounts((*sinks, *depth.sinks), routing)),
        vitals=_make_vitals(config, relieve),
        loop_lag=loop_lag,
        broadcast=broadcast,
        subscriptions=subscriptions,
    )


def _make_past(
    config: IngestionConfig,
    clock: Clock,
    calendar: MarketCalendar,
    settings: Callable[[], Mapping[str, str]],
    flow: Flow,
    bars: BarSink,
    known: KnownInstruments,
    loop_lag: LoopLag,
) -> Past:
    return Past(
        PastConfig(
            database_url=config.database_url,
            redis_url=config.redis_url,
            folder=config.state_dir / HISTORY_FOLDER,
            depth=config.backfill,
            retention_ms=config.bar_retention_ms,
            retention_by_exchange=config.bar_retention_by_exchange,
        ),
        clock=clock,
        calendar=calendar,
        settings=settings,
        publish=flow.publish,
        forming=bars.forming,
        refill=bars.refill,
        planned=known.kept_past,
        giving_way=GivingWay(lambda: loop_lag.worst_ms),
    )


def _make_subscriptions(
    config: IngestionConfig,
    clock: Clock,
    routing: Routing,
    known: KnownInstruments,
    watched: Callable[[], Collection[str]],
) -> DynamicSubscriptions:
    return DynamicSubscriptions(
        routing.providers,
        redis_url=config.redis_url,
        clock=clock,
        watched=watched,
        known=lambda: known.mappings,
        pinned=config.pinned_instruments,
        file=config.state_dir / SUBSCRIPTIONS_FILE,
        linger_s=config.subscription_linger_s,
    )


def _make_vitals(config: IngestionConfig, relieve: Callable[[bool], None]) -> Vitals:
    limits = limits_for(config.api_max_clients)
    return Vitals(
        limit_bytes=config.memory_limit_bytes,
        caps={
            "queues_mib": 3 * QUEUE_LIMIT * RECORD_BYTES,
            "clients_mib": limits.clients * limits.outbox_bytes,
        },
        relieve=relieve,
    )


def _accounts(sinks: tuple[Sink, ...], routing: Routing) -> list[Account]:
    accounts = [sink_account(sink) for sink in sinks]
    for code, figures in routing.providers.ledger().items():
        accounts += provider_accounts(code, figures)
    return accounts
