"""The daemon's market depth: the desk, where its books come from, and the stream they go into.

    live feeds (5 levels) ─┐
    Dhan's 20-level feed ──┼──► DepthDesk ──► md:depth:* , clients
    Dhan's 200-level feed ─┘

Stands beside the live flow and runs while this daemon leads. With DEPTH off there is a desk that refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from services.base_provider import BaseMarketDataProvider
from services.daemon.config import IngestionConfig
from services.depth.desk import DepthDesk
from services.depth.dhan_feed import DhanDepth20, DhanDepth200, DhanDepthFeed
from services.depth.dhan_source import CODE, DhanDepth
from services.depth.full_packets import FullPackets
from services.depth.leases import DepthLeases
from services.market_data.calendar import MarketCalendar
from services.market_data.clock import Clock
from services.market_data.instruments import MappingSnapshot
from services.market_data.updates import Level2Update
from services.operations.first_connects import FirstConnects
from services.pipeline.supervisor import Supervisor
from services.storage.depth_stream_writer import DepthStreamWriter
from services.storage.redis_sink import Connect, RedisSink

_EXCHANGES = frozenset({"NSE", "NFO"})
"""Those Dhan's depth feeds cover."""


class Depth:
    """`desk` keeps the books, `writer` their streams. `lead` and `step_down` begin and end the work."""

    def __init__(
        self,
        config: IngestionConfig,
        clock: Clock,
        *,
        settings: Callable[[], Mapping[str, str]],
        supervisor: Supervisor,
        calendar: MarketCalendar,
        stamp: Callable[[Level2Update], None],
        providers: Callable[[], Mapping[str, BaseMarketDataProvider]],
        known: Callable[[], Mapping[str, object]],
        connect: Connect,
        pacing: FirstConnects,
    ) -> None:
        self.on = config.depth != "off"
        self._supervisor = supervisor
        self._pacing = pacing
        self.desk = DepthDesk(
            clock,
            stamp,
            known=known,
            pinned=config.depth_instruments,
            everything=config.depth == "all",
            linger_s=config.subscription_linger_s,
            stale_after_s=config.depth_stale_after_s,
        )
        self.writer = DepthStreamWriter(
            config.redis_url,
            max_entries=config.depth_stream_max_entries,
            max_age_ms=config.depth_stream_max_age_ms,
            connect=connect,
        )
        self._leases = DepthLeases(self.desk, config.redis_url, clock)
        self._full = FullPackets(self.desk, providers)
        self._deeper = [
            DhanDepth(
                feed,
                self.desk,
                clock,
                account=lambda: providers().get(CODE),
                settings=settings,
                spawn=supervisor.spawn,
                open_markets=lambda: calendar.open_among(_EXCHANGES, clock.now_ms()),
            )
            for feed in (DhanDepth20, DhanDepth200)
        ]
        if self.on:
            self.desk.listen(self.writer.take)
            self.desk.add_source(self._full)
            for source in self._deeper:
                self.desk.add_source(source)

    def load(self, snapshot: MappingSnapshot) -> None:
        """Take over the mappings."""
        self._full.load(snapshot.mappings)
        for source in self._deeper:
            source.load(snapshot.mappings)

    @property
    def sinks(self) -> tuple[RedisSink, ...]:
        """The writer, unless depth is off."""
        return (self.writer,) if self.on else ()

    @property
    def task_names(self) -> tuple[str, ...]:
        """The tasks that run while this daemon leads, the writer's apart."""
        return ("depth_leases", "depth", *(f"depth_{source.levels}" for source in self._deeper))

    def lead(self) -> None:
        """Begin: what is pinned is subscribed, and what is wanted from now on."""
        if not self.on:
            return
        keep = self._supervisor.keep
        keep(f"sink:{self.writer.name}", self.writer.run, core=False)
        for source in self._deeper:
            keep(f"depth_{source.levels}", partial(self._run_feed, source.feed), core=False)
        keep("depth", self.desk.run, core=False)
        keep("depth_leases", self._leases.run, core=False)

    async def _run_feed(self, feed: DhanDepthFeed) -> None:
        """Run a feed from its first instrument on; ever later where the daemon crashes again and again."""
        await feed.needed()
        await asyncio.sleep(self._pacing.wait_s(feed.code))
        await self._pacing.note(feed.code)
        await feed.run()

    async def end_feeds(self) -> None:
        """Subscribe nothing any more; the books of now stay to be read."""
        await asyncio.gather(*(self._supervisor.end(name) for name in self.task_names))

    async def step_down(self) -> None:
        """Leave it to the daemon that leads now; what is not written is outdated, and counted."""
        await self.end_feeds()
        await self.desk.rest()
        await self._supervisor.end(f"sink:{self.writer.name}")
        self.writer.give_up("lease_lost")

    def needs_ticks_of(self) -> frozenset[str]:
        """Return the instruments whose ticks must be subscribed, as their books come with them."""
        return self.desk.needs_ticks_of

    def credentials_changed(self) -> None:
        """Have the feeds look at their settings at once."""
        for source in self._deeper:
            source.feed.credentials_changed()

    def troubles(self) -> dict[str, str]:
        """Return what stands in the way of depth that somebody wants, by feed."""
        found = {f"depth:{source.levels}": source.trouble() for source in self._deeper if self.on}
        return {name: trouble for name, trouble in found.items() if trouble}

    def status(self) -> dict[str, Any]:
        """Return what is wanted, what comes and how old it is."""
        return {
            "on": self.on,
            **self.desk.status(),
            "leases": self._leases.status(),
        }
