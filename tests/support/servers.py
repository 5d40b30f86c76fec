"""Real servers for tests: a Redis that a test may hurt, and free ports."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

from services.operations.embedded_redis import EmbeddedRedis
from services.operations.loopback_port import free_port
from services.storage.client import make_client
from tests.support.eventually import eventually

__all__ = ["PrivateRedis", "free_port"]


class PrivateRedis:
    """A real Redis of a test's own: kill it, pause it, start it again on the same port and data."""

    def __init__(self, folder: Path) -> None:
        self._server = EmbeddedRedis(folder)

    @property
    def url(self) -> str:
        return self._server.url

    @property
    def port(self) -> int:
        return self._server.port

    @property
    def data_folder(self) -> Path:
        return self._server.data_folder

    async def start(self) -> str:
        return await self._server.start()

    async def stop(self) -> None:
        self.resume()
        await self._server.stop()

    async def kill(self) -> None:
        """End it like a power cut of the process: SIGKILL."""
        pid = self._pid()
        os.kill(pid, signal.SIGKILL)
        while self._server.live_pid() is not None:
            await asyncio.sleep(0.01)
        await self._server.stop()

    async def logged(self) -> None:
        """Wait until all that it confirmed is in its log, so that a kill costs nothing of it."""

        async def written() -> bool:
            facts = await client.info("persistence")
            return not facts["aof_buffer_length"] and not facts["aof_pending_bio_fsync"]

        async with make_client(self.url) as client:
            await eventually(written, 10)

    def pause(self) -> None:
        """Stop it from answering: SIGSTOP."""
        os.kill(self._pid(), signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on: SIGCONT; harmless when it does not run."""
        pid = self._server.live_pid()
        if pid is not None:
            os.kill(pid, signal.SIGCONT)

    def _pid(self) -> int:
        pid = self._server.live_pid()
        assert pid is not None, "the server does not run"
        return pid
