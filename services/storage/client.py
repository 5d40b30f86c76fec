"""redis-py for everything that does not run once per tick, and the check of the server at start.

Stands beside the writers, for start-up, status and reads. No retries of the library's own: by default
it repeats a command whose answer was late, which stores an entry twice and hides a stall for a minute.
"""

from __future__ import annotations

from typing import Any

import msgspec
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _AsyncHiredisParser
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection, parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from services.errors import StorageError, StorageMisconfigured, StorageUnavailable
from services.storage.address import parse_address
from services.storage.credentials import CurrentCredentials
from services.storage.failures import server_refusal

CONNECT_TIMEOUT_S = 2.0
REPLY_TIMEOUT_S = 2.0
_MOST_CONNECTIONS = 8
_PREFIX_OF: tuple[tuple[type[RedisError], str], ...] = (
    (BusyLoadingError, "LOADING"),
    (OutOfMemoryError, "OOM"),
    (ReadOnlyError, "READONLY"),
    (NoPermissionError, "NOPERM"),
    (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"),
    (MovedError, "MOVED"),
    (TryAgainError, "TRYAGAIN"),
)
"""redis-py turns the first word of an error reply into a class; this turns it back."""


class _ClosedIsLost:
    """Part of a connection: when uvloop complains of a socket that was reset, the connection is lost."""

    async def send_packed_command(self, *arguments: Any, **options: Any) -> None:
        """Send as redis-py does."""
        try:
            await super().send_packed_command(*arguments, **options)  # type: ignore[misc]
        except RuntimeError as error:
            raise RedisConnectionError(f"the connection was lost: {error}") from error

    async def read_response(
        self, disable_decoding: bool = False, timeout: float | None = None, **options: Any
    ) -> Any:
        """Return the next reply as redis-py does, and at once where it has arrived already.

        Of a thousand pipelined replies all but a few have: redis-py sets up a time limit for each of them.
        """
        parser: Any = self._parser  # type: ignore[attr-defined]
        if timeout is None and isinstance(parser, _AsyncHiredisParser) and parser._connected:
            reader: Any = parser._reader
            reply = reader.gets(False) if disable_decoding else reader.gets()
            if reply is not NOT_ENOUGH_DATA:
                lost = reply[0] if isinstance(reply, list) and reply else reply
                if isinstance(lost, RedisConnectionError):
                    await self.disconnect(nowait=True)  # type: ignore[attr-defined]
                    raise lost
                if isinstance(reply, ResponseError):
                    raise reply from None
                return reply
        return await super().read_response(disable_decoding, timeout, **options)  # type: ignore[misc]


class _Tcp(_ClosedIsLost, Connection):
    pass


class _Tls(_ClosedIsLost, SSLConnection):
    pass


class _Unix(_ClosedIsLost, UnixDomainSocketConnection):
    pass


_CONNECTION_OF: dict[Any, type[Connection | UnixDomainSocketConnection]] = {
    Connection: _Tcp,
    SSLConnection: _Tls,
    UnixDomainSocketConnection: _Unix,
}


class RedisFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What the server says of itself.

    `role` is `master` or `slave`; `timeseries_version` is `1.12.2`; `maxmemory_policy` is empty where
    the server does not tell. `uptime_s` is since its start, `time_ms` its clock; `run_id` changes
    with every start of the server.
    """

    version: str
    role: str
    aof_enabled: bool
    timeseries_version: str
    maxmemory_policy: str
    run_id: str
    uptime_s: int
    time_ms: int


def make_client(
    url: str,
    *,
    name: str = "marketd:client",
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    reply_timeout_s: float = REPLY_TIMEOUT_S,
) -> Redis:
    """Return a client that decodes text, waits a bounded time and never repeats a command by itself.

    Connects on first use. Raises `StorageMisconfigured` for a URL that is none of Redis.
    """
    address = parse_address(url)
    options = dict(parse_url(url))
    for login in ("username", "password"):
        options.pop(login, None)
    defaults: dict[str, Any] = {
        "max_connections": _MOST_CONNECTIONS,
        "timeout": reply_timeout_s,
        "decode_responses": True,
        "encoding_errors": "replace",
        "retry": Retry(NoBackoff(), 0),
        "socket_connect_timeout": connect_timeout_s,
        "socket_timeout": reply_timeout_s,
        "health_check_interval": 0,
        "client_name": name,
        "protocol": 2,
        "credential_provider": CurrentCredentials(address),
    }
    options["connection_class"] = _CONNECTION_OF[options.get("connection_class", Connection)]
    pool: BlockingConnectionPool = BlockingConnectionPool(**defaults | options)
    return Redis.from_pool(pool)


async def check_server(client: Redis) -> RedisFacts:
    """Ask the server what it is, and refuse one that cannot keep market data.

    Raises `StorageUnavailable` when it does not answer, is loading or a replica, `StorageMisconfigured`
    with the remedy when the password is wrong or it has no TimeSeries.
    """
    try:
        info: dict[str, Any] = await client.info()
        if info.get("loading"):
            raise StorageUnavailable("Redis is loading its data: try again in a moment")
        if info.get("role") != "master":
            # In the middle of a failover that is so for a moment only: worth another start.
            raise StorageUnavailable(
                "this Redis is a read-only replica: point REDIS_URL at the master "
                f"({info.get('master_host', 'unknown')}:{info.get('master_port', '')})"
            )
        timeseries_version = await _timeseries_version(client, info)
    except RedisError as error:
        raise storage_error(error) from error
    except OSError as error:
        raise StorageUnavailable(f"Redis cannot be reached: {error}") from error
    return RedisFacts(
        version=str(info.get("redis_version", "")),
        role="master",
        aof_enabled=bool(info.get("aof_enabled")),
        timeseries_version=timeseries_version,
        maxmemory_policy=str(info.get("maxmemory_policy", "")),
        run_id=str(info.get("run_id", "")),
        uptime_s=int(info.get("uptime_in_seconds", 0)),
        time_ms=int(info.get("server_time_usec", 0)) // 1_000,
    )


def storage_error(error: RedisError) -> StorageError:
    """Return what an exception of redis-py means for us, in words for an operator."""
    if isinstance(error, AuthenticationError | AuthorizationError):
        return server_refusal(str(error)) or StorageMisconfigured(
            "Redis refuses the user name or password: correct REDIS_URL"
        )
    if isinstance(error, RedisTimeoutError):
        return StorageUnavailable("Redis did not answer in time")
    if isinstance(error, RedisConnectionError) and not isinstance(error, BusyLoadingError):
        text = str(error)
        if "certificate" in text.lower() or "ssl" in text.lower():
            return StorageMisconfigured(f"TLS with Redis failed: {text}")
        return server_refusal(text) or StorageUnavailable(f"Redis cannot be reached: {text}")
    for kind, prefix in _PREFIX_OF:
        if isinstance(error, kind):
            refusal = server_refusal(f"{prefix} {error}")
            if refusal is not None:
                return refusal
    return server_refusal(str(error)) or StorageUnavailable(f"Redis refuses: {error}")


async def _timeseries_version(client: Redis, info: dict[str, Any]) -> str:
    """Return the version of the TimeSeries module. Raises `StorageMisconfigured` where there is none."""
    modules = info.get("modules") or []
    for module in modules if isinstance(modules, list) else [modules]:
        if module.get("name") == "timeseries":
            number = int(module.get("ver", 0))
            return f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
    try:
        # A server that does not list its modules may have it all the same.
        await client.execute_command("TS.INFO", "md:absent")  # type: ignore[no-untyped-call]
    except ResponseError as error:
        refusal = server_refusal(str(error))
        if refusal is not None:
            raise refusal from error
    return str(info.get("redis_version", ""))
