"""Secrets that change while the daemon runs: taken over from their files, without a restart."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import redis.asyncio

from simulators.faults import ExpireToken
from tests.support.daemon import Daemon
from tests.support.eventually import eventually
from tests.support.oracle import judge, read_store
from tests.support.servers import PrivateRedis
from tests.support.stack import NAMES, Stack

pytestmark = pytest.mark.timeout(180)


def write(path: Path, content: str) -> Path:
    """Put a secret in place the way a careful rotation does: whole, private, by one rename."""
    fresh = path.with_suffix(".new")
    fresh.touch(mode=0o600)
    fresh.write_text(content + "\n", encoding="utf-8")
    return fresh.replace(path)


async def provider(daemon: Daemon, code: str, **headers: str) -> dict[str, Any]:
    _, body = await daemon.get("/api/providers/status", **headers)
    return {row["code"]: row for row in body["providers"]}[code]


async def test_a_provider_parked_for_its_token_takes_the_new_one_and_never_tries_the_dead_one(
    stack: Stack, tmp_path: Path
) -> None:
    token = tmp_path / "dhan-token"
    dead = stack.dhan.tokens.issue(life_s=-60)
    write(token, dead)
    async with stack.daemon(tmp_path / "state", DHAN_ACCESS_TOKEN="", DHAN_ACCESS_TOKEN_FILE=token) as daemon:

        async def state() -> str:
            return str((await provider(daemon, "DHAN"))["state"])

        async def is_parked() -> bool:
            return await state() == "parked"

        async def streams() -> bool:
            return await state() == "streaming"

        await eventually(is_parked, within_s=20)
        assert stack.dhan.handshakes == 0, "its own claim says that it has expired"
        # The same dead token again, by signal and by a new file of the same content: no attempt either.
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        write(token, dead)
        await eventually(lambda: daemon.log().count("settings_read_again") == 1)
        await asyncio.sleep(1.5)
        assert stack.dhan.handshakes == 0
        write(token, stack.dhan.tokens.issue())
        await eventually(streams, within_s=20)
        # A token refused by the vendor while it streams: parked after it, until the next one comes.
        worked = stack.dhan.handshakes
        await stack.dhan.inject(ExpireToken())
        await eventually(is_parked, within_s=20)
        tried = stack.dhan.handshakes
        assert tried - worked <= 1
        await asyncio.sleep(1.5)
        assert stack.dhan.handshakes == tried
        write(token, stack.dhan.tokens.issue())
        await eventually(streams, within_s=20)
        assert dead not in daemon.log()


async def test_api_tokens_are_replaced_and_sessions_of_a_revoked_one_are_closed_for_good(
    stack: Stack, tmp_path: Path
) -> None:
    tokens = write(tmp_path / "api-tokens", "desk:first-desk-secret\nops:first-ops-secret")
    async with stack.daemon(tmp_path / "state", API_TOKENS_FILE=tokens) as daemon:
        url = daemon.runtime["api_url"]

        def header(secret: str) -> dict[str, str]:
            return {"Authorization": f"Bearer {secret}"}

        async def code(secret: str) -> int:
            return (await daemon.get("/api/providers/status", **header(secret)))[0]

        assert (await code("first-desk-secret"), await code("second-desk-secret")) == (200, 401)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"{url}/ws", headers=header("first-desk-secret")) as desk,
            session.ws_connect(f"{url}/ws", headers=header("first-ops-secret")) as ops,
        ):
            write(tokens, "desk:second-desk-secret\nops:first-ops-secret")
            message = await asyncio.wait_for(desk.receive(), 20)
            while message.type is aiohttp.WSMsgType.TEXT:
                message = await asyncio.wait_for(desk.receive(), 20)
            assert desk.close_code == 4500
            assert (await code("first-desk-secret"), await code("second-desk-secret")) == (401, 200)
            await ops.send_json({"action": "ping", "id": 7})
            assert (await asyncio.wait_for(ops.receive_json(), 20))["type"] == "pong"
        # A file that others can read is not taken over; what held before still holds.
        write(tokens, "desk:third-desk-secret")

        async def taken_over() -> bool:
            return await code("third-desk-secret") == 200

        await eventually(taken_over, within_s=20)
        tokens.chmod(0o644)
        await eventually(lambda: "settings_not_read_again" in daemon.log())
        assert "chmod 600" in daemon.log()
        assert await code("third-desk-secret") == 200
        for secret in ("first-desk-secret", "second-desk-secret", "third-desk-secret", "first-ops-secret"):
            assert secret not in daemon.log()


async def test_a_changed_redis_password_is_taken_up_at_once_and_nothing_is_lost(
    stack: Stack, private_redis: Callable[[], Awaitable[PrivateRedis]], tmp_path: Path
) -> None:
    server = await private_redis()
    owner = redis.asyncio.from_url(server.url, decode_responses=True)

    def url(password: str) -> str:
        return f"redis://writer:{password}@127.0.0.1:{server.port}/0"

    await owner.execute_command("ACL", "SETUSER", "writer", "on", ">first-redis-pw", "~*", "&*", "+@all")
    secret = write(tmp_path / "redis-url", url("first-redis-pw"))
    async with stack.daemon(tmp_path / "state", REDIS_URL="", REDIS_URL_FILE=secret) as daemon:
        await eventually(lambda: len(stack.journal.ticks) > 200, within_s=30)

        async def states() -> set[str]:
            sinks = (await daemon.status())["pipeline"]["sinks"]
            return {row["state"] for row in sinks if row["name"] not in ("bars", "broadcast")}

        await owner.execute_command("ACL", "SETUSER", "writer", "resetpass", ">second-redis-pw")
        await owner.execute_command("CLIENT", "KILL", "USER", "writer")

        async def parked() -> bool:
            return await states() == {"parked"}

        async def ready() -> bool:
            return await states() == {"ready"}

        await eventually(parked, within_s=20)
        before = len(stack.journal.ticks)
        await eventually(lambda: len(stack.journal.ticks) > before + 100, within_s=30)
        write(secret, url("second-redis-pw"))
        # Without this a parked sink tries once a minute.
        await eventually(ready, within_s=20)
        await eventually(lambda: daemon.runtime_file()["redis_url"] == url("second-redis-pw"))
        await stack.quiet()
        assert await daemon.stop() == 0
        for password in ("first-redis-pw", "second-redis-pw"):
            assert password not in daemon.log()
    await owner.aclose()
    client = redis.asyncio.from_url(url("second-redis-pw"), decode_responses=True)
    verdict = judge(stack.journal.ticks, await read_store(client, sorted(NAMES.values())), NAMES)
    await client.aclose()
    assert verdict.clean, verdict
