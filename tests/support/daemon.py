"""The daemon as a process of its own, started the way an operator starts it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import aiohttp

from services.operations.state_dir import StateDirectory
from tests.support.eventually import FACTOR

ROOT = Path(__file__).resolve().parents[2]


def clean_environment(**settings: object) -> dict[str, str]:
    """Return an environment without any setting of ours but those given."""
    from config.settings import setting_names

    ours = {name + end for name in setting_names() for end in ("", "_FILE")}
    kept = {name: value for name, value in os.environ.items() if name.upper() not in ours}
    return kept | {name: str(value) for name, value in settings.items()}


async def run_script(
    *arguments: str | Path, environment: Mapping[str, str], within_s: float = 60
) -> tuple[int, str, str]:
    """Run a Python script of the project; return its exit code, output and error output."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *map(str, arguments),
        cwd=ROOT,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(), within_s * FACTOR)
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


_QUIET = {"API_PORT": 0, "BACKFILL_MINUTE_DAYS": 0, "BACKFILL_DAILY_DAYS": 0, "NEWS_EVERY_S": 0}
"""Nothing of the past is fetched, and no news, unless a test is about that."""


class Daemon:
    """`python main.py run` with its log kept; entering waits until `wait_for` answers 200.

    `program` is run in place of `main.py`.
    """

    def __init__(
        self,
        state_dir: Path,
        *arguments: str,
        wait_for: str = "/readyz",
        program: str = "main.py",
        **settings: object,
    ) -> None:
        self.state_dir = state_dir
        self._program = program
        self._arguments = arguments or ("run",)
        self._wait_for = wait_for
        self._settings = settings
        self.command: tuple[str | Path, ...] = (sys.executable, self._program)
        """What is run, before the arguments, for a daemon in narrow circumstances."""
        self.errors_to: int | None = None
        """A descriptor for stderr instead of the log."""
        self.log_path = state_dir.parent / f"{state_dir.name}.log"
        self.process: asyncio.subprocess.Process | None = None
        self.runtime: dict[str, Any] = {}

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(self.process.wait(), 25 * FACTOR)
            except TimeoutError:
                self.process.kill()
                await self.process.wait()
                raise

    async def start(self, ready_within_s: float = 40) -> None:
        """Start the process and wait until its health address answers 200."""
        environment = clean_environment(STATE_DIR=self.state_dir, **_QUIET | self._settings)
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                *map(str, self.command),
                *self._arguments,
                cwd=ROOT,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log if self.errors_to is None else self.errors_to,
                start_new_session=True,
            )
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + ready_within_s * FACTOR
        while loop.time() < deadline_s:
            if self.process.returncode is not None:
                raise AssertionError(f"the daemon ended with {self.process.returncode}:\n{self.log()}")
            runtime = StateDirectory.read_runtime(self.state_dir)
            if runtime is not None and runtime.get("pid") == self.process.pid:
                self.runtime = runtime
                status, _ = await self.get(self._wait_for)
                if status == 200:
                    return
            await asyncio.sleep(0.05)
        raise AssertionError(f"the daemon was not ready in time:\n{self.log()}")

    @property
    def port(self) -> int:
        """The port of its HTTP and WebSocket server."""
        return int(self.runtime["api_url"].rpartition(":")[2])

    async def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """Return status and JSON body of one request; status 0 when nobody listens."""
        try:
            async with (
                aiohttp.ClientSession(headers=headers) as session,
                session.get(f"{self.runtime['api_url']}{path}") as response,
            ):
                return response.status, await response.json(content_type=None)
        except aiohttp.ClientError:
            return 0, None

    async def status(self) -> dict[str, Any]:
        """Return `/api/providers/status`, with the providers by code under `by_code`."""
        _, body = await self.get("/api/providers/status")
        return body | {"by_code": {row["code"]: row for row in body["providers"]}}

    async def stop(self, number: int = signal.SIGTERM, within_s: float = 25) -> int:
        """Send a signal and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), within_s * FACTOR)

    def log(self) -> str:
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def runtime_file(self) -> dict[str, Any]:
        return dict(json.loads((self.state_dir / "runtime.json").read_text(encoding="utf-8")))
