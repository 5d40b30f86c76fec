"""A long run at one rate: whether latency, memory, descriptors or the cost of a tick drift with time.

    python -m benchmarks.soak [--minutes 30] [--rate 20000] [--clients 100] [--output DIR]

Not part of `make bench`, because it takes as long as it takes. The run is looked at in windows of some
seconds; what counts is the slope over all of them, without the warm-up at the beginning (`drift`). Latency
is that of a reader of the stream, and of WebSocket clients with the newest values four times a second.

Half an hour is long enough for a machine that others share to become slower or faster. A bystander with a
fixed piece of work says by how much: the daemon's processor time is judged as a multiple of that of a piece
of this work, and where a 99th of 100 grew, by how many times it is that of the bystander's waits.

Redis writes its append-only file anew whenever it has doubled: with all that Redis keeps, which grows until
the retention is reached, and in a process of its own, for which two cores have no room. The extreme wait for
the stream is therefore judged in the windows without that, and stands beside it for the others."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import msgspec
import redis.asyncio
import typer
import uvloop
from rich.console import Console

from benchmarks import machine, report
from benchmarks.drift import Drift, drift
from benchmarks.plot import Plot
from benchmarks.report import result, row
from benchmarks.rig import SERVERS, Helper, Rig

INSTRUMENTS, WATCHED, EVERY_MS = 1_000, 50, 250
WINDOW_S = 10.0
MOST_LATENCY_GROWTH, MOST_RSS_GROWTH_MB, MOST_CPU_GROWTH = 0.2, 15.0, 0.1
"""By so much a figure may grow over the run, as a part of its middle (latency, CPU) or in MB."""
_BESIDE = f"≤ {MOST_LATENCY_GROWTH * 100:.0f} % beside the bystander's"
_FEWEST_WINDOWS = 4
_LEAST_GROWTH_MS = 0.5
"""What latency may grow by in any case: the stamps' and the scheduler's own noise."""
_MB = 1e6


class Window(msgspec.Struct, frozen=True):
    """One window of the run; `at_s` is its end, latencies in ms, memory in MB."""

    at_s: float
    rate: float
    stream_p50: float
    stream_p99: float
    client_p50: float
    client_p99: float
    daemon_rss: float
    redis_rss: float
    files: int
    daemon_us: float
    redis_us: float
    bystander_us: float
    bystander_p99: float
    queued: int
    lag_ms: float
    rewriting: bool
    """Whether Redis wrote its append-only file anew in it."""


async def soak(minutes: float, rate: int, clients: int, console: Console | None = None) -> dict[str, Any]:
    """Run and return rows, plots and all windows."""
    async with Rig(instruments=INSTRUMENTS, stamp="volume") as rig:
        base_s, url = str(rig.load.base_s), f"{rig.daemon.api_url.replace('http', 'ws', 1)}/ws"
        sizes = (str(clients), str(WATCHED), str(INSTRUMENTS))
        async with (
            Helper("reader", rig.redis_url, "md:ticks:NSE", base_s) as reader,
            Helper("watchers", url, base_s, *sizes, "latest", str(EVERY_MS)) as watchers,
            Helper("bystander") as bystander,
        ):
            beside = (reader, watchers, bystander)
            for helper in beside:
                await helper.hear()
            await rig.load.run(rate=min(rate, 2_000), seconds=1)
            before = await rig.status()
            async with redis.asyncio.from_url(rig.redis_url) as server:
                windows, sent, cut = await _windows(rig, server, beside, minutes * 60, rate, console)
            after = await rig.settled(120)
    lost = sum(
        sum(sink[kind].values()) - sum(before["sinks"][name][kind].values())
        for name, sink in after["sinks"].items()
        for kind in ("dropped", "rejected")
    )
    unaccounted = sum(abs(sink["imbalance"]) for sink in after["sinks"].values())
    return judged(windows, rate, {"sent": sent, "lost": lost, "unaccounted": unaccounted, "cut": cut})


async def _windows(
    rig: Rig,
    server: redis.asyncio.Redis,
    beside: tuple[Helper, Helper, Helper],
    seconds: float,
    rate: int,
    console: Console | None,
) -> tuple[list[Window], int, int]:
    windows: list[Window] = []
    sent, cut, began_s = 0, 0, time.monotonic()
    while time.monotonic() - began_s < seconds:
        rewrites, writing = await _rewrites(server)
        used = rig.used()
        for helper in beside:
            await helper.ask(do="begin")
        told = await rig.load.run(rate=rate, seconds=WINDOW_S)
        other = await beside[2].ask(do="end")
        status = await rig.status()
        await asyncio.sleep(EVERY_MS / 1000)
        stream, client = [await consumer.ask(do="end") for consumer in beside[:2]]
        now = rig.used()
        rewrites_after, still = await _rewrites(server)
        cpu = {who: (now[who].cpu_s - used[who].cpu_s) / told["sent"] * 1e6 for who in ("daemon", "redis")}
        windows.append(
            Window(
                at_s=time.monotonic() - began_s,
                rate=told["sent"] / told["seconds"],
                stream_p50=stream["p50"],
                stream_p99=stream["p99"],
                client_p50=client["p50"],
                client_p99=client["p99"],
                daemon_rss=now["daemon"].rss_bytes / _MB,
                redis_rss=now["redis"].rss_bytes / _MB,
                files=now["daemon"].files,
                daemon_us=cpu["daemon"],
                redis_us=cpu["redis"],
                bystander_us=other["work_us"],
                bystander_p99=other["p99"],
                queued=max(sink["queued"] + sink["spooled"] for sink in status["sinks"].values()),
                lag_ms=status["pipeline"]["loop_lag_ms"],
                rewriting=writing or still or rewrites_after != rewrites,
            )
        )
        sent, cut = sent + told["sent"], client["cut"]
        if console is not None:
            last = windows[-1]
            console.print(
                f"{last.at_s:6.0f} s  {last.rate:8.0f}/s  XREAD p99 {last.stream_p99:7.1f} ms  "
                f"client p99 {last.client_p99:7.1f} ms  RSS {last.daemon_rss:6.1f} MB  files {last.files}",
                style="dim",
            )
    return windows, sent, cut


async def _rewrites(server: redis.asyncio.Redis) -> tuple[int, bool]:
    """Return how often Redis has written its append-only file anew, and whether it is writing it now."""
    told = await server.info("persistence")
    return int(told["aof_rewrites"]), bool(told["aof_rewrite_in_progress"])


def judged(windows: list[Window], rate: int, counts: dict[str, int]) -> dict[str, Any]:
    """Return the rows: each figure's middle and how much it grew, with the bound for that."""
    found = {
        name: _drift(windows, name)
        for name in Window.__struct_fields__
        if name not in ("at_s", "redis_us", "rewriting")
    }
    minutes = windows[-1].at_s / 60
    daemon = _drift(windows, "daemon_us", "bystander_us")
    rows = [
        row("rate", found["rate"].middle, "ticks/s", at_least=0.97 * rate,
            note=f"{minutes:.1f} minutes, {counts['sent']} ticks in {len(windows)} windows"),
        _grows("socket to XREAD, p50", windows, "stream_p50"),
        *_beside_the_file(windows),
        _grows("socket to WebSocket, p50", windows, "client_p50"),
        _grows("socket to WebSocket, p99", windows, "client_p99"),
        row("daemon RSS grows by", found["daemon_rss"].grown, "MB", at_most=MOST_RSS_GROWTH_MB,
            note=f"middle {found['daemon_rss'].middle:.0f} MB"),
        row("open descriptors grow by", found["files"].grown, "", at_most=0.5,
            note=f"{windows[0].files} at first, {windows[-1].files} at last"),
        row("daemon CPU a tick grows, beside the bystander's work, by", daemon.share * 100, "%",
            at_most=MOST_CPU_GROWTH * 100,
            note=f"middle {found['daemon_us'].middle:.1f} µs, by itself {_percent(found['daemon_us'])}"),
        row("a bystander's fixed piece of work takes", found["bystander_us"].middle, "µs",
            note=f"{_percent(found['bystander_us'])} over the run, the 99th of 100 of its waits "
                 f"{_percent(found['bystander_p99'])}: the machine itself"),
        row("Redis RSS grows by", found["redis_rss"].grown, "MB",
            note="it keeps what it is given until its retention; not judged"),
        row("records lost", counts["lost"], "", at_most=0),
        row("records nobody can account for", counts["unaccounted"], "", at_most=0),
        row("clients cut", counts["cut"], "", at_most=0),
    ]  # fmt: skip
    plots = [
        _plot("latency", "Age of a tick at the consumer", "ms", windows,
              {"XREAD p50": "stream_p50", "XREAD p99": "stream_p99",
               "client p50": "client_p50", "client p99": "client_p99",
               "a bystander's waits p99": "bystander_p99"}, log_y=True),
        _plot("memory", "Resident memory of the daemon", "MB", windows, {"RSS": "daemon_rss"}),
        _plot("files", "Open descriptors of the daemon", "descriptors", windows, {"files": "files"}),
        _plot("cpu", "Processor time by tick", "µs", windows, {"daemon": "daemon_us", "Redis": "redis_us",
               "a bystander's piece of work": "bystander_us"}),
    ]  # fmt: skip
    raw = [msgspec.to_builtins(window) for window in windows]
    return result(rows, plots=plots, windows=raw, **counts)


def _drift(windows: list[Window], name: str, beside: str = "") -> Drift:
    """Return how a figure went; `beside`: as a multiple of this one of the same window."""
    return drift(
        [
            (window.at_s, getattr(window, name) / (getattr(window, beside) if beside else 1.0))
            for window in windows
        ]
    )


def _percent(found: Drift) -> str:
    return f"{found.share * 100:+.1f} %"


def _grows(what: str, windows: list[Window], name: str) -> dict[str, Any]:
    """Return by how much a latency grew; the extreme ones may by as much as a bystander's waits did."""
    found = _drift(windows, name)
    allowed_ms = max(MOST_LATENCY_GROWTH * found.middle, _LEAST_GROWTH_MS)
    note = f"middle {found.middle:.2f} ms"
    if name.endswith("p99"):
        beside = _drift(windows, name, "bystander_p99")
        note += f"; {_percent(beside)} as a multiple of a bystander's waits"
        if found.grown > allowed_ms and beside.share <= MOST_LATENCY_GROWTH:
            # The machine was slower for everybody.
            return row(f"{what} grows by", found.grown, "ms", note=note) | {"goal": _BESIDE, "met": True}
    return row(f"{what} grows by", found.grown, "ms", at_most=allowed_ms, note=note)


def _beside_the_file(windows: list[Window]) -> list[dict[str, Any]]:
    """Return the rows of the extreme wait for the stream: without, and with a file that Redis writes anew."""
    without, during = ([each for each in windows if each.rewriting is so] for so in (False, True))
    what = "socket to XREAD, p99"
    if min(len(without), len(during)) < _FEWEST_WINDOWS:
        return [_grows(what, windows, "stream_p99")]
    found = _drift(during, "stream_p99")
    return [
        _grows(what, without, "stream_p99"),
        row(f"the same in {len(during)} windows in which Redis wrote its file anew", found.middle, "ms",
            note=f"grows by {found.grown:.2g} ms, with what it keeps; not judged"),
    ]  # fmt: skip


def _plot(
    name: str, title: str, unit: str, windows: list[Window], fields: dict[str, str], *, log_y: bool = False
) -> Plot:
    lines = {
        label: [(window.at_s / 60, float(getattr(window, field))) for window in windows]
        for label, field in fields.items()
    }
    return Plot(name=name, title=title, x="minutes", y=unit, lines=lines, log_y=log_y)


def main(
    minutes: Annotated[float, typer.Option(help="How long.")] = 30.0,
    rate: Annotated[int, typer.Option(help="Ticks a second.")] = 20_000,
    clients: Annotated[int, typer.Option(help="WebSocket clients, of fifty instruments each.")] = 100,
    output: Annotated[Path, typer.Option(help="Where results are written.")] = report.RESULTS,
) -> None:
    """Run it, show every window, and write table, JSON and plots; 1 when something drifted or was lost."""
    console = Console(highlight=False, width=140 if not sys.stdout.isatty() else None)
    raise typer.Exit(uvloop.run(_main(minutes, rate, clients, output, console)))


async def _main(minutes: float, rate: int, clients: int, output: Path, console: Console) -> int:
    described = await machine.describe(quick=minutes < 30)
    try:
        measured = await soak(minutes, rate, clients, console)
    finally:
        await SERVERS.stop()
    described["took_s"] = round(minutes * 60, 1)
    report.write("soak", measured, described, output)
    report.show(console, "soak", measured)
    report.write_table(output)
    return 0 if all(each["met"] is not False for each in measured["rows"]) else 1


if __name__ == "__main__":
    typer.run(main)
