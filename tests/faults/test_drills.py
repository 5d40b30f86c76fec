"""The drills, run as an operator runs them; and a drill that does harm, which must fail."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from drills.drill_run import run_drill
from drills.faults import DRILLS, Drill
from drills.stack import DrillStack
from tests.support.daemon import clean_environment, run_script

pytestmark = pytest.mark.timeout(480)

QUICK = ("dhan-cut",)
SLOW = tuple(pytest.param(name, marks=pytest.mark.slow) for name in DRILLS if name not in QUICK)


@pytest.mark.parametrize("name", [*QUICK, *SLOW])
async def test_a_drill_keeps_its_promise_and_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    environment = clean_environment(TMPDIR=tmp_path)
    code, output, errors = await run_script(
        "main.py", "drill", name, "--json", environment=environment, within_s=240
    )
    assert code == 0, output + errors
    report = json.loads(output)
    assert report["passed"]
    assert (
        report["stored"] + sum(report["declared"].values()) + report["lost_at_kill"] >= report["sent"] > 500
    )
    assert [report[wrong] for wrong in ("lost", "doubled", "foreign", "changed", "disordered")] == [0] * 5
    assert bool(report["gaps"]) or not DRILLS[name].gap
    assert list(tmp_path.iterdir()) == [], "the drill's folder is gone"


async def test_a_drill_that_loses_ticks_fails_and_says_which(tmp_path: Path) -> None:
    async def harm(stack: DrillStack) -> None:
        client = stack.redis_client()
        await client.xtrim("md:ticks:NSE", maxlen=20, approximate=False)
        await client.aclose()

    drill = Drill("harm", "entries are deleted", "none", harm)
    said: list[str] = []
    report = await run_drill(drill, tmp_path, clean_environment(), said.append)
    assert not report.passed
    assert report.failure == "not every tick is accounted for"
    assert report.lost > 100
    assert any("lost: NSE:" in line for line in report.examples)


async def test_a_drill_whose_fault_is_not_seen_fails(tmp_path: Path) -> None:
    async def nothing(stack: DrillStack) -> None:
        stack.say("nothing happens")

    drill = Drill("nothing", "nothing", "none", nothing, gap=True)
    report = await run_drill(drill, tmp_path, dict(os.environ) | clean_environment(), lambda _: None)
    assert (report.passed, report.failure) == (False, "consumers were told of no gap")
    assert report.stored == report.sent > 500


async def test_the_list_and_a_drill_there_is_not() -> None:
    code, output, _ = await run_script("main.py", "drill", environment=clean_environment())
    assert code == 0
    assert all(name in output for name in DRILLS)
    code, _, errors = await run_script("main.py", "drill", "meteor", environment=clean_environment())
    assert code == 78
    assert "there is no drill 'meteor'; there are redis-restart" in errors
