"""Faults of PostgreSQL: the daemon keeps its data flowing, and says in words what it cannot do.

PostgreSQL holds mappings only, so no tick may be lost by any of these; what is delayed are edits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
import redis.asyncio

from data_migration import scrip_master_file
from data_migration.command_line import err
from data_migration.populate_instrument_mappings import Sources, populate_from
from data_migration.schema import ADVISORY_LOCK
from data_migration.setup_providers import setup
from models.revisions import SCHEMA_REVISION, SCHEMA_REVISIONS
from services.catalogue.last_good import MAX_AGE_MS
from services.catalogue.loader import Catalogue
from services.catalogue.refresher import MappingRefresher, RefreshState
from services.catalogue.watch import MappingWatch
from services.errors import ConfigurationError, TemporaryError
from services.market_data.clock import ManualClock, SystemClock
from services.market_data.instruments import MappingSnapshot
from tests.support.daemon import ROOT, Daemon, clean_environment, run_script
from tests.support.databases import temporary_database
from tests.support.eventually import FACTOR, eventually
from tests.support.fault_proxy import FaultProxy
from tests.support.loop_lag import LoopLag
from tests.support.oracle import judge, read_store
from tests.support.postgres import PrivatePostgres, with_login
from tests.support.row_report import report_row
from tests.support.stack import INSTRUMENTS, NAMES, SCRIP_MASTER, Stack

pytestmark = pytest.mark.timeout(180)

PASSWORD = "first-password"
SETUP = ROOT / "data_migration" / "setup_providers.py"
POPULATE = ROOT / "data_migration" / "populate_instrument_mappings.py"


@pytest.fixture(scope="module")
def mapped_here(hurt_postgres: PrivatePostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a filled database on the server that may be hurt; copied for each test."""
    listing = tmp_path_factory.mktemp("list") / "instruments.csv"
    listing.write_text(INSTRUMENTS, encoding="utf-8")

    async def fill(url: str) -> None:
        await setup(url)
        await populate_from(url, Sources(listing, scrip_master_file.read(SCRIP_MASTER, err)))

    with asyncio.Runner() as runner:
        database = temporary_database(hurt_postgres.url)
        url = runner.run(database.__aenter__())
        runner.run(fill(url))
        yield url
        runner.run(hurt_postgres.start())
        runner.run(database.__aexit__(None, None, None))


@pytest.fixture
async def database(hurt_postgres: PrivatePostgres, mapped_here: str) -> AsyncIterator[str]:
    async with temporary_database(hurt_postgres.url, template_url=mapped_here) as url:
        yield url
        # Whatever the test did to the server, the next one finds it running.
        await hurt_postgres.start()


def make_refresher(url: str, folder: Path, **watch: float) -> MappingRefresher:
    return MappingRefresher(
        Catalogue(url, folder / "mappings.json", SystemClock()), MappingWatch(url, **watch)
    )


async def leave_copy(url: str, folder: Path, clock: Any = None) -> Path:
    """Leave what an earlier run of the daemon leaves in its state directory."""
    folder.mkdir(mode=0o700, exist_ok=True)
    catalogue = Catalogue(url, folder / "mappings.json", clock or SystemClock())
    snapshot = await catalogue.read()
    assert snapshot.mappings
    await catalogue.keep(snapshot)
    await catalogue.close()
    return folder / "mappings.json"


async def execute(url: str, statement: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


async def ready(daemon: Daemon) -> dict[str, Any]:
    status, body = await daemon.get("/readyz")
    return {"status": status, **(body or {})}


async def mappings(daemon: Daemon) -> dict[str, Any]:
    return dict((await daemon.status())["pipeline"]["mappings"])


async def more_ticks(stack: Stack, count: int = 100) -> None:
    """Wait until the simulators have sent so many more."""
    before = len(stack.journal.ticks)
    await eventually(lambda: len(stack.journal.ticks) > before + count, within_s=30)


async def all_stored(stack: Stack, daemon: Daemon) -> int:
    """Stop market and daemon; assert that every tick is stored once with its value; return how many."""
    await stack.quiet()
    assert await daemon.stop() == 0
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    verdict = judge(stack.journal.ticks, await read_store(client, sorted(NAMES.values())), NAMES)
    await client.aclose()
    assert verdict.clean, verdict
    assert verdict.stored > 0
    return verdict.stored


# ---- P1: down at start -----------------------------------------------------------------------------


async def test_p1_down_at_start_it_runs_on_the_last_good_copy_says_degraded_and_catches_up(
    stack: Stack, hurt_postgres: PrivatePostgres, database: str, tmp_path: Path
) -> None:
    await leave_copy(database, tmp_path / "state")
    await hurt_postgres.stop_immediately()
    async with stack.daemon(tmp_path / "state", DATABASE_URL=database) as daemon:
        answer = await ready(daemon)
        assert (answer["status"], answer["ready"]) == (200, True)
        assert "PostgreSQL" in answer["degraded"][0]
        found = await mappings(daemon)
        assert (found["from_cache"], found["state"], found["instruments"]) == (True, "unreachable", 10)
        assert "last_good_mappings_used" in daemon.log()
        await more_ticks(stack)
        await hurt_postgres.start()
        await execute(database, "UPDATE instruments SET name = 'JPM' WHERE symbol = 'JPM'")

        async def caught_up() -> bool:
            now = await mappings(daemon)
            return now["state"] == "current" and not now["from_cache"]

        await eventually(caught_up, within_s=30)
        assert "degraded" not in await ready(daemon)
        stored = await all_stored(stack, daemon)
    report_row("P1", lost=f"0 of {stored} ticks", allowed="0 ticks; changes since the copy unseen")


async def test_p1_down_at_start_without_a_copy_it_waits_for_the_server_and_then_gives_up(
    hurt_postgres: PrivatePostgres, database: str, tmp_path: Path
) -> None:
    async with FaultProxy("127.0.0.1", hurt_postgres.port) as proxy:
        proxy.refuse = True
        url = database.replace(f":{hurt_postgres.port}/", f":{proxy.port}/")
        refresher = make_refresher(url, tmp_path)
        with pytest.raises(TemporaryError, match="last good mappings cannot stand in: there is none yet"):
            await refresher.first(within_s=0.5)
        assert proxy.refused >= 2, "it was tried more than once"
        start = asyncio.create_task(refresher.first(within_s=30 * FACTOR))
        tries = proxy.refused
        await eventually(lambda: proxy.refused > tries)
        proxy.refuse = False
        assert not (await start).from_cache
        await refresher.use_url(url)
    report_row("P1", lost="0", allowed="no start without mappings: exit 75 after 10 s")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        ("flip", "damaged"),
        ("cut", "damaged"),
        ("other_file", "none of our files"),
        ("too_old", "8 days old, more than 7"),
        ("other_database", "database other, not of this database"),
    ],
)
async def test_p1_a_copy_that_is_damaged_too_old_or_foreign_is_refused_with_the_reason(
    spoil: str, reason: str, hurt_postgres: PrivatePostgres, database: str, tmp_path: Path
) -> None:
    clock = ManualClock(SystemClock().now_ms() - (MAX_AGE_MS + 86_400_000 if spoil == "too_old" else 0))
    path = await leave_copy(database, tmp_path, clock)
    whole = path.read_bytes()
    if spoil == "flip":
        path.write_bytes(whole.replace(b"2885", b"2886"))
    elif spoil == "cut":
        path.write_bytes(whole[: len(whole) // 2])
    elif spoil == "other_file":
        path.write_bytes(b'{"hello": "world"}\n[]')
    elif spoil == "other_database":
        name = urlsplit(database).path.lstrip("/").encode()
        path.write_bytes(whole.replace(b"database " + name, b"database other"))
    async with FaultProxy("127.0.0.1", hurt_postgres.port) as proxy:
        proxy.refuse = True
        away = database.replace(f":{hurt_postgres.port}/", f":{proxy.port}/")
        if spoil != "other_database":
            # The proxy stands for the same database at another port.
            path.write_bytes(
                path.read_bytes().replace(f":{hurt_postgres.port},".encode(), f":{proxy.port},".encode())
            )
        with pytest.raises(TemporaryError, match=f"cannot stand in: .*{reason}") as refused:
            await make_refresher(away, tmp_path).first(within_s=0.1)
        assert proxy.refused
    assert str(urlsplit(database).password) not in str(refused.value)
    report_row("P1", lost="0", allowed="a copy that is not surely right is not used")


async def test_p1_a_snapshot_that_was_refused_never_becomes_the_last_good_copy(
    database: str, tmp_path: Path
) -> None:
    refresher = make_refresher(database, tmp_path)
    first = await refresher.first()
    copy = (tmp_path / "mappings.json").read_bytes()
    applied: list[MappingSnapshot] = []

    async def apply(snapshot: MappingSnapshot) -> None:
        applied.append(snapshot)

    task = asyncio.create_task(refresher.run(apply))
    try:
        await execute(database, "UPDATE instruments SET is_active = false")
        await eventually(lambda: refresher.status.state is RefreshState.REFUSED)
        assert (tmp_path / "mappings.json").read_bytes() == copy
        assert (applied, refresher.current) == ([], first)
        await execute(database, "UPDATE instruments SET is_active = symbol <> 'JPM'")
        await eventually(lambda: refresher.status.state is RefreshState.CURRENT)
        await eventually(lambda: (tmp_path / "mappings.json").read_bytes() != copy)
    finally:
        task.cancel()
        await asyncio.wait([task])
        await refresher.use_url(database)
    assert {row.symbol for row in first.mappings} - {row.symbol for row in applied[-1].mappings} == {"JPM"}
    report_row("P1", lost="0", allowed="0")


# ---- P2, P3: dies or hangs while running -----------------------------------------------------------


async def test_p2_it_dies_under_load_nothing_is_lost_it_is_said_once_and_comes_back_by_itself(
    stack: Stack, hurt_postgres: PrivatePostgres, database: str, tmp_path: Path
) -> None:
    async with stack.daemon(tmp_path / "state", DATABASE_URL=database) as daemon:
        await more_ticks(stack)
        await hurt_postgres.stop_immediately()

        async def state() -> str:
            return str((await mappings(daemon))["state"])

        await eventually(lambda: "mappings_unreachable" in daemon.log(), within_s=20)
        assert await state() == "unreachable"
        await more_ticks(stack, 300)
        answer = await ready(daemon)
        assert answer["status"] == 200
        assert answer["degraded"]
        await hurt_postgres.start()
        await execute(database, "UPDATE instruments SET is_active = false WHERE symbol = 'JPM'")

        async def edit_arrived() -> bool:
            return int((await mappings(daemon))["instruments"]) == 9

        await eventually(edit_arrived, within_s=30)
        assert await state() == "current"
        assert daemon.log().count("mappings_unreachable") == 1, daemon.log()
        assert "Traceback" not in daemon.log()
        await execute(database, "UPDATE instruments SET is_active = true WHERE symbol = 'JPM'")
        await stack.quiet()
        assert await daemon.stop() == 0
    client = redis.asyncio.from_url(stack.redis_url, decode_responses=True)
    kept = {symbol: key for symbol, key in NAMES.items() if key != "NYSE:JPM"}
    sent = [tick for tick in stack.journal.ticks if tick.symbol in kept]
    verdict = judge(sent, await read_store(client, sorted(kept.values())), kept)
    await client.aclose()
    assert verdict.clean, verdict
    report_row("P2", lost=f"0 of {verdict.stored} ticks", allowed="0 ticks; mapping edits delayed")


async def test_p3_a_half_open_connection_fails_within_its_limits_and_heals(
    hurt_postgres: PrivatePostgres, database: str, tmp_path: Path
) -> None:
    lag = LoopLag()
    measuring = asyncio.create_task(lag.run())
    async with FaultProxy("127.0.0.1", hurt_postgres.port) as proxy:
        url = database.replace(f":{hurt_postgres.port}/", f":{proxy.port}/")
        refresher = make_refresher(url, tmp_path, net_s=0.3)
        first = await refresher.first()
        applied: list[MappingSnapshot] = []

        async def apply(snapshot: MappingSnapshot) -> None:
            applied.append(snapshot)

        following = asyncio.create_task(refresher.run(apply))
        await eventually(lambda: proxy.connections >= 2)
        began_s = time.monotonic()
        proxy.black_hole = True
        await eventually(lambda: refresher.status.state is RefreshState.UNREACHABLE, within_s=10)
        took_s = time.monotonic() - began_s
        # A single reading: connection and command have two seconds each.
        single = Catalogue(url, tmp_path / "single.json", SystemClock())
        began_s = time.monotonic()
        with pytest.raises(TemporaryError, match="does not answer in time"):
            await single.read()
        single_s = time.monotonic() - began_s
        assert single_s < 4.5 * FACTOR
        assert proxy.swallowed_bytes > 0
        assert (refresher.current, following.done()) == (first, False)
        proxy.black_hole = False
        proxy.reset_all()
        await execute(database, "UPDATE instruments SET is_active = false WHERE symbol = 'JPM'")
        await eventually(lambda: applied and refresher.status.state is RefreshState.CURRENT, within_s=20)
        following.cancel()
        await asyncio.wait([following])
        await refresher.use_url(url)
    measuring.cancel()
    await asyncio.wait([measuring])
    lag.check()
    report_row(
        "P3",
        lost=f"0; noticed in {took_s:.1f} s, a reading fails in {single_s:.1f} s, loop {lag.worst_ms:.0f} ms",
        allowed="0; 4 s",
    )


# ---- P7: the schema --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        (SCHEMA_REVISIONS[0], "run python data_migration/setup_providers.py"),
        ("ffff", "update this installation"),
    ],
)
async def test_p7_a_schema_behind_or_ahead_ends_the_start_with_the_remedy_and_is_left_alone(
    revision: str, words: str, database: str, redis_url: str, tmp_path: Path
) -> None:
    await execute(database, f"UPDATE alembic_version SET version_num = '{revision}'")
    environment = clean_environment(
        STATE_DIR=tmp_path / "state", DATABASE_URL=database, REDIS_URL=redis_url, API_PORT=0
    )
    code, _, errors = await run_script("main.py", "run", environment=environment)
    assert code == 78, errors
    assert words in errors
    assert "Traceback" not in errors
    connection = await asyncpg.connect(database)
    assert await connection.fetchval("SELECT version_num FROM alembic_version") == revision
    await connection.close()
    report_row("P7", lost="0", allowed="0; exit 78")


async def test_p7_a_schema_that_moves_while_running_parks_the_refresh_until_it_fits_again(
    database: str, tmp_path: Path
) -> None:
    refresher = make_refresher(database, tmp_path, net_s=0.2)
    first = await refresher.first()

    async def apply(snapshot: MappingSnapshot) -> None:
        raise AssertionError("nothing may be taken over from a schema of another version")

    task = asyncio.create_task(refresher.run(apply))
    try:
        await execute(database, "UPDATE alembic_version SET version_num = 'ffff'")
        await eventually(lambda: refresher.status.state is RefreshState.PARKED)
        assert "ffff, which this program does not know" in refresher.status.reason
        # It may have been read once more before the schema moved.
        assert refresher.current is not None
        assert (refresher.current.version, refresher.current.mappings) == (first.version, first.mappings)
        await execute(database, f"UPDATE alembic_version SET version_num = '{SCHEMA_REVISION}'")
        await eventually(lambda: refresher.status.state is RefreshState.CURRENT)
    finally:
        task.cancel()
        await asyncio.wait([task])
        await refresher.use_url(database)
    report_row("P7", lost="0", allowed="0; refresh parked")


# ---- P9: login and privileges ----------------------------------------------------------------------


async def test_p9_a_wrong_password_or_a_missing_privilege_ends_the_start(
    hurt_postgres: PrivatePostgres, database: str, redis_url: str, tmp_path: Path
) -> None:
    await hurt_postgres.make_roles(urlsplit(database).path.lstrip("/"), PASSWORD)
    # A copy on disk is no way round: the operator must act.
    await leave_copy(database, tmp_path / "state")
    environment = clean_environment(
        STATE_DIR=tmp_path / "state",
        DATABASE_URL=with_login(database, "marketd_daemon", "wrong-password"),
        REDIS_URL=redis_url,
        API_PORT=0,
    )
    code, _, errors = await run_script("main.py", "run", environment=environment)
    assert code == 78, errors
    assert "refuses the login" in errors
    assert "wrong-password" not in errors
    await execute(database, "REVOKE SELECT ON instruments FROM marketd_daemon")
    refresher = make_refresher(with_login(database, "marketd_daemon", PASSWORD), tmp_path / "state")
    with pytest.raises(ConfigurationError, match="permission denied for table instruments.*Grant the role"):
        await refresher.first()
    await refresher.use_url(database)
    report_row("P9", lost="0", allowed="0; exit 78")


async def test_p9_a_login_that_stops_working_while_running_parks_the_refresh_and_data_flows(
    stack: Stack, hurt_postgres: PrivatePostgres, database: str, tmp_path: Path
) -> None:
    await hurt_postgres.make_roles(urlsplit(database).path.lstrip("/"), PASSWORD)
    secret = tmp_path / "database-url"
    secret.touch(mode=0o600)
    secret.write_text(with_login(database, "marketd_daemon", PASSWORD), encoding="utf-8")
    async with stack.daemon(tmp_path / "state", DATABASE_URL="", DATABASE_URL_FILE=secret) as daemon:

        async def parked(words: str) -> bool:
            found = await mappings(daemon)
            return found["state"] == "parked" and words in found["reason"]

        async def current() -> bool:
            return (await mappings(daemon))["state"] == "current"

        await more_ticks(stack)
        await hurt_postgres.sql(
            "ALTER ROLE marketd_daemon PASSWORD 'second-password';"
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'marketd_daemon'"
        )
        await eventually(lambda: parked("refuses the login"), within_s=20)
        await more_ticks(stack)
        assert (await ready(daemon))["status"] == 200
        secret.write_text(with_login(database, "marketd_daemon", "second-password"), encoding="utf-8")
        await eventually(current, within_s=20)
        # A privilege: granted again by the operator, who then says so.
        await execute(database, "REVOKE SELECT ON instruments FROM marketd_daemon")
        await execute(database, "UPDATE providers SET name = name")
        await eventually(lambda: parked("permission denied"), within_s=20)
        await execute(database, "GRANT SELECT ON instruments TO marketd_daemon")
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        await eventually(current, within_s=20)
        # Twice, for two reasons; once more where the session was cut in the middle of a reading.
        said = daemon.log().count("mappings_parked"), daemon.log().count("mappings_unreachable")
        assert said in ((2, 0), (2, 1), (3, 1)), daemon.log()
        for password in (PASSWORD, "second-password"):
            assert password not in daemon.log()
        stored = await all_stored(stack, daemon)
    report_row("P9", lost=f"0 of {stored} ticks", allowed="0")


# ---- P10: the scripts at once, and killed ----------------------------------------------------------


async def contents(url: str) -> dict[str, list[tuple[Any, ...]]]:
    connection = await asyncpg.connect(url)
    try:
        return {
            table: [
                tuple(row) for row in await connection.fetch(f"SELECT {columns} FROM {table} ORDER BY 1, 2")
            ]
            for table, columns in (
                ("providers", "code, name"),
                ("exchanges", "code, timezone"),
                ("exchange_provider_mappings", "provider_id, exchange_id, is_primary"),
                ("instruments", "exchange_id, symbol"),
                ("provider_instrument_mappings", "provider_instrument_search_code, is_active"),
            )
        }
    finally:
        await connection.close()


@pytest.mark.slow
async def test_p10_both_scripts_run_twice_at_once_write_everything_once(
    hurt_postgres: PrivatePostgres, mapped_here: str, tmp_path: Path
) -> None:
    listing = tmp_path / "instruments.csv"
    listing.write_text(INSTRUMENTS, encoding="utf-8")
    async with temporary_database(hurt_postgres.url) as url:
        environment = clean_environment(DATABASE_URL=url, STATE_DIR=tmp_path)
        for arguments in (
            (SETUP,),
            (POPULATE, "--instruments", listing, "--dhan-scrip-master", SCRIP_MASTER),
        ):
            runs = await asyncio.gather(*(run_script(*arguments, environment=environment) for _ in range(2)))
            assert [code for code, _, _ in runs] == [0, 0], runs
        assert await contents(url) == await contents(mapped_here)
        # Somebody else is at work for longer than we want to wait: exit 75, nothing touched.
        holder = await asyncpg.connect(url)
        await holder.execute("SELECT pg_advisory_lock($1)", ADVISORY_LOCK)
        busy = await asyncio.gather(
            *(
                run_script(*arguments, "--lock-wait", "0.2", environment=environment)
                for arguments in ((SETUP,), (POPULATE, "--instruments", listing, "--without-dhan"))
            )
        )
        await holder.close()
        assert [code for code, _, _ in busy] == [75, 75], busy
        assert await contents(url) == await contents(mapped_here)
    report_row("P10", lost="0; nothing doubled", allowed="0")


@pytest.mark.slow
@pytest.mark.parametrize("script", ["setup", "populate"])
async def test_p10_a_script_that_is_killed_half_way_leaves_nothing_half_written(
    script: str, database: str, tmp_path: Path
) -> None:
    """The last table it writes is locked by us, so that it stands still behind all its other work."""
    listing = tmp_path / "instruments.csv"
    listing.write_text(INSTRUMENTS, encoding="utf-8")
    last, emptied, arguments = {
        "setup": ("exchange_provider_mappings", "providers, exchanges", [SETUP]),
        "populate": (
            "provider_instrument_mappings",
            "instruments",
            [POPULATE, "--instruments", listing, "--dhan-scrip-master", SCRIP_MASTER],
        ),
    }[script]
    before = await contents(database)
    await execute(database, f"TRUNCATE {emptied} RESTART IDENTITY CASCADE")
    empty = await contents(database)
    connection = await asyncpg.connect(database)
    if script == "setup":
        await connection.execute(f"BEGIN; LOCK TABLE {last} IN EXCLUSIVE MODE")
    else:
        # A trigger that waits for us in the middle of the last insert.
        await connection.execute(
            "CREATE FUNCTION wait_here() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END $$;"
            f"CREATE TRIGGER wait_here AFTER INSERT ON {last} FOR EACH STATEMENT"
            " EXECUTE FUNCTION wait_here();"
            "SELECT pg_advisory_lock(4711)"
        )
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *map(str, arguments),
        cwd=tmp_path,
        env=clean_environment(DATABASE_URL=database, STATE_DIR=tmp_path / "state"),
        stdout=asyncio.subprocess.DEVNULL,
    )
    watcher = await asyncpg.connect(database)
    name = f"marketd-{script}"

    async def stands_still() -> bool:
        return bool(
            await watcher.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
                f" AND wait_event_type = 'Lock' AND query ILIKE '%insert into {last}%'",
                name,
            )
        )

    await eventually(stands_still, within_s=60)
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    await connection.execute("ROLLBACK" if script == "setup" else "SELECT pg_advisory_unlock(4711)")
    gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = $1"
    await eventually(lambda: watcher.fetchval(gone, name), within_s=20)
    assert await contents(database) == empty
    if script == "populate":
        await connection.execute(f"DROP TRIGGER wait_here ON {last}")
    code, _, errors = await run_script(
        *arguments, environment=clean_environment(DATABASE_URL=database, STATE_DIR=tmp_path / "state")
    )
    assert code == 0, errors
    after = await contents(database)
    tables = ("providers", "exchanges") if script == "setup" else tuple(before)
    assert all(after[table] == before[table] for table in tables)
    await connection.close()
    await watcher.close()
    report_row("P10", lost="0; nothing half-written", allowed="0")
