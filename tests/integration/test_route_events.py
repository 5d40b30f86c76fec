"""Decisions of routing in a real PostgreSQL: batches, repeats, an absent server, little rights, old rows."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from data_migration.setup_providers import setup
from services.errors import ConfigurationError, TemporaryError
from services.market_data.clock import ManualClock
from services.routing import events
from services.routing.event_writer import BATCH, KEPT_DAYS, RouteEventWriter
from services.routing.events import RouteEvent, RouteJournal

NOW_MS = 1_790_748_968_000


def event(number: int, instrument: str = "NSE:RELIANCE", **details: object) -> RouteEvent:
    return RouteEvent(instrument, "switch", "DHAN", "YF", "mute", NOW_MS + number, dict(details))


async def rows(url: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch("select * from route_events order by seq"))
    finally:
        await connection.close()


@pytest.fixture
async def filled(database_url: str) -> str:
    await setup(database_url)
    return database_url


async def test_every_event_is_written_once_in_batches_with_its_details(filled: str) -> None:
    journal, clock = RouteJournal(), ManualClock(NOW_MS)
    writer = RouteEventWriter(journal, filled, clock)
    for number in range(BATCH + 5):
        journal.add(event(number, fresh_ticks=number, off_bps=1.5))
    await writer.write_all()
    found = await rows(filled)
    assert len(found) == BATCH + 5
    assert (found[7]["from_provider"], found[7]["to_provider"], found[7]["reason"]) == ("DHAN", "YF", "mute")
    assert found[7]["at_ms"] == NOW_MS + 7
    assert found[7]["details"] == '{"off_bps": 1.5, "fresh_ticks": 7}'
    assert journal.status() == {"added": BATCH + 5, "written": BATCH + 5, "dropped": 0, "waiting": 0}
    # A write whose outcome is not known is repeated as it was.
    repeated = event(BATCH + 4)
    repeated.seq = BATCH + 5
    await writer._write([repeated])
    assert len(await rows(filled)) == BATCH + 5
    newest = await writer.newest("NSE:RELIANCE", 2)
    assert [row["at_ms"] for row in newest] == [NOW_MS + BATCH + 3, NOW_MS + BATCH + 4]
    assert await writer.newest("NSE:TCS", 2) == []
    await writer.close()


async def test_while_postgresql_is_away_events_wait_and_too_many_are_counted(
    filled: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "QUEUE_LIMIT", 10)
    journal = RouteJournal()
    writer = RouteEventWriter(journal, "postgresql://nobody@127.0.0.1:1/none", ManualClock(NOW_MS))
    for number in range(25):
        journal.add(event(number))
    with pytest.raises(TemporaryError):
        await writer.write_all()
    assert journal.status() == {"added": 25, "written": 0, "dropped": 15, "waiting": 10}
    assert [kept.at_ms - NOW_MS for kept in journal.newest("NSE:RELIANCE")] == list(range(15, 25))
    await writer.use_url(filled)
    await writer.write_all()
    assert [row["at_ms"] - NOW_MS for row in await rows(filled)] == list(range(15, 25))
    assert journal.status() == {"added": 25, "written": 10, "dropped": 15, "waiting": 0}
    await writer.close()


async def test_an_event_the_table_cannot_take_holds_up_no_other(filled: str) -> None:
    journal = RouteJournal()
    writer = RouteEventWriter(journal, filled, ManualClock(NOW_MS))
    for bad in (event(1), event(2, by="\x00"), event(3)):
        journal.add(bad)
    await writer.write_all()
    assert [row["at_ms"] - NOW_MS for row in await rows(filled)] == [1, 3]
    assert journal.status() == {"added": 3, "written": 2, "dropped": 1, "waiting": 0}
    await writer.close()


async def test_old_events_are_removed_and_newer_ones_kept(filled: str) -> None:
    journal, clock = RouteJournal(), ManualClock(NOW_MS)
    writer = RouteEventWriter(journal, filled, clock)
    old = event(0)
    old.at_ms = NOW_MS - KEPT_DAYS * 86_400_000 - 1
    journal.add(old)
    journal.add(event(1))
    running = asyncio.create_task(writer.run())
    try:
        async with asyncio.timeout(20):
            while writer._pruned_s is None:
                await asyncio.sleep(0.02)
    finally:
        running.cancel()
        await asyncio.wait([running])
    assert [row["at_ms"] for row in await rows(filled)] == [NOW_MS + 1]
    await writer.close()


async def test_a_schema_without_the_table_is_said_with_the_remedy(database_url: str) -> None:
    journal = RouteJournal()
    journal.add(event(1))
    writer = RouteEventWriter(journal, database_url, ManualClock(NOW_MS))
    with pytest.raises(ConfigurationError, match="setup_providers"):
        await writer.write_all()
    assert journal.waiting == 1
    await writer.close()
