"""`spool inspect`, `spool replay`, `spool drop`: what waits on disk for Redis."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from commands.context import AsJson, demo_settings, err, live_settings, out, quiet_logs, use_servers
from config.settings import Settings
from services.errors import ConfigurationError, TemporaryError
from services.operations.state_dir import StateDirectory
from services.operations.terminal_views import spool_view

if TYPE_CHECKING:
    from services.pipeline.sink import SinkCounters

app = typer.Typer(help="Look into the disk spool, replay it or throw it away.", no_args_is_help=True)

_DemoOption = Annotated[bool, typer.Option("--demo", help="The demo's spool instead of the live one.")]


def _spool_settings(demo: bool) -> Settings:
    return demo_settings() if demo else live_settings()


@app.command()
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


@app.command()
def replay(demo: _DemoOption = False, as_json: AsJson = False) -> None:
    """Write what waits on disk to Redis, while no daemon runs (a running one does that by itself)."""
    settings = _spool_settings(demo)
    with quiet_logs(settings):
        accounts = asyncio.run(_replay_spool(settings, demo=demo))
    if as_json:
        print(
            json.dumps({name: msgspec.to_builtins(counters) for name, counters in accounts.items()}, indent=2)
        )
        return
    for name, counters in accounts.items():
        lost = sum(counters.dropped.values()) + sum(counters.rejected.values())
        stored = counters.written + counters.collapsed
        out.print(
            f"{name}: {stored} of {counters.offered} records are in Redis "
            f"({counters.already_written} were before), {lost} lost or refused"
            + (f", {counters.resent} sent once more" if counters.resent else "")
            + (f": {counters.dropped | counters.rejected}" if lost else "")
        )


async def _replay_spool(settings: Settings, *, demo: bool) -> dict[str, SinkCounters]:
    from rich.progress import Progress

    from services.operations import spool_commands
    from services.storage.retention import Retention
    from services.storage.spool import FOLDER

    async with contextlib.AsyncExitStack() as stack:
        _hold_spool(stack, settings, demo=demo)
        _, redis_url = await use_servers(settings, stack, database=False)
        with Progress(console=err, transient=True) as bar:
            task = bar.add_task("replaying", total=None)

            def progress(left: int) -> None:
                bar.update(task, description=f"replaying, {left} records left")

            return await spool_commands.replay(
                settings.state_dir / FOLDER,
                redis_url,
                tick_retention=Retention(*settings.tick_retention_ms()),
                bar_retention=Retention(*settings.bar_retention_ms()),
                stream_max_entries=settings.stream_max_entries,
                progress=progress,
            )


@app.command()
def drop(
    demo: _DemoOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Really throw the records away.")] = False,
    as_json: AsJson = False,
) -> None:
    """Throw away what waits on disk, for good."""
    from services.operations import spool_commands
    from services.storage.spool import FOLDER
    from services.storage.spool_inspection import inspect_spool

    settings = _spool_settings(demo)
    with contextlib.ExitStack() as stack:
        _hold_spool(stack, settings, demo=demo)
        folder = settings.state_dir / FOLDER
        waiting = sum(channel.records + channel.again for channel in inspect_spool(folder))
        if not yes and waiting:
            raise ConfigurationError(
                f"{waiting} records that are nowhere else would be lost: add --yes to drop them"
            )
        with quiet_logs(settings):
            dropped = asyncio.run(spool_commands.drop(folder)) if waiting else 0
        if as_json:
            print(json.dumps({"dropped": dropped}))
        else:
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
