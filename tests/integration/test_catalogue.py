"""The catalogue against a real PostgreSQL: what a snapshot holds, and what when the server is away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from data_migration.schema import migrate
from data_migration.setup_providers import setup
from models import SCHEMA_REVISIONS
from services.catalogue.loader import Catalogue
from services.errors import ConfigurationError, TemporaryError
from services.market_data.clock import ManualClock
from services.market_data.instruments import InstrumentMapping, MappingSnapshot
from tests.support.eventually import FACTOR
from tests.support.fault_proxy import FaultProxy

DAY_MS = 24 * 3_600_000
NOBODY = "postgresql://marketd:secret@127.0.0.1:1/marketd"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def database(migrated_database_url: str) -> str:
    await setup(migrated_database_url)
    return migrated_database_url


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
async def catalogue(database: str, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Catalogue]:
    catalogue = Catalogue(database, tmp_path / "mappings.json", clock)
    yield catalogue
    await catalogue.close()


async def fill(sql: asyncpg.Connection) -> None:
    await sql.execute("""
        insert into instruments (exchange_id, symbol, name, asset_class, currency, tick_size, lot_size)
            select id, 'RELIANCE', 'Reliance', 'equity', 'INR', 0.05, 1 from exchanges where code = 'NSE';
        insert into instruments (exchange_id, symbol, name, asset_class, currency)
            select id, 'AAPL', 'Apple', 'equity', 'USD' from exchanges where code = 'NASDAQ';
        insert into provider_instrument_mappings (provider_id, instrument_id, provider_instrument_search_code,
            provider_segment, provider_security_id)
            select p.id, i.id, 'RELIANCE-EQ', 'NSE_EQ', '2885' from providers p, instruments i
            where p.code = 'DHAN' and i.symbol = 'RELIANCE';
        insert into provider_instrument_mappings (provider_id, instrument_id, provider_instrument_search_code)
            select p.id, i.id, case i.symbol when 'AAPL' then 'AAPL' else 'RELIANCE.NS' end
            from providers p, instruments i where p.code = 'YF';
    """)


def shown(snapshot: MappingSnapshot) -> list[str]:
    return [f"{mapping.instrument} {mapping.provider_code}" for mapping in snapshot.mappings]


async def test_a_snapshot_has_every_active_mapping_in_order(
    catalogue: Catalogue, sql: asyncpg.Connection
) -> None:
    await fill(sql)
    snapshot = await catalogue.load()
    assert shown(snapshot) == ["NASDAQ:AAPL YF", "NSE:RELIANCE DHAN", "NSE:RELIANCE YF"]
    assert [(entry.code, entry.rate_limit) for entry in snapshot.providers] == [("DHAN", 5.0), ("YF", 1.0)]
    dhan = snapshot.mappings[1]
    assert dhan == InstrumentMapping(
        mapping_id=dhan.mapping_id,
        instrument="NSE:RELIANCE",
        exchange="NSE",
        symbol="RELIANCE",
        name="Reliance",
        asset_class=dhan.asset_class,
        currency="INR",
        provider_code="DHAN",
        search_code="RELIANCE-EQ",
        segment="NSE_EQ",
        security_id="2885",
        tick_size=0.05,
        lot_size=1,
        is_primary=True,
        priority=10,
    )
    assert dhan.asset_class.value == "equity"
    assert dhan.provider_symbol == "NSE_EQ:2885"
    assert (snapshot.version, snapshot.from_cache) == (1, False)
    assert (await catalogue.load()).version == 2


async def test_the_primary_comes_first_then_the_priority_then_the_code(
    catalogue: Catalogue, sql: asyncpg.Connection
) -> None:
    await fill(sql)
    await sql.execute("""
        insert into providers (code, name) values ('B', 'b'), ('A', 'a'), ('Z', 'z');
        insert into exchange_provider_mappings (provider_id, exchange_id, priority)
            select p.id, e.id, case p.code when 'Z' then 1 else 50 end from providers p, exchanges e
            where p.code in ('A', 'B', 'Z') and e.code = 'NSE';
        insert into provider_instrument_mappings (provider_id, instrument_id, provider_instrument_search_code)
            select p.id, i.id, 'REL' from providers p, instruments i
            where p.code in ('A', 'B', 'Z') and i.symbol = 'RELIANCE';
    """)
    order = [row for row in shown(await catalogue.load()) if row.startswith("NSE")]
    assert order == [f"NSE:RELIANCE {code}" for code in ("DHAN", "Z", "YF", "A", "B")]


@pytest.mark.parametrize(
    ("edit", "left"),
    [
        ("update providers set is_active = false where code = 'DHAN'", ["NASDAQ:AAPL YF", "NSE:RELIANCE YF"]),
        ("update exchanges set is_active = false where code = 'NSE'", ["NASDAQ:AAPL YF"]),
        (
            "update instruments set is_active = false where symbol = 'AAPL'",
            ["NSE:RELIANCE DHAN", "NSE:RELIANCE YF"],
        ),
        (
            "update provider_instrument_mappings set is_active = false where provider_security_id = '2885'",
            ["NASDAQ:AAPL YF", "NSE:RELIANCE YF"],
        ),
        (
            "update exchange_provider_mappings set is_active = false where not is_primary",
            ["NASDAQ:AAPL YF", "NSE:RELIANCE DHAN"],
        ),
        (
            "delete from exchange_provider_mappings where not is_primary",
            ["NASDAQ:AAPL YF", "NSE:RELIANCE DHAN"],
        ),
    ],
)
async def test_what_is_switched_off_anywhere_on_the_way_is_left_out(
    catalogue: Catalogue, sql: asyncpg.Connection, edit: str, left: list[str]
) -> None:
    await fill(sql)
    await sql.execute(edit)
    assert shown(await catalogue.load()) == left


async def test_a_contract_is_there_until_its_last_day_has_passed_on_its_exchange(
    catalogue: Catalogue, sql: asyncpg.Connection, clock: ManualClock
) -> None:
    # The clock stands at 2023-11-14 22:13 UTC: already the 15th in India, still the 14th in New York.
    await sql.execute("""
        insert into instruments (exchange_id, symbol, name, asset_class, currency, expiry)
            select id, 'A-' || code || '-' || day, 'x', 'future', 'INR', day::date from exchanges,
            (values ('2023-11-13'), ('2023-11-14'), ('2023-11-15')) days (day) where code in ('NSE', 'NYSE');
        insert into provider_instrument_mappings (provider_id, instrument_id, provider_instrument_search_code)
            select p.id, i.id, i.symbol from providers p, instruments i where p.code = 'YF';
    """)
    assert [mapping.symbol for mapping in (await catalogue.load()).mappings] == [
        "A-NSE-2023-11-15",
        "A-NYSE-2023-11-14",
        "A-NYSE-2023-11-15",
    ]
    clock.advance(DAY_MS / 1000)
    assert [mapping.symbol for mapping in (await catalogue.load()).mappings] == ["A-NYSE-2023-11-15"]


async def test_a_zone_this_machine_does_not_know_does_not_stop_the_rest(
    catalogue: Catalogue, sql: asyncpg.Connection
) -> None:
    await fill(sql)
    await sql.execute("update exchanges set timezone = 'Mars/Olympus' where code = 'NSE'")
    await sql.execute("""
        update instruments set asset_class = 'future', expiry = '2023-11-14' where symbol = 'RELIANCE'
    """)
    assert len((await catalogue.load()).mappings) == 3


# ---- schema ----------------------------------------------------------------------------------------


async def test_a_schema_at_head_passes(catalogue: Catalogue) -> None:
    await catalogue.check_schema()


async def test_no_schema_a_schema_behind_and_one_ahead_say_what_to_do(
    database_url: str, tmp_path: Path, clock: ManualClock
) -> None:
    catalogue = Catalogue(database_url, tmp_path / "mappings.json", clock)
    with pytest.raises(
        ConfigurationError, match="has no schema yet: run python data_migration/setup_providers"
    ):
        await catalogue.check_schema()
    with pytest.raises(ConfigurationError, match="run python data_migration/setup_providers"):
        await catalogue.load()
    await migrate(database_url)
    connection = await asyncpg.connect(database_url)
    await connection.execute("update alembic_version set version_num = 'ffff'")
    with pytest.raises(ConfigurationError, match="ffff, which this program does not know"):
        await catalogue.check_schema()
    for older in SCHEMA_REVISIONS[:-1]:
        await connection.execute("update alembic_version set version_num = $1", older)
        with pytest.raises(
            ConfigurationError, match=f"at schema revision {older}, this program needs .*: run"
        ):
            await catalogue.check_schema()
    await connection.execute("delete from alembic_version")
    with pytest.raises(ConfigurationError, match="has no schema yet"):
        await catalogue.check_schema()
    await connection.close()
    await catalogue.close()


# ---- the server is away ----------------------------------------------------------------------------


async def test_without_a_server_the_last_good_copy_stands_in_and_says_so(
    database: str, sql: asyncpg.Connection, catalogue: Catalogue, tmp_path: Path, clock: ManualClock
) -> None:
    await fill(sql)
    good = await catalogue.load()
    away = Catalogue(NOBODY, tmp_path / "mappings.json", clock)
    await away.keep(good)
    clock.advance(6 * DAY_MS / 1000)
    await away.check_schema()
    snapshot = await away.load()
    assert snapshot.from_cache
    assert (snapshot.mappings, snapshot.providers) == (good.mappings, good.providers)
    assert (snapshot.version, snapshot.loaded_ms) == (1, good.loaded_ms)
    clock.advance(2 * DAY_MS / 1000)
    with pytest.raises(TemporaryError, match="8 days old") as error:
        await away.load()
    assert "secret" not in str(error.value)
    await away.close()


async def test_a_damaged_copy_is_refused_and_written_anew_when_the_server_is_back(
    database: str, sql: asyncpg.Connection, catalogue: Catalogue, tmp_path: Path, clock: ManualClock
) -> None:
    await fill(sql)
    await catalogue.keep(await catalogue.load())
    path = tmp_path / "mappings.json"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"2885", b"2886"))
    away = Catalogue(NOBODY, path, clock)
    with pytest.raises(TemporaryError, match="damaged"):
        await away.load()
    await away.close()
    again = Catalogue(database, path, clock)
    await again.keep(await again.load())
    assert path.read_bytes().partition(b"\n")[2] == whole.partition(b"\n")[2]
    await again.close()


async def test_with_neither_server_nor_copy_the_sentence_names_both(
    tmp_path: Path, clock: ManualClock
) -> None:
    catalogue = Catalogue(NOBODY, tmp_path / "mappings.json", clock)
    await catalogue.check_schema()
    with pytest.raises(
        TemporaryError, match=r"127\.0\.0\.1:1, database marketd cannot be reached.*there is none yet"
    ):
        await catalogue.load()
    await catalogue.close()


async def test_a_copy_that_cannot_be_written_does_not_stop_the_load(
    database: str, tmp_path: Path, clock: ManualClock
) -> None:
    catalogue = Catalogue(database, tmp_path / "not" / "there" / "mappings.json", clock)
    snapshot = await catalogue.load()
    assert snapshot.mappings == ()
    await catalogue.keep(snapshot)
    await catalogue.close()


async def test_an_unchanged_copy_is_not_written_again_for_an_hour(
    catalogue: Catalogue, sql: asyncpg.Connection, tmp_path: Path, clock: ManualClock
) -> None:
    await fill(sql)
    path = tmp_path / "mappings.json"

    async def written() -> int:
        await catalogue.keep(await catalogue.load())
        return path.stat().st_ino

    first = await written()
    assert await written() == first
    clock.advance(3_601)
    second = await written()
    assert second != first
    await sql.execute("update instruments set name = 'Apple Inc.' where symbol = 'AAPL'")
    assert await written() != second


async def test_a_wrong_login_is_a_setting_to_correct_not_an_absence(
    database: str, catalogue: Catalogue, tmp_path: Path, clock: ManualClock
) -> None:
    await catalogue.load()
    parts = urlsplit(database)
    for url in (
        database.replace(parts.password or "?", "wrong"),
        database.replace(parts.path, "/not_there"),
    ):
        wrong = Catalogue(url, tmp_path / "mappings.json", clock)
        with pytest.raises(ConfigurationError, match="Correct DATABASE_URL"):
            await wrong.load()
        with pytest.raises(ConfigurationError, match="Correct DATABASE_URL"):
            await wrong.check_schema()
        await wrong.close()


async def test_a_missing_privilege_is_named(catalogue: Catalogue, sql: asyncpg.Connection) -> None:
    await catalogue.load()
    await sql.execute("revoke select on instruments from current_user")
    with pytest.raises(ConfigurationError, match="permission denied for table instruments"):
        await catalogue.load()
    await sql.execute("grant select on instruments to current_user")
    assert not (await catalogue.load()).from_cache


async def test_a_broken_connection_and_a_changed_table_cost_one_quiet_repeat(
    catalogue: Catalogue, sql: asyncpg.Connection
) -> None:
    await fill(sql)
    await catalogue.load()
    terminated = await sql.fetchval(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = 'marketd'"
        " and datname = current_database()"
    )
    assert terminated == 1
    assert not (await catalogue.load()).from_cache
    # The prepared statements of the kept connection now mean another row type.
    await sql.execute("alter table instruments alter column name type text")
    assert not (await catalogue.load()).from_cache
    await sql.execute("alter table instruments alter column name type varchar(200)")
    snapshot = await catalogue.load()
    assert (snapshot.from_cache, len(snapshot.mappings)) == (False, 3)


async def test_a_locked_table_is_not_waited_for(catalogue: Catalogue, sql: asyncpg.Connection) -> None:
    await fill(sql)
    good = await catalogue.load()
    await catalogue.keep(good)
    async with sql.transaction():
        await sql.execute("lock table instruments in access exclusive mode")
        started = time.monotonic()
        snapshot = await catalogue.load()
        assert time.monotonic() - started < 5 * FACTOR
    assert snapshot.from_cache
    assert snapshot.mappings == good.mappings
    assert not (await catalogue.load()).from_cache


async def test_a_half_open_connection_costs_seconds_and_no_more(
    database: str, sql: asyncpg.Connection, tmp_path: Path, clock: ManualClock
) -> None:
    await fill(sql)
    parts = urlsplit(database)
    assert parts.port is not None
    async with FaultProxy("127.0.0.1", parts.port) as proxy:
        url = database.replace(f":{parts.port}/", f":{proxy.port}/")
        catalogue = Catalogue(url, tmp_path / "mappings.json", clock)
        await catalogue.keep(await catalogue.load())
        proxy.replies_flow.clear()
        for _ in range(2):
            started = time.monotonic()
            snapshot = await catalogue.load()
            took_s = time.monotonic() - started
            assert snapshot.from_cache
            assert took_s < 5 * FACTOR
        await asyncio.wait_for(catalogue.close(), 5 * FACTOR)


@pytest.mark.slow
@pytest.mark.alone
async def test_twenty_five_thousand_mappings_load_in_two_seconds(
    catalogue: Catalogue, sql: asyncpg.Connection
) -> None:
    await sql.execute("""
        insert into instruments (exchange_id, symbol, name, asset_class, currency, tick_size)
            select e.id, 'S' || number, 'Share ' || number, 'equity', 'INR', 0.05
            from exchanges e, generate_series(1, 12500) number where e.code = 'NSE';
        insert into provider_instrument_mappings (provider_id, instrument_id, provider_instrument_search_code,
            provider_segment, provider_security_id)
            select p.id, i.id, i.symbol || '-EQ', 'NSE_EQ', i.id from providers p, instruments i
            where p.code = 'DHAN';
        insert into provider_instrument_mappings (provider_id, instrument_id, provider_instrument_search_code)
            select p.id, i.id, i.symbol || '.NS' from providers p, instruments i where p.code = 'YF';
        analyze;
    """)
    started = time.monotonic()
    snapshot = await catalogue.load()
    took_s = time.monotonic() - started
    print(f"\n25 000 mappings loaded in {took_s:.2f} s")
    assert len(snapshot.mappings) == 25_000
    assert took_s < 2 * FACTOR
