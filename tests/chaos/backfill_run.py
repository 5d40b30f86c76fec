"""500 instruments x 30 days of minute bars at the vendor's allowed rate, killed and begun again on the way.

    python -m tests.chaos.backfill_run [--instruments 500] [--days 30] [--kills 2] [--rate 5]

Real Redis and PostgreSQL, Dhan simulated with its own limits; takes about two minutes at the vendor's rate.
Exits 1 when a bar is missing or wrong, when finished work was asked for again, or when the vendor had to
refuse a request for its rate. `--rate` raises the limit of both sides.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

import msgspec

from data_migration.schema import migrate
from services.operations.embedded import EmbeddedPostgres
from services.storage.client import make_client
from simulators import past as simulated
from simulators.dhan import DhanSimulator
from tests.support.daemon import ROOT
from tests.support.past import NOON_MS, FixedClock, mapping
from tests.support.servers import PrivateRedis

DAY_MS = 86_400_000
WORKERS = 4


async def run(arguments: argparse.Namespace) -> int:
    """Do it, and judge."""
    folder = Path(tempfile.mkdtemp(prefix="marketd-backfill-"))
    redis, postgres = PrivateRedis(folder / "redis"), EmbeddedPostgres(folder / "postgres")
    await redis.start()
    database_url = await postgres.start()
    clock = FixedClock(NOON_MS)
    try:
        await migrate(database_url)
        async with DhanSimulator(any_symbol=True, now_ms=clock.now_ms) as dhan:
            dhan.charts.limit.per_second = arguments.rate
            return await _fetch(arguments, dhan, database_url, redis.url, folder)
    finally:
        await postgres.stop()
        await redis.stop()


async def _fetch(
    arguments: argparse.Namespace, dhan: DhanSimulator, database_url: str, redis_url: str, folder: Path
) -> int:
    mappings = [
        mapping(f"NSE:S{number:04}", "DHAN", f"NSE_EQ:{100_000 + number}", primary=True)
        for number in range(arguments.instruments)
    ]
    begin_ms = NOON_MS - arguments.days * DAY_MS
    order = {
        "database_url": database_url,
        "redis_url": redis_url,
        "folder": str(folder / "history"),
        "settings": {
            "DHAN_CLIENT_ID": dhan.client_id,
            "DHAN_ACCESS_TOKEN": dhan.access_token,
            "DHAN_REST_URL": dhan.rest_url,
        },
        "mappings": msgspec.to_builtins(mappings),
        "now_ms": NOON_MS,
        "minute_days": 0,
        "per_second": arguments.rate,
        "gaps": [],
        "ask": [[one.instrument for one in mappings], begin_ms, NOON_MS],
    }
    started_s = time.monotonic()
    for life in range(arguments.kills + 1):
        kill_at = None if life == arguments.kills else arguments.instruments // (arguments.kills + 1)
        job = await _live(order, kill_at)
        print(
            f"life {life + 1}: {job['done']} of {job['windows']} requests, {job['bars']} bars, "
            f"refused {job['refused'] or 'nothing'}, {time.monotonic() - started_s:.0f} s",
            flush=True,
        )
    problems = await _problems(arguments, dhan, redis_url, mappings, begin_ms)
    for problem in problems:
        print("WRONG:", problem)
    spent_s = time.monotonic() - started_s
    print(f"{dhan.charts.answered} requests in {spent_s:.0f} s, {dhan.charts.answered / spent_s:.2f}/s")
    return 1 if problems else 0


async def _live(order: dict[str, object], kill_at: int | None) -> dict[str, object]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.support.past_process",
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(order).encode() + b"\n")
    job: dict[str, object] = {}
    try:
        while True:
            line = await process.stdout.readline()
            if not line:
                raise RuntimeError("the process ended by itself")
            job = json.loads(line)
            if job["finished_ms"] is not None or (kill_at is not None and job["done"] >= kill_at):
                # Long enough for the ledger to have what is done, as it writes every two seconds.
                await asyncio.sleep(0 if kill_at is not None else 3)
                return job
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _problems(
    arguments: argparse.Namespace,
    dhan: DhanSimulator,
    redis_url: str,
    mappings: list[object],
    begin_ms: int,
) -> list[str]:
    problems: list[str] = []
    client = make_client(redis_url, reply_timeout_s=30)
    for one in mappings:
        listing = dhan.listing(one.provider_symbol)  # type: ignore[attr-defined]
        assert listing is not None
        bars = simulated.bars(
            listing.instrument, simulated.INDIA, 1, begin_ms // 1000, NOON_MS // 1000 - 180, NOON_MS // 1000
        )
        expected = {bar.start_s * 1000: bar.close for bar in bars if bar.start_s * 1000 >= begin_ms}
        key = f"md:ts:{{{one.instrument}}}:1m:close"  # type: ignore[attr-defined]
        stored = {row[0]: float(row[1]) for row in await client.execute_command("TS.RANGE", key, "-", "+")}
        lacking = [at for at, close in expected.items() if stored.get(at) != close]
        if lacking:
            problems.append(f"{key}: {len(lacking)} of {len(expected)} bars are missing or wrong")
    await client.aclose()
    allowed = arguments.instruments + arguments.kills * (WORKERS + 3 * int(arguments.rate))
    if dhan.charts.answered > allowed:
        problems.append(f"{dhan.charts.answered} requests were made, {allowed} at most were needed")
    if dhan.charts.limit.refused:
        problems.append(f"the vendor refused {dhan.charts.limit.refused} requests for their rate")
    return problems


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--instruments", type=int, default=500)
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--rate", type=float, default=5.0)
    sys.exit(asyncio.run(run(parser.parse_args())))


if __name__ == "__main__":
    main()
