"""One embedded server: started once however many use it, adopted after a crash, ended by the last user.

Shared by the embedded PostgreSQL and Redis. A server belongs to a folder. Its users hold a shared
lock on it; the one who leaves last stops the server. A server that a killed daemon left behind is
adopted. Stands beneath the command line and the scripts; never used where a URL is configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import secrets
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import structlog

from services.errors import ConfigurationError, MarketdError, TemporaryError
from services.operations.loopback_port import free_port, port_is_free
from services.operations.server_folder import ServerFolder
from services.operations.server_lock import ServerLock, open_lock, spawn_holding
from services.pipeline.backoff import Backoff

_log = structlog.get_logger(__name__)

_ANSWER_WITHIN_S = 20.0
_LOAD_WITHIN_S = 600.0
_POLL_S = 0.02
_WATCH_EVERY_S = 1.0
_KILLED_WITHIN_S = 5.0

_Presence = Callable[[int], bool]


class ServerNotReady(Exception):
    """The server does not answer; `loading` when it says that it is still reading its data."""

    def __init__(self, reason: str, *, loading: bool = False) -> None:
        super().__init__(reason)
        self.loading = loading


class ServerCommand(NamedTuple):
    """How a server is started: the whole command line and its environment."""

    arguments: Sequence[str]
    environment: Mapping[str, str]


class EmbeddedServer(ABC):
    """A server under `folder`, on a loopback port and with a secret that are remembered there.

    `program` is the server's process name, `mark` the argument by which its command line names the folder.
    """

    title = "server"
    remedy = ""
    program = ""
    stop_signal = signal.SIGTERM
    abort_signal = signal.SIGKILL
    stop_within_s = 10.0
    log_hints: Mapping[str, str] = {}

    def __init__(self, folder: Path, mark: str) -> None:
        self.folder = folder
        self.port = 0
        self.secret = ""
        self._place = ServerFolder(folder, self.title)
        self._lock = ServerLock(folder / "server.lock", program=self.program, mark=mark)
        self._child: int | None = None
        self._users: int | None = None
        self._url_is_known = False

    # ---- what a server implements ---------------------------------------------------------------

    @property
    @abstractmethod
    def url(self) -> str:
        """The URL under which the server is reached, with its secret."""

    @abstractmethod
    async def prepare(self, *, new_secret: bool) -> None:
        """Find the programs and make the data ready; `new_secret` when the old secret is unknown.

        Raises `ConfigurationError` with the remedy when the server cannot run here.
        """

    @abstractmethod
    async def command(self) -> ServerCommand:
        """Return how the server is started on `self.port`."""

    @abstractmethod
    async def probe(self) -> None:
        """Return when the server is ready. Raises `ServerNotReady` while it is not."""

    # ---- life -----------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Return the server; `start` starts it."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the server; the last one out stops it."""
        await self.stop()

    async def start(self) -> str:
        """Start the server, or join or adopt the one that runs; return its URL.

        Raises `ConfigurationError` with the remedy when it cannot run on this machine, `TemporaryError`
        when it is busy. Call `stop` in either case, as the context manager does.
        """
        try:
            await asyncio.to_thread(self._place.create)
            async with self._place.exclusive():
                if self._users is None:
                    self._users = open_lock(self.folder / "users.lock")
                fcntl.flock(self._users, fcntl.LOCK_SH)
                await self._ensure_running()
                self._url_is_known = True
        except OSError as error:
            raise ConfigurationError(
                f"the embedded {self.title} cannot use {self.folder}: {error.strerror or error}. "
                "Choose another STATE_DIR or mend its permissions."
            ) from error
        return self.url

    async def stop(self) -> None:
        """Let go; stop the server when nobody else uses it. Harmless when it was not started."""
        if self._users is None:
            return
        try:
            async with self._place.exclusive():
                if self._is_last_user():
                    await self._end_process()
        except TemporaryError:
            # Somebody else is starting it this very moment, so it is not ours to stop.
            _log.info("embedded_server_left_to_others", server=self.title)
        finally:
            if self._users is not None:
                os.close(self._users)
                self._users = None
            self._url_is_known = False
            self._reap()

    async def run(self) -> None:
        """Watch the started server and start it again, on its port, when it has ended. Never returns."""
        while True:
            await asyncio.sleep(_WATCH_EVERY_S)
            if not self._lock.is_held():
                self._reap()
                _log.error(
                    "embedded_server_lost",
                    server=self.title,
                    said=self._place.telling_log_line(self.log_hints),
                )
                await self._bring_back()
                _log.warning("embedded_server_back", server=self.title)

    def live_pid(self) -> int | None:
        """Return the pid of the running server of this folder, None when there is none."""
        self._reap()
        return next(iter(self._lock.holders()), None)

    async def _bring_back(self) -> None:
        backoff = Backoff(cap_s=30.0)
        while True:
            try:
                await self.start()
            except MarketdError as error:
                _log.error("embedded_server_not_back", server=self.title, error=str(error))
                await asyncio.sleep(backoff.next_wait_s())
            else:
                return

    # ---- starting -------------------------------------------------------------------------------

    async def _ensure_running(self) -> None:
        place = self._place
        secret, port = place.recall("secret"), place.recall("port")
        self.secret = secret or secrets.token_urlsafe(24)
        self.port = int(port) if port.isdigit() else free_port()
        if self._lock.is_held():
            if secret and await self._wait_ready():
                return
            if not self._is_last_user():
                raise TemporaryError(
                    f"the embedded {self.title} of {self.folder} does not answer, and others use it: "
                    "try again later"
                )
            await self._end_process()
        for stray in await asyncio.to_thread(self._lock.strays):
            _log.warning("embedded_server_stray_ended", server=self.title, pid=stray)
            # Its data is gone; there is nothing left to write down.
            await self._signal_and_wait([stray], self._is_alive, first=self.abort_signal)
        await self.prepare(new_secret=not secret)
        # Written down when it is in force: who finds none makes a new one and puts that in force.
        place.remember("secret", self.secret)
        place.remember("port", str(self.port))
        while not await self._launch():
            self.port = free_port()
            place.remember("port", str(self.port))

    async def _launch(self) -> bool:
        """Start the process; False when the port was taken by another program and may be changed."""
        if not port_is_free(self.port):
            return self._may_change_port()
        command = await self.command()
        await asyncio.to_thread(self._place.cut_log)
        lock = self._lock.take()
        if lock is None:
            raise TemporaryError(f"another {self.title} has just been started in {self.folder}; try again")
        try:
            self._child = spawn_holding(
                lock, command.arguments, log_path=self._place.log_path, environment=command.environment
            )
        except OSError as error:
            raise ConfigurationError(
                f"the embedded {self.title} cannot be started ({error.strerror}): {self.remedy}"
            ) from error
        finally:
            os.close(lock)
        if await self._wait_ready():
            return True
        await self._end_process()
        if not port_is_free(self.port):
            return self._may_change_port()
        raise ConfigurationError(self._explain())

    def _may_change_port(self) -> bool:
        if self._is_last_user() and not self._url_is_known:
            return False
        raise TemporaryError(
            f"port {self.port} of the embedded {self.title} is taken by another program; "
            "end that program, or stop everything that uses this STATE_DIR"
        )

    async def _wait_ready(self) -> bool:
        """Wait until the server answers; False when it has ended, or does not answer in time."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        while True:
            try:
                await self.probe()
            except ServerNotReady as error:
                waited_s = loop.time() - began_s
                self._reap()
                if not self._lock.is_held():
                    return False
                if not error.loading and waited_s > _ANSWER_WITHIN_S:
                    _log.error("embedded_server_mute", server=self.title, said=str(error))
                    return False
                if waited_s > _LOAD_WITHIN_S:
                    raise TemporaryError(
                        f"the embedded {self.title} is still loading its data; try again later"
                    ) from error
                await asyncio.sleep(_POLL_S)
            else:
                return True

    def _explain(self) -> str:
        said = self._place.telling_log_line(self.log_hints)
        advice = next((hint for words, hint in self.log_hints.items() if words in said), self.remedy)
        return f"the embedded {self.title} does not start: {said} (log: {self._place.log_path}): {advice}"

    # ---- ending ---------------------------------------------------------------------------------

    async def _end_process(self) -> None:
        """End the server that holds our lock, at last by force. Raises `TemporaryError` if it stays."""
        holders = await asyncio.to_thread(self._lock.holders)
        await self._signal_and_wait(holders, lambda _: self._lock.is_held(), first=self.stop_signal)
        if self._lock.is_held():
            raise TemporaryError(
                f"a {self.title} that cannot be ended from here uses {self.folder}: "
                "end it, or set another STATE_DIR"
            )

    async def _signal_and_wait(
        self, pids: Sequence[int], is_there: _Presence, *, first: signal.Signals
    ) -> None:
        """Signal the main process, the first of `pids`; then all of them by force."""
        if not pids:
            return
        for number, within_s, targets in (
            (first, self.stop_within_s, pids[:1]),
            (signal.SIGKILL, _KILLED_WITHIN_S, pids),
        ):
            for pid in targets:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)
            if await self._gone(pids[0], is_there, within_s):
                return
            _log.error("embedded_server_still_running", server=self.title, pid=pids[0], signal=number.name)

    async def _gone(self, pid: int, is_there: _Presence, within_s: float) -> bool:
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + within_s
        while loop.time() < deadline_s:
            self._reap()
            if not is_there(pid):
                return True
            await asyncio.sleep(_POLL_S)
        return False

    def _is_alive(self, pid: int) -> bool:
        return pid in self._lock.strays()

    def _reap(self) -> None:
        """Take note of a child's end, so that it does not stay as a zombie."""
        if self._child is None:
            return
        try:
            ended, _ = os.waitpid(self._child, os.WNOHANG)
        except ChildProcessError:
            ended = self._child
        if ended:
            self._child = None

    # ---- the folder -----------------------------------------------------------------------------

    def _is_last_user(self) -> bool:
        """Tell whether nobody else uses the server; true only as long as the start lock is held."""
        assert self._users is not None  # noqa: S101 - callers hold it
        try:
            fcntl.flock(self._users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            # A refused upgrade may have dropped the shared lock.
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(self._users, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return True
