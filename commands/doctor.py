"""`doctor`: checks everything the daemon depends on, and says what to do about what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.markup import escape

from commands.context import (
    EXIT_CONFIGURATION,
    credential_store,
    demo_settings,
    live_settings,
    market_day_files,
    out,
    quiet_logs,
    settings_reader,
    use_servers,
)
from config.settings import Settings, dotenv_path
from services.errors import MarketdError
from services.operations.state_dir import StateDirectory
from services.redaction import redact

if TYPE_CHECKING:
    from services.operations.doctor import Check


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
    demo: Annotated[
        bool, typer.Option("--demo", help="The demo's servers; so it is too while a demo runs on STATE_DIR.")
    ] = False,
) -> None:
    """Check settings, database, Redis, credentials, clock and limits; exit 0 only when all pass."""
    settings = live_settings()
    runtime = StateDirectory.read_runtime(settings.state_dir)
    demo = demo or (runtime is not None and bool(runtime.get("demo")))
    if demo:
        settings = demo_settings()
    with quiet_logs(settings, "ERROR"):
        results = asyncio.run(_doctor(settings, demo=demo))
    if as_json:
        print(json.dumps([msgspec.to_builtins(check) for check in results], indent=2))
    else:
        for check in results:
            mark = "[green]ok  [/]" if check.passed else "[red]FAIL[/]"
            if check.warning:
                mark = "[yellow]warn[/]"
            ok = check.passed and not check.warning
            remedy = "" if ok or not check.remedy else f"  -> {check.remedy}"
            out.print(f"{mark} {check.name}: {escape(redact(check.detail))}{escape(remedy)}")
    if not all(check.passed for check in results):
        raise typer.Exit(EXIT_CONFIGURATION)


async def _doctor(settings: Settings, *, demo: bool) -> list[Check]:
    from services.market_data.calendar import MarketCalendar
    from services.operations import doctor as checks
    from services.operations.doctor_memory import check_memory
    from services.operations.doctor_rights import check_database_rights, check_redis_rights
    from services.storage.retention import Retention

    results = [checks.Check("settings", True, "all names known, all values valid")]
    if not demo:
        results.append(checks.check_secret_file(dotenv_path()))
    results += checks.check_host(settings.state_dir)
    results.append(checks.check_path())
    calendar = MarketCalendar(market_day_files(settings))
    results.append(checks.check_market_days(calendar, datetime.now(UTC).date()))
    if demo:
        results.append(checks.Check("credentials", True, "made by the demo's simulators"))
    else:
        given = settings_reader(settings, demo=False).for_providers
        credentials = credential_store(settings, given, demo=False)
        results.append(checks.check_credentials(credentials.settings(), time.time_ns() // 1_000_000))
    async with contextlib.AsyncExitStack() as stack:
        try:
            stack.enter_context(StateDirectory(settings.state_dir, demo=demo))
            database_url, redis_url = await use_servers(settings, stack)
        except MarketdError as error:
            results.append(checks.Check("servers", False, str(error), "see the message"))
            return results
        results += await checks.check_database(database_url, settings.state_dir)
        results += await checks.check_redis(redis_url)
        if all(check.passed for check in results if check.name in ("database", "mappings", "redis")):
            results.append(
                await check_memory(
                    redis_url,
                    checks.mapped_instruments(database_url, settings.state_dir),
                    Retention(*settings.tick_retention_ms()),
                    Retention(*settings.bar_retention_ms()),
                    calendar,
                    datetime.now(UTC).date(),
                )
            )
        # The embedded servers have one user each, for everything.
        if settings.redis_url is not None:
            results += await check_redis_rights(redis_url)
        if settings.database_url is not None:
            results += await check_database_rights(database_url)
    return results
