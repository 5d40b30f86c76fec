"""No secret leaves the process: canaries in every secret setting, every kind of trouble, and a search."""

from __future__ import annotations

import json
import logging
import signal
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import aiohttp
import pytest
import redis.asyncio
import structlog

from config.logging import configure_logging
from data_migration import scrip_master_file
from data_migration.command_line import err
from data_migration.populate_instrument_mappings import Sources, populate_from
from data_migration.setup_providers import setup
from services.redaction import make_known
from simulators.faults import Abort, HandshakeStatus
from tests.support.daemon import clean_environment, run_script
from tests.support.databases import temporary_database
from tests.support.eventually import eventually
from tests.support.postgres import PrivatePostgres, with_login
from tests.support.servers import PrivateRedis
from tests.support.stack import INSTRUMENTS, SCRIP_MASTER, Stack

pytestmark = pytest.mark.timeout(240)

CLIENT_ID = "1180001180"
API_SECRET = "canary-api-K7xw2Qp"
REDIS_SECRET = "canary-redis-9mTz+4/x"
DATABASE_SECRET = "canary-database-Lw8!v"
WRONG = "canary-wrong-Zz31uT"


def found_in(text: str, canaries: list[str]) -> list[str]:
    """Return the canaries that stand in a text, plain or URL-encoded."""
    return [canary for canary in canaries if canary in text or quote(canary, safe="") in text]


def command_lines() -> Iterator[str]:
    """Yield the command line of every process of this machine that we may see."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            yield (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue


@pytest.mark.slow
async def test_no_secret_is_found_in_logs_answers_outputs_files_or_command_lines(
    stack: Stack,
    hurt_postgres: PrivatePostgres,
    private_redis: Callable[[], Awaitable[PrivateRedis]],
    tmp_path: Path,
) -> None:
    server = await private_redis()
    owner = redis.asyncio.from_url(server.url, decode_responses=True)
    rights = ("on", "~*", "&*", "+@all")
    await owner.execute_command("ACL", "SETUSER", "writer", f">{REDIS_SECRET}", *rights)
    stack.dhan.tokens.client_id = CLIENT_ID
    token = stack.dhan.tokens.issue()
    outputs: dict[str, str] = {}
    async with temporary_database(hurt_postgres.url) as database:
        listing = tmp_path / "instruments.csv"
        listing.write_text(INSTRUMENTS, encoding="utf-8")
        await setup(database)
        await populate_from(database, Sources(listing, scrip_master_file.read(SCRIP_MASTER, err)))
        await hurt_postgres.make_roles(urlsplit(database).path.lstrip("/"), DATABASE_SECRET)
        secrets = {
            "DATABASE_URL": with_login(database, "marketd_daemon", quote(DATABASE_SECRET, safe="")),
            "REDIS_URL": f"redis://writer:{quote(REDIS_SECRET, safe='')}@127.0.0.1:{server.port}/0",
            "DHAN_CLIENT_ID": CLIENT_ID,
            "DHAN_ACCESS_TOKEN": token,
            "API_TOKENS": f"desk:{API_SECRET}",
        }
        canaries = [DATABASE_SECRET, REDIS_SECRET, CLIENT_ID, token, API_SECRET, WRONG]
        bearer = {"Authorization": f"Bearer {API_SECRET}"}
        daemon = stack.daemon(tmp_path / "state", **secrets, LOG_LEVEL="DEBUG")
        async with daemon:
            await eventually(lambda: len(stack.journal.ticks) > 100, within_s=30)
            outputs["command lines"] = "\n".join(command_lines())
            assert "main.py" in outputs["command lines"]

            # The provider: a broken connection, then a handshake refused with the token in its address.
            await stack.dhan.inject(HandshakeStatus(status=503, body=f"bad token {token}"))
            tried = stack.dhan.handshakes
            await stack.dhan.inject(Abort())
            await eventually(lambda: stack.dhan.handshakes > tried, within_s=30)
            # The stores: passwords that stop working.
            await owner.execute_command("ACL", "SETUSER", "writer", "resetpass", ">something-else")
            await owner.execute_command("CLIENT", "KILL", "USER", "writer")
            await hurt_postgres.sql(
                "ALTER ROLE marketd_daemon PASSWORD 'something-else';"
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'marketd_daemon'"
            )
            await eventually(lambda: "sink_parked" in daemon.log(), within_s=20)
            await eventually(lambda: "mappings_parked" in daemon.log(), within_s=20)
            assert daemon.process is not None
            daemon.process.send_signal(signal.SIGHUP)
            await eventually(lambda: "settings_read_again" in daemon.log(), within_s=20)
            # The gateway: secrets where they do not belong, and wrong ones where they do.
            url = daemon.runtime["api_url"]
            async with aiohttp.ClientSession() as session:
                for path in (
                    "/metrics",
                    "/api/providers/status",
                    "/readyz",
                    "/openapi.json",
                    "/api/instruments",
                ):
                    async with session.get(url + path, headers=bearer) as response:
                        outputs[path] = f"{response.headers}{await response.text()}"
                for path in (f"/api/quotes?token={API_SECRET}", f"/ws?access_token={WRONG}", f"/{WRONG}%ff"):
                    async with session.get(url + path) as response:
                        outputs[f"refused {path[:8]}"] = await response.text()
                async with session.get(
                    f"{url}/api/quotes", headers={"Authorization": f"Bearer {WRONG}"}
                ) as response:
                    assert response.status == 401
                    outputs["wrong token"] = await response.text()
                async with session.ws_connect(f"{url}/ws") as socket:
                    await socket.send_json({"action": "auth", "id": 1, "token": WRONG})
                    outputs["wrong token, WebSocket"] = str((await socket.receive()).data)
            assert all(outputs.values())
            environment = clean_environment(STATE_DIR=tmp_path / "state", **secrets)
            for command in (["status", "--json"], ["doctor"], ["spool", "inspect"]):
                _, output, errors = await run_script("main.py", *command, environment=environment)
                outputs[command[0]] = output + errors
            runtime = tmp_path / "state" / "runtime.json"
            assert runtime.stat().st_mode & 0o777 == 0o600
            for path in (tmp_path / "state").rglob("*"):
                if path.is_file() and path != runtime:
                    outputs[str(path)] = path.read_bytes().decode("utf-8", "replace")
            await daemon.stop()
        outputs["log"] = daemon.log()
    await owner.aclose()
    assert {name: found for name, text in outputs.items() if (found := found_in(text, canaries))} == {}
    assert '"DHAN"' in outputs["/api/providers/status"], "the search looked at something"
    assert "provider_state_changed" in outputs["log"]


async def test_embedded_servers_have_their_password_in_no_command_line(
    postgres_server: str, redis_server: str
) -> None:
    lines = "\n".join(command_lines())
    assert "redis-server" in lines
    for url in (postgres_server, redis_server):
        secret = urlsplit(url).password
        assert secret
        assert secret not in lines


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_traceback_an_exception_and_nested_values_are_logged_without_secrets(
    log_format: str, capfd: pytest.CaptureFixture[str]
) -> None:
    make_known([REDIS_SECRET])
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    listener = configure_logging("DEBUG", log_format)
    try:
        log = structlog.get_logger("test")
        address = f"wss://feed.example/?version=2&token={WRONG}&clientId={CLIENT_ID}"
        error = ConnectionError(f"cannot connect to {address} with {REDIS_SECRET}")
        try:
            raise error
        except ConnectionError:
            log.error("task_failed", exc_info=True)
            logging.getLogger("library").exception("failed at %s", address)
        log.info("seen", error=error, urls=[address], deep={"headers": {"Authorization": f"Bearer {WRONG}"}})
        log.info("named", password=WRONG, values={"access_token": WRONG}, plain=(REDIS_SECRET,))
    finally:
        listener.stop()
        root.handlers[:], root.level = handlers, level
        structlog.reset_defaults()
    written = capfd.readouterr().err
    assert written.count("cannot connect to") == 3
    assert written.count("Traceback") == 2
    assert found_in(written, [WRONG, REDIS_SECRET, CLIENT_ID]) == []
    if log_format == "json":
        assert [json.loads(line)["event"] for line in written.splitlines() if line][-1] == "named"
