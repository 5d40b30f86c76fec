"""Command line of marketd: composes the daemon, runs it, and talks to a running one.

The only reader of `config.settings` besides the scripts of `data_migration`.
Exit codes: 0 clean, 2 wrong command line, 70 internal, 75 temporary, 78 configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import msgspec
import structlog
import typer
import uvloop
from rich.console import Console
from rich.live import Live
from rich.markup import escape

from config.live_settings import LiveSettings
from config.logging import LogWriter, configure_logging
from config.settings import (
    PROJECT_ROOT,
    Settings,
    dotenv_path,
    load_settings,
)
from services.errors import (
    ConfigurationError,
    MarketdError,
    StorageMisconfigured,
    StorageUnavailable,
    TemporaryError,
)
from services.operations.daemon_client import fetch
from services.operations.daemon_client import tap as tap_records
from services.operations.state_dir import StateDirectory
from services.operations.systemd_notify import SystemdNotifier
from services.operations.terminal_views import spool_view, status_view, tap_lines, why_view
from services.operations.watchdog import LoopWatchdog, WatchdogLimits
from services.provider_plugins import plugged_in_codes
from services.redaction import redact

# Each command imports what it needs, so that `status` does not wait for the whole daemon to load.
if TYPE_CHECKING:
    from services.live_data_ingestion import IngestionConfig, LiveDataIngestion
    from services.operations.doctor import Check
    from services.operations.notices import Delivery
    from services.operations.server_process import EmbeddedServer
    from services.pipeline.sink import SinkCounters

EXIT_INTERNAL, EXIT_TEMPORARY, EXIT_CONFIGURATION = 70, 75, 78
WATCHDOG = WatchdogLimits()
STOP_START_WITHIN_S = 5.0
STOP_WITHIN_S = 14.0
"""After so long a stop is hurried; the process must end within 20 s."""
HURRIED_WITHIN_S = 4.0
DEMO_STATE_DIR = PROJECT_ROOT / ".state-demo"
DEMO_SCRIP_MASTER = PROJECT_ROOT / "simulators" / "data" / "dhan-scrip-master.csv"

app = typer.Typer(
    help="marketd: market data from several providers into Redis TimeSeries, streams and WebSocket.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@app.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    """Without a command: run the daemon."""
    if context.invoked_subcommand is None:
        run(demo=False)


@app.command()
def run(
    demo: Annotated[
        bool, typer.Option("--demo", help="Simulated providers, data of its own, no keys.")
    ] = False,
) -> None:
    """Run the daemon until Ctrl-C or SIGTERM."""
    settings = _demo_settings() if demo else load_settings(provider_prefixes=_prefixes())
    listener = configure_logging(
        "WARNING" if demo and "LOG_LEVEL" not in os.environ else settings.log_level, settings.log_format
    )
    faulthandler.enable()
    try:
        code = uvloop.run(_run(settings, demo=demo, log=listener))
    finally:
        listener.stop()
    raise typer.Exit(code)


async def _run(settings: Settings, *, demo: bool, log: LogWriter) -> int:
    stop = _StopRequest()
    stop.listen()
    notifier = SystemdNotifier.from_environment()
    async with contextlib.AsyncExitStack() as stack:
        stack.callback(notifier.close)
        state = stack.enter_context(StateDirectory(settings.state_dir, demo=demo))
        state.lock_daemon()
        watchdog = LoopWatchdog(asyncio.get_running_loop(), settings.state_dir, WATCHDOG)
        watchdog.start()
        stack.callback(watchdog.stop)
        waiting = asyncio.ensure_future(notifier.wait_for_start(lambda: "starting"))
        stack.callback(waiting.cancel)
        # Takes a second, which a second daemon on the same directory need not wait to be told.
        from services.live_data_ingestion import LiveDataIngestion

        embedded: list[EmbeddedServer] = []
        database_url, redis_url = await _servers(settings, stack, started=embedded)
        live = _live_settings(settings, demo=demo)
        provider_settings: Callable[[], Mapping[str, str]] = live.for_providers
        if demo:
            provider_settings = await _demo_providers(stack, provider_settings, database_url)
        daemon = LiveDataIngestion(
            _ingestion_config(settings, database_url, redis_url, demo=demo),
            provider_settings=provider_settings,
        )
        daemon.vitals.log_lines_dropped = lambda: log.dropped
        for server in embedded:
            daemon.supervisor.keep(f"embedded_{server.title.lower()}", server.run)
        live.on_change = lambda now: _pass_on(now, daemon)
        stop.on_hangup = live.reload
        daemon.supervisor.keep("settings_watch", live.watch)
        try:
            if await _unless(stop.requested, daemon.start()):
                state.write_runtime(
                    {
                        "api_url": daemon.api_url,
                        "database_url": database_url,
                        "redis_url": redis_url,
                        "pid": os.getpid(),
                        "demo": demo,
                        "started_ms": time.time_ns() // 1_000_000,
                    }
                )
                _print_banner(daemon.api_url, demo=demo)
                waiting.cancel()
                if notifier.active:
                    daemon.supervisor.keep(
                        "service_manager",
                        lambda: notifier.attend(
                            lambda: daemon.running, daemon.stuck, lambda: _health_line(daemon)
                        ),
                    )
                await _first_of(stop.requested, daemon.supervisor.failed, daemon.ended)
                if not stop.requested.is_set():
                    daemon.check_lease()
        finally:
            waiting.cancel()
            notifier.stopping()
            state.clear_runtime()
            watchdog.stop_begins()
            complete = await _stop_daemon(daemon, stop)
            watchdog.stop_ended()
    if not complete:
        return EXIT_TEMPORARY
    if daemon.supervisor.failure:
        err.print(f"marketd: {escape(redact(daemon.supervisor.failure))}; everything was stopped in order")
        return EXIT_INTERNAL
    return 0


async def _unless(stop: asyncio.Event, work: Coroutine[Any, Any, None]) -> bool:
    """Do `work` unless a stop is asked for before its end; tell whether it was done. Failures go through."""
    task = asyncio.ensure_future(work)
    asked = asyncio.ensure_future(stop.wait())
    await asyncio.wait([task, asked], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=STOP_START_WITHIN_S)
    if not task.done() or task.cancelled():
        return False
    await task
    return not stop.is_set()


async def _first_of(*events: asyncio.Event) -> None:
    """Wait until one of `events` is set."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _stop_daemon(daemon: LiveDataIngestion, stop: _StopRequest) -> bool:
    """Stop the daemon; a second signal, or a stop that takes too long, shortens that to about a second.

    Returns whether it ended without being hurried by a signal.
    """
    stopping = asyncio.ensure_future(daemon.stop())
    hurried = asyncio.ensure_future(stop.hurried.wait())
    await asyncio.wait([stopping, hurried], timeout=STOP_WITHIN_S, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if stopping.done():
        await stopping
        return not stop.hurried.is_set()
    daemon.hurry()
    await asyncio.wait([stopping], timeout=HURRIED_WITHIN_S)
    if not stopping.done():
        stopping.cancel()
        await asyncio.wait([stopping], timeout=1.0)
        structlog.get_logger(__name__).error("daemon_stop_cut_short", unsettled=daemon.unsettled())
    elif not stopping.cancelled():
        await stopping
    return not stop.hurried.is_set()


def _health_line(daemon: LiveDataIngestion) -> str:
    readiness = daemon.readiness()
    return f"serving {daemon.api_url}" if readiness.ready else f"not ready: {'; '.join(readiness.reasons)}"


class _StopRequest:
    """SIGINT and SIGTERM ask for a stop, a second one for a quick stop, SIGHUP for a look at the secrets."""

    def __init__(self) -> None:
        self.requested = asyncio.Event()
        self.hurried = asyncio.Event()
        self.on_hangup: Callable[[], None] = lambda: None

    def listen(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._asked)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.on_hangup())  # noqa: PLW0108 - set later

    def _asked(self) -> None:
        if self.requested.is_set():
            self.hurried.set()
        self.requested.set()


async def _servers(
    settings: Settings,
    stack: contextlib.AsyncExitStack,
    *,
    database: bool = True,
    started: list[EmbeddedServer] | None = None,
) -> tuple[str, str]:
    """Return the URLs of PostgreSQL and Redis, starting embedded ones where none is set.

    Without `database` the URL of PostgreSQL is empty and none is started. What is started is added
    to `started`, for whoever wants to watch over it.
    """
    from services.operations.embedded import EmbeddedPostgres, EmbeddedRedis

    async def postgres() -> str:
        if settings.database_url is not None:
            return settings.database_url.get_secret_value()
        return await embedded(EmbeddedPostgres(settings.state_dir))

    async def redis() -> str:
        if settings.redis_url is not None:
            return settings.redis_url.get_secret_value()
        return await embedded(EmbeddedRedis(settings.state_dir))

    async def embedded(server: EmbeddedServer) -> str:
        await stack.enter_async_context(server)
        if started is not None:
            started.append(server)
        return await server.start()

    return await postgres() if database else "", await redis()


def _ingestion_config(
    settings: Settings, database_url: str, redis_url: str, *, demo: bool
) -> IngestionConfig:
    from services.live_data_ingestion import IngestionConfig

    return IngestionConfig(
        database_url=database_url,
        redis_url=redis_url,
        state_dir=settings.state_dir,
        demo=demo,
        api_host=settings.api_host,
        api_port=settings.api_port,
        api_port_fallback=demo,
        api_tokens=settings.tokens(),
        api_allowed_origins=settings.allowed_origins(),
        dynamic_subscriptions=settings.subscription_mode == "dynamic",
        pinned_instruments=settings.pinned(),
        subscription_linger_s=settings.subscription_linger_s,
        notices=_notices(settings),
        market_day_files=_market_day_files(settings),
        always_open=settings.market_calendar == "always_open",
        tick_retention_ms=settings.tick_retention_hours * 3_600_000,
        stream_max_entries=settings.stream_max_entries,
        stream_max_age_ms=settings.stream_max_age_hours * 3_600_000,
        spool_limit_bytes=settings.spool_limit_mib << 20,
        lease_policy=settings.lease_policy,
        api_max_clients=settings.api_max_clients,
        memory_limit_bytes=settings.memory_limit_mib << 20,
    )


def _market_day_files(settings: Settings) -> tuple[Path, ...]:
    from services.market_data.calendar import SHIPPED

    return (SHIPPED,) if settings.market_days is None else (SHIPPED, settings.market_days)


def _notices(settings: Settings) -> tuple[Delivery, ...]:
    from services.operations.notices import CommandHook, Webhook

    url, command = settings.notice_webhook_url.get_secret_value(), settings.notice_command
    return (*([Webhook(url)] if url else []), *([CommandHook(command)] if command else []))


def _live_settings(settings: Settings, *, demo: bool) -> LiveSettings:
    """Return the settings as a reader that sees changes of `.env` and of secret files."""
    prefixes = _prefixes()
    return LiveSettings(
        settings,
        _demo_settings if demo else lambda: load_settings(provider_prefixes=prefixes),
        use_dotenv=not demo,
        provider_prefixes=prefixes,
    )


def _pass_on(settings: Settings, daemon: LiveDataIngestion) -> None:
    """Tell the daemon of settings that were read again; an embedded server keeps its URL."""
    started_with = daemon.config
    database, redis = settings.database_url, settings.redis_url
    daemon.secrets_changed(
        database_url=database.get_secret_value() if database else started_with.database_url,
        redis_url=redis.get_secret_value() if redis else started_with.redis_url,
        api_tokens=settings.tokens(),
    )


def _prefixes() -> tuple[str, ...]:
    """Return what the settings of providers found at run time begin with."""
    return tuple(f"{code}_" for code in plugged_in_codes())


# ---- demo -------------------------------------------------------------------------------------------


def _demo_settings() -> Settings:
    """Return settings that touch nothing live: no `.env`, embedded servers, a state directory of its own."""
    chosen = os.environ.get("STATE_DIR", "")
    return load_settings(
        use_dotenv=False,
        overrides={
            "database_url": None,
            "redis_url": None,
            "state_dir": Path(chosen) if chosen else DEMO_STATE_DIR,
            "market_calendar": "always_open",
        },
    )


async def _demo_providers(
    stack: contextlib.AsyncExitStack, base: Callable[[], Mapping[str, str]], database_url: str
) -> Callable[[], Mapping[str, str]]:
    """Start the simulators, fill the database, and return settings that point at the simulators."""
    from services.operations.demo import DemoSimulators

    urls = await stack.enter_async_context(DemoSimulators(PROJECT_ROOT))
    await _fill_demo_database(database_url)
    pointed = {
        "DHAN_FEED_URL": urls.dhan_feed_url,
        "DHAN_REST_URL": urls.dhan_rest_url,
        "DHAN_CLIENT_ID": urls.dhan_client_id,
        "DHAN_ACCESS_TOKEN": urls.dhan_access_token,
        "YAHOO_STREAM_URL": urls.yahoo_stream_url,
        "YAHOO_REST_URL": urls.yahoo_rest_url,
    }
    return lambda: {**base(), **pointed}


async def _fill_demo_database(database_url: str) -> None:
    """Bring the demo's database to the shipped instruments, under the security ids of the simulator."""
    from data_migration import scrip_master_file
    from data_migration.populate_instrument_mappings import Sources, populate_from
    from data_migration.setup_providers import setup

    await setup(database_url)
    master = await asyncio.to_thread(scrip_master_file.read, DEMO_SCRIP_MASTER, err)
    await populate_from(database_url, Sources(scrip_master=master))


def _print_banner(api_url: str, *, demo: bool) -> None:
    if demo:
        out.print("\n[bold yellow]DEMO DATA[/]: simulated prices, kept apart from any live data.")
    out.print(f"marketd is running: dashboard {api_url}/   (Ctrl-C stops it)")
    if demo:
        out.print("Try in another terminal:")
        out.print("  .venv/bin/python main.py status")
        out.print("  .venv/bin/python main.py tap 'NSE:*' --count 10")
        out.print("  scripts/redis-cli XREAD COUNT 2 STREAMS md:ticks:NSE 0")


# ---- commands that talk to a running daemon ------------------------------------------------------------


@app.command()
def status(
    as_json: Annotated[bool, typer.Option("--json", help="Print the raw answer.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh every second until Ctrl-C.")] = False,
) -> None:
    """Show providers and pipeline of the running daemon."""
    api_url, token = _running_daemon()

    async def once() -> Any:
        return await fetch(api_url, "/api/providers/status", token)

    if as_json:
        if watch:
            while True:
                print(json.dumps(asyncio.run(once())), flush=True)
                time.sleep(1)
        print(json.dumps(asyncio.run(once()), indent=2))
        return
    if not watch:
        out.print(status_view(asyncio.run(once())))
        return
    with Live(status_view(asyncio.run(once())), console=out, refresh_per_second=2) as live:
        while True:
            time.sleep(1)
            live.update(status_view(asyncio.run(once())))


@app.command()
def why(
    instrument: Annotated[str, typer.Argument(help="An instrument key, such as NSE:RELIANCE.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the raw answer.")] = False,
) -> None:
    """Say where an instrument's ticks are, what stands in their way and what to do."""
    api_url, token = _running_daemon()
    answer = asyncio.run(fetch(api_url, f"/api/why/{quote(instrument, safe=':')}", token))
    if "error" in answer:
        raise ConfigurationError(answer["error"]["message"])
    if as_json:
        print(json.dumps(answer, indent=2))
    else:
        out.print(why_view(answer))


@app.command()
def tap(
    instruments: Annotated[
        list[str], typer.Argument(help="Instrument keys; 'NSE:*' means a whole exchange.")
    ],
    count: Annotated[int, typer.Option("--count", min=0, help="Stop after so many records; 0: never.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Print live records of the running daemon."""
    api_url, token = _running_daemon()

    async def follow() -> None:
        seen = 0
        async for message in tap_records(api_url, token, instruments):
            for line in tap_lines(message, as_json=as_json):
                print(line, flush=True)
                seen += 1
                if count and seen >= count:
                    return

    asyncio.run(follow())


def _own_secret(settings: Settings) -> str | None:
    """Return the secret of a token that may see how the daemon is, else of any token, None without tokens."""
    from services.gateway.grants import ADMIN, parse_secret

    tokens = sorted(
        map(parse_secret, settings.tokens().values()), key=lambda token: not token[1].allows(ADMIN)
    )
    return tokens[0][0] if tokens else None


def _running_daemon() -> tuple[str, str | None]:
    """Return the URL and a token of the running daemon, live before demo."""
    settings = load_settings(provider_prefixes=_prefixes())
    token = _own_secret(settings)
    for folder in (settings.state_dir, DEMO_STATE_DIR):
        runtime = StateDirectory.read_runtime(folder)
        if runtime is not None:
            return str(runtime["api_url"]), token
    raise TemporaryError(
        f"no daemon is running on {settings.state_dir}: start one with make run, or try make demo"
    )


@app.command()
def doctor(as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False) -> None:
    """Check settings, database, Redis, credentials, clock and limits; exit 0 only when all pass."""
    settings = load_settings(provider_prefixes=_prefixes())
    listener = configure_logging("ERROR", settings.log_format)
    try:
        results = asyncio.run(_doctor(settings))
    finally:
        listener.stop()
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


async def _doctor(settings: Settings) -> list[Check]:
    from services.market_data.calendar import MarketCalendar
    from services.operations import doctor as checks
    from services.operations.doctor_rights import check_database_rights, check_redis_rights

    results = [checks.Check("settings", True, "all names known, all values valid")]
    results.append(checks.check_secret_file(dotenv_path()))
    results += checks.check_host(settings.state_dir)
    calendar = MarketCalendar(_market_day_files(settings))
    results.append(checks.check_market_days(calendar, datetime.now(UTC).date()))
    results.append(
        checks.check_credentials(
            _live_settings(settings, demo=False).for_providers(), time.time_ns() // 1_000_000
        )
    )
    async with contextlib.AsyncExitStack() as stack:
        try:
            stack.enter_context(StateDirectory(settings.state_dir, demo=False))
            database_url, redis_url = await _servers(settings, stack)
        except MarketdError as error:
            results.append(checks.Check("servers", False, str(error), "see the message"))
            return results
        results += await checks.check_database(database_url, settings.state_dir)
        results += await checks.check_redis(redis_url)
        # The embedded servers have one user each, for everything.
        if settings.redis_url is not None:
            results += await check_redis_rights(redis_url)
        if settings.database_url is not None:
            results += await check_database_rights(database_url)
    return results


# ---- the spool --------------------------------------------------------------------------------------


spool_app = typer.Typer(help="Look into the disk spool, replay it or throw it away.", no_args_is_help=True)
app.add_typer(spool_app, name="spool")
_DemoOption = Annotated[bool, typer.Option("--demo", help="The demo's spool instead of the live one.")]


def _spool_settings(demo: bool) -> Settings:
    return _demo_settings() if demo else load_settings(provider_prefixes=_prefixes())


@spool_app.command()
def inspect(
    demo: _DemoOption = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list.")] = False,
) -> None:
    """Show what waits on disk; touches nothing, so it may be used while the daemon runs."""
    from services.storage.spool import FOLDER
    from services.storage.spool_inspection import inspect_spool

    contents = inspect_spool(_spool_settings(demo).state_dir / FOLDER)
    if as_json:
        print(json.dumps([msgspec.to_builtins(channel) for channel in contents], indent=2))
    else:
        out.print(spool_view(contents))


@spool_app.command()
def replay(demo: _DemoOption = False) -> None:
    """Write what waits on disk to Redis, while no daemon runs (a running one does that by itself)."""
    settings = _spool_settings(demo)
    listener = configure_logging("WARNING", settings.log_format)
    try:
        accounts = asyncio.run(_replay_spool(settings, demo=demo))
    finally:
        listener.stop()
    for name, counters in accounts.items():
        lost = sum(counters.dropped.values()) + sum(counters.rejected.values())
        stored = counters.written + counters.collapsed
        out.print(
            f"{name}: {stored} of {counters.offered} records are in Redis "
            f"({counters.already_written} were before), {lost} lost or refused"
            + (f": {counters.dropped | counters.rejected}" if lost else "")
        )


async def _replay_spool(settings: Settings, *, demo: bool) -> dict[str, SinkCounters]:
    from rich.progress import Progress

    from services.operations import spool_commands
    from services.storage.spool import FOLDER

    async with contextlib.AsyncExitStack() as stack:
        _hold_spool(stack, settings, demo=demo)
        _, redis_url = await _servers(settings, stack, database=False)
        with Progress(console=err, transient=True) as bar:
            task = bar.add_task("replaying", total=None)

            def progress(left: int) -> None:
                bar.update(task, description=f"replaying, {left} records left")

            return await spool_commands.replay(
                settings.state_dir / FOLDER,
                redis_url,
                tick_retention_ms=settings.tick_retention_hours * 3_600_000,
                stream_max_entries=settings.stream_max_entries,
                progress=progress,
            )


@spool_app.command()
def drop(
    demo: _DemoOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Really throw the records away.")] = False,
) -> None:
    """Throw away what waits on disk, for good."""
    from services.operations import spool_commands
    from services.storage.spool import FOLDER
    from services.storage.spool_inspection import inspect_spool

    settings = _spool_settings(demo)
    with contextlib.ExitStack() as stack:
        _hold_spool(stack, settings, demo=demo)
        folder = settings.state_dir / FOLDER
        waiting = sum(channel.records for channel in inspect_spool(folder))
        if not yes and waiting:
            raise ConfigurationError(
                f"{waiting} records that are nowhere else would be lost: add --yes to drop them"
            )
        listener = configure_logging("WARNING", settings.log_format)
        try:
            dropped = asyncio.run(spool_commands.drop(folder)) if waiting else 0
        finally:
            listener.stop()
        out.print(f"{dropped} records dropped")


def _hold_spool(
    stack: contextlib.ExitStack | contextlib.AsyncExitStack, settings: Settings, *, demo: bool
) -> None:
    """Keep a daemon from the state directory. Raises `TemporaryError` when one is there already."""
    state = stack.enter_context(StateDirectory(settings.state_dir, demo=demo))
    try:
        state.lock_daemon()
    except TemporaryError as error:
        raise TemporaryError(f"{error}. A running daemon replays the spool by itself.") from error


# ---- entry ------------------------------------------------------------------------------------------


def main() -> int:
    """Run the command line; return the exit code, never raise."""
    try:
        app()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except MarketdError as error:
        err.print(f"marketd: {escape(redact(str(error)))}")
        return _exit_code(error)
    except Exception as error:  # noqa: BLE001 - the last place that can turn a defect into a sentence
        err.print(f"marketd: internal error, {_keep_trace(error)}: {escape(redact(repr(error)))}")
        return EXIT_INTERNAL
    return 0


def _keep_trace(error: Exception) -> str:
    """Write the trace of a defect to a file for whoever mends it; say where it is."""
    text = redact("".join(traceback.format_exception(error)))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="marketd-crash-", suffix=".txt", encoding="utf-8", delete=False
        ) as file:
            file.write(text)
    except OSError:
        return "its trace could not be written"
    return f"please report it with {file.name}"


def _exit_code(error: MarketdError) -> int:
    if isinstance(error, ConfigurationError | StorageMisconfigured):
        return EXIT_CONFIGURATION
    if isinstance(error, TemporaryError | StorageUnavailable):
        return EXIT_TEMPORARY
    return EXIT_INTERNAL


if __name__ == "__main__":
    sys.exit(main())
