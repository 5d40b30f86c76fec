"""The end of a daemon's process: asked for during the start, in order, hurried by a signal or by time."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from structlog.testing import capture_logs

from services.daemon import process
from services.daemon.process import StopRequest, done_unless, first_of, stop_in_time
from tests.support.eventually import eventually


class Daemon:
    """Stops when it is told to, at once or once it is hurried, or never."""

    def __init__(self, *, when: str) -> None:
        self.when = when
        self.stopped = False
        self._hurried = asyncio.Event()

    async def stop(self) -> dict[str, int]:
        if self.when == "hurried":
            await self._hurried.wait()
        if self.when == "never":
            await asyncio.Event().wait()
        self.stopped = True
        return {}

    def hurry(self) -> None:
        self._hurried.set()

    def unsettled(self) -> dict[str, int]:
        return {"stream": 3}


async def test_signals_ask_for_a_stop_then_for_a_quick_one_and_a_hangup_for_a_look() -> None:
    stop, looked = StopRequest(), asyncio.Event()
    stop.listen()
    stop.on_hangup = looked.set
    try:
        os.kill(os.getpid(), signal.SIGHUP)
        await eventually(looked.is_set)
        assert not stop.requested.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await first_of(stop.requested, stop.hurried)
        assert not stop.hurried.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await eventually(stop.hurried.is_set)
    finally:
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(number)


async def test_a_start_is_done_unless_a_stop_is_asked_for_before() -> None:
    stop = asyncio.Event()

    async def start() -> None:
        await asyncio.sleep(0)

    async def fails() -> None:
        raise OSError("no")

    assert await done_unless(stop, start())
    with pytest.raises(OSError, match="no"):
        await done_unless(stop, fails())


async def test_a_start_that_swallows_a_cancellation_is_ended_all_the_same() -> None:
    stop, swallowed = asyncio.Event(), 0

    async def start() -> None:
        nonlocal swallowed
        try:
            stop.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            swallowed += 1
        await asyncio.Event().wait()

    assert not await done_unless(stop, start())
    assert swallowed == 1
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "start"]


async def test_a_stop_that_ends_by_itself_is_complete() -> None:
    daemon = Daemon(when="at once")
    assert await stop_in_time(daemon, StopRequest())
    assert daemon.stopped


async def test_a_second_signal_hurries_a_stop_which_is_then_not_complete() -> None:
    daemon, stop = Daemon(when="hurried"), StopRequest()
    asyncio.get_running_loop().call_later(0.05, stop.hurried.set)
    assert not await stop_in_time(daemon, stop)
    assert daemon.stopped


async def test_a_stop_that_takes_too_long_is_hurried_and_in_the_end_cut_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "STOP_WITHIN_S", 0.05)
    monkeypatch.setattr(process, "HURRIED_WITHIN_S", 0.05)
    slow = Daemon(when="hurried")
    assert await stop_in_time(slow, StopRequest())
    assert slow.stopped
    with capture_logs() as logs:
        assert await stop_in_time(Daemon(when="never"), StopRequest())
    assert [(entry["event"], entry["unsettled"]) for entry in logs] == [
        ("daemon_stop_cut_short", {"stream": 3})
    ]
