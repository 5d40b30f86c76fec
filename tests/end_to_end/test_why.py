"""`why` on a running daemon: healthy, parked, unknown."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.daemon import Daemon, clean_environment, run_script
from tests.support.eventually import eventually
from tests.support.stack import Stack


async def test_why_follows_a_tick_from_the_provider_to_the_store(stack: Stack, tmp_path: Path) -> None:
    state = tmp_path / "state"
    environment = clean_environment(STATE_DIR=state)
    async with stack.daemon(state, DHAN_ACCESS_TOKEN="") as daemon:
        await eventually(lambda: _stored(daemon), within_s=30)
        code, output, errors = await run_script("main.py", "why", "NASDAQ:AAPL", environment=environment)
        assert code == 0, errors
        assert "all is well: the last tick came" in output
        assert "YF" in output
        code, output, _ = await run_script(
            "main.py", "why", "NSE:RELIANCE", "--json", environment=environment
        )
        answer = json.loads(output)
        assert answer["route"]["active"] == "YF", "the next in the order serves it"
        assert answer["candidates"][0]["provider"] == "DHAN"
        assert answer["candidates"][0]["state"] == "parked"
        assert "DHAN_ACCESS_TOKEN" in answer["candidates"][0]["reason"]
        code, output, errors = await run_script("main.py", "why", "NSE:RELIANC", environment=environment)
        assert code == 78
        assert "did you mean NSE:RELIANCE" in errors
        assert "Traceback" not in errors


async def _stored(daemon: Daemon) -> bool:
    _, answer = await daemon.get("/api/why/NASDAQ:AAPL")
    return all(hop["at_ms"] is not None for hop in answer["hops"])
