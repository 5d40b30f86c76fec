"""The embedded Redis with TimeSeries: its configuration and how it is asked whether it is ready.

For one machine. Append-only file every second, no eviction, loopback and password only.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Mapping
from pathlib import Path

import redis.exceptions

from services.errors import ConfigurationError
from services.operations.redis_binary import REMEDY, RedisProgram, find_redis, knows_time_series
from services.operations.server_process import EmbeddedServer, ServerCommand, ServerNotReady
from services.operations.state_dir import write_private

_AOF_REWRITE_FROM = "256mb"
"""With Redis' own 64 MB a busy market has the log of a short history written anew every second or two,
by a process that takes up to a fifth of what the server takes. This size is loaded in some three seconds."""


class EmbeddedRedis(EmbeddedServer):
    """Redis under `<state_dir>/redis`."""

    title = "Redis"
    remedy = REMEDY
    program = "redis-server"
    stop_signal = signal.SIGTERM
    log_hints: Mapping[str, str] = {
        "Bad file format": "repair it with redis-check-aof --fix, or move that file away",
        "Can't handle RDB format": "the data comes from a newer Redis: install that again, or set REDIS_URL",
        "No space left": "make room on the disk",
        "libssl": "run make setup, which fetches OpenSSL 1.1, or set REDIS_URL to a Redis with TimeSeries",
    }

    def __init__(self, state_dir: Path) -> None:
        folder = state_dir.absolute() / "redis"
        self.data_folder = folder / "data"
        self._configuration_file = folder / "redis.conf"
        self._found: RedisProgram | None = None
        super().__init__(folder, mark=str(self._configuration_file))

    @property
    def url(self) -> str:
        """`redis://:SECRET@127.0.0.1:PORT/0`."""
        return f"redis://:{self.secret}@127.0.0.1:{self.port}/0"

    async def prepare(self, *, new_secret: bool) -> None:  # noqa: ARG002 - the configuration is written anew
        """Find a server with TimeSeries."""
        self._found = await find_redis()
        await asyncio.to_thread(self.data_folder.mkdir, mode=0o700, exist_ok=True)

    async def command(self) -> ServerCommand:
        """Write the configuration, which holds the secret, and return how to start with it."""
        program = self._found
        assert program is not None  # noqa: S101 - prepared before
        write_private(self._configuration_file, self._configuration(program))
        return ServerCommand([str(program.server), str(self._configuration_file)], program.environment())

    async def probe(self) -> None:
        """Ask whether the server has loaded its data and has TimeSeries."""
        try:
            able = await knows_time_series(port=self.port, password=self.secret)
        except redis.exceptions.BusyLoadingError as error:
            raise ServerNotReady(str(error), loading=True) from error
        except (redis.exceptions.RedisError, OSError) as error:
            raise ServerNotReady(str(error)) from error
        if not able:
            raise ConfigurationError(f"the Redis on port {self.port} has no TimeSeries: {REMEDY}")

    def _configuration(self, program: RedisProgram) -> str:
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            "protected-mode yes",
            f"requirepass {self.secret}",
            f"dir {_quoted(self.data_folder)}",
            "daemonize no",
            # The command line must keep naming this file: that is how the process is recognised.
            "set-proc-title no",
            'save ""',
            "appendonly yes",
            "appendfsync everysec",
            "aof-load-truncated yes",
            f"auto-aof-rewrite-min-size {_AOF_REWRITE_FROM}",
            "maxmemory-policy noeviction",
        ]
        if program.module is not None:
            lines.append(f"loadmodule {_quoted(program.module)}")
        return "\n".join(lines) + "\n"


def _quoted(path: Path) -> str:
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
