"""`providers` and `mappings` on a real PostgreSQL that the two scripts have filled; no daemon runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

import main
from commands.context import out
from services.catalogue.loader import Catalogue
from services.errors import ConfigurationError, MarketdError
from services.market_data.clock import SystemClock
from tests.support.databases import temporary_database

Run = Callable[..., Awaitable[str]]
HEADER = "exchange,symbol,provider,search_code,segment,security_id,is_active,valid_from,valid_to\n"

_STATE = """
    SELECT (SELECT jsonb_agg(to_jsonb(t) - 'updated_at' ORDER BY id) FROM providers t),
           (SELECT jsonb_agg(to_jsonb(t) - 'updated_at' ORDER BY id) FROM exchanges t),
           (SELECT jsonb_agg(to_jsonb(t) - 'updated_at' ORDER BY id) FROM instruments t),
           (SELECT jsonb_agg(to_jsonb(t) - 'updated_at' ORDER BY id) FROM exchange_provider_mappings t),
           (SELECT jsonb_agg(to_jsonb(t) - 'updated_at' ORDER BY id) FROM provider_instrument_mappings t)
"""


@pytest.fixture
async def database(postgres_server: str, mapped_template: str) -> AsyncIterator[str]:
    async with temporary_database(postgres_server, template_url=mapped_template) as url:
        yield url


@pytest.fixture
async def sql(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


@pytest.fixture
def run(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("DATABASE_URL", database)
    monkeypatch.setenv("STATE_DIR", str(tmp_path / "state"))
    # A worker of the test run has a width of its own, which the console took over when it was made.
    monkeypatch.setattr(out, "width", 300)
    monkeypatch.chdir(tmp_path)

    async def invoke(*arguments: object) -> str:
        result = await asyncio.to_thread(CliRunner().invoke, main.app, list(map(str, arguments)))
        if isinstance(result.exception, MarketdError):
            raise result.exception
        assert result.exit_code == 0, (result.output, result.exception)
        return str(result.output)

    return invoke


async def state(sql: asyncpg.Connection) -> Any:
    return tuple(await sql.fetchrow(_STATE))


async def loaded(database: str, tmp_path: Path) -> dict[tuple[str, str], str]:
    catalogue = Catalogue(database, tmp_path / "copy.json", SystemClock())
    try:
        snapshot = await catalogue.read()
    finally:
        await catalogue.close()
    return {(row.instrument, row.provider_code): row.provider_symbol for row in snapshot.mappings}


async def changes(sql: asyncpg.Connection) -> int:
    return int(await sql.fetchval("SELECT count(*) FROM mapping_changes"))


# ---- providers --------------------------------------------------------------------------------------


async def test_the_list_names_every_provider_with_its_exchanges(run: Run) -> None:
    rows = {row["code"]: row for row in json.loads(await run("providers", "list", "--json"))}
    assert {"exchange": "NSE", "primary": True, "priority": 10, "is_active": True} in rows["DHAN"][
        "exchanges"
    ]
    assert (rows["DHAN"]["mappings"], rows["DHAN"]["state"]) == (6, None)
    told = await run("providers", "list")
    assert "NSE (primary)" in told
    assert "Yahoo" in told


async def test_a_provider_is_disabled_once_and_enabled_again(
    run: Run, sql: asyncpg.Connection, database: str, tmp_path: Path
) -> None:
    before, made = await loaded(database, tmp_path), await changes(sql)
    assert "is_active yes → no" in await run("providers", "disable", "dhan", "--dry-run")
    assert await loaded(database, tmp_path) == before
    assert "Written as change" in await run("providers", "disable", "dhan")
    assert not any(provider == "DHAN" for _, provider in await loaded(database, tmp_path))
    assert "Nothing to change." in await run("providers", "disable", "DHAN")
    assert "No daemon runs here" in await run("providers", "enable", "DHAN")
    assert await loaded(database, tmp_path) == before
    assert await changes(sql) == made + 2, "neither the dry run nor the repeat left a trace"


async def test_a_provider_can_be_switched_on_one_exchange(
    run: Run, sql: asyncpg.Connection, database: str, tmp_path: Path
) -> None:
    await run("providers", "disable", "YF", "--exchange", "nse")
    found = await loaded(database, tmp_path)
    assert ("NSE:RELIANCE", "YF") not in found
    assert ("NASDAQ:AAPL", "YF") in found


async def test_what_would_take_too_many_instruments_away_needs_the_word(
    run: Run, sql: asyncpg.Connection, database: str, tmp_path: Path
) -> None:
    before = await state(sql)
    with pytest.raises(ConfigurationError, match=r"4 of 10 instruments .* add --allow-removal"):
        await run("providers", "disable", "YF")
    assert await state(sql) == before
    answer = json.loads(await run("providers", "disable", "YF", "--allow-removal", "--json"))
    assert answer["allows_removal"] is True
    assert ("NASDAQ:AAPL", "YF") not in await loaded(database, tmp_path)


async def test_the_order_on_an_exchange_changes_and_the_old_primary_steps_down(
    run: Run, sql: asyncpg.Connection
) -> None:
    await run("providers", "priority", "NSE", "YF", 3, "--primary")
    found = await sql.fetch(
        "SELECT p.code, r.is_primary, r.priority FROM exchange_provider_mappings r "
        "JOIN providers p ON p.id = r.provider_id JOIN exchanges e ON e.id = r.exchange_id "
        "WHERE e.code = 'NSE' AND p.code IN ('YF', 'DHAN') ORDER BY p.code"
    )
    assert [tuple(row) for row in found] == [("DHAN", False, 10), ("YF", True, 3)]
    assert "Nothing to change." in await run("providers", "priority", "NSE", "YF", 3, "--primary")
    assert "Nothing to change." in await run("providers", "priority", "NSE", "YF", 3)
    await run("mappings", "rollback")
    assert (
        await sql.fetchval(
            "SELECT p.code FROM exchange_provider_mappings r JOIN providers p ON p.id = r.provider_id "
            "JOIN exchanges e ON e.id = r.exchange_id WHERE e.code = 'NSE' AND r.is_primary"
        )
        == "DHAN"
    )


async def test_names_that_do_not_exist_are_answered_with_those_that_do(run: Run) -> None:
    with pytest.raises(ConfigurationError, match="there is no provider NOPE: there are .*DHAN"):
        await run("providers", "enable", "NOPE")
    with pytest.raises(ConfigurationError, match="DHAN does not serve NASDAQ: it serves .*NSE"):
        await run("providers", "priority", "NASDAQ", "DHAN", 1)


# ---- mappings ---------------------------------------------------------------------------------------


async def test_what_is_exported_and_applied_again_changes_nothing(
    run: Run, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    before, made = await state(sql), await changes(sql)
    file = tmp_path / "all.csv"
    file.write_text(await run("mappings", "export"), encoding="utf-8")
    assert file.read_text().startswith(HEADER)
    assert "Nothing to change." in await run("mappings", "apply", file, "--complete")
    assert (await state(sql), await changes(sql)) == (before, made)


async def test_names_swapped_by_a_file_are_swapped_and_taken_back(
    run: Run, sql: asyncpg.Connection, database: str, tmp_path: Path
) -> None:
    before, there = await state(sql), await loaded(database, tmp_path)
    file = tmp_path / "swap.csv"
    file.write_text(HEADER + "NASDAQ,AAPL,YF,MSFT,,,,,\nNASDAQ,MSFT,YF,AAPL,,,,,\n", encoding="utf-8")
    shown = await run("mappings", "diff", file)
    assert "instrument_search_code AAPL → MSFT" in shown
    assert "Dry run" in shown
    assert await state(sql) == before
    await run("mappings", "apply", file, "--note", "a mix-up at the vendor")
    assert (await loaded(database, tmp_path))["NASDAQ:AAPL", "YF"] == "MSFT"
    newest = json.loads(await run("mappings", "history", "--json"))[0]
    assert newest["note"] == "a mix-up at the vendor"
    rows = json.loads(await run("mappings", "history", newest["change"], "--json"))["rows"]
    assert [(row["label"], row["after"]) for row in rows] == [
        ("NASDAQ:AAPL at YF", {"provider_instrument_search_code": "MSFT"}),
        ("NASDAQ:MSFT at YF", {"provider_instrument_search_code": "AAPL"}),
    ]
    assert "Dry run" in await run("mappings", "rollback", "--dry-run")
    await run("mappings", "rollback")
    assert await state(sql) == before
    assert await loaded(database, tmp_path) == there
    with pytest.raises(ConfigurationError, match="was rolled back already"):
        await run("mappings", "rollback", newest["change"])


async def test_a_rollover_is_one_line(
    run: Run, sql: asyncpg.Connection, database: str, tmp_path: Path
) -> None:
    file = tmp_path / "roll.csv"
    file.write_text(
        HEADER + "NSE,NIFTY,DHAN,NIFTY-NEW,IDX_I,99,true,2036-12-31T15:30:00+05:30,\n", encoding="utf-8"
    )
    await run("mappings", "apply", file)
    rows = await sql.fetch(
        "SELECT m.provider_security_id AS id, m.valid_from, m.valid_to FROM provider_instrument_mappings m "
        "JOIN instruments i ON i.id = m.instrument_id JOIN providers p ON p.id = m.provider_id "
        "WHERE i.symbol = 'NIFTY' AND p.code = 'DHAN' ORDER BY m.id"
    )
    assert [row["id"] for row in rows] == ["13", "99"]
    assert rows[0]["valid_to"] == rows[1]["valid_from"] is not None
    assert rows[1]["valid_from"].isoformat() == "2036-12-31T10:00:00+00:00"
    assert (await loaded(database, tmp_path))["NSE:NIFTY", "DHAN"] == "IDX_I:13"
    assert "Nothing to change." in await run("mappings", "apply", file)
    await run("mappings", "rollback")
    assert (
        await sql.fetchval("SELECT count(*) FROM provider_instrument_mappings WHERE valid_from IS NOT NULL")
        == 0
    )


async def test_bad_lines_are_all_named_and_nothing_is_written(
    run: Run, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    before = await state(sql)
    file = tmp_path / "bad.csv"
    file.write_text(
        HEADER + "NSE,RELIANCE,YF,,,,,,\nNSE,TCS,YF,X,,,maybe,,\nNSE,TCS,YF,X,,,,2026-12-31,\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigurationError) as error:
        await run("mappings", "apply", file)
    told = str(error.value)
    assert "line 2: search_code must not be empty" in told
    assert "line 3: is_active is 'maybe'" in told
    assert "line 4: valid_from is '2026-12-31': it needs a zone" in told
    for line, reason in (
        ("NSE,NOPE,YF,X,,,,,", "there is no instrument NSE:NOPE"),
        ("NSE,TCS,NOPE,X,,,,,", "there is no provider NOPE"),
        ("NSE,TCS,YF,RELIANCE.NS,,,,,", "refused a statement: duplicate key.*Nothing was written"),
    ):
        file.write_text(f"{HEADER}{line}\n", encoding="utf-8")
        with pytest.raises(ConfigurationError, match=reason):
            await run("mappings", "apply", file)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        await run("mappings", "apply", tmp_path / "none.csv")
    with pytest.raises(ConfigurationError, match="name a file to apply"):
        await run("mappings", "apply")
    assert await state(sql) == before


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE instruments SET name = name || '!'",
        "DELETE FROM provider_instrument_mappings WHERE provider_segment IS NULL",
        "TRUNCATE provider_instrument_mappings",
        "TRUNCATE providers CASCADE; TRUNCATE exchanges CASCADE",
        "WITH gone AS (DELETE FROM provider_instrument_mappings) SELECT 1; DELETE FROM instruments",
        "UPDATE exchange_provider_mappings SET is_primary = false",
        "INSERT INTO providers (code, name) VALUES ('ALPACA', 'Alpaca')",
        "UPDATE provider_instrument_mappings SET is_active = false; UPDATE providers SET rate_limit = 2.5",
    ],
)
async def test_sql_by_hand_is_in_the_log_and_is_taken_back_to_the_letter(
    run: Run, sql: asyncpg.Connection, statement: str
) -> None:
    before = await state(sql)
    async with sql.transaction():
        await sql.execute(statement)
    assert await state(sql) != before
    newest = json.loads(await run("mappings", "history", "--limit", 1, "--json"))[0]
    assert newest["actor"] == await sql.fetchval("SELECT session_user")
    assert newest["note"] == ""
    await run("mappings", "rollback", "--allow-removal")
    assert await state(sql) == before


async def test_a_change_beneath_a_later_one_is_not_taken_back(run: Run, sql: asyncpg.Connection) -> None:
    await sql.execute("UPDATE instruments SET name = 'One' WHERE symbol = 'AAPL'")
    await sql.execute("UPDATE instruments SET name = 'Two' WHERE symbol = 'AAPL'")
    second, first = (
        row["change"] for row in json.loads(await run("mappings", "history", "--limit", 2, "--json"))
    )
    with pytest.raises(ConfigurationError, match=f"changed again after change {first}"):
        await run("mappings", "rollback", first)
    await run("mappings", "rollback", second)
    await run("mappings", "rollback")
    assert await sql.fetchval("SELECT name FROM instruments WHERE symbol = 'AAPL'") == "Apple"
    told = await run("mappings", "history")
    assert f"takes back change {second}" in told


async def test_an_edit_that_leaves_the_tables_wrong_is_refused_before_it_is_written(
    run: Run, sql: asyncpg.Connection, tmp_path: Path
) -> None:
    """The tables allow it, because the segment differs; what would be subscribed is the same."""
    file = tmp_path / "same.csv"
    file.write_text(HEADER + "NASDAQ,MSFT,YF,AAPL,US,,,,\n", encoding="utf-8")
    before = await state(sql)
    with pytest.raises(ConfigurationError, match="AAPL of YF means NASDAQ:AAPL and NASDAQ:MSFT"):
        await run("mappings", "apply", file)
    assert await state(sql) == before


async def test_without_a_file_the_tables_are_compared_with_what_the_daemon_uses(
    run: Run, sql: asyncpg.Connection, database: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="nothing to compare the tables with"):
        await run("mappings", "diff")
    (tmp_path / "state").mkdir(mode=0o700, exist_ok=True)
    catalogue = Catalogue(database, tmp_path / "state" / "mappings.json", SystemClock())
    await catalogue.keep(await catalogue.read())
    await catalogue.close()
    assert "The tables say what the daemon uses." in await run("mappings", "diff")
    await sql.execute(
        "UPDATE provider_instrument_mappings SET is_active = false WHERE provider_segment IS NULL"
    )
    told = await run("mappings", "diff")
    assert "The daemon refuses the tables:" in told
    assert "NASDAQ:AAPL at YF" in told
    found = json.loads(await run("mappings", "diff", "--json"))
    assert found["problems"][0]["kind"] == "mass_removal"
    assert len(found["problems"][0]["rows"]) == 4
