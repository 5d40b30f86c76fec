"""LiveDataIngestion: joins the stages, in the order they start and the order they stop.

    providers -> normaliser -> router (ProviderManager) -> sequencer -> bus
        -> time series, stream, latest value, bars, bar series, broadcast -> gateway -> clients
                        ^-- bar records --'

The stages are put together in `services.daemon`, a module each, and all of them in `services.daemon.stages`.
This one owns the supervisor and therefore every task. It decides nothing about data. What talks to providers
or writes runs only while this daemon leads (`services.daemon.leading`); the gateway always runs, and takes
clients while it does.
"""

from __future__ import annotations

import asyncio
import gc
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from services.base_provider import BaseMarketDataProvider
from services.compiled import BUILD
from services.daemon.alarms import Alarms
from services.daemon.channels import Channels
from services.daemon.config import IngestionConfig
from services.daemon.gateway import make_diagnosis, make_gateway
from services.daemon.leading import Leading
from services.daemon.recall import Recall
from services.daemon.report import make_reports
from services.daemon.routes import RoutesView
from services.daemon.stages import make_stages
from services.daemon.view import DaemonView
from services.database_url import shown_url
from services.gateway.backend import Readiness
from services.market_data.clock import Clock, SystemClock
from services.market_data.instruments import MappingSnapshot
from services.market_data.records import ControlRecord
from services.market_data.records import DataIngestionFormat as DataIngestionFormat
from services.pipeline.draining import drain_all, until_hurried
from services.provider_registry import ProviderFactory
from services.recording.frame_tap import FrameTap
from services.storage.credentials import replace_credentials

__all__ = ["IngestionConfig", "LiveDataIngestion"]

_log = structlog.get_logger(__name__)

GC_THRESHOLDS = (5_000, 20, 100)
"""Hardly anything of ours is cyclic: the collector walks what was built since the start now and then."""

DRAIN_DEADLINE_S = 10.0


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
        self.api_url = ""
        self.urls = {"database_url": config.database_url, "redis_url": config.redis_url}
        """Where the servers are reached, with the passwords of now."""
        self._hurry = asyncio.Event()
        self._it = it = make_stages(
            config,
            self.clock,
            settings=provider_settings,
            factories=factories,
            save_credentials=save_credentials,
            history_lost=self._history_lost,
            relieve=lambda short: self.gateway.relieve(short),  # noqa: PLW0108 - it is made below
        )
        self.state, self.supervisor, self.vitals = it.state, it.supervisor, it.vitals
        self.storage, self.routing, self.past, self.options = it.storage, it.routing, it.past, it.options
        self.providers, self.broadcast, self.bars = it.routing.providers, it.broadcast, it.bars
        self.sinks, self.sequencer, self.bus = it.sinks, it.flow.sequencer, it.flow.bus
        self.ledger, self.calendar, self.grid = it.ledger, it.calendar, it.grid
        self.publish = it.flow.publish
        """Gives a record its position and hands it to every sink."""
        self.view = DaemonView(it)
        self._diagnosis = it.diagnosis = make_diagnosis(it, self.view.readiness)
        self._alarms = Alarms(config, it, self.view)
        it.notifier = self._alarms.notifier
        self._frame_tap = FrameTap(
            config.state_dir, self.clock, self, daemon=uuid.uuid4().hex[:12], demo=config.demo
        )
        self.broadcast.on_control = self._note_control
        self.routes = RoutesView(self.clock, self.state, self.routing, it.known, self._diagnosis.suggest)
        self.gateway = make_gateway(config, it, self.view, self.routes)
        self._reports = make_reports(config, self.view)
        recall = Recall(config.redis_url, it)
        self._channels = Channels(config, it, self.gateway)
        self.source = self._channels.source
        """Callbacks for whoever embeds the daemon: trades, quotes, bars, order books, news."""
        self._leading = Leading(it, self.gateway, recall, self._reports, self._apply_mappings, self._channels)
        self.ended = self._leading.ended
        """Set when the lease's policy ends this daemon; `check_lease` says why."""

    # ---- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring everything up, as far as this daemon may: without the lease it stands by.

        Raises `ConfigurationError`, `StorageMisconfigured` or `TemporaryError` with the remedy.
        """
        gc.set_threshold(*GC_THRESHOLDS)
        # The collector would walk again and again what lives as long as the process: once, at the end, does.
        gc.freeze()
        gc.disable()
        try:
            await self._begin()
        finally:
            gc.collect()
            gc.freeze()
            gc.enable()

    async def _begin(self) -> None:
        leadership, keep = self.storage.leadership, self.supervisor.keep
        await leadership.begin()
        self.storage.note_lease()
        keep("lease", leadership.run)
        snapshot = await self._it.mappings.first()
        self._note(snapshot)
        self.providers.load(snapshot)
        await asyncio.to_thread(self.routing.learned.restore)
        await self.storage.spool.open()
        await self.past.open()
        self.storage.check_spool()
        self.vitals.announce()
        keep("vitals", self.vitals.run)
        keep("first_connects", self.routing.first_connects.run)
        keep("event_loop_lag", self._it.loop_lag.run)
        keep("option_interest", self.options.interest.run, core=False)
        keep("news_channel", self._channels.news.run, core=False)
        keep("frame_tap", self._frame_tap.run, core=False)
        keep("sink:broadcast", self.broadcast.run)
        if self._alarms.notifier is not None:
            keep("notices", self._alarms.notifier.run, core=False)
        self.state.phase = "standing_by"
        self.gateway.hold()
        self.api_url = await self.gateway.start()
        keep("gateway", self.gateway.run)
        if leadership.leading:
            await self._leading.take_up()
        keep("leadership", self._leading.run)
        _log.info(
            "daemon_started",
            url=self.api_url,
            instruments=len(self._it.known),
            providers=[entry.code for entry in snapshot.providers],
            demo=self.config.demo,
            role=leadership.role.value,
            path=str(BUILD),
        )

    def check_lease(self) -> None:
        """Raise the `TemporaryError` for which the lease's policy ended this daemon, if it did."""
        if self.storage.leadership.ended is not None:
            raise self.storage.leadership.ended

    async def stop(self, deadline_s: float = DRAIN_DEADLINE_S) -> dict[str, int]:
        """Stop in order: providers, sinks, clients, lease. Returns the records no sink could settle."""
        state = self.state
        if state.phase == "stopped":
            return {}
        led, was_running = state.running, state.phase in ("running", "standing_by")
        state.phase = "stopping"
        if was_running:
            _log.info("daemon_stopping", deadline_s=deadline_s)
        await self.supervisor.end("leadership")
        # No renewal begins any more; one under way goes on, and is waited for below.
        await self.supervisor.end("credentials")
        if led:
            await self._leading.end_subscriptions()
        await self._it.depth.end_feeds()
        # What they announce belongs into the streams: they end before those do.
        for name in ("past", "losses", "history", "health_probe"):
            await self.supervisor.end(name)
        await self.providers.stop()
        await self.supervisor.end("sink:bars")
        unsettled = await drain_all((*self.sinks, *self._it.depth.sinks), deadline_s, self._hurry)
        if led:
            await self.supervisor.end("reports")
            await until_hurried(self._reports.say_stopped(), self._hurry)
        await until_hurried(self.gateway.stop(), self._hurry)
        await until_hurried(self.options.manager.close(), self._hurry)
        await until_hurried(self.options.interest.close(), self._hurry)
        await self.supervisor.end("news")
        await until_hurried(self._it.news.close(), self._hurry)
        if not self.supervisor.failure:
            await self.routing.first_connects.stopped()
        await until_hurried(self.past.close(), self._hurry)
        if self.routing.credentials is not None:
            await until_hurried(self.routing.credentials.finish(deadline_s), self._hurry)
        pending = await self.supervisor.stop()
        await self.storage.close()
        await self.routing.end(led=led)
        await self._it.catalogue.close()
        state.phase = "stopped"
        if was_running or pending:
            _log.info("daemon_stopped", unsettled=unsettled, pending_tasks=pending)
        return unsettled

    def secrets_changed(self, *, database_url: str, redis_url: str, api_tokens: Mapping[str, str]) -> None:
        """Take over secrets that may have changed while running; whoever waits for one tries again at once.

        Another server than the one of the start needs a restart: that URL is not taken over, and said.
        """
        self.providers.credentials_changed()
        self._it.depth.credentials_changed()
        if replace_credentials(self.config.redis_url, redis_url):
            self.urls["redis_url"] = redis_url
            self.storage.leadership.poke()
            self.storage.retry_now()
            self._it.depth.writer.retry_now()
        else:
            _log.warning("restart_needed", setting="REDIS_URL", reason="it names another server")
        if shown_url(database_url) == shown_url(self.config.database_url):
            self.urls["database_url"] = database_url
            spawn = self.supervisor.spawn
            spawn(self._it.mappings.use_url(database_url), "mappings_url")
            spawn(self.past.ledger.store.use_url(database_url), "coverage_url")
            spawn(self.routing.events.use_url(database_url), "route_events_url")
            spawn(self.routing.scores.use_url(database_url), "quality_url")
        else:
            _log.warning("restart_needed", setting="DATABASE_URL", reason="it names another server")
        self.gateway.replace_tokens(api_tokens)

    def hurry(self) -> None:
        """Shorten a stop that is under way to about a second: what is not written by then goes to disk."""
        self._hurry.set()

    def unsettled(self) -> dict[str, int]:
        """Return how many records each sink holds in memory just now, by name."""
        return {sink.name: sink.queued for sink in self.sinks if sink.queued}

    @property
    def running(self) -> bool:
        """Whether data flows through this daemon, rather than through another or not yet."""
        return self.state.running

    def stuck(self) -> list[str]:
        """Return what in this process does not do its work; a dependency that is away is none of it."""
        return self._it.probe.stuck() if self.running else []

    # ---- what happens ---------------------------------------------------------------------------

    def _note_control(self, record: ControlRecord) -> None:
        self._diagnosis.note(record)
        self.past.note(record)
        self._frame_tap.note_control(record)
        self._alarms.note_control(record)

    def _history_lost(self, epoch: str) -> None:
        """Write again what is known, and tell everybody that positions until now mean nothing any more."""
        self.state.epoch = epoch
        self.storage.latest.write_again()
        self.supervisor.spawn(self.past.history_lost(epoch), "coverage_forgotten")
        now_ms = self.clock.now_ms()
        for exchange in self.broadcast.positions():
            fields: dict[str, str | int] = {
                "from": now_ms - self.config.tick_retention_ms,
                "to": now_ms,
                "reason": "history_lost",
                "epoch": epoch,
            }
            self.publish(ControlRecord("gap", "", exchange, now_ms, now_ms, "", fields))
        self.gateway.epoch_changed()

    async def _apply_mappings(self, snapshot: MappingSnapshot) -> None:
        """Go over to an accepted change of the mapping tables."""
        self._note(snapshot)
        await self.providers.apply(snapshot)
        self.gateway.catalogue_changed()
        _log.info("mappings_changed", version=snapshot.version, instruments=len(self._it.known))

    def _note(self, snapshot: MappingSnapshot) -> None:
        self.past.load(snapshot)
        self._it.known.load(snapshot)
        self.options.underlyings.load(snapshot.mappings)
        self._it.news.load(snapshot)
        self._it.depth.load(snapshot)

    # ---- what others ask ------------------------------------------------------------------------

    def readiness(self) -> Readiness:
        """Say whether data can flow, and if not what stands in the way."""
        return self.view.readiness()

    def provider_status(self) -> list[dict[str, Any]]:
        """Return the status of every provider, in the order of their codes."""
        return self.view.provider_status()

    def pipeline_status(self) -> dict[str, Any]:
        """Return the state of sinks, tasks and mappings, and the account of every record."""
        return self.view.pipeline_status()

    def streaming_providers(self) -> Mapping[str, BaseMarketDataProvider]:
        """Return the providers that are installed, by code."""
        return self.providers.streaming_providers()

    def mapping_snapshot(self) -> MappingSnapshot | None:
        """Return the mappings in force, None before there are any."""
        return self._it.mappings.current

    def serving(self) -> dict[str, str]:
        """Return which provider (code) serves each instrument."""
        return self.providers.serving()
