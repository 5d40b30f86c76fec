"""The main job: provider bytes to Redis and a client, the daemon as a process, every tick judged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from pathlib import Path

import aiohttp
import asyncpg
import pytest
import redis.asyncio

from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.oracle import judge, read_store
from tests.support.stack import DHAN_NAMES, NAMES, Stack

pytestmark = pytest.mark.timeout(180)


async def test_every_tick_that_was_sent_is_stored_exactly_once_with_its_time_price_and_quantity(
    stack: Stack, tmp_path: Path
) -> None:
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    async with stack.daemon(tmp_path / "state") as daemon:
        await eventually(lambda: len(stack.journal.ticks) > 1_000, within_s=40)
        status = (await daemon.status())["by_code"]
        assert {code: row["state"] for code, row in status.items()} == {
            "DHAN": "streaming",
            "YF": "streaming",
        }
        assert (status["DHAN"]["subscribed"], status["YF"]["subscribed"]) == (6, 4)
        assert status["DHAN"]["instruments_live"] == 6
        assert status["DHAN"]["ticks_per_s"] > 0
        await stack.quiet()
        assert await daemon.stop() == 0
    verdict = judge(stack.journal.ticks, await read_store(client, sorted(NAMES.values())), NAMES)
    await client.aclose()
    assert verdict.clean, verdict
    assert verdict.stored > 900


async def test_keys_entries_and_quotes_read_as_documented(stack: Stack, tmp_path: Path) -> None:
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    async with stack.daemon(tmp_path / "state") as daemon:
        await eventually(lambda: len(stack.journal.ticks) > 300, within_s=40)
        await stack.quiet()
        last = await client.hgetall("md:last:{NSE:RELIANCE}")
        (_, entry), *_ = [
            row
            for row in await client.xrevrange("md:ticks:NSE")
            if row[1]["k"] == "NSE:RELIANCE" and row[1]["type"] == "tick"
        ]
        assert last == entry
        assert entry["type"] == "tick"
        assert entry["src"] == "DHAN"
        for name in ("t", "r", "p", "v", "cv", "b", "a", "bs", "as", "o", "h", "l", "pc"):
            assert float(entry[name]) >= 0, name
        assert "oi" not in entry, "an equity has no open interest"
        info = await client.ts().info("md:ts:{NSE:RELIANCE}:price")
        assert info.labels == {
            "instrument": "NSE:RELIANCE",
            "exchange": "NSE",
            "symbol": "RELIANCE",
            "field": "price",
            "kind": "tick",
        }
        assert info.retention_msecs == 48 * 3_600_000
        assert str(info.duplicate_policy).lower() == "last"
        assert await client.exists("md:ts:{NSE:NIFTY}:volume") == 0, "an index has no volume"
        assert await client.exists("md:ts:{CRYPTO:BTC-USD}:volume") == 0, "a rolling amount is no volume"
        code, quotes = await daemon.get("/api/quotes?instruments=NSE:RELIANCE,NASDAQ:AAPL")
        assert code == 200
        assert "2885" not in str(quotes), "provider symbols do not leave the daemon"
        code, listed = await daemon.get("/api/instruments?exchange=NYSE")
        assert code == 200
        assert "NYSE:JPM" in str(listed)
        assert "NSE:" not in str(listed)
    await client.aclose()


async def test_a_websocket_client_gets_the_ticks_in_the_documented_shape(
    stack: Stack, tmp_path: Path
) -> None:
    async with (
        stack.daemon(tmp_path / "state") as daemon,
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{daemon.runtime['api_url']}/ws") as socket,
    ):
        await socket.send_json(
            {
                "action": "subscribe",
                "id": 1,
                "instruments": ["NSE:RELIANCE", "NASDAQ:AAPL", "NSE:NOPE"],
                "channels": ["tick", "chart"],
                "interval": "1",
                "delivery": "all",
            }
        )
        answer = await socket.receive_json(timeout=5)
        assert answer["type"] == "subscribed"
        assert answer["id"] == 1
        assert sorted(answer["accepted"]) == ["NASDAQ:AAPL", "NSE:RELIANCE"]
        assert answer["rejected"] == {"NSE:NOPE": "unknown_instrument"}
        seen: dict[str, list[dict[str, object]]] = {}
        charts: dict[str, list[float]] = {}
        while len(seen) < 2 or len(charts) < 2:
            frame = await socket.receive_json(timeout=10)
            if frame["type"] == "chart_update":
                assert frame["interval"] == "1"
                charts[frame["instrumentKey"]] = frame["ohlcv"][0]
                continue
            assert frame["type"] == "raw_tick", frame
            for key, data in frame["data"].items():
                seen.setdefault(key, []).append(data)
                assert key.partition(":")[0] in frame["position"]
        for ticks in seen.values():
            assert {"last_price", "ts_ms"} <= set(ticks[0])
            assert isinstance(ticks[0]["ts_ms"], int)
        for start_s, open_, high, low, close, _ in charts.values():
            assert start_s % 60 == 0
            assert low <= min(open_, close) <= max(open_, close) <= high


async def test_a_restart_stores_nothing_twice_and_says_what_was_missed(stack: Stack, tmp_path: Path) -> None:
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    async with stack.daemon(tmp_path / "state") as daemon:
        await eventually(lambda: len(stack.journal.ticks) > 200, within_s=40)
        await stack.quiet()
        assert await daemon.stop() == 0
    before = await client.xlen("md:ticks:NSE")
    # The market stands still: all the second daemon is sent are the snapshots of what is stored already.
    async with stack.daemon(tmp_path / "state") as daemon:
        await eventually(lambda: len(stack.journal.connections) >= 4, within_s=10)
        await asyncio.sleep(1.0)
        assert await daemon.stop() == 0
    added = [fields for _, fields in await client.xrange("md:ticks:NSE")][before:]
    assert [fields for fields in added if fields["type"] == "tick"] == []
    gaps = [fields for fields in added if fields["type"] == "gap"]
    assert sorted(fields["k"] for fields in gaps) == sorted(DHAN_NAMES.values())
    assert all(int(gap["from"]) < int(gap["to"]) and gap["reason"] == "daemon_down" for gap in gaps)
    verdict = judge(stack.journal.ticks, await read_store(client, sorted(NAMES.values())), NAMES)
    await client.aclose()
    assert verdict.clean, verdict


async def test_a_committed_change_of_the_mappings_reaches_the_running_daemon_within_two_seconds(
    stack: Stack, tmp_path: Path
) -> None:
    database = await asyncpg.connect(stack.database_url)
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    row = "provider_instrument_search_code = 'MSFT'"
    deactivate = f"UPDATE provider_instrument_mappings SET is_active = $1 WHERE {row}"
    async with stack.daemon(tmp_path / "state") as daemon:

        async def subscribed(code: str) -> int:
            return int((await daemon.status())["by_code"][code]["subscribed"])

        async def connects() -> list[int]:
            rows = (await daemon.status())["by_code"].values()
            return [row["reconnects"] for row in rows]

        await eventually(lambda: len(stack.journal.ticks) > 200, within_s=40)
        assert await subscribed("YF") == 4
        await database.execute(deactivate, False)
        await eventually(lambda: _equals(subscribed("YF"), 3), within_s=2)
        await database.execute(deactivate, True)
        await eventually(lambda: _equals(subscribed("YF"), 4), within_s=2)
        await database.execute("UPDATE providers SET is_active = false WHERE code = 'DHAN'")
        await eventually(lambda: _equals(subscribed("YF"), 10), within_s=2)
        assert set((await daemon.status())["by_code"]) == {"YF"}

        async def said(kind: str) -> dict[str, str]:
            entries = await client.xrange("md:ticks:NSE")
            return {e["k"]: e["reason"] for _, e in entries if e["type"] == kind}

        for kind in ("switched", "gap"):
            expected = dict.fromkeys(DHAN_NAMES.values(), "provider_deactivated")
            await eventually(lambda kind=kind, expected=expected: _equals(said(kind), expected))
        await database.execute("UPDATE providers SET is_active = false")
        await eventually(lambda: _refusal(daemon), within_s=3)
        assert await subscribed("YF") == 10, "an edit that would leave nothing is refused"
        assert await connects() == [0], "nothing else was touched"
    await database.close()
    await client.aclose()


async def _equals(answer: Awaitable[object], expected: object) -> bool:
    return await answer == expected


async def _refusal(daemon: Daemon) -> str:
    return str((await daemon.status())["pipeline"]["mappings"]["refused"])
