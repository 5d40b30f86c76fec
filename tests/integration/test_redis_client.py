"""redis-py as we use it for what does not run once per tick: lost connections and the check at start."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError

from services.errors import StorageUnavailable
from services.storage.client import check_server, make_client
from tests.support.servers import PrivateRedis, free_port


@pytest.mark.parametrize("scheme", ["redis", "rediss"])
async def test_a_closed_socket_is_a_lost_connection(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    async def closed(*_: object, **__: object) -> None:
        # What uvloop says when the socket was reset while nobody looked.
        raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

    monkeypatch.setattr(Connection, "send_packed_command", closed)
    connection: Any = make_client(f"{scheme}://127.0.0.1:1/0").connection_pool.make_connection()
    with pytest.raises(RedisConnectionError, match="the connection was lost"):
        await connection.send_packed_command([b"PING"])


async def test_connecting_logs_no_warning(redis_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        client = make_client(redis_url)
        assert await client.ping()
        await client.aclose()
    assert caplog.records == []


async def test_a_replica_at_start_is_worth_another_start(
    private_redis: Callable[[], Awaitable[PrivateRedis]],
) -> None:
    server = await private_redis()
    client = make_client(server.url)
    assert (await check_server(client)).role == "master"
    await client.execute_command("REPLICAOF", "127.0.0.1", str(free_port()))
    with pytest.raises(StorageUnavailable, match="read-only replica"):
        await check_server(client)
    await client.execute_command("REPLICAOF", "NO", "ONE")
    assert (await check_server(client)).role == "master"
    await client.aclose()
