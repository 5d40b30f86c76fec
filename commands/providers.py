"""`providers`: which providers there are, who serves which exchange, and in which order."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from commands.catalogue import (
    AllowRemoval,
    Demo,
    DryRun,
    catalogue_database,
    chosen_settings,
    read_only,
    run_edit,
)
from commands.context import AsJson, daemon_of, out
from services.errors import ConfigurationError, MarketdError
from services.operations.daemon_client import fetch

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

app = typer.Typer(help="Providers: list them, switch them, order them by exchange.", no_args_is_help=True)

_Code = Annotated[str, typer.Argument(help="A provider's code, such as DHAN.")]
_Exchange = Annotated[str | None, typer.Option("--exchange", help="On this exchange only, such as NSE.")]

_LIST = """
    SELECT p.code, p.name, p.is_active, p.rate_limit::float AS rate_limit,
           (SELECT count(*) FROM provider_instrument_mappings m WHERE m.provider_id = p.id AND m.is_active)
               AS mappings,
           coalesce((SELECT jsonb_agg(jsonb_build_object('exchange', e.code, 'primary', r.is_primary,
                                                         'priority', r.priority, 'is_active', r.is_active)
                                      ORDER BY e.code)
                     FROM exchange_provider_mappings r JOIN exchanges e ON e.id = r.exchange_id
                     WHERE r.provider_id = p.id), '[]') AS exchanges
    FROM providers p ORDER BY p.code
"""


@app.command("list")
def list_providers(as_json: AsJson = False, demo: Demo = False) -> None:
    """Show every provider with the exchanges it serves, and its state in the running daemon."""
    rows = asyncio.run(_listed(demo))
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("code", "name", "active", "state", "mappings", "exchanges (priority)"):
        table.add_column(column)
    for row in rows:
        served = ", ".join(
            f"{'[bold]' if it['primary'] else ''}{it['exchange']}{'[/]' if it['primary'] else ''} "
            f"({'primary' if it['primary'] else it['priority']}{'' if it['is_active'] else ', off'})"
            for it in row["exchanges"]
        )
        table.add_row(
            row["code"],
            escape(row["name"]),
            "yes" if row["is_active"] else "[red]no[/]",
            row["state"] or "-",
            str(row["mappings"]),
            served or "none",
        )
    out.print(table if rows else "There are no providers yet: run python data_migration/setup_providers.py")


async def _listed(demo: bool) -> list[dict[str, Any]]:
    from sqlalchemy import text

    settings = chosen_settings(demo)

    async def rows(connection: AsyncConnection) -> list[dict[str, Any]]:
        return [dict(row) for row in (await connection.execute(text(_LIST))).mappings()]

    async with catalogue_database(settings, demo=demo) as database_url:
        found: list[dict[str, Any]] = await read_only(database_url, rows)
        states: dict[str, str] = {}
        daemon = daemon_of(settings)
        if daemon is not None:
            try:
                answer = await fetch(daemon[0], "/api/providers/status", daemon[1])
                states = {row["code"]: row["state"] for row in answer["providers"]}
            except MarketdError:
                states = {}
    return [{**row, "state": states.get(row["code"])} for row in found]


@app.command()
def enable(
    code: _Code,
    exchange: _Exchange = None,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    demo: Demo = False,
) -> None:
    """Use a provider again, everywhere or on one exchange."""
    _switch(code, exchange, active=True, dry_run=dry_run, as_json=as_json, demo=demo)


@app.command()
def disable(
    code: _Code,
    exchange: _Exchange = None,
    allow_removal: AllowRemoval = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    demo: Demo = False,
) -> None:
    """Use a provider no longer, everywhere or on one exchange; its mappings rest until it is enabled."""
    _switch(
        code,
        exchange,
        active=False,
        dry_run=dry_run,
        as_json=as_json,
        demo=demo,
        allow_removal=allow_removal,
    )


def _switch(
    code: str,
    exchange: str | None,
    *,
    active: bool,
    dry_run: bool,
    as_json: bool,
    demo: bool,
    allow_removal: bool = False,
) -> None:
    from sqlalchemy import text

    async def work(connection: AsyncConnection) -> None:
        provider_id, exchange_id = await _ids(connection, code.upper(), exchange and exchange.upper())
        if exchange_id is None:
            statement = (
                "UPDATE providers SET is_active = :active WHERE id = :provider AND is_active <> :active"
            )
        else:
            statement = (
                "UPDATE exchange_provider_mappings SET is_active = :active "
                "WHERE provider_id = :provider AND exchange_id = :exchange AND is_active <> :active"
            )
        values = {"active": active, "provider": provider_id, "exchange": exchange_id}
        await connection.execute(
            text(statement), {name: value for name, value in values.items() if f":{name}" in statement}
        )

    place = f" --exchange {exchange.upper()}" if exchange else ""
    run_edit(
        work,
        note=f"providers {'enable' if active else 'disable'} {code.upper()}{place}",
        demo=demo,
        dry_run=dry_run,
        as_json=as_json,
        allow_removal=allow_removal,
    )


@app.command()
def priority(
    exchange: Annotated[str, typer.Argument(help="An exchange, such as NSE.")],
    code: _Code,
    number: Annotated[int, typer.Argument(min=0, max=2_147_483_647, help="Smallest first.")],
    primary: Annotated[
        bool, typer.Option("--primary", help="Make it the exchange's primary, before all others.")
    ] = False,
    dry_run: DryRun = False,
    as_json: AsJson = False,
    demo: Demo = False,
) -> None:
    """Say at which place a provider serves an exchange; the primary comes before all others."""
    from sqlalchemy import text

    async def work(connection: AsyncConnection) -> None:
        provider_id, exchange_id = await _ids(connection, code.upper(), exchange.upper())
        ids = {"provider": provider_id, "exchange": exchange_id}
        if primary:
            # An exchange has one primary at most: the old one steps down first.
            await connection.execute(
                text(
                    "UPDATE exchange_provider_mappings SET is_primary = false "
                    "WHERE exchange_id = :exchange AND is_primary AND provider_id <> :provider"
                ),
                ids,
            )
        await connection.execute(
            text(
                "UPDATE exchange_provider_mappings "
                "SET priority = :number, is_primary = is_primary OR :primary "
                "WHERE provider_id = :provider AND exchange_id = :exchange "
                "AND (priority <> :number OR (:primary AND NOT is_primary))"
            ),
            {**ids, "number": number, "primary": primary},
        )

    place = f"{exchange.upper()} {code.upper()} {number}"
    run_edit(
        work,
        note=f"providers priority {place}{' --primary' if primary else ''}",
        demo=demo,
        dry_run=dry_run,
        as_json=as_json,
    )


async def _ids(connection: AsyncConnection, code: str, exchange: str | None) -> tuple[int, int | None]:
    """Return the ids of a provider and an exchange that it serves. Raises `ConfigurationError`."""
    from sqlalchemy import text

    providers = {
        row.code: row.id
        for row in await connection.execute(text("SELECT id, code FROM providers ORDER BY code"))
    }
    if code not in providers:
        raise ConfigurationError(f"there is no provider {code}: there are {', '.join(providers)}")
    if exchange is None:
        return providers[code], None
    served = {
        row.code: row.id
        for row in await connection.execute(
            text(
                "SELECT e.id, e.code FROM exchanges e JOIN exchange_provider_mappings r "
                "ON r.exchange_id = e.id WHERE r.provider_id = :provider ORDER BY e.code"
            ),
            {"provider": providers[code]},
        )
    }
    if exchange not in served:
        raise ConfigurationError(
            f"{code} does not serve {exchange}: it serves {', '.join(served) or 'no exchange'}"
        )
    return providers[code], served[exchange]
