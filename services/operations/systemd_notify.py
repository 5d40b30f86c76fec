"""Tells systemd how the daemon is: ready, alive, waiting for a dependency, stopping.

Speaks the datagram protocol of sd_notify(3); does nothing where `NOTIFY_SOCKET` is not set, as in a
container or a terminal. Never blocks and never raises: a full or vanished socket is a lost remark.
Source: https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping

EXTEND_BY_S = 30.0
"""How much more time is asked for at each look while the start waits for a dependency."""
LOOK_EVERY_S = 5.0
STAND_BY_LOOK_S = 0.5
_LONGEST_STATUS = 200


class SystemdNotifier:
    """One end of the notification socket. `watchdog_s` is the unit's `WatchdogSec`, None for none."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.watchdog_s = watchdog_s if address else None
        self.sent = 0
        self._said_ready = False
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> SystemdNotifier:
        """Return the notifier that systemd asks for; its variables are for this process only.

        `WATCHDOG_USEC` counts only when `WATCHDOG_PID` is absent or ours.
        """
        values = os.environ if environment is None else environment
        text = values.get("WATCHDOG_USEC", "")
        ours = values.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watchdog_s = int(text) / 1e6 if text.isascii() and text.isdigit() and int(text) > 0 and ours else None
        return cls(values.get("NOTIFY_SOCKET", ""), watchdog_s)

    @property
    def active(self) -> bool:
        """Whether anybody listens."""
        return bool(self._address)

    @property
    def look_every_s(self) -> float:
        """How often `watch` looks: at least three times within the unit's `WatchdogSec`."""
        return LOOK_EVERY_S if self.watchdog_s is None else min(LOOK_EVERY_S, self.watchdog_s / 3)

    def ready(self, status: str) -> None:
        """Say that the start is over."""
        self.send("READY=1", _status(status))

    def status(self, text: str) -> None:
        """Say in words how things are; `systemctl status` shows it."""
        self.send(_status(text))

    def stopping(self, status: str = "stopping") -> None:
        """Say that the stop has begun."""
        self.send("STOPPING=1", _status(status))

    def alive(self) -> None:
        """Feed the unit's watchdog."""
        self.send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> None:
        """Ask for more time to start or to stop, from now on."""
        self.send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    async def wait_for_start(self, phase: Callable[[], str]) -> None:
        """Ask for more time, and say what is waited for, until cancelled; the event loop must turn for it."""
        while True:
            self.extend_timeout(EXTEND_BY_S)
            self.status(phase())
            await asyncio.sleep(LOOK_EVERY_S)

    async def attend(
        self, running: Callable[[], bool], stuck: Callable[[], list[str]], status: Callable[[], str]
    ) -> None:
        """Say READY once the daemon runs, and watch it from then on; until then ask for more time."""
        while not self._said_ready:
            if running():
                self._said_ready = True
                self.ready(status())
                break
            self.extend_timeout(EXTEND_BY_S)
            self.status(status())
            await asyncio.sleep(STAND_BY_LOOK_S)
        await self.watch(stuck, status)

    async def watch(self, stuck: Callable[[], list[str]], status: Callable[[], str]) -> None:
        """Feed the watchdog while nothing is stuck, and keep the status line true, until cancelled.

        `stuck()` names what in this process does not do its work; a dependency that is away is none of it.
        """
        while True:
            faults = stuck()
            if not faults:
                self.alive()
            self.status("; ".join(faults) or status())
            await asyncio.sleep(self.look_every_s)

    def send(self, *lines: str) -> None:
        """Send one datagram of `lines`."""
        if not self._address:
            return
        with contextlib.suppress(OSError):
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            self._socket.sendto("\n".join(lines).encode(), self._address)
            self.sent += 1

    def close(self) -> None:
        """Let go of the socket."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:_LONGEST_STATUS]
