"""setup_providers against a real PostgreSQL: idempotent, atomic, and never against the operator."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import asyncpg
import pytest

from data_migration.changes import Kind
from data_migration.schema import ADVISORY_LOCK
from data_migration.setup_providers import SetupReport, setup
from models import SCHEMA_REVISION, SCHEMA_REVISIONS
from services.errors import TemporaryError
from services.market_data.instruments import EXCHANGE_CODES
from tests.support.daemon import ROOT, clean_environment, run_script
from tests.support.eventually import eventually

SCRIPT = ROOT / "data_migration" / "setup_providers.py"
TABLES = ("providers", "exchanges", "exchange_provider_mappings")


async def contents(url: str) -> dict[str, list[asyncpg.Record]]:
    connection = await asyncpg.connect(url)
    rows = {table: await connection.fetch(f"select * from {table} order by id") for table in TABLES}
    await connection.close()
    return rows


async def table_count(url: str) -> int:
    connection = await asyncpg.connect(url)
    count = await connection.fetchval("select count(*) from pg_tables where schemaname = 'public'")
    await connection.close()
    return int(count)


def kinds(report: SetupReport) -> set[Kind]:
    return {change.kind for change in report.changes}


def notes(report: SetupReport, kind: Kind) -> dict[str, str]:
    return {change.key: change.note for change in report.changes if change.kind is kind}


async def test_an_empty_database_gets_schema_providers_exchanges_and_routes(database_url: str) -> None:
    report = await setup(database_url)
    assert (report.revision_before, report.revision_after) == (None, SCHEMA_REVISION)
    assert kinds(report) == {Kind.ADDED}
    connection = await asyncpg.connect(database_url)
    rows = await connection.fetch("""
        select e.code exchange, p.code provider, m.is_primary, m.priority
        from exchange_provider_mappings m join exchanges e on e.id = exchange_id
        join providers p on p.id = provider_id where m.is_active
    """)
    exchanges = await connection.fetch("select * from exchanges")
    await connection.close()
    primary = {row["exchange"]: row["provider"] for row in rows if row["is_primary"]}
    assert primary == {
        **dict.fromkeys(("NSE", "BSE", "NFO", "BFO", "MCX", "CDS"), "DHAN"),
        **dict.fromkeys(("NASDAQ", "NYSE", "ARCA", "CRYPTO", "FX", "INDEX"), "YF"),
    }
    second = {row["exchange"]: row for row in rows if not row["is_primary"]}
    assert {code: row["provider"] for code, row in second.items()} == {"NSE": "YF", "BSE": "YF"}
    assert all(row["priority"] > 10 for row in second.values())
    assert {row["code"] for row in exchanges} == set(EXCHANGE_CODES)
    calendars = {row["code"]: row["calendar"] for row in exchanges}
    assert calendars["NSE"] == "XBOM"
    assert calendars["NYSE"] == "XNYS"
    assert calendars["CRYPTO"] == "24/7"
    assert calendars["FX"] == "24/5"
    assert calendars["MCX"] is None


async def test_zones_and_calendars_are_known_to_the_libraries_that_use_them(database_url: str) -> None:
    from zoneinfo import available_timezones

    import exchange_calendars

    await setup(database_url)
    exchanges = (await contents(database_url))["exchanges"]
    assert {row["timezone"] for row in exchanges} <= available_timezones()
    named = {row["calendar"] for row in exchanges if row["calendar"]}
    assert named <= set(exchange_calendars.get_calendar_names(include_aliases=True))


async def test_a_second_run_changes_nothing_not_even_the_time_of_change(database_url: str) -> None:
    await setup(database_url)
    before = await contents(database_url)
    report = await setup(database_url)
    assert kinds(report) == {Kind.UNCHANGED}
    assert await contents(database_url) == before


async def edit_as_operator(url: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("""
        update exchange_provider_mappings set is_primary = false, priority = 7 where is_primary
            and exchange_id = (select id from exchanges where code = 'NSE');
        update exchange_provider_mappings set is_primary = true
            where exchange_id = (select id from exchanges where code = 'NSE') and priority <> 7;
        update providers set rate_limit = 0.5, is_active = false where code = 'YF';
        update exchanges set is_active = false, calendar = 'XNYS' where code = 'MCX';
    """)
    await connection.close()


async def test_the_operators_changes_stay_and_facts_are_put_right(database_url: str) -> None:
    await setup(database_url)
    await edit_as_operator(database_url)
    report = await setup(database_url)
    assert notes(report, Kind.KEPT) == {
        "YF": "rate_limit 0.5 (shipped: 1), is_active no (shipped: yes)",
        "MCX": "is_active no (shipped: yes)",
        "NSE from DHAN": "is_primary no (shipped: yes), priority 7 (shipped: 10)",
        "NSE from YF": "is_primary yes (shipped: no)",
    }
    assert notes(report, Kind.CHANGED) == {"MCX": "calendar XNYS → none"}
    rows = await contents(database_url)
    assert [row["is_active"] for row in rows["providers"] if row["code"] == "YF"] == [False]


async def test_a_reset_puts_them_back_and_says_so(database_url: str) -> None:
    await setup(database_url)
    await edit_as_operator(database_url)
    planned = await setup(database_url, reset=True, dry_run=True)
    report = await setup(database_url, reset=True)
    assert planned.changes == report.changes
    assert notes(report, Kind.CHANGED) == {
        "YF": "rate_limit 0.5 → 1, is_active no → yes",
        "MCX": "calendar XNYS → none, is_active no → yes",
        "NSE from DHAN": "is_primary no → yes, priority 7 → 10",
        "NSE from YF": "is_primary yes → no",
    }
    assert kinds(await setup(database_url)) == {Kind.UNCHANGED}


async def test_a_provider_of_the_operators_own_keeps_an_exchange_unless_reset(database_url: str) -> None:
    await setup(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute("""
        insert into providers (code, name) values ('MINE', 'My feed');
        delete from exchange_provider_mappings
            where exchange_id = (select id from exchanges where code = 'FX');
        insert into exchange_provider_mappings (provider_id, exchange_id, is_primary)
            select p.id, e.id, true from providers p, exchanges e where p.code = 'MINE' and e.code = 'FX';
    """)
    report = await setup(database_url)
    assert notes(report, Kind.ADDED) == {
        "FX from YF": "is_primary no, priority 10, delivery real_time, allow_delayed no"
    }
    report = await setup(database_url, reset=True)
    assert notes(report, Kind.CHANGED) == {
        "FX from MINE": "is_primary yes → no",
        "FX from YF": "is_primary no → yes",
    }
    await connection.close()


async def test_a_dry_run_writes_nothing_on_an_empty_an_older_and_a_current_database(
    database_url: str,
) -> None:
    report = await setup(database_url, dry_run=True)
    assert (report.revision_before, kinds(report)) == (None, {Kind.ADDED})
    assert await table_count(database_url) == 0
    written = await setup(database_url)
    assert written.changes == report.changes
    await edit_as_operator(database_url)
    before = await contents(database_url)
    await setup(database_url, dry_run=True, reset=True)
    assert await contents(database_url) == before


@pytest.mark.skipif(len(SCHEMA_REVISIONS) < 2, reason="there is no older revision yet")
async def test_a_dry_run_on_an_older_schema_names_both_revisions_and_migrates_nothing(
    database_url: str,
) -> None:
    from alembic import command

    from data_migration.schema import alembic_config
    from services.catalogue.connection import make_engine

    await setup(database_url)
    engine = make_engine(database_url, application_name="test")
    async with engine.begin() as connection:
        await connection.run_sync(lambda sync: command.downgrade(alembic_config(sync), SCHEMA_REVISIONS[-2]))
    await engine.dispose()
    for expected in (SCHEMA_REVISIONS[-2], SCHEMA_REVISIONS[-2]):
        report = await setup(database_url, dry_run=True)
        assert (report.revision_before, report.revision_after) == (expected, SCHEMA_REVISION)
    assert (await setup(database_url)).revision_before == SCHEMA_REVISIONS[-2]
    assert (await setup(database_url)).revision_before == SCHEMA_REVISION


async def test_two_at_once_write_everything_once(database_url: str) -> None:
    reports = await asyncio.gather(setup(database_url), setup(database_url))
    assert sorted(len(kinds(report)) for report in reports) == [1, 1]
    assert {kind for report in reports for kind in kinds(report)} == {Kind.ADDED, Kind.UNCHANGED}
    assert [len(rows) for rows in (await contents(database_url)).values()] == [2, 12, 14]


@pytest.mark.timeout(180)
async def test_a_stopped_run_ends_with_a_sentence_and_nothing_written(
    database_url: str, tmp_path: Path
) -> None:
    holder = await asyncpg.connect(database_url)
    await holder.execute("select pg_advisory_lock($1)", ADVISORY_LOCK)
    waiting = (
        "select count(*) from pg_stat_activity "
        "where application_name = 'marketd-setup' and wait_event_type = 'Lock'"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            SCRIPT,
            env=clean_environment(DATABASE_URL=database_url, STATE_DIR=tmp_path / "state"),
            stderr=asyncio.subprocess.PIPE,
        )
        await eventually(lambda: holder.fetchval(waiting), within_s=60)
        process.send_signal(number)
        _, errors = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, errors) == (130, b"stopped; a run is written whole or not at all\n")
        await eventually(lambda: holder.fetchval(f"select ({waiting}) = 0"), within_s=20)
    await holder.close()


async def test_one_that_waits_too_long_for_another_gives_up(database_url: str) -> None:
    holder = await asyncpg.connect(database_url)
    await holder.execute("select pg_advisory_lock($1)", ADVISORY_LOCK)
    with pytest.raises(TemporaryError, match="Try again"):
        await setup(database_url, lock_wait_s=0.2)
    assert await table_count(database_url) == 0
    await holder.close()


# ---- as people run it ------------------------------------------------------------------------------


@pytest.mark.timeout(180)
async def test_the_script_runs_from_anywhere_and_says_what_it_does(database_url: str, tmp_path: Path) -> None:
    environment = clean_environment(DATABASE_URL=database_url, STATE_DIR=tmp_path / "state")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        SCRIPT,
        "--dry-run",
        env=environment,
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    written, complaints = await asyncio.wait_for(process.communicate(), 60)
    output = written.decode()
    assert (process.returncode, complaints) == (0, b"")
    assert f"schema will be migrated from nothing to {SCHEMA_REVISION}" in output
    assert "Dry run: nothing was written." in output
    code, output, _ = await run_script("data_migration/setup_providers.py", environment=environment)
    assert code == 0
    assert "+ NSE from DHAN  is_primary yes, priority 10" in output


@pytest.mark.timeout(180)
async def test_errors_are_one_sentence_with_the_exit_code_of_their_kind(
    database_url: str, tmp_path: Path
) -> None:
    async def run(*arguments: str, **settings: object) -> tuple[int, str]:
        environment = clean_environment(STATE_DIR=tmp_path / "state", **settings)
        code, output, errors = await run_script(SCRIPT, *arguments, environment=environment)
        assert output == ""
        assert "Traceback" not in errors
        assert "s3cret" not in errors
        return code, errors

    code, errors = await run(DATABASE_URL="postgresql://u:s3cret@127.0.0.1:1/none")
    assert code == 75
    assert errors.count("\n") == 1
    assert "cannot be reached" in errors
    code, errors = await run(DATABASE_URL="mysql://u:s3cret@h/d")
    assert code == 78
    assert "DATABASE_URL" in errors
    holder = await asyncpg.connect(database_url)
    await holder.execute("select pg_advisory_lock($1)", ADVISORY_LOCK)
    code, errors = await run("--lock-wait", "0.2", DATABASE_URL=database_url)
    assert (code, errors.count("\n")) == (75, 1)
    await holder.close()


@pytest.mark.timeout(180)
async def test_a_run_that_is_killed_half_way_leaves_nothing(database_url: str, tmp_path: Path) -> None:
    # The last table it writes is locked by us, so it stands still after all the others.
    await setup(database_url)
    blocker = await asyncpg.connect(database_url)
    await blocker.execute("truncate providers, exchanges restart identity cascade")
    await blocker.execute("begin; lock table exchange_provider_mappings in exclusive mode")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        SCRIPT,
        env=clean_environment(DATABASE_URL=database_url, STATE_DIR=tmp_path / "state"),
        cwd=tmp_path,
    )
    watcher = await asyncpg.connect(database_url)

    async def stands_still() -> bool:
        return bool(
            await watcher.fetchval(
                "select count(*) from pg_stat_activity where application_name = 'marketd-setup' "
                "and wait_event_type = 'Lock' and query ilike '%insert into exchange_provider_mappings%'"
            )
        )

    await eventually(stands_still, within_s=60)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    await blocker.execute("rollback")
    gone = "select count(*) = 0 from pg_stat_activity where application_name = 'marketd-setup'"
    await eventually(lambda: watcher.fetchval(gone), within_s=20)
    assert [len(rows) for rows in (await contents(database_url)).values()] == [0, 0, 0]
    await setup(database_url)
    assert [len(rows) for rows in (await contents(database_url)).values()] == [2, 12, 14]
    await blocker.close()
    await watcher.close()
