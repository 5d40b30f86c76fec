"""Single commands against a real Redis: replies, refusals, lost connections and silence."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from services.errors import StorageError, StorageUnavailable
from services.storage.client import make_client
from services.storage.ingest_reports import IngestReport, ReportWriter
from services.storage.keys import STATUS
from services.storage.single_commands import SingleCommands
from tests.support.eventually import eventually


@pytest.fixture
async def client(redis_url: str) -> AsyncIterator[redis.asyncio.Redis]:
    made = make_client(redis_url)
    yield made
    await made.aclose()


@pytest.fixture
async def commands(redis_url: str) -> AsyncIterator[SingleCommands]:
    made = SingleCommands(redis_url, "marketd:test")
    yield made
    made.close()


async def test_replies_come_as_redis_gives_them(
    commands: SingleCommands, client: redis.asyncio.Redis
) -> None:
    assert await commands.ask("SET", "x", "žluťoučký {kůň}") == "OK"
    assert await commands.ask("GET", "x") == "žluťoučký {kůň}"
    assert await commands.ask("GET", "none") is None
    assert await commands.ask("RPUSH", "l", "a", "b") == 2
    assert await commands.ask("LRANGE", "l", "0", "-1") == ["a", "b"]
    assert [one["name"] for one in await client.client_list()].count("marketd:test") == 1


async def test_a_refusal_is_an_error_and_the_connection_stays(commands: SingleCommands) -> None:
    await commands.ask("SET", "x", "1")
    with pytest.raises(StorageError, match="LPUSH"):
        await commands.ask("LPUSH", "x", "1")
    assert await commands.ask("GET", "x") == "1"


async def test_after_a_loss_the_next_command_connects_anew(
    commands: SingleCommands, client: redis.asyncio.Redis
) -> None:
    await commands.ask("SET", "x", "1")
    waiting = asyncio.ensure_future(commands.ask("BLPOP", "nothing", "0"))
    await eventually(lambda: _blocked(client))
    await client.client_kill_filter(_type="normal", skipme=True)
    with pytest.raises(StorageUnavailable):
        await waiting
    assert await commands.ask("GET", "x") == "1"


async def _blocked(client: redis.asyncio.Redis) -> bool:
    return bool((await client.info("clients"))["blocked_clients"])


async def test_a_command_that_is_given_up_leaves_the_next_one_its_own_reply(
    commands: SingleCommands, client: redis.asyncio.Redis
) -> None:
    waiting = asyncio.ensure_future(commands.ask("BLPOP", "later", "0"))
    await eventually(lambda: _blocked(client))
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await client.rpush("later", "old")
    assert await commands.ask("ECHO", "new") == "new"


async def test_a_daemon_that_does_not_lead_works_out_no_report(
    redis_url: str, client: redis.asyncio.Redis
) -> None:
    made: list[str] = []
    leads = False

    def make() -> IngestReport:
        made.append("one")
        return IngestReport(at_ms=1, shard="all")

    writer = ReportWriter(redis_url, make, may_write=lambda: leads)
    await writer.say_stopped()
    running = asyncio.create_task(writer.run())
    await asyncio.sleep(0)
    assert made == []
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    leads = True
    running = asyncio.create_task(writer.run())
    await eventually(lambda: client.hget(STATUS, "all"))
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await writer.say_stopped()
    assert '"phase":"stopped"' in str(await client.hget(STATUS, "all"))
