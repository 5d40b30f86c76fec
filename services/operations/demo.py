"""The demo's providers: the simulators as a process of their own, stopped with the daemon."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path
from types import TracebackType

import msgspec

from services.errors import ConfigurationError

_READY_WITHIN_S = 20.0
_STOP_WITHIN_S = 3.0


class SimulatorUrls(msgspec.Struct, frozen=True):
    """Where the simulators listen; as printed by `python -m simulators`."""

    dhan_feed_url: str
    dhan_rest_url: str
    dhan_depth_20_url: str
    dhan_depth_200_url: str
    yahoo_stream_url: str
    yahoo_rest_url: str
    nse_rest_url: str
    control_url: str
    dhan_client_id: str
    dhan_access_token: str


class DemoSimulators:
    """Runs `python -m simulators` while the context is open.

    The process ends by itself when ours dies, because it watches its standard input.
    """

    def __init__(self, project_root: Path, *, rate: float | None = None) -> None:
        self._root = project_root
        self._rate = rate
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> SimulatorUrls:
        """Start the process and wait for its addresses. Raises `ConfigurationError` when it fails."""
        arguments = ["-m", "simulators", "--exit-with-parent", "--always-open"]
        if self._rate is not None:
            arguments += ["--rate", str(self._rate)]
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            *arguments,
            cwd=self._root,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            # A Ctrl-C reaches the whole terminal group; the simulators must outlive the daemon's drain.
            start_new_session=True,
        )
        assert self._process.stdout is not None  # noqa: S101 - asked for above
        try:
            line = await asyncio.wait_for(self._process.stdout.readline(), _READY_WITHIN_S)
            return msgspec.json.decode(line, type=SimulatorUrls)
        except (TimeoutError, msgspec.DecodeError) as error:
            await self._stop()
            raise ConfigurationError(
                "the simulators did not start; run python -m simulators to see why"
            ) from error

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the process."""
        await self._stop()

    async def _stop(self) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), _STOP_WITHIN_S)
        except TimeoutError:
            process.kill()
            await process.wait()
