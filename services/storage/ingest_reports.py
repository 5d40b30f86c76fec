"""What ingest daemons say of themselves in Redis, for gateways that have no provider of their own.

A leading daemon writes one field of `md:status` once a second; a gateway reads the hash. A report says how
things were when it was written: its reader counts how long ago that was by its own monotonic clock, so
that neither a dead daemon nor two clocks that differ make an old report look like a new one. Nothing on the
path of the ticks waits for it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.errors import StorageError
from services.market_data.clock import Clock
from services.pipeline.bounded import finishes_within
from services.storage.client import storage_error
from services.storage.keys import STATUS
from services.storage.shard import EVERYTHING, Shard
from services.storage.single_commands import SingleCommands

_log = structlog.get_logger(__name__)

REPORT_EVERY_S = 1.0
FRESH_S = 5.0
"""A report that is older does not speak of the present."""
_FAREWELL_S = 1.0


class IngestReport(msgspec.Struct, frozen=True, kw_only=True):
    """One ingest daemon's word at `at_ms`, UTC epoch ms of its clock.

    `providers` are the rows of `/api/providers/status`; `dynamic` says that it subscribes only what somebody
    wants.
    """

    at_ms: int
    shard: str
    phase: Literal["running", "stopped"] = "running"
    host: str = ""
    pid: int = 0
    demo: bool = False
    ready: bool = True
    reasons: list[str] = []
    degraded: list[str] = []
    dynamic: bool = False
    providers: list[dict[str, Any]] = []

    def __str__(self) -> str:
        part = "" if self.shard == EVERYTHING else f" for {self.shard}"
        return f"the ingest daemon{part} (pid {self.pid} on {self.host})"


class ReportWriter:
    """Writes the report of one daemon; `make()` says how it is, `may_write()` whether it leads."""

    def __init__(
        self, redis_url: str, make: Callable[[], IngestReport], *, may_write: Callable[[], bool]
    ) -> None:
        self._redis_url = redis_url
        self._make = make
        self._may_write = may_write

    async def run(self) -> None:
        """Report once a second until cancelled; while Redis is away there is nobody to tell."""
        commands = SingleCommands(self._redis_url, "marketd:reports")
        try:
            while True:
                if self._may_write():
                    await self._write(commands, self._make())
                await asyncio.sleep(REPORT_EVERY_S)
        finally:
            commands.close()

    async def say_stopped(self) -> None:
        """Tell that this daemon ends, so that nobody has to find out; takes a second at most."""
        if not self._may_write():
            return
        commands = SingleCommands(self._redis_url, "marketd:reports")
        try:
            last = msgspec.structs.replace(self._make(), phase="stopped", ready=False)
            await finishes_within(self._write(commands, last), _FAREWELL_S)
        finally:
            commands.close()

    async def _write(self, commands: SingleCommands, report: IngestReport) -> None:
        try:
            await commands.ask("HSET", STATUS, report.shard, msgspec.json.encode(report).decode())
        except StorageError as error:
            _log.debug("report_not_written", error=str(error))


def this_process() -> dict[str, Any]:
    """Return the fields of a report that say who writes it."""
    return {"host": socket.gethostname(), "pid": os.getpid()}


class _Heard(msgspec.Struct, frozen=True):
    report: IngestReport
    text: str
    at_s: float


class ReportBook:
    """The newest report of every shard, and how long ago each was news."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heard: dict[str, _Heard] = {}

    async def look(self, client: Redis) -> None:
        """Read what there is. Raises `StorageError` when Redis does not answer."""
        try:
            found: dict[Any, Any] = await client.hgetall(STATUS)
        except RedisError as error:
            raise storage_error(error) from error
        self.take(found)

    def take(self, found: dict[str, str]) -> None:
        """Take note of the hash as it is now; what does not read as a report is left out."""
        now_s = self._clock.monotonic_s()
        heard: dict[str, _Heard] = {}
        for name, text in found.items():
            known = self._heard.get(name)
            if known is not None and known.text == text:
                heard[name] = known
                continue
            try:
                report = msgspec.json.decode(text, type=IngestReport)
            except msgspec.MsgspecError:
                _log.debug("report_not_read", shard=name)
                continue
            # At first sight only the clocks can say how old it is; from then on it is news when it changes.
            old_s = 0.0 if known is not None else max(0, self._clock.now_ms() - report.at_ms) / 1000
            heard[name] = _Heard(report, text, now_s - old_s)
        self._heard = heard

    def age_s(self, report: IngestReport) -> float:
        """Return how long ago a report was news, in seconds."""
        return self._clock.monotonic_s() - self._heard[report.shard].at_s

    def fresh(self, report: IngestReport) -> bool:
        """Tell whether a report speaks of a daemon that runs now."""
        return report.phase == "running" and self.age_s(report) <= FRESH_S

    def reports(self) -> list[IngestReport]:
        """Return the newest report of every shard; of those that overlap older ones count for nothing."""
        newest = sorted(self._heard.values(), key=lambda heard: heard.at_s, reverse=True)
        kept: list[IngestReport] = []
        for heard in newest:
            shard = Shard.named(heard.report.shard)
            if not any(shard.overlaps(other.shard) for other in kept):
                kept.append(heard.report)
        return sorted(kept, key=lambda report: report.shard)

    def covering(self, exchange: str) -> IngestReport | None:
        """Return the report of whoever ingests an exchange, None when nobody ever said so."""
        return next((report for report in self.reports() if Shard.named(report.shard).covers(exchange)), None)
