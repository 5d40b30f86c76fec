"""One chaos run: plan, faults, healing, rest, judgement; prints what it does and what came of it."""

from __future__ import annotations

import asyncio
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.chaos_actions import act
from tests.chaos.chaos_plan import Planned, make_plan
from tests.chaos.chaos_probes import Probes, scan_log
from tests.chaos.chaos_stack import ChaosStack
from tests.support.conservation import Verdict, judge_all, read_everything
from tests.support.eventually import FACTOR, eventually

KILL_BOUND_MS = int(2_000 * FACTOR)
GROWTH_LIMIT_MIB = 1.0
_GROWTH_JUDGED_FROM_S = 240.0
_WARM_RATE = 10.0
_WARM_S = 40.0
_SETTLED_IN_S = 15.0
_DESCRIPTORS_MORE = 10
_EXIT_TEMPORARY = 75
Say = Callable[[str], None]


@dataclass
class ChaosReport:
    """What a run found; `faults` are the findings that make it fail."""

    seed: int
    verdict: Verdict = field(default_factory=Verdict)
    faults: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return not self.faults


async def run_chaos(
    folder: Path, *, seed: int, seconds: float, say: Say, targets: frozenset[str] | None = None
) -> ChaosReport:
    """Run the schedule of `seed`; return the report. The state is left in `folder`."""
    plan = make_plan(seed, seconds, targets=targets)
    say(f"seed {seed}, {seconds:g} s, {len(plan)} faults:")
    for planned in plan:
        say(f"  {planned}")
    report = ChaosReport(seed)
    async with ChaosStack(folder) as stack:
        await stack.keeper.ready()
        await eventually(lambda: len(stack.journal.ticks) > 100, 30, every_s=0.2)
        probes = Probes(stack.keeper)
        probing = asyncio.create_task(probes.run())
        try:
            if seconds >= _GROWTH_JUDGED_FROM_S:
                await _warm_up(stack)
            met = await _carry_out(stack, plan, seconds, say)
            await _come_to_rest(stack, probes, say)
        finally:
            probing.cancel()
            await asyncio.wait([probing])
        code = await stack.keeper.stop(within_s=40)
        client = stack.redis_client()
        try:
            store = await read_everything(client, stack.names.values())
        finally:
            await client.aclose()
        report.verdict = judge_all(
            stack.journal.ticks,
            store,
            stack.names,
            kills_ms=stack.keeper.kills_ms,
            kill_bound_ms=KILL_BOUND_MS,
        )
        _conclude(report, stack, probes, met, code)
    return report


async def _carry_out(stack: ChaosStack, plan: list[Planned], seconds: float, say: Say) -> Counter[str]:
    """Make every fault at its time, for so many seconds; return how many at each target met something."""
    began_s = time.monotonic()
    met: Counter[str] = Counter()

    async def one(planned: Planned) -> None:
        await asyncio.sleep(max(0.0, planned.at_s - (time.monotonic() - began_s)))
        outcome = await act(stack, planned)
        say(f"  {time.monotonic() - began_s:7.1f} s  {planned.kind.target} {planned.kind.name}: {outcome}")
        met[planned.kind.target] += not outcome.startswith(("met nothing", "it did not", "0 "))

    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(seconds))
        for planned in plan:
            group.create_task(one(planned))
    return met


async def _come_to_rest(stack: ChaosStack, probes: Probes, say: Say) -> None:
    """With all faults healed: ticks must flow from both providers, then the market stops and all settles."""
    say("healed; waiting for live ticks, then for the daemon to come to rest")
    await stack.keeper.ready(within_s=120)
    for name in stack.simulators:
        before = sum(tick.provider == name for tick in stack.journal.ticks)
        await eventually(
            lambda name=name, before=before: (
                sum(tick.provider == name for tick in stack.journal.ticks)  # type: ignore[misc]
                > before + 50
            ),
            120,
            every_s=0.5,
        )
    await asyncio.sleep(3.0)
    stack.set_rates(0)
    await stack.keeper.settled(within_s=120)
    await probes.look()


def _conclude(report: ChaosReport, stack: ChaosStack, probes: Probes, met: Counter[str], code: int) -> None:
    verdict, keeper = report.verdict, stack.keeper
    counted = probes.dropped_of("stream")
    lines, faults = report.lines, report.faults
    lines += verdict.lines()
    lines.append(f"counted as dropped or refused by the stream: {dict(counted) or 'nothing'}")
    lines.append(f"faults that met something: {dict(met)}")
    codes = Counter(end.code for end in keeper.ends)
    lines.append(f"{keeper.starts} starts; exit codes {dict(codes)}; SIGKILL {len(keeper.kills_ms)} times")
    if verdict.lost_count > counted.total():
        faults.append(f"{verdict.lost_count - counted.total()} ticks are lost")
    for name in ("doubled", "foreign", "changed", "disordered"):
        found = getattr(verdict, name)
        if found:
            faults.append(f"{len(found)} ticks are {name}")
    faults += [f"out of balance: {text}" for text in probes.imbalances]
    if code != 0:
        faults.append(f"the last stop ended with {code}")
    for end in keeper.ends[:-1]:
        wanted = {signal.SIGKILL: {-signal.SIGKILL}, signal.SIGTERM: {0}}.get(
            end.signalled or signal.SIGCONT, {_EXIT_TEMPORARY}
        )
        if end.signalled is signal.SIGTERM and end.signals > 1:
            # Asked twice it hurries, and says by its exit code that it did.
            wanted = {0, _EXIT_TEMPORARY}
        if end.code not in wanted:
            faults.append(f"the daemon ended with {end.code} at {end.at_ms} after {end.signalled}")
    faults += scan_log(keeper.log(), stack.secrets)
    _conclude_resources(report, probes)


async def _warm_up(stack: ChaosStack) -> None:
    """Send more different prices than the daemon keeps ready as text, so that this memory is full."""
    rates = {name: simulator.schedule.rate for name, simulator in stack.simulators.items()}
    for name, simulator in stack.simulators.items():
        simulator.schedule.set_rate(rates[name] * _WARM_RATE)
    await asyncio.sleep(_WARM_S)
    for name, simulator in stack.simulators.items():
        simulator.schedule.set_rate(rates[name])


def _conclude_resources(report: ChaosReport, probes: Probes) -> None:
    lags = probes.lags_ms()
    if lags:
        report.lines.append(
            f"loop lag: median {lags[len(lags) // 2]:.0f} ms, p99 {lags[len(lags) * 99 // 100]:.0f} ms, "
            f"worst {lags[-1]:.0f} ms"
        )
    life = probes.longest_life()
    warm = [sample for sample in life if sample.at_s - life[0].at_s >= _SETTLED_IN_S]
    if warm:
        # Not the least of all looks: standing by, or while servers are away, it holds far fewer.
        early = statistics.median(sample.descriptors for sample in warm[: -(-len(warm) // 2)])
        report.lines.append(f"descriptors: {early:.0f} in the first half, {life[-1].descriptors} at rest")
        if life[-1].descriptors > early + _DESCRIPTORS_MORE:
            report.faults.append(f"descriptors grew from {early:.0f} to {life[-1].descriptors}")
        steps = life[:: max(1, len(life) // 12)]
        report.lines.append(
            "memory in MiB at seconds of the longest life: "
            + ", ".join(f"{one.rss_bytes / (1 << 20):.0f}@{one.at_s - life[0].at_s:.0f}" for one in steps)
        )
    memory = probes.memory()
    if memory:
        report.lines.append(
            "memory after warm-up: {first_mib:.1f} MiB to {last_mib:.1f} MiB in {seconds:.0f} s, "
            "peak {peak_mib:.1f} MiB, growth of the medians {growth_mib:+.2f} MiB, "
            "steadily {creep_mib:+.2f} MiB".format(**memory)
        )
        # A later start of the daemon has not been warmed up: its figures are shown, not judged.
        warmed = life[0] is probes.samples[0] and memory["seconds"] >= _GROWTH_JUDGED_FROM_S
        if warmed and memory["creep_mib"] > GROWTH_LIMIT_MIB:
            report.faults.append(f"memory grew steadily, by {memory['growth_mib']:.2f} MiB")


def print_report(report: ChaosReport, say: Say) -> None:
    """Print the findings, the seed last."""
    for line in report.lines:
        say(line)
    for fault in report.faults:
        say(f"FAULT: {fault}")
    say(f"seed {report.seed}: {'passed' if report.passed else 'FAILED'}")
