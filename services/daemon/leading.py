"""Leading and standing by: what begins when this daemon leads, and how it is put down when it does no longer.

Follows the lease. While it stands by, nothing of this daemon talks to providers or writes to Redis.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from services.daemon.channels import Channels
from services.daemon.recall import Recall
from services.daemon.stages import Stages
from services.errors import StorageError
from services.gateway.server import Gateway
from services.market_data.instruments import MappingSnapshot
from services.pipeline.sequencer import parse_position
from services.storage.ingest_reports import ReportWriter
from services.storage.leadership import Role

_log = structlog.get_logger(__name__)

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
    "news",
    "option_chains",
    "option_leases",
    "option_polls",
    "reports",
)
"""What runs only while this daemon leads, besides providers, writers and dynamic subscriptions."""
_RECALL_AGAIN_S = 0.5


class Leading:
    """Takes the work up and puts it down. Keep `run` running; `take_up` once before, to begin at once.

    `apply_mappings(snapshot)` goes over to changed mappings.
    """

    def __init__(
        self,
        stages: Stages,
        gateway: Gateway,
        recall: Recall,
        reports: ReportWriter,
        apply_mappings: Callable[[MappingSnapshot], Awaitable[None]],
        channels: Channels,
    ) -> None:
        self._it = stages
        self._gateway = gateway
        self._recall = recall
        self._reports = reports
        self._apply_mappings = apply_mappings
        self._channels = channels
        self._leadership = stages.storage.leadership
        self._leadership.on_change = self._role_changed
        self._news = asyncio.Event()
        self.ended = asyncio.Event()
        """Set when the lease's policy ends this daemon."""

    def _role_changed(self) -> None:
        self._news.set()
        if self._leadership.ended is not None:
            self.ended.set()
        if self._leadership.may_write():
            self._it.storage.retry_now()

    async def run(self) -> None:
        """Take up the work when this daemon leads, and put it down when it does no longer."""
        while True:
            self._news.clear()
            if self._leadership.role is Role.LEADING and self._it.state.phase == "standing_by":
                await self.take_up()
            elif self._leadership.role is Role.LOST and self._leadership.ended is None:
                await self._step_down()
            else:
                await self._news.wait()

    async def take_up(self) -> None:
        """Read where the last leader stopped, then let data flow."""
        it = self._it
        snapshot = it.mappings.current
        assert snapshot is not None  # noqa: S101 - loaded at the start
        it.storage.note_lease()
        try:
            it.state.epoch = await self._recall.run(snapshot, it.known.mappings)
        except StorageError as error:
            it.state.obstacle = f"the last positions cannot be read from Redis: {error}"
            await asyncio.sleep(_RECALL_AGAIN_S)
            return
        it.state.obstacle = ""
        if not it.storage.begin_to_lead():
            return
        self._recall.used()
        it.state.phase = "running"
        keep = it.supervisor.keep
        for writer in it.storage.writers:
            keep(f"sink:{writer.name}", writer.run)
        keep("sink:bars", it.bars.run)
        keep("ledger", it.ledger.run)
        keep("losses", it.storage.losses.run)
        keep("history", it.storage.history.run)
        keep("health_probe", it.probe.run)
        keep("reports", self._reports.run)
        if it.subscriptions is not None:
            # What is pinned, and what clients watched before a restart, is subscribed before they are back.
            await it.subscriptions.follow()
            keep("subscriptions", it.subscriptions.run)
        await it.routing.providers.start()
        keep("route_events", it.routing.events.run, core=False)
        keep("silence", it.routing.learned.run, core=False)
        keep("quality", it.routing.scores.run, core=False)
        keep("streams", it.streams.run, core=False)
        await it.past.lead(it.state.epoch)
        keep("past", it.past.run, core=False)
        if it.news.wanted_at_all:
            keep("news", it.news.desk.run, core=False)
        keep("option_chains", it.options.chains.run, core=False)
        keep("option_leases", self._channels.follow_leases, core=False)
        keep("option_polls", self._channels.poller.run, core=False)
        it.depth.lead()
        keep("mappings", lambda: it.mappings.run(self._apply_mappings))
        if it.routing.credentials is not None:
            keep("credentials", it.routing.credentials.run, core=False)
        self._gateway.admit()
        _log.info("daemon_leads", epoch=self._leadership.status()["holder"])

    async def end_subscriptions(self) -> None:
        """Subscribe nothing any more, and remember what was watched."""
        if self._it.subscriptions is not None:
            await self._it.supervisor.end("subscriptions")
            self._it.subscriptions.save()

    async def _step_down(self) -> None:
        """Leave providers and Redis to the daemon that leads now; what is unwritten stays on disk."""
        it = self._it
        if it.state.running:
            await self.end_subscriptions()
            await it.supervisor.end("sink:bars")
        it.state.phase = "standing_by"
        it.past.leading = False
        for name in LEADING_TASKS:
            await it.supervisor.end(name)
        await it.depth.step_down()
        await it.routing.providers.stop()
        it.routing.providers.forget_gaps()
        await self._gateway.send_away("another daemon leads now; connect again")
        positions = map(parse_position, it.flow.sequencer.positions().values())
        accepted_ms = max((ms for ms, _ in positions), default=0)
        await it.storage.end_writing(accepted_ms, it.supervisor.end)
        _log.warning(
            "daemon_stepped_down",
            reason=self._leadership.reason,
            spooled={writer.name: writer.counters.spooled for writer in it.storage.writers},
            dropped={writer.name: dict(writer.counters.dropped) for writer in it.storage.writers},
        )
        self._leadership.stepped_down()
