"""What the scripts share: which database they work on, and how they end.

Exit codes: 0 clean, 2 wrong command line, 70 internal, 75 temporary, 78 configuration.
"""

from __future__ import annotations

import asyncio
import signal
import tempfile
import traceback
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from config.settings import Settings
from config.usage import run_command_line
from services.errors import ConfigurationError, MarketdError, TemporaryError
from services.operations.embedded_postgres import EmbeddedPostgres
from services.operations.state_dir import StateDirectory
from services.redaction import redact

EXIT_INTERNAL, EXIT_TEMPORARY, EXIT_CONFIGURATION, EXIT_INTERRUPTED = 70, 75, 78, 130

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[str]:
    """Give the URL of the database the settings mean, an embedded one where none is set.

    A daemon that runs on the same state directory says which database it uses; otherwise the embedded
    server is started, and stopped again when nobody else uses it.
    """
    if settings.database_url is not None:
        yield settings.database_url.get_secret_value()
        return
    with StateDirectory(settings.state_dir, demo=False):
        runtime = StateDirectory.read_runtime(settings.state_dir)
        if runtime is not None and runtime.get("database_url"):
            yield str(runtime["database_url"])
            return
        async with EmbeddedPostgres(settings.state_dir) as server:
            yield await server.start()


def run_async(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a coroutine; SIGTERM ends it as Ctrl-C does, with everything closed behind it."""

    async def guarded() -> None:
        task = asyncio.current_task()
        if task is not None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
        await main()

    try:
        asyncio.run(guarded())
    except (KeyboardInterrupt, asyncio.CancelledError):
        err.print("stopped; a run is written whole or not at all")
        raise typer.Exit(EXIT_INTERRUPTED) from None


def run_script(app: typer.Typer) -> int:
    """Run a script's command line; return its exit code. Errors are one sentence on stderr."""
    try:
        return run_command_line(app)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    except MarketdError as error:
        err.print(escape(redact(str(error))))
        if isinstance(error, ConfigurationError):
            return EXIT_CONFIGURATION
        return EXIT_TEMPORARY if isinstance(error, TemporaryError) else EXIT_INTERNAL
    except Exception as error:  # noqa: BLE001 - the last place that can turn a defect into a sentence
        err.print(f"internal error{_kept_trace(error)}: {escape(redact(repr(error)))}")
        return EXIT_INTERNAL


def _kept_trace(error: Exception) -> str:
    """Write the trace of a defect to a file for whoever mends it; say where it is."""
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="marketd-crash-", suffix=".txt", encoding="utf-8", delete=False
        ) as file:
            file.write(redact("".join(traceback.format_exception(error))))
    except OSError:
        return ""
    return f", details in {escape(file.name)}"
