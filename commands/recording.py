"""`record` and `replay`: a running daemon's raw frames to disk, and back through the same decode path."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.markup import escape

from commands.context import AsJson, demo_settings, err, live_settings, out, quiet_logs, use_servers
from config.settings import Settings
from services.errors import ConfigurationError, TemporaryError
from services.operations.state_dir import StateDirectory

if TYPE_CHECKING:
    from services.recording.files import RecordingWriter
    from services.recording.recorder import RecordingFigures
    from services.replay.decoding import ReplayReport

DemoOption = Annotated[bool, typer.Option("--demo", help="The demo's daemon and Redis, not the live ones.")]


def record(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="An empty or new folder.")],
    provider: Annotated[
        list[str] | None, typer.Option(help="Only this provider's frames (its code); may be given again.")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0, help="End after so long; 0: until Ctrl-C.")] = 0,
    max_mib: Annotated[int, typer.Option(min=2, help="Beyond this the oldest file is deleted.")] = 1_024,
    file_mib: Annotated[int, typer.Option(min=1, help="Size of one file.")] = 64,
    demo: DemoOption = False,
) -> None:
    """Record the raw frames that the running daemon gets, until Ctrl-C."""
    from services.recording.files import RecordingWriter

    state_dir = _recorded_state_dir(demo=demo)
    codes = [code.upper() for code in provider or []]
    with RecordingWriter(folder, limit_bytes=max_mib << 20, file_bytes=file_mib << 20) as writer:
        figures = asyncio.run(_record(state_dir, writer, codes, minutes * 60))
    out.print(
        f"{figures.frames} frames in {escape(str(folder))}, {writer.written_bytes / 2**20:.1f} MiB "
        f"({figures.plain_bytes / max(1, writer.written_bytes):.1f} to 1)"
        + (f"; {figures.dropped} frames came too fast to be recorded" if figures.dropped else "")
        + (
            f"; the oldest {writer.files_dropped} files were deleted at --max-mib"
            if writer.files_dropped
            else ""
        )
    )
    out.print(f"replay them with: python main.py replay {escape(str(folder))}")


async def _record(
    state_dir: Path, writer: RecordingWriter, codes: list[str], seconds: float
) -> RecordingFigures:
    from rich.live import Live

    from services.recording.recorder import Recorder

    began_s = time.monotonic()
    with Live(console=err, refresh_per_second=4, transient=True) as live:

        def show(figures: RecordingFigures) -> None:
            took_s = time.monotonic() - began_s
            text = (
                f"recording {took_s:.0f} s, {figures.frames} frames "
                f"({figures.frames / max(0.1, took_s):.0f} a second), {writer.written_bytes / 2**20:.1f} MiB"
            )
            live.update(
                f"{text}; {figures.waiting_for}" if figures.waiting_for else f"{text}; Ctrl-C ends it"
            )

        recorder = Recorder(state_dir, writer, providers=codes, changed=show)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, recorder.stop)
        if seconds:
            loop.call_later(seconds, recorder.stop)
        await recorder.run()
    return recorder.figures


def _recorded_state_dir(*, demo: bool) -> Path:
    """Return the state directory of the daemon to record, live before demo."""
    folders = [demo_settings().state_dir] if demo else [live_settings().state_dir, demo_settings().state_dir]
    for folder in folders:
        if StateDirectory.read_runtime(folder) is not None:
            return folder
    raise TemporaryError(
        f"no daemon is running on {folders[0]}: a recording is made of a running daemon's frames; "
        "start one with make run, or try make demo"
    )


def replay(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that `record` has written.")],
    speed: Annotated[
        float,
        typer.Option(min=0, help="1 is as recorded, 10 ten times as fast, 0 as fast as Redis takes it."),
    ] = 0,
    name: Annotated[str, typer.Option(help="Keys are md:replay:NAME:…; by default the folder's name.")] = "",
    keep_hours: Annotated[int, typer.Option(min=0, help="Keys expire after this; 0: never.")] = 24,
    check: Annotated[bool, typer.Option("--check", help="Decode and count only; write nothing.")] = False,
    drop: Annotated[
        bool, typer.Option("--drop", help="Delete the keys of an earlier replay, no more.")
    ] = False,
    as_json: AsJson = False,
    demo: DemoOption = False,
) -> None:
    """Replay a recording through the daemon's decode path, into keys that nothing live uses.

    The same recording gives the same entries, at any speed. An earlier replay of the same name is replaced.
    """
    from services.storage.replay_space import replay_keys

    chosen = name or folder.resolve().name
    keys = replay_keys(chosen)
    settings = demo_settings() if demo else live_settings()
    with quiet_logs(settings, "ERROR"):
        if drop:
            count = asyncio.run(_drop(settings, chosen, demo=demo))
            out.print(f"{count} keys of {keys.prefix} deleted")
            return
        report = asyncio.run(_replay(settings, folder, chosen, speed, keep_hours, check=check, demo=demo))
    if as_json:
        print(json.dumps(msgspec.to_builtins(report), indent=2))
    else:
        _show(report, check=check, keep_hours=keep_hours)
    if report.unread.damaged_blocks or any(report.refused.values()):
        raise typer.Exit(1)


async def _redis_url(settings: Settings, stack: contextlib.AsyncExitStack, *, demo: bool) -> str:
    """Return the Redis of the running daemon, else that of the settings, else start the embedded one."""
    folders = [settings.state_dir] if demo else [settings.state_dir, demo_settings().state_dir]
    if settings.redis_url is None:
        for folder in folders:
            runtime = StateDirectory.read_runtime(folder)
            if runtime is not None:
                return str(runtime["redis_url"])
        state = stack.enter_context(StateDirectory(settings.state_dir, demo=demo))
        state.lock_daemon()
    return (await use_servers(settings, stack, database=False))[1]


async def _drop(settings: Settings, name: str, *, demo: bool) -> int:
    from services.storage.replay_space import ReplaySpace, replay_keys

    async with contextlib.AsyncExitStack() as stack:
        space = ReplaySpace(await _redis_url(settings, stack, demo=demo), replay_keys(name))
        stack.push_async_callback(space.close)
        return await space.empty()


async def _replay(
    settings: Settings, folder: Path, name: str, speed: float, keep_hours: int, *, check: bool, demo: bool
) -> ReplayReport:
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from services.recording.files import recording_files
    from services.replay.replay import Replay

    files = recording_files(folder)
    if not files:
        raise ConfigurationError(f"there is no recording in {folder}: make one with python main.py record")
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeRemainingColumn(),
    )
    async with contextlib.AsyncExitStack() as stack:
        redis_url = None if check else await _redis_url(settings, stack, demo=demo)
        bar = stack.enter_context(Progress(*columns, console=err, transient=True))
        task = bar.add_task("replaying", total=sum(path.stat().st_size for path in files))

        def progress(read_bytes: int, report: ReplayReport) -> None:
            clock = datetime.fromtimestamp(report.to_ms / 1000, UTC)
            bar.update(
                task,
                completed=read_bytes,
                description=f"replaying {clock:%Y-%m-%d %H:%M:%S} UTC, {report.ticks} ticks",
            )

        return await Replay(
            folder, name, redis_url, speed=speed, keep_hours=keep_hours, progress=progress
        ).run()


def _show(report: ReplayReport, *, check: bool, keep_hours: int) -> None:
    frames = ", ".join(f"{code} {count}" for code, count in sorted(report.frames.items())) or "none"
    began, ended = (datetime.fromtimestamp(at / 1000, UTC) for at in (report.from_ms, report.to_ms))
    out.print(f"recorded   {began:%Y-%m-%d %H:%M:%S} to {ended:%Y-%m-%d %H:%M:%S} UTC")
    out.print(
        f"frames     {frames}"
        + (f"; {report.damaged_frames} could not be decoded" if report.damaged_frames else "")
    )
    out.print(
        f"records    {report.ticks} ticks, {report.controls} control records, "
        f"{report.standby} of standby providers"
    )
    if report.rejected:
        out.print(
            "refused    "
            + ", ".join(f"{reason} {count}" for reason, count in sorted(report.rejected.items()))
        )
    out.print(f"digest     {report.digest}")
    if report.lost_frames:
        out.print(f"missing    {report.lost_frames} frames came too fast to be recorded")
    if report.unread.torn_bytes and not report.unread.damaged_blocks:
        out.print(
            f"torn       the last {report.unread.torn_bytes} bytes: "
            "the recorder was ended in the middle of a write"
        )
    if report.unread.damaged_blocks:
        out.print(f"damaged    {report.unread.damaged_blocks} blocks could not be read and were left out")
    if check:
        out.print("written    nothing (--check)")
        return
    for sink, count in report.stored.items():
        refused = report.refused[sink]
        out.print(f"written    {count} by {sink}" + (f", {refused} refused by Redis" if refused else ""))
    out.print(
        f"read them  redis-cli xrange {report.prefix}ticks:NSE - + count 3"
        + (f"; the keys expire in {keep_hours} hours" if keep_hours else "; the keys stay until --drop")
    )
