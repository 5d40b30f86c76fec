"""Least privilege: the daemon and the scripts run with the shipped users, and those can do nothing more."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg
import pytest
import redis.asyncio
from redis.exceptions import NoPermissionError

from services.history.coverage_store import CoverageStore
from services.market_data.coverage import Note
from services.operations.doctor_rights import check_database_rights, check_redis_rights
from services.storage.access import READER, WRITER
from tests.support.daemon import ROOT, clean_environment, run_script
from tests.support.databases import temporary_database
from tests.support.eventually import eventually
from tests.support.oracle import read_store
from tests.support.postgres import PrivatePostgres, with_login
from tests.support.servers import PrivateRedis
from tests.support.stack import INSTRUMENTS, NAMES, SCRIP_MASTER, Stack

pytestmark = pytest.mark.timeout(180)

PASSWORD = "correct-horse-battery"
SCRIPT = ROOT / "deploy" / "redis" / "users_acl.py"
USERS = ("admin", "writer", "gateway", "consumer", "reader")


async def printed_users() -> list[str]:
    passwords = {f"REDIS_{user.upper()}_PASSWORD": f"{user}-{PASSWORD}" for user in USERS}
    code, output, errors = await run_script(SCRIPT, environment=clean_environment(**passwords))
    assert (code, errors) == (0, "")
    assert PASSWORD not in output
    return output.splitlines()


@pytest.fixture
async def guarded(
    private_redis: Callable[[], Awaitable[PrivateRedis]],
) -> AsyncIterator[dict[str, str]]:
    """URL per user of a Redis that knows only the shipped users."""
    server = await private_redis()
    lines = await printed_users()
    owner = redis.asyncio.from_url(server.url, decode_responses=True)
    for line in lines[1:]:
        await owner.execute_command("ACL", "SETUSER", *acl_words(line)[1:])
    urls = {user: f"redis://marketd-{user}:{user}-{PASSWORD}@127.0.0.1:{server.port}/0" for user in USERS}
    yield urls | {"owner": server.url}
    await owner.aclose()


def acl_words(line: str) -> list[str]:
    """Split a line of an ACL file; a selector in parentheses is one word."""
    words: list[str] = []
    for word in line.split():
        if words and words[-1].startswith("(") and not words[-1].endswith(")"):
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


async def denied(url: str, *command: object) -> bool:
    """Tell whether Redis refuses a command for want of a right; any other answer means it was let through.

    DEBUG is refused to everybody by the server's own setting, before rights are looked at.
    """
    client = redis.asyncio.from_url(url, decode_responses=True)
    try:
        await client.execute_command(*command)
    except NoPermissionError:
        return True
    except redis.exceptions.ResponseError as error:
        return "DEBUG command not allowed" in str(error)
    finally:
        await client.aclose()
    return False


async def more_ticks(stack: Stack, count: int) -> None:
    before = len(stack.journal.ticks)
    await eventually(lambda: len(stack.journal.ticks) > before + count, within_s=30)


async def refusals(url: str) -> list[tuple[str, str, str]]:
    """Return who was refused what since the log was emptied."""
    client = redis.asyncio.from_url(url, decode_responses=True)
    found = await client.acl_log()
    await client.aclose()
    return [(row["username"], row["reason"], row["object"]) for row in found]


async def test_the_daemon_runs_restarts_and_resumes_with_the_writers_rights_alone(
    stack: Stack, guarded: dict[str, str], tmp_path: Path
) -> None:
    stack.redis_url = guarded["writer"]
    client = redis.asyncio.from_url(guarded["reader"], decode_responses=True)
    for _ in range(2):
        # The second start reads positions, newest ticks, epoch and lease of the first.
        async with stack.daemon(tmp_path / "state", SUBSCRIPTION_MODE="static") as daemon:
            await more_ticks(stack, 200)
            url = daemon.runtime["api_url"] + "/ws"
            async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
                await socket.send_json({"action": "subscribe", "id": 1, "instruments": ["NSE:*"]})
                answer = await socket.receive_json()
                resume = {"epoch": answer["epoch"], "position": answer["position"]}
                await socket.receive_json()
            async with aiohttp.ClientSession() as session, session.ws_connect(url) as socket:
                await socket.send_json(
                    {"action": "subscribe", "id": 2, "instruments": ["NSE:RELIANCE"], "resume": resume}
                )
                assert (await socket.receive_json())["type"] == "subscribed"
            for path in ("/metrics", "/api/providers/status", "/api/quotes?instruments=NSE:RELIANCE"):
                async with (
                    aiohttp.ClientSession() as session,
                    session.get(daemon.runtime["api_url"] + path) as got,
                ):
                    assert got.status == 200
            status = await daemon.status()
            assert {sink["state"] for sink in status["pipeline"]["sinks"]} == {"ready"}, status["pipeline"]
            await stack.quiet()
            assert await daemon.stop() == 0
            stack.dhan.schedule.set_rate(20)
            stack.yahoo.schedule.set_rate(5)
    assert "fencing_by_time_only" not in daemon.log()
    assert await refusals(guarded["admin"]) == []
    stored = await read_store(client, sorted(NAMES.values()))
    await client.aclose()
    assert sum(len(found.entries) for found in stored.values()) > 400


async def test_shards_and_gateways_run_with_the_rights_of_their_users_alone(
    stack: Stack, guarded: dict[str, str], tmp_path: Path
) -> None:
    async with (
        stack.ingest(
            tmp_path / "ingest", "NSE", "BSE", SUBSCRIPTION_MODE="dynamic", REDIS_URL=guarded["writer"]
        ),
        stack.gateway(tmp_path / "gateway", REDIS_URL=guarded["gateway"]) as gateway,
        aiohttp.ClientSession() as session,
    ):
        resume: dict[str, Any] = {"epoch": "", "position": {"NSE": "0-0"}}
        for _ in range(2):
            async with session.ws_connect(gateway.runtime["api_url"] + "/ws") as socket:
                wish = {"action": "subscribe", "id": 1, "instruments": ["NSE:TCS"], "delivery": "all"}
                await socket.send_json(wish | {"resume": resume})
                answer = await socket.receive_json()
                assert answer["type"] == "subscribed"
                while (await socket.receive_json(timeout=30))["type"] != "raw_tick":
                    pass
                resume = {"epoch": answer["epoch"], "position": {"NSE": "0-0"}}
        assert (await gateway.get("/api/why/NSE:TCS"))[0] == 200
        assert (await gateway.status())["pipeline"]["subscriptions"]["reason"] == ""
    assert await refusals(guarded["admin"]) == []
    for command in (
        ("XADD", "md:ticks:NSE", "*", "a", "b"),
        ("HSET", "md:status", "*", "x"),
        ("SET", "md:epoch", "x"),
        ("ZREM", "md:interest", "NSE:TCS"),
        ("XADD", "md:depth:NSE", "*", "a", "b"),
        ("EVAL", "return 1", "0"),
    ):
        assert await denied(guarded["gateway"], *command), command


async def test_the_writer_can_destroy_nothing_and_look_nowhere_else(guarded: dict[str, str]) -> None:
    url = guarded["writer"]
    for command in (
        ("FLUSHALL",),
        ("FLUSHDB",),
        ("CONFIG", "GET", "*"),
        ("CONFIG", "SET", "appendonly", "no"),
        ("KEYS", "*"),
        ("SCAN", "0"),
        ("DEBUG", "SLEEP", "0"),
        ("SHUTDOWN", "NOSAVE"),
        ("ACL", "LIST"),
        ("ACL", "WHOAMI"),
        ("MODULE", "LIST"),
        ("REPLICAOF", "NO", "ONE"),
        ("DEL", "md:last:{NSE:RELIANCE}"),
        ("UNLINK", "md:ticks:NSE"),
        ("RENAME", "md:epoch", "md:other"),
        ("DUMP", "md:epoch"),
        ("SWAPDB", "0", "1"),
        ("SET", "other:key", "1"),
        ("GET", "other:key"),
        ("XADD", "other:stream", "*", "a", "b"),
    ):
        assert await denied(url, *command), command
    writer = redis.asyncio.from_url(url)
    with pytest.raises(redis.exceptions.ResponseError, match="(?i)no permission|can't run this command|ACL"):
        await writer.execute_command("EVAL", "return redis.call('FLUSHALL')", "0")
    # Not everything is refused: the same user can do its work.
    assert await writer.xadd("md:ticks:NSE", {"type": "tick"}, id="1-1")
    await writer.aclose()


async def test_the_reader_can_read_and_change_nothing(guarded: dict[str, str]) -> None:
    writer = redis.asyncio.from_url(guarded["writer"])
    await writer.xadd("md:ticks:NSE", {"type": "tick", "k": "NSE:RELIANCE"}, id="1-1")
    key = "md:ts:{NSE:RELIANCE}:price"
    await writer.execute_command("TS.CREATE", key, "LABELS", "exchange", "NSE", "field", "price")
    await writer.execute_command("TS.MADD", key, 1, 2.5)
    await writer.hset("md:last:{NSE:RELIANCE}", "p", "2.5")
    await writer.aclose()
    reader = redis.asyncio.from_url(guarded["reader"], decode_responses=True)
    assert len(await reader.xread({"md:ticks:NSE": "0"})) == 1
    assert await reader.ts().range(key, "-", "+") == [(1, 2.5)]
    assert await reader.ts().mrange("-", "+", ["exchange=NSE"])
    assert await reader.hgetall("md:last:{NSE:RELIANCE}") == {"p": "2.5"}
    await reader.aclose()
    for command in (
        ("XADD", "md:ticks:NSE", "*", "a", "b"),
        ("XTRIM", "md:ticks:NSE", "MAXLEN", "0"),
        ("XGROUP", "CREATE", "md:ticks:NSE", "g", "0"),
        ("TS.ADD", key, "*", "1"),
        ("TS.MADD", key, "9", "1"),
        ("TS.CREATE", "md:ts:{NSE:TCS}:price"),
        ("TS.DEL", key, "0", "9"),
        ("HSET", "md:last:{NSE:RELIANCE}", "p", "1"),
        ("SET", "md:epoch", "x"),
        ("DEL", key),
        ("ZADD", "md:interest", "1", "NSE:TCS"),
        ("EXPIRE", key, "1"),
        ("EVAL", "return 1", "0"),
        ("PUBLISH", "md:x", "1"),
        ("FLUSHALL",),
        ("CONFIG", "GET", "*"),
        ("KEYS", "*"),
        ("GET", "other:key"),
    ):
        assert await denied(guarded["reader"], *command), command


async def test_a_consumer_can_have_a_group_and_ask_for_instruments_and_nothing_else(
    guarded: dict[str, str],
) -> None:
    writer = redis.asyncio.from_url(guarded["writer"])
    await writer.xadd("md:ticks:NSE", {"type": "tick"}, id="1-1")
    await writer.aclose()
    consumer = redis.asyncio.from_url(guarded["consumer"], decode_responses=True)
    await consumer.xgroup_create("md:ticks:NSE", "desk", "0")
    ((_, [(entry, _)]),) = await consumer.xreadgroup("desk", "one", {"md:ticks:NSE": ">"})
    assert await consumer.xack("md:ticks:NSE", "desk", entry) == 1
    await consumer.xautoclaim("md:ticks:NSE", "desk", "two", 0)
    await consumer.zadd("md:interest", {"NSE:TCS": 1})
    await consumer.zadd("md:depth_interest", {"NSE:TCS 20": 1})
    await consumer.aclose()
    for command in (
        ("XADD", "md:ticks:NSE", "*", "a", "b"),
        ("ZADD", "md:other", "1", "x"),
        ("XTRIM", "md:ticks:NSE", "MAXLEN", "0"),
        ("HSET", "md:last:{NSE:RELIANCE}", "p", "1"),
        ("DEL", "md:interest"),
        ("FLUSHALL",),
    ):
        assert await denied(guarded["consumer"], *command), command


async def test_the_server_reads_the_printed_file_and_lets_in_nobody_else(
    private_redis: Callable[[], Awaitable[PrivateRedis]], tmp_path: Path
) -> None:
    server = await private_redis()
    lines = await printed_users()
    owner = redis.asyncio.from_url(server.url, decode_responses=True)
    # The file's own grammar: the server tells each line's rights back as it understood them.
    for line in lines:
        words = acl_words(line)[1:]
        assert await owner.execute_command("ACL", "SETUSER", f"copy-of-{words[0]}", *words[1:]) == "OK"
    shown = await owner.acl_list()
    assert "user copy-of-default off" in " ".join(shown)
    for user in (WRITER, READER):
        (line,) = [row for row in shown if row.startswith(f"user copy-of-{user.name} ")]
        granted = {word[1:] for word in line.split() if word.startswith("+")}
        wanted = {word[1:] for word in user.rights[-1].split()}
        assert granted == wanted
        assert "-@all" in line
        assert "~md:*" in line
    await owner.aclose()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "REDIS_ADMIN_PASSWORD is not set"),
        ({"REDIS_ADMIN_PASSWORD": "short", "REDIS_WRITER_PASSWORD": "long-enough-1"}, "shorter than 12"),
        (
            {"REDIS_ADMIN_PASSWORD": "the-same-one-1", "REDIS_WRITER_PASSWORD": "the-same-one-1"},
            "the same password",
        ),
    ],
)
async def test_the_script_says_what_is_missing_and_shows_no_password(
    settings: dict[str, str], words: str
) -> None:
    code, output, errors = await run_script(SCRIPT, environment=clean_environment(**settings))
    assert (code, output) == (78, "")
    assert words in errors
    assert all(value not in errors for value in settings.values() if value != "short")


# ---- PostgreSQL ------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_scripts_run_as_the_loader_and_the_daemons_role_can_only_read(
    hurt_postgres: PrivatePostgres, stack: Stack, tmp_path: Path
) -> None:
    listing = tmp_path / "instruments.csv"
    listing.write_text(INSTRUMENTS, encoding="utf-8")
    async with temporary_database(hurt_postgres.url) as url:
        await hurt_postgres.make_roles(urlsplit(url).path.lstrip("/"), PASSWORD)
        loader = with_login(url, "marketd_loader", PASSWORD)
        environment = clean_environment(DATABASE_URL=loader, STATE_DIR=tmp_path)
        for arguments in (
            ["data_migration/setup_providers.py"],
            [
                "data_migration/populate_instrument_mappings.py",
                *("--instruments", listing, "--dhan-scrip-master", SCRIP_MASTER),
            ],
        ):
            code, _, errors = await run_script(*arguments, environment=environment)
            assert code == 0, errors
        # Again: the script may be run on what is there already.
        await hurt_postgres.make_roles(urlsplit(url).path.lstrip("/"), PASSWORD)
        as_daemon = with_login(url, "marketd_daemon", PASSWORD)
        async with stack.daemon(tmp_path / "state", DATABASE_URL=as_daemon) as daemon:
            await eventually(lambda: len(stack.journal.ticks) > 200, within_s=30)
            connection = await asyncpg.connect(loader)
            await connection.execute("UPDATE instruments SET is_active = false WHERE symbol = 'JPM'")
            await connection.close()

            async def heard() -> bool:
                return (await daemon.status())["pipeline"]["mappings"]["instruments"] == 9

            await eventually(heard, within_s=10)
            assert (await daemon.status())["pipeline"]["mappings"]["state"] == "current"
        await _keeps_its_ledger(as_daemon)
        await _cannot_write(as_daemon)
        assert [check.name for check in await check_database_rights(as_daemon) if check.warning] == []
        (warning,) = await check_database_rights(loader)
        assert warning.passed
        assert warning.warning
        assert "may write" in warning.detail
        await _cannot_rule(loader)


async def _keeps_its_ledger(url: str) -> None:
    store = CoverageStore(url)
    try:
        await store.note(
            [Note(instrument="NSE:TCS", type="1m", state="missing", from_ms=0, to_ms=60_000, reason="stale")]
        )
        await store.note(
            [Note(instrument="NSE:TCS", type="1m", state="have", from_ms=0, to_ms=60_000, source="DHAN")]
        )
        assert [(row.state, row.source) for row in await store.of("NSE:TCS")] == [("have", "DHAN")]
    finally:
        await store.close()


async def _cannot_write(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        # The read-only default is a seat belt; what counts is that without it the rights are missing too.
        await connection.execute("SET default_transaction_read_only = off")
        for statement in (
            "UPDATE instruments SET name = 'x'",
            "INSERT INTO providers (code, name) VALUES ('X', 'x')",
            "DELETE FROM provider_instrument_mappings",
            "TRUNCATE providers CASCADE",
            "DROP TABLE provider_instrument_mappings",
            "ALTER TABLE instruments ADD COLUMN x int",
            "CREATE TABLE mine (x int)",
            "CREATE TEMP TABLE mine (x int)",
            "CREATE SCHEMA mine",
            "CREATE ROLE mine",
            "CREATE DATABASE mine",
            "UPDATE alembic_version SET version_num = 'x'",
            "DROP FUNCTION announce_mapping_change() CASCADE",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT 1 FROM instruments FOR UPDATE",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
        assert await connection.fetchval("SELECT count(*) FROM instruments") == 10
        await connection.execute("LISTEN marketd_mappings")
        limits: Any = await connection.fetchrow(
            "SELECT current_setting('statement_timeout') s, current_setting('lock_timeout') l"
        )
        assert (limits["s"], limits["l"]) == ("5s", "2s")
    finally:
        await connection.close()


async def _cannot_rule(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in ("CREATE ROLE mine", "CREATE DATABASE mine", "ALTER ROLE marketd_loader SUPERUSER"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    finally:
        await connection.close()


# ---- doctor ----------------------------------------------------------------------------------------


async def test_doctor_warns_of_a_redis_user_that_may_more_than_it_needs(guarded: dict[str, str]) -> None:
    (fine,) = await check_redis_rights(guarded["writer"])
    assert (fine.passed, fine.warning) == (True, False)
    (much,) = await check_redis_rights(guarded["admin"])
    assert (much.passed, much.warning) == (True, True)
    assert all(word in much.detail for word in ("ACL", "CONFIG", "keys outside md:"))
    assert "users_acl.py" in much.remedy
    (little,) = await check_redis_rights(guarded["reader"])
    assert not little.passed
    assert "XADD" in little.detail.upper()
