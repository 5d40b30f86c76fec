"""Option chains of a running daemon: the command, the addresses, open interest in Redis, one budget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from simulators.nse import NseSimulator
from tests.support.daemon import clean_environment, run_script
from tests.support.eventually import eventually
from tests.support.stack import Stack

pytestmark = pytest.mark.timeout(240)


async def test_a_chain_is_shown_stored_and_paid_for_and_refusals_are_told(
    stack: Stack, tmp_path: Path
) -> None:
    state = tmp_path / "state"
    environment = clean_environment(STATE_DIR=state)

    async def run(*arguments: str, code: int = 0) -> str:
        found, output, errors = await run_script("main.py", "options", *arguments, environment=environment)
        assert found == code, errors or output
        assert "Traceback" not in errors
        return output if code == 0 else errors

    async with (
        NseSimulator(stack.dhan.market) as nse,
        stack.daemon(state, NSE_REST_URL=nse.url) as daemon,
        aiohttp.ClientSession() as http,
    ):

        async def get(path: str) -> Any:
            async with http.get(daemon.runtime["api_url"] + path) as response:
                return await response.json()

        expiries = (await get("/api/options/NIFTY/expiries"))["dates"]
        assert (await run("NIFTY", "--expiries")).count("\n") == len(expiries) + 1
        shown = await run("NIFTY", "--strikes", "2")
        assert "from DHAN" in shown
        assert expiries[0] in shown
        assert "36 more strikes" in shown
        chain = json.loads(await run("nifty", "--expiry", expiries[1], "--json"))
        assert len(chain["symbols"]) == 82
        assert chain["symbols"][0]["f"][0].startswith(f"NFO:NIFTY-{expiries[1]}-")

        async def stored() -> bool:
            asked = f"/api/options/NIFTY/oi?expiry={expiries[1]}&time={chain['timestamp'] // 1000 + 60}"
            return len((await get(asked)).get("strikes", [])) == 41

        await eventually(stored)
        # One budget: what chains took stands in the account that the past is filled from.
        used = (await get("/api/backfill"))["sources"]["DHAN"]["used_today"]
        assert used >= sum(stack.dhan.option_chains.answered.values()) >= 3

        assert "mapped to no equity" in await run("NOPE", code=78)
        assert "there are" in await run("NIFTY", "--expiry", "2019-01-01", code=78)
        assert "mapped to no equity" in await run("CRYPTO:BTC-USD", code=78)
        stack.dhan.option_chains.empty, nse.blocked = True, True
        refused = await run("NIFTY", "--expiry", expiries[2], code=75)
        assert "DHAN" in refused
        assert "NSE" in refused
