"""The addresses of the past over a real socket: answers, limits, refusals, tokens; a backend made by hand."""

from __future__ import annotations

from typing import Any

import pytest

from services.errors import StorageUnavailable
from services.market_data.candles import HistoryAnswer, Missing
from tests.support.gateway import GatewayRig, running_gateway

ORDER = {"instruments": ["NSE:TCS"], "interval": "1m", "from": 1_700_000_000, "to": 1_700_100_000}


async def get(rig: GatewayRig, path: str, **headers: str) -> tuple[int, Any]:
    async with rig.http.get(rig.url + path, headers=headers) as response:
        return response.status, await response.json()


async def post(rig: GatewayRig, path: str, body: Any, **headers: str) -> tuple[int, Any]:
    async with rig.http.post(rig.url + path, json=body, headers=headers) as response:
        return response.status, await response.json()


async def test_candles_have_the_documented_shape() -> None:
    async with running_gateway(["NSE:TCS"]) as rig:
        assert await get(rig, "/api/history/NSE:TCS?interval=5m&count=10") == (
            200,
            {
                "instrument": "NSE:TCS",
                "interval": "5m",
                "candles": [[1_700_000_040, 10.0, 11.0, 9.5, 10.5, 100]],
                "complete": True,
            },
        )
        asked = rig.backend.asked[-1]
        assert (asked.resolution.minutes, asked.count, asked.from_ms, asked.forming) == (5, 10, None, False)


async def test_without_parameters_the_newest_500_minutes_are_meant() -> None:
    async with running_gateway(["NSE:TCS"]) as rig:
        await get(rig, "/api/history/NSE:TCS")
        assert (rig.backend.asked[-1].resolution.text, rig.backend.asked[-1].count) == ("1m", 500)
        await get(rig, "/api/history/NSE:TCS?from=10&to=20&forming=true")
        asked = rig.backend.asked[-1]
        assert (asked.count, asked.from_ms, asked.to_ms, asked.forming) == (None, 10_000, 20_000, True)


async def test_what_is_missing_is_told_with_its_reason() -> None:
    async with running_gateway(["NSE:TCS"]) as rig:
        rig.backend.past = HistoryAnswer(
            candles=[], complete=False, missing=(Missing(10, 20, "stale"),), sources=("DHAN",)
        )
        _, body = await get(rig, "/api/history/NSE:TCS")
        assert body["complete"] is False
        assert body["missing"] == [[10, 20, "stale"]]
        assert body["sources"] == ["DHAN"]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("interval=7", "bad_parameter"),
        ("interval=2d", "bad_parameter"),
        ("count=0", "bad_parameter"),
        ("count=5001", "bad_parameter"),
        ("count=many", "bad_parameter"),
        ("from=20&to=10", "bad_parameter"),
        ("from=yesterday", "bad_parameter"),
        ("from=1700000000000", "bad_parameter"),
        ("forming=perhaps", "bad_parameter"),
        ("interwal=1m", "unknown_parameter"),
    ],
)
async def test_a_wrong_parameter_is_refused_before_anything_is_read(query: str, code: str) -> None:
    async with running_gateway(["NSE:TCS"]) as rig:
        status, body = await get(rig, f"/api/history/NSE:TCS?{query}")
        assert (status, body["error"]["code"]) == (400, code)
        assert rig.backend.asked == []


async def test_an_unknown_instrument_is_told_with_what_is_near() -> None:
    async with running_gateway(["NSE:TCS"]) as rig:
        for path in ("/api/history/NSE:TCZ", "/api/coverage/NSE:TCZ"):
            status, body = await get(rig, path)
            assert (status, body["error"]["code"]) == (404, "unknown_instrument")
            assert "did you mean NSE:TCS?" in body["error"]["message"]


async def test_while_redis_is_away_the_answer_is_503_and_when_to_come_back() -> None:
    async with running_gateway(["NSE:TCS"]) as rig:
        rig.backend.past = StorageUnavailable("Redis did not answer in time")
        async with rig.http.get(f"{rig.url}/api/history/NSE:TCS") as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "2"


async def test_coverage_is_told_by_type() -> None:
    async with running_gateway(["NSE:TCS"]) as rig:
        _, body = await get(rig, "/api/coverage/NSE:TCS?type=1d")
        assert body == {
            "instrument": "NSE:TCS",
            "spans": [
                {"type": "1d", "state": "have", "source": "DHAN", "from_ms": 0, "to_ms": 60_000, "reason": ""}
            ],
        }
        assert (await get(rig, "/api/coverage/NSE:TCS?type=5m"))[0] == 400


async def test_a_backfill_is_ordered_by_name_or_for_a_whole_exchange() -> None:
    async with running_gateway(["NSE:TCS", "NSE:INFY", "NASDAQ:AAPL"]) as rig:
        assert (await post(rig, "/api/backfill", ORDER))[0] == 202
        status, job = await post(rig, "/api/backfill", ORDER | {"instruments": ["NSE:*"], "interval": "1d"})
        assert (status, job["windows"]) == (202, 2)
        assert rig.backend.asked[-1] == (
            ["NSE:INFY", "NSE:TCS"],
            "1d",
            1_700_000_000_000,
            1_700_100_000_000,
        )
        assert (await get(rig, "/api/backfill"))[0] == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"instruments": ["NSE:NOPE"]}, 404),
        ({"instruments": ["BSE:*"]}, 404),
        ({"instruments": []}, 400),
        ({"interval": "5m"}, 400),
        ({"from": 1_700_100_000}, 400),
        ({"to": "tomorrow"}, 400),
        ({"too": 1}, 400),
    ],
)
async def test_a_wrong_order_is_refused(change: dict[str, Any], status: int) -> None:
    async with running_gateway(["NSE:TCS"]) as rig:
        assert (await post(rig, "/api/backfill", ORDER | change))[0] == status
        assert rig.backend.asked == []


async def test_the_past_needs_its_scope_and_instrument_and_an_order_that_of_an_administrator() -> None:
    tokens = {
        "desk": "correct-horse",
        "screen": "battery-staple:ticks",
        "charts": "history-buff:history@NSE:TCS",
    }
    async with running_gateway(["NSE:TCS", "NSE:INFY"], tokens=tokens) as rig:
        screen = {"Authorization": "Bearer battery-staple"}
        charts = {"Authorization": "Bearer history-buff"}
        desk = {"Authorization": "Bearer correct-horse"}
        assert (await get(rig, "/api/history/NSE:TCS"))[0] == 401
        for path in ("/api/history/NSE:TCS", "/api/coverage/NSE:TCS"):
            assert (await get(rig, path, **screen))[0] == 403
            assert (await get(rig, path, **charts))[0] == 200
            # An instrument that is not the token's and one that does not exist are told alike.
            assert (await get(rig, path.replace("TCS", "INFY"), **charts))[0] == 403
            assert (await get(rig, path.replace("TCS", "NOPE"), **charts))[0] == 403
        assert (await post(rig, "/api/backfill", ORDER, **charts))[0] == 403
        assert (await post(rig, "/api/backfill", ORDER, **desk))[0] == 202


async def test_a_foreign_page_cannot_order_a_backfill() -> None:
    async with running_gateway(["NSE:TCS"]) as rig:
        status, _ = await post(rig, "/api/backfill", ORDER, Origin="https://evil.example")
        assert status == 403
        assert rig.backend.asked == []
