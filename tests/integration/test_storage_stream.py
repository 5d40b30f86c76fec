"""The stream writer against a real Redis: fields, ids, order, trimming, and what may not be added twice."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from services.market_data.records import FLAG_DELAYED, FLAG_SNAPSHOT, PROBE_INSTRUMENT
from services.storage.client import make_client
from services.storage.stream_writer import StreamWriter
from tests.support.storage import Ticks, drained, entries, offer, quick, running


@pytest.fixture
async def client(redis_url: str) -> Any:
    client = make_client(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


async def write(url: str, *records: Any, **options: Any) -> StreamWriter:
    """Write records through one writer, from its start to its end."""
    sink = StreamWriter(url, **(quick() | options))
    async with running(sink):
        offer(records, sink)
        await drained(sink)
    return sink


async def test_an_entry_has_every_known_field_under_its_short_name(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    tick = ticks.tick(
        "NSE:RELIANCE",
        2456.75,
        volume=10,
        timestamp=1_700_000_000_123,
        received_ms=1_700_000_000_456,
        cumulative_volume=1_234_567,
        bid=2456.7,
        ask=2456.8,
        bid_size=100,
        ask_size=200,
        oi=3_000,
        day_open=2450.0,
        day_high=2460.5,
        day_low=2440.25,
        previous_close=2445.0,
        flags=FLAG_SNAPSHOT | FLAG_DELAYED,
    )
    await write(redis_url, tick)
    assert await entries(client) == [
        (
            tick.position,
            {
                "type": "tick",
                "k": "NSE:RELIANCE",
                "t": "1700000000123",
                "r": "1700000000456",
                "p": "2456.75",
                "v": "10",
                "src": "DHAN",
                "cv": "1234567",
                "b": "2456.7",
                "a": "2456.8",
                "bs": "100",
                "as": "200",
                "oi": "3000",
                "o": "2450.0",
                "h": "2460.5",
                "l": "2440.25",
                "pc": "2445.0",
                "f": "snapshot,delayed",
            },
        )
    ]


async def test_what_is_unknown_is_absent_and_zero_is_not_unknown(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    bare = ticks.tick(price=1.0, volume=None)
    zero = ticks.tick(price=1.0, volume=0, oi=0)
    await write(redis_url, bare, zero)
    [(_, first), (_, second)] = await entries(client)
    assert set(first) == {"type", "k", "t", "r", "p", "src"}
    assert (second["v"], second["oi"]) == ("0", "0")


async def test_control_records_stand_in_order_between_the_ticks(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    records = [
        ticks.tick(),
        ticks.control(
            "gap", **{"from": 1_700_000_000_000, "to": 1_700_000_005_000, "reason": "reset by peer ☠"}
        ),
        ticks.tick(),
    ]
    await write(redis_url, *records)
    stored = await entries(client)
    assert [fields["type"] for _, fields in stored] == ["tick", "gap", "tick"]
    assert stored[1] == (
        records[1].position,
        {
            "type": "gap",
            "k": "NSE:RELIANCE",
            "src": "DHAN",
            "t": str(records[1].timestamp),
            "r": str(records[1].received_ms),
            "from": "1700000000000",
            "to": "1700000005000",
            "reason": "reset by peer ☠",
        },
    )


async def test_every_exchange_has_its_own_stream_in_the_order_of_positions(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    records = [ticks.tick(f"{exchange}:X{n}") for n in range(900) for exchange in ("NSE", "BSE", "NASDAQ")]
    sink = await write(redis_url, *records)
    for exchange in ("NSE", "BSE", "NASDAQ"):
        stored = await entries(client, exchange)
        assert [entry_id for entry_id, _ in stored] == [r.position for r in records if r.exchange == exchange]
    assert sink.counters.written == 2_700


async def test_a_lone_surrogate_in_a_text_does_not_break_the_protocol(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    await write(redis_url, ticks.control("gap", reason="bad \udc80 text"), ticks.tick())
    stored = await entries(client)
    assert stored[0][1]["reason"] == "bad ? text"
    assert len(stored) == 2


async def test_the_stream_is_trimmed_to_about_its_bound_and_the_probes_to_ten(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    probes = [ticks.tick(PROBE_INSTRUMENT) for _ in range(30)]
    sink = await write(redis_url, *[ticks.tick() for _ in range(3_000)], *probes, max_entries=1_000)
    assert 1_000 <= await client.xlen("md:ticks:NSE") < 1_200
    assert await client.xlen("md:ticks:_PROBE") == 10
    assert sink.probe_ms == probes[-1].position_ms


async def test_an_id_behind_the_top_is_no_success_on_a_first_attempt(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    overtaken, mine = ticks.tick(), ticks.tick()
    await client.xadd("md:ticks:NSE", {"by": "somebody else"}, id=overtaken.position)
    sink = await write(redis_url, overtaken, mine)
    assert sink.counters.rejected == {"behind_stream_top": 1}
    assert (sink.counters.written, sink.counters.already_written) == (1, 0)
    assert len(await entries(client)) == 2


async def test_a_key_of_another_type_rejects_the_entries_of_that_exchange_only(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    await client.set("md:ticks:BSE", "mine")
    sink = await write(redis_url, ticks.tick("BSE:A"), ticks.tick("NSE:A"), ticks.tick("BSE:B"))
    assert sink.counters.rejected == {"wrong_type": 2}
    assert sink.counters.written == 1
    assert len(await entries(client)) == 1


async def test_a_record_without_a_position_is_rejected_not_lost(redis_url: str, ticks: Ticks) -> None:
    tick = ticks.tick()
    tick.position_ms = tick.position_seq = 0
    sink = await write(redis_url, tick)
    assert sink.counters.rejected == {"bad_position": 1}


async def test_numbers_that_are_none_are_never_sent(redis_url: str, client: Redis, ticks: Ticks) -> None:
    sink = await write(redis_url, ticks.tick(price=float("nan")), ticks.tick(price=2.0, bid=float("inf")))
    [(_, fields)] = await entries(client)
    assert fields["p"] == "2.0"
    assert "b" not in fields
    assert sink.counters.rejected == {"not_finite": 1}


async def test_a_batch_leaves_at_the_end_of_the_turn_and_the_next_when_it_is_answered(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    await client.config_resetstat()
    sink = StreamWriter(redis_url, **quick())
    async with running(sink):
        offer([ticks.tick()], sink)
        await drained(sink)
        offer([ticks.tick() for _ in range(499)], sink)
        await drained(sink)
        offer([ticks.tick() for _ in range(1_200)], sink)
        await drained(sink)
    assert sink.counters.batches == 1 + 1 + 3
    assert (await client.info("commandstats"))["cmdstat_exec"]["calls"] == 5
