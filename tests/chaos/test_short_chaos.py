"""The plan of a chaos run is the same for the same seed; and a short run of every kind of target passes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from tests.chaos.chaos_actions import ACTIONS
from tests.chaos.chaos_plan import KINDS, make_plan
from tests.chaos.chaos_run import print_report, run_chaos


def test_the_same_seed_gives_the_same_plan() -> None:
    assert make_plan(7, 600) == make_plan(7, 600)
    assert make_plan(7, 600) != make_plan(8, 600)


def test_faults_of_one_target_never_overlap() -> None:
    for seed in range(20):
        plan = make_plan(seed, 600)
        for target in {kind.target for kind in KINDS}:
            mine = [planned for planned in plan if planned.kind.target == target]
            for earlier, later in pairwise(mine):
                assert earlier.at_s + earlier.lasts_s < later.at_s


def test_the_process_is_left_alone_after_the_first_third() -> None:
    for seed in range(20):
        for planned in make_plan(seed, 600):
            assert not planned.kind.early_only or planned.at_s < 200


def test_every_planned_kind_has_an_action() -> None:
    assert {(kind.target, kind.name) for kind in KINDS} == set(ACTIONS)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_forty_seconds_of_faults_lose_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = await run_chaos(tmp_path, seed=5, seconds=40, say=print)
    print_report(report, print)
    assert report.passed, capsys.readouterr().out
