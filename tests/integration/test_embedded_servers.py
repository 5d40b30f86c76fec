"""The embedded servers, for real: first and second start, killed daemons, damaged data, several users."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import redis.asyncio

from services.errors import ConfigurationError, TemporaryError
from services.operations import server_process
from services.operations.embedded import EmbeddedPostgres, EmbeddedRedis
from services.operations.server_process import EmbeddedServer
from tests.support.eventually import eventually

ROOT = Path(__file__).resolve().parents[2]
BOTH = pytest.mark.parametrize("kind", [EmbeddedPostgres, EmbeddedRedis])


@pytest.fixture(scope="module")
def made_cluster(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A state directory whose PostgreSQL has been started once."""
    folder = tmp_path_factory.mktemp("made") / "state"

    async def make() -> None:
        async with EmbeddedPostgres(folder) as server:
            await server.start()

    asyncio.run(make())
    return folder


@pytest.fixture
def state(made_cluster: Path, tmp_path: Path) -> Path:
    """A state directory that has been in use: starting its PostgreSQL need not create the cluster."""
    shutil.copytree(made_cluster, tmp_path / "state")
    return tmp_path / "state"


async def ask_postgres(url: str, statement: str) -> object:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def ask_redis(url: str, *command: str) -> object:
    client = redis.asyncio.from_url(url, decode_responses=True)
    try:
        return await client.execute_command(*command)
    finally:
        await client.aclose()


async def answers(server: EmbeddedServer) -> bool:
    if isinstance(server, EmbeddedPostgres):
        return await ask_postgres(server.url, "SELECT 1") == 1
    return await ask_redis(server.url, "PING") in ("PONG", True)


@contextlib.asynccontextmanager
async def other_user(
    state: Path, kind: type[EmbeddedServer]
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, object]]]:
    """Use the server from another process; yields the process, and the server's URL and pid."""
    name = "postgres" if kind is EmbeddedPostgres else "redis"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.support.server_user", str(state), name),
        cwd=ROOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    yield process, json.loads(await process.stdout.readline())
    process.stdin.close()
    await process.wait()


async def test_both_keep_data_url_and_privacy_over_a_restart_in_a_path_with_spaces(tmp_path: Path) -> None:
    state = tmp_path / "a state directory with \"spaces\" and 'quotes'"
    urls = []
    for _ in range(2):
        async with EmbeddedPostgres(state) as postgres, EmbeddedRedis(state) as store:
            urls.append((await postgres.start(), await store.start()))
            if len(urls) == 1:
                await ask_postgres(urls[0][0], "CREATE TABLE kept (n int)")
                await ask_redis(urls[0][1], "TS.ADD", "kept", "1000", "1.5")
            else:
                assert await ask_postgres(urls[1][0], "SELECT count(*) FROM kept") == 0
                assert await ask_redis(urls[1][1], "TS.GET", "kept") == [1000, 1.5]
        assert postgres.live_pid() is None
        assert store.live_pid() is None
    assert urls[0] == urls[1]
    assert stat.S_IMODE(state.stat().st_mode) == 0o700
    for name in ("postgres/secret", "redis/secret", "redis/redis.conf"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600


async def test_redis_keeps_everything_and_evicts_nothing(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as store:
        url = await store.start()
        wanted = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "auto-aof-rewrite-percentage": "100",
            "auto-aof-rewrite-min-size": str(256 << 20),
            "maxmemory-policy": "noeviction",
            "save": "",
        }
        for name, value in wanted.items():
            assert await ask_redis(url, "CONFIG", "GET", name) == {name: value}
        modules = await ask_redis(url, "MODULE", "LIST")
        assert "timeseries" in str(modules)
        assert "search" not in str(modules)


async def test_postgres_gives_a_role_without_superuser_rights_and_unicode(state: Path) -> None:
    async with EmbeddedPostgres(state) as server:
        url = await server.start()
        assert await ask_postgres(url, "SHOW is_superuser") == "off"
        assert await ask_postgres(url, "SELECT upper('ä')") == "Ä"
        assert await ask_postgres(url, "SHOW fsync") == "on"
        assert await ask_postgres(url, "SHOW timezone") == "UTC"


async def test_nobody_gets_in_without_the_secret(state: Path) -> None:
    async with EmbeddedPostgres(state) as postgres, EmbeddedRedis(state) as store:
        await postgres.start()
        await store.start()
        for user in ("marketd", "postgres"):
            with pytest.raises(asyncpg.InvalidAuthorizationSpecificationError):
                await asyncpg.connect(host="127.0.0.1", port=postgres.port, user=user, password="x")
        with pytest.raises(redis.exceptions.AuthenticationError):
            await ask_redis(f"redis://127.0.0.1:{store.port}/0", "PING")
        for server in (postgres, store):
            pid = server.live_pid()
            assert server.secret not in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
            assert server.secret not in Path(f"/proc/{pid}/environ").read_text(encoding="utf-8")


@BOTH
async def test_a_very_long_path_is_no_obstacle(tmp_path: Path, kind: type[EmbeddedServer]) -> None:
    async with kind(tmp_path.joinpath(*["a-folder-with-a-long-name"] * 12)) as server:
        await server.start()
        assert await answers(server)


# ---- several users ----------------------------------------------------------------------------------


async def test_the_last_of_two_users_stops_the_server(tmp_path: Path) -> None:
    first, second = EmbeddedRedis(tmp_path), EmbeddedRedis(tmp_path)
    assert await first.start() == await second.start()
    await first.stop()
    assert await answers(second)
    await second.stop()
    assert second.live_pid() is None


@BOTH
async def test_a_server_outlives_the_process_that_started_it_while_another_uses_it(
    state: Path, kind: type[EmbeddedServer]
) -> None:
    async with kind(state) as server:
        async with other_user(state, kind) as (_, theirs):
            assert await server.start() == theirs["url"]
        assert server.live_pid() == theirs["pid"]
        assert await answers(server)
    assert server.live_pid() is None


async def test_several_that_start_at_once_share_one_server(state: Path) -> None:
    servers = [EmbeddedPostgres(state) for _ in range(3)]
    urls = await asyncio.gather(*(server.start() for server in servers))
    assert len(set(urls)) == 1
    await asyncio.gather(*(server.stop() for server in servers))
    assert servers[0].live_pid() is None


# ---- killed daemons, killed servers -----------------------------------------------------------------


@BOTH
async def test_a_server_that_a_killed_daemon_left_behind_is_adopted(
    state: Path, kind: type[EmbeddedServer]
) -> None:
    async with other_user(state, kind) as (daemon, theirs):
        daemon.kill()
        await daemon.wait()
    async with kind(state) as adopter:
        assert adopter.live_pid() == theirs["pid"]
        assert await adopter.start() == theirs["url"]
        assert adopter.live_pid() == theirs["pid"]
        assert await answers(adopter)
    assert adopter.live_pid() is None


@BOTH
async def test_a_server_whose_folder_was_deleted_under_it_is_ended(
    tmp_path: Path, kind: type[EmbeddedServer]
) -> None:
    async with other_user(tmp_path / "s", kind) as (daemon, theirs):
        daemon.kill()
        await daemon.wait()
    shutil.rmtree(tmp_path / "s")
    async with kind(tmp_path / "s") as server:
        await server.start()
        assert server.live_pid() != theirs["pid"]
        assert not _runs(int(str(theirs["pid"])))


def _runs(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except OSError:
        return False


async def test_a_frozen_leftover_is_ended_and_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "_ANSWER_WITHIN_S", 0.3)
    monkeypatch.setattr(EmbeddedServer, "stop_within_s", 0.3)
    async with other_user(tmp_path, EmbeddedRedis) as (daemon, theirs):
        daemon.kill()
        await daemon.wait()
    frozen = int(str(theirs["pid"]))
    os.kill(frozen, signal.SIGSTOP)
    monkeypatch.setattr(server_process, "_ANSWER_WITHIN_S", 1.5)
    async with EmbeddedRedis(tmp_path) as fresh:
        await fresh.start()
        assert fresh.live_pid() != frozen
        assert await answers(fresh)


async def test_a_frozen_server_that_others_use_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "_ANSWER_WITHIN_S", 0.3)
    async with other_user(tmp_path, EmbeddedRedis) as (_, theirs), EmbeddedRedis(tmp_path) as late:
        pid = int(str(theirs["pid"]))
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(TemporaryError, match="others use it"):
            await late.start()
        os.kill(pid, signal.SIGCONT)
        assert await late.start() == theirs["url"]
        assert late.live_pid() == pid


@BOTH
async def test_a_server_that_is_killed_is_started_again_on_its_port(
    state: Path, kind: type[EmbeddedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_process, "_WATCH_EVERY_S", 0.05)
    async with kind(state) as server:
        url = await server.start()
        watching = asyncio.create_task(server.run())
        first = server.live_pid()
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: server.live_pid() not in (None, first), within_s=15)
        async with asyncio.timeout(15):
            while True:
                with contextlib.suppress(OSError, redis.exceptions.RedisError, asyncpg.PostgresError):
                    if await answers(server):
                        break
                await asyncio.sleep(0.05)
        assert server.url == url

        def is_over() -> bool:
            # Python 3.11 may swallow a cancellation that meets the end of a wait_for.
            return watching.cancel() is False

        await eventually(is_over)
    assert server.live_pid() is None


async def test_a_port_taken_while_its_server_was_down_is_waited_for_because_clients_know_it(
    tmp_path: Path,
) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        await server.start()
        pid = server.live_pid()
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        await eventually(lambda: server.live_pid() is None)
        squatter = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", server.port)
        with pytest.raises(TemporaryError, match=f"port {server.port}.*taken"):
            await server.start()
        squatter.close()
        await squatter.wait_closed()
        await server.start()
        assert await answers(server)


# ---- what is found in the folder --------------------------------------------------------------------


async def test_a_torn_append_only_file_costs_its_last_command_only(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path)
    await server.start()
    await ask_redis(server.url, "SET", "kept", "yes")
    pid = server.live_pid()
    assert pid is not None
    # What a client was told is written is in the file, before it reaches the disk.
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: server.live_pid() is None)
    await server.stop()
    log = server.data_folder / "appendonlydir" / "appendonly.aof.1.incr.aof"
    with log.open("ab") as file:
        file.write(b"*3\r\n$3\r\nSET\r\n$4\r\nto")
    async with EmbeddedRedis(tmp_path) as again:
        assert await ask_redis(await again.start(), "GET", "kept") == "yes"


async def test_a_damaged_append_only_file_is_one_sentence_with_the_remedy(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path) as server:
        await server.start()
        await ask_redis(server.url, "SET", "kept", "yes")
    log = server.data_folder / "appendonlydir" / "appendonly.aof.1.incr.aof"
    log.write_bytes(b"*x" + log.read_bytes())
    async with EmbeddedRedis(tmp_path) as broken:
        with pytest.raises(ConfigurationError, match="redis-check-aof --fix"):
            await broken.start()
    assert broken.live_pid() is None


async def test_a_half_made_cluster_is_made_anew(tmp_path: Path) -> None:
    half = tmp_path / "postgres" / "data.new" / "base"
    half.mkdir(parents=True)
    (half / "1").write_text("half", encoding="ascii")
    async with EmbeddedPostgres(tmp_path) as server:
        await server.start()
        assert await answers(server)
    assert not (tmp_path / "postgres" / "data.new").exists()


async def test_what_is_no_cluster_is_put_aside_and_not_deleted(tmp_path: Path) -> None:
    foreign = tmp_path / "postgres" / "data"
    foreign.mkdir(parents=True)
    (foreign / "precious").write_text("keep me", encoding="ascii")
    async with EmbeddedPostgres(tmp_path) as server:
        await server.start()
    kept = list((tmp_path / "postgres").glob("data.unknown-*/precious"))
    assert [path.read_text(encoding="ascii") for path in kept] == ["keep me"]


async def test_a_cluster_whose_secret_was_lost_gets_a_new_one(state: Path) -> None:
    async with EmbeddedPostgres(state) as server:
        await ask_postgres(await server.start(), "CREATE TABLE kept (n int)")
    old = server.secret
    (state / "postgres" / "secret").unlink()
    async with EmbeddedPostgres(state) as server:
        assert await ask_postgres(await server.start(), "SELECT count(*) FROM kept") == 0
        assert server.secret != old


async def test_a_pid_file_that_names_a_stranger_is_no_obstacle(state: Path) -> None:
    async with EmbeddedPostgres(state) as server:
        await server.start()
    pid_file = state / "postgres" / "data" / "postmaster.pid"
    pid_file.write_text(f"{os.getpid()}\n{state}\n1\n5432\n\n\n\nready\n", encoding="ascii")
    async with EmbeddedPostgres(state) as server:
        await server.start()
        assert await answers(server)


async def test_a_port_taken_by_another_program_is_exchanged_for_a_free_one(tmp_path: Path) -> None:
    async with EmbeddedRedis(tmp_path / "one") as first:
        await first.start()
        (tmp_path / "two" / "redis").mkdir(parents=True)
        (tmp_path / "two" / "redis" / "port").write_text(f"{first.port}\n", encoding="ascii")
        async with EmbeddedRedis(tmp_path / "two") as second:
            await second.start()
            assert second.port != first.port
            assert await answers(second)


async def test_data_of_another_postgresql_version_is_refused_with_the_remedy(tmp_path: Path) -> None:
    data = tmp_path / "postgres" / "data"
    data.mkdir(parents=True)
    (data / "PG_VERSION").write_text("9\n", encoding="ascii")
    async with EmbeddedPostgres(tmp_path) as server:
        with pytest.raises(ConfigurationError, match="made by PostgreSQL 9.*DATABASE_URL"):
            await server.start()


async def test_a_place_that_is_no_folder_is_one_clear_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="ascii")
    async with EmbeddedRedis(tmp_path / "file") as server:
        with pytest.raises(ConfigurationError, match="STATE_DIR"):
            await server.start()


async def test_without_an_installed_redis_the_message_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.operations.redis_binary.bundled_program", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    async with EmbeddedRedis(tmp_path) as server:
        with pytest.raises(ConfigurationError, match="make setup.*REDIS_URL"):
            await server.start()


async def test_without_an_installed_postgresql_the_message_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    async with EmbeddedPostgres(tmp_path) as server:
        with pytest.raises(ConfigurationError, match="make setup.*DATABASE_URL"):
            await server.start()
