"""LiveDataIngestion: wires the stages together, in the order they start and the order they stop.

    providers -> normaliser -> router (ProviderManager) -> sequencer -> bus
        -> time series, stream, latest value, bars, bar series, broadcast -> gateway -> clients
                        ^-- bar records --'

It owns the supervisor and therefore every task. It decides nothing about data. What talks to providers
or writes runs only while this daemon leads (`services.storage.leadership`); the gateway always runs, and
takes clients while it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog

from services.base_provider import BaseMarketDataProvider
from services.catalogue.loader import Catalogue
from services.catalogue.refresher import MappingRefresher, RefreshState
from services.catalogue.watch import MappingWatch
from services.credential_keeper import CredentialKeeper, market_hours
from services.credential_state import MarketHours
from services.data_broadcast import DataBroadcast
from services.database_url import shown_url
from services.diagnosis import Diagnosis, Sources
from services.errors import ConfigurationError, MarketdError, StorageError, TemporaryError
from services.gateway.backend import InstrumentView, Readiness
from services.gateway.limits import limits_for
from services.gateway.options_api import OptionDesk, interest_of
from services.gateway.server import Gateway, GatewayConfig
from services.history.backfill import BackfillDepth
from services.history.past import FOLDER as HISTORY_FOLDER
from services.history.past import Past, PastConfig
from services.learned_silence import FILE as SILENCE_FILE
from services.learned_silence import LearnedSilence
from services.market_data.bar_builder import BarBuilder
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import Interval
from services.market_data.calendar import SHIPPED as SHIPPED_MARKET_DAYS
from services.market_data.calendar import MarketCalendar
from services.market_data.candles import CoverageSpan, HistoryAnswer, HistoryRequest
from services.market_data.clock import Clock, SystemClock
from services.market_data.instruments import AssetClass, InstrumentMapping, MappingSnapshot
from services.market_data.records import PROBE_EXCHANGE, ControlRecord, Record
from services.market_data.records import DataIngestionFormat as DataIngestionFormat
from services.operations.first_connects import FILE as FIRST_CONNECTS
from services.operations.first_connects import FirstConnects
from services.operations.health_probe import HealthProbe
from services.operations.notices import Delivery, Notifier
from services.operations.state_dir import StateDirectory
from services.operations.troubles import ProviderCondition, nobody_delivers, told_gap, troubles
from services.operations.vitals import Vitals
from services.options.chain import Chain, Conventions, Style
from services.options.manager import OptionsManager
from services.options.source import DERIVATIVES_OF, Underlying
from services.options.sources import DEFAULT_ORDER, option_sources
from services.options.underlyings import Underlyings
from services.pipeline.bar_sink import BarSink
from services.pipeline.bus import Bus
from services.pipeline.draining import drain_all, until_hurried
from services.pipeline.hop_times import SAMPLE_EVERY_MS, HopTimes
from services.pipeline.interest import LINGER_S
from services.pipeline.ledger import Account, LedgerAudit, provider_accounts, sink_account
from services.pipeline.sequencer import Sequencer, parse_position
from services.pipeline.sink import Sink, SinkState
from services.pipeline.supervisor import Supervisor
from services.provider_manager import ProviderManager
from services.provider_registry import ProviderFactory
from services.quality.collector import QualityCollector
from services.quality.figures import score
from services.quality.writer import QualityWriter
from services.recording.frame_tap import FrameTap
from services.routing.event_writer import RouteEventWriter
from services.silence.judge import SilenceJudge
from services.storage.bar_recall import BarRecall
from services.storage.bar_series_writer import BAR_RETENTION_MS, BarSeriesWriter
from services.storage.bootstrap import last_positions, last_ticks, newest_in_streams
from services.storage.client import make_client
from services.storage.credentials import replace_credentials
from services.storage.entry import EntryEncoder
from services.storage.history_watch import HistoryWatch
from services.storage.ingest_reports import IngestReport, ReportWriter, this_process
from services.storage.latest_value_writer import LatestValueWriter
from services.storage.leadership import Leadership, LeasePolicy, LeaseTimes, Role
from services.storage.led_times import LED_TIMES_NAME, LedTimes
from services.storage.lookup import stored_newest
from services.storage.losses import LossDeclaration
from services.storage.option_interest import OptionInterestStore
from services.storage.redis_lease import RedisLease
from services.storage.redis_sink import QUEUE_LIMIT, RedisSink
from services.storage.shard import Shard
from services.storage.spool import FOLDER, LIMIT_BYTES, Spool
from services.storage.stream_history import StreamHistory
from services.storage.stream_keeper import STREAM_MAX_AGE_MS, StreamKeeper
from services.storage.stream_writer import StreamWriter
from services.storage.time_series_writer import TimeSeriesWriter
from services.subscriptions import FILE as SUBSCRIPTIONS_FILE
from services.subscriptions import DynamicSubscriptions

_log = structlog.get_logger(__name__)

DRAIN_DEADLINE_S = 10.0
STEP_DOWN_S = 1.0
ROUTE_EVENTS_WITHIN_S = 1.0
LEADING_TASKS = (
    "credentials",
    "mappings",
    "streams",
    "health_probe",
    "history",
    "losses",
    "ledger",
    "route_events",
    "silence",
    "quality",
    "past",
    "reports",
)
"""What runs only while this daemon leads, besides providers, writers and dynamic subscriptions."""
_RECALL_AGAIN_S = 0.5
RECORD_BYTES = 1_024
"""What a queued record takes at most, with its texts and numbers."""


class IngestionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What the daemon needs to know; made from the settings by `main.py`.

    `dynamic_subscriptions`: subscribe only what a client watches, a lease in Redis asks for, or
    `pinned_instruments` (keys or `EXCHANGE:*`) names, and `subscription_linger_s` seconds longer.
    `always_open`: every market trades at any time, so that silence is always a fault; otherwise the
    calendar of `market_day_files` (a later file wins) counts.
    `notices` are where administrators are told of troubles.
    `tick_retention_ms` is how long the time series keep single ticks, `bar_retention_ms` how long they keep
    bars, both with exceptions `..._by_exchange`; `stream_max_entries` is how many
    entries an exchange's stream keeps and `stream_max_age_ms` for how long, `spool_limit_bytes` how much
    disk the records may take that wait for Redis. `api_tokens` maps name to secret, empty for none.
    `backfill` says how far back bars are fetched without being asked for; nothing is where it is all 0.
    `lease_policy` says what to do while another daemon writes the same Redis. `memory_limit_bytes` 0: what
    the machine has. `exchanges` (codes) makes the daemon a shard that ingests these only, beside others on
    the same Redis; without `serves_clients` it answers health and status, and sends clients to gateways.
    `option_order` are the sources of option chains, `option_rates` interest in percent a
    year by currency, `option_year_days` the day count of greeks.
    """

    database_url: str
    redis_url: str
    state_dir: Path
    demo: bool = False
    api_host: str = "127.0.0.1"
    api_port: int = 8080
    api_port_fallback: bool = False
    api_tokens: Mapping[str, str] = {}
    api_allowed_origins: tuple[str, ...] = ()
    dynamic_subscriptions: bool = False
    pinned_instruments: tuple[str, ...] = ()
    subscription_linger_s: float = LINGER_S
    market_day_files: tuple[Path, ...] = (SHIPPED_MARKET_DAYS,)
    always_open: bool = False
    notices: tuple[Delivery, ...] = ()
    tick_retention_ms: int = 48 * 3_600_000
    tick_retention_by_exchange: Mapping[str, int] = {}
    bar_retention_ms: int = BAR_RETENTION_MS
    bar_retention_by_exchange: Mapping[str, int] = {}
    backfill: BackfillDepth = BackfillDepth()
    stream_max_entries: int = 250_000
    stream_max_age_ms: int = STREAM_MAX_AGE_MS
    spool_limit_bytes: int = LIMIT_BYTES
    lease_policy: LeasePolicy = "standby"
    lease_times: LeaseTimes = LeaseTimes()
    option_order: tuple[str, ...] = DEFAULT_ORDER
    option_rates: Mapping[str, float] = {}
    option_year_days: float = 365.0
    api_max_clients: int = 2_000
    memory_limit_bytes: int = 0
    exchanges: tuple[str, ...] = ()
    serves_clients: bool = True


class LiveDataIngestion:
    """The running daemon. `start`, then `stop`; both may be called once."""

    def __init__(
        self,
        config: IngestionConfig,
        *,
        provider_settings: Callable[[], Mapping[str, str]],
        clock: Clock | None = None,
        factories: Mapping[str, ProviderFactory] | None = None,
        save_credentials: Callable[[Mapping[str, str]], None] | None = None,
    ) -> None:
        self.config = config
        self.clock: Clock = clock or SystemClock()
        self.demo = config.demo
        self.epoch = ""
        self.api_url = ""
        self.urls = {"database_url": config.database_url, "redis_url": config.redis_url}
        """Where the servers are reached, with the passwords of now."""
        self.calendar = MarketCalendar(config.market_day_files, always_open=config.always_open)
        self.supervisor = Supervisor()
        self._hurry = asyncio.Event()
        self.sequencer = Sequencer(self.clock)
        self.broadcast = DataBroadcast(self.clock)
        self._shard = shard = Shard.of(config.exchanges)
        self._catalogue = Catalogue(
            config.database_url, config.state_dir / "mappings.json", self.clock, exchanges=config.exchanges
        )
        self._mappings = MappingRefresher(self._catalogue, MappingWatch(config.database_url))
        self._leadership = Leadership(
            RedisLease(
                config.redis_url,
                state_dir=lambda: StateDirectory.instance_id(config.state_dir),
                ttl_s=config.lease_times.ttl_s,
                shard=shard,
            ),
            self.clock,
            policy=config.lease_policy,
            times=config.lease_times,
            lease_key=shard.lease_keys[0],
        )
        self._leadership.on_change = self._role_changed
        self._role_news = asyncio.Event()
        self.ended = asyncio.Event()
        """Set when the lease's policy ends this daemon; `check_lease` says why."""
        connect = self._leadership.connect
        encoder = EntryEncoder()
        self._spool = Spool(config.state_dir / FOLDER, limit_bytes=config.spool_limit_bytes)
        channels = self._spool.channels
        time_series = TimeSeriesWriter(
            config.redis_url,
            clock=self.clock,
            retention_ms=config.tick_retention_ms,
            retention_by_exchange=config.tick_retention_by_exchange,
            spool=channels["time_series"],
            connect=connect,
        )
        stream = StreamWriter(
            config.redis_url,
            max_entries=config.stream_max_entries,
            encoder=encoder,
            probe_exchange=shard.probe_exchange,
            spool=channels["stream"],
            connect=connect,
        )
        self._latest = LatestValueWriter(config.redis_url, encoder=encoder, connect=connect)
        self._bar_series = BarSeriesWriter(
            config.redis_url,
            clock=self.clock,
            retention_ms=config.bar_retention_ms,
            retention_by_exchange=config.bar_retention_by_exchange,
            spool=channels["bar_series"],
            connect=connect,
        )
        self.grid = BarGrid(self.calendar)
        self.bars = BarSink(lambda: BarBuilder(self.grid), self.clock, self.publish)
        self._stream = stream
        self._led_times = LedTimes(config.state_dir / LED_TIMES_NAME)
        time_series.led_times = stream.led_times = self._bar_series.led_times = self._led_times
        self._writers: tuple[RedisSink, ...] = (time_series, stream, self._latest, self._bar_series)
        # The probe makes no bar, so the sinks it goes through are named apart.
        probed: tuple[Sink, ...] = (*self._writers[:-1], self.bars, self.broadcast)
        self._sinks: tuple[Sink, ...] = (*self._writers, self.bars, self.broadcast)
        self._losses = LossDeclaration(
            {sink.name: sink.losses for sink in (time_series, stream, self._bar_series)},
            folder=config.state_dir / FOLDER,
            clock=self.clock,
            publish=self.publish,
            possible=lambda: stream.state is SinkState.READY,
        )
        self._history = HistoryWatch(
            config.redis_url, self._history_lost, may_write=self._leadership.may_write
        )
        self._ledger = LedgerAudit(self.clock, self._accounts)
        self.bus = Bus(self._sinks)
        self._first_connects = FirstConnects(config.state_dir / FIRST_CONNECTS, self.clock)
        self._judge = judge = SilenceJudge(self.calendar)
        self._learned = LearnedSilence(judge, config.state_dir / SILENCE_FILE)
        self.providers = ProviderManager(
            clock=self.clock,
            settings=provider_settings,
            publish=self.publish,
            supervisor=self.supervisor,
            show_reference=lambda record: self.broadcast.seed([record]),
            factories=factories,
            calendar=self.calendar,
            pacing=self._first_connects,
            judge=judge,
        )
        self._past = Past(
            PastConfig(
                database_url=config.database_url,
                redis_url=config.redis_url,
                folder=config.state_dir / HISTORY_FOLDER,
                depth=config.backfill,
                retention_ms=config.bar_retention_ms,
                retention_by_exchange=config.bar_retention_by_exchange,
            ),
            clock=self.clock,
            calendar=self.calendar,
            settings=provider_settings,
            publish=self.publish,
            forming=self.bars.forming,
            refill=self.bars.refill,
            planned=self._kept_past,
        )
        self._past.ledger.flowing = lambda instrument: (
            self._phase == "running" and self.providers.delivers(instrument)
        )
        self._probe = HealthProbe(self.clock, self.publish, probed, self.supervisor.troubles)
        self._route_events = RouteEventWriter(self.providers.router.journal, config.database_url, self.clock)
        self._quality = QualityCollector(
            self.providers.runtimes, clock=self.clock, calendar=self.calendar, faulty=judge.faulty
        )
        self._quality_scores = QualityWriter(self._quality, config.database_url, self.clock)
        # Without a place to keep them nothing is renewed: the old credentials end when new ones are made.
        self._credentials = (
            CredentialKeeper(
                clock=self.clock,
                redis_url=config.redis_url,
                providers=self.providers.running,
                hours=self._hours,
                save=save_credentials,
            )
            if save_credentials is not None
            else None
        )
        self._underlyings = Underlyings()
        self._option_interest = OptionInterestStore(config.redis_url, retention_ms=config.tick_retention_ms)
        self._options = OptionsManager(
            self.clock,
            option_sources(provider_settings, self.clock, config.option_order),
            resolve=self._underlyings.find,
            conventions=self._option_conventions,
            on_chain=self._note_chain,
        )
        limits = limits_for(config.api_max_clients)
        self._gateway = Gateway(
            self,
            self.broadcast,
            GatewayConfig(
                host=config.api_host,
                port=config.api_port,
                port_fallback=config.api_port_fallback,
                tokens=dict(config.api_tokens),
                allowed_origins=config.api_allowed_origins,
                limits=limits,
                serves_clients=config.serves_clients,
            ),
            StreamHistory(config.redis_url),
            self.bars,
            routes=self,
            options=OptionDesk(self._options, self._option_interest, self._underlyings.find),
        )
        self._subscriptions = (
            DynamicSubscriptions(
                self.providers,
                redis_url=config.redis_url,
                clock=self.clock,
                watched=self.broadcast.watched,
                known=lambda: self._instruments,
                pinned=config.pinned_instruments,
                file=config.state_dir / SUBSCRIPTIONS_FILE,
                linger_s=config.subscription_linger_s,
            )
            if config.dynamic_subscriptions
            else None
        )
        self._streams = StreamKeeper(
            config.redis_url,
            clock=self.clock,
            exchanges=lambda: set(self._exchanges),
            max_age_ms=config.stream_max_age_ms,
        )
        self._reports = ReportWriter(config.redis_url, self._report, may_write=self._leadership.may_write)
        self._reader = make_client(config.redis_url, name="marketd:reader")
        self._diagnosis = Diagnosis(
            self.clock,
            self.calendar,
            Sources(
                instruments=lambda: self._instruments,
                route=self.providers.route,
                claim=self._subscriptions.claim if self._subscriptions else lambda _: "static",
                newest=self.broadcast.latest,
                stored=lambda instrument: stored_newest(self._reader, instrument),
                not_ready=lambda: self.readiness().reasons,
                sinks=self._writers[:-1],
                dispute=self._dispute,
            ),
        )
        self._instruments: dict[str, InstrumentMapping] = {}
        self._exchanges: frozenset[str] = frozenset()
        self.broadcast.on_control = self._note_control
        self._notifier = (
            Notifier(self.clock, self._troubles, config.notices, demo=config.demo) if config.notices else None
        )
        self.vitals = Vitals(
            limit_bytes=config.memory_limit_bytes,
            caps={
                "queues_mib": 3 * QUEUE_LIMIT * RECORD_BYTES,
                "clients_mib": limits.clients * limits.outbox_bytes,
            },
            relieve=self._gateway.relieve,
        )
        self._accepted_within = HopTimes()
        self._time_from_ms = 0
        self._frame_tap = FrameTap(
            config.state_dir, self.clock, self, daemon=uuid.uuid4().hex[:12], demo=config.demo
        )
        self._phase = "starting"
        self._obstacle = ""
        self._started_ms = self.clock.now_ms()

    # ---- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring everything up, as far as this daemon may: without the lease it stands by.

        Raises `ConfigurationError`, `StorageMisconfigured` or `TemporaryError` with the remedy.
        """
        await self._leadership.begin()
        self.supervisor.keep("lease", self._leadership.run)
        snapshot = await self._mappings.first()
        self._note(snapshot)
        self.providers.load(snapshot)
        await asyncio.to_thread(self._learned.restore)
        await self._spool.open()
        await self._past.open()
        self._check_spool()
        self.vitals.announce()
        self.supervisor.keep("vitals", self.vitals.run)
        self.supervisor.keep("first_connects", self._first_connects.run)
        self.supervisor.keep("event_loop_lag", self._measure_lag)
        self.supervisor.keep("option_interest", self._option_interest.run, core=False)
        self.supervisor.keep("frame_tap", self._frame_tap.run, core=False)
        self.supervisor.keep("sink:broadcast", self.broadcast.run)
        if self._notifier is not None:
            self.supervisor.keep("notices", self._notifier.run, core=False)
        self._phase = "standing_by"
        self._gateway.hold()
        self.api_url = await self._gateway.start()
        self.supervisor.keep("gateway", self._gateway.run)
        if self._leadership.leading:
            await self._take_up()
        self.supervisor.keep("leadership", self._follow_leadership)
        # What was built until here lives as long as the process: keep the collector from walking it.
        gc.collect()
        gc.freeze()
        _log.info(
            "daemon_started",
            url=self.api_url,
            instruments=len(self._instruments),
            providers=[entry.code for entry in snapshot.providers],
            demo=self.demo,
            role=self._leadership.role.value,
        )

    def check_lease(self) -> None:
        """Raise the `TemporaryError` for which the lease's policy ended this daemon, if it did."""
        if self._leadership.ended is not None:
            raise self._leadership.ended

    async def stop(self, deadline_s: float = DRAIN_DEADLINE_S) -> dict[str, int]:
        """Stop in order: providers, sinks, clients, lease. Returns the records no sink could settle."""
        if self._phase == "stopped":
            return {}
        led, was_running = self._phase == "running", self._phase in ("running", "standing_by")
        self._phase = "stopping"
        if was_running:
            _log.info("daemon_stopping", deadline_s=deadline_s)
        await self.supervisor.end("leadership")
        if led:
            await self._end_subscriptions()
        # What it announces belongs into the streams: it ends before they do.
        await self.supervisor.end("past")
        await self.providers.stop()
        await self.supervisor.end("sink:bars")
        unsettled = await drain_all(self._sinks, deadline_s, self._hurry)
        if led:
            await self.supervisor.end("reports")
            await until_hurried(self._reports.say_stopped(), self._hurry)
        await until_hurried(self._gateway.stop(), self._hurry)
        await until_hurried(self._options.close(), self._hurry)
        await until_hurried(self._option_interest.close(), self._hurry)
        if not self.supervisor.failure:
            await self._first_connects.stopped()
        await until_hurried(self._past.close(), self._hurry)
        pending = await self.supervisor.stop()
        await self._leadership.release()
        await self._losses.save()
        await self._spool.close()
        await self._reader.aclose()
        await self._end_of_routing(led=led)
        await self._catalogue.close()
        self._phase = "stopped"
        if was_running or pending:
            _log.info("daemon_stopped", unsettled=unsettled, pending_tasks=pending)
        return unsettled

    def secrets_changed(self, *, database_url: str, redis_url: str, api_tokens: Mapping[str, str]) -> None:
        """Take over secrets that may have changed while running; whoever waits for one tries again at once.

        Another server than the one of the start needs a restart: that URL is not taken over, and said.
        """
        config = self.config
        self.providers.credentials_changed()
        if replace_credentials(config.redis_url, redis_url):
            self.urls["redis_url"] = redis_url
            self._leadership.poke()
            for writer in self._writers:
                writer.retry_now()
        else:
            _log.warning("restart_needed", setting="REDIS_URL", reason="it names another server")
        if shown_url(database_url) == shown_url(config.database_url):
            self.urls["database_url"] = database_url
            self.supervisor.spawn(self._mappings.use_url(database_url), "mappings_url")
            self.supervisor.spawn(self._past.ledger.store.use_url(database_url), "coverage_url")
            self.supervisor.spawn(self._route_events.use_url(database_url), "route_events_url")
            self.supervisor.spawn(self._quality_scores.use_url(database_url), "quality_url")
        else:
            _log.warning("restart_needed", setting="DATABASE_URL", reason="it names another server")
        self._gateway.replace_tokens(api_tokens)

    def hurry(self) -> None:
        """Shorten a stop that is under way to about a second: what is not written by then goes to disk."""
        self._hurry.set()

    def unsettled(self) -> dict[str, int]:
        """Return how many records each sink holds in memory just now, by name."""
        return {sink.name: sink.queued for sink in self._sinks if sink.queued}

    @property
    def running(self) -> bool:
        """Whether data flows through this daemon, rather than through another or not yet."""
        return self._phase == "running"

    def stuck(self) -> list[str]:
        """Return what in this process does not do its work; a dependency that is away is none of it."""
        return self._probe.stuck() if self._phase == "running" else []

    def publish(self, record: Record) -> None:
        """Give a record its position and hand it to every sink."""
        self.sequencer.stamp(record)
        self.bus.publish(record)
        if record.position_ms >= self._time_from_ms:
            self._time_hops(record)

    def _time_hops(self, record: Record) -> None:
        self._time_from_ms = record.position_ms + SAMPLE_EVERY_MS
        self._accepted_within.note((record.position_ms - record.received_ms) / 1000)
        for writer in self._writers:
            writer.time_newest()

    def _note_control(self, record: ControlRecord) -> None:
        self._diagnosis.note(record)
        self._past.note(record)
        self._frame_tap.note_control(record)
        if self._notifier is None:
            return
        if record.type == "gap" and self.calendar.in_session(record.exchange, record.timestamp):
            gap = told_gap(record)
            if gap is not None:
                self._notifier.happened(gap)
        if record.type == "switched":
            fields = record.fields
            self._notifier.happened(f"{fields['from_src']} -> {fields['to_src']}: {fields['reason']}")

    def _troubles(self) -> dict[str, str]:
        """Return what an administrator should hear of; a daemon that stands by has no troubles of its own."""
        if self._phase != "running":
            return {}
        readiness = self.readiness()
        found = troubles(
            now_ms=self.clock.now_ms(),
            providers=self._conditions(),
            sinks=self._writers,
            spool=self._spool.status(),
            not_ready=readiness.reasons,
            degraded=readiness.degraded,
            silence=self._judge.alarms(),
            disputes={key: found.text() for key, found in self._quality.disputes().items()},
            not_renewed=self._credentials.problems if self._credentials else {},
        )
        routing = self.providers.router.summary()
        if routing["stale"]:
            named = ", ".join(routing["stale_instruments"])
            found["routing:stale"] = f"nobody delivers {routing['stale']} instruments: {named}"
        return found

    def _dispute(self, instrument: str) -> str | None:
        found = self._quality.disputes().get(instrument)
        return found.text() if found is not None else None

    def _conditions(self) -> list[ProviderCondition]:
        now_ms = self.clock.now_ms()
        found = {provider.code: provider for provider in self.providers.running()}
        return [
            ProviderCondition(
                code=code,
                state=state,
                reason=reason,
                credential_expires_ms=expires_ms,
                credential_state=found[code].credential_state,
                renews=self._credentials is not None and found[code].renews_credentials,
                hours=(hours := self._hours(code)),
                quiet=hours.is_quiet(now_ms),
            )
            for code, state, reason, expires_ms in self.providers.conditions()
        ]

    def _hours(self, code: str) -> MarketHours:
        return market_hours(self.calendar, self.providers.exchanges_of(code), self.clock.now_ms())

    # ---- leading and standing by ----------------------------------------------------------------

    def _role_changed(self) -> None:
        self._role_news.set()
        if self._leadership.ended is not None:
            self.ended.set()
        if self._leadership.may_write():
            for writer in self._writers:
                writer.retry_now()

    async def _follow_leadership(self) -> None:
        """Take up the work when this daemon leads, and put it down when it does no longer."""
        while True:
            self._role_news.clear()
            if self._leadership.role is Role.LEADING and self._phase == "standing_by":
                await self._take_up()
            elif self._leadership.role is Role.LOST and self._leadership.ended is None:
                await self._step_down()
            else:
                await self._role_news.wait()

    async def _take_up(self) -> None:
        """Read where the last leader stopped, then let data flow."""
        snapshot = self._mappings.current
        assert snapshot is not None  # noqa: S101 - loaded at the start
        try:
            await self._recall(snapshot)
        except StorageError as error:
            self._obstacle = f"the last positions cannot be read from Redis: {error}"
            await asyncio.sleep(_RECALL_AGAIN_S)
            return
        self._obstacle = ""
        lease = self._leadership.lease
        if lease is None:
            return
        if self._led_times.lead(lease.epoch):
            self._stream.overtaken_until_ms = self.clock.now_ms()
        if not any(channel.pending for channel in self._spool.channels.values()):
            self._led_times.forget_lost()
        self._phase = "running"
        for writer in self._writers:
            self.supervisor.keep(f"sink:{writer.name}", writer.run)
        for name, run in (
            ("sink:bars", self.bars.run),
            ("ledger", self._ledger.run),
            ("losses", self._losses.run),
            ("history", self._history.run),
            ("health_probe", self._probe.run),
            ("reports", self._reports.run),
        ):
            self.supervisor.keep(name, run)
        if self._subscriptions is not None:
            # What is pinned, and what clients watched before a restart, is subscribed before they are back.
            await self._subscriptions.follow()
            self.supervisor.keep("subscriptions", self._subscriptions.run)
        await self.providers.start()
        self.supervisor.keep("route_events", self._route_events.run, core=False)
        self.supervisor.keep("silence", self._learned.run, core=False)
        self.supervisor.keep("quality", self._quality_scores.run, core=False)
        self.supervisor.keep("streams", self._streams.run, core=False)
        await self._past.lead(self.epoch)
        self.supervisor.keep("past", self._past.run, core=False)
        self.supervisor.keep("mappings", lambda: self._mappings.run(self._apply_mappings))
        if self._credentials is not None:
            self.supervisor.keep("credentials", self._credentials.run, core=False)
        self._gateway.admit()
        _log.info("daemon_leads", epoch=self._leadership.status()["holder"])

    async def _end_of_routing(self, *, led: bool) -> None:
        """Keep what was decided and learned, as far as that is possible within a moment."""
        if led:
            with contextlib.suppress(MarketdError, TimeoutError):
                async with asyncio.timeout(ROUTE_EVENTS_WITHIN_S):
                    await self._route_events.write_all()
                    await self._quality_scores.write()
            await self._learned.save()
        await self._route_events.close()
        await self._quality_scores.close()

    async def _end_subscriptions(self) -> None:
        if self._subscriptions is not None:
            await self.supervisor.end("subscriptions")
            self._subscriptions.save()

    async def _step_down(self) -> None:
        """Leave providers and Redis to the daemon that leads now; what is unwritten stays on disk."""
        if self._phase == "running":
            await self._end_subscriptions()
            await self.supervisor.end("sink:bars")
        self._phase = "standing_by"
        self._past.leading = False
        for name in LEADING_TASKS:
            await self.supervisor.end(name)
        await self.providers.stop()
        self.providers.forget_gaps()
        await self._gateway.send_away("another daemon leads now; connect again")
        # What was accepted since the lease was last ours is stored by whoever leads now.
        positions = map(parse_position, self.sequencer.positions().values())
        accepted_ms = max((ms for ms, _ in positions), default=0)
        self._led_times.lose(self._leadership.confirmed_ms, max(accepted_ms, self.clock.now_ms()))
        for writer in self._writers:
            if not writer.keeps_on_disk:
                writer.give_up("lease_lost")
        await asyncio.gather(*(writer.drain(STEP_DOWN_S) for writer in self._writers))
        for writer in self._writers:
            await self.supervisor.end(f"sink:{writer.name}")
            writer.give_up("lease_lost")
        _log.warning(
            "daemon_stepped_down",
            reason=self._leadership.reason,
            spooled={writer.name: writer.counters.spooled for writer in self._writers},
            dropped={writer.name: dict(writer.counters.dropped) for writer in self._writers},
        )
        self._leadership.stepped_down()

    async def _recall(self, snapshot: MappingSnapshot) -> None:
        """Read from Redis where the last run stopped: positions, newest ticks, the epoch."""
        client = make_client(self.config.redis_url)
        try:
            exchanges = sorted({mapping.exchange for mapping in snapshot.mappings})
            probes = self._shard.probe_exchange
            positions = await last_positions(client, [*exchanges, probes])
            self.sequencer.resume_after(PROBE_EXCHANGE, positions.pop(probes))
            for exchange, position in positions.items():
                self.sequencer.resume_after(exchange, position)
            # What still waits on disk must come before anything new in its stream.
            for exchange, position in self._spool.positions().items():
                self.sequencer.resume_after(exchange, position)
                positions[exchange] = max(position, positions.get(exchange, position))
            self.broadcast.seed_positions({exchange: positions[exchange] for exchange in exchanges})
            newest = await last_ticks(client, sorted(self._instruments))
            for instrument, entry in (await newest_in_streams(client, exchanges)).items():
                stored = newest.get(instrument)
                if instrument in self._instruments and (stored is None or entry.timestamp > stored.timestamp):
                    newest[instrument] = entry
            # Redis knows nothing of what waits on disk; the last trade repeated must still be recognised.
            for instrument, waiting in (await self._spool.newest_ticks(self._instruments)).items():
                stored = newest.get(instrument)
                lost = self._led_times.was_lost(waiting.position_ms)
                if not lost and (stored is None or waiting.timestamp >= stored.timestamp):
                    newest[instrument] = waiting
            self.providers.seed(newest.values())
            self.broadcast.seed(newest.values())
            self._latest.remember(newest.values())
            recall = BarRecall(client, self.bars.begin(), self.grid, self._spool)
            recalled = await recall.run(
                {exchange: positions[exchange] for exchange in exchanges},
                {key: mapping.exchange for key, mapping in self._instruments.items()},
                {tick.symbol: tick.timestamp for tick in newest.values()},
            )
            for said in recalled.said:
                # Their samples may not have been written any more; writing them again changes nothing.
                self._bar_series.offer(said)
            self.epoch = await self._history.start(client)
        finally:
            await client.aclose()

    def _history_lost(self, epoch: str) -> None:
        """Write again what is known, and tell everybody that positions until now mean nothing any more."""
        self.epoch = epoch
        self._latest.write_again()
        self.supervisor.spawn(self._past.history_lost(epoch), "coverage_forgotten")
        now_ms = self.clock.now_ms()
        for exchange in self.broadcast.positions():
            fields: dict[str, str | int] = {
                "from": now_ms - self.config.tick_retention_ms,
                "to": now_ms,
                "reason": "history_lost",
                "epoch": epoch,
            }
            self.publish(ControlRecord("gap", "", exchange, now_ms, now_ms, "", fields))
        self._gateway.epoch_changed()

    async def _apply_mappings(self, snapshot: MappingSnapshot) -> None:
        """Go over to an accepted change of the mapping tables."""
        self._note(snapshot)
        await self.providers.apply(snapshot)
        self._gateway.catalogue_changed()
        _log.info("mappings_changed", version=snapshot.version, instruments=len(self._instruments))

    def _check_spool(self) -> None:
        """Refuse what waits on disk of exchanges that another daemon may be writing now."""
        waits = any(channel.pending for channel in self._spool.channels.values())
        foreign = sorted(code for code in self._spool.positions() if not self._shard.covers(code))
        if waits and foreign:
            raise ConfigurationError(
                f"STATE_DIR {self.config.state_dir} still holds records of {', '.join(foreign)}, which "
                f"--exchanges {self._shard.name} leaves out: start once as before, run python main.py spool "
                "replay, or set another STATE_DIR"
            )

    def _report(self) -> IngestReport:
        readiness = self.readiness()
        return IngestReport(
            at_ms=self.clock.now_ms(),
            shard=self._shard.name,
            demo=self.demo,
            ready=readiness.ready,
            reasons=list(readiness.reasons),
            degraded=list(readiness.degraded),
            dynamic=self._subscriptions is not None,
            providers=self.provider_status(),
            **this_process(),
        )

    def _note(self, snapshot: MappingSnapshot) -> None:
        self._past.load(snapshot)
        self._instruments = {}
        for mapping in snapshot.mappings:
            known = self._instruments.get(mapping.instrument)
            if known is None or _rank(mapping) < _rank(known):
                self._instruments[mapping.instrument] = mapping
        self._exchanges = frozenset(mapping.exchange for mapping in snapshot.mappings)
        self._underlyings.load(snapshot.mappings)

    # ---- options --------------------------------------------------------------------------------

    def _option_conventions(self, underlying: Underlying) -> Conventions:
        rate_percent = self.config.option_rates.get(underlying.currency, 0.0)
        # Contracts on indices, and all Indian ones, can be exercised at expiry only.
        at_expiry = underlying.exchange in DERIVATIVES_OF or underlying.asset_class is AssetClass.INDEX
        style: Style = "european" if at_expiry else "american"
        return Conventions(rate_percent, self.config.option_year_days, style)

    def _note_chain(self, chain: Chain) -> None:
        underlying = self._underlyings.find(chain.underlying)
        if underlying is not None and self._leadership.may_write():
            self._option_interest.offer(interest_of(chain, underlying))

    # ---- what a recording needs -----------------------------------------------------------------

    def streaming_providers(self) -> Mapping[str, BaseMarketDataProvider]:
        """Return the providers that are installed, by code."""
        return self.providers.streaming_providers()

    def mapping_snapshot(self) -> MappingSnapshot | None:
        """Return the mappings in force, None before there are any."""
        return self._mappings.current

    def serving(self) -> dict[str, str]:
        """Return which provider (code) serves each instrument."""
        return self.providers.serving()

    # ---- what the gateway shows -----------------------------------------------------------------

    def provider_status(self) -> list[dict[str, Any]]:
        """Return the status of every provider, in the order of their codes."""
        return list(self.providers.get_provider_status().values())

    def instruments(self) -> list[InstrumentView]:
        """Return every instrument that is mapped and active."""
        return [
            InstrumentView(
                key=mapping.instrument,
                exchange=mapping.exchange,
                symbol=mapping.symbol,
                name=mapping.name,
                asset_class=mapping.asset_class.value,
                currency=mapping.currency,
                tick_size=mapping.tick_size,
                provider=self.providers.active_provider(mapping.instrument),
            )
            for mapping in self._instruments.values()
        ]

    def is_known(self, instrument: str) -> bool:
        """Tell whether an instrument key is mapped and active."""
        return instrument in self._instruments

    def readiness(self) -> Readiness:
        """Say whether data can flow, and if not what stands in the way."""
        if self._phase == "standing_by":
            reasons = [self._obstacle or self._leadership.reason or "this daemon takes up its work"]
        else:
            reasons = list(self._probe.problems())
            if self._phase != "running":
                reasons.insert(0, f"the daemon is {self._phase}")
            elif self._leadership.reason:
                reasons.insert(0, self._leadership.reason)
        if self._mappings.current is not None and not self._instruments:
            reasons.append(
                "no instruments are mapped: run python data_migration/populate_instrument_mappings.py"
            )
        mappings = self._mappings.status
        degraded = [f"mappings are not refreshed: {mappings.reason}"] if mappings.reason else []
        degraded += self._ledger.problems()
        if self._phase == "running":
            open_markets = self.calendar.open_among(self._exchanges, self.clock.now_ms())
            silence = nobody_delivers(self._conditions(), open_markets)
            degraded += [silence] if silence else []
        return Readiness(ready=not reasons, reasons=reasons, degraded=degraded)

    def _accounts(self) -> list[Account]:
        accounts = [sink_account(sink) for sink in self._sinks]
        for code, figures in self.providers.ledger().items():
            accounts += provider_accounts(code, figures)
        return accounts

    def pipeline_status(self) -> dict[str, Any]:
        """Return the state of sinks, tasks and mappings, and the account of every record."""
        snapshot, mappings = self._mappings.current, self._mappings.status
        return {
            "phase": self._phase,
            "started_ms": self._started_ms,
            "published": self.bus.published,
            "loop_lag_ms": self._loop_lag_ms,
            "lease": self._leadership.status(),
            "process": self.vitals.figures(),
            "mappings": {
                "version": snapshot.version if snapshot else 0,
                "loaded_ms": snapshot.loaded_ms if snapshot else None,
                "from_cache": bool(snapshot and snapshot.from_cache),
                "instruments": len(self._instruments),
                "state": mappings.state.value,
                "reason": mappings.reason,
                "refused": mappings.reason if mappings.state is RefreshState.REFUSED else "",
                "problems": [msgspec.to_builtins(problem) for problem in mappings.problems],
                "next_date_ms": mappings.next_date_ms,
                "upcoming": len(snapshot.upcoming) if snapshot else 0,
            },
            "sinks": [
                {
                    "name": sink.name,
                    "state": sink.state.value,
                    "reason": sink.reason,
                    "queued": sink.queued,
                    "imbalance": sink.counters.imbalance(sink.queued),
                    **msgspec.to_builtins(sink.counters),
                }
                for sink in self._sinks
            ],
            "hops": {
                "received_to_accepted": self._accepted_within.figures(),
                **{f"accepted_to_{sink.name}": sink.written_within.figures() for sink in self._writers},
            },
            "subscriptions": self._subscriptions.status() if self._subscriptions else {"mode": "static"},
            "notices": self._notifier.status() if self._notifier else None,
            "spool": [msgspec.to_builtins(channel) for channel in self._spool.status()],
            "bars": self.bars.status(),
            "streams": self._streams.status(),
            "routing": self.providers.router.summary() | {"problem": self._route_events.problem},
            "silence": self._judge.alarms(),
            "quality": self._quality_status(),
            "options": self._options.status(),
            "ledger": self.providers.ledger(),
            "accounts": self._ledger.status(),
            "backfill": self._past.status(),
            "tasks": [msgspec.to_builtins(census) for census in self.supervisor.census()],
        }

    async def history(self, request: HistoryRequest) -> HistoryAnswer:
        """Return the candles of a known instrument, and whether any are missing."""
        return await self._past.read(request)

    async def coverage(self, instrument: str) -> Sequence[CoverageSpan]:
        """Return what is had, missing and not to be had of an instrument's past."""
        return await self._past.coverage(instrument)

    def backfill_status(self) -> dict[str, Any]:
        """Return how the backfill is."""
        return self._past.status()

    async def order_backfill(
        self, instruments: Sequence[str], interval: Interval, from_ms: int, to_ms: int
    ) -> dict[str, Any]:
        """Begin to fetch what is not stored of a span. Raises `TemporaryError` while standing by."""
        if self._phase != "running":
            raise TemporaryError("this daemon stands by; ask the one that leads")
        return await self._past.ask(instruments, interval, from_ms, to_ms)

    def _kept_past(self) -> list[str]:
        """Return the instruments whose past is kept without being asked for: all, or those pinned."""
        if not self.config.dynamic_subscriptions:
            return list(self._instruments)
        pinned = self.config.pinned_instruments
        return [key for key in self._instruments if key in pinned or f"{key.partition(':')[0]}:*" in pinned]

    def _quality_status(self) -> dict[str, Any]:
        return {
            "scores": [
                {"provider": found.provider, "exchange": found.exchange, "score": found.score}
                for found in map(score, self._quality.figures())
            ],
            "disputed": sorted(self._quality.disputes()),
            "problem": self._quality_scores.problem,
        }

    def routes(self) -> dict[str, Any]:
        """Return every provider, what it can do and serves, and what is not as it should be."""
        return {
            "providers": [msgspec.to_builtins(info) for info in self.providers.registry.list()],
            "routing": self.providers.router.summary() | {"problem": self._route_events.problem},
        }

    async def route(self, instrument: str, events: int) -> dict[str, Any] | None:
        """Return the route of an instrument and its newest events; None when it is not mapped.

        Events that are not written yet are among them; while PostgreSQL is away only what this process
        remembers.
        """
        if instrument not in self._instruments:
            return None
        found = self.providers.route(instrument)
        recent = found.pop("decisions")
        stored, note = [], ""
        try:
            stored = await self._route_events.newest(instrument, events)
        except MarketdError as error:
            note = f"only what this process remembers: {error}"
        known = {(event["at_ms"], event["action"], event["to"]) for event in stored}
        stored += [event for event in recent if (event["at_ms"], event["action"], event["to"]) not in known]
        stored.sort(key=lambda event: int(event["at_ms"]))
        return {
            "instrument": instrument,
            "time_ms": self.clock.now_ms(),
            **found,
            "backup": self.providers.registry.backup(instrument),
            "events": stored[-events:],
            "note": note,
        }

    def switch_route(
        self, instrument: str, to: str | None, *, for_s: float, by: str, why: str
    ) -> dict[str, Any]:
        """Prefer a source for a while, or (None) the order of the mappings again.

        Raises `ConfigurationError` for what cannot be, and while this daemon routes nothing.
        """
        if self._phase != "running":
            raise ConfigurationError("this daemon stands by: ask the one that leads")
        registry = self.providers.registry
        if to is None:
            registry.release(instrument, by=by)
        else:
            registry.switch(instrument, to.strip().upper(), for_s=for_s, by=by, why=why)
        found = self.providers.route(instrument)
        return {"instrument": instrument, "events": found.pop("decisions"), **found}

    async def why(self, instrument: str) -> dict[str, Any] | None:
        """Explain what an instrument's ticks do and what stands in their way; None when it is unknown."""
        return await self._diagnosis.explain(instrument)

    def similar(self, instrument: str) -> list[str]:
        """Return known instrument keys that look like an unknown one."""
        return self._diagnosis.suggest(instrument)

    def interest_changed(self, added: frozenset[str], removed: frozenset[str]) -> None:  # noqa: ARG002
        """Hear that clients began or ceased to watch something."""
        if self._subscriptions is not None:
            self._subscriptions.changed()

    _loop_lag_ms = 0.0

    async def _measure_lag(self) -> None:
        """Sample how late the event loop runs its timers, in ms; the worst of the last second is shown."""
        loop = asyncio.get_running_loop()
        worst: list[float] = []
        while True:
            due_s = loop.time() + 0.1
            await asyncio.sleep(0.1)
            worst = [*worst[-9:], max(0.0, (loop.time() - due_s) * 1000)]
            self._loop_lag_ms = round(max(worst), 1)


def _rank(mapping: InstrumentMapping) -> tuple[bool, int, str]:
    return (not mapping.is_primary, mapping.priority, mapping.provider_code)
