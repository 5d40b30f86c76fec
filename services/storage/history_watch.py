"""Notices that Redis has forgotten everything: `FLUSHALL`, an empty server in its place, another server.

Looks at `md:epoch` once a second. A key that is missing is made anew with a new value; a value that is not
ours belongs to another history. Either way what clients know of positions is worth nothing, and what the
daemon still knows is written again. The series come back by themselves: the writer makes each one before
its next sample.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.errors import StorageError
from services.storage.bootstrap import ensure_epoch
from services.storage.client import make_client
from services.storage.keys import EPOCH
from services.storage.single_commands import SingleCommands

_log = structlog.get_logger(__name__)

LOOK_EVERY_S = 1.0


class HistoryWatch:
    """Keeps the epoch; `lost(epoch)` is called when the history is another one, after that was logged.

    `may_write` says whether this daemon is the one that writes to Redis.
    """

    def __init__(
        self,
        redis_url: str,
        lost: Callable[[str], None],
        *,
        may_write: Callable[[], bool] = lambda: True,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._redis_url = redis_url
        self._lost = lost
        self._may_write = may_write
        self._look_every_s = look_every_s
        self.epoch = ""
        self.times_lost = 0

    async def start(self, client: Redis) -> str:
        """Take over the epoch of the history there is, or begin one. Raises `StorageError`."""
        self.epoch, _ = await ensure_epoch(client)
        return self.epoch

    async def run(self) -> None:
        """Look once a second until cancelled; while Redis does not answer there is nothing to see."""
        commands = SingleCommands(self._redis_url, "marketd:history")
        task = asyncio.current_task()
        try:
            while True:
                await asyncio.sleep(self._look_every_s)
                with contextlib.suppress(StorageError, RedisError, OSError):
                    await self._look(commands)
                if task is not None and task.cancelling():
                    # A client that loses its connection at that moment keeps the cancellation to itself.
                    raise asyncio.CancelledError
        finally:
            commands.close()

    async def _look(self, commands: SingleCommands) -> None:
        if not self._may_write() or await commands.ask("GET", EPOCH) == self.epoch:
            return
        client = make_client(self._redis_url)
        try:
            epoch, _ = await ensure_epoch(client)
        finally:
            await client.aclose()
        former, self.epoch = self.epoch, epoch
        if former in ("", epoch):
            return
        self.times_lost += 1
        _log.error(
            "history_lost",
            former_epoch=former,
            epoch=epoch,
            action="series and newest values are written again; what Redis held before is gone",
        )
        self._lost(epoch)
