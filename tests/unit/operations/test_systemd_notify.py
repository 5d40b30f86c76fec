"""What systemd is told, on a real notification socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.operations.systemd_notify import SystemdNotifier
from tests.support.eventually import eventually


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    address = str(tmp_path / "notify")
    if request.param == "abstract":
        address = f"@marketd-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind("\0" + address[1:] if address.startswith("@") else address)
        listener.setblocking(False)
        yield listener, address


def heard(listener: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(listener.recv(4096).decode())
        except BlockingIOError:
            return messages


def test_each_remark_is_one_datagram(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    notifier = SystemdNotifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.extend_timeout(30)
    notifier.ready("serving\nhttp://127.0.0.1:8080")
    notifier.alive()
    notifier.stopping()
    assert heard(listener) == [
        "EXTEND_TIMEOUT_USEC=30000000",
        "READY=1\nSTATUS=serving http://127.0.0.1:8080",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=stopping",
    ]
    notifier.close()


def test_without_a_socket_nothing_happens() -> None:
    notifier = SystemdNotifier.from_environment({"WATCHDOG_USEC": "30000000"})
    notifier.ready("x")
    assert (notifier.active, notifier.sent, notifier.watchdog_s) == (False, 0, None)


def test_a_socket_that_is_gone_is_a_lost_remark() -> None:
    notifier = SystemdNotifier("/nonexistent/notify")
    notifier.ready("x")
    assert notifier.sent == 0
    notifier.close()


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_counts_only_when_it_is_ours(
    environment: dict[str, str], watchdog_s: float | None
) -> None:
    notifier = SystemdNotifier.from_environment({"NOTIFY_SOCKET": "/run/x"} | environment)
    assert notifier.watchdog_s == watchdog_s
    assert notifier.look_every_s <= (watchdog_s or 15.0) / 3


async def test_the_watchdog_is_fed_only_while_nothing_is_stuck(
    manager: tuple[socket.socket, str],
) -> None:
    listener, address = manager
    notifier = SystemdNotifier(address, watchdog_s=0.03)
    faults: list[str] = []
    seen: list[str] = []

    def hear() -> list[str]:
        seen.extend(heard(listener))
        return seen

    task = asyncio.create_task(notifier.watch(lambda: faults, lambda: "serving"))
    await eventually(lambda: hear().count("WATCHDOG=1") >= 3)
    faults.append("stream (ready) has not moved for 11 s")
    await eventually(lambda: "STATUS=stream (ready) has not moved for 11 s" in hear())
    fed = seen.count("WATCHDOG=1")
    told = len(seen)
    await eventually(lambda: len(hear()) >= told + 3)
    assert seen.count("WATCHDOG=1") == fed
    faults.clear()
    await eventually(lambda: hear().count("WATCHDOG=1") > fed)
    task.cancel()
    await asyncio.wait([task])
    notifier.close()


async def test_the_start_asks_for_more_time_while_it_waits(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    notifier = SystemdNotifier(address)
    task = asyncio.create_task(notifier.wait_for_start(lambda: "waiting for PostgreSQL"))
    seen: list[str] = []
    await eventually(lambda: (seen.extend(heard(listener)) or len(seen)) >= 2)
    assert seen == ["EXTEND_TIMEOUT_USEC=30000000", "STATUS=waiting for PostgreSQL"]
    task.cancel()
    await asyncio.wait([task])
    notifier.close()
