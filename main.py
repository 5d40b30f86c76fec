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
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

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
    out,
    settings_reader,
    use_servers,
)
from commands.daemon_config import Part, check_gateway_servers, compose, pass_on
from commands.demo import demo_providers
from config.logging import LogWriter, configure_logging
from config.settings import Settings
from config.usage import run_command_line
from services.daemon.process import StopRequest, done_unless, first_of, stop_in_time
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
    from services.gateway_daemon import GatewayDaemon
    from services.live_data_ingestion import LiveDataIngestion
    from services.operations.server_process import EmbeddedServer

    Daemon = LiveDataIngestion | GatewayDaemon

WATCHDOG = WatchdogLimits()

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
    stop = StopRequest()
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
            check_gateway_servers(settings)
        embedded: list[EmbeddedServer] = []
        database_url, redis_url = await use_servers(settings, stack, started=embedded)
        live = settings_reader(settings, demo=demo)
        provider_settings: Callable[[], Mapping[str, str]] = live.for_providers
        if demo:
            provider_settings = await demo_providers(stack, provider_settings, database_url)
        credentials = credential_store(settings, provider_settings, demo=demo)
        daemon = compose(settings, (database_url, redis_url), credentials, role, exchanges, demo=demo)
        daemon.vitals.log_lines_dropped = lambda: log.dropped
        for server in embedded:
            daemon.supervisor.keep(f"embedded_{server.title.lower()}", server.run)
        runtime: dict[str, Any] = {}

        def on_change(now: Settings) -> None:
            pass_on(now, daemon)
            if runtime:
                runtime.update(daemon.urls)
                state.write_runtime(runtime)

        live.on_change = on_change
        stop.on_hangup = live.reload
        daemon.supervisor.keep("settings_watch", live.watch)
        try:
            if await done_unless(stop.requested, daemon.start()):
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
                await first_of(stop.requested, daemon.supervisor.failed, daemon.ended)
                if not stop.requested.is_set():
                    daemon.check_lease()
        finally:
            waiting.cancel()
            notifier.stopping()
            runtime.clear()
            state.clear_runtime()
            watchdog.stop_begins()
            complete = await stop_in_time(daemon, stop)
            watchdog.stop_ended()
    if not complete:
        return EXIT_TEMPORARY
    if daemon.supervisor.failure:
        err.print(f"marketd: {escape(redact(daemon.supervisor.failure))}; everything was stopped in order")
        return EXIT_INTERNAL
    return 0


def _health_line(daemon: Daemon) -> str:
    readiness = daemon.readiness()
    return f"serving {daemon.api_url}" if readiness.ready else f"not ready: {'; '.join(readiness.reasons)}"


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
