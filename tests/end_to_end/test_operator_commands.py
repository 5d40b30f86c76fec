"""The command line as an operator meets it: exit codes, one clear sentence, no traceback, no secret."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import redis.asyncio

from tests.support.daemon import ROOT, Daemon, clean_environment, run_script
from tests.support.eventually import eventually

pytestmark = pytest.mark.timeout(120)


async def refused(code: int, *arguments: str, environment: dict[str, str]) -> str:
    """Run main.py, expect `code` and a single sentence; return it."""
    found, output, errors = await run_script("main.py", *arguments, environment=environment)
    assert found == code, (found, output, errors)
    assert "Traceback" not in errors
    sentence = errors.strip().splitlines()[-1]
    assert sentence.startswith("marketd: ")
    return errors


async def redis_process(url: str) -> int:
    client = redis.asyncio.from_url(url)
    try:
        return int((await client.info("server"))["process_id"])
    finally:
        await client.aclose()


async def test_an_open_address_without_tokens_is_refused(tmp_path: Path) -> None:
    environment = clean_environment(STATE_DIR=tmp_path, API_HOST="0.0.0.0")
    assert "API_TOKENS" in await refused(78, "run", environment=environment)


async def test_wrong_settings_are_all_named_at_once_without_their_secrets(tmp_path: Path) -> None:
    environment = clean_environment(
        STATE_DIR=tmp_path, API_PORT="many", REDIS_URL="http://:hunter2hunter2@x", LOG_LEVEL="LOUD"
    )
    sentence = await refused(78, environment=environment)
    assert all(name in sentence for name in ("API_PORT", "REDIS_URL", "LOG_LEVEL"))
    assert "hunter2" not in sentence


async def test_an_unknown_name_in_the_settings_file_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("DHAN_ACESS_TOKEN=abc\n", encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(ROOT / "main.py"),
        "doctor",
        cwd=tmp_path,
        env=clean_environment(STATE_DIR=tmp_path / "state"),
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 78
    assert b"did you mean DHAN_ACCESS_TOKEN?" in errors


async def test_a_database_without_schema_names_the_command_to_run(
    tmp_path: Path, database_url: str, redis_url: str
) -> None:
    environment = clean_environment(
        STATE_DIR=tmp_path, DATABASE_URL=database_url, REDIS_URL=redis_url, API_PORT=0
    )
    errors = await refused(78, "run", environment=environment)
    assert "data_migration/setup_providers.py" in errors
    assert "spool" not in errors, "nothing else is wrong, so nothing else is said to be"


async def test_a_database_that_is_away_is_a_temporary_condition(tmp_path: Path, redis_url: str) -> None:
    environment = clean_environment(
        STATE_DIR=tmp_path, DATABASE_URL="postgresql://u:topsecretpw@127.0.0.1:9/x", REDIS_URL=redis_url
    )
    assert "topsecretpw" not in await refused(75, "run", environment=environment)


async def test_a_redis_that_is_away_is_waited_for_and_its_password_not_shown(
    tmp_path: Path, migrated_database_url: str
) -> None:
    away = {"DATABASE_URL": migrated_database_url, "REDIS_URL": "redis://:topsecretpw@127.0.0.1:9/0"}
    async with Daemon(tmp_path / "state", wait_for="/healthz", **away) as daemon:
        status, answer = await daemon.get("/readyz")
        assert status == 503
        assert "Redis" in str(answer["reasons"])
        assert "topsecretpw" not in str(answer)
        assert await daemon.stop() == 0
    assert "topsecretpw" not in daemon.log()


async def test_without_a_daemon_status_and_tap_say_how_to_start_one(tmp_path: Path) -> None:
    environment = clean_environment(STATE_DIR=tmp_path)
    for arguments in (("status",), ("status", "--json"), ("tap", "NSE:*")):
        assert "make run" in await refused(75, *arguments, environment=environment)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("fly",), "No such command 'fly'"),
        (("why",), "Missing argument 'instrument'"),
        (("backfill",), "Missing option '--instrument'"),
        (("tap", "NSE:*", "--count", "-1"), "--count"),
        (("run", "--role", "pilot"), "'pilot' is not one of 'all', 'ingest', 'gateway'"),
        (("spool",), "no command was given"),
        (("spool", "burn"), "No such command 'burn'"),
    ],
    ids=" ".join,
)
async def test_a_call_with_wrong_words_is_refused_in_one_sentence(
    arguments: tuple[str, ...], said: str
) -> None:
    errors = await refused(78, *arguments, environment=clean_environment())
    assert len(errors.strip().splitlines()) == 1
    assert said in errors
    assert "-h shows how" in errors


async def test_one_daemon_per_state_directory_and_a_clean_end_without_leftovers(
    tmp_path: Path, migrated_database_url: str
) -> None:
    """With an embedded Redis, so that the end of the daemon is also the end of its server."""
    state = tmp_path / "a state"
    async with Daemon(state, wait_for="/healthz", DATABASE_URL=migrated_database_url) as daemon:
        runtime = daemon.runtime_file()
        assert set(runtime) >= {"api_url", "database_url", "redis_url", "pid"}
        assert (state / "runtime.json").stat().st_mode & 0o777 == 0o600
        environment = clean_environment(STATE_DIR=state, DATABASE_URL=migrated_database_url, API_PORT=0)
        assert str(runtime["pid"]) in await refused(75, "run", environment=environment)
        code, output, _ = await run_script("main.py", "status", "--json", environment=environment)
        assert code == 0
        assert json.loads(output)["demo"] is False
        redis_pid = await redis_process(runtime["redis_url"])
        assert await daemon.stop(signal.SIGINT) == 0
    assert not (state / "runtime.json").exists()
    await eventually(lambda: not Path(f"/proc/{redis_pid}").exists())
    assert "Traceback" not in daemon.log()


async def test_a_port_that_is_taken_is_named(
    tmp_path: Path, migrated_database_url: str, redis_url: str
) -> None:
    server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        environment = clean_environment(
            STATE_DIR=tmp_path, DATABASE_URL=migrated_database_url, REDIS_URL=redis_url, API_PORT=port
        )
        assert "API_PORT" in await refused(78, "run", environment=environment)


async def test_doctor_passes_only_when_everything_does(
    tmp_path: Path, migrated_database_url: str, redis_server: str
) -> None:
    environment = clean_environment(
        STATE_DIR=tmp_path,
        DATABASE_URL=migrated_database_url,
        REDIS_URL=redis_server,
        DHAN_CLIENT_ID="1000000001",
    )
    code, output, _ = await run_script("main.py", "doctor", "--json", environment=environment)
    checks = {check["name"]: check for check in json.loads(output)}
    assert code == 78
    assert checks["database"]["passed"]
    assert checks["redis"]["passed"]
    assert checks["redis persistence"]["passed"]
    assert not checks["mappings"]["passed"]
    assert "populate_instrument_mappings" in checks["mappings"]["remedy"]
    assert not checks["credentials DHAN"]["passed"]
    assert "DHAN_ACCESS_TOKEN" in checks["credentials DHAN"]["remedy"]


async def test_a_daemon_that_is_killed_hard_can_be_started_again(
    tmp_path: Path, migrated_database_url: str
) -> None:
    state = tmp_path / "state"
    first = Daemon(state, wait_for="/healthz", DATABASE_URL=migrated_database_url)
    await first.start()
    redis_pid = await redis_process(first.runtime["redis_url"])
    assert await first.stop(signal.SIGKILL) == -signal.SIGKILL
    os.kill(redis_pid, 0)
    async with Daemon(state, wait_for="/healthz", DATABASE_URL=migrated_database_url) as second:
        assert second.runtime["redis_url"] == first.runtime["redis_url"]
        assert await redis_process(second.runtime["redis_url"]) == redis_pid, "adopted"
    await eventually(lambda: not Path(f"/proc/{redis_pid}").exists())
