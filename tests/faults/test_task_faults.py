"""No task of the daemon dies silently: each one found in the running daemon is killed in turn."""

from __future__ import annotations

import asyncio
import inspect
from functools import partial
from pathlib import Path

import pytest

from services.live_data_ingestion import IngestionConfig, LiveDataIngestion
from tests.support.daemon import ROOT
from tests.support.eventually import FACTOR, eventually
from tests.support.row_report import report_row
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(120)

EXPECTED = {
    "event_loop_lag",
    "gateway",
    "health_probe",
    "mappings",
    "provider_manager",
    "provider:DHAN",
    "provider:YF",
    "sink:broadcast",
    "sink:latest_value",
    "sink:stream",
    "sink:time_series",
    "stream:connection",
    "stream:spool",
    "DHAN:connection-0",
}
"""Some of the tasks that must be among those found; what else runs is found and killed as well."""


class Injected(RuntimeError):
    """What a task fails with at whatever it waits for."""


def label(task: asyncio.Task[None]) -> str:
    """Return a task's name, or its function's where it has no name of its own."""
    name = task.get_name()
    coroutine = task.get_coro()
    return getattr(coroutine, "__qualname__", name) if name.startswith("Task-") else name


def ours(task: asyncio.Task[None]) -> bool:
    """Tell whether a task runs code of this project; libraries' inner tasks end with the tasks they serve."""
    frame = task.get_coro().cr_frame if inspect.iscoroutine(task.get_coro()) else None
    return frame is not None and frame.f_code.co_filename.startswith(f"{ROOT}/services/")


def fail(task: asyncio.Task[None]) -> None:
    """Make what the task waits for raise, wherever it waits."""
    waiter = task._fut_waiter  # type: ignore[attr-defined]
    while isinstance(waiter, asyncio.Task):
        waiter = waiter._fut_waiter  # type: ignore[attr-defined]
    waiter.set_exception(Injected("injected"))


class Patient:
    """The whole daemon on this loop, on both simulators, and how to tell how it is."""

    def __init__(self, stack: Stack, folder: Path) -> None:
        settings = {
            "DHAN_FEED_URL": stack.dhan.url,
            "DHAN_CLIENT_ID": stack.dhan.client_id,
            "DHAN_ACCESS_TOKEN": stack.dhan.access_token,
            "YAHOO_STREAM_URL": stack.yahoo.url,
        }
        config = IngestionConfig(
            database_url=stack.database_url, redis_url=stack.redis_url, state_dir=folder, api_port=0
        )
        self.others = asyncio.all_tasks()
        self.daemon = LiveDataIngestion(config, provider_settings=lambda: settings)
        # A restart is shown for seconds; a fraction of one is enough for who looks all the time.
        self.daemon.supervisor._recent_s = 0.2

    def tasks(self) -> dict[str, list[asyncio.Task[None]]]:
        """Return the daemon's tasks by name."""
        found: dict[str, list[asyncio.Task[None]]] = {}
        for task in asyncio.all_tasks() - self.others:
            if not task.done() and ours(task):
                found.setdefault(label(task), []).append(task)
        return found

    def has(self, name: str, count: int) -> bool:
        return len(self.tasks().get(name, [])) >= count

    def complaints(self) -> list[str]:
        """Return what health and status say is wrong."""
        rows = self.daemon.provider_status()
        wrong = [f"{row['code']} is {row['state']}" for row in rows if row["state"] != "streaming"]
        return [*self.daemon.readiness().reasons, *wrong]

    async def well(self) -> None:
        try:
            await eventually(lambda: not self.complaints(), within_s=20)
        except AssertionError as error:
            raise AssertionError(f"not well again: {self.complaints()}") from error


@pytest.mark.parametrize("how", ["cancelled", pytest.param("failing", marks=pytest.mark.slow)])
async def test_h13_every_task_that_is_killed_is_seen_at_once_and_comes_back(
    how: str, stack: Stack, tmp_path: Path
) -> None:
    patient = Patient(stack, tmp_path / "state")
    (tmp_path / "state").mkdir()
    await patient.daemon.start()
    try:
        await patient.well()
        names = sorted(patient.tasks())
        assert set(names) >= EXPECTED, sorted(EXPECTED - set(names))
        loop = asyncio.get_running_loop()
        slowest_s, killed = 0.0, 0
        victims = [(name, index) for name in names for index in range(len(patient.tasks()[name]))]
        for name, index in victims:
            victim = sorted(patient.tasks()[name], key=lambda task: task.get_name())[index]
            alike = len(patient.tasks()[name])
            killed_s = loop.time()
            if how == "cancelled":
                victim.cancel()
            else:
                fail(victim)
            complaints = await eventually(patient.complaints, within_s=5, every_s=0.002)
            slowest_s = max(slowest_s, loop.time() - killed_s)
            await patient.well()
            await eventually(partial(patient.has, name, alike), within_s=10)
            assert victim.done(), (name, complaints)
            killed += 1
        assert not patient.daemon.supervisor.failed.is_set()
        published = patient.daemon.bus.published
        await eventually(lambda: patient.daemon.bus.published > published + 20)
    finally:
        unsettled = await patient.daemon.stop()
    assert unsettled == {}
    assert slowest_s < 5 * FACTOR
    left = [task for task in asyncio.all_tasks() - patient.others if ours(task)]
    assert left == []
    report_row(
        "H13",
        lost=f"{killed} tasks {how} one by one: each seen within {slowest_s:.1f} s, none stayed dead",
        allowed="provider: its gap; core: as H1; never a silently dead task",
    )
