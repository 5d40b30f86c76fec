"""Where a Redis is and how to get in, read from its URL the way redis-py reads it.

`redis://user:password@host:6379/0`, `rediss://…` (TLS; options such as `ssl_ca_certs` in the query),
`unix://user:password@/path/redis.sock?db=0`. Does no I/O; never shows the password.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import SSLConnection
from redis.asyncio.connection import parse_url

from services.errors import StorageMisconfigured


@dataclass(frozen=True)
class RedisAddress:
    """One Redis server. `path` is set for a unix socket, else `host` and `port` are."""

    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"unix socket {self.path}" if self.path else f"{self.host}:{self.port}"


def parse_address(url: str) -> RedisAddress:
    """Return what `url` says. Raises `StorageMisconfigured` for a URL that is none of Redis."""
    try:
        options: dict[str, Any] = dict(parse_url(url))
    except ValueError as error:
        # The text of the error may hold the URL, and with it the password.
        raise StorageMisconfigured(
            "REDIS_URL is not a Redis URL: use redis://, rediss:// or unix:// as in redis://localhost:6379/0"
        ) from error
    wants_tls = options.get("connection_class") is SSLConnection
    return RedisAddress(
        host=options.get("host") or "localhost",
        port=int(options.get("port") or 6379),
        path=options.get("path"),
        database=int(options.get("db") or 0),
        username=options.get("username"),
        password=options.get("password"),
        tls=_tls_context(options) if wants_tls else None,
    )


def _tls_context(options: dict[str, Any]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(
            cafile=options.get("ssl_ca_certs"),
            capath=options.get("ssl_ca_path"),
            cadata=options.get("ssl_ca_data"),
        )
        requirement = str(options.get("ssl_cert_reqs", "required"))
        if requirement == "none":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        elif str(options.get("ssl_check_hostname", True)).lower() in ("false", "0", "no"):
            context.check_hostname = False
        if options.get("ssl_certfile"):
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except (OSError, ValueError) as error:
        raise StorageMisconfigured(f"the TLS files named in REDIS_URL cannot be used: {error}") from error
    return context
