"""The time-series writer against a real Redis: values, times, policies, collisions and bad keys."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from services.market_data.clock import SystemClock
from services.market_data.records import FLAG_LATE, PROBE_INSTRUMENT, DataIngestionFormat
from services.pipeline.sink import SinkState
from services.storage.client import make_client
from services.storage.time_series_writer import TimeSeriesWriter
from tests.support.eventually import eventually
from tests.support.storage import RETENTION_MS, Ticks, drained, offer, quick, running, samples


@pytest.fixture
async def client(redis_url: str) -> Any:
    client = make_client(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def ticks() -> Ticks:
    return Ticks()


def writer(url: str, **options: Any) -> TimeSeriesWriter:
    return TimeSeriesWriter(url, clock=SystemClock(), retention_ms=RETENTION_MS, **(quick() | options))


async def write(url: str, *records: Any, **options: Any) -> TimeSeriesWriter:
    """Write records through one writer, from its start to its end."""
    sink = writer(url, **options)
    async with running(sink):
        offer(records, sink)
        await drained(sink)
    return sink


async def info(client: Redis, instrument: str, name: str) -> dict[str, Any]:
    found = await client.ts().info(f"md:ts:{{{instrument}}}:{name}")
    return {
        "retentionTime": found.retention_msecs,
        "duplicatePolicy": found.duplicate_policy,
        "labels": found.labels,
    }


async def test_each_known_field_becomes_a_sample_and_an_unknown_one_does_not(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    full = ticks.tick(price=2456.75, volume=10, bid=2456.7, ask=2456.8, oi=120_000)
    bare = ticks.tick(price=2457.0, volume=None)
    sink = await write(redis_url, full, bare)
    assert await samples(client, "NSE:RELIANCE", "price") == [
        (full.timestamp, 2456.75),
        (bare.timestamp, 2457.0),
    ]
    for name, value in (("volume", 10), ("bid", 2456.7), ("ask", 2456.8), ("oi", 120_000)):
        assert await samples(client, "NSE:RELIANCE", name) == [(full.timestamp, value)]
    assert (sink.counters.offered, sink.counters.written, sink.counters.errors) == (2, 2, 0)


@pytest.mark.parametrize(
    "instrument",
    ["NSE:M&M", "NSE:BAJAJ-AUTO", "INDEX:^GSPC", "NASDAQ:BRK.B", "NFO:NIFTY-2026-12-31-25000-CE", "FX:EUR=X"],
)
async def test_series_are_made_with_retention_policy_and_labels(
    redis_url: str, client: Redis, ticks: Ticks, instrument: str
) -> None:
    await write(redis_url, ticks.tick(instrument, 1.5))
    for name in ("price", "volume"):
        found = await info(client, instrument, name)
        assert found["retentionTime"] == RETENTION_MS
        assert found["duplicatePolicy"] == "last"
        exchange, _, symbol = instrument.partition(":")
        assert found["labels"] == {
            "instrument": instrument,
            "exchange": exchange,
            "symbol": symbol,
            "field": name,
            "kind": "tick",
        }


async def test_the_probe_does_not_show_up_among_the_ticks(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    probe = ticks.tick(PROBE_INSTRUMENT, 1.0, volume=None)
    sink = await write(redis_url, probe, ticks.tick())
    assert sink.probe_ms == probe.position_ms
    found = await client.ts().queryindex(["kind=tick", "field=price"])
    assert found == ["md:ts:{NSE:RELIANCE}:price"]


@pytest.mark.parametrize(
    "price",
    [0.1 + 0.2, 1 / 3, 83.4925, 183467.05, 1e16, 1.7976931348623157e308, 5e-324, 1e22, -12.5, 2.5e-7, 0.0],
)
async def test_a_price_is_read_back_as_the_very_same_double(
    redis_url: str, client: Redis, ticks: Ticks, price: float
) -> None:
    await write(redis_url, ticks.tick(price=price))
    [(_, stored)] = await samples(client, "NSE:RELIANCE", "price")
    assert stored == price


async def test_large_quantities_are_stored_exactly(redis_url: str, client: Redis, ticks: Ticks) -> None:
    await write(redis_url, ticks.tick(volume=2**53 - 1, oi=10**15))
    [(_, volume)] = await samples(client, "NSE:RELIANCE", "volume")
    [(_, oi)] = await samples(client, "NSE:RELIANCE", "oi")
    assert (volume, oi) == (2**53 - 1, 10**15)


async def test_one_millisecond_keeps_the_last_price_and_the_summed_volume(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    at = ticks.start_ms
    same = [
        ticks.tick(price=1.0, volume=10, bid=0.9, timestamp=at),
        ticks.tick(price=2.0, volume=None, timestamp=at),
        ticks.tick(price=3.0, volume=5, timestamp=at, oi=7),
    ]
    sink = await write(redis_url, *same, ticks.tick(price=4.0, volume=1, timestamp=at + 1))
    assert await samples(client, "NSE:RELIANCE", "price") == [(at, 3.0), (at + 1, 4.0)]
    assert await samples(client, "NSE:RELIANCE", "volume") == [(at, 15), (at + 1, 1)]
    assert await samples(client, "NSE:RELIANCE", "bid") == [(at, 0.9)]
    assert await samples(client, "NSE:RELIANCE", "oi") == [(at, 7)]
    assert (sink.counters.written, sink.counters.collapsed) == (2, 2)


async def test_volumes_of_one_millisecond_are_summed_across_batches(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    at = ticks.start_ms
    sink = writer(redis_url)
    async with running(sink):
        for volume in (10, 20, 30):
            offer([ticks.tick(price=float(volume), volume=volume, timestamp=at)], sink)
            await drained(sink)
        assert sink.counters.batches == 3
    assert await samples(client, "NSE:RELIANCE", "volume") == [(at, 60)]
    assert await samples(client, "NSE:RELIANCE", "price") == [(at, 30.0)]
    assert (sink.counters.written, sink.counters.collapsed) == (1, 2)


async def test_a_late_tick_is_written_at_its_own_time_and_does_not_disturb_the_newest(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    at = ticks.start_ms
    records = [
        ticks.tick(price=1.0, volume=1, timestamp=at),
        ticks.tick(price=9.0, volume=9, timestamp=at + 9),
        ticks.tick(price=5.0, volume=4, timestamp=at + 5, flags=FLAG_LATE),
        ticks.tick(price=5.5, volume=6, timestamp=at + 5, flags=FLAG_LATE),
        ticks.tick(price=9.5, volume=2, timestamp=at + 9),
    ]
    sink = await write(redis_url, *records)
    assert await samples(client, "NSE:RELIANCE", "price") == [(at, 1.0), (at + 5, 5.5), (at + 9, 9.5)]
    assert await samples(client, "NSE:RELIANCE", "volume") == [(at, 1), (at + 5, 10), (at + 9, 11)]
    assert (sink.counters.written, sink.counters.collapsed) == (3, 2)


async def test_numbers_that_are_none_are_never_sent(redis_url: str, client: Redis, ticks: Ticks) -> None:
    nan, infinite = float("nan"), float("inf")
    good = ticks.tick(price=3.0, bid=nan, ask=infinite)
    sink = await write(redis_url, ticks.tick(price=nan), ticks.tick(price=-infinite), good)
    assert await samples(client, "NSE:RELIANCE", "price") == [(good.timestamp, 3.0)]
    assert await samples(client, "NSE:RELIANCE", "bid") == []
    assert sink.counters.rejected == {"not_finite": 2}


async def test_control_records_are_neither_taken_nor_counted(redis_url: str, ticks: Ticks) -> None:
    sink = await write(redis_url, ticks.control("gap", reason="x"))
    assert sink.counters.offered == 0


async def test_a_key_of_another_type_rejects_its_ticks_and_no_others(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    await client.set("md:ts:{NSE:BAD}:price", "mine")
    sink = writer(redis_url)
    async with running(sink):
        for _ in range(5):
            offer([ticks.tick("NSE:BAD"), ticks.tick("NSE:GOOD")], sink)
            await drained(sink)
        batches = sink.counters.batches
    assert sink.counters.rejected == {"wrong_type": 5}
    assert sink.counters.written == 5
    assert batches == 5
    assert len(await samples(client, "NSE:GOOD", "price")) == 5
    assert await client.get("md:ts:{NSE:BAD}:price") == "mine"


async def test_a_series_somebody_else_made_is_corrected_before_it_costs_a_tick(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    await client.execute_command(
        "TS.CREATE", "md:ts:{NSE:RELIANCE}:price", "DUPLICATE_POLICY", "BLOCK", "LABELS", "mine", "yes"
    )
    at = ticks.start_ms
    await client.execute_command("TS.ADD", "md:ts:{NSE:RELIANCE}:price", at, 1)
    sink = await write(redis_url, ticks.tick(price=2.0, timestamp=at))
    assert await samples(client, "NSE:RELIANCE", "price") == [(at, 2.0)]
    assert (sink.counters.written, sink.counters.rejected) == (1, {})
    found = await info(client, "NSE:RELIANCE", "price")
    assert found["duplicatePolicy"] == "last"
    assert found["retentionTime"] == RETENTION_MS
    assert found["labels"]["kind"] == "tick"
    assert "mine" not in found["labels"]


async def test_a_series_of_an_earlier_run_is_brought_to_the_settings_of_this_one(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    await write(redis_url, ticks.tick())
    sink = TimeSeriesWriter(redis_url, clock=SystemClock(), retention_ms=2 * RETENTION_MS, **quick())
    async with running(sink):
        offer([ticks.tick()], sink)
        await drained(sink)
        offer([ticks.tick()], sink)
        await drained(sink)
    assert (await info(client, "NSE:RELIANCE", "price"))["retentionTime"] == 2 * RETENTION_MS
    assert len(await samples(client, "NSE:RELIANCE", "price")) == 3


async def test_a_sample_older_than_the_retention_is_rejected_by_that_name(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    fresh = ticks.tick()
    old = ticks.tick(timestamp=fresh.timestamp - RETENTION_MS - 1, flags=FLAG_LATE)
    sink = await write(redis_url, fresh, old)
    assert sink.counters.rejected == {"older_than_retention": 1}
    assert await samples(client, "NSE:RELIANCE", "price") == [(fresh.timestamp, fresh.price)]


async def test_a_time_before_the_epoch_is_rejected(redis_url: str, ticks: Ticks) -> None:
    sink = await write(redis_url, ticks.tick(timestamp=-5))
    assert sink.counters.rejected == {"bad_timestamp": 1}


async def test_a_series_that_ignores_close_values_does_not_pass_for_written(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    await client.execute_command(
        "TS.CREATE", "md:ts:{NSE:RELIANCE}:price", "DUPLICATE_POLICY", "LAST", "IGNORE", "1000", "1000"
    )
    records = [ticks.tick(), ticks.tick()]
    sink = writer(redis_url)
    async with running(sink):
        for record in records:
            offer([record], sink)
            await drained(sink)
    stored = await samples(client, "NSE:RELIANCE", "price")
    assert sink.counters.written == len(stored) == 1
    assert sink.counters.rejected == {"ignored": 1}


async def test_an_emptied_server_gets_its_series_back_with_all_properties(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    sink = writer(redis_url)
    instruments = [f"NSE:SYM{number}" for number in range(700)]
    async with running(sink):
        offer([ticks.tick(instrument) for instrument in instruments], sink)
        await drained(sink)
        await client.flushall()
        again = [ticks.tick(instrument, bid=1.0) for _ in range(3) for instrument in instruments]
        offer(again, sink)
        await drained(sink)
        assert sink.state is SinkState.READY
    assert sink.counters.rejected == {}
    assert sink.counters.written == sink.counters.offered == 2800
    for instrument in (instruments[0], instruments[-1]):
        assert len(await samples(client, instrument, "price")) == 3
        found = await info(client, instrument, "price")
        assert (found["retentionTime"], found["duplicatePolicy"]) == (RETENTION_MS, "last")
        assert found["labels"]["instrument"] == instrument


async def test_nothing_is_written_when_every_price_of_a_batch_is_bad(redis_url: str, ticks: Ticks) -> None:
    sink = await write(redis_url, *[ticks.tick(price=float("nan")) for _ in range(600)])
    assert sink.counters.rejected == {"not_finite": 600}
    assert sink.counters.batches == 0


async def test_a_batch_of_many_instruments_with_all_fields_stays_within_five_hundred_samples(
    redis_url: str, client: Redis, ticks: Ticks
) -> None:
    await client.config_resetstat()
    records: list[DataIngestionFormat] = [
        ticks.tick(f"NSE:SYM{number}", bid=1.0, ask=2.0, oi=number) for number in range(1_000)
    ]
    await write(redis_url, *records)
    calls = (await client.info("commandstats"))["cmdstat_ts.madd"]["calls"]
    assert calls >= 10
    assert await samples(client, "NSE:SYM999", "oi") == [(records[-1].timestamp, 999)]


async def test_the_connection_carries_the_writers_name(redis_url: str, client: Redis) -> None:
    sink = writer(redis_url)
    async with running(sink):
        await eventually(lambda: sink.state is SinkState.READY)
        names = [row["name"] for row in await client.client_list()]
    assert "marketd:time_series" in names
