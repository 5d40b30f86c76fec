"""GatewayDaemon: a process that serves clients from the Redis streams, and ingests nothing.

    md:ticks:* ──► StreamFollower ──► DataBroadcast ──► gateway ──► clients
    md:status  ──► ReportBook ──► what it shows of providers        └─► md:interest
    md:depth:*, md:options:*, md:news ──► their followers ──► gateway

The other composition root, beside `live_data_ingestion`. Records keep the positions their daemon gave them
and the epoch is that of the key space, so a client goes on at any gateway where it was at another. Any number
may run; none needs a provider, a lease or a spool. It writes nothing to Redis but what its clients want.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import structlog
from redis.exceptions import RedisError

from services.catalogue.loader import Catalogue
from services.catalogue.refresher import MappingRefresher, RefreshState
from services.catalogue.watch import MappingWatch
from services.compiled import BUILD
from services.data_broadcast import DataBroadcast
from services.database_url import shown_url
from services.diagnosis import Diagnosis, Sources
from services.errors import StorageError, StorageMisconfigured, StorageUnavailable, TemporaryError
from services.gateway.backend import InstrumentView, Readiness
from services.gateway.channel_feeds import DepthFeed, NewsFeed, OptionFeed
from services.gateway.limits import limits_for
from services.gateway.news_api import NewsSource
from services.gateway.recovery import RecoveryLimits
from services.gateway.server import Gateway, GatewayConfig
from services.history.past import Past, PastConfig
from services.ingest_view import IngestView
from services.interest_keeper import InterestKeeper
from services.market_data.bar_builder import BarBuilder
from services.market_data.bar_grid import BarGrid
from services.market_data.bars import Interval
from services.market_data.calendar import SHIPPED as SHIPPED_MARKET_DAYS
from services.market_data.calendar import MarketCalendar
from services.market_data.candles import CoverageSpan, HistoryAnswer, HistoryRequest
from services.market_data.clock import Clock, SystemClock
from services.market_data.instruments import InstrumentMapping, MappingSnapshot
from services.market_data.records import ControlRecord, Record
from services.operations.vitals import Vitals
from services.options.underlyings import Underlyings
from services.pipeline.bar_sink import BarSink
from services.pipeline.draining import until_hurried
from services.pipeline.sequencer import START, Position, parse_position
from services.pipeline.supervisor import Supervisor
from services.storage.bar_recall import BarRecall
from services.storage.bootstrap import last_positions, last_ticks, newest_in_streams
from services.storage.client import make_client, storage_error
from services.storage.credentials import replace_credentials
from services.storage.depth_follower import DepthFollower
from services.storage.ingest_reports import ReportBook
from services.storage.keys import DEPTH_INTEREST, EPOCH, INTEREST, OPTIONS_INTEREST
from services.storage.lookup import stored_newest
from services.storage.news_stream import NewsBoard
from services.storage.option_chain_stream import OptionChainFollower
from services.storage.stream_follower import StreamFollower
from services.storage.stream_history import StreamHistory

_log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0
JUDGE_EVERY_S = 0.25
AHEAD_S = 2.0
"""How long a client that comes from a quicker gateway is waited for with what it has already."""
_STUCK_AFTER_S = 20.0
_MOST_RECALLED = 20_000
"""Entries of a stream that a gateway reads at its start for the bars that form: it serves within seconds."""
_HISTORY_LOST = "history_lost"


class GatewayDaemonConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway process needs to know; made from the settings by `main.py`.

    `dynamic_subscriptions`: lease what clients watch even before an ingest daemon has said that it needs it.
    The other fields are those of `IngestionConfig`.
    """

    database_url: str
    redis_url: str
    state_dir: Path
    api_host: str = "127.0.0.1"
    api_port: int = 8080
    api_tokens: Mapping[str, str] = {}
    api_allowed_origins: tuple[str, ...] = ()
    api_max_clients: int = 2_000
    dynamic_subscriptions: bool = False
    market_day_files: tuple[Path, ...] = (SHIPPED_MARKET_DAYS,)
    always_open: bool = False
    memory_limit_bytes: int = 0


class GatewayDaemon:
    """The running gateway. `start`, then `stop`; both may be called once."""

    def __init__(self, config: GatewayDaemonConfig, *, clock: Clock | None = None) -> None:
        self.config = config
        self.clock: Clock = clock or SystemClock()
        self.epoch = ""
        self.api_url = ""
        self.urls = {"database_url": config.database_url, "redis_url": config.redis_url}
        self.supervisor = Supervisor()
        self.ended = asyncio.Event()
        """Never set: a gateway has no lease to lose."""
        self.broadcast = DataBroadcast(self.clock)
        self._hurry = asyncio.Event()
        self._catalogue = Catalogue(config.database_url, config.state_dir / "mappings.json", self.clock)
        self._mappings = MappingRefresher(self._catalogue, MappingWatch(config.database_url))
        self._follower = StreamFollower(config.redis_url, self.clock, take=self._take, hole=self._hole)
        self._book = ReportBook(self.clock)
        self._view = IngestView(self.clock, self._book, self._follower, self.broadcast.latest)
        self._interest = InterestKeeper(
            config.redis_url,
            self.clock,
            watched=self.broadcast.watched,
            needed=lambda: config.dynamic_subscriptions or self._view.dynamic,
        )
        calendar = MarketCalendar(config.market_day_files, always_open=config.always_open)
        self._grid = BarGrid(calendar)
        # Builds what forms, for the chart channel; finished bars come from the streams like every record.
        self._bars = BarSink(lambda: BarBuilder(self._grid, follow=True), self.clock, lambda _record: None)
        self._news = NewsBoard(config.redis_url)
        limits = limits_for(config.api_max_clients)
        self._gateway = Gateway(
            self,
            self.broadcast,
            GatewayConfig(
                host=config.api_host,
                port=config.api_port,
                tokens=dict(config.api_tokens),
                allowed_origins=config.api_allowed_origins,
                limits=limits,
                recovery=RecoveryLimits(ahead_s=AHEAD_S),
            ),
            StreamHistory(config.redis_url),
            self._bars,
            # News are fetched by the ingest daemon, and read from their stream here.
            news=NewsSource(self._news, self.is_known, lambda _instrument: None),
        )
        hub = self._gateway.channels
        self._underlyings = Underlyings()
        self._books = DepthFollower(config.redis_url)
        DepthFeed(hub, self._books)
        options = OptionFeed(
            hub,
            lambda key: self._underlyings.find(key) is not None,
            lambda: self._options_interest.changed(),  # noqa: PLW0108 - it is made below
        )
        self._chains = OptionChainFollower(
            config.redis_url,
            wanted=options.underlyings,
            take=options.put,
            refused=lambda it: options.refused((it.symbol, it.expiry_date), it.reason),
        )
        self._options_interest = self._lease(OPTIONS_INTEREST, options.leases)
        self._depth_interest = self._lease(DEPTH_INTEREST, self._books.leases)
        self._news_feed = NewsFeed(hub, self._news, lambda _instrument: None)
        self._reader = make_client(config.redis_url, name="marketd:reader")
        self._looker = make_client(config.redis_url, name="marketd:looker")
        self._instruments: dict[str, InstrumentMapping] = {}
        self._rows: dict[str, list[InstrumentMapping]] = {}
        self._exchanges: frozenset[str] = frozenset()
        self._silent: dict[str, str] = {}
        self._leased: frozenset[str] = frozenset()
        # Reads what is stored and what the ledger says of it; whatever is fetched, the ingest daemon fetches.
        self._past = Past(
            PastConfig(database_url=config.database_url, redis_url=config.redis_url, folder=None),
            clock=self.clock,
            calendar=calendar,
            settings=dict,
            publish=lambda _record: None,
            forming=self._bars.forming,
            sources={},
        )
        self._diagnosis = Diagnosis(
            self.clock,
            calendar,
            Sources(
                instruments=lambda: self._instruments,
                route=lambda instrument: self._view.route(self._rows.get(instrument, ())),
                claim=self._claim,
                newest=self.broadcast.latest,
                stored=lambda instrument: stored_newest(self._reader, instrument),
                not_ready=lambda: self.readiness().reasons,
                sinks=(),
            ),
        )
        self.broadcast.on_control = self._diagnosis.note
        self.vitals = Vitals(
            limit_bytes=config.memory_limit_bytes,
            caps={"clients_mib": limits.clients * limits.outbox_bytes},
            relieve=self._gateway.relieve,
        )
        self._phase = "starting"
        self._obstacle = ""
        self._recalled = self._admitting = False
        self._started_ms = self.clock.now_ms()

    # ---- life -----------------------------------------------------------------------------------

    async def start(self) -> None:
        """Bring everything up; clients are taken once the streams are followed to their end.

        A Redis that is away, or that no ingest daemon has written to yet, is waited for. Raises
        `ConfigurationError`, `StorageMisconfigured` or `TemporaryError` with the remedy.
        """
        self._note(await self._mappings.first())
        self._silent = dict.fromkeys(self._exchanges, "")
        try:
            await self._recall()
        except StorageMisconfigured:
            raise
        except StorageError as error:
            self._obstacle = str(error)
            _log.warning("streams_awaited", reason=self._obstacle)
        self.vitals.announce()
        self._gateway.hold()
        self.api_url = await self._gateway.start()
        self._phase = "running"
        for name, run in (
            ("vitals", self.vitals.run),
            ("sink:bars", self._bars.run),
            ("sink:broadcast", self.broadcast.run),
            ("gateway", self._gateway.run),
            ("follower", self._follower.run),
            ("look", self._keep_looking),
            ("judge", self._keep_judging),
            ("interest", self._interest.run),
            ("depth_interest", self._depth_interest.run),
            ("options_interest", self._options_interest.run),
            ("depth_channel", self._books.run),
            ("options_channel", self._chains.run),
            ("news_channel", self._news_feed.run),
            ("mappings", lambda: self._mappings.run(self._apply_mappings)),
        ):
            self.supervisor.keep(name, run)
        # What was built until here lives as long as the process: keep the collector from walking it.
        gc.collect()
        gc.freeze()
        _log.info("gateway_started", url=self.api_url, instruments=len(self._instruments), path=str(BUILD))

    async def stop(self, deadline_s: float = 0.0) -> dict[str, int]:  # noqa: ARG002 - nothing to drain
        """Stop in order: clients, then everything that reads. Returns nothing unsettled."""
        if self._phase == "stopped":
            return {}
        self._phase = "stopping"
        await until_hurried(self._gateway.stop(), self._hurry)
        pending = await self.supervisor.stop()
        await self._past.close()
        await self._news.close()
        await self._reader.aclose()
        await self._looker.aclose()
        await self._catalogue.close()
        self._phase = "stopped"
        _log.info("gateway_stopped", pending_tasks=pending)
        return {}

    def hurry(self) -> None:
        """Shorten a stop that is under way to about a second."""
        self._hurry.set()

    def unsettled(self) -> dict[str, int]:
        """Return nothing: whatever is in this process is in the streams."""
        return {}

    def check_lease(self) -> None:
        """Do nothing: a gateway has no lease."""

    @property
    def running(self) -> bool:
        """Whether data flows through this gateway."""
        return self._admitting

    def stuck(self) -> list[str]:
        """Return what in this process does not do its work; a dependency that is away is none of it."""
        still_s = self.clock.monotonic_s() - self._follower.turned_s
        turns = self._phase != "running" or still_s <= _STUCK_AFTER_S
        return [] if turns else [f"the streams were not asked for {still_s:.0f} s"]

    def secrets_changed(self, *, database_url: str, redis_url: str, api_tokens: Mapping[str, str]) -> None:
        """Take over secrets that may have changed while running; another server needs a restart."""
        if replace_credentials(self.config.redis_url, redis_url):
            self.urls["redis_url"] = redis_url
        else:
            _log.warning("restart_needed", setting="REDIS_URL", reason="it names another server")
        if shown_url(database_url) == shown_url(self.config.database_url):
            self.urls["database_url"] = database_url
            self.supervisor.spawn(self._mappings.use_url(database_url), "mappings_url")
            self.supervisor.spawn(self._past.ledger.store.use_url(database_url), "coverage_url")
        else:
            _log.warning("restart_needed", setting="DATABASE_URL", reason="it names another server")
        self._gateway.replace_tokens(api_tokens)

    def _lease(self, key: str, wanted: Callable[[], Collection[str]]) -> InterestKeeper:
        """Return what leases what is `wanted()` of a channel beside ticks."""
        return InterestKeeper(self.config.redis_url, self.clock, watched=wanted, needed=lambda: True, key=key)

    # ---- records --------------------------------------------------------------------------------

    def _take(self, record: Record) -> None:
        self._bars.offer(record)
        self.broadcast.offer(record)
        if isinstance(record, ControlRecord) and record.type == "gap":
            epoch = str(record.fields.get("epoch", ""))
            if record.fields.get("reason") == _HISTORY_LOST and epoch and epoch != self.epoch:
                self._epoch_is(epoch)

    def _hole(self, exchange: str, after: Position, before: Position, reason: str) -> None:
        self._announce(
            "gap", exchange, {"from": after[0], "to": before[0], "reason": f"gateway_behind_{reason}"}
        )

    def _announce(self, kind: Any, exchange: str, fields: dict[str, str | int]) -> None:
        """Tell this gateway's clients what no stream holds."""
        now_ms = self.clock.now_ms()
        self.broadcast.announce(ControlRecord(kind, "", exchange, now_ms, now_ms, "", fields))

    def _epoch_is(self, epoch: str) -> None:
        former, self.epoch = self.epoch, epoch
        if former:
            _log.error(
                "history_lost", former_epoch=former, epoch=epoch, action="clients are told to begin anew"
            )
            self._gateway.epoch_changed()

    # ---- what Redis says ------------------------------------------------------------------------

    async def _recall(self) -> None:
        """Read where the streams stand and what is newest; then they are followed. Raises `StorageError`."""
        client = self._looker
        await self._look_at_epoch()
        if not self.epoch:
            raise StorageUnavailable("no ingest daemon has written to this Redis yet")
        await self._book.look(client)
        positions = await self._look_at_new(self._exchanges, self._instruments)
        recall = BarRecall(client, self._bars.begin(), self._grid, most=_MOST_RECALLED)
        newest = {key: tick for key in self._instruments if (tick := self.broadcast.latest(key)) is not None}
        here = {name: at for name, at in positions.items() if name in self._exchanges}
        await recall.run(here, {key: row.exchange for key, row in self._instruments.items()}, newest)
        # Followed from where the bars were recalled to: no tick is in them twice, and none is missing.
        self._follower.follow(positions)
        self._obstacle = ""
        self._recalled = True

    async def _follow_new(self, exchanges: frozenset[str], instruments: Mapping[str, object]) -> None:
        """Follow what is not followed yet, from its end, and show what is newest. Raises `StorageError`."""
        self._follower.follow(await self._look_at_new(exchanges, instruments))

    async def _look_at_new(
        self, exchanges: frozenset[str], instruments: Mapping[str, object]
    ) -> dict[str, Position]:
        """Show what is newest of what is not followed yet; return where that ends. Raises `StorageError`."""
        client, following = self._looker, self._follower.following
        new = sorted(exchanges - following)
        # The positions first: what comes meanwhile is read again, and never missed.
        positions = await last_positions(client, [*new, *sorted(self._view.probe_exchanges() - following)])
        unseen = [key for key in instruments if self.broadcast.latest(key) is None]
        if unseen:
            newest = await last_ticks(client, unseen)
            for instrument, tick in (await newest_in_streams(client, new)).items():
                stored = newest.get(instrument)
                if instrument in instruments and (stored is None or tick.timestamp > stored.timestamp):
                    newest[instrument] = tick
            self.broadcast.seed(newest.values())
        self.broadcast.seed_positions({name: at for name, at in positions.items() if name in exchanges})
        return positions

    async def _look_at_epoch(self) -> None:
        try:
            epoch = await self._looker.get(EPOCH)
        except RedisError as error:
            raise storage_error(error) from error
        if not epoch or str(epoch) == self.epoch:
            return
        if self.epoch:
            reached = await last_positions(self._looker, sorted(self._follower.following))
            self._follower.history_replaced(reached)
            known = {name: at for name, at in reached.items() if name in self._exchanges}
            shown = {name: parse_position(text) for name, text in self.broadcast.positions().items()}
            if any(at < shown.get(name, START) for name, at in known.items()):
                # Its positions begin below ours, as with a server that was set up anew.
                self.broadcast.restart_positions(dict.fromkeys(known, START))
        self._epoch_is(str(epoch))

    async def _keep_looking(self) -> None:
        """Look at epoch and reports once a second, and follow what is new."""
        while True:
            try:
                if self._recalled:
                    await self._look_at_epoch()
                    await self._book.look(self._looker)
                    if not self._exchanges | self._view.probe_exchanges() <= self._follower.following:
                        await self._follow_new(self._exchanges, self._instruments)
                else:
                    await self._recall()
            except (StorageError, OSError) as error:
                if not self._recalled:
                    self._obstacle = str(error)
            await asyncio.sleep(LOOK_EVERY_S)

    # ---- whether data flows ---------------------------------------------------------------------

    async def _keep_judging(self) -> None:
        """Tell clients when an exchange falls silent and when it is back; take new ones while any is."""
        while True:
            self._judge()
            await asyncio.sleep(JUDGE_EVERY_S)

    def _judge(self) -> None:
        for exchange in self._exchanges:
            why = self._problem(exchange)
            was_silent = exchange in self._silent
            if why and not was_silent:
                _log.warning("exchange_silent", exchange=exchange, reason=why)
                self._announce("stale", exchange, {"reason": why})
            elif was_silent and not why:
                _log.info("exchange_delivered", exchange=exchange)
                self._announce("resumed", exchange, {})
            if why:
                self._silent[exchange] = why
            else:
                self._silent.pop(exchange, None)
        live = any(exchange not in self._silent for exchange in self._exchanges)
        if live and not self._admitting and self._phase == "running":
            self._admitting = True
            self._gateway.admit()
        elif not live and self._admitting:
            self._admitting = False
            self._gateway.hold()

    def _problem(self, exchange: str) -> str:
        if not self._recalled:
            return self._obstacle or "the streams were not read yet"
        return self._view.problem(exchange)

    # ---- mappings -------------------------------------------------------------------------------

    async def _apply_mappings(self, snapshot: MappingSnapshot) -> None:
        exchanges = frozenset(mapping.exchange for mapping in snapshot.mappings)
        if self._recalled:
            try:
                await self._follow_new(exchanges, dict.fromkeys(row.instrument for row in snapshot.mappings))
            except (StorageError, OSError) as error:
                _log.warning("streams_not_followed_yet", reason=str(error))
        for gone in self._exchanges - exchanges:
            self._follower.forget(gone)
            self._silent.pop(gone, None)
        for new in exchanges - self._exchanges:
            self._silent.setdefault(new, "")
        self._note(snapshot)
        self._gateway.catalogue_changed()
        _log.info("mappings_changed", version=snapshot.version, instruments=len(self._instruments))

    def _note(self, snapshot: MappingSnapshot) -> None:
        rows: dict[str, list[InstrumentMapping]] = {}
        for mapping in snapshot.mappings:
            rows.setdefault(mapping.instrument, []).append(mapping)
        for found in rows.values():
            found.sort(key=lambda row: (not row.is_primary, row.priority, row.provider_code))
        self._rows = rows
        self._past.load(snapshot)
        self._underlyings.load(snapshot.mappings)
        self._instruments = {instrument: found[0] for instrument, found in rows.items()}
        self._exchanges = frozenset(mapping.exchange for mapping in snapshot.mappings)

    # ---- what the gateway shows -----------------------------------------------------------------

    @property
    def demo(self) -> bool:
        """Whether any of the data is made by simulators."""
        return self._view.demo

    def provider_status(self) -> list[dict[str, Any]]:
        """Return every provider as the ingest daemons reported it; `age_ms` says how long ago."""
        return self._view.provider_rows()

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
                provider=newest.provider_code if (newest := self.broadcast.latest(key)) is not None else None,
            )
            for key, mapping in self._instruments.items()
        ]

    def is_known(self, instrument: str) -> bool:
        """Tell whether an instrument key is mapped and active."""
        return instrument in self._instruments

    def readiness(self) -> Readiness:
        """Say whether data can flow: probes of an ingest daemon arrive, and nothing lags behind them.

        An exchange that is not delivered while others are makes the gateway degraded.
        """
        if self._phase == "running":
            # Whoever is told "ready" may connect in the next moment.
            self._judge()
        reasons = (
            self.supervisor.troubles() if self._phase == "running" else [f"the gateway is {self._phase}"]
        )
        problems = {exchange: why for exchange in sorted(self._exchanges) if (why := self._problem(exchange))}
        degraded = []
        if problems and len(problems) == len(self._exchanges):
            reasons += dict.fromkeys(problems.values())
        else:
            degraded += [f"{exchange}: {why}" for exchange, why in problems.items()]
        if not self._instruments:
            reasons.append(
                "no instruments are mapped: run python data_migration/populate_instrument_mappings.py"
            )
        mappings = self._mappings.status
        if mappings.reason:
            degraded.append(f"mappings are not refreshed: {mappings.reason}")
        degraded += self._view.remarks()
        return Readiness(ready=not reasons, reasons=reasons, degraded=degraded)

    def pipeline_status(self) -> dict[str, Any]:
        """Return the state of what this process does, and who ingests."""
        snapshot, mappings, sink = self._mappings.current, self._mappings.status, self.broadcast
        return {
            "role": "gateway",
            "phase": self._phase,
            "started_ms": self._started_ms,
            "epoch": self.epoch,
            "process": self.vitals.figures(),
            "compiled": BUILD.status(),
            "ingest": self._view.reports(),
            "follower": self._follower.status(),
            "mappings": {
                "version": snapshot.version if snapshot else 0,
                "loaded_ms": snapshot.loaded_ms if snapshot else None,
                "from_cache": bool(snapshot and snapshot.from_cache),
                "instruments": len(self._instruments),
                "state": mappings.state.value,
                "reason": mappings.reason,
                "refused": mappings.reason if mappings.state is RefreshState.REFUSED else "",
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
            ],
            "subscriptions": self._interest.status(),
            "channels": {
                "depth": self._books.status() | {"leases": self._depth_interest.status()},
                "options": self._chains.status() | {"leases": self._options_interest.status()},
            },
            "tasks": [msgspec.to_builtins(census) for census in self.supervisor.census()],
        }

    async def history(self, request: HistoryRequest) -> HistoryAnswer:
        """Return the candles of a known instrument that are stored, and whether any are missing."""
        return await self._past.read(request)

    async def coverage(self, instrument: str) -> Sequence[CoverageSpan]:
        """Return what is had, missing and not to be had of an instrument's past."""
        return await self._past.coverage(instrument)

    def backfill_status(self) -> dict[str, Any]:
        """Return how the backfill is: a gateway makes none."""
        return self._past.status()

    async def order_backfill(
        self,
        instruments: Sequence[str],  # noqa: ARG002 - the backend's signature
        interval: Interval,  # noqa: ARG002
        from_ms: int,  # noqa: ARG002
        to_ms: int,  # noqa: ARG002
    ) -> dict[str, Any]:
        """Raise `TemporaryError`: a gateway asks no provider."""
        raise TemporaryError("a gateway fetches nothing: ask the ingest daemon")

    async def why(self, instrument: str) -> dict[str, Any] | None:
        """Explain an instrument as far as it shows here; None when it is unknown."""
        try:
            expiry_ms = await self._looker.zscore(INTEREST, instrument)
        except (RedisError, OSError):
            expiry_ms = None
        leased = expiry_ms is not None and expiry_ms >= self.clock.now_ms()
        self._leased = frozenset([instrument]) if leased else frozenset()
        return await self._diagnosis.explain(instrument)

    def similar(self, instrument: str) -> list[str]:
        """Return known instrument keys that look like an unknown one."""
        return self._diagnosis.suggest(instrument)

    def interest_changed(self, added: frozenset[str], removed: frozenset[str]) -> None:  # noqa: ARG002
        """Hear that clients began or ceased to watch something."""
        self._interest.changed()

    def _claim(self, instrument: str) -> str | None:
        if not self._view.dynamic:
            return "static"
        if instrument in self.broadcast.watched():
            return "watched"
        return "leased" if instrument in self._leased else None
