"""Runs one drill from a fresh stack to the verdict over every tick."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from drills.faults import Drill
from drills.stack import NAMES, DrillFailed, DrillStack
from simulators.conservation import StoredGap, judge_all, read_everything

_WARM_UP_TICKS = 300
_AFTERWARDS_TICKS = 300
_KILL_BOUND_MS = 2_000
_WELL_WITHIN_S = 120.0


class Step(msgspec.Struct, frozen=True):
    """What happened, and how many seconds after the beginning."""

    at_s: float
    text: str


class DrillReport(msgspec.Struct, kw_only=True):
    """The outcome. `gaps` counts gap records by reason, `declared` the ticks sent inside them, by reason.

    `lost`, `doubled`, `foreign`, `changed` and `disordered` must be 0. `lost_at_kill` are ticks that were on
    their way when the daemon was killed, within the bound.
    """

    drill: str
    promise: str
    passed: bool = False
    failure: str = ""
    seconds: float = 0.0
    steps: list[Step] = []
    sent: int = 0
    stored: int = 0
    declared: dict[str, int] = {}
    gaps: dict[str, int] = {}
    lost_at_kill: int = 0
    lost: int = 0
    doubled: int = 0
    foreign: int = 0
    changed: int = 0
    disordered: int = 0
    examples: list[str] = []


async def run_drill(
    drill: Drill, folder: Path, environment: Mapping[str, str], say: Callable[[str], None]
) -> DrillReport:
    """Run `drill` on a stack in `folder`; the daemon gets `environment`. `say` hears every step.

    Raises errors of `services.errors` when the stack itself cannot be started.
    """
    report = DrillReport(drill=drill.name, promise=drill.promise)
    began_s = time.monotonic()

    def note(text: str) -> None:
        report.steps.append(Step(round(time.monotonic() - began_s, 1), text))
        say(text)

    try:
        async with DrillStack(folder, environment, settings=drill.settings, say=note) as stack:
            await _sent(stack, _WARM_UP_TICKS)
            await drill.act(stack)
            await stack.until("all is well again", stack.all_is_well, _WELL_WITHIN_S)
            await _sent(stack, _AFTERWARDS_TICKS)
            await stack.quiet()
            await _judge(stack, drill, report)
    except DrillFailed as failure:
        report.failure = str(failure)
    report.seconds = round(time.monotonic() - began_s, 1)
    return report


async def _sent(stack: DrillStack, count: int) -> None:
    until = stack.journal.recorded + count

    async def is_so() -> bool:
        return stack.journal.recorded >= until

    await stack.until(f"{count} more ticks were sent", is_so)


async def _judge(stack: DrillStack, drill: Drill, report: DrillReport) -> None:
    client = stack.redis_client()
    try:
        store = await read_everything(client, NAMES.values())
    finally:
        await client.aclose()
    verdict = await asyncio.to_thread(
        judge_all,
        stack.journal.ticks,
        store,
        NAMES,
        kills_ms=stack.kills_ms,
        kill_bound_ms=_KILL_BOUND_MS,
        by_time=drill.dropped,
    )
    report.sent, report.stored = verdict.sent, verdict.stored
    report.declared = dict(verdict.declared)
    for instrument in store.values():
        for entry in instrument.entries:
            if isinstance(entry, StoredGap):
                report.gaps[entry.reason] = report.gaps.get(entry.reason, 0) + 1
    report.lost_at_kill = verdict.killed
    report.lost = verdict.lost_count
    report.doubled, report.foreign = len(verdict.doubled), len(verdict.foreign)
    report.changed, report.disordered = len(verdict.changed), len(verdict.disordered)
    report.passed = verdict.clean and verdict.stored > 0
    if not report.passed:
        report.examples = verdict.lines()[5:]
        report.failure = "not every tick is accounted for"
    elif drill.gap and not report.gaps:
        report.passed, report.failure = False, "consumers were told of no gap"
