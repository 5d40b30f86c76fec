"""Routes of a running daemon: the commands, the HTTP addresses, the stream, the table, and `why`."""

from __future__ import annotations

import json
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from simulators.dhan import DhanSimulator
from simulators.journal import Journal
from simulators.market import Market
from simulators.yahoo import YahooSimulator
from tests.support.daemon import clean_environment, run_script
from tests.support.databases import temporary_database
from tests.support.eventually import eventually
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(240)
KEY = "NSE:RELIANCE"


async def test_an_operator_moves_an_instrument_and_everything_says_so(
    postgres_server: str, mapped_template: str, redis_url: str, tmp_path: Path
) -> None:
    journal, market = Journal(), Market()
    async with (
        temporary_database(postgres_server, template_url=mapped_template) as database_url,
        DhanSimulator(rate=5.0, market=market, journal=journal) as dhan,
        YahooSimulator(rate=5.0, market=market, journal=journal) as yahoo,
    ):
        stack = Stack(dhan, yahoo, journal, database_url, redis_url)
        state = tmp_path / "state"
        environment = clean_environment(STATE_DIR=state)
        client = redis.asyncio.from_url(redis_url, decode_responses=True)

        async def run(*arguments: str, code: int = 0) -> str:
            found, output, errors = await run_script("main.py", *arguments, environment=environment)
            assert found == code, errors or output
            assert "Traceback" not in errors
            return output if code == 0 else errors

        async def entries(kind: str) -> list[dict[str, str]]:
            return [e for _, e in await client.xrange("md:ticks:NSE") if e["type"] == kind and e["k"] == KEY]

        async with stack.daemon(state) as daemon:
            await eventually(lambda: entries("tick"), within_s=30)
            assert (await run("providers", "active", KEY)).strip() == "DHAN"
            assert (await run("providers", "backup", KEY)).split() == ["YF"]
            assert "is mapped to DHAN, YF, not to POLYGON" in await run(
                "providers", "switch", KEY, "POLYGON", code=78
            )
            assert "did you mean" in await run("routes", "NSE:RELIANC", code=78)
            told = await run("providers", "switch", KEY, "yf", "--for", "10m", "--why", "a test")
            assert "goes to YF when that has proved itself" in told
            await eventually(lambda: entries("switched"), within_s=40)
            (switched,) = await entries("switched")
            assert (switched["from_src"], switched["to_src"], switched["reason"]) == ("DHAN", "YF", "manual")

            async def flagged() -> list[dict[str, str]]:
                return [e for e in await entries("tick") if e["src"] == "YF"]

            await eventually(flagged)
            assert {e["f"] for e in await flagged()} == {"delayed"}, "Yahoo's data of India is marked"
            others = [e for _, e in await client.xrange("md:ticks:NSE") if e["k"] != KEY]
            assert {e["type"] for e in others} <= {"tick", "bar", "session"}, "no other instrument is touched"
            assert "f" not in next(e for e in await entries("tick") if e["src"] == "DHAN" and "v" in e)

            database = await asyncpg.connect(database_url)

            async def actions() -> list[str]:
                found = await database.fetch("select action from route_events where instrument = $1", KEY)
                return [row["action"] for row in found]

            await eventually(lambda: _holds(actions, "fail_back"))
            assert await actions() == ["forced", "warm_up", "fail_back"]
            assert await database.fetchval("select count(*) from route_events where reason = ''") == 0
            await database.close()

            shown = await run("routes", KEY)
            assert "served by" in shown
            assert "a test" in shown
            assert json.loads(await run("routes", KEY, "--json"))["active"] == "YF"
            assert "DhanHQ" in await run("routes")
            why = json.loads(await run("why", KEY, "--json"))
            assert why["route"]["active"] == "YF"
            assert [row["action"] for row in why["decisions"]] == ["forced", "warm_up", "fail_back"]
            assert "fail_back" in await run("why", KEY)
            assert "follows the order of the mappings" in await run("providers", "switch", KEY, "order")
            await eventually(lambda: _is_served_by(daemon, "DHAN"), within_s=60)
        assert (state / "silence.json").exists(), "what was learned is kept"
        await client.aclose()


async def _holds(actions: object, word: str) -> bool:
    return word in await actions()  # type: ignore[operator]


async def _is_served_by(daemon: object, code: str) -> bool:
    _, answer = await daemon.get(f"/api/routes/{KEY}")  # type: ignore[attr-defined]
    return bool(answer["active"] == code)
