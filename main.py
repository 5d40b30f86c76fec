"""Command line of marketd: composes the daemon and runs it; the other commands are in `commands/`.

With `commands/context.py` the only reader of `config.settings` besides the scripts of `data_migration`.
Exit codes: 0 clean, 2 wrong command line, 70 internal, 75 temporary, 78 configuration.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import faulthandler
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine, Mapping
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import structlog
import typer
import uvloop
from rich.markup import escape

from commands import (
    doctor,
    drill,
    history,
    mappings,
    observe,
    options,
    providers,
    quality,
    recording,
    routes,
    spool,
)
from commands.context import (
    EXIT_CONFIGURATION,
    EXIT_INTERNAL,
    EXIT_TEMPORARY,
    credential_store,
    demo_settings,
    err,
    examples_of,
    live_settings,
    market_day_files,
    out,
    settings_reader,
    use_servers,
)
from config.credential_store import CredentialStore
from config.logging import LogWriter, configure_logging
from config.settings import PROJECT_ROOT, Settings
from config.usage import run_command_line
from services.errors import (
    ConfigurationError,
    MarketdError,
    StorageMisconfigured,
    StorageUnavailable,
    TemporaryError,
)
from services.operations.state_dir import StateDirectory
from services.operations.systemd_notify import SystemdNotifier
from services.operations.watchdog import LoopWatchdog, WatchdogLimits
from services.redaction import redact

# Takes a second to load: `run` imports it, the other commands do not wait for it.
if TYPE_CHECKING:
    from services.gateway_daemon import GatewayDaemon, GatewayDaemonConfig
    from services.live_data_ingestion import IngestionConfig, LiveDataIngestion
    from services.operations.notices import Delivery
    from services.operations.server_process import EmbeddedServer

    Daemon = LiveDataIngestion | GatewayDaemon

WATCHDOG = WatchdogLimits()
STOP_START_WITHIN_S = 5.0
STOP_WITHIN_S = 14.0
"""After so long a stop is hurried; the process must end within 20 s."""
HURRIED_WITHIN_S = 4.0
DEMO_SCRIP_MASTER = PROJECT_ROOT / "simulators" / "data" / "dhan-scrip-master.csv"

app = typer.Typer(
    help="marketd: market data from several providers into Redis TimeSeries, streams and WebSocket. "
    "Without a command the daemon is run.",
    epilog=examples_of("run --demo", "status", "why NSE:RELIANCE", "COMMAND --help"),
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_RUNNING, _WATCHING = "Running", "Looking at a running daemon"
_PAST, _CHANGING, _TRYING = "The past", "Mappings and providers", "Recording and faults"
for panel, command, *examples in (
    (_WATCHING, observe.status, "status --watch", "status --json | jq '.providers[].state'"),
    (_WATCHING, observe.why, "why NSE:RELIANCE"),
    (_WATCHING, observe.tap, "tap 'NSE:*' --count 10", "tap NSE:TCS NASDAQ:AAPL --json"),
    (_WATCHING, options.options, "options NIFTY --expiries", "options NIFTY --strikes 8"),
    (_WATCHING, routes.routes, "routes", "routes NSE:RELIANCE --events 50"),
    (_RUNNING, doctor.doctor, "doctor", "doctor --json"),
    (_PAST, history.coverage, "coverage NSE:RELIANCE"),
    (
        _PAST,
        history.backfill,
        "backfill --instrument NSE:RELIANCE --interval 1m --from 2026-11-02 --to 2026-11-06",
    ),
    (_TRYING, recording.record, "record frames"),
    (_TRYING, recording.replay, "replay frames --speed 10"),
    (_TRYING, drill.drill, "drill", "drill redis-restart"),
):
    app.command(rich_help_panel=panel, epilog=examples_of(*examples))(command)
app.add_typer(spool.app, name="spool", rich_help_panel=_RUNNING)
app.add_typer(providers.app, name="providers", rich_help_panel=_CHANGING)
app.add_typer(mappings.app, name="mappings", rich_help_panel=_CHANGING)
routes.add_to(providers.app)
quality.add_to(app)


@app.callback(invoke_without_command=True)
def _default(context: typer.Context) -> None:
    """Without a command: run the daemon."""
    if context.invoked_subcommand is None:
        run(demo=False, role=Part.ALL, exchanges="")


class Part(str, Enum):
    """Which part of the daemon a process is."""

    ALL = "all"
    INGEST = "ingest"
    GATEWAY = "gateway"


@app.command(
    rich_help_panel=_RUNNING,
    epilog=examples_of("run", "run --demo", "run --role gateway", "run --role ingest --exchanges NSE,BSE"),
)
def run(
    demo: Annotated[
        bool, typer.Option("--demo", help="Simulated providers, data of its own, no keys.")
    ] = False,
    role: Annotated[
        Part,
        typer.Option(
            help="all: everything in one process. ingest: providers to Redis, no clients but health and "
            "status. gateway: serves clients from Redis; any number, each with an own STATE_DIR and API_PORT."
        ),
    ] = Part.ALL,
    exchanges: Annotated[
        str,
        typer.Option(
            metavar="NSE,BSE",
            help="With --role ingest: only these exchanges; other processes may ingest others, each with its "
            "own STATE_DIR.",
        ),
    ] = "",
) -> None:
    """Run the daemon until Ctrl-C or SIGTERM."""
    shard = _shard_codes(role, exchanges, demo=demo)
    settings = demo_settings() if demo else live_settings()
    listener = configure_logging(
        "WARNING" if demo and "LOG_LEVEL" not in os.environ else settings.log_level, settings.log_format
    )
    faulthandler.enable()
    try:
        code = uvloop.run(_run(settings, demo=demo, role=role, exchanges=shard, log=listener))
    finally:
        listener.stop()
    raise typer.Exit(code)


def _shard_codes(role: Part, text: str, *, demo: bool) -> tuple[str, ...]:
    """Return the exchange codes of `--exchanges`. Raises for what does not go together (exit code 2)."""
    from services.market_data.instruments import EXCHANGE_CODES

    if demo and role is not Part.ALL:
        raise typer.BadParameter("the demo runs everything in one process: leave --role out")
    codes = tuple(dict.fromkeys(code for part in text.split(",") if (code := part.strip().upper())))
    if codes and role is not Part.INGEST:
        raise typer.BadParameter("--exchanges goes with --role ingest")
    for code in codes:
        if code not in EXCHANGE_CODES:
            near = ", ".join(difflib.get_close_matches(code, EXCHANGE_CODES)) or ", ".join(EXCHANGE_CODES)
            raise typer.BadParameter(f"--exchanges: {code} is no exchange; there is {near}")
    return codes


async def _run(
    settings: Settings, *, demo: bool, role: Part, exchanges: tuple[str, ...], log: LogWriter
) -> int:
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
        if role is Part.GATEWAY:
            _check_gateway_servers(settings)
        embedded: list[EmbeddedServer] = []
        database_url, redis_url = await use_servers(settings, stack, started=embedded)
        live = settings_reader(settings, demo=demo)
        provider_settings: Callable[[], Mapping[str, str]] = live.for_providers
        if demo:
            provider_settings = await _demo_providers(stack, provider_settings, database_url)
        credentials = credential_store(settings, provider_settings, demo=demo)
        daemon = _compose(settings, (database_url, redis_url), credentials, role, exchanges, demo=demo)
        daemon.vitals.log_lines_dropped = lambda: log.dropped
        for server in embedded:
            daemon.supervisor.keep(f"embedded_{server.title.lower()}", server.run)
        runtime: dict[str, Any] = {}

        def pass_on(now: Settings) -> None:
            _pass_on(now, daemon)
            if runtime:
                runtime.update(daemon.urls)
                state.write_runtime(runtime)

        live.on_change = pass_on
        stop.on_hangup = live.reload
        daemon.supervisor.keep("settings_watch", live.watch)
        try:
            if await _unless(stop.requested, daemon.start()):
                runtime |= {
                    "api_url": daemon.api_url,
                    **daemon.urls,
                    "pid": os.getpid(),
                    "demo": demo,
                    "role": role.value,
                    "started_ms": time.time_ns() // 1_000_000,
                }
                state.write_runtime(runtime)
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
            runtime.clear()
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


def _compose(
    settings: Settings,
    urls: tuple[str, str],
    credentials: CredentialStore,
    role: Part,
    exchanges: tuple[str, ...],
    *,
    demo: bool,
) -> Daemon:
    """Return what this process is. Loading it takes a second: a second daemon is told off before."""
    if role is Part.GATEWAY:
        from services.gateway_daemon import GatewayDaemon

        return GatewayDaemon(_gateway_config(settings, *urls))
    from services.live_data_ingestion import LiveDataIngestion

    config = _ingestion_config(settings, *urls, demo=demo)
    if role is Part.INGEST:
        config = msgspec.structs.replace(config, exchanges=exchanges, serves_clients=False)
    return LiveDataIngestion(
        config, provider_settings=credentials.settings, save_credentials=credentials.save
    )


def _check_gateway_servers(settings: Settings) -> None:
    """A gateway with servers of its own would have nothing to show. Raises `ConfigurationError`."""
    missing = [
        name
        for name, url in (("REDIS_URL", settings.redis_url), ("DATABASE_URL", settings.database_url))
        if url is None
    ]
    if missing:
        raise ConfigurationError(
            f"--role gateway needs {' and '.join(missing)}: the servers of the ingest daemon "
            "(redis_url and database_url in its STATE_DIR/runtime.json)"
        )


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


async def _stop_daemon(daemon: Daemon, stop: _StopRequest) -> bool:
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


def _health_line(daemon: Daemon) -> str:
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


def _ingestion_config(
    settings: Settings, database_url: str, redis_url: str, *, demo: bool
) -> IngestionConfig:
    from services.history.backfill import BackfillDepth
    from services.live_data_ingestion import IngestionConfig

    tick_retention_ms, ticks_by_exchange = settings.tick_retention_ms()
    bar_retention_ms, bars_by_exchange = settings.bar_retention_ms()
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
        market_day_files=market_day_files(settings),
        always_open=settings.market_calendar == "always_open",
        tick_retention_ms=tick_retention_ms,
        tick_retention_by_exchange=ticks_by_exchange,
        bar_retention_ms=bar_retention_ms,
        bar_retention_by_exchange=bars_by_exchange,
        backfill=BackfillDepth(settings.backfill_minute_days, settings.backfill_daily_days),
        stream_max_entries=settings.stream_max_entries,
        stream_max_age_ms=settings.stream_max_age_hours * 3_600_000,
        spool_limit_bytes=settings.spool_limit_mib << 20,
        lease_policy=settings.lease_policy,
        option_order=settings.option_order(),
        option_rates=settings.rates(),
        option_year_days=settings.option_year_days,
        depth=settings.depth,
        depth_instruments=settings.depth_wanted(),
        depth_stale_after_s=settings.depth_stale_after_s,
        depth_stream_max_entries=settings.depth_stream_max_entries,
        depth_stream_max_age_ms=settings.depth_stream_max_age_s * 1_000,
        news_every_s=settings.news_every_s,
        news_topics=settings.topics(),
        api_max_clients=settings.api_max_clients,
        memory_limit_bytes=settings.memory_limit_mib << 20,
    )


def _gateway_config(settings: Settings, database_url: str, redis_url: str) -> GatewayDaemonConfig:
    from services.gateway_daemon import GatewayDaemonConfig

    return GatewayDaemonConfig(
        database_url=database_url,
        redis_url=redis_url,
        state_dir=settings.state_dir,
        api_host=settings.api_host,
        api_port=settings.api_port,
        api_tokens=settings.tokens(),
        api_allowed_origins=settings.allowed_origins(),
        api_max_clients=settings.api_max_clients,
        dynamic_subscriptions=settings.subscription_mode == "dynamic",
        market_day_files=market_day_files(settings),
        always_open=settings.market_calendar == "always_open",
        memory_limit_bytes=settings.memory_limit_mib << 20,
    )


def _notices(settings: Settings) -> tuple[Delivery, ...]:
    from services.operations.notices import CommandHook, Webhook

    url, command = settings.notice_webhook_url.get_secret_value(), settings.notice_command
    return (*([Webhook(url)] if url else []), *([CommandHook(command)] if command else []))


def _pass_on(settings: Settings, daemon: Daemon) -> None:
    """Tell the daemon of settings that were read again; an embedded server keeps its URL."""
    started_with = daemon.config
    database, redis = settings.database_url, settings.redis_url
    daemon.secrets_changed(
        database_url=database.get_secret_value() if database else started_with.database_url,
        redis_url=redis.get_secret_value() if redis else started_with.redis_url,
        api_tokens=settings.tokens(),
    )


# ---- demo -------------------------------------------------------------------------------------------


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
        "DHAN_DEPTH_20_URL": urls.dhan_depth_20_url,
        "DHAN_DEPTH_200_URL": urls.dhan_depth_200_url,
        "DHAN_CLIENT_ID": urls.dhan_client_id,
        "DHAN_ACCESS_TOKEN": urls.dhan_access_token,
        "YAHOO_STREAM_URL": urls.yahoo_stream_url,
        "YAHOO_REST_URL": urls.yahoo_rest_url,
        "NSE_REST_URL": urls.nse_rest_url,
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


# ---- entry ------------------------------------------------------------------------------------------


def main() -> int:
    """Run the command line; return the exit code, never raise."""
    try:
        return run_command_line(app, prog_name=os.environ.get("MARKETD_COMMAND"))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except MarketdError as error:
        err.print(f"marketd: {escape(redact(str(error)))}")
        return _exit_code(error)
    except Exception as error:  # noqa: BLE001 - the last place that can turn a defect into a sentence
        err.print(f"marketd: internal error, {_keep_trace(error)}: {escape(redact(repr(error)))}")
        return EXIT_INTERNAL


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
