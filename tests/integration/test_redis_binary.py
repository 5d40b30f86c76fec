"""Which Redis is taken: one on `PATH` that really has TimeSeries, else the packaged one. Real servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.operations.embedded_redis import EmbeddedRedis
from services.operations.redis_binary import (
    RedisProgram,
    bundled_program,
    find_redis,
    has_time_series,
    installed_programs,
)


@pytest.fixture
def bundled() -> RedisProgram:
    program = bundled_program()
    assert program is not None
    return program


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is the whole `PATH`, besides the system's own programs."""
    folder = tmp_path / "on path" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def put(folder: Path, name: str, text: str) -> Path:
    program = folder / name
    program.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    program.chmod(0o755)
    return program


def stack_like(folder: Path, bundled: RedisProgram) -> Path:
    """Install the packaged server the way redis-stack is: a script, the program beside it, modules in lib."""
    assert bundled.module is not None
    libraries = f'LD_LIBRARY_PATH="{bundled.libraries}" ' if bundled.libraries else ""
    put(folder, "redis-stack-server", "exit 1")
    lib = folder.parent / "lib"
    lib.mkdir()
    (lib / "redistimeseries.so").symlink_to(bundled.module)
    return put(folder, "redis-server", f'{libraries}exec "{bundled.server}" "$@"')


async def test_a_redis_stack_on_path_is_preferred(path: Path, bundled: RedisProgram) -> None:
    server = stack_like(path, bundled)
    assert (await find_redis()).server == server


async def test_a_plain_old_redis_on_path_is_passed_over(path: Path, bundled: RedisProgram) -> None:
    put(path, "redis-server", 'echo "Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc"')
    assert await installed_programs() == []
    assert (await find_redis()).server == bundled.server


async def test_a_new_redis_that_turns_out_to_have_no_time_series_is_passed_over(
    path: Path, bundled: RedisProgram
) -> None:
    libraries = f'LD_LIBRARY_PATH="{bundled.libraries}" ' if bundled.libraries else ""
    plain = put(
        path,
        "redis-server",
        'if [ "$1" = --version ]; then echo "Redis server v=8.0.1 sha=00000000:0"; exit; fi\n'
        f'{libraries}exec "{bundled.server}" "$@"',
    )
    assert [program.server for program in await installed_programs()] == [plain]
    assert not await has_time_series(RedisProgram(plain, None))
    assert (await find_redis()).server == bundled.server


@pytest.mark.parametrize("text", ["exit 1", "echo v=9.9.9; exit 3", "echo nothing of the kind"])
async def test_a_redis_on_path_that_does_not_run_is_passed_over(
    path: Path, bundled: RedisProgram, text: str
) -> None:
    put(path, "redis-server", text)
    assert (await find_redis()).server == bundled.server


async def test_the_server_on_path_is_the_one_that_is_started(
    path: Path, bundled: RedisProgram, tmp_path: Path
) -> None:
    server = stack_like(path, bundled)
    marker = tmp_path / "started"
    put(path, "redis-server", server.read_text(encoding="utf-8").replace("exec", f'touch "{marker}"; exec'))
    async with EmbeddedRedis(tmp_path / "state") as store:
        await store.start()
        assert marker.exists()
        assert store.live_pid() is not None
    assert store.live_pid() is None
