"""Fixtures for everybody: a real PostgreSQL and a real Redis with TimeSeries, one of each a session.

`TEST_DATABASE_URL` and `TEST_REDIS_URL` point at servers of one's own instead. Where a server cannot
run the tests that need it fail, they are never skipped.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
import redis.asyncio

from services import redaction
from services.compiled import BUILD
from services.operations.embedded import EmbeddedPostgres, EmbeddedRedis
from simulators.dhan import DhanSimulator
from simulators.journal import Journal
from simulators.market import Market
from simulators.yahoo import YahooSimulator
from tests.support.databases import temporary_database
from tests.support.postgres import PrivatePostgres
from tests.support.row_table import RowTable
from tests.support.servers import PrivateRedis
from tests.support.stack import Stack, fill_mappings
from tests.support.turns import register_turns


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("faults")
    group.addoption(
        "--faults", choices=("quick", "slow", "all"), default="all", help="which of the fault tests to run"
    )
    group.addoption("--fault-table", action="store_true", help="print the fault matrix at the end")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(RowTable(), "fault_rows")
    register_turns(config)
    # A test run that is told to end must take its servers with it, as after Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # A run that a shell put into the background ignores Ctrl-C, and so would every process that tests start.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    """Say which way the path of a tick runs in this session."""
    return f"path of a tick: {BUILD}{f' ({BUILD.reason})' if BUILD.reason else ''}"


def pytest_xdist_auto_num_workers() -> int:
    """Return how many workers `-n auto` means: most tests wait for real servers, so more than processors.

    `TEST_WORKERS` says otherwise. With a server of one's own there is one: tests empty it.
    """
    if os.environ.get("TEST_DATABASE_URL") or os.environ.get("TEST_REDIS_URL"):
        return 1
    given = os.environ.get("TEST_WORKERS")
    return int(given) if given else min((os.cpu_count() or 1) + 1, 8)


@pytest.fixture(autouse=True)
def no_secret_of_another_test(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test find its words blanked because another test used them as a secret."""
    monkeypatch.setattr(redaction, "_known", {})


def _serve(server: EmbeddedPostgres | EmbeddedRedis) -> Iterator[str]:
    # A loop of our own: the fixture outlives the loops of the single tests.
    with asyncio.Runner() as runner:
        try:
            yield runner.run(server.start())
        finally:
            runner.run(server.stop())


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real PostgreSQL, for the whole session; tests take a database of their own from it."""
    given = os.environ.get("TEST_DATABASE_URL")
    if given:
        yield given
    else:
        yield from _serve(EmbeddedPostgres(tmp_path_factory.mktemp("postgres")))


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real Redis with TimeSeries, for the whole session."""
    given = os.environ.get("TEST_REDIS_URL")
    if given:
        yield given
    else:
        yield from _serve(EmbeddedRedis(tmp_path_factory.mktemp("redis")))


@pytest.fixture(scope="session")
def hurt_postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrivatePostgres]:
    """A PostgreSQL that tests may stop, start and log in to as superuser; every test leaves it running."""
    server = PrivatePostgres(tmp_path_factory.mktemp("hurt-postgres"))
    with asyncio.Runner() as runner:
        try:
            runner.run(server.start())
            yield server
        finally:
            runner.run(server.stop())


@pytest.fixture
async def database_url(postgres_server: str) -> AsyncIterator[str]:
    """URL of an empty database, dropped after the test."""
    async with temporary_database(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> Iterator[str]:
    """URL of a database whose schema is at head; copied for each test that wants one."""
    from data_migration.schema import migrate

    with asyncio.Runner() as runner:
        database = temporary_database(postgres_server)
        url = runner.run(database.__aenter__())
        runner.run(migrate(url))
        yield url
        runner.run(database.__aexit__(None, None, None))


@pytest.fixture
async def migrated_database_url(postgres_server: str, migrated_template: str) -> AsyncIterator[str]:
    """URL of a database with the schema at head and no rows, dropped after the test."""
    async with temporary_database(postgres_server, template_url=migrated_template) as url:
        yield url


@pytest.fixture(scope="session")
def mapped_template(postgres_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a database that the two migration scripts have filled; copied for each test."""
    with asyncio.Runner() as runner:
        database = temporary_database(postgres_server)
        url = runner.run(database.__aenter__())
        runner.run(fill_mappings(url, tmp_path_factory.mktemp("scripts")))
        yield url
        runner.run(database.__aexit__(None, None, None))


@pytest.fixture
async def stack(postgres_server: str, mapped_template: str, redis_url: str) -> AsyncIterator[Stack]:
    """Both simulators in identity mode, a mapped database, an empty Redis, and how to start the daemon."""
    journal = Journal()
    async with (
        temporary_database(postgres_server, template_url=mapped_template) as database_url,
        DhanSimulator(rate=20.0, market=Market(identity=True), journal=journal) as dhan,
        YahooSimulator(rate=5.0, market=Market(identity=True), journal=journal) as yahoo,
    ):
        yield Stack(dhan, yahoo, journal, database_url, redis_url)


@pytest.fixture
async def redis_url(redis_server: str) -> str:
    """URL of the session's Redis, emptied before the test."""
    client = redis.asyncio.from_url(redis_server)
    await client.flushall()
    await client.aclose()
    return redis_server


@pytest.fixture
async def private_redis(tmp_path: Path) -> AsyncIterator[Callable[[], Awaitable[PrivateRedis]]]:
    """Factory of started Redis servers that a test may kill, pause and start again."""
    made: list[PrivateRedis] = []

    async def make() -> PrivateRedis:
        server = PrivateRedis(tmp_path / f"redis-{len(made)}")
        made.append(server)
        await server.start()
        return server

    yield make
    for server in made:
        await server.stop()
