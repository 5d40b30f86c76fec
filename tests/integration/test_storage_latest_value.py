"""The latest-value writer against a real Redis: newest wins, nothing outdated lingers."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from services.market_data.records import FLAG_LATE, FLAG_SUSPECT, PROBE_INSTRUMENT
from services.storage.client import make_client
from services.storage.latest_value_writer import LatestValueWriter
from tests.support.storage import Ticks, drained, offer, quick, running


@pytest.fixture
async def client(redis_url: str) -> Any:
    client = make_client(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


async def write(url: str, *batches: list[Any]) -> LatestValueWriter:
    """Write batches of records through one writer, each settled before the next."""
    sink = LatestValueWriter(url, **quick())
    async with running(sink):
        for records in batches:
            offer(records, sink)
            await drained(sink)
    return sink


async def test_the_hash_has_the_fields_of_a_stream_entry(redis_url: str, client: Redis, ticks: Ticks) -> None:
    tick = ticks.tick(
        price=2456.75, volume=10, bid=2456.7, oi=5, day_open=2450.0, received_ms=7, flags=FLAG_SUSPECT
    )
    await write(redis_url, [tick])
    assert await client.hgetall("md:last:{NSE:RELIANCE}") == {
        "type": "tick",
        "k": "NSE:RELIANCE",
        "t": str(tick.timestamp),
        "r": "7",
        "p": "2456.75",
        "v": "10",
        "src": "DHAN",
        "b": "2456.7",
        "oi": "5",
        "o": "2450.0",
        "f": "suspect",
    }


async def test_of_many_waiting_ticks_of_an_instrument_only_the_newest_is_written(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    records = [ticks.tick(f"NSE:SYM{n % 3}") for n in range(300)]
    sink = await write(redis_url, records)
    assert (sink.counters.written, sink.counters.collapsed) == (3, 297)
    for record in records[-3:]:
        assert await client.hget(f"md:last:{{{record.symbol}}}", "p") == str(record.price)


async def test_a_field_that_is_no_longer_known_is_gone(redis_url: str, client: Redis, ticks: Ticks) -> None:
    await write(
        redis_url,
        [ticks.tick(price=1.0, bid=0.9, ask=1.1, flags=FLAG_SUSPECT)],
        [ticks.tick(price=2.0, ask=2.1)],
    )
    stored = await client.hgetall("md:last:{NSE:RELIANCE}")
    assert (stored["p"], stored["a"]) == ("2.0", "2.1")
    assert not {"b", "f"} & set(stored)


async def test_fields_left_by_an_earlier_run_are_gone(redis_url: str, client: Redis, ticks: Ticks) -> None:
    await write(redis_url, [ticks.tick(price=1.0, bid=0.9, oi=7)])
    await write(redis_url, [ticks.tick(price=2.0)])
    stored = await client.hgetall("md:last:{NSE:RELIANCE}")
    assert stored["p"] == "2.0"
    assert not {"b", "oi"} & set(stored)


async def test_a_late_tick_does_not_move_the_newest_value_back(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    sink = await write(redis_url, [ticks.tick(price=5.0)], [ticks.tick(price=4.0, flags=FLAG_LATE)])
    assert await client.hget("md:last:{NSE:RELIANCE}", "p") == "5.0"
    assert (sink.counters.written, sink.counters.collapsed) == (1, 1)


async def test_more_instruments_than_a_batch_holds_are_all_written(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    records = [ticks.tick(f"NSE:SYM{n}") for n in range(2_700)]
    sink = await write(redis_url, records, records)
    assert sink.counters.written == 5_400
    assert await client.dbsize() == 2_700


async def test_a_key_of_another_type_rejects_its_ticks_and_no_others(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    await client.set("md:last:{NSE:BAD}", "mine")
    sink = await write(redis_url, [ticks.tick("NSE:BAD"), ticks.tick("NSE:GOOD")], [ticks.tick("NSE:BAD")])
    assert sink.counters.rejected == {"wrong_type": 2}
    assert sink.counters.written == 1
    assert await client.hget("md:last:{NSE:GOOD}", "k") == "NSE:GOOD"


async def test_the_probe_is_acknowledged_and_control_records_are_not_counted(
    redis_url: str, ticks: Ticks
) -> None:
    probe = ticks.tick(PROBE_INSTRUMENT)
    sink = await write(redis_url, [ticks.control("gap", reason="x"), probe, ticks.tick(price=float("nan"))])
    assert sink.probe_ms == probe.position_ms
    assert sink.counters.offered == 2
    assert sink.counters.rejected == {"not_finite": 1}
