"""Which way the path runs is seen where one looks: the log of a start, `status`, `doctor`, a benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from structlog.testing import capture_logs

from benchmarks import machine
from services.compiled import BUILD, Build
from services.live_data_ingestion import IngestionConfig, LiveDataIngestion
from services.operations import doctor, vitals
from services.operations.terminal_views import status_view

USED = Build(frozenset({"one"}))
ABSENT = Build(reason="not built")
STALE = Build(reason="built from other sources", problem=True)


def announced(build: Build, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, object]]:
    monkeypatch.setattr(vitals, "BUILD", build)
    with capture_logs() as logs:
        vitals.Vitals(limit_bytes=1 << 40, caps={}, relieve=lambda _: None).announce()
    return [dict(entry) for entry in logs if entry["event"] == "compiled_path_unused"]


def test_a_start_warns_once_of_compiled_parts_that_do_not_fit_and_of_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (warning,) = announced(STALE, monkeypatch)
    assert warning["log_level"] == "warning"
    assert (warning["reason"], warning["remedy"]) == ("built from other sources", "run make setup")
    assert announced(ABSENT, monkeypatch) == announced(USED, monkeypatch) == []


def test_doctor_says_which_way_runs_and_warns_only_where_something_can_be_mended() -> None:
    used, absent, stale = map(doctor.check_path, (USED, ABSENT, STALE))
    assert used.detail == "compiled"
    assert absent.detail == "interpreted (not built)"
    assert stale.detail == "interpreted (built from other sources)"
    assert stale.remedy == "run make setup"
    assert [check.warning for check in (used, absent, stale)] == [False, False, True]
    assert all(check.passed for check in (used, absent, stale))


async def test_status_says_which_way_this_process_runs(tmp_path: Path) -> None:
    config = IngestionConfig(
        database_url="postgresql://localhost/none", redis_url="redis://localhost/0", state_dir=tmp_path
    )
    pipeline = LiveDataIngestion(config, provider_settings=dict).pipeline_status()
    assert pipeline["compiled"] == BUILD.status()
    assert pipeline["compiled"]["used"] is BUILD.used
    console = Console(width=200)
    for build, seen in ((STALE, True), (ABSENT, False), (USED, False)):
        with console.capture() as shown:
            console.print(status_view({"providers": [], "pipeline": pipeline | {"compiled": build.status()}}))
        assert ("built from other sources: run make setup" in shown.get()) is seen


async def test_a_benchmark_says_which_way_it_measured() -> None:
    assert (await machine.describe(quick=True))["path"] == str(BUILD) in ("compiled", "interpreted")
