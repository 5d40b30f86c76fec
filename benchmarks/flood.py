"""Twenty times the sustained rate for ten seconds: what the daemon does with more than it can take.

The feed does not wait for the daemon but for its socket: what is not read in time stays with the sender, as
with a vendor. Everything that was read must be stored, or counted with the reason why it is not; that is
judged by what lies in Redis, not by the daemon's word: entries of the stream, samples of every series, and
for each instrument the sum of its stored volumes against the day's volume of its last tick.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import aiohttp
import redis.asyncio
from redis.exceptions import ResponseError

from benchmarks.plot import Plot
from benchmarks.report import result, row
from benchmarks.rig import Helper, Rig

ORDER = 30
INSTRUMENTS, CLIENTS, WATCHED, EVERY_MS = 1_000, 100, 50, 250
TIMES = 20
_SETTLED_WITHIN_S = 240.0
_LOOK_EVERY_S = 0.1
_MB = 1e6
_MOST_RSS_MB = 600
"""All three queues full, a kilobyte a record, on top of the process."""


class Look(NamedTuple):
    """The daemon at one moment of a flood, `at_s` after its begin; `wait_ms` is how long `/healthz` took."""

    at_s: float
    rss_mb: float
    wait_ms: float


async def measure(quick: bool) -> dict[str, Any]:
    """Find the rate that is sustained, send twenty times as much, and judge what became of it."""
    search_s, seconds = (2.0, 4.0) if quick else (5.0, 10.0)
    settings = {"STREAM_MAX_ENTRIES": 10_000_000, "BACKFILL_MINUTE_DAYS": 0, "BACKFILL_DAILY_DAYS": 0}
    async with Rig(instruments=INSTRUMENTS, **settings) as rig:
        url = f"{rig.daemon.api_url.replace('http', 'ws', 1)}/ws"
        sizes = (str(CLIENTS), str(WATCHED), str(INSTRUMENTS))
        async with Helper("watchers", url, "0", *sizes, "latest", str(EVERY_MS)) as watchers:
            await watchers.hear()
            sustained = await _sustained(rig, search_s)
            await watchers.ask(do="begin")
            flooded = await flood(rig, TIMES * sustained, seconds)
            seen = await watchers.ask(do="end")
            # Found again: the machine may have changed its mood meanwhile.
            beside = (sustained + await _sustained(rig, search_s)) / 2
    rows = [
        row("ticks taken and stored while it floods", flooded["taken_per_s"], "ticks/s",
            ratios={"sustained, found before and after": flooded["taken_per_s"] / beside},
            note=f"{TIMES * sustained:.0f}/s were due; {flooded['sent']} were read within {seconds:.0f} s"),
        row("records lost (dropped or refused)", flooded["lost"], "", at_most=0,
            note=str(flooded["why"] or "")),
        row("records nobody can account for", flooded["unaccounted"], "", at_most=0,
            note="; ".join(flooded["wrong"])),
        row("most that went round by the disk", flooded["most_spooled"], "records"),
        row("settled after the flood within", flooded["settled_s"], "s"),
        row("daemon RSS at most", flooded["most_rss_mb"], "MB", at_most=_MOST_RSS_MB,
            ratios={"before": flooded["most_rss_mb"] / flooded["rss_before_mb"]}),
        row("event loop late, p99", flooded["lag_p99_ms"], "ms", at_most=100,
            note=f"upper end of the histogram's step; {flooded['lag_samples']} samples, worst under "
                 f"{flooded['lag_worst_ms']:.0f} ms"),
        row("answer to /healthz, p99", flooded["wait_p99_ms"], "ms", note="while it floods"),
        row("answer to the feed's ping, slowest", flooded["slowest_pong_s"], "s", at_most=10,
            note=f"{flooded['pongs']} answered; behind all ticks sent before it; Dhan cuts after 40 s"),
        row("clients cut", seen["cut"], "", at_most=0),
        row("values each client got a second", seen["seen"] / CLIENTS / flooded["took_s"], "values/s",
            at_most=WATCHED * 1000 / EVERY_MS * 1.05, note="conflated: at most its pace allows"),
    ]  # fmt: skip
    looks = flooded.pop("looks")
    plot = Plot(
        name="memory",
        title="Resident memory in a flood",
        x="seconds",
        y="MB",
        lines={"RSS": [(look.at_s, look.rss_mb) for look in looks]},
    )
    return result(rows, plots=[plot], sustained=sustained, flooded=flooded, clients=seen)


async def _sustained(rig: Rig, seconds: float) -> float:
    """Return about what the daemon keeps up with: nine tenths of what it stores when sent without limit."""
    await rig.load.run(rate=2_000, seconds=1)
    await rig.settled(_SETTLED_WITHIN_S)
    began_s = time.monotonic()
    told = await rig.load.run(rate=0, seconds=seconds)
    await rig.settled(_SETTLED_WITHIN_S)
    return float(told["sent"] / (time.monotonic() - began_s) * 0.9)


async def flood(rig: Rig, rate: float, seconds: float) -> dict[str, Any]:
    """Send at `rate` (0: without limit) for `seconds`; return what the daemon did, and what is wrong."""
    had = await stored(rig)
    before = await rig.status()
    rss_before_mb = rig.used()["daemon"].rss_bytes / _MB
    looks: list[Look] = []
    looking = asyncio.create_task(_look(rig, looks))
    began_s = time.monotonic()
    told = await rig.load.run(rate=rate, seconds=seconds)
    ended_s = time.monotonic()
    at_end = await rig.status()
    after = await rig.settled(_SETTLED_WITHIN_S)
    settled_s = time.monotonic()
    looking.cancel()
    await asyncio.wait([looking])
    flooding = [look for look in looks if look.at_s <= told["seconds"]]
    wrong, unaccounted = await judge(rig, (before, had), after, told["sent"])
    why = _lost(before, after)
    waits = sorted(look.wait_ms for look in flooding)
    return {
        **told,
        "taken_per_s": told["sent"] / (settled_s - began_s),
        "took_s": settled_s - began_s,
        "settled_s": settled_s - ended_s,
        "why": why,
        "lost": sum(why.values()),
        "wrong": wrong,
        "unaccounted": unaccounted,
        "most_spooled": max(sink["spooled"] for sink in at_end["sinks"].values()),
        "queued_at_end": {name: sink["queued"] for name, sink in at_end["sinks"].items()},
        "rss_before_mb": rss_before_mb,
        "most_rss_mb": max(look.rss_mb for look in looks),
        "wait_p99_ms": waits[int(len(waits) * 0.99)] if waits else None,
        **_lag(before, at_end),
        "looks": looks,
    }


async def _look(rig: Rig, looks: list[Look]) -> None:
    """Look at the daemon until cancelled."""
    loop = asyncio.get_running_loop()
    began_s = loop.time()
    async with aiohttp.ClientSession() as session:
        while True:
            asked_s = loop.time()
            async with session.get(f"{rig.daemon.api_url}/healthz") as answer:
                await answer.read()
            now_s = loop.time()
            rss_mb = rig.used()["daemon"].rss_bytes / _MB
            looks.append(Look(now_s - began_s, rss_mb, (now_s - asked_s) * 1000))
            await asyncio.sleep(max(0.0, asked_s + _LOOK_EVERY_S - loop.time()))


def _lag(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return how late the event loop was between two moments, by the histogram of its own samples."""
    was, now = (status["pipeline"]["hops"]["event_loop"] for status in (before, after))
    counts = [late - early for early, late in zip(was["counts"], now["counts"], strict=True)]
    ends = [*(end * 1000 for end in now["le"]), float("inf")]
    samples = counts[-1]

    def within(share: float) -> float | None:
        return next((end for end, count in zip(ends, counts, strict=True) if count >= share * samples), None)

    return {"lag_p99_ms": within(0.99), "lag_worst_ms": within(1.0) or 0.0, "lag_samples": samples}


def _lost(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, int]:
    """Return how many records each sink has given up since, by sink and reason."""
    found = {}
    for name, sink in after["sinks"].items():
        for kind in ("dropped", "rejected"):
            for reason, count in sink[kind].items():
                more = count - before["sinks"][name][kind].get(reason, 0)
                if more:
                    found[f"{name} {reason}"] = more
    return found


class Stored(NamedTuple):
    """What lies in Redis: entries of all streams, and by instrument the day's and the stored volume."""

    entries: int
    day_volumes: list[int]
    volumes: list[int]


async def stored(rig: Rig) -> Stored:
    """Return what lies in Redis; nothing may have been trimmed."""
    client = redis.asyncio.from_url(rig.redis_url)
    try:
        streams = [key async for key in client.scan_iter("md:ticks:*")]
        entries = [int((await client.xinfo_stream(key))["entries-added"]) for key in streams]
        day_volumes: list[int] = []
        volumes: list[int] = []
        keys = [rig.instrument(number + 1) for number in range(rig.instruments)]
        for at in range(0, len(keys), 100):
            pipe = client.pipeline(transaction=False)
            for key in keys[at : at + 100]:
                pipe.hget(f"md:last:{{{key}}}", "cv")
                pipe.execute_command(
                    "TS.RANGE", f"md:ts:{{{key}}}:volume", "-", "+", "AGGREGATION", "sum", 10**12
                )
            replies = await pipe.execute(raise_on_error=False)
            day_volumes += map(int, replies[::2])
            for found in replies[1::2]:
                if isinstance(found, ResponseError):
                    # The first tick has no quantity, so its series comes with the second.
                    found = []
                volumes.append(sum(round(float(value)) for _, value in found))
    finally:
        await client.aclose()
    return Stored(sum(entries), day_volumes, volumes)


async def judge(
    rig: Rig, was: tuple[Mapping[str, Any], Stored], after: Mapping[str, Any], sent: int
) -> tuple[list[str], int]:
    """Compare what was sent, what the daemon says and what lies in Redis; return what differs, by how much.

    `was` are status and `stored` before. Volumes are compared where no sample was given up.
    """
    before, had = was
    has = await stored(rig)
    early, late = (status["pipeline"]["ledger"]["DHAN"] for status in (before, after))
    grown = {name: late[name] - early[name] for name in ("frames", "accepted", "merged")}
    refused = sum(late["rejected"].values()) - sum(early["rejected"].values())
    sinks = {name: (sink, before["sinks"][name]) for name, sink in after["sinks"].items()}
    stream = sinks["stream"][0]["written"] - sinks["stream"][1]["written"]
    traded = [now - then for now, then in zip(has.day_volumes, had.day_volumes, strict=True)]
    noted = [now - then for now, then in zip(has.volumes, had.volumes, strict=True)]
    lost_samples = _given_up(after["sinks"]["time_series"]) - _given_up(before["sinks"]["time_series"])
    off = sum(abs(one - other) for one, other in zip(traded, noted, strict=True))
    compared = {
        "ticks sent and frames read": (sent, grown["frames"]),
        "frames read and what became of them": (
            grown["frames"],
            grown["accepted"] + grown["merged"] + refused,
        ),
        "records written to the streams and their entries": (stream, has.entries - had.entries),
        "days' volumes and stored volumes": (0, 0 if lost_samples else off),
        **{
            f"what {name} was offered and accounts for": (0, sink["imbalance"])
            for name, (sink, _) in sinks.items()
        },
    }
    wrong = {what: abs(one - other) for what, (one, other) in compared.items() if one != other}
    return [f"{what} differ by {much}" for what, much in wrong.items()], sum(wrong.values())


def _given_up(sink: Mapping[str, Any]) -> int:
    return sum(sink["dropped"].values()) + sum(sink["rejected"].values())
