"""The daemon kept running as a service manager keeps it: started again whenever it ends, however it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

import aiohttp

from services.operations.state_dir import StateDirectory
from tests.support.daemon import ROOT, clean_environment
from tests.support.eventually import FACTOR, eventually

_RESTART_AFTER_S = 0.2


class Ended(NamedTuple):
    """One end: when (UTC epoch ms), its exit code, the last signal sent to end it if any, and how many."""

    at_ms: int
    code: int
    signalled: signal.Signals | None
    signals: int


def now_ms() -> int:
    """Return UTC epoch ms."""
    return time.time_ns() // 1_000_000


class Keeper:
    """`python main.py run` on `state_dir`, again and again until the context is left; its log is kept."""

    def __init__(self, state_dir: Path, **settings: object) -> None:
        self.state_dir = state_dir
        self.log_path = state_dir.parent / f"{state_dir.name}.log"
        self.ends: list[Ended] = []
        self.kills_ms: list[int] = []
        self.starts = 0
        self.process: asyncio.subprocess.Process | None = None
        self._settings = {"API_PORT": 0} | settings
        self._signalled: signal.Signals | None = None
        self._signals = 0
        self._wanted = True
        self._task: asyncio.Task[None] | None = None
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5 * FACTOR))
        self._task = asyncio.create_task(self._keep())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._wanted = False
        process = self.process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
        assert self._task is not None
        await asyncio.wait([self._task])
        assert self._session is not None
        await self._session.close()
        self._task.result()

    async def _keep(self) -> None:
        environment = clean_environment(STATE_DIR=self.state_dir, **self._settings)
        while self._wanted:
            # These ends stand for ones that lie far apart: the back-off of a crash loop is not their subject.
            (self.state_dir / "first_connects.json").unlink(missing_ok=True)
            with self.log_path.open("ab") as log:
                self.process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "main.py", "run"),
                    cwd=ROOT,
                    env=environment,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.starts += 1
            code = await self.process.wait()
            self.ends.append(Ended(now_ms(), code, self._signalled, self._signals))
            self._signalled, self._signals = None, 0
            if self._wanted:
                await asyncio.sleep(_RESTART_AFTER_S)

    # ---- what a test does to it -----------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The pid of the running process, None between two runs."""
        process = self.process
        return process.pid if process is not None and process.returncode is None else None

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; False when no process runs just now."""
        pid = self.pid
        if pid is None:
            return False
        if number is signal.SIGKILL:
            self.kills_ms.append(now_ms())
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._signalled = number
            self._signals += 1
        os.kill(pid, number)
        return True

    async def stop(self, within_s: float = 30) -> int:
        """Stop for good with SIGTERM; return the exit code."""
        self._wanted = False
        count = len(self.ends)
        if not self.send(signal.SIGTERM):
            return self.ends[-1].code if self.ends else 0
        await eventually(lambda: len(self.ends) > count, within_s)
        return self.ends[-1].code

    async def ready(self, within_s: float = 60) -> None:
        """Wait until the running process says that data can flow."""

        async def is_ready() -> bool:
            status, _ = await self.get("/readyz")
            return status == 200

        try:
            await eventually(is_ready, within_s, every_s=0.05)
        except AssertionError as error:
            raise AssertionError(f"not ready; the log ends with:\n{self.log()[-4000:]}") from error

    # ---- what it says ---------------------------------------------------------------------------

    @property
    def api_url(self) -> str | None:
        """The address of the running process, None while it has none."""
        runtime = StateDirectory.read_runtime(self.state_dir)
        if runtime is None or runtime.get("pid") != self.pid:
            return None
        return str(runtime["api_url"])

    async def get(self, path: str) -> tuple[int, Any]:
        """Return status and JSON body of one request; status 0 when nobody answers."""
        url = self.api_url
        assert self._session is not None
        if url is None:
            return 0, None
        try:
            async with self._session.get(f"{url}{path}") as response:
                return response.status, await response.json(content_type=None)
        except (aiohttp.ClientError, TimeoutError):
            return 0, None

    async def pipeline(self) -> dict[str, Any] | None:
        """Return the pipeline part of the status, None when nobody answers."""
        status, body = await self.get("/api/providers/status")
        return body["pipeline"] if status == 200 else None

    async def settled(self, within_s: float = 60) -> dict[str, Any]:
        """Wait until nothing is in memory or on disk any more; return the pipeline status then."""
        last: dict[str, Any] = {}

        async def is_settled() -> bool:
            pipeline = await self.pipeline()
            if pipeline is None:
                return False
            last.update(pipeline)
            return all(sink["queued"] == 0 and sink["spooled"] == 0 for sink in pipeline["sinks"])

        try:
            await eventually(is_settled, within_s, every_s=0.2)
        except AssertionError as error:
            raise AssertionError(f"not settled: {last.get('sinks')}") from error
        return last

    def log(self) -> str:
        """Return all that was logged."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")
