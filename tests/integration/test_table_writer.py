"""What those who write a table have in common: retries, words, old rows, a bounded end; a real PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from services.catalogue import table_writer
from services.catalogue.table_writer import TableWriter, is_bad_value
from services.errors import ConfigurationError, MarketdError, TemporaryError
from services.market_data.clock import ManualClock
from tests.support.eventually import eventually

NOBODY = "postgresql://nobody@127.0.0.1:1/none"
_INSERT = "INSERT INTO numbers SELECT unnest(CAST($1 AS int[]))"
_PRUNE = "DELETE FROM numbers WHERE ctid IN (SELECT ctid FROM numbers WHERE n < $1 LIMIT $2)"


class Numbers(TableWriter):
    def __init__(self, url: str, clock: ManualClock) -> None:
        super().__init__(url, clock, table="numbers", every_s=0.01, prune=_PRUNE, prune_every_s=60.0)
        self.queue: list[Any] = []
        self.prepared = 0

    @property
    def waiting(self) -> int:
        return len(self.queue)

    async def prepare(self) -> None:
        self.prepared += 1

    async def write_all(self) -> None:
        batch = list(self.queue)
        if batch:
            async with self._database.writing() as connection:
                await connection.execute(_INSERT, batch)
            del self.queue[: len(batch)]

    def prune_values(self) -> tuple[int]:
        return (0,)


async def numbers(url: str) -> list[int]:
    connection = await asyncpg.connect(url)
    try:
        return [row["n"] for row in await connection.fetch("select n from numbers order by n")]
    finally:
        await connection.close()


@pytest.fixture
async def url(database_url: str) -> str:
    connection = await asyncpg.connect(database_url)
    await connection.execute("create table numbers (n int)")
    await connection.close()
    return database_url


async def test_what_waits_is_written_once_the_server_serves_and_both_is_said_once(url: str) -> None:
    writer = Numbers(NOBODY, ManualClock())
    writer.queue += [1, 2]
    with capture_logs() as logs:
        running = asyncio.create_task(writer.run())
        try:
            await eventually(lambda: writer.problem)
            assert writer.waiting == 2
            await writer.use_url(url)
            await eventually(lambda: not writer.queue, within_s=20)
            await eventually(lambda: not writer.problem)
            writer.queue.append(3)
            await eventually(lambda: not writer.queue)
        finally:
            running.cancel()
            await asyncio.wait([running])
    assert await numbers(url) == [1, 2, 3]
    assert writer.prepared > 2
    events = [entry["event"] for entry in logs]
    assert (events.count("numbers_not_written"), events.count("numbers_written_again")) == (1, 1)
    await writer.close()


async def test_old_rows_are_removed_in_bounded_parts_when_it_is_due(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_writer, "PRUNE_AT_ONCE", 3)
    clock = ManualClock()
    writer = Numbers(url, clock)
    writer.queue += [-1, -2, -3, -4, -5, -6, -7, 8]
    await writer.write_all()
    await writer.prune()
    assert await numbers(url) == [8]
    writer.queue.append(-9)
    await writer.write_all()
    await writer.prune()
    assert await numbers(url) == [-9, 8]
    clock.advance(61)
    await writer.prune()
    assert await numbers(url) == [8]
    await writer.close()


async def test_the_end_is_bounded_and_says_what_remains(url: str) -> None:
    connection = await asyncpg.connect(url)
    writer = Numbers(url, ManualClock())
    writer.queue += [1, 2, 3]
    transaction = connection.transaction()
    await transaction.start()
    try:
        await connection.execute("lock table numbers")
        with capture_logs() as logs:
            async with asyncio.timeout(4):
                assert await writer.flush(0.3) == 3
        assert [(entry["event"], entry["rows"]) for entry in logs] == [("rows_not_written", 3)]
    finally:
        await transaction.rollback()
        await connection.close()
    assert await writer.flush(10) == 0
    assert await numbers(url) == [1, 2, 3]
    await writer.close()
    away = Numbers(NOBODY, ManualClock())
    away.queue.append(1)
    assert await away.flush(10) == 1
    await away.close()


async def test_errors_are_ours_and_a_bad_value_is_told_from_trouble(url: str, database_url: str) -> None:
    writer = Numbers(url, ManualClock())
    writer.queue.append(5)
    connection = await asyncpg.connect(url)
    await connection.execute("alter table numbers add check (n / 0 > 0)")
    with pytest.raises(MarketdError) as bad:
        await writer.write_all()
    assert is_bad_value(bad.value)
    await connection.execute("drop table numbers")
    await connection.close()
    with pytest.raises(ConfigurationError, match="does not have this program's tables") as missing:
        await writer.write_all()
    assert not is_bad_value(missing.value)
    await writer.use_url(NOBODY)
    with pytest.raises(TemporaryError) as away:
        await writer.write_all()
    assert not is_bad_value(away.value)
    assert writer.waiting == 1
    await writer.close()
