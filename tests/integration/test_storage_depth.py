"""The writer of order books against a real Redis: fields, order, the newest wins, trimming, faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from services.market_data.clock import SystemClock
from services.market_data.updates import DEPTH_GAP, DEPTH_RECEIVED, Level2Update
from services.pipeline.sequencer import Sequencer, parse_position
from services.pipeline.sink import SinkState
from services.storage.bootstrap import last_positions
from services.storage.client import make_client
from services.storage.depth_entry import depth_of_entry
from services.storage.depth_stream_writer import DepthStreamWriter
from services.storage.keys import depth_stream
from tests.support.eventually import eventually
from tests.support.servers import PrivateRedis
from tests.support.storage import drained, quick, running

AT_MS = 1_700_000_000_123


class Books:
    """Makes books with rising positions, and remembers them."""

    def __init__(self) -> None:
        self.made: list[Level2Update] = []
        self.sequencer = Sequencer(SystemClock())

    def book(self, instrument: str = "NSE:RELIANCE", **fields: Any) -> Level2Update:
        number = len(self.made)
        values: dict[str, Any] = {
            "timestamp": (AT_MS + number) * 1000,
            "received_ms": AT_MS + number,
            "bids": ((100.0 + number, 10, 1), (99.95, 20, 2)),
            "asks": ((200.05 + number, 5, 3),),
            "levels": 5,
            "flags": DEPTH_RECEIVED,
        }
        update = Level2Update(instrument, instrument.partition(":")[0], "DHAN", **(values | fields))
        self.sequencer.stamp(update)
        self.made.append(update)
        return update


@pytest.fixture
async def client(redis_url: str) -> Any:
    client = make_client(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def books() -> Books:
    return Books()


async def entries(client: Redis, exchange: str = "NSE") -> list[tuple[str, dict[str, str]]]:
    return list(await client.xrange(depth_stream(exchange)))


async def test_an_entry_has_the_documented_fields_and_the_position_as_its_id(
    redis_url: str, client: Redis, books: Books
) -> None:
    writer = DepthStreamWriter(redis_url, **quick())
    async with running(writer):
        writer.take(books.book("NSE:M&M", flags=DEPTH_RECEIVED | DEPTH_GAP))
        writer.take(books.book("BSE:X", bids=(), flags=0, levels=20))
        await drained(writer)
    first, second = books.made
    assert await entries(client) == [
        (
            first.position,
            {
                "type": "depth",
                "k": "NSE:M&M",
                "src": "DHAN",
                "lv": "5",
                "t": "1700000000123",
                "r": "1700000000123",
                "bids": "[[100.0,10,1],[99.95,20,2]]",
                "asks": "[[200.05,5,3]]",
                "f": "received,gap",
            },
        )
    ]
    ((entry_id, fields),) = await entries(client, "BSE")
    assert (entry_id, fields["bids"], fields["lv"]) == (second.position, "[]", "20")
    assert "f" not in fields


async def test_what_is_read_back_is_what_was_written(redis_url: str, client: Redis, books: Books) -> None:
    writer = DepthStreamWriter(redis_url, **quick())
    deep = tuple((1000.0 - it * 0.05, it + 1, it % 7) for it in range(200))
    async with running(writer):
        for number in range(300):
            flags = number % 64
            writer.take(books.book(f"NSE:S{number}", flags=flags, bids=deep if number % 50 == 0 else ()))
        await drained(writer)
    read = [depth_of_entry("NSE", parse_position(name), fields) for name, fields in await entries(client)]
    assert read == books.made


async def test_while_one_batch_is_on_its_way_the_newest_book_replaces_the_one_that_waits(
    redis_url: str, client: Redis, books: Books
) -> None:
    writer = DepthStreamWriter(redis_url, **quick())
    for number in range(50):
        writer.take(books.book("NSE:BUSY" if number % 10 else "NSE:SLOW"))
    assert writer.queued == 2
    async with running(writer):
        await drained(writer)
    stored = await entries(client)
    newest = {update.symbol: update.position for update in books.made}
    assert [(fields["k"], entry_id) for entry_id, fields in stored] == [
        ("NSE:SLOW", newest["NSE:SLOW"]),
        ("NSE:BUSY", newest["NSE:BUSY"]),
    ]
    assert (writer.counters.offered, writer.counters.collapsed, writer.counters.written) == (50, 48, 2)


async def test_memory_is_bounded_by_the_instruments_and_what_is_over_is_dropped_and_counted(
    redis_url: str, client: Redis, books: Books
) -> None:
    writer = DepthStreamWriter(redis_url, queue_limit=10, **quick())
    for number in range(1_000):
        writer.take(books.book(f"NSE:S{number % 25}"))
    assert writer.queued == 10
    async with running(writer):
        await drained(writer)
    assert writer.counters.dropped["queue_full"] == writer.counters.offered - 10 - writer.counters.collapsed
    assert [fields["k"] for _, fields in await entries(client)] == [f"NSE:S{it}" for it in range(15, 25)]


async def test_the_stream_is_trimmed_by_entries_and_by_age(
    redis_url: str, client: Redis, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.storage.depth_stream_writer.TRIM_EVERY_S", 0.0)
    await client.xadd(depth_stream("NSE"), {"type": "depth"}, id="1000-0")
    for number in range(300):
        await client.xadd(depth_stream("NSE"), {"type": "depth"}, id=f"2000-{number}")
    writer = DepthStreamWriter(redis_url, max_entries=1_000, max_age_ms=60_000, **quick())
    async with running(writer):
        writer.take(books.book())
        await drained(writer)
        left = await entries(client)
        assert len(left) <= 101, "Redis takes whole blocks of a hundred away"
        for number in range(3_000):
            writer.take(books.book(f"NSE:S{number}"))
        await drained(writer)
    assert 1_000 <= len(await entries(client)) <= 1_200


async def test_a_killed_redis_costs_no_order_and_brings_the_newest_books(
    private_redis: Callable[[], Awaitable[PrivateRedis]], books: Books
) -> None:
    server = await private_redis()
    writer = DepthStreamWriter(server.url, **quick())
    client = make_client(server.url)
    async with running(writer):
        writer.take(books.book("NSE:A"))
        await drained(writer)
        await server.kill()
        await eventually(lambda: writer.state is SinkState.UNAVAILABLE)
        for number in range(200):
            writer.take(books.book(f"NSE:{'AB'[number % 2]}"))
            await asyncio.sleep(0)
        # One batch may be on its way; beyond it a book an instrument waits.
        assert writer.queued <= 4
        await server.start()
        await drained(writer, within_s=20)
    stored = await entries(client)
    await client.aclose()
    ids = [parse_position(entry_id) for entry_id, _ in stored]
    assert ids == sorted(set(ids))
    newest = {fields["k"]: entry_id for entry_id, fields in stored}
    assert newest == {
        name: max(
            (u for u in books.made if u.symbol == name), key=lambda u: parse_position(u.position)
        ).position
        for name in ("NSE:A", "NSE:B")
    }


async def test_a_refused_server_is_waited_for_and_nothing_grows(
    private_redis: Callable[[], Awaitable[PrivateRedis]], books: Books
) -> None:
    server = await private_redis()
    admin = make_client(server.url)
    writer = DepthStreamWriter(server.url, **quick())
    async with running(writer):
        writer.take(books.book("NSE:A"))
        await drained(writer)
        await admin.config_set("maxmemory", "1")
        for _ in range(500):
            writer.take(books.book("NSE:A"))
            await asyncio.sleep(0)
        await eventually(lambda: writer.state is SinkState.UNAVAILABLE)
        assert "memory" in writer.reason
        assert writer.queued <= 2
        await admin.config_set("maxmemory", "0")
        await drained(writer, within_s=20)
    stored = await admin.xrange(depth_stream("NSE"))
    await admin.aclose()
    assert stored[-1][0] == books.made[-1].position


async def test_positions_go_on_behind_both_streams_of_an_exchange(
    redis_url: str, client: Redis, books: Books
) -> None:
    far_ms = SystemClock().now_ms() + 3_600_000
    await client.xadd(depth_stream("NSE"), {"type": "depth"}, id=f"{far_ms}-7")
    positions = await last_positions(client, ["NSE", "BSE"], depth_stream)
    assert positions == {"NSE": (far_ms, 7), "BSE": (0, 0)}
    sequencer = Sequencer(SystemClock())
    sequencer.resume_after("NSE", positions["NSE"])
    update = books.book()
    sequencer.stamp(update)
    assert update.position == f"{far_ms}-8"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"type": "tick", "k": "NSE:A"},
        {"type": "depth", "k": "NSE:A"},
        {"type": "depth", "k": "A", "src": "D", "lv": "5", "t": "1", "r": "1", "bids": "[[1]]", "asks": "[]"},
        {"type": "depth", "k": "A", "src": "D", "lv": "x", "t": "1", "r": "1", "bids": "[]", "asks": "[]"},
    ],
)
def test_what_is_no_book_is_read_as_none(fields: dict[str, str]) -> None:
    assert depth_of_entry("NSE", (1, 0), fields) is None
