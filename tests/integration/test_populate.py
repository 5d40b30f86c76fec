"""populate_instrument_mappings against a real PostgreSQL: idempotent, atomic, honest about bad input."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from aiohttp import web
from rich.console import Console

from data_migration import scrip_master_file
from data_migration.changes import Kind
from data_migration.populate_instrument_mappings import SHIPPED_LIST, Sources, populate_from
from data_migration.population_plan import Plan
from data_migration.schema import ADVISORY_LOCK
from data_migration.setup_providers import setup
from data_migration.sources.dhan_scrip_master import ScripMaster
from services.errors import ConfigurationError, TemporaryError
from tests.support.daemon import ROOT, clean_environment, run_script
from tests.support.eventually import eventually

SCRIPT = ROOT / "data_migration" / "populate_instrument_mappings.py"
MASTER_PATH = ROOT / "simulators" / "data" / "dhan-scrip-master.csv"
HEADER = "exchange,symbol,name,asset_class,currency"
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def master() -> ScripMaster:
    return scrip_master_file.read(MASTER_PATH, QUIET)


@pytest.fixture
async def database(migrated_database_url: str) -> str:
    await setup(migrated_database_url)
    return migrated_database_url


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


def write_list(folder: Path, *rows: str, header: str = HEADER) -> Path:
    path = folder / "list.csv"
    path.write_text("\n".join((header, *rows, "")), encoding="utf-8")
    return path


def count(plan: Plan, table: str, kind: Kind) -> int:
    return sum(change.table == table and change.kind is kind for change in plan.changes)


def notes(plan: Plan, *kinds: Kind) -> dict[str, str]:
    return {change.key: change.note for change in plan.changes if change.kind in kinds}


async def contents(sql: asyncpg.Connection) -> list[list[asyncpg.Record]]:
    return [
        await sql.fetch(f"select * from {table} order by id")
        for table in ("instruments", "provider_instrument_mappings")
    ]


_MAPPED = """
    select e.code || ':' || i.symbol key, p.code provider, m.provider_instrument_search_code code,
        m.provider_segment segment, m.provider_security_id security_id, m.is_active, i.tick_size, i.lot_size
    from provider_instrument_mappings m join instruments i on i.id = instrument_id
    join exchanges e on e.id = exchange_id join providers p on p.id = provider_id
"""


async def mapped(sql: asyncpg.Connection, key: str, provider: str) -> asyncpg.Record | None:
    return await sql.fetchrow(f"select * from ({_MAPPED}) m where key = $1 and provider = $2", key, provider)


async def test_the_shipped_list_is_mapped_to_both_providers(
    database: str, sql: asyncpg.Connection, master: ScripMaster
) -> None:
    resolution, plan = await populate_from(database, Sources(SHIPPED_LIST, master))
    assert (resolution.not_at_dhan, resolution.without_provider) == ([], [])
    assert count(plan, "instruments", Kind.ADDED) == 128
    reliance = await mapped(sql, "NSE:RELIANCE", "DHAN")
    assert reliance is not None
    assert tuple(reliance)[2:5] == ("RELIANCE-EQ", "NSE_EQ", "2885")
    assert float(reliance["tick_size"]) == 0.1
    at_yahoo = await mapped(sql, "NSE:RELIANCE", "YF")
    assert at_yahoo is not None
    assert tuple(at_yahoo)[2:5] == ("RELIANCE.NS", None, None)
    index = await mapped(sql, "NSE:NIFTY", "DHAN")
    assert index is not None
    assert tuple(index)[2:5] == ("NIFTY", "IDX_I", "13")
    assert index["tick_size"] is None
    names = dict(await sql.fetch(f"select key, code from ({_MAPPED}) m where provider = 'YF'"))
    assert names["NYSE:BRK.B"] == "BRK-B"
    assert names["INDEX:SPX"] == "^GSPC"
    assert names["FX:EURUSD"] == "EURUSD=X"
    assert names["CRYPTO:BTC-USD"] == "BTC-USD"
    assert len(names) == 128


async def test_a_second_run_changes_nothing_not_even_the_time_of_change(
    database: str, sql: asyncpg.Connection, master: ScripMaster
) -> None:
    await populate_from(database, Sources(SHIPPED_LIST, master))
    before = await contents(sql)
    _, plan = await populate_from(database, Sources(SHIPPED_LIST, master))
    assert {change.kind for change in plan.changes} == {Kind.UNCHANGED}
    assert await contents(sql) == before


async def test_a_dry_run_says_the_same_as_the_run_and_writes_nothing(
    database: str, sql: asyncpg.Connection, master: ScripMaster
) -> None:
    sources = Sources(SHIPPED_LIST, master)
    _, planned = await populate_from(database, sources, dry_run=True)
    assert await contents(sql) == [[], []]
    _, done = await populate_from(database, sources)
    assert planned.changes == done.changes


async def test_changed_ids_names_and_places_are_updated_and_shown(
    database: str, sql: asyncpg.Connection, master: ScripMaster, tmp_path: Path
) -> None:
    await populate_from(database, Sources(SHIPPED_LIST, master))
    text = MASTER_PATH.read_text(encoding="utf-8")
    # RELIANCE gets a new id, M&M the one RELIANCE had, and two swap theirs.
    text = text.replace(",2885,EQUITY", ",9999,EQUITY").replace(",2031,EQUITY", ",2885,EQUITY")
    text = text.replace(",11536,EQUITY", ",X,EQUITY").replace(",1594,EQUITY", ",11536,EQUITY")
    changed = tmp_path / "master.csv"
    changed.write_text(text.replace(",X,EQUITY", ",1594,EQUITY"), encoding="utf-8")
    _, plan = await populate_from(database, Sources(SHIPPED_LIST, scrip_master_file.read(changed, QUIET)))
    assert notes(plan, Kind.CHANGED, Kind.RETIRED, Kind.ADDED) == {
        "NSE:RELIANCE at DHAN": "security id 2885 → 9999",
        "NSE:M&M at DHAN": "security id 2031 → 2885",
        "NSE:TCS at DHAN": "security id 11536 → 1594",
        "NSE:INFY at DHAN": "security id 1594 → 11536",
    }
    row = await mapped(sql, "NSE:M&M", "DHAN")
    assert row is not None
    assert (row["security_id"], row["is_active"]) == ("2885", True)
    assert await sql.fetchval("select count(*) from provider_instrument_mappings where not is_active") == 0


async def test_rows_that_left_the_list_stay_and_a_renamed_share_takes_its_id_along(
    database: str, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    def with_name(name: str) -> ScripMaster:
        header = MASTER_PATH.read_text(encoding="utf-8").splitlines()[0]
        row = f"NSE,E,5097,EQUITY,0,{name},1.0,{name},,,,5.0000,NA,ES,EQ,{name}"
        other = "NSE,E,22,EQUITY,0,ACC,1.0,ACC,,,,5.0000,NA,ES,EQ,ACC"
        return ScripMaster.read([f"{header}\n", f"{row}\n", f"{other}\n"])

    both = ("NSE,ACC,ACC,equity,INR", "NSE,ZOMATO,Zomato,equity,INR")
    await populate_from(database, Sources(write_list(tmp_path, *both), with_name("ZOMATO")))
    _, plan = await populate_from(
        database, Sources(write_list(tmp_path, "NSE,ETERNAL,Eternal,equity,INR"), with_name("ETERNAL"))
    )
    assert notes(plan, Kind.RETIRED) == {
        "NSE:ZOMATO at DHAN": "its security id NSE_EQ 5097 now means NSE:ETERNAL"
    }
    active = {row["key"]: row["is_active"] for row in await sql.fetch(f"{_MAPPED} where p.code = 'DHAN'")}
    assert active == {"NSE:ACC": True, "NSE:ZOMATO": False, "NSE:ETERNAL": True}
    assert await sql.fetchval("select count(*) from instruments") == 3


async def test_what_an_operator_switched_off_stays_off(
    database: str, sql: asyncpg.Connection, master: ScripMaster
) -> None:
    await populate_from(database, Sources(SHIPPED_LIST, master))
    await sql.execute("""
        update provider_instrument_mappings set is_active = false
            where provider_instrument_search_code = 'TCS-EQ';
        update instruments set is_active = false where symbol = 'WIPRO'
    """)
    _, plan = await populate_from(database, Sources(SHIPPED_LIST, master))
    assert notes(plan, Kind.KEPT) == {
        "NSE:TCS at DHAN": "not active",
        "NSE:WIPRO at DHAN": "the instrument is not active",
        "NSE:WIPRO at YF": "the instrument is not active",
    }
    row = await mapped(sql, "NSE:TCS", "DHAN")
    assert row is not None
    assert not row["is_active"]
    assert not await sql.fetchval("select is_active from instruments where symbol = 'WIPRO'")


async def test_a_run_without_dhan_touches_nothing_of_dhans(
    database: str, sql: asyncpg.Connection, master: ScripMaster
) -> None:
    await populate_from(database, Sources(SHIPPED_LIST, master))
    before = await contents(sql)
    await populate_from(database, Sources(SHIPPED_LIST, None))
    assert await contents(sql) == before


async def test_contracts_come_when_asked_for_or_listed(
    database: str, sql: asyncpg.Connection, master: ScripMaster, tmp_path: Path
) -> None:
    listing = write_list(
        tmp_path,
        "NFO,NIFTY-2026-12-29-25000-CE,My call,option,INR",
        "BFO,SENSEX-2026-12-31-84000-PE,Sensex put,option,INR",
        "MCX,GOLD-2027-02-05-FUT,Gold,future,INR",
        "CDS,USDINR-2026-12-29-89-CE,Dollar call,option,INR",
        "NSE,NIFTY,Nifty 50,index,INR",
    )
    resolution, _ = await populate_from(database, Sources(listing, master))
    assert resolution.without_provider == []
    rows = {row["key"]: row for row in await sql.fetch(_MAPPED)}
    assert tuple(rows["NFO:NIFTY-2026-12-29-25000-CE"])[3:5] == ("NSE_FNO", "42501")
    assert tuple(rows["CDS:USDINR-2026-12-29-89-CE"])[3:5] == ("NSE_CURRENCY", "2885")
    assert rows["NFO:NIFTY-2026-12-29-25000-CE"]["lot_size"] == 65
    _, plan = await populate_from(database, Sources(listing, master, ("NIFTY", "GOLD"), 99))
    added = notes(plan, Kind.ADDED)
    assert "NFO:NIFTY-2030-06-25-26000-PE at DHAN" in added
    assert "MCX:GOLD-2027-01-28-125000-CE at DHAN" in added
    assert not any("SENSEX" in key for key in added)
    option = await sql.fetchrow("select * from instruments where symbol = 'NIFTY-2026-12-29-25500-PE'")
    assert option is not None
    assert (option["underlying"], float(option["strike"]), option["option_type"]) == (
        "NSE:NIFTY",
        25500,
        "PE",
    )
    assert str(option["expiry"]) == "2026-12-29"
    with pytest.raises(ConfigurationError, match="no futures or options on NIFTI"):
        await populate_from(database, Sources(listing, master, ("NIFTI",), 1))


async def test_all_bad_rows_are_told_with_their_lines_and_nothing_is_written(
    database: str, sql: asyncpg.Connection, master: ScripMaster, tmp_path: Path
) -> None:
    listing = write_list(
        tmp_path, "NSE,RELIANCE,Reliance,equity,INR", "NSE,tcs,TCS,equity,INR", "LSE,VOD,Vodafone,equity,GBP"
    )
    with pytest.raises(ConfigurationError) as error:
        await populate_from(database, Sources(listing, master))
    assert [line.strip().partition(":")[0] for line in str(error.value).splitlines()[1:]] == [
        "line 3",
        "line 4",
    ]
    twice = write_list(
        tmp_path,
        "NSE,RELIANCE,Reliance,equity,INR,",
        "NSE,RIL,Reliance,equity,INR,RELIANCE-EQ",
        header=f"{HEADER},dhan_search_code",
    )
    with pytest.raises(ConfigurationError, match="line 3: NSE:RIL: symbol NSE_EQ RELIANCE-EQ of DHAN"):
        await populate_from(database, Sources(twice, master))
    assert await contents(sql) == [[], []]


async def test_a_yahoo_symbol_in_use_elsewhere_is_refused_and_nothing_is_written(
    database: str, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    mine = write_list(tmp_path, "NSE,MYNIFTY,Mine,index,INR,^NSEI", header=f"{HEADER},yahoo_symbol")
    await populate_from(database, Sources(mine, None))
    before = await contents(sql)
    with pytest.raises(ConfigurationError, match=r"\^NSEI of YF is mapped to NSE:MYNIFTY"):
        await populate_from(database, Sources(SHIPPED_LIST, None))
    assert await contents(sql) == before


async def test_a_database_that_is_not_set_up_says_what_to_run(
    database_url: str, migrated_database_url: str
) -> None:
    for url in (database_url, migrated_database_url):
        for dry_run in (True, False):
            with pytest.raises(ConfigurationError, match="setup_providers.py"):
                await populate_from(url, Sources(SHIPPED_LIST, None), dry_run=dry_run)


async def test_two_at_once_write_everything_once(
    database: str, sql: asyncpg.Connection, master: ScripMaster
) -> None:
    sources = Sources(SHIPPED_LIST, master)
    plans = [plan for _, plan in await asyncio.gather(*(populate_from(database, sources) for _ in range(3)))]
    assert sorted(count(plan, "instruments", Kind.ADDED) for plan in plans) == [0, 0, 128]
    assert [len(rows) for rows in await contents(sql)] == [128, 183]


async def test_one_that_waits_too_long_for_another_gives_up(database: str, sql: asyncpg.Connection) -> None:
    await sql.execute("select pg_advisory_lock($1)", ADVISORY_LOCK)
    with pytest.raises(TemporaryError):
        await populate_from(database, Sources(SHIPPED_LIST, None), lock_wait_s=0.2)
    assert await contents(sql) == [[], []]


async def test_readers_are_not_held_up_while_it_writes(
    database: str, sql: asyncpg.Connection, master: ScripMaster
) -> None:
    await populate_from(database, Sources(SHIPPED_LIST, master))
    async with sql.transaction():
        await sql.execute("lock table instruments, provider_instrument_mappings in share row exclusive mode")
        reader = await asyncpg.connect(database, command_timeout=2)
        assert await reader.fetchval(f"select count(*) from ({_MAPPED}) m") == 183
        await reader.close()


# ---- the master's file -----------------------------------------------------------------------------


class Vendor:
    """A web server that answers as told."""

    def __init__(self) -> None:
        self.status, self.body, self.asked = 200, b"", 0

    async def answer(self, _: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(status=self.status, body=self.body)


@pytest.fixture
async def vendor() -> AsyncIterator[tuple[Vendor, str]]:
    vendor = Vendor()
    application = web.Application()
    application.router.add_get("/master.csv", vendor.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    yield vendor, f"http://{host}:{port}/master.csv"
    await runner.cleanup()


async def test_a_master_is_downloaded_once_in_24_hours(vendor: tuple[Vendor, str], tmp_path: Path) -> None:
    server, url = vendor
    server.body = MASTER_PATH.read_bytes()
    cache = tmp_path / "state" / "cache"
    path = await scrip_master_file.obtain(cache, QUIET, url=url)
    assert path.read_bytes() == server.body
    await scrip_master_file.obtain(cache, QUIET, url=url)
    assert server.asked == 1
    old = time.time() - scrip_master_file.FRESH_S - 1
    os.utime(path, (old, old))
    await scrip_master_file.obtain(cache, QUIET, url=url)
    assert server.asked == 2
    assert list(cache.iterdir()) == [path]


@pytest.mark.parametrize(("status", "body"), [(503, b""), (200, b"<html>sign in</html>"), (200, b"")])
async def test_a_failed_download_is_temporary_and_leaves_no_file(
    vendor: tuple[Vendor, str], tmp_path: Path, status: int, body: bytes
) -> None:
    server, url = vendor
    server.status, server.body = status, body
    with pytest.raises(TemporaryError, match="--without-dhan"):
        await scrip_master_file.obtain(tmp_path, QUIET, url=url)
    assert list(tmp_path.iterdir()) == []


async def test_an_older_copy_is_offered_when_the_download_fails(tmp_path: Path) -> None:
    path = tmp_path / "dhan-scrip-master.csv"
    path.write_bytes(MASTER_PATH.read_bytes())
    os.utime(path, (1, 1))
    with pytest.raises(TemporaryError, match="An older copy is at"):
        await scrip_master_file.obtain(tmp_path, QUIET, url="http://127.0.0.1:1/master.csv")


def test_a_file_that_is_something_else_or_not_there_is_refused_by_name(tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("a,b,c\n1,2,3\n", encoding="utf-8")
    with pytest.raises(ConfigurationError, match=r"other\.csv: not Dhan's scrip master"):
        scrip_master_file.read(other, QUIET)
    with pytest.raises(ConfigurationError, match=r"none\.csv cannot be read"):
        scrip_master_file.read(tmp_path / "none.csv", QUIET)


# ---- as people run it ------------------------------------------------------------------------------


@pytest.mark.timeout(240)
async def test_the_script_populates_reports_and_does_nothing_when_there_is_something(
    database: str, tmp_path: Path
) -> None:
    environment = clean_environment(DATABASE_URL=database, STATE_DIR=tmp_path / "state")
    listing = write_list(tmp_path, "NSE,RELIANCE,Reliance,equity,INR", "NSE,NOPE,Nope,equity,INR")
    master = tmp_path / "master.csv"
    master.write_text(
        MASTER_PATH.read_text(encoding="utf-8") + "NSE,E,,EQUITY,0,ODD,1,,,,,,,ES,EQ,\n", encoding="utf-8"
    )
    arguments = (SCRIPT, "--instruments", listing, "--dhan-scrip-master", master)
    code, output, errors = await run_script(*arguments, environment=environment)
    assert code == 0, errors
    assert "+ NSE:RELIANCE at DHAN  RELIANCE-EQ, NSE_EQ 2885" in output
    assert "not in Dhan's scrip master, so not mapped to Dhan: 1 (NSE:NOPE)" in errors
    assert "odd rows: security id is not a number (1), line 191" in errors
    code, output, errors = await run_script(*arguments, "--if-empty", environment=environment)
    assert (code, output, errors) == (0, "3 mappings are there already: nothing to do.\n", "")


@pytest.mark.timeout(240)
async def test_the_scripts_errors_are_sentences_with_the_exit_code_of_their_kind(
    database: str, database_url: str, tmp_path: Path
) -> None:
    async def run(*arguments: str | Path, url: str = database) -> tuple[int, str]:
        environment = clean_environment(DATABASE_URL=url, STATE_DIR=tmp_path / "state")
        code, output, errors = await run_script(SCRIPT, *arguments, environment=environment)
        assert "Traceback" not in errors
        assert output == ""
        return code, errors

    bad = write_list(tmp_path, "NSE,tcs,TCS,equity,INR")
    code, errors = await run("--instruments", bad, "--without-dhan")
    assert code == 78
    assert "line 2: symbol 'tcs'" in errors
    code, errors = await run("--without-dhan", url=database_url)
    assert code == 78
    assert "run python data_migration/setup_providers.py first" in errors


@pytest.mark.timeout(180)
async def test_a_run_that_is_killed_half_way_leaves_nothing(
    database: str, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    # A slow trigger of ours holds it in the middle of its last statement.
    await sql.execute("""
        create function hold() returns trigger language plpgsql as
            $$ begin perform pg_advisory_xact_lock(4711); return new; end $$;
        create trigger hold after insert on provider_instrument_mappings for each row execute function hold();
        select pg_advisory_lock(4711);
    """)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        SCRIPT,
        "--without-dhan",
        env=clean_environment(DATABASE_URL=database, STATE_DIR=tmp_path / "state"),
    )
    held = (
        "select count(*) from pg_stat_activity where application_name = 'marketd-populate' "
        "and wait_event = 'advisory'"
    )
    await eventually(lambda: sql.fetchval(held), within_s=60)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    await sql.execute("select pg_advisory_unlock(4711)")
    gone = "select count(*) = 0 from pg_stat_activity where application_name = 'marketd-populate'"
    await eventually(lambda: sql.fetchval(gone), within_s=20)
    assert await contents(sql) == [[], []]
    await populate_from(database, Sources(SHIPPED_LIST, None))
    assert [len(rows) for rows in await contents(sql)] == [128, 128]


@pytest.mark.timeout(240)
async def test_without_a_database_url_both_scripts_share_the_embedded_server(tmp_path: Path) -> None:
    environment = clean_environment(STATE_DIR=tmp_path / "state")
    code, _, errors = await run_script(
        "data_migration/setup_providers.py", environment=environment, within_s=120
    )
    assert code == 0, errors
    code, output, errors = await run_script(SCRIPT, "--without-dhan", environment=environment, within_s=120)
    assert code == 0, errors
    assert "instruments: 128 added" in output
    assert not (tmp_path / "state" / "postgres" / "data" / "postmaster.pid").exists()


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.timeout(300)
async def test_two_hundred_thousand_rows_are_read_and_written_in_twenty_seconds(
    database: str, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    path = tmp_path / "master.csv"
    with path.open("w", encoding="utf-8") as file:
        file.write(MASTER_PATH.read_text(encoding="utf-8").splitlines()[0] + "\n")
        for number in range(200_000):
            day = f"2030-{1 + number % 12:02d}-{1 + number % 28:02d}"
            file.write(
                f"NSE,E,{number},EQUITY,0,S{number},1.0,Share {number},,,,10.0000,NA,ES,EQ,SHARE\n"
                if number % 10 == 0
                else f"NSE,E,{number},EQUITY,0,B{number},1.0,Bond {number},,,,10.0000,NA,DBT,N1,BOND\n"
                if number % 10 == 1
                else f"NSE,D,{number},OPTIDX,0,ABC-Jan2030-{number}-CE,65.0,ABC {number} CALL,{day} 14:30:00,"
                f"{number}.00000,CE,5.0000,M,OP,,\n"
            )
        file.write("NSE,E,200001,EQUITY,0,RELIANCE,1.0,Reliance,,,,10.0000,NA,ES,EQ,RELIANCE\n")
    shares = (f"NSE,S{number},Share {number},equity,INR" for number in range(0, 200_000, 10))
    listing = write_list(tmp_path, *shares, "NSE,RELIANCE,Reliance,equity,INR")
    started = time.perf_counter()
    master = scrip_master_file.read(path, QUIET)
    read_s = time.perf_counter() - started
    await populate_from(database, Sources(listing, master))
    all_s = time.perf_counter() - started
    print(f"\n200 001 rows read in {read_s:.1f} s; with 20 001 instruments mapped twice {all_s:.1f} s")
    assert master.report.lines == 200_002
    assert [len(rows) for rows in await contents(sql)] == [20_001, 40_002]
    assert all_s < 20 * float(os.environ.get("TIMEOUT_FACTOR", "1"))
