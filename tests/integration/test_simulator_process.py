"""`python -m simulators` as a process: its ready line, its control API, its journal file, its end.

Real: the process, HTTP and WebSocket clients.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from services.wire import dhan as wire
from services.wire import yahoo as yahoo_wire
from tests.support.eventually import FACTOR, eventually
from tests.support.simulator_clients import RELIANCE, connected, pairs

ROOT = Path(__file__).resolve().parents[2]


class Simulators:
    """The running process and what it printed."""

    def __init__(self, process: asyncio.subprocess.Process, ready: dict[str, Any]) -> None:
        self.process = process
        self.ready = ready

    @property
    def feed_url(self) -> str:
        ready = self.ready
        return (
            f"{ready['dhan_feed_url']}/?version=2&token={ready['dhan_access_token']}"
            f"&clientId={ready['dhan_client_id']}&authType=2"
        )

    async def get(self, path: str) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.get(self.ready["control_url"] + path) as answer,
        ):
            assert answer.status == 200
            return dict(await answer.json())

    async def post(self, path: str, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.ready["control_url"] + path, json=body) as answer,
        ):
            assert answer.status == status, await answer.text()
            return dict(await answer.json())


@asynccontextmanager
async def simulators(*arguments: str) -> AsyncIterator[Simulators]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "simulators",
        *arguments,
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), 20 * FACTOR)
        yield Simulators(process, json.loads(line) if line else {})
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def _ended(process: asyncio.subprocess.Process) -> tuple[int, str]:
    _, errors = await asyncio.wait_for(process.communicate(), 10 * FACTOR)
    return process.returncode or 0, errors.decode()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_process_with_exit_code_0_while_clients_are_connected(number: int) -> None:
    async with simulators("--rate", "50") as running, connected(running.feed_url) as client:
        await client.subscribe(RELIANCE)
        assert await client.dhan()
        running.process.send_signal(number)
        assert await _ended(running.process) == (0, "")


async def test_the_process_ends_with_its_parent_when_asked_to() -> None:
    async with simulators("--exit-with-parent") as running:
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert await _ended(running.process) == (0, "")


async def test_a_taken_port_is_said_in_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        async with simulators("--dhan-port", str(port)) as running:
            code, errors = await _ended(running.process)
    assert code == 1
    assert errors.startswith("the simulators could not start: ")
    assert len(errors.splitlines()) == 1


async def test_the_ready_line_names_everything_a_client_needs() -> None:
    async with simulators() as running:
        ready = running.ready
        assert set(ready) == {
            "dhan_feed_url",
            "dhan_rest_url",
            "dhan_depth_20_url",
            "dhan_depth_200_url",
            "dhan_scrip_master_url",
            "dhan_client_id",
            "dhan_access_token",
            "yahoo_stream_url",
            "yahoo_rest_url",
            "nse_rest_url",
            "control_url",
            "pid",
        }
        assert ready["pid"] == running.process.pid
        async with connected(running.feed_url) as client:
            await client.subscribe(RELIANCE)
            assert (await client.dhan())[0].security_id == 2885
        async with connected(ready["yahoo_stream_url"]) as client:
            await client.subscribe_yahoo(["AAPL"])
            assert (await client.yahoo()).id == "AAPL"
        headers = {"access-token": ready["dhan_access_token"], "client-id": ready["dhan_client_id"]}
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.get(f"{ready['dhan_rest_url']}/profile") as answer,
        ):
            assert (await answer.json())["dhanClientId"] == ready["dhan_client_id"]


async def test_faults_ticks_rates_and_tokens_are_controlled_over_http() -> None:
    async with simulators("--rate", "0", "--identity") as running:
        index = await running.get("/")
        assert {"usage", "dhan_faults", "yahoo_faults"} == set(index)

        async with connected(running.feed_url) as client:
            await client.subscribe(RELIANCE, mode=wire.FeedMode.QUOTE)
            await client.dhan()
            sent = await running.post("/emit", {"provider": "dhan", "symbol": RELIANCE, "price": "1300.50"})
            assert [entry["price"] for entry in sent["sent"]] == ["1300.50"]
            assert (await client.dhan())[0].ltp == 1300.5

            await running.post("/rate", {"rate": 100, "provider": "dhan", "symbols": [RELIANCE]})
            assert await client.dhan()
            requests = await running.get("/requests?provider=dhan")
            assert wire.subscribe_messages(wire.FeedMode.QUOTE, pairs(RELIANCE))[0] in [
                request["content"] for request in requests["requests"]
            ]
            answer = await running.post("/dhan/fault", {"fault": "close", "code": 1013})
            assert answer == {"ok": True, "connections": 1}
            assert await client.end() == 1013

        async with connected(running.feed_url) as client:
            await running.post("/token/expire", {})
            assert await client.dhan_end() == (807, 1000)
        issued = await running.post("/token/issue", {"life_s": 60})
        running.ready["dhan_access_token"] = issued["access_token"]
        async with connected(running.feed_url) as client:
            assert await client.silent()

        async with connected(running.ready["yahoo_stream_url"]) as client:
            await client.subscribe_yahoo(["AAPL"])
            assert await client.yahoo()
            await running.post("/yahoo/fault", {"fault": "other_envelope", "type": "notice"})
            assert yahoo_wire.decode_frame(await client.frame()) is None
            await running.post("/yahoo/fault", {"fault": "mute"})
            state = await running.get("/state")
            assert state["yahoo"]["faults"]["muted"] is True
            assert state["yahoo"]["fault_counts"] == {"other_envelope": 1}
            assert state["dhan"]["fault_counts"]["close"] == 1


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/dhan/fault", {"fault": "bad_base64"}, 400, "Invalid value"),
        ("/yahoo/fault", {"fault": "close", "cod": 1}, 400, "unknown field"),
        ("/dhan/fault", {"fault": "garbage", "data": "xyz"}, 400, "hexadecimal"),
        ("/rate", {"rate": -1}, 400, "rate"),
        ("/emit", {"provider": "dhan", "symbol": "NSE_EQ:999999"}, 404, "unknown symbol"),
        ("/emit", {"provider": "nobody", "symbol": "AAPL"}, 400, "Invalid enum"),
    ],
)
async def test_a_wrong_control_request_is_answered_with_what_is_wrong(
    path: str, body: dict[str, Any], status: int, says: str
) -> None:
    async with simulators() as running:
        assert says in (await running.post(path, body, status))["error"]


async def test_the_journal_is_the_same_in_the_file_and_over_http(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    async with simulators("--rate", "100", "--identity", "--journal", str(file)) as running:
        async with connected(running.feed_url) as client:
            await client.subscribe(RELIANCE, mode=wire.FeedMode.QUOTE)
            received = [(await client.dhan())[0] for _ in range(30)]

        async def closed() -> bool:
            entries = (await running.get("/journal?limit=20000"))["entries"]
            return bool(entries) and entries[-1].get("event") == "closed"

        await eventually(closed)
        page = await running.get("/journal?since=0&limit=5")
        assert (page["next"], len(page["entries"])) == (5, 5)
        rest = await running.get("/journal?since=5&limit=20000")
        entries = page["entries"] + rest["entries"]
        running.process.send_signal(signal.SIGTERM)
        await _ended(running.process)
    assert [json.loads(line) for line in file.read_text().splitlines()] == entries
    ticks = [entry for entry in entries if entry["type"] == "tick"]
    assert [float(tick["float32"]) for tick in ticks[:30]] == [record.ltp for record in received]
    assert [tick["price"] for tick in ticks[:3]] == ["1192.30", "1192.40", "1192.50"]
    assert [tick["volume"] for tick in ticks[:30]] == [record.volume for record in received]
