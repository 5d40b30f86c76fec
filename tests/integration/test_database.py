"""The daemon's connection to PostgreSQL, against a real server: losses, cancellations, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from services.catalogue.database import Database
from services.catalogue.database_errors import DRIVER_ERRORS, database_error
from services.errors import ConfigurationError, TemporaryError

_OURS = "SELECT pid FROM pg_stat_activity WHERE application_name = 'test-database'"


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    found = Database(database_url, application_name="test-database", command_timeout_s=5.0)
    async with found.transaction(writes=True) as connection:
        await connection.execute("CREATE TABLE kept (number integer PRIMARY KEY)")
    yield found
    await found.close()


async def numbers(database: Database) -> list[int]:
    async with database.session() as connection:
        return [row[0] for row in await connection.fetch("SELECT number FROM kept ORDER BY number")]


async def write(
    database: Database, *values: int, before_the_last: Callable[[], Awaitable[object]] | None = None
) -> None:
    async with database.transaction(writes=True) as connection:
        for value in values[:-1]:
            await connection.execute("INSERT INTO kept VALUES ($1)", value)
        if before_the_last is not None:
            await before_the_last()
        await connection.execute("INSERT INTO kept VALUES ($1)", values[-1])


async def pid(database: Database) -> int:
    async with database.session() as connection:
        return int(await connection.fetchval("SELECT pg_backend_pid()"))


async def test_one_connection_is_kept_and_bears_our_name(database: Database) -> None:
    assert await pid(database) == await pid(database)
    async with database.session() as connection:
        assert [row[0] for row in await connection.fetch(_OURS)] == [
            await connection.fetchval("SELECT pg_backend_pid()")
        ]


async def test_a_refused_statement_takes_back_its_transaction_and_keeps_the_connection(
    database: Database,
) -> None:
    before = await pid(database)
    with pytest.raises(asyncpg.UniqueViolationError):
        await write(database, 1, 1)
    assert await numbers(database) == []
    assert await pid(database) == before


async def test_our_own_error_takes_back_the_transaction(database: Database) -> None:
    async def fails() -> None:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        await write(database, 2, 3, before_the_last=fails)
    assert await numbers(database) == []


async def test_a_cancelled_statement_leaves_nothing_behind_and_the_next_one_works(database: Database) -> None:
    before = await pid(database)

    async def slow() -> None:
        async with database.transaction(writes=True) as connection:
            await connection.execute("INSERT INTO kept VALUES (3)")
            await connection.execute("SELECT pg_sleep(30)")

    task = asyncio.create_task(slow())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await numbers(database) == []
    assert await pid(database) != before


async def test_a_connection_that_was_cut_is_an_error_once_and_made_anew(
    database: Database, database_url: str
) -> None:
    before = await pid(database)
    other = await asyncpg.connect(database_url)
    with pytest.raises(DRIVER_ERRORS) as caught:
        await write(
            database,
            4,
            5,
            before_the_last=lambda: other.execute("SELECT pg_terminate_backend($1)", before),
        )
    assert isinstance(database_error(caught.value, database_url), TemporaryError)
    assert await numbers(database) == []
    assert await pid(database) != before
    await other.close()


async def test_only_a_transaction_that_says_so_writes_whatever_the_role_does_by_default(
    database: Database, database_url: str
) -> None:
    with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
        async with database.transaction() as connection:
            await connection.execute("INSERT INTO kept VALUES (6)")
    name = database_url.rpartition("/")[2]
    async with database.session() as connection:
        await connection.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
    await database.close()
    await write(database, 7)
    assert await numbers(database) == [7]


async def test_a_statement_takes_no_longer_than_it_may(database_url: str) -> None:
    database = Database(database_url, application_name="test-database", command_timeout_s=0.3)
    with pytest.raises(TimeoutError):
        async with database.session() as connection:
            await connection.execute("SELECT pg_sleep(30)")
    async with database.session() as connection:
        assert await connection.fetchval("SELECT 1") == 1
    await database.close()


@pytest.mark.parametrize("kept", [True, False])
async def test_closing_waits_for_whoever_uses_the_connection(database_url: str, kept: bool) -> None:
    database = Database(database_url, application_name="test-database", command_timeout_s=5.0, kept=kept)
    other = await asyncpg.connect(database_url)
    async with database.session() as connection:
        await database.close()
        assert await connection.fetchval("SELECT 1") == 1
        assert await other.fetch(_OURS)
    assert connection.is_closed()
    await database.close()
    await other.close()


async def test_a_url_that_is_none_is_said() -> None:
    with pytest.raises(ConfigurationError):
        Database("mysql://somewhere/else", application_name="test-database", command_timeout_s=1.0)
