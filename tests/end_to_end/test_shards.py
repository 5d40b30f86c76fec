"""Ingestion in shards, interest through gateways: as processes, judged by Redis and the simulators."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from tests.support.daemon import Daemon, clean_environment, run_script
from tests.support.eventually import eventually
from tests.support.oracle import judge, read_store
from tests.support.stack import NAMES, Stack

pytestmark = pytest.mark.timeout(240)

REST = ("NASDAQ", "NYSE", "CRYPTO")


async def body(daemon: Daemon) -> dict[str, Any]:
    return dict((await daemon.get("/readyz"))[1] or {})


async def test_two_shards_side_by_side_store_every_tick_of_theirs_and_an_overlapping_one_stands_by(
    stack: Stack, tmp_path: Path
) -> None:
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    async with (
        stack.ingest(tmp_path / "nse", "NSE") as nse,
        stack.ingest(tmp_path / "rest", *REST) as rest,
        stack.gateway(tmp_path / "gateway") as gateway,
        stack.ingest(tmp_path / "third", "NSE", "BSE", wait_for="/healthz") as third,
        stack.daemon(tmp_path / "all", wait_for="/healthz") as everything,
    ):
        for overlapping in (third, everything):
            reasons = (await body(overlapping))["reasons"]
            assert len(reasons) == 1
            assert "stands by" in reasons[0]
            assert str(nse.process.pid) in reasons[0] or str(rest.process.pid) in reasons[0]
        for shard, own in ((nse, {"NSE"}), (rest, set(REST))):
            _, listed = await shard.get("/api/instruments?limit=100")
            assert {row["exchange"] for row in listed["instruments"]} == own
        assert (await gateway.get("/api/instruments"))[1]["total"] == len(NAMES)
        await eventually(lambda: len(stack.journal.ticks) > 400, within_s=30)
        # Both lose the history at once, and agree on the new one.
        await stack.quiet()
        verdict = judge(stack.journal.ticks, await read_store(client, sorted(NAMES.values())), NAMES)
        assert verdict.clean, (
            verdict.lost[:3],
            verdict.doubled[:3],
            verdict.foreign[:3],
            verdict.changed[:3],
        )
        assert verdict.stored > 300
        assert await client.xlen("md:ticks:_PROBE:NSE") > 0
        assert await client.exists("md:lease") == 0
        await client.flushall()

        async def epochs() -> bool:
            epoch = await client.get("md:epoch")
            shown = [(await gateway.status())["pipeline"]["epoch"]]
            return epoch is not None and shown == [epoch]

        await eventually(epochs, within_s=20)
        stack.dhan.schedule.set_rate(20)
        stack.yahoo.schedule.set_rate(5)

        async def streams_again() -> bool:
            return bool(await client.exists("md:ticks:NSE", "md:ticks:NASDAQ") == 2)

        await eventually(streams_again, within_s=20)
        assert [(await body(it))["ready"] for it in (nse, rest)] == [True, True]
        for shard in (nse, rest):
            for sink in (await shard.status())["pipeline"]["sinks"]:
                assert sink["imbalance"] == 0, sink
                assert sink["rejected"] == {}, sink
        # One shard dies: its exchanges alone are silent.
        assert rest.process is not None
        rest.process.send_signal(signal.SIGKILL)

        async def degraded() -> bool:
            answer = await body(gateway)
            told = " ".join(answer.get("degraded", ()))
            return answer["ready"] is True and all(f"{exchange}: " in told for exchange in REST)

        await eventually(degraded, within_s=20)
        assert "NSE: " not in " ".join((await body(gateway))["degraded"])
        # The overlapping shard takes over when the one it waits for is gone.
        assert await everything.stop() == 0
        assert await nse.stop() == 0

        async def leads() -> bool:
            return bool((await third.status())["pipeline"]["lease"]["role"] == "leading")

        await eventually(leads, within_s=40)
        assert "BSE,NSE" in str(await client.hgetall("md:shards"))
    await client.aclose()


async def test_what_clients_of_a_gateway_watch_is_subscribed_upstream_and_let_go_afterwards(
    stack: Stack, tmp_path: Path
) -> None:
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)

    def upstream() -> set[str]:
        return {NAMES[symbol] for feed in (stack.dhan, stack.yahoo) for symbol, _ in feed.subscriptions.all()}

    async with (
        stack.ingest(tmp_path / "ingest", SUBSCRIPTION_MODE="dynamic", SUBSCRIPTION_LINGER_S=1),
        stack.gateway(tmp_path / "gateway") as gateway,
    ):
        assert upstream() == set()
        url = f"{gateway.runtime['api_url']}/ws"
        async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
            await socket.send_json(
                {"action": "subscribe", "id": 1, "instruments": ["NSE:TCS", "NASDAQ:AAPL"]}
            )
            await eventually(lambda: upstream() == {"NSE:TCS", "NASDAQ:AAPL"}, within_s=20)
            assert (await socket.receive_json())["type"] == "subscribed"
            while (await socket.receive_json(timeout=20))["type"] != "raw_tick":
                pass

            async def read_on() -> None:
                # One that does not read is cut, and watches nothing any more.
                async for _ in socket:
                    pass

            reading = asyncio.create_task(read_on())
            _, why = await gateway.get("/api/why/NSE:TCS")
            assert why["interest"] == "watched"
            assert "nobody wants it" in (await gateway.get("/api/why/NSE:RELIANCE"))[1]["verdict"]
            await client.delete("md:interest")
            await eventually(lambda: upstream() == set(), within_s=20)
            # Renewed by itself, as after a Redis that forgot everything.
            await eventually(lambda: upstream() == {"NSE:TCS", "NASDAQ:AAPL"}, within_s=30)
            reading.cancel()
            await asyncio.wait([reading])
        await eventually(lambda: upstream() == set(), within_s=60)
    await client.aclose()


async def test_a_gateway_shows_providers_with_their_age_and_explains_an_instrument(
    stack: Stack, tmp_path: Path
) -> None:
    async with stack.ingest(tmp_path / "ingest") as ingest, stack.gateway(tmp_path / "gateway") as gateway:
        await eventually(lambda: len(stack.journal.ticks) > 200, within_s=30)

        async def reported() -> bool:
            return (await gateway.status())["by_code"]["DHAN"]["state"] == "streaming"

        # What a gateway shows of a provider was reported a second ago at most.
        await eventually(reported, within_s=10)
        here, there = await gateway.status(), await ingest.status()
        assert here["by_code"].keys() == there["by_code"].keys()
        (report,) = here["pipeline"]["ingest"]
        assert (report["pid"], report["fresh"]) == (ingest.process.pid, True)
        for command, words in (
            (("status",), ("DHAN", "streaming", "broadcast")),
            (("why", "NSE:RELIANCE"), ("all is well", "DHAN")),
        ):
            environment = clean_environment(STATE_DIR=gateway.state_dir)
            code, output, errors = await run_script("main.py", *command, environment=environment)
            assert code == 0, errors
            assert all(word in output for word in words), output
        async with aiohttp.ClientSession() as session:
            for path in ("/ws", "/api/stream?instruments=NSE:TCS"):
                async with session.get(ingest.runtime["api_url"] + path) as response:
                    assert response.status == 404
                    assert (await response.json())["error"]["code"] == "no_clients_here"
            async with session.get(f"{gateway.runtime['api_url']}/metrics") as response:
                assert "marketd_ready 1.0" in await response.text()
        for daemon in (ingest, gateway):
            assert (await daemon.get("/api/quotes?instruments=NSE:RELIANCE"))[0] == 200
        again = await run_script(
            "main.py",
            *("run", "--role", "gateway"),
            environment=clean_environment(
                STATE_DIR=gateway.state_dir,
                DATABASE_URL=stack.database_url,
                REDIS_URL=stack.redis_url,
                API_PORT=0,
            ),
        )
        assert again[0] == 75, "one process a state directory"
        assert "set another STATE_DIR" in again[2]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--role", "gateway"), 78, "REDIS_URL and DATABASE_URL"),
        (("--role", "gateway", "--exchanges", "NSE"), 78, "--role ingest"),
        (("--role", "ingest", "--exchanges", "NSEE"), 78, "NSE"),
        (("--role", "ingest", "--demo"), 78, "leave --role out"),
    ],
    ids=str,
)
async def test_what_does_not_go_together_is_refused_in_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    environment = clean_environment(STATE_DIR=tmp_path / "state", API_PORT=0)
    ended, _, errors = await run_script("main.py", "run", *arguments, environment=environment)
    assert ended == code, errors
    assert words in errors
    assert "Traceback" not in errors
