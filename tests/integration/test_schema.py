"""The schema on a real PostgreSQL: migrations, and that wrong states are refused."""
# ruff: noqa: E501 - one wrong state a line

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from data_migration.schema import (
    ADVISORY_LOCK,
    alembic_config,
    current_revision,
    head_revision,
    migrate,
)
from data_migration.setup_providers import setup
from models import SCHEMA_REVISIONS, Base
from services.catalogue.connection import make_engine
from services.errors import ConfigurationError, TemporaryError
from tests.support.databases import temporary_database
from tests.support.postgres import PrivatePostgres

_TABLES = "select count(*) from pg_tables where schemaname = 'public'"


async def revision_of(url: str) -> str | None:
    engine = make_engine(url, application_name="test")
    async with engine.connect() as connection:
        revision = await current_revision(connection)
    await engine.dispose()
    return revision


async def test_an_empty_database_comes_to_head_and_a_second_time_changes_nothing(database_url: str) -> None:
    await migrate(database_url)
    await migrate(database_url)
    assert await revision_of(database_url) == head_revision()


async def test_every_form_of_url_migrates(database_url: str) -> None:
    await migrate(database_url.replace("postgresql://", "postgresql+asyncpg://"))
    await migrate(database_url.replace("postgresql://", "postgres://"))
    assert await revision_of(database_url) == head_revision()


async def test_several_migrations_at_once_do_it_once(database_url: str) -> None:
    await asyncio.gather(*(migrate(database_url) for _ in range(4)))
    assert await revision_of(database_url) == head_revision()


async def test_a_migration_does_not_wait_for_ever_for_another(database_url: str) -> None:
    holder = await asyncpg.connect(database_url)
    await holder.execute("SELECT pg_advisory_lock($1)", ADVISORY_LOCK)
    with pytest.raises(TemporaryError, match="another migration or population"):
        await migrate(database_url, lock_wait_s=0.2)
    assert await holder.fetchval(_TABLES) == 0
    await holder.close()


async def test_a_database_of_a_newer_program_is_left_alone(migrated_database_url: str) -> None:
    connection = await asyncpg.connect(migrated_database_url)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    with pytest.raises(ConfigurationError, match="9999, which this program does not know"):
        await migrate(migrated_database_url)


async def test_an_unreachable_server_and_a_wrong_login_are_told_apart(database_url: str) -> None:
    with pytest.raises(TemporaryError, match="cannot be reached"):
        await migrate("postgresql://nobody:secret@127.0.0.1:1/none")
    user, _, rest = database_url.partition("://")[2].partition(":")
    host = rest.partition("@")[2]
    with pytest.raises(ConfigurationError, match="refuses the login") as error:
        await migrate(f"postgresql://{user}:wrong-secret@{host}")
    assert "wrong-secret" not in str(error.value)
    with pytest.raises(ConfigurationError, match="does not exist"):
        await migrate(f"{database_url}_not_there")


async def test_up_down_and_up_again_leave_what_they_should(database_url: str) -> None:
    engine = make_engine(database_url, application_name="test")

    async def run(step: str, revision: str) -> None:
        async with engine.begin() as connection:
            await connection.run_sync(lambda sync: getattr(command, step)(alembic_config(sync), revision))

    await run("upgrade", "head")
    await run("downgrade", "base")
    plain = await asyncpg.connect(database_url)
    assert await plain.fetchval(_TABLES) == 1  # alembic's own
    functions = "select count(*) from pg_proc where pronamespace = 'public'::regnamespace"
    assert await plain.fetchval(functions) == 0
    for revision in SCHEMA_REVISIONS:
        await run("upgrade", revision)
        assert await revision_of(database_url) == revision
    for revision in SCHEMA_REVISIONS[-2::-1]:
        await run("downgrade", revision)
        assert await revision_of(database_url) == revision
    await run("upgrade", "head")
    assert await plain.fetchval(_TABLES) == len(Base.metadata.tables) + 1
    await plain.close()
    await engine.dispose()


async def test_the_models_say_exactly_what_the_migrations_made(migrated_database_url: str) -> None:
    def differences(connection: Connection) -> list[object]:
        context = MigrationContext.configure(connection, opts={"compare_server_default": True})
        return list(compare_metadata(context, Base.metadata))

    engine = make_engine(migrated_database_url, application_name="test")
    async with engine.connect() as connection:
        assert await connection.run_sync(differences) == []
    await engine.dispose()


_CONSTRAINTS = """
    select conrelid::regclass::text, conname, pg_get_constraintdef(oid) from pg_constraint
    where connamespace = 'public'::regnamespace and conrelid <> 'alembic_version'::regclass
    and contype <> 'n' order by 1, 2
"""
_INDEXES = """
    select indexname, indexdef from pg_indexes
    where schemaname = 'public' and tablename <> 'alembic_version' order by 1
"""


async def test_checks_and_indexes_are_those_of_the_models_to_the_letter(
    migrated_database_url: str, database_url: str
) -> None:
    engine = make_engine(database_url, application_name="test")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()
    migrated, made = await asyncpg.connect(migrated_database_url), await asyncpg.connect(database_url)
    await made.execute("create table alembic_version (version_num text)")
    for query in (_CONSTRAINTS, _INDEXES):
        rows = await migrated.fetch(query)
        assert rows == await made.fetch(query)
        assert len(rows) > 10
    await migrated.close()
    await made.close()


@pytest.fixture
async def rows(migrated_database_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A database with two providers, two exchanges and two instruments of the first exchange."""
    connection = await asyncpg.connect(migrated_database_url)
    await connection.execute("""
        insert into providers (id, code, name) values (1, 'YF', 'Yahoo'), (2, 'DHAN', 'Dhan');
        insert into exchanges (id, code, name, timezone) values
            (1, 'NSE', 'NSE', 'Asia/Kolkata'), (2, 'BSE', 'BSE', 'Asia/Kolkata');
        insert into instruments (id, exchange_id, symbol, name, asset_class, currency) values
            (1, 1, 'A', 'A', 'equity', 'INR'), (2, 1, 'B', 'B', 'equity', 'INR');
        insert into exchange_provider_mappings (provider_id, exchange_id, is_primary) values (2, 1, true);
        insert into provider_instrument_mappings (provider_id, instrument_id, provider_instrument_search_code,
            provider_segment, provider_security_id) values (2, 1, 'A-EQ', 'NSE_EQ', '1'), (1, 1, 'A.NS', null, null);
        alter table providers alter id restart with 100;
        alter table exchanges alter id restart with 100;
        alter table instruments alter id restart with 100;
    """)
    yield connection
    await connection.close()


_INSTRUMENT = (
    "insert into instruments (exchange_id, symbol, name, asset_class, currency{}) values (2, 'X', 'X', {}{})"
)
_MAPPING = (
    "insert into provider_instrument_mappings (provider_id, instrument_id, provider_instrument_search_code, "
    "provider_segment, provider_security_id) values ({})"
)


def instrument(asset_class: str = "equity", **more: str) -> str:
    names = "".join(f", {name}" for name in more)
    values = "".join(f", {value}" for value in more.values())
    return _INSTRUMENT.format(names, f"'{asset_class}', 'INR'", values)


WRONG_STATES: list[tuple[str, str | None]] = [
    ("insert into providers (code, name) values ('YF', 'again')", "uq_providers_code"),
    ("insert into providers (code, name) values ('yf', 'lower')", "ck_providers_code_is_upper_case"),
    ("insert into providers (code, name) values ('', 'blank')", "ck_providers_code_is_upper_case"),
    ("insert into providers (code, name) values ('X', ' ')", "ck_providers_name_is_not_blank"),
    ("update providers set rate_limit = 0", "ck_providers_rate_limit_is_positive"),
    ("update providers set rate_limit = 'NaN'", "ck_providers_rate_limit_is_positive"),
    ("insert into exchanges (code, name, timezone) values ('NSE', 'n', 'UTC')", "uq_exchanges_code"),
    (
        "insert into exchanges (code, name, timezone) values ('nse', 'n', 'UTC')",
        "ck_exchanges_code_is_upper_case",
    ),
    (
        "insert into exchanges (code, name, timezone) values ('X', 'n', '')",
        "ck_exchanges_timezone_is_a_zone_name",
    ),
    ("update exchanges set country = 'IND'", None),
    ("update exchanges set country = 'in'", "ck_exchanges_country_has_two_letters"),
    ("update exchanges set currency = '₹'", "ck_exchanges_currency_is_a_code"),
    (
        "insert into instruments (exchange_id, symbol, name, asset_class, currency) values (1, 'A', 'A', 'etf', 'INR')",
        "uq_instruments_exchange_id_symbol",
    ),
    ("update instruments set symbol = 'a' where id = 1", "ck_instruments_symbol_fits_an_instrument_key"),
    ("update instruments set symbol = 'A:B' where id = 1", "ck_instruments_symbol_fits_an_instrument_key"),
    ("update instruments set symbol = 'A B' where id = 1", "ck_instruments_symbol_fits_an_instrument_key"),
    ("update instruments set symbol = E'A\\n' where id = 1", "ck_instruments_symbol_fits_an_instrument_key"),
    ("update instruments set symbol = 'A{B}' where id = 1", "ck_instruments_symbol_fits_an_instrument_key"),
    (instrument("share"), "ck_instruments_asset_class_is_known"),
    (instrument(tick_size="0"), "ck_instruments_tick_size_is_positive"),
    (instrument(tick_size="-0.05"), "ck_instruments_tick_size_is_positive"),
    (instrument(tick_size="'NaN'"), "ck_instruments_tick_size_is_positive"),
    (instrument(lot_size="0"), "ck_instruments_lot_size_is_positive"),
    (instrument(isin="'XX'"), "ck_instruments_isin_has_its_form"),
    (instrument(underlying="'NIFTY'"), "ck_instruments_underlying_is_an_instrument_key"),
    (instrument(expiry="'2026-12-31'"), "ck_instruments_contract_terms_fit_the_asset_class"),
    (instrument(strike="1"), "ck_instruments_contract_terms_fit_the_asset_class"),
    (instrument("option"), "ck_instruments_contract_terms_fit_the_asset_class"),
    (
        instrument("option", expiry="'2026-12-31'", strike="1", underlying="'NSE:A'"),
        "ck_instruments_contract_terms_fit_the_asset_class",
    ),
    (
        instrument("option", expiry="'2026-12-31'", option_type="'CE'", underlying="'NSE:A'"),
        "ck_instruments_contract_terms_fit_the_asset_class",
    ),
    (
        instrument("option", strike="1", option_type="'CE'", underlying="'NSE:A'"),
        "ck_instruments_contract_terms_fit_the_asset_class",
    ),
    (
        instrument("option", strike="1", option_type="'CE'", expiry="'2026-12-31'"),
        "ck_instruments_contract_terms_fit_the_asset_class",
    ),
    (
        instrument("option", strike="1", option_type="'XX'", expiry="'2026-12-31'", underlying="'NSE:A'"),
        "ck_instruments_option_type_is_call_or_put",
    ),
    (
        instrument("option", strike="0", option_type="'CE'", expiry="'2026-12-31'", underlying="'NSE:A'"),
        "ck_instruments_strike_is_positive",
    ),
    (
        instrument("future", strike="1", expiry="'2026-12-31'"),
        "ck_instruments_contract_terms_fit_the_asset_class",
    ),
    (
        "insert into instruments (exchange_id, symbol, name, asset_class, currency) values (9, 'A', 'A', 'etf', 'INR')",
        "fk_instruments_exchange_id_exchanges",
    ),
    (
        "insert into exchange_provider_mappings (provider_id, exchange_id, is_primary) values (1, 1, true)",
        "uq_exchange_provider_mappings_one_primary",
    ),
    (
        "insert into exchange_provider_mappings (provider_id, exchange_id) values (2, 1)",
        "uq_exchange_provider_mappings_provider_id_exchange_id",
    ),
    (
        "update exchange_provider_mappings set priority = -1",
        "ck_exchange_provider_mappings_priority_is_not_negative",
    ),
    ("delete from exchanges where id = 1", "fk_exchange_provider_mappings_exchange_id_exchanges"),
    ("delete from providers where id = 1", "fk_provider_instrument_mappings_provider_id_providers"),
    ("delete from instruments where id = 1", "fk_provider_instrument_mappings_instrument_id_instruments"),
    (_MAPPING.format("2, 2, 'A-EQ', 'NSE_EQ', '2'"), "uq_provider_instrument_mappings_active_search_code"),
    (_MAPPING.format("1, 2, 'A.NS', null, null"), "uq_provider_instrument_mappings_active_search_code"),
    (_MAPPING.format("2, 2, 'B-EQ', 'NSE_EQ', '1'"), "uq_provider_instrument_mappings_active_security_id"),
    (_MAPPING.format("2, 1, 'A-BE', 'NSE_EQ', '3'"), "uq_provider_instrument_mappings_active_instrument"),
    (_MAPPING.format("2, 2, ' ', 'NSE_EQ', '3'"), "ck_provider_instrument_mappings_search_code_is_not_blank"),
    (
        _MAPPING.format("2, 2, 'B ', 'NSE_EQ', '3'"),
        "ck_provider_instrument_mappings_search_code_is_not_blank",
    ),
    (_MAPPING.format("2, 2, 'B', '', '3'"), "ck_provider_instrument_mappings_segment_is_a_code"),
    (_MAPPING.format("2, 2, 'B', 'NSE_EQ', ''"), "ck_provider_instrument_mappings_security_id_has_no_blanks"),
]


async def test_every_wrong_state_is_refused_by_the_constraint_that_says_so(rows: asyncpg.Connection) -> None:
    refused = []
    for statement, _ in WRONG_STATES:
        with pytest.raises((asyncpg.IntegrityConstraintViolationError, asyncpg.DataError)) as error:
            await rows.execute(statement)
        refused.append((statement, getattr(error.value, "constraint_name", None)))
    assert refused == WRONG_STATES


RIGHT_STATES = [
    instrument("option", strike="25000", option_type="'CE'", expiry="'2026-12-31'", underlying="'NSE:A'"),
    instrument("future", expiry="'2026-12-31'", underlying="'NSE:A'", lot_size="65", tick_size="0.0025"),
    instrument("crypto"),
    instrument("etf", isin="'INE002A01018'"),
    # The same id in another segment, and a used name in a row that is not active.
    _MAPPING.format("2, 2, 'B-FUT', 'NSE_CURRENCY', '1'"),
    _MAPPING.format("2, 2, 'A-EQ', 'NSE_FNO', '7'"),
    "insert into provider_instrument_mappings (provider_id, instrument_id, provider_instrument_search_code, "
    "provider_segment, provider_security_id, is_active) values (2, 1, 'A-EQ', 'NSE_EQ', '1', false)",
    "insert into exchange_provider_mappings (provider_id, exchange_id) values (1, 1)",
]


async def test_every_right_state_is_taken(rows: asyncpg.Connection) -> None:
    for statement in RIGHT_STATES:
        transaction = rows.transaction()
        await transaction.start()
        assert (await rows.execute(statement)).endswith(" 1"), statement
        await transaction.rollback()


async def test_every_update_moves_the_time_of_change_whoever_makes_it(rows: asyncpg.Connection) -> None:
    before = await rows.fetchrow("select created_at, updated_at from providers where id = 1")
    await rows.execute("update providers set name = 'Yahoo!' where id = 1")
    after = await rows.fetchrow("select created_at, updated_at from providers where id = 1")
    assert before is not None
    assert after is not None
    assert after["created_at"] == before["created_at"]
    assert after["updated_at"] > before["updated_at"]


async def test_a_crash_gives_no_number_of_the_log_out_twice(hurt_postgres: PrivatePostgres) -> None:
    async with temporary_database(hurt_postgres.url) as url:
        await setup(url)
        for _ in range(2):
            connection = await asyncpg.connect(url)
            await connection.execute("UPDATE providers SET name = name || '!'")
            await connection.close()
            await hurt_postgres.stop_immediately()
            await hurt_postgres.start()
        connection = await asyncpg.connect(url)
        await connection.execute("UPDATE providers SET name = name || '!'")
        assert await connection.fetchval("SELECT count(*) FROM mapping_changes") == 4
        await connection.close()
