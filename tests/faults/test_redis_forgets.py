"""R3 in the running daemon: Redis is emptied under it, and everybody hears of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from tests.support.daemon import run_script
from tests.support.eventually import eventually
from tests.support.oracle import judge, read_store
from tests.support.row_report import report_row
from tests.support.stack import NAMES, Stack

pytestmark = pytest.mark.timeout(180)


async def test_r3_the_daemon_begins_a_new_history_and_says_so(stack: Stack, tmp_path: Path) -> None:
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    heard: list[dict[str, Any]] = []

    async def listen(url: str) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{url}/ws") as socket:
            await socket.send_json({"action": "subscribe", "id": 1, "instruments": ["NSE:RELIANCE"]})
            async for message in socket:
                heard.append(json.loads(message.data))

    async with stack.daemon(tmp_path / "state") as daemon:
        listener = asyncio.create_task(listen(daemon.runtime["api_url"]))
        await eventually(lambda: any(message["type"] == "raw_tick" for message in heard), within_s=40)
        former = await client.get("md:epoch")
        (subscribed,) = [message for message in heard if message["type"] == "subscribed"]
        assert subscribed["epoch"] == former
        await eventually(lambda: len(stack.journal.ticks) > 500, within_s=40)
        # A market that stands still: what is written again can only come from the daemon's memory.
        await stack.quiet()
        before = {key: await client.hget(f"md:last:{{{key}}}", "p") for key in NAMES.values()}
        assert all(before.values())
        await client.flushall()
        flushed = len(stack.journal.ticks)
        await eventually(lambda: any(message["type"] == "resync" for message in heard), within_s=20)
        epoch = await client.get("md:epoch")
        assert epoch not in (None, former)
        (resync,) = [message for message in heard if message["type"] == "resync"]
        assert (resync["epoch"], resync["reason"]) == (epoch, "history_lost")
        (gap,) = [message for message in heard if message["type"] == "gap"]
        assert (gap["instrumentKey"], gap["reason"], gap["epoch"]) == ("NSE:*", "history_lost", epoch)
        assert gap["from"] < gap["to"]

        async def same_newest() -> bool:
            return {key: await client.hget(f"md:last:{{{key}}}", "p") for key in before} == before

        await eventually(same_newest)
        # Live again: nothing new is lost, and the series are as they should be.
        stack.dhan.schedule.set_rate(50)
        stack.yahoo.schedule.set_rate(50)
        await eventually(lambda: len(stack.journal.ticks) > flushed + 300, within_s=40)
        await stack.quiet()
        code, status, errors = await run_script(
            "main.py", "status", "--json", environment={"STATE_DIR": str(tmp_path / "state")}
        )
        assert code == 0, errors
        accounts = json.loads(status)["pipeline"]["accounts"]
        assert {account["account"] for account in accounts} >= {
            "sink stream",
            "sink time_series",
            "frames DHAN",
            "records YF",
        }
        assert [account for account in accounts if account["imbalance"]] == []
        # Bars come with the end of a minute, which need not have been by now; nobody asked for order books.
        still = {account["account"] for account in accounts if not account["in"]}
        assert still <= {"sink bar_series", "sink depth_stream"}, still
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{daemon.runtime['api_url']}/metrics") as page,
        ):
            metrics = await page.text()
        assert 'marketd_ledger_fault{account="sink stream"} 0.0' in metrics
        assert 'marketd_ledger_imbalance{account="frames DHAN"} 0.0' in metrics
        listener.cancel()
        await asyncio.wait([listener])
        assert await daemon.stop() == 0
        assert daemon.log().count("history_lost") == 1
    verdict = judge(stack.journal.ticks[flushed:], await read_store(client, sorted(NAMES.values())), NAMES)
    await client.aclose()
    # The oracle knows the quantity before the first of these ticks as little as Redis does.
    assert verdict.lost == verdict.doubled == verdict.foreign == []
    report_row("R3", lost="0 new ticks; what Redis held before", allowed="all history in Redis; 0 new ticks")
