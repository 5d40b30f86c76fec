"""SIGKILL at random moments under load, again and again: nothing is doubled, and little is lost.

The daemon is a process of its own on real servers, started again after each kill as a service manager
does it; every tick of both simulators is judged at the end.
"""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import redis.asyncio

from simulators.dhan import DhanSimulator
from simulators.journal import Journal
from simulators.market import Market
from simulators.yahoo import YahooSimulator
from tests.support.conservation import Verdict, judge_all, read_everything
from tests.support.databases import temporary_database
from tests.support.eventually import FACTOR, eventually
from tests.support.keeper import Keeper
from tests.support.market_rig import YAHOO_NAMES, dhan_names, map_database
from tests.support.row_report import report_row
from tests.support.servers import PrivateRedis

DHAN_NAMES = dhan_names(6)
NAMES = DHAN_NAMES | YAHOO_NAMES
RATE = 150.0
KILL_BOUND_MS = int(1_000 * FACTOR)


@pytest.fixture(scope="module")
def mapped_template(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a database that the scripts have filled; copied for each test."""
    with asyncio.Runner() as runner:
        database = temporary_database(postgres_server)
        url = runner.run(database.__aenter__())
        runner.run(map_database(url, tmp_path_factory.mktemp("mapped"), DHAN_NAMES))
        yield url
        runner.run(database.__aexit__(None, None, None))


@pytest.fixture
async def mapped_url(postgres_server: str, mapped_template: str) -> AsyncIterator[str]:
    async with temporary_database(postgres_server, template_url=mapped_template) as url:
        yield url


class KillRig:
    """Both simulators in identity mode and a daemon that is started again after every end."""

    def __init__(self, dhan: DhanSimulator, yahoo: YahooSimulator, journal: Journal, keeper: Keeper) -> None:
        self.dhan, self.yahoo, self.journal, self.keeper = dhan, yahoo, journal, keeper

    async def fed(self, count: int) -> None:
        """Wait until so many more ticks were sent."""
        until = self.journal.recorded + count
        await eventually(lambda: self.journal.recorded > until, 90, every_s=0.05)

    async def kill(self) -> None:
        """End the process with SIGKILL."""
        ends = len(self.keeper.ends)
        assert self.keeper.send(signal.SIGKILL)
        await eventually(lambda: len(self.keeper.ends) > ends, 10)
        assert self.keeper.ends[-1].code == -signal.SIGKILL

    async def judged(self, redis_url: str) -> Verdict:
        """Let live ticks flow once more, stop the market, wait for rest, stop the daemon, and judge."""
        await self.fed(1_000)
        await self.keeper.ready()
        self.dhan.schedule.set_rate(0)
        self.yahoo.schedule.set_rate(0)
        await self.keeper.settled()
        assert await self.keeper.stop() == 0
        client = redis.asyncio.from_url(redis_url, decode_responses=True)
        store = await read_everything(client, NAMES.values())
        await client.aclose()
        verdict = judge_all(
            self.journal.ticks, store, NAMES, kills_ms=self.keeper.kills_ms, kill_bound_ms=KILL_BOUND_MS
        )
        assert verdict.clean, "\n".join(verdict.lines())
        assert verdict.killed_oldest_ms <= KILL_BOUND_MS, verdict.lines()
        assert set(verdict.declared) <= {"daemon_down"}, verdict.declared
        assert "Traceback" not in self.keeper.log()
        return verdict


@asynccontextmanager
async def kill_rig(mapped_url: str, redis_url: str, state_dir: Path) -> AsyncIterator[KillRig]:
    journal = Journal(limit=5_000_000)
    async with (
        DhanSimulator(rate=RATE, market=Market(identity=True), journal=journal) as dhan,
        YahooSimulator(rate=5.0, market=Market(identity=True), journal=journal) as yahoo,
        Keeper(
            state_dir,
            DATABASE_URL=mapped_url,
            REDIS_URL=redis_url,
            DHAN_FEED_URL=dhan.url,
            DHAN_REST_URL=dhan.rest_url,
            DHAN_CLIENT_ID=dhan.client_id,
            DHAN_ACCESS_TOKEN=dhan.access_token,
            YAHOO_STREAM_URL=yahoo.url,
            MARKET_CALENDAR="always_open",
            STREAM_MAX_ENTRIES=5_000_000,
        ) as keeper,
    ):
        yield KillRig(dhan, yahoo, journal, keeper)


async def kill_again_and_again(
    times: int, *, seed: int, mapped_url: str, redis_url: str, state_dir: Path
) -> None:
    """Kill the daemon so often at moments that `seed` chooses, let it come to rest, and judge."""
    chosen = random.Random(seed)
    async with kill_rig(mapped_url, redis_url, state_dir) as rig:
        for _ in range(times):
            await rig.fed(200)
            # A moment between two looks of the writers, and between two steps within one.
            await asyncio.sleep(chosen.uniform(0.0, 0.4))
            await rig.kill()
        verdict = await rig.judged(redis_url)
        assert [end.code for end in rig.keeper.ends] == [-signal.SIGKILL] * times + [0]
        assert verdict.stored > 200 * times
    report_row(
        "H3",
        lost=f"{times} kills at {RATE * len(DHAN_NAMES):.0f} ticks/s: {verdict.killed} ticks in all, "
        f"the oldest {verdict.killed_oldest_ms} ms before its kill; doubled 0, torn 0",
        allowed="what is on its way to Redis, about 300 ticks at 5 000/s, and the restart gap",
    )


@pytest.mark.timeout(240)
async def test_h3_killed_five_times_under_load(mapped_url: str, redis_url: str, tmp_path: Path) -> None:
    await kill_again_and_again(
        5, seed=1, mapped_url=mapped_url, redis_url=redis_url, state_dir=tmp_path / "state"
    )


@pytest.mark.slow
@pytest.mark.timeout(1_200)
async def test_h3_killed_fifty_times_under_load(mapped_url: str, redis_url: str, tmp_path: Path) -> None:
    await kill_again_and_again(
        50, seed=2, mapped_url=mapped_url, redis_url=redis_url, state_dir=tmp_path / "state"
    )


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_h3_killed_while_redis_is_away(
    mapped_url: str, private_redis: Callable[[], Awaitable[PrivateRedis]], tmp_path: Path
) -> None:
    server = await private_redis()
    async with kill_rig(mapped_url, server.url, tmp_path / "state") as rig:
        await rig.fed(1_000)
        await rig.keeper.ready()
        await server.kill()

        async def spooled() -> int:
            pipeline = await rig.keeper.pipeline()
            rows = {sink["name"]: int(sink["spooled"]) for sink in pipeline["sinks"]} if pipeline else {}
            return min(rows.get("stream", 0), rows.get("time_series", 0))

        await eventually(lambda: _above(spooled, 2_000), 60)
        await rig.kill()
        await eventually(lambda: rig.keeper.starts >= 2, 30)
        await server.start()
        verdict = await rig.judged(server.url)
    assert verdict.stored > 3_000
    report_row(
        "H3",
        lost=f"killed while Redis was away: {verdict.killed} ticks, the oldest "
        f"{verdict.killed_oldest_ms} ms before the kill; doubled 0",
        allowed="what came in the last 500 ms before the kill",
    )


async def _above(count: Callable[[], Awaitable[int]], least: int) -> bool:
    return await count() >= least
