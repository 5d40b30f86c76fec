"""The addresses of options over a real socket: shapes, scopes, refusals, open interest at a time in Redis."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from services.errors import CredentialsRejected, ProviderUnavailable
from tests.support.eventually import eventually
from tests.support.gateway import GatewayRig, running_gateway
from tests.support.options import SPOT, option_desk

TOKENS = {
    "desk": "correct-horse",
    "screen": "rain-coat:ticks",
    "book": "battery-staple:history@NSE:NIFTY",
}


async def get(rig: GatewayRig, path: str, token: str = "") -> tuple[int, Any]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with rig.http.get(rig.url + path, headers=headers) as response:
        return response.status, await response.json()


async def test_a_chain_has_fourteen_fields_a_leg_and_says_who_answered() -> None:
    async with option_desk() as options, running_gateway(options=options.desk) as rig:
        status, chain = await get(rig, "/api/options/NIFTY/chain")
        assert status == 200
        assert (chain["underlying"], chain["source"], chain["refusals"]) == ("NSE:NIFTY", "DHAN", [])
        assert (chain["timestamp"], chain["underlying_price"]) == (options.dhan.event_ms, SPOT)
        day = options.days[0].isoformat()
        assert [leg["f"][:3] for leg in chain["symbols"]] == [
            [f"NFO:NIFTY-{day}-{strike}-{end}", strike, side]
            for strike in ("25000", "25050")
            for end, side in (("CE", "call"), ("PE", "put"))
        ]
        first = chain["symbols"][0]["f"]
        assert len(first) == 14
        assert first[3:9] == [SPOT, 130.0, 7, 100, None, chain["expiry"]]
        delta, gamma, theta, vega, iv = first[9:]
        assert 0.4 < delta < 0.7
        assert gamma > 0 > theta
        assert vega > 0
        assert 5 < iv < 60, "percent, not a part of one"
        assert chain["symbols"][0]["greeks_by"] == "computed"
        assert chain["pcr"] == 0.5


async def test_an_expiry_is_a_date_or_seconds_and_the_next_one_when_it_is_left_out() -> None:
    async with option_desk() as options, running_gateway(options=options.desk) as rig:
        _, body = await get(rig, "/api/options/nse:nifty/expiries")
        assert body["dates"] == [day.isoformat() for day in options.days]
        assert body["source"] == "DHAN"
        second = body["expiries"][1]
        for given in (options.days[1].isoformat(), str(second)):
            _, chain = await get(rig, f"/api/options/NIFTY/chain?expiry={given}")
            assert chain["expiry"] == second
        assert (await get(rig, "/api/options/NIFTY/chain"))[1]["expiry"] == body["expiries"][0]


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/options/NOPE/chain", 404, "unknown_instrument"),
        ("/api/options/GOLD/chain", 404, "no_options"),
        ("/api/options/GOLD/expiries", 404, "no_options"),
        ("/api/options/NIFTY/chain?expiry=2019-01-01", 404, "unknown_expiry"),
        ("/api/options/NIFTY/chain?expiry=soon", 400, "bad_parameter"),
        ("/api/options/NIFTY/chain?expiry=2026-13-45", 400, "bad_parameter"),
        ("/api/options/NIFTY/chain?expiry=1766999999000", 400, "bad_parameter"),
        ("/api/options/NIFTY/chain?strike=25000", 400, "unknown_parameter"),
        ("/api/options/NIFTY/expiries?expiry=2026-12-29", 400, "unknown_parameter"),
        ("/api/options/NIFTY/oi?time=1790000000", 400, "bad_parameter"),
        ("/api/options/NIFTY/oi?expiry=2026-12-29&time=noon", 400, "bad_parameter"),
        ("/api/options/NIFTY", 404, "not_found"),
    ],
)
async def test_every_refusal_says_what_was_wrong(path: str, status: int, code: str) -> None:
    async with option_desk() as options, running_gateway(options=options.desk) as rig:
        got, body = await get(rig, path)
        assert (got, body["error"]["code"]) == (status, code), body
        assert body["error"]["message"]
        if code == "unknown_expiry":
            assert options.days[0].isoformat() in body["error"]["message"]


async def test_with_the_first_refusing_the_second_answers_and_with_both_all_reasons_are_told() -> None:
    async with option_desk(fresh_s=0.0) as options, running_gateway(options=options.desk) as rig:
        options.dhan.refusal = CredentialsRejected("the token has ended", reason="DH-901")
        status, chain = await get(rig, "/api/options/NIFTY/chain")
        assert (status, chain["source"]) == (200, "NSE")
        assert [(it["provider"], it["reason"]) for it in chain["refusals"]] == [("DHAN", "DH-901")]
        options.nse.refusal = ProviderUnavailable("the website refuses us", reason="blocked")
        status, body = await get(rig, "/api/options/NIFTY/chain")
        assert (status, body["error"]["code"]) == (503, "no_source_answers")
        assert "the token has ended" in body["error"]["message"]
        assert "the website refuses us" in body["error"]["message"]


async def test_a_token_needs_the_scope_and_the_instrument() -> None:
    async with option_desk() as options, running_gateway(options=options.desk, tokens=TOKENS) as rig:
        for end in ("expiries", "chain", "oi"):
            path = f"/api/options/NSE:NIFTY/{end}"
            assert (await get(rig, path))[0] == 401
            assert (await get(rig, path, "rain-coat"))[0] == 403
            assert (await get(rig, path, "battery-staple"))[0] == 200
            assert (await get(rig, path, "correct-horse"))[0] == 200
        # What is not the token's looks like what does not exist.
        for name in ("TCS", "NOPE"):
            assert (await get(rig, f"/api/options/{name}/chain", "battery-staple"))[0] == 403


async def test_a_process_that_asks_no_sources_says_so() -> None:
    async with running_gateway() as rig:
        status, body = await get(rig, "/api/options/NIFTY/chain")
        assert (status, body["error"]["code"]) == (503, "not_here")


async def test_open_interest_at_a_time_is_what_was_stored_by_then(redis_url: str) -> None:
    async with (
        option_desk(redis_url, fresh_s=0.0) as options,
        running_gateway(options=options.desk) as rig,
    ):
        writing = asyncio.create_task(options.store.run())
        day, noon_ms = options.days[0].isoformat(), options.dhan.event_ms - 3_600_000
        options.dhan.event_ms = noon_ms
        _, now = await get(rig, f"/api/options/NIFTY/oi?expiry={day}")
        assert [it["call_oi"] for it in now["strikes"]] == [100, 40]
        assert (now["total_call_oi"], now["total_put_oi"], now["pcr"]) == (140, 70, 0.5)
        options.dhan.event_ms = noon_ms + 600_000
        options.dhan.oi = {"25000": (300, 60), "25050": (40, 20)}
        await get(rig, f"/api/options/NIFTY/oi?expiry={day}")
        await eventually(lambda: options.store.written == 8)
        asked = f"/api/options/NIFTY/oi?expiry={day}&time="
        status, then = await get(rig, f"{asked}{noon_ms // 1000 + 60}")
        assert status == 200
        assert then["timestamp"] == noon_ms
        assert then["strikes"] == [
            {"strike": "25000", "call_oi": 100, "put_oi": 50},
            {"strike": "25050", "call_oi": 40, "put_oi": 20},
        ]
        _, later = await get(rig, f"{asked}{noon_ms // 1000 + 700}")
        assert later["strikes"][0] == {"strike": "25000", "call_oi": 300, "put_oi": 60}
        status, body = await get(rig, f"{asked}{noon_ms // 1000 - 60}")
        assert (status, body["error"]["code"]) == (404, "no_data")
        writing.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await writing


async def test_open_interest_at_a_time_without_redis_is_told_as_unavailable() -> None:
    async with option_desk() as options, running_gateway(options=options.desk) as rig:
        day = options.days[0].isoformat()
        status, body = await get(rig, f"/api/options/NIFTY/oi?expiry={day}&time=1790000000")
        assert (status, body["error"]["code"]) == (503, "history_unavailable")
